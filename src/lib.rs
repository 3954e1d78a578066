pub mod clock;
pub mod disk;
pub mod metrics;
pub mod oci;
pub mod store;
pub mod tasks;
pub mod upstream;

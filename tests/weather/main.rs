//! Any registry, any client, any weather: many upstreams at once, and what is left of them.

#[path = "../support/mod.rs"]
mod support;

mod bots;
mod builds;
mod carried;
mod forward;
mod links;
mod many;
mod offline;

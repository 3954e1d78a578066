//! What is taken for a name, tag, digest or host is written as it was read.
#![no_main]

use std::fmt::Display;
use std::str::FromStr;

use forebay::oci::{Digest, Name, Reference, Tag, UpstreamHost};
use libfuzzer_sys::fuzz_target;

fn same<T: FromStr + Display>(text: &str) {
    if let Ok(value) = text.parse::<T>() {
        assert_eq!(value.to_string(), text);
    }
}

fuzz_target!(|text: &str| {
    same::<Name>(text);
    same::<Tag>(text);
    same::<Digest>(text);
    same::<Reference>(text);
    if let Ok(name) = text.parse::<Name>() {
        assert!(name.components().all(|part| !part.is_empty() && part != "." && part != ".."));
    }
    // Hosts have several spellings and one form.
    if let Ok(host) = text.parse::<UpstreamHost>() {
        same::<UpstreamHost>(host.as_str());
    }
});

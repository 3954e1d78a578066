//! Whatever is sent as a manifest is read or refused, and read alike without its header.
#![no_main]

use forebay::oci::{Manifest, MediaType};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (Option<&str>, &[u8])| {
    let (header, bytes) = input;
    let header = header.and_then(MediaType::parse);
    if let Ok(manifest) = Manifest::parse(bytes, header.as_ref()) {
        let again = Manifest::parse(bytes, None).expect("the header only ever contradicts");
        assert_eq!(again.media_type.as_str(), manifest.media_type.as_str());
    }
});

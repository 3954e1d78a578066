//! A range that can be answered lies within the content.
#![no_main]

use forebay::oci::RangeRequest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u64, &str)| {
    let (size, header) = input;
    if let Some(Ok(range)) = RangeRequest::parse(header).map(|request| request.resolve(size)) {
        assert!(range.start < range.end && range.end <= size);
    }
});

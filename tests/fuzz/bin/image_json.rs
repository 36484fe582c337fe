//! See `targets::image_json`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| targets::image_json(bytes));

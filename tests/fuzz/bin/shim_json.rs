//! See `targets::shim_json`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| targets::shim_json(bytes));

//! See `targets::config_json`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| targets::config_json(bytes));

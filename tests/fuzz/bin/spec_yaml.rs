//! See `targets::spec_yaml`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| targets::spec_yaml(bytes));

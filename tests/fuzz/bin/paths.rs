//! See `targets::paths`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| targets::paths(bytes));

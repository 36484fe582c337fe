//! See `targets::shim_frames`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| targets::shim_frames(bytes));

//! See `targets::console_frames`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| targets::console_frames(bytes));

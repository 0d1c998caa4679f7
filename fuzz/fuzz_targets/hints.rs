//! A connection to the hint socket, in any pieces.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| vnpu_interposer::testing::check_hints(bytes));

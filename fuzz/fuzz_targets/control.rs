//! Any bytes as a handshake message or a hint.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| wire::testing::check_control(bytes));

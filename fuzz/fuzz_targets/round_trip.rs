//! Any valid record there and back.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| wire::testing::check_round_trip(bytes));

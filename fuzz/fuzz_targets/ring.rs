//! A script of pushes, pops and hostile words.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| wire::testing::check_ring(bytes));

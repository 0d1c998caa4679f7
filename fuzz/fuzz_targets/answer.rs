//! Any event or answer of an engine.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| openai::testing::check_answer(bytes));

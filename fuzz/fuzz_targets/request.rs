//! Any body of a request to the gateway.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| openai::testing::check_request(bytes));

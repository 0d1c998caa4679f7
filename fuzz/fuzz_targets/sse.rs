//! Any bytes as server-sent events.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sse::testing::check_stream(bytes));

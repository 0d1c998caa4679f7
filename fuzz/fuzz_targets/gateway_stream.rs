//! Any streamed answer of an engine on its way through the gateway.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| gateway::testing::check_events(bytes));

//! A hostile client against the daemon side of a session, a tiny device that computes, and a neighbour.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| runtime::testing::check_session(bytes));

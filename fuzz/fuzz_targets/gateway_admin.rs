//! Any request to the gateway's admin API.
#![no_main]

use gateway::testing::Admin;

thread_local! {
    static ADMIN: Admin = Admin::start(None);
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    ADMIN.with(|admin| admin.check(bytes));
});

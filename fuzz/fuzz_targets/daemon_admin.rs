//! Any request to the daemon's admin API.
#![no_main]

use vnpu_daemon::testing::Admin;

thread_local! {
    static ADMIN: Admin = Admin::start();
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    ADMIN.with(|admin| admin.check(bytes));
});

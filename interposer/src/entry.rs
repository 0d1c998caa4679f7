//! The funnel every exported function goes through.
//!
//! **Invariant:** no panic crosses the C ABI. A panic is a bug of ours: it becomes `ACL_ERROR_INTERNAL_ERROR` with its
//! message, at the call that hit it, and the application goes on.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::{Failure, remember};
use crate::log::log;

/// Runs a function that answers `aclError`.
pub fn status(function: &'static str, body: impl FnOnce() -> Result<(), Failure>) -> i32 {
    match guarded(body) {
        Ok(()) => 0,
        Err(failure) => {
            fail(function, &failure);
            failure.code
        }
    }
}

/// Runs a function that answers a value, and `otherwise` when it fails.
pub fn value<T>(function: &'static str, otherwise: T, body: impl FnOnce() -> Result<T, Failure>) -> T {
    guarded(body).unwrap_or_else(|failure| {
        fail(function, &failure);
        otherwise
    })
}

fn guarded<T>(body: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    // Unwind safety: tables and queues are changed under locks whose holders keep them whole at each step.
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
        let text = format!("internal error, please report it: {}", panic_text(&*panic));
        Err(Failure::new(acl_abi::values::ACL_ERROR_INTERNAL_ERROR, text))
    })
}

#[cold]
fn fail(function: &'static str, failure: &Failure) {
    remember(function, failure);
    log!(Debug, "{function}: {failure}");
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("panic without a message")
}

/// Sends panic messages to the log instead of straight to stderr. The hook is that of this library's own runtime; Rust
/// applications that load the library keep theirs.
pub fn quiet_panics() {
    if cfg!(test) {
        return;
    }
    std::panic::set_hook(Box::new(|info| log!(Error, "internal error: {info}")));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_and_panics_become_codes() {
        assert_eq!(status("f", || Ok(())), 0);
        assert_eq!(status("f", || Err(Failure::new(207_001, "full"))), 207_001);
        assert_eq!(status("f", || panic!("{}", "bug")), acl_abi::values::ACL_ERROR_INTERNAL_ERROR);
        assert_eq!(value("f", 7, || Err(Failure::null("x"))), 7);
        assert_eq!(crate::error::last_code(true), acl_abi::values::ACL_ERROR_RT_PARAM_INVALID);
    }
}

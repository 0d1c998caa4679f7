//! How a call fails: an AscendCL code and a sentence, kept per thread for `aclGetRecentErrMsg`.
//!
//! Codes are AscendCL's own. Those that a client's behaviour depends on: 207001 (out of memory: torch_npu frees its
//! cache and tries again), 107002 (no device on this thread), 107017 (bad handle), 207000 (not supported), and
//! [`DEVICE_LOST`].
//!
//! **Invariant:** the message pointer handed to a caller stays valid until the same thread asks again or ends; it is
//! never null, because clients build `std::string`s from it.

use std::cell::RefCell;
use std::ffi::{CString, c_char};

use acl_abi::values as acl;

/// The connection to the device is gone: its daemon ended, was restarted, or ended this session. AscendCL has no code for a
/// lost remote device; `ACL_ERROR_RT_LOST_HEARTBEAT` is what its own runtime answers when a device stops responding.
pub const DEVICE_LOST: i32 = acl::ACL_ERROR_RT_LOST_HEARTBEAT;
/// `ACLNN_ERR_PARAM_NULLPTR` of `aclnn_base.h`.
pub const ACLNN_PARAM_NULL: i32 = 161_001;
/// `ACLNN_ERR_PARAM_INVALID` of `aclnn_base.h`.
pub const ACLNN_PARAM_INVALID: i32 = 161_002;
/// Longest message kept, in bytes: a longer one is cut at a character.
pub const MESSAGE_BYTES_MAX: usize = 1024;

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text} (error {code})")]
pub struct Failure {
    /// `aclError`, never 0.
    pub code: i32,
    /// What is wrong and, where there is something, what to do. Without the function's name: the funnel adds it.
    pub text: String,
}

impl Failure {
    /// A failure with this code.
    pub fn new(code: i32, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }

    /// A null pointer where one is needed.
    pub fn null(parameter: &str) -> Self {
        Self::invalid(format!("parameter {parameter}: null pointer"))
    }

    /// A parameter that cannot be right.
    pub fn invalid(text: impl Into<String>) -> Self {
        Self::new(acl::ACL_ERROR_RT_PARAM_INVALID, text)
    }

    /// Something this device or this build does not do.
    pub fn unsupported(text: impl Into<String>) -> Self {
        Self::new(acl::ACL_ERROR_RT_FEATURE_NOT_SUPPORT, text)
    }
}

/// The last failure of a thread.
#[derive(Default)]
struct Recent {
    code: i32,
    message: CString,
    /// Set while `message` has not been asked for.
    fresh: bool,
    /// What the caller was last given.
    given: CString,
}

thread_local! {
    static RECENT: RefCell<Recent> = RefCell::default();
}

/// Keeps `failure` of `function` for this thread.
pub fn remember(function: &str, failure: &Failure) {
    // The daemon's texts begin with the call they are about, which may be this one.
    let named = failure.text.strip_prefix(function).is_some_and(|rest| rest.starts_with(':'));
    let mut text = if named { failure.text.clone() } else { format!("{function}: {}", failure.text) };
    let cut = text.char_indices().map(|(i, c)| i + c.len_utf8()).take_while(|&end| end <= MESSAGE_BYTES_MAX).last();
    text.truncate(cut.unwrap_or(0));
    text.retain(|c| c != '\0');
    let message = CString::new(text).unwrap_or_default();
    // A thread that is ending has no place for it any more, and nobody to ask.
    let _ = RECENT.try_with(|recent| {
        let mut recent = recent.borrow_mut();
        recent.code = failure.code;
        recent.message = message;
        recent.fresh = true;
    });
}

/// The message of this thread's last failure, once; afterwards the empty string.
pub fn take_message() -> *const c_char {
    let taken = RECENT.try_with(|recent| {
        let mut recent = recent.borrow_mut();
        recent.given =
            if std::mem::take(&mut recent.fresh) { std::mem::take(&mut recent.message) } else { CString::default() };
        recent.given.as_ptr()
    });
    taken.unwrap_or(c"".as_ptr())
}

/// The code of this thread's last failure, 0 if none; `clear` forgets it.
pub fn last_code(clear: bool) -> i32 {
    let code = RECENT.try_with(|recent| {
        let mut recent = recent.borrow_mut();
        if clear { std::mem::take(&mut recent.code) } else { recent.code }
    });
    code.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CStr;

    fn message() -> String {
        // SAFETY: `take_message` returns a NUL-terminated string that lives until this thread asks again.
        unsafe { CStr::from_ptr(take_message()) }.to_str().unwrap().to_owned()
    }

    #[test]
    fn message_is_given_once_and_code_until_cleared() {
        assert_eq!(message(), "");
        remember("aclrtMalloc", &Failure::new(207_001, "out of memory"));
        assert_eq!((message().as_str(), message().as_str()), ("aclrtMalloc: out of memory", ""));
        assert_eq!((last_code(false), last_code(true), last_code(false)), (207_001, 207_001, 0));
    }

    #[test]
    fn messages_are_cut_at_a_character_and_named_once() {
        remember("f", &Failure::invalid("ω".repeat(MESSAGE_BYTES_MAX)));
        let text = message();
        assert!(text.len() <= MESSAGE_BYTES_MAX && text.ends_with('ω'), "{} bytes", text.len());
        remember("aclrtMalloc", &Failure::new(207_001, "aclrtMalloc: full"));
        assert_eq!(message(), "aclrtMalloc: full", "named once");
        remember("f", &Failure::invalid("a\0b"));
        assert_eq!(message(), "f: ab");
    }

    #[test]
    fn messages_belong_to_their_thread() {
        remember("f", &Failure::invalid("here"));
        std::thread::spawn(|| assert_eq!((message().as_str(), last_code(false)), ("", 0))).join().unwrap();
        assert_eq!(message(), "f: here");
    }
}

//! Failures as a client sees them: an AscendCL code and a sentence that names the operator and the number that was wrong.
//!
//! Three kinds of failure take three ways. What an application did wrong, or ran out of, is a [`Fault`] in a reply or,
//! for work without a reply, on its stream until the next synchronising call. A client that breaks the protocol loses its
//! session (the `session` crate says so). A broken promise of our own is an assertion.

use acl_abi::values as acl;

/// An error for the application.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text} ({status})")]
pub struct Fault {
    /// `aclError`.
    pub status: i32,
    /// What went wrong, starting with the operator or the function.
    pub text: String,
}

impl Fault {
    /// An error with a code of `acl_abi::values`.
    pub fn new(status: i32, text: impl Into<String>) -> Self {
        Self { status, text: text.into() }
    }

    /// A wrong argument.
    pub fn param(text: impl Into<String>) -> Self {
        Self::new(acl::ACL_ERROR_RT_PARAM_INVALID, text)
    }

    /// A stream that does not exist in this session.
    pub fn no_stream(what: &str, stream: u32) -> Self {
        Self::new(
            acl::ACL_ERROR_RT_STREAM_CONTEXT,
            format!("{what}: stream {stream} does not exist (never created, or destroyed)"),
        )
    }

    /// An event that does not exist in this session.
    pub fn no_event(what: &str, event: u32) -> Self {
        Self::param(format!("{what}: event {event} does not exist (never created, or destroyed)"))
    }

    /// Out of device memory. torch_npu's free-and-retry depends on this very code.
    pub fn out_of_memory(what: &str, wanted: u64, free: u64, why: &str) -> Self {
        Self::new(
            acl::ACL_ERROR_RT_MEMORY_ALLOCATION,
            format!("{what}: out of device memory: {wanted} bytes wanted, {free} bytes free{why}"),
        )
    }

    /// A bound of [`crate::Limits`].
    pub fn over_limit(status: i32, what: &str, limit: usize) -> Self {
        Self::new(status, format!("{what}: this process already has {limit}, the most allowed; destroy some first"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn out_of_memory_has_the_code_torch_npu_looks_for() {
        let fault = Fault::out_of_memory("aclrtMalloc", 4096, 512, "");
        assert_eq!(fault.status, 207_001);
        assert!(fault.text.contains("4096 bytes wanted") && fault.text.contains("512 bytes free"), "{fault}");
    }
}

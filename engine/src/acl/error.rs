//! One error type for every AscendCL call.

use acl_abi::values::{
    ACL_ERROR_RT_LINK_ERROR, ACL_ERROR_RT_LOST_HEARTBEAT, ACL_ERROR_RT_MEMORY_ALLOCATION, ACL_ERROR_RT_SOCKET_CLOSE,
};

/// A call that did not return `ACL_SUCCESS`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{call} returned {code}{}{detail}", if .detail.is_empty() { "" } else { ": " })]
pub struct AclError {
    /// C function that returned the code.
    pub call: &'static str,
    /// `aclError` or `aclnnStatus`.
    pub code: i32,
    /// `aclGetRecentErrMsg` of the same thread; may be empty.
    pub detail: String,
}

impl AclError {
    /// True if no later call can succeed either: the device, or the connection to it, is gone.
    pub fn is_device_lost(&self) -> bool {
        matches!(self.code, ACL_ERROR_RT_LOST_HEARTBEAT | ACL_ERROR_RT_SOCKET_CLOSE | ACL_ERROR_RT_LINK_ERROR)
    }

    /// True if device memory ran out.
    pub fn is_out_of_memory(&self) -> bool {
        self.code == ACL_ERROR_RT_MEMORY_ALLOCATION
    }

    /// The operator that failed: the call itself, or, for an error that surfaced at a synchronisation, the operator
    /// that the platform's text names first.
    pub fn operator(&self) -> Option<&str> {
        let named = |text: &'_ str| text.starts_with("aclnn");
        if named(self.call) {
            return Some(self.call.trim_end_matches("GetWorkspaceSize"));
        }
        self.detail
            .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .find(|word| named(word))
            .map(|word| word.trim_end_matches("GetWorkspaceSize"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_operator() {
        for (call, detail, want) in [
            ("aclnnMatmulGetWorkspaceSize", "", Some("aclnnMatmul")),
            ("aclnnMatmul", "shapes differ", Some("aclnnMatmul")),
            ("aclrtSynchronizeStream", "aclnnSwiGlu: last dimension is odd", Some("aclnnSwiGlu")),
            ("aclrtSynchronizeStream", "EZ9999: in aclnnAddmmGetWorkspaceSize.", Some("aclnnAddmm")),
            ("aclrtMalloc", "out of memory", None),
        ] {
            let error = AclError { call, code: 507000, detail: detail.to_owned() };
            assert_eq!(error.operator(), want, "{error}");
        }
    }
}

//! Functions that exist so that clients load, and refuse when called.
//!
//! Generated from the function tables, less what `src/api/` implements and less what clients merely look up
//! (`build.rs` says why). A refusal names itself in the log once, in `aclGetRecentErrMsg` each time, and is counted;
//! [`refused`] and a line at `aclFinalize` tell how often.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Failure, remember};
use crate::log::log;

/// What a refused function answers.
pub const NOT_SUPPORTED: i32 = acl_abi::values::ACL_ERROR_RT_FEATURE_NOT_SUPPORT;

static CALLS: [AtomicU64; generated::REFUSED.len()] = [const { AtomicU64::new(0) }; generated::REFUSED.len()];

/// Counts a call of the refused function with this number.
fn refuse(number: usize) {
    let _ = std::panic::catch_unwind(|| {
        let name = generated::REFUSED[number];
        if CALLS[number].fetch_add(1, Ordering::Relaxed) == 0 {
            log!(Warn, "{name} is not supported; the call was refused");
        }
        remember(name, &Failure::unsupported("not supported by this virtual NPU"));
    });
}

/// Counts a call of a function that is refused by hand (`api/refusals.rs`); what it answers.
pub fn refuse_by_name(name: &'static str, failure: &Failure) -> i32 {
    if let Some(number) = generated::REFUSED.iter().position(|&n| n == name)
        && CALLS[number].fetch_add(1, Ordering::Relaxed) == 0
    {
        log!(Warn, "{name} is not supported; the call was refused: {}", failure.text);
    }
    remember(name, failure);
    failure.code
}

/// Functions that were called although they are not supported, and how often.
pub fn refused() -> Vec<(&'static str, u64)> {
    let counts = CALLS.iter().map(|c| c.load(Ordering::Relaxed));
    generated::REFUSED.iter().copied().zip(counts).filter(|(_, n)| *n > 0).collect()
}

#[allow(non_snake_case)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/stubs.rs"));
}

/// The coverage table: function, `supported|refused|absent`, clients that use it; tab-separated lines. It stands in a section
/// of its own, so that `vnpu functions` reads from the library that will really be used.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".vnpu.coverage")]
pub static vnpu_interposer_coverage: [u8; COVERAGE.len()] = *COVERAGE;

const COVERAGE: &[u8; include_bytes!(concat!(env!("OUT_DIR"), "/coverage.tsv")).len()] =
    include_bytes!(concat!(env!("OUT_DIR"), "/coverage.tsv"));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusal_answers_names_itself_and_counts() {
        assert_eq!(generated::aclmdlLoadFromFile(), NOT_SUPPORTED);
        assert_eq!(generated::aclmdlLoadFromFile(), NOT_SUPPORTED);
        assert!(generated::acltdtCreateDataset().is_null());
        assert!(refused().contains(&("aclmdlLoadFromFile", 2)));
        assert_eq!(crate::error::last_code(true), NOT_SUPPORTED);
    }

    #[test]
    fn coverage_has_each_function_once_and_hides_what_steers_clients() {
        let text = std::str::from_utf8(&vnpu_interposer_coverage).unwrap();
        let state =
            |name: &str| text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix('\t')?.split('\t').next());
        for (name, want) in [
            ("aclrtMalloc", "supported"),
            ("aclnnInit", "supported"),
            ("aclmdlRICondHandleCreate", "absent"),
            ("aclrtHostRegister", "absent"),
            ("aclopCompileAndExecute", "refused"),
            ("aclopCompileAndExecuteV2", "refused"),
            ("aclrtDeviceTaskAbort", "absent"),
            ("rtKernelLaunch", "refused"),
        ] {
            assert_eq!(state(name), Some(want), "{name}");
        }
        let mut names: Vec<_> = text.lines().map(|l| l.split('\t').next().unwrap()).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}

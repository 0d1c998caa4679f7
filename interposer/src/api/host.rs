//! Functions of CANN's host libraries that vllm_ascend's extension links: bounded copies, thread numbers, log levels.

use std::ffi::c_char;

use crate::abi::{Out, Text};
use crate::entry::value;

/// `EINVAL`, as the secure C functions answer it.
const EINVAL: i32 = 22;
/// `ERANGE`, with the bit that says that the destination was emptied.
const ERANGE_AND_RESET: i32 = 34 | 128;

/// Copies a string that fits; one that does not leaves the destination empty.
#[unsafe(no_mangle)]
pub extern "C" fn strcpy_s(dest: Out<c_char>, destMax: usize, src: Text) -> i32 {
    value("strcpy_s", EINVAL, || {
        let Some(text) = src.bytes() else { return Ok(EINVAL) };
        let fits = text.len() < destMax;
        dest.set_bytes("dest", if fits { text } else { b"" }, destMax)?;
        Ok(if fits { 0 } else { ERANGE_AND_RESET })
    })
}

/// The calling thread's number.
#[unsafe(no_mangle)]
pub extern "C" fn mmGetTid() -> i32 {
    // SAFETY: no arguments, cannot fail.
    unsafe { libc::gettid() }
}

/// No: CANN's own log does not exist here, so no level of it is on.
#[unsafe(no_mangle)]
pub extern "C" fn CheckLogLevel(_moduleId: i32, _logLevel: i32) -> i32 {
    0
}

//! What callers of the graph engine (GE) build before they ask it for anything. The engine itself does not exist here: torchair, which
//! torch_npu carries for `torch.compile`, loads, and `ge::GEInitialize` is refused.

use std::ffi::c_char;

use crate::abi::{In, Out};
use crate::entry::value;

/// `ge::AscendString::AscendString(const char *)`: a string is a shared pointer, an empty one here, which its owner can destroy.
#[unsafe(no_mangle)]
pub extern "C" fn _ZN2ge12AscendStringC1EPKc(this: Out<[usize; 2]>, _text: In<c_char>) {
    value("ge::AscendString::AscendString", (), || this.set("self", [0; 2]));
}

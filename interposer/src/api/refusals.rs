//! Functions that are refused with more than their name: what was asked of them says what a client lacks.
//!
//! The build counts them as refused, like those that it generates.

use crate::abi::{In, Opaque, Out, Text};
use crate::error::Failure;
use crate::process::process;
use crate::stub::refuse_by_name;

/// An operator of the path before `aclnn`, which compiles by name.
fn old_operator(function: &'static str, operator: &Text) -> i32 {
    let guarded = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let operator = operator.lossy().unwrap_or("without a name".into());
        let text =
            format!("operator {operator}: operators that are compiled by name are not supported, only aclnn ones");
        refuse_by_name(function, &Failure::unsupported(text))
    }));
    guarded.unwrap_or(crate::stub::NOT_SUPPORTED)
}

/// Refused, with the operator's name.
#[unsafe(no_mangle)]
pub extern "C" fn aclopCompileAndExecute(
    opType: Text,
    _numInputs: i32,
    _inputDesc: In<Opaque>,
    _inputs: In<Opaque>,
    _numOutputs: i32,
    _outputDesc: In<Opaque>,
    _outputs: In<Opaque>,
    _attr: Opaque,
    _engineType: i32,
    _compileFlag: i32,
    _opPath: Text,
    _stream: Opaque,
) -> i32 {
    old_operator("aclopCompileAndExecute", &opType)
}

/// As [`aclopCompileAndExecute`].
#[unsafe(no_mangle)]
pub extern "C" fn aclopCompileAndExecuteV2(
    opType: Text,
    _numInputs: i32,
    _inputDesc: In<Opaque>,
    _inputs: In<Opaque>,
    _numOutputs: i32,
    _outputDesc: In<Opaque>,
    _outputs: In<Opaque>,
    _attr: Opaque,
    _engineType: i32,
    _compileFlag: i32,
    _opPath: Text,
    _stream: Opaque,
) -> i32 {
    old_operator("aclopCompileAndExecuteV2", &opType)
}

/// A function of a registered binary, which would be launched next.
fn raw_kernel(function: &'static str, binary: Opaque, kernel: impl FnOnce() -> String) -> i32 {
    let guarded = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let bytes = process().binaries.with(binary, "binHandle", |bytes| *bytes);
        let of = bytes.map_or_else(|_| "no registered binary".to_owned(), |bytes| format!("a binary of {bytes} bytes"));
        let text = format!(
            "kernel {} of {of}: raw kernels are registered but not run, as they address memory by themselves",
            kernel()
        );
        refuse_by_name(function, &Failure::unsupported(text))
    }));
    guarded.unwrap_or(crate::stub::NOT_SUPPORTED)
}

/// Refused, with the kernel's name.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtBinaryGetFunction(binHandle: Opaque, kernelName: Text, _funcHandle: Out<Opaque>) -> i32 {
    raw_kernel("aclrtBinaryGetFunction", binHandle, || {
        kernelName.lossy().map_or_else(|| "without a name".to_owned(), std::borrow::Cow::into_owned)
    })
}

/// Refused, with the kernel's number.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtBinaryGetFunctionByEntry(binHandle: Opaque, funcEntry: u64, _funcHandle: Out<Opaque>) -> i32 {
    raw_kernel("aclrtBinaryGetFunctionByEntry", binHandle, || format!("with entry {funcEntry}"))
}

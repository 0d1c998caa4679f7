//! ATB's objects: operations and contexts, each with the virtual table that a C++ caller calls through.
//!
//! A table is what the C++ binary interface of x86-64 and aarch64 Linux has in memory: the offset to the whole object, a type
//! description (none: callers ask for none), then one function a virtual method, destructors twice.

use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use super::layout::VariantPack;
use super::translate::Kind;
use crate::abi::{Opaque, Out};
use crate::entry::status;
use crate::error::Failure;
use crate::log::log;
use crate::process::process;

/// A virtual table with what C++ puts before its functions.
#[repr(C)]
struct Table<F> {
    offset_to_whole: usize,
    type_description: usize,
    functions: F,
}

/// What an operation can be asked.
#[repr(C)]
struct OperationFunctions {
    destroy: extern "C" fn(*mut Operation),
    delete: extern "C" fn(*mut Operation),
    name: extern "C" fn(Object<Operation>) -> CppString,
    infer_shape: extern "C" fn(Object<Operation>, Opaque, Opaque) -> i32,
    inputs: extern "C" fn(Object<Operation>) -> u32,
    outputs: extern "C" fn(Object<Operation>) -> u32,
    setup: extern "C" fn(Object<Operation>, Object<VariantPack>, Out<u64>, Object<Context>) -> i32,
    execute: extern "C" fn(Object<Operation>, Object<VariantPack>, Opaque, u64, Object<Context>) -> i32,
}

/// What a context can be asked.
#[repr(C)]
struct ContextFunctions {
    destroy: extern "C" fn(*mut Context),
    delete: extern "C" fn(*mut Context),
    set_stream: extern "C" fn(Object<Context>, Opaque) -> i32,
    stream: extern "C" fn(Object<Context>) -> Opaque,
    set_tiling_copies: extern "C" fn(Object<Context>, bool) -> i32,
    tiling_copies: extern "C" fn(Object<Context>) -> bool,
}

static OPERATION: Table<OperationFunctions> = Table {
    offset_to_whole: 0,
    type_description: 0,
    functions: OperationFunctions { destroy, delete, name, infer_shape, inputs, outputs, setup, execute },
};

static CONTEXT: Table<ContextFunctions> = Table {
    offset_to_whole: 0,
    type_description: 0,
    functions: ContextFunctions {
        destroy: destroy_context,
        delete: delete_context,
        set_stream,
        stream,
        set_tiling_copies,
        tiling_copies,
    },
};

/// An `atb::Operation`.
#[repr(C)]
pub struct Operation {
    table: &'static OperationFunctions,
    kind: Kind,
}

/// An `atb::Context`.
#[repr(C)]
pub struct Context {
    table: &'static ContextFunctions,
    stream: AtomicPtr<c_void>,
    tiling_copies: AtomicBool,
}

/// An object of the caller's or of ours, lent for the length of a call.
#[repr(transparent)]
pub struct Object<T>(*const T);

impl<T> Object<T> {
    fn get(&self, name: &str) -> Result<&T, Failure> {
        if self.0.is_null() {
            return Err(Failure::null(name));
        }
        // SAFETY: not null, so by the C++ interface a live object of its class, and lent for the call that has `self`.
        Ok(unsafe { &*self.0 })
    }
}

/// libstdc++'s `std::string` with its characters on the heap, as a function returns it.
#[repr(C)]
struct CppString {
    characters: *mut u8,
    len: usize,
    capacity: usize,
    unused: usize,
}

/// Makes an operation that the caller ends with [`end_operation`].
///
/// # Errors
/// For parameters that are not supported.
pub fn make_operation(kind: Kind) -> Result<*mut Operation, Failure> {
    kind.check().map_err(|f| about(kind, f))?;
    Ok(Box::into_raw(Box::new(Operation { table: &OPERATION.functions, kind })))
}

/// Ends an operation; null is none.
pub fn end_operation(operation: *mut Operation) {
    if !operation.is_null() {
        // SAFETY: by the C++ interface, an operation that `make_operation` made and nobody ended.
        drop(unsafe { Box::from_raw(operation) });
    }
}

/// Makes a context that the caller ends with [`end_context`].
pub fn make_context() -> *mut Context {
    let table = &CONTEXT.functions;
    Box::into_raw(Box::new(Context { table, stream: AtomicPtr::default(), tiling_copies: AtomicBool::new(false) }))
}

/// Ends a context; null is none.
pub fn end_context(context: *mut Context) {
    if !context.is_null() {
        // SAFETY: as for an operation.
        drop(unsafe { Box::from_raw(context) });
    }
}

fn about(kind: Kind, failure: Failure) -> Failure {
    Failure::new(failure.code, format!("{}: {}", kind.name(), failure.text))
}

extern "C" fn destroy(_operation: *mut Operation) {}

extern "C" fn delete(operation: *mut Operation) {
    end_operation(operation);
}

extern "C" fn name(operation: Object<Operation>) -> CppString {
    let name = operation.get("this").map_or("", |operation| operation.kind.name());
    // SAFETY: `malloc` may be called with any size; the string frees it with `operator delete`, which is `free`.
    let characters = unsafe { libc::malloc(name.len() + 1) }.cast::<u8>();
    if characters.is_null() {
        // Empty: its end frees a null pointer, which does nothing.
        return CppString { characters, len: 0, capacity: 0, unused: 0 };
    }
    // SAFETY: room for the name and its NUL was made above.
    unsafe {
        characters.copy_from_nonoverlapping(name.as_ptr(), name.len());
        characters.add(name.len()).write(0);
    }
    CppString { characters, len: name.len(), capacity: name.len(), unused: 0 }
}

extern "C" fn infer_shape(operation: Object<Operation>, _inputs: Opaque, _outputs: Opaque) -> i32 {
    status("atb::Operation::InferShape", || {
        let kind = operation.get("this")?.kind;
        Err(about(kind, Failure::unsupported("InferShape is not supported: give outputs their shapes")))
    })
}

extern "C" fn inputs(operation: Object<Operation>) -> u32 {
    operation.get("this").map_or(0, |operation| operation.kind.inputs() as u32)
}

extern "C" fn outputs(operation: Object<Operation>) -> u32 {
    operation.get("this").map_or(0, |operation| operation.kind.outputs() as u32)
}

/// The operators of one execution, as the wire carries them.
fn encoded(operation: &Object<Operation>, pack: &Object<VariantPack>) -> Result<Vec<Vec<u8>>, Failure> {
    let (kind, pack) = (operation.get("this")?.kind, pack.get("variantPack")?);
    let calls = kind.calls(pack.inputs.entries()?, pack.outputs.entries()?).map_err(|f| about(kind, f))?;
    let encode = |call| {
        let mut body = Vec::new();
        wire::op::encode_op(&call, &mut body).map_err(|e| about(kind, Failure::invalid(e.to_string())))?;
        Ok(body)
    };
    calls.into_iter().map(encode).collect()
}

/// Checks an execution. No operation needs a workspace.
extern "C" fn setup(
    operation: Object<Operation>,
    pack: Object<VariantPack>,
    workspace_size: Out<u64>,
    _context: Object<Context>,
) -> i32 {
    loud("atb::Operation::Setup", || {
        encoded(&operation, &pack)?;
        workspace_size.set("workspaceSize", 0)
    })
}

extern "C" fn execute(
    operation: Object<Operation>,
    pack: Object<VariantPack>,
    _workspace: Opaque,
    _workspace_size: u64,
    context: Object<Context>,
) -> i32 {
    loud("atb::Operation::Execute", || {
        let stream = process().stream(context.get("context")?.stream.load(Ordering::Acquire))?;
        for body in encoded(&operation, &pack)? {
            stream.post_op(&body, None)?;
        }
        Ok(())
    })
}

/// As [`status`], with a line in the log: who calls these may drop the answer.
fn loud(function: &'static str, body: impl FnOnce() -> Result<(), Failure>) -> i32 {
    status(function, || body().inspect_err(|failure| log!(Warn, "{function}: {failure}")))
}

extern "C" fn destroy_context(_context: *mut Context) {}

extern "C" fn delete_context(context: *mut Context) {
    end_context(context);
}

extern "C" fn set_stream(context: Object<Context>, stream: Opaque) -> i32 {
    status("atb::Context::SetExecuteStream", || {
        context.get("this")?.stream.store(stream, Ordering::Release);
        Ok(())
    })
}

extern "C" fn stream(context: Object<Context>) -> Opaque {
    context.get("this").map_or(std::ptr::null_mut(), |context| context.stream.load(Ordering::Acquire))
}

/// Kept and told, without effect: nothing is copied for tiling here.
extern "C" fn set_tiling_copies(context: Object<Context>, wanted: bool) -> i32 {
    status("atb::Context::SetAsyncTilingCopyStatus", || {
        context.get("this")?.tiling_copies.store(wanted, Ordering::Release);
        Ok(())
    })
}

extern "C" fn tiling_copies(context: Object<Context>) -> bool {
    context.get("this").is_ok_and(|context| context.tiling_copies.load(Ordering::Acquire))
}

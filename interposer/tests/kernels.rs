//! Raw kernels: a library may register its binaries, and is told by name which one it cannot launch.

mod common;

use std::ffi::{c_char, c_void};

use common::{NULL, Ptr, alone};

const PARAM: i32 = 107_000;
const INVALID_HANDLE: i32 = 107_017;
const NOT_SUPPORTED: i32 = 207_000;

more_functions!(Kernels {
    aclrtBinaryLoadFromData(*const c_void, usize, *const c_void, *mut Ptr) -> i32;
    aclrtBinaryUnLoad(Ptr) -> i32;
    aclrtBinaryGetFunction(Ptr, *const c_char, *mut Ptr) -> i32;
    aclrtBinaryGetFunctionByEntry(Ptr, u64, *mut Ptr) -> i32;
    aclrtLaunchKernelWithHostArgs(Ptr, u32, Ptr, Ptr, Ptr, usize, Ptr, usize) -> i32;
});

#[test]
fn binaries_are_registered_and_their_kernels_are_refused_by_name() {
    let (acl, _alone) = alone();
    let f = Kernels::of(acl);
    let data = [7u8; 300];
    let load = |len| out!(acl, |handle: Ptr| (f.aclrtBinaryLoadFromData)(data.as_ptr().cast(), len, NULL, handle));
    let (first, second) = (load(300), load(200));
    assert!(!first.is_null() && first != second);
    let mut function = NULL;
    let status = (f.aclrtBinaryGetFunction)(first, c"transpose_cache".as_ptr(), &mut function);
    acl.fails(status, NOT_SUPPORTED, "kernel transpose_cache of a binary of 300 bytes");
    acl.fails((f.aclrtBinaryGetFunctionByEntry)(second, 5, &mut function), NOT_SUPPORTED, "entry 5 of a binary of 200");
    assert!(function.is_null());
    let launched = (f.aclrtLaunchKernelWithHostArgs)(NULL, 1, NULL, NULL, NULL, 0, NULL, 0);
    acl.fails(launched, NOT_SUPPORTED, "not supported");
    acl.ok((f.aclrtBinaryUnLoad)(first));
    acl.fails((f.aclrtBinaryUnLoad)(first), INVALID_HANDLE, "binHandle");
    acl.ok((f.aclrtBinaryUnLoad)(second));
}

#[test]
fn a_binary_without_bytes_is_refused() {
    let (acl, _alone) = alone();
    let f = Kernels::of(acl);
    let mut handle = NULL;
    acl.fails((f.aclrtBinaryLoadFromData)(NULL, 10, NULL, &mut handle), PARAM, "data");
    let byte = 0u8;
    acl.fails((f.aclrtBinaryLoadFromData)((&raw const byte).cast(), 0, NULL, &mut handle), PARAM, "length: 0");
    acl.fails((f.aclrtBinaryLoadFromData)((&raw const byte).cast(), 1, NULL, std::ptr::null_mut()), PARAM, "binHandle");
}

//! What works without a device, and what a missing daemon looks like.

mod common;

use std::ffi::CStr;

use common::{Acl, F32, I64, NULL, load};

const NO_DEVICE: i32 = 207_004;

/// Two devices whose daemons do not exist.
fn acl() -> &'static Acl {
    load(&[("VNPU_SOCKET", "/nonexistent/a.sock,/nonexistent/b.sock")])
}

#[test]
fn version_and_count_need_no_device_and_start_nothing() {
    let acl = acl();
    let mut version = [0u8; 512];
    acl.ok((acl.aclsysGetCANNVersion)(0, version.as_mut_ptr()));
    let text = CStr::from_bytes_until_nul(&version).unwrap().to_str().unwrap();
    let part = |at: usize| CStr::from_bytes_until_nul(&version[at..]).unwrap().to_str().unwrap();
    assert_eq!(text, [part(128), part(192), part(256)].join("."));
    let mut name = [0i8; 128];
    acl.ok((acl.aclsysGetVersionStr)(c"runtime".as_ptr(), name.as_mut_ptr()));
    acl.fails((acl.aclsysGetCANNVersion)(7, version.as_mut_ptr()), 207_000, "no driver");
    assert_eq!(out!(acl, |count: u32| (acl.aclrtGetDeviceCount)(count)), 2);
    assert_eq!(out!(acl, |mode: i32| (acl.aclrtGetRunMode)(mode)), 1);
    // The test harness starts threads of its own; none of ours may be among them.
    let names = std::fs::read_dir("/proc/self/task").unwrap().filter_map(Result::ok);
    let names: Vec<String> = names.filter_map(|t| std::fs::read_to_string(t.path().join("comm")).ok()).collect();
    assert!(!names.iter().any(|n| n.starts_with("vnpu") || n.starts_with("dispatch")), "{names:?}");
}

#[test]
fn a_missing_daemon_is_named_with_the_command_that_starts_it() {
    let acl = acl();
    for call in [|acl: &Acl| (acl.aclInit)(std::ptr::null()), |acl: &Acl| (acl.aclrtSetDevice)(0)] {
        let (status, message) = (call(acl), acl.message());
        assert_eq!(status, NO_DEVICE, "{message}");
        for part in ["/nonexistent/a.sock", "vnpu-daemon --socket /nonexistent/a.sock", "vnpu run --direct"] {
            assert!(message.contains(part), "{message}");
        }
    }
    acl.fails((acl.aclrtSetDevice)(1), NO_DEVICE, "/nonexistent/b.sock");
    assert!((acl.aclrtGetSocName)().is_null());
    assert!(acl.message().starts_with("aclrtGetSocName: no daemon at"));
    let mut device = 0;
    acl.fails((acl.aclrtGetDevice)(&raw mut device), 107_002, "aclrtSetDevice");
}

#[test]
fn configuration_files_that_cannot_be_read_are_errors() {
    let acl = acl();
    acl.fails((acl.aclInit)(c"/nonexistent/acl.json".as_ptr()), 100_003, "/nonexistent/acl.json");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("acl.json");
    std::fs::write(&path, "{ not json").unwrap();
    let text = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    acl.fails((acl.aclInit)(text.as_ptr()), 100_006, "acl.json");
    acl.fails((acl.aclFinalize)(), 100_001, "aclInit was not called");
}

/// Takes an array that the library handed out.
fn taken(pointer: *mut i64, count: u64) -> Vec<i64> {
    // SAFETY: the library wrote `count` values to a block from `malloc`, which is ours to free.
    unsafe {
        let values = std::slice::from_raw_parts(pointer, count as usize).to_vec();
        libc::free(pointer.cast());
        values
    }
}

#[test]
fn tensors_are_described_back() {
    let acl = acl();
    let (dims, strides, storage) = ([2i64, 3], [1i64, 2], [6i64]);
    let data = std::ptr::without_provenance_mut(0x1000);
    let tensor = (acl.aclCreateTensor)(dims.as_ptr(), 2, I64, strides.as_ptr(), 5, 29, storage.as_ptr(), 1, data);
    let shape = |get: extern "C" fn(common::Ptr, *mut *mut i64, *mut u64) -> i32| {
        let (mut pointer, mut count) = (std::ptr::null_mut(), 0);
        acl.ok(get(tensor, &raw mut pointer, &raw mut count));
        taken(pointer, count)
    };
    assert_eq!(shape(acl.aclGetViewShape), dims);
    assert_eq!(shape(acl.aclGetViewStrides), strides);
    assert_eq!(shape(acl.aclGetStorageShape), storage);
    assert_eq!(out!(acl, |v: i64| (acl.aclGetViewOffset)(tensor, v)), 5);
    assert_eq!(out!(acl, |v: i32| (acl.aclGetFormat)(tensor, v)), 29);
    assert_eq!(out!(acl, |v: i32| (acl.aclGetDataType)(tensor, v)), I64);
    let scalar_shape = acl.tensor(NULL, F32, &[]);
    let (mut pointer, mut count) = (std::ptr::null_mut(), 9);
    acl.ok((acl.aclGetViewShape)(scalar_shape, &raw mut pointer, &raw mut count));
    assert_eq!(taken(pointer, count), []);
    let array = (acl.aclCreateIntArray)(dims.as_ptr(), 2);
    assert_eq!(out!(acl, |v: u64| (acl.aclGetIntArraySize)(array, v)), 2);
    acl.fails((acl.aclGetIntArraySize)(tensor, &raw mut count), 161_002, "an aclTensor where an aclIntArray");
    assert!((acl.aclCreateIntArray)(dims.as_ptr(), 1 << 40).is_null());
    assert!(acl.message().contains("entries, at most"));
    assert_eq!([0, 1, 9, 12, 27, 13].map(|t| (acl.aclDataTypeSize)(t)), [4, 2, 8, 1, 2, 0]);
}

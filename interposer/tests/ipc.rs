//! Keys of shared memory through the exported symbols. Direct mode has one process a device, so what is checked here is what a
//! process can do wrong with its own; `tests` and the runtime's tests have the processes that share.

mod common;

use std::ffi::{CString, c_char};

use common::{Ptr, alone};

const PARAM: i32 = 107_000;
const NOT_SUPPORTED: i32 = 207_000;

#[test]
fn keys_are_made_refused_and_closed() {
    let (acl, _alone) = alone();
    let export: extern "C" fn(Ptr, usize, *mut c_char, usize, u64) -> i32 = acl.function("aclrtIpcMemGetExportKey");
    let import: extern "C" fn(*mut Ptr, *const c_char, u64) -> i32 = acl.function("aclrtIpcMemImportByKey");
    let close: extern "C" fn(*const c_char) -> i32 = acl.function("aclrtIpcMemClose");
    let allow: extern "C" fn(*const c_char, *const i32, usize) -> i32 = acl.function("aclrtIpcMemSetImportPid");
    let memory = acl.malloc(4096);
    let mut key = [1 as c_char; 65];
    acl.fails(export(memory, 4096, key.as_mut_ptr(), 64, 1), PARAM, "64 bytes for a key of 64 and a NUL");
    acl.fails(export(memory, 4096, std::ptr::null_mut(), 65, 1), PARAM, "key");
    acl.fails(export(memory, 4096, key.as_mut_ptr(), 65, 4), NOT_SUPPORTED, "flags");
    acl.fails(export(memory, 8192, key.as_mut_ptr(), 65, 1), PARAM, "8192 bytes of an allocation of 4096");
    acl.fails(export(memory.wrapping_byte_add(512), 8, key.as_mut_ptr(), 65, 1), PARAM, "in no live allocation");
    acl.fails(export(key.as_mut_ptr().cast(), 8, key.as_mut_ptr(), 65, 1), PARAM, "not a device address");
    acl.ok(export(memory, 4096, key.as_mut_ptr(), 65, 0));
    assert_eq!(key[64], 0);
    assert!(key[..64].iter().all(|&c| (c as u8).is_ascii_hexdigit()));
    let mut out = common::NULL;
    acl.fails(import(&raw mut out, key.as_ptr(), 0), PARAM, "is not among those");
    acl.ok(allow(key.as_ptr(), &(std::process::id() as i32), 1));
    acl.fails(import(&raw mut out, key.as_ptr(), 0), PARAM, "holds the memory already");
    acl.fails(allow(key.as_ptr(), &-1, 1), PARAM, "pid");
    acl.fails(allow(key.as_ptr(), &1, 0), PARAM, "num");
    let unknown = CString::new("0123456789abcdef".repeat(4)).unwrap();
    acl.fails(import(&raw mut out, unknown.as_ptr(), 1), PARAM, "the key is unknown");
    acl.fails(close(unknown.as_ptr()), PARAM, "neither exported nor imported");
    acl.fails(import(&raw mut out, c"abc".as_ptr(), 1), PARAM, "hexadecimal digits");
    acl.fails(import(&raw mut out, std::ptr::null(), 1), PARAM, "key");
    assert!(out.is_null());
    acl.ok(close(key.as_ptr()));
    acl.fails(close(key.as_ptr()), PARAM, "neither exported nor imported");
    acl.ok((acl.aclrtFree)(memory));
}

#[test]
fn numbers_of_physical_memory_are_made_and_refused() {
    let (acl, _alone) = alone();
    let malloc: extern "C" fn(*mut Ptr, usize, *const [u64; 4], u64) -> i32 = acl.function("aclrtMallocPhysical");
    let free: extern "C" fn(Ptr) -> i32 = acl.function("aclrtFreePhysical");
    let export: extern "C" fn(Ptr, i32, u64, *mut u64) -> i32 = acl.function("aclrtMemExportToShareableHandle");
    let import: extern "C" fn(u64, i32, *mut Ptr) -> i32 = acl.function("aclrtMemImportFromShareableHandle");
    let allow: extern "C" fn(u64, *const i32, usize) -> i32 = acl.function("aclrtMemSetPidToShareableHandle");
    // Handle type and allocation type 0; HBM (4) of device 0; location type 1 (device).
    let prop = [0, 4, 1, 0];
    let memory = handle!(acl, |out| malloc(out, 2 << 20, &prop, 0));
    let mut out = common::NULL;
    acl.fails(export(memory, 2, 1, &mut 0), NOT_SUPPORTED, "handleType");
    acl.fails(export(acl.malloc(64), 0, 1, &mut 0), 107_017, "handle");
    let number = out!(acl, |number: u64| export(memory, 0, 1, number));
    assert_ne!(number, out!(acl, |number: u64| export(memory, 0, 1, number)));
    acl.ok(allow(number, &7, 1));
    acl.fails(allow(number ^ 1, &7, 1), PARAM, "did not export");
    acl.fails(import(number, 0, &raw mut out), PARAM, "holds the memory already");
    acl.fails(import(number ^ 1, 0, &raw mut out), PARAM, "the key is unknown");
    acl.fails(import(number, 5, &raw mut out), 107_001, "there are 1 devices");
    acl.ok(free(memory));
    acl.fails(import(number, 0, &raw mut out), PARAM, "the key is unknown");
}

#[test]
fn events_for_other_processes_do_what_cann_does_with_them_and_no_more() {
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    struct Handle([u64; 8]);
    let (acl, _alone) = alone();
    let get: extern "C" fn(Ptr, *mut Handle) -> i32 = acl.function("aclrtIpcGetEventHandle");
    let open: extern "C" fn(Handle, *mut Ptr) -> i32 = acl.function("aclrtIpcOpenEventHandle");
    let create: extern "C" fn(*mut Ptr, u32) -> i32 = acl.function("aclrtCreateEventWithFlag");
    let mut out = common::NULL;
    acl.fails(create(&raw mut out, 0x48), PARAM, "ACL_EVENT_IPC goes with no other flag");
    let (plain, event, stream) = (acl.event(), handle!(acl, |out| create(out, 0x40)), acl.stream());
    acl.fails(get(plain, &mut Handle::default()), PARAM, "was not created with ACL_EVENT_IPC");
    acl.fails(get(event, std::ptr::null_mut()), PARAM, "handle");
    acl.fails(get(stream, &mut Handle::default()), 107_017, "event");
    let handle = out!(acl, |handle: Handle| get(event, handle));
    assert_eq!(handle.0, out!(acl, |handle: Handle| get(event, handle)).0, "one handle an event");
    acl.fails(open(handle, &raw mut out), PARAM, "this process created the event");
    acl.fails(open(Handle::default(), &raw mut out), PARAM, "aclrtIpcGetEventHandle did not make it");
    let mut unknown = handle;
    unknown.0[1] ^= 1;
    acl.fails(open(unknown, &raw mut out), PARAM, "the key is unknown");
    acl.fails(open(handle, std::ptr::null_mut()), PARAM, "event");
    assert!(out.is_null());

    let query: extern "C" fn(Ptr, *mut i32) -> i32 = acl.function("aclrtQueryEvent");
    let number: extern "C" fn(Ptr, *mut u32) -> i32 = acl.function("aclrtGetEventId");
    acl.ok((acl.aclrtSynchronizeEvent)(event));
    acl.ok((acl.aclrtRecordEvent)(event, stream));
    acl.ok((acl.aclrtStreamWaitEvent)(stream, event));
    acl.ok((acl.aclrtSynchronizeEvent)(event));
    assert_eq!(out!(acl, |status: i32| (acl.aclrtQueryEventStatus)(event, status)), 1);
    let refused = |status| acl.fails(status, NOT_SUPPORTED, "for an event created with ACL_EVENT_IPC");
    refused((acl.aclrtResetEvent)(event, stream));
    refused(query(event, &mut 0));
    refused(number(event, &mut 0));
    refused((acl.aclrtQueryEventWaitStatus)(event, &mut 0));
    refused((acl.aclrtEventGetTimestamp)(event, &mut 0));
    refused((acl.aclrtEventElapsedTime)(&mut 0.0, plain, event));
    acl.ok((acl.aclmdlRICaptureBegin)(stream, 0));
    acl.fails((acl.aclrtRecordEvent)(event, stream), 107_027, "recording an event of several processes");
    let mut graph = common::NULL;
    acl.fails((acl.aclmdlRICaptureEnd)(stream, &raw mut graph), 507_903, "recording an event of several processes");
    acl.ok((acl.aclrtDestroyEvent)(event));
    acl.fails((acl.aclrtRecordEvent)(event, stream), 107_017, "event");
}

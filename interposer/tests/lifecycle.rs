//! `aclInit`, `aclFinalize` and what comes after. One test: these calls are about the whole process.

mod common;

use common::{NULL, direct};

#[test]
fn a_process_can_finalise_clean_up_late_and_start_again() {
    let acl = direct();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("acl_default.json");
    std::fs::write(&path, r#"{"defaultDevice":{"default_device":"0"}}"#).unwrap();
    let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    acl.ok((acl.aclInit)(path.as_ptr()));
    acl.fails((acl.aclInit)(std::ptr::null()), 100_002, "called before");

    let (stream, event, memory) = (acl.stream(), acl.event(), acl.upload(&[1u8; 64]));
    let host = handle!(acl, |out| (acl.aclrtMallocHost)(out, 64));
    std::thread::spawn(move || {
        let mut device = 9;
        acl.fails((acl.aclrtGetDevice)(&raw mut device), 107_002, "aclrtSetDevice");
        acl.malloc(64);
    })
    .join()
    .expect("the configuration's default device serves threads that selected none");

    acl.ok((acl.aclrtResetDevice)(0));
    acl.ok((acl.aclrtDestroyEvent)(event));
    acl.ok((acl.aclFinalize)());
    acl.fails((acl.aclFinalize)(), 100_037, "called before");
    for status in [
        (acl.aclrtDestroyStream)(stream),
        (acl.aclrtDestroyEvent)(event),
        (acl.aclrtFree)(memory),
        (acl.aclrtFreeHost)(host),
        (acl.aclrtResetDevice)(0),
    ] {
        acl.ok(status);
    }
    let mut out = NULL;
    acl.fails((acl.aclrtMalloc)(&raw mut out, 64, 0), 107_002, "aclrtSetDevice");
    acl.fails((acl.aclrtSetDevice)(0), 100_001, "aclFinalize was called");

    acl.ok((acl.aclInit)(std::ptr::null()));
    acl.ok((acl.aclrtSetDevice)(0));
    acl.fails((acl.aclrtSynchronizeStream)(stream), 107_017, "was destroyed");
    assert_eq!(acl.download::<u8>(acl.upload(&[7u8; 8]), 8), [7; 8]);
    acl.ok((acl.aclFinalize)());
}

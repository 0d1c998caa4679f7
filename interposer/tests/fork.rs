//! A forked child gets a session of its own. One test: forking is about the whole process.

mod common;

use common::{Acl, F32, NULL, Ptr, direct};

const BAD_HANDLE: i32 = 107_017;
const NO_CONTEXT: i32 = 107_002;

fn doubled(acl: &Acl, value: f32) -> f32 {
    let memory = acl.upload(&[value]);
    let (t, two) = (acl.tensor(memory, F32, &[1]), acl.scalar(2.0));
    acl.run(|w, e| (acl.aclnnMulsGetWorkspaceSize)(t, two, t, w, e), acl.aclnnMuls);
    acl.ok((acl.aclrtSynchronizeStream)(NULL));
    acl.download(memory, 1)[0]
}

/// What the child checks; a number says what was wrong.
fn child(acl: &Acl, parents_stream: Ptr, parents_memory: Ptr) -> i32 {
    let mut device = 0;
    let mut host = [0u8; 4];
    let host: Ptr = host.as_mut_ptr().cast();
    match () {
        () if (acl.aclrtGetDevice)(&raw mut device) != NO_CONTEXT => 1,
        () if (acl.aclrtSynchronizeStream)(parents_stream) != BAD_HANDLE => 2,
        () if (acl.aclrtSetDevice)(0) != 0 => 3,
        () if (acl.aclrtMemcpy)(host, 4, parents_memory, 4, common::D2H) == 0 => 4,
        () if doubled(acl, 21.0) != 42.0 => 5,
        () if (acl.aclFinalize)() == 0 => 6, // this process did not call aclInit
        () => 0,
    }
}

#[test]
fn a_forked_child_has_its_own_session_and_the_parent_keeps_its_own() {
    let acl = direct();
    assert_eq!(doubled(acl, 4.0), 8.0);
    let (stream, memory) = (acl.stream(), acl.upload(&[5.0f32]));
    // SAFETY: the child runs only what follows here and leaves with `_exit`.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        let code = std::panic::catch_unwind(|| child(acl, stream, memory)).unwrap_or(99);
        // SAFETY: ends the child without running the test harness's exit code.
        unsafe { libc::_exit(code) };
    }
    // The parent goes on while the child works.
    for _ in 0..100 {
        assert_eq!(doubled(acl, 4.0), 8.0);
    }
    let mut status = 0;
    // SAFETY: waits for the child made above.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    assert_eq!((libc::WIFEXITED(status), libc::WEXITSTATUS(status)), (true, 0), "which check failed in the child");
    acl.ok((acl.aclrtSynchronizeStream)(stream));
    assert_eq!(acl.download::<f32>(memory, 1), [5.0]);
}

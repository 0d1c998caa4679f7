//! What goes to the log because an application asks for it. One test, which runs itself again with the log turned up.

mod common;

use std::ffi::c_char;
use std::process::Command;

use common::{Ptr, direct};

more_functions!(Lines {
    aclAppLog(i32, *const c_char, *const c_char, u32, *const c_char);
    aclmdlRIDebugPrint(Ptr) -> i32;
});

/// Set where the lines are to be written.
const WRITES: &str = "INTERPOSER_TEST_WRITES";
const NAME: &str = "an_applications_lines_and_a_graphs_nodes_are_in_the_log";

fn write() {
    let acl = direct();
    let f = Lines::of(acl);
    const ERROR: i32 = 3;
    (f.aclAppLog)(ERROR, c"load".as_ptr(), c"model.cc".as_ptr(), 42, c"no weights".as_ptr());
    (f.aclAppLog)(ERROR, std::ptr::null(), std::ptr::null(), 0, std::ptr::null());
    let (stream, memory) = (acl.stream(), acl.upload(&[0u8; 64]));
    acl.ok((acl.aclmdlRICaptureBegin)(stream, 0));
    acl.ok((acl.aclrtMemsetAsync)(memory, 64, 1, 64, stream));
    let graph = handle!(acl, |out| (acl.aclmdlRICaptureEnd)(stream, out));
    acl.ok((f.aclmdlRIDebugPrint)(graph));
    acl.ok((acl.aclmdlRIDestroy)(graph));
    acl.fails((f.aclmdlRIDebugPrint)(graph), 107_017, "was destroyed");
}

#[test]
fn an_applications_lines_and_a_graphs_nodes_are_in_the_log() {
    if std::env::var_os(WRITES).is_some() {
        return write();
    }
    let log = |level| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let out = command.args(["--exact", NAME]).env(WRITES, "1").env("VNPU_LOG", level).output().unwrap();
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.success(), "{text}");
        text
    };
    let (loud, quiet) = (log("info"), log("warn"));
    for part in ["application error, load:42: no weights", "application error, :0: ", "Memset"] {
        assert!(loud.contains(part), "no `{part}` in:\n{loud}");
        assert!(!quiet.contains(part), "`{part}` in:\n{quiet}");
    }
}

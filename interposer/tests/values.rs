//! Single words of device memory that streams write and wait for, and what is refused by the operator's name.

mod common;

use std::ffi::c_char;

use common::{Acl, NULL, Ptr, alone};

const PARAM: i32 = 107_000;
const NOT_SUPPORTED: i32 = 207_000;
const GLOBAL: i32 = 0;
const GEQ: u32 = 0;
const EQ: u32 = 1;
const AND: u32 = 2;
const NOR: u32 = 3;

type Word = extern "C" fn(Ptr, u64, u32, Ptr) -> i32;

fn functions(acl: &Acl) -> (Word, Word) {
    (acl.function("aclrtValueWrite"), acl.function("aclrtValueWait"))
}

fn is_idle(acl: &Acl, stream: Ptr) -> bool {
    out!(acl, |status: i32| (acl.aclrtStreamQuery)(stream, status)) == 0
}

#[test]
fn a_stream_waits_for_what_another_writes() {
    let (acl, _alone) = alone();
    let (write, wait) = functions(acl);
    let (waits, writes) = (acl.stream(), acl.stream());
    let memory = acl.upload(&[0u64; 2]);
    for (until, want, wrong, right) in [(GEQ, 5, 4, 6), (EQ, 5, 6, 5), (AND, 6, 1, 2), (NOR, 1, u64::MAX, 0)] {
        acl.ok(write(memory, wrong, 0, writes));
        acl.ok((acl.aclrtSynchronizeStream)(writes));
        acl.ok(wait(memory, want, until, waits));
        acl.ok(write(memory.wrapping_byte_add(8), 1, 0, waits));
        assert!(!is_idle(acl, waits), "{until}");
        acl.ok(write(memory, right, 0, writes));
        acl.ok((acl.aclrtSynchronizeStream)(waits));
        assert_eq!(acl.download::<u64>(memory, 2), [right, 1]);
    }
    acl.ok((acl.aclrtFree)(memory));
}

#[test]
fn wrong_words_are_refused_at_the_call() {
    let (acl, _alone) = alone();
    let (write, wait) = functions(acl);
    let memory = acl.upload(&[0u64; 64]);
    acl.fails(write(NULL, 1, 0, NULL), PARAM, "devAddr");
    acl.fails(write(memory, 1, 1, NULL), PARAM, "flag: 1, must be 0");
    acl.fails(wait(memory, 1, 4, NULL), PARAM, "flag: 4 is no comparison");
    acl.fails(wait(memory.wrapping_byte_add(4), 1, EQ, NULL), PARAM, "is not a multiple of 8");
    acl.fails(write(memory.wrapping_byte_add(512), 1, 0, NULL), PARAM, "devAddr");
    acl.fails(write(memory, 1, 0, memory), 107_017, "stream");
    acl.ok((acl.aclrtFree)(memory));
    acl.fails(wait(memory, 1, EQ, NULL), PARAM, "devAddr");
    acl.ok((acl.aclrtSynchronizeStream)(NULL));
}

#[test]
fn a_graph_holds_writes_and_waits() {
    let (acl, _alone) = alone();
    let (write, wait) = functions(acl);
    let (stream, outside) = (acl.stream(), acl.stream());
    let memory = acl.upload(&[0u64; 2]);
    acl.ok((acl.aclmdlRICaptureBegin)(stream, GLOBAL));
    acl.ok(wait(memory, 1, EQ, stream));
    acl.ok(write(memory, 0, 0, stream));
    acl.ok(write(memory.wrapping_byte_add(8), 9, 0, stream));
    let graph = handle!(acl, |out| (acl.aclmdlRICaptureEnd)(stream, out));
    for _ in 0..3 {
        acl.ok((acl.aclrtMemset)(memory, 16, 0, 16));
        acl.ok((acl.aclmdlRIExecuteAsync)(graph, stream));
        assert!(!is_idle(acl, stream));
        acl.ok(write(memory, 1, 0, outside));
        acl.ok((acl.aclrtSynchronizeStream)(stream));
        assert_eq!(acl.download::<u64>(memory, 2), [0, 9]);
    }
    acl.ok((acl.aclmdlRIDestroy)(graph));
    acl.ok((acl.aclrtFree)(memory));
}

#[test]
fn operators_of_the_old_path_are_refused_by_name() {
    type Old = extern "C" fn(*const c_char, i32, Ptr, Ptr, i32, Ptr, Ptr, Ptr, i32, i32, *const c_char, Ptr) -> i32;
    let (acl, _alone) = alone();
    for name in ["aclopCompileAndExecute", "aclopCompileAndExecuteV2"] {
        let old: Old = acl.function(name);
        let status = old(c"Conv2D".as_ptr(), 0, NULL, NULL, 0, NULL, NULL, NULL, 0, 0, std::ptr::null(), NULL);
        acl.fails(status, NOT_SUPPORTED, "operator Conv2D");
        let status = old(std::ptr::null(), 0, NULL, NULL, 0, NULL, NULL, NULL, 0, 0, std::ptr::null(), NULL);
        acl.fails(status, NOT_SUPPORTED, "without a name");
    }
}

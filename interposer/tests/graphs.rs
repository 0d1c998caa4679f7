//! Graph capture and replay through the exported symbols.
//!
//! Captures in one mode forbid things to every thread of the process, so each test takes a lock.

mod common;

use std::sync::{Mutex, MutexGuard, PoisonError};

use common::{Acl, D2D, D2H, F32, H2D, NULL, Ptr, direct};

const GLOBAL: i32 = 0;
const RELAXED: i32 = 2;
const ACTIVE: i32 = 1;
const INVALIDATED: i32 = 2;
const STREAM_CAPTURED: i32 = 107_027;
const CAPTURE_INVALIDATED: i32 = 507_903;

fn one_at_a_time() -> (MutexGuard<'static, ()>, &'static Acl) {
    static LOCK: Mutex<()> = Mutex::new(());
    let guard = LOCK.lock().unwrap_or_else(PoisonError::into_inner);
    (guard, direct())
}

/// `memory *= factor`.
fn scale(acl: &Acl, memory: Ptr, factor: f32, stream: Ptr) {
    let (t, by) = (acl.tensor(memory, F32, &[1]), acl.scalar(factor));
    acl.run_on(|w, e| (acl.aclnnMulsGetWorkspaceSize)(t, by, t, w, e), acl.aclnnMuls, stream);
    acl.ok((acl.aclDestroyTensor)(t));
    acl.ok((acl.aclDestroyScalar)(by));
}

fn set(acl: &Acl, memory: Ptr, value: f32) {
    acl.ok((acl.aclrtMemcpy)(memory, 4, (&raw const value).cast(), 4, H2D));
}

fn get(acl: &Acl, memory: Ptr) -> f32 {
    acl.download::<f32>(memory, 1)[0]
}

fn begin(acl: &Acl, stream: Ptr) {
    acl.ok((acl.aclmdlRICaptureBegin)(stream, GLOBAL));
}

fn end(acl: &Acl, stream: Ptr) -> Ptr {
    handle!(acl, |out| (acl.aclmdlRICaptureEnd)(stream, out))
}

fn end_code(acl: &Acl, stream: Ptr) -> i32 {
    let mut graph = std::ptr::dangling_mut();
    let code = (acl.aclmdlRICaptureEnd)(stream, &raw mut graph);
    assert!(graph.is_null(), "no graph");
    code
}

fn info(acl: &Acl, stream: Ptr) -> (i32, Ptr) {
    let (mut status, mut graph) = (-1, NULL);
    acl.ok((acl.aclmdlRICaptureGetInfo)(stream, &raw mut status, &raw mut graph));
    (status, graph)
}

#[test]
fn a_graph_replays_with_other_contents_and_on_other_streams() {
    let (_guard, acl) = one_at_a_time();
    let (stream, other) = (acl.stream(), acl.stream());
    let (memory, copy) = (acl.upload(&[3.0f32]), acl.upload(&[0.0f32]));
    begin(acl, stream);
    let (status, capturing) = info(acl, stream);
    assert_eq!(status, ACTIVE);
    acl.fails((acl.aclmdlRIExecuteAsync)(capturing, other), 107_026, "still being captured");
    scale(acl, memory, 2.0, stream);
    acl.ok((acl.aclrtMemcpyAsync)(copy, 4, memory, 4, D2D, stream));
    acl.ok((acl.aclrtMemsetAsync)(memory, 4, 0, 4, stream));
    scale(acl, copy, 10.0, other);
    let graph = end(acl, stream);
    assert_eq!((graph, info(acl, stream)), (capturing, (0, NULL)));
    assert_eq!(get(acl, memory), 3.0, "nothing of it has run");
    for (value, on) in [(3.0, stream), (5.0, other), (7.0, NULL)] {
        set(acl, memory, value);
        acl.ok((acl.aclmdlRIExecuteAsync)(graph, on));
        acl.ok((acl.aclrtSynchronizeStream)(on));
        assert_eq!((get(acl, memory), get(acl, copy)), (0.0, 2.0 * value));
    }
    let path = std::env::temp_dir().join(format!("vnpu-graph-{}.json", std::process::id()));
    let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    acl.ok((acl.aclmdlRIDebugJsonPrint)(graph, name.as_ptr(), 0));
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(text.matches("index").count(), 3, "{text}");
    assert!(text.contains("aclnnMuls") && text.contains("Memset"), "{text}");
    acl.ok((acl.aclmdlRIDestroy)(graph));
    acl.fails((acl.aclmdlRIExecuteAsync)(graph, stream), 107_017, "was destroyed");
    acl.fails((acl.aclmdlRIDestroy)(graph), 107_017, "was destroyed");
}

#[test]
fn streams_join_a_capture_through_events() {
    let (_guard, acl) = one_at_a_time();
    let (first, second) = (acl.stream(), acl.stream());
    let (fork, join) = (acl.event(), acl.event());
    let (a, b) = (acl.upload(&[1.0f32]), acl.upload(&[1.0f32]));
    begin(acl, first);
    scale(acl, a, 2.0, first);
    acl.ok((acl.aclrtRecordEvent)(fork, first));
    acl.ok((acl.aclrtStreamWaitEvent)(second, fork));
    assert_eq!(info(acl, second).0, ACTIVE);
    acl.ok((acl.aclrtMemcpyAsync)(b, 4, a, 4, D2D, second));
    scale(acl, b, 3.0, second);
    acl.ok((acl.aclrtRecordEvent)(join, second));
    acl.ok((acl.aclrtStreamWaitEvent)(first, join));
    acl.ok((acl.aclrtMemcpyAsync)(a, 4, b, 4, D2D, first));
    let graph = end(acl, first);
    assert_eq!(info(acl, second).0, 0);
    for _ in 0..3 {
        acl.ok((acl.aclmdlRIExecuteAsync)(graph, second));
    }
    acl.ok((acl.aclrtSynchronizeStream)(second));
    assert_eq!(get(acl, a), 216.0);
    acl.ok((acl.aclmdlRIDestroy)(graph));
    // Left unjoined.
    begin(acl, first);
    acl.ok((acl.aclrtRecordEvent)(fork, first));
    acl.ok((acl.aclrtStreamWaitEvent)(second, fork));
    assert_eq!(end_code(acl, first), 107_025);
    acl.ok((acl.aclrtSynchronizeStream)(second));
}

#[test]
fn what_a_graph_cannot_hold_is_an_error_and_ends_the_capture() {
    let (_guard, acl) = one_at_a_time();
    let (stream, event) = (acl.stream(), acl.event());
    let memory = acl.upload(&[1.0f32]);
    let mut value = 0f32;
    let host: Ptr = (&raw mut value).cast();
    let mut status = 0;
    let status: *mut i32 = &raw mut status;
    type Call<'a> = Box<dyn Fn() -> i32 + 'a>;
    let forbidden: Vec<(Call<'_>, i32)> = vec![
        (Box::new(|| (acl.aclrtSynchronizeStream)(stream)), STREAM_CAPTURED),
        (Box::new(|| (acl.aclrtSynchronizeStreamWithTimeout)(stream, 1)), STREAM_CAPTURED),
        (Box::new(|| (acl.aclrtStreamQuery)(stream, status)), STREAM_CAPTURED),
        (Box::new(|| (acl.aclrtDestroyStream)(stream)), STREAM_CAPTURED),
        (Box::new(|| (acl.aclrtMemcpyAsync)(memory, 4, host, 4, H2D, stream)), STREAM_CAPTURED),
        (Box::new(|| (acl.aclrtMemcpyAsync)(host, 4, memory, 4, D2H, stream)), STREAM_CAPTURED),
        (Box::new(|| (acl.aclrtMemcpy)(memory, 4, host, 4, H2D)), 107_030),
        (Box::new(|| (acl.aclrtMemset)(memory, 4, 0, 4)), 107_030),
        (Box::new(|| (acl.aclrtSynchronizeDevice)()), 107_030),
        (
            Box::new(|| {
                acl.ok((acl.aclrtRecordEvent)(event, stream));
                (acl.aclrtQueryEventStatus)(event, status)
            }),
            107_028,
        ),
        (
            Box::new(|| {
                acl.ok((acl.aclrtRecordEvent)(event, stream));
                (acl.aclrtSynchronizeEvent)(event)
            }),
            107_028,
        ),
    ];
    for (i, (call, want)) in forbidden.iter().enumerate() {
        begin(acl, stream);
        scale(acl, memory, 2.0, stream);
        assert_eq!(call(), *want, "case {i}: {}", acl.message());
        assert_eq!(info(acl, stream).0, INVALIDATED, "case {i}");
        assert_eq!(end_code(acl, stream), CAPTURE_INVALIDATED, "case {i}");
        assert_eq!(info(acl, stream).0, 0, "case {i}");
    }
    assert_eq!(get(acl, memory), 1.0);
    acl.fails((acl.aclmdlRICaptureBegin)(NULL, GLOBAL), 107_031, "default stream");
    acl.fails((acl.aclmdlRICaptureBegin)(stream, 9), 107_000, "mode: 9");
    assert_eq!(end_code(acl, stream), 107_029);
    // A thread that says it knows what it does may.
    begin(acl, stream);
    let mut mode = RELAXED;
    acl.ok((acl.aclmdlRICaptureThreadExchangeMode)(&raw mut mode));
    assert_eq!(mode, GLOBAL);
    set(acl, memory, 4.0);
    acl.ok((acl.aclmdlRICaptureThreadExchangeMode)(&raw mut mode));
    assert_eq!(mode, RELAXED);
    let graph = end(acl, stream);
    acl.ok((acl.aclmdlRIDestroy)(graph));
    acl.ok((acl.aclrtDestroyStream)(stream));
}

#[test]
fn freed_memory_is_an_error_of_the_launch() {
    let (_guard, acl) = one_at_a_time();
    let stream = acl.stream();
    let (memory, gone) = (acl.upload(&[1.0f32]), acl.upload(&[1.0f32]));
    begin(acl, stream);
    scale(acl, memory, 2.0, stream);
    scale(acl, gone, 2.0, stream);
    let graph = end(acl, stream);
    acl.ok((acl.aclmdlRIExecuteAsync)(graph, stream));
    acl.ok((acl.aclrtSynchronizeStream)(stream));
    acl.ok((acl.aclrtFree)(gone));
    acl.ok((acl.aclmdlRIExecuteAsync)(graph, stream));
    acl.fails((acl.aclrtSynchronizeStream)(stream), 107_000, "aclmdlRIExecuteAsync: aclnnMuls");
    assert_eq!(get(acl, memory), 2.0, "all or nothing");
    acl.ok((acl.aclmdlRIDestroy)(graph));
}

#[test]
fn task_groups_are_updated_behind_an_external_event() {
    const EXTERNAL: u32 = 0x20;
    let (_guard, acl) = one_at_a_time();
    let (stream, update) = (acl.stream(), acl.stream());
    let go = handle!(acl, |out| (acl.aclrtCreateEventExWithFlag)(out, EXTERNAL));
    let (a, b) = (acl.upload(&[1.0f32]), acl.upload(&[1.0f32]));
    begin(acl, stream);
    acl.ok((acl.aclrtStreamWaitEvent)(stream, go));
    acl.ok((acl.aclrtResetEvent)(go, stream));
    acl.ok((acl.aclmdlRICaptureTaskGrpBegin)(stream));
    scale(acl, a, 2.0, stream);
    let group = handle!(acl, |out| (acl.aclmdlRICaptureTaskGrpEnd)(stream, out));
    let graph = end(acl, stream);
    for step in 1..4 {
        acl.ok((acl.aclmdlRIExecuteAsync)(graph, stream));
        acl.ok((acl.aclmdlRICaptureTaskUpdateBegin)(update, group));
        scale(acl, b, 10.0, update);
        acl.ok((acl.aclmdlRICaptureTaskUpdateEnd)(update));
        acl.ok((acl.aclrtRecordEvent)(go, update));
        acl.ok((acl.aclrtSynchronizeStream)(stream));
        assert_eq!((get(acl, a), get(acl, b)), (1.0, 10f32.powi(step)));
    }
    acl.ok((acl.aclmdlRICaptureTaskUpdateBegin)(update, group));
    acl.fails((acl.aclmdlRICaptureTaskUpdateEnd)(update), 107_040, "0 of the task group's 1");
    acl.fails((acl.aclmdlRICaptureTaskUpdateEnd)(update), 107_033, "updates no task group");
    acl.ok((acl.aclrtDestroyEvent)(go));
    acl.ok((acl.aclmdlRIDestroy)(graph));
}

//! Callbacks on the host through the exported symbols.

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use common::{Acl, D2D, F32, Ptr, direct};

const BLOCK: i32 = 1;
const NO_BLOCK: i32 = 0;

fn this_thread() -> u64 {
    // SAFETY: no preconditions.
    unsafe { libc::pthread_self() }
}

fn double(acl: &Acl, memory: Ptr, stream: Ptr) {
    let (t, two) = (acl.tensor(memory, F32, &[1]), acl.scalar(2.0));
    acl.run_on(|w, e| (acl.aclnnMulsGetWorkspaceSize)(t, two, t, w, e), acl.aclnnMuls, stream);
    acl.ok((acl.aclDestroyTensor)(t));
    acl.ok((acl.aclDestroyScalar)(two));
}

/// What a callback reads and leaves.
struct Note {
    memory: usize,
    seen: AtomicU64,
    thread: AtomicU64,
    slow: bool,
}

impl Note {
    fn new(memory: Ptr, slow: bool) -> Self {
        Self { memory: memory.addr(), seen: AtomicU64::new(0), thread: AtomicU64::new(0), slow }
    }

    fn ptr(&self) -> Ptr {
        std::ptr::from_ref(self).cast_mut().cast()
    }

    fn seen(&self) -> f32 {
        f32::from_bits(self.seen.load(Ordering::Acquire) as u32)
    }
}

/// Copies the number from the device, as an application's callback may.
extern "C" fn look(note: Ptr) {
    // SAFETY: the tests pass a `Note` that outlives the callback.
    let note = unsafe { &*note.cast::<Note>() };
    let acl = direct();
    if note.slow {
        std::thread::sleep(Duration::from_millis(50));
    }
    let value = acl.download::<f32>(std::ptr::without_provenance_mut(note.memory), 1)[0];
    note.thread.store(this_thread(), Ordering::Release);
    note.seen.store(u64::from(value.to_bits()), Ordering::Release);
}

#[test]
fn host_functions_run_in_stream_order_and_hold_the_stream() {
    let acl = direct();
    let stream = acl.stream();
    let memory = acl.upload(&[1.0f32]);
    let notes: Vec<Note> = (0..20).map(|i| Note::new(memory, i % 7 == 0)).collect();
    for note in &notes {
        double(acl, memory, stream);
        acl.ok((acl.aclrtLaunchHostFunc)(stream, Some(look), note.ptr()));
    }
    double(acl, memory, stream);
    acl.ok((acl.aclrtSynchronizeStream)(stream));
    for (i, note) in (1..).zip(&notes) {
        assert_eq!(note.seen(), 2f32.powi(i), "what stood there when its turn came");
        assert_ne!(note.thread.load(Ordering::Relaxed), this_thread());
    }
    assert_eq!(acl.download::<f32>(memory, 1), [2f32.powi(21)]);
    acl.fails((acl.aclrtLaunchHostFunc)(stream, None, memory), 107_000, "fn");
    acl.ok((acl.aclrtDestroyStream)(stream));
}

#[test]
fn a_subscribed_thread_runs_its_streams_callbacks() {
    let acl = direct();
    let (stream, copy) = (acl.stream(), acl.malloc(4));
    let memory = acl.upload(&[1.0f32]);
    let (free, blocking) = (Note::new(memory, false), Note::new(memory, true));
    acl.fails((acl.aclrtLaunchCallback)(Some(look), free.ptr(), BLOCK, stream), 107_015, "aclrtSubscribeReport");
    acl.fails((acl.aclrtProcessReport)(1), 107_012, "no stream");
    let (stop, ready) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let runner = scope.spawn(|| {
            ready.store(this_thread(), Ordering::Release);
            let mut ran = 0;
            while !stop.load(Ordering::Acquire) {
                ran += u32::from((acl.aclrtProcessReport)(20) == 0);
            }
            ran
        });
        while ready.load(Ordering::Acquire) == 0 {
            std::thread::yield_now();
        }
        let thread = ready.load(Ordering::Acquire);
        acl.ok((acl.aclrtSubscribeReport)(thread, stream));
        acl.fails((acl.aclrtSubscribeReport)(thread, stream), 100_033, "already");
        double(acl, memory, stream);
        acl.ok((acl.aclrtLaunchCallback)(Some(look), blocking.ptr(), BLOCK, stream));
        double(acl, memory, stream);
        acl.ok((acl.aclrtMemcpyAsync)(copy, 4, memory, 4, D2D, stream));
        acl.ok((acl.aclrtSynchronizeStream)(stream));
        assert_eq!((blocking.seen(), blocking.thread.load(Ordering::Relaxed)), (2.0, thread));
        acl.ok((acl.aclrtLaunchCallback)(Some(look), free.ptr(), NO_BLOCK, stream));
        acl.ok((acl.aclrtSynchronizeStream)(stream));
        while free.seen.load(Ordering::Acquire) == 0 {
            std::thread::yield_now();
        }
        assert_eq!(free.seen(), 4.0);
        stop.store(true, Ordering::Release);
        assert_eq!(runner.join().unwrap(), 2);
        acl.ok((acl.aclrtUnSubscribeReport)(thread, stream));
        acl.fails((acl.aclrtUnSubscribeReport)(thread, stream), 100_035, "not subscribed");
    });
    acl.ok((acl.aclrtDestroyStream)(stream));
}

#[test]
fn a_callback_that_nobody_runs_lets_go_when_its_thread_unsubscribes() {
    let acl = direct();
    let (stream, other) = (acl.stream(), acl.stream());
    let memory = acl.upload(&[1.0f32]);
    let note = Note::new(memory, false);
    acl.ok((acl.aclrtSubscribeReport)(42, stream));
    acl.ok((acl.aclrtLaunchCallback)(Some(look), note.ptr(), BLOCK, stream));
    double(acl, memory, stream);
    acl.fails((acl.aclrtSynchronizeStreamWithTimeout)(stream, 30), 507_046, "unfinished");
    acl.ok((acl.aclrtSynchronizeStream)(other));
    // More than fits behind a held stream: the poster waits until it is let go, which takes no room in the ring.
    let (at, to) = (memory.addr(), other.addr());
    let poster = std::thread::scope(|scope| {
        let poster = scope.spawn(move || {
            let (memory, other): (Ptr, Ptr) =
                (std::ptr::without_provenance_mut(at), std::ptr::without_provenance_mut(to));
            acl.ok((acl.aclrtSetDevice)(0));
            for _ in 0..6000 {
                acl.ok((acl.aclrtMemsetAsync)(memory, 4, 0, 4, other));
            }
        });
        std::thread::sleep(Duration::from_millis(50));
        acl.ok((acl.aclrtUnSubscribeReport)(42, stream));
        poster.join()
    });
    poster.unwrap();
    acl.ok((acl.aclrtSynchronizeStream)(stream));
    assert_eq!(note.seen.load(Ordering::Acquire), 0, "never run");
    // A stream may be destroyed with a callback on its way.
    acl.ok((acl.aclrtLaunchHostFunc)(stream, Some(look), note.ptr()));
    acl.ok((acl.aclrtDestroyStream)(stream));
    while note.seen.load(Ordering::Acquire) == 0 && note.thread.load(Ordering::Acquire) == 0 {
        std::thread::yield_now();
    }
    acl.ok((acl.aclrtSynchronizeStream)(other));
}

#[test]
fn events_tell_time_and_whether_a_waiter_is_past_them() {
    let acl = direct();
    let (first, second, event) = (acl.stream(), acl.stream(), acl.event());
    let waiting = || out!(acl, |status: i32| (acl.aclrtQueryEventWaitStatus)(event, status)) != 0;
    let mut us = 0;
    assert_ne!((acl.aclrtEventGetTimestamp)(event, &raw mut us), 0, "never recorded");
    assert!(!waiting(), "nobody waits");
    let memory = acl.upload(&[1.0f32]);
    let note = Note::new(memory, true);
    acl.ok((acl.aclrtLaunchHostFunc)(first, Some(look), note.ptr()));
    acl.ok((acl.aclrtRecordEvent)(event, first));
    acl.ok((acl.aclrtStreamWaitEvent)(second, event));
    assert!(waiting(), "the callback takes 50 ms");
    acl.ok((acl.aclrtSynchronizeStream)(second));
    assert!(!waiting());
    let before = out!(acl, |us: u64| (acl.aclrtEventGetTimestamp)(event, us));
    acl.ok((acl.aclrtRecordEvent)(event, first));
    acl.ok((acl.aclrtSynchronizeEvent)(event));
    assert!(out!(acl, |us: u64| (acl.aclrtEventGetTimestamp)(event, us)) >= before);
}

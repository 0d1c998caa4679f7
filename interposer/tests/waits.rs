//! Waits with a limit end at it, and go on to the end without harm.

mod common;

use common::{Acl, NULL, Ptr, alone};

const STREAM_LATE: i32 = 507_046;
const EVENT_LATE: i32 = 507_047;
const EQ: u32 = 1;
const LONG_MS: i32 = 60_000;

more_functions!(Waits {
    aclrtSynchronizeEventWithTimeout(Ptr, i32) -> i32;
    aclmdlRIExecute(Ptr, i32) -> i32;
    aclmdlRIGetId(Ptr, *mut u32) -> i32;
    aclrtValueWrite(Ptr, u64, u32, Ptr) -> i32;
    aclrtValueWait(Ptr, u64, u32, Ptr) -> i32;
    aclrtSetOpWaitTimeout(u32) -> i32;
});

/// Lets who waits for the word go.
fn release(acl: &Acl, word: Ptr) {
    let one = 1u64;
    acl.ok((acl.aclrtMemcpy)(word, 8, (&raw const one).cast(), 8, common::H2D));
}

#[test]
fn every_wait_ends_at_its_limit() {
    let (acl, _alone) = alone();
    let f = Waits::of(acl);
    let (stream, event, never) = (acl.stream(), acl.event(), acl.event());
    let word = acl.upload(&[0u64]);
    // Waits of streams have no limit of their own, whatever it is set to.
    acl.ok((f.aclrtSetOpWaitTimeout)(1));
    acl.ok((f.aclrtValueWait)(word, 1, EQ, stream));
    acl.ok((acl.aclrtRecordEvent)(event, stream));
    let waits: [(&dyn Fn(i32) -> i32, i32); 3] = [
        (&|ms| (acl.aclrtSynchronizeStreamWithTimeout)(stream, ms), STREAM_LATE),
        (&|ms| (acl.aclrtSynchronizeDeviceWithTimeout)(ms), STREAM_LATE),
        (&|ms| (f.aclrtSynchronizeEventWithTimeout)(event, ms), EVENT_LATE),
    ];
    for (wait, code) in waits {
        for ms in [0, 20] {
            acl.fails(wait(ms), code, &format!("after {ms} ms"));
        }
    }
    acl.ok((f.aclrtSynchronizeEventWithTimeout)(never, 0));
    release(acl, word);
    for (wait, _) in waits {
        acl.ok(wait(LONG_MS));
        acl.ok(wait(-1));
    }
    for event in [event, never] {
        acl.ok((acl.aclrtDestroyEvent)(event));
    }
    acl.ok((acl.aclrtDestroyStream)(stream));
    acl.ok((acl.aclrtFree)(word));
}

#[test]
fn a_launch_that_waits_ends_at_its_limit_and_the_graph_goes_on() {
    let (acl, _alone) = alone();
    let f = Waits::of(acl);
    let (stream, word, done) = (acl.stream(), acl.upload(&[0u64]), acl.upload(&[0u64]));
    let graphs = [5, 6].map(|value| {
        acl.ok((acl.aclmdlRICaptureBegin)(stream, 0));
        acl.ok((f.aclrtValueWait)(word, 1, EQ, stream));
        acl.ok((f.aclrtValueWrite)(done, value, 0, stream));
        handle!(acl, |out| (acl.aclmdlRICaptureEnd)(stream, out))
    });
    let ids = graphs.map(|graph| out!(acl, |id: u32| (f.aclmdlRIGetId)(graph, id)));
    assert_ne!(ids[0], ids[1]);
    acl.fails((f.aclmdlRIExecute)(graphs[0], 20), STREAM_LATE, "after 20 ms");
    assert_eq!(acl.download::<u64>(done, 1), [0]);
    release(acl, word);
    acl.ok((acl.aclrtSynchronizeStream)(NULL));
    assert_eq!(acl.download::<u64>(done, 1), [5]);
    for (graph, value, ms) in [(graphs[1], 6, LONG_MS), (graphs[0], 5, -1)] {
        acl.ok((f.aclmdlRIExecute)(graph, ms));
        assert_eq!(acl.download::<u64>(done, 1), [value], "on return");
    }
    for graph in graphs {
        acl.ok((acl.aclmdlRIDestroy)(graph));
        acl.fails((f.aclmdlRIExecute)(graph, -1), 107_017, "was destroyed");
    }
    acl.ok((acl.aclrtDestroyStream)(stream));
    for memory in [word, done] {
        acl.ok((acl.aclrtFree)(memory));
    }
}

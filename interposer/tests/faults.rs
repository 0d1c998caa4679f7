//! Operators that fail: where and how often the failure is reported.
//!
//! A failure may be reported to any thread that synchronises, so these tests take turns.

mod common;

use std::sync::{Mutex, MutexGuard, PoisonError};

use common::{Acl, F32, NULL, direct};

const AICORE_EXCEPTION: i32 = 507_015;

fn alone() -> (&'static Acl, MutexGuard<'static, ()>) {
    static TURN: Mutex<()> = Mutex::new(());
    (direct(), TURN.lock().unwrap_or_else(PoisonError::into_inner))
}

#[test]
fn failing_operator_is_reported_by_the_next_synchronisation_once() {
    let (acl, _alone) = alone();
    let stream = acl.stream();
    let memory = acl.malloc(4096);
    let (x, y, out) =
        (acl.tensor(memory, F32, &[2, 3]), acl.tensor(memory, F32, &[4, 5]), acl.tensor(memory, F32, &[2, 5]));
    acl.run_on(|w, e| (acl.aclnnMatmulGetWorkspaceSize)(x, y, out, 0, w, e), acl.aclnnMatmul, stream);
    let status = (acl.aclrtSynchronizeStream)(stream);
    assert_eq!((acl.aclrtPeekAtLastError)(0), status);
    acl.fails(status, AICORE_EXCEPTION, "aclnnMatmul");
    assert_eq!(acl.message(), "", "a message is given once");
    acl.ok((acl.aclrtSynchronizeStream)(stream));
    assert_eq!(((acl.aclrtGetLastError)(0), (acl.aclrtGetLastError)(0)), (status, 0));
}

#[test]
fn tensor_outside_its_allocation_is_refused_by_the_device() {
    let (acl, _alone) = alone();
    let memory = acl.malloc(1 << 20);
    let one = acl.scalar(1.0);
    let (inside, outside) = (acl.tensor(memory, F32, &[4]), acl.tensor(memory, F32, &[1 << 20]));
    acl.run(|w, e| (acl.aclnnMulsGetWorkspaceSize)(outside, one, inside, w, e), acl.aclnnMuls);
    let status = (acl.aclrtSynchronizeStream)(NULL);
    assert_ne!(status, 0);
    let message = acl.message();
    assert!(message.contains("aclnnMuls") && message.contains("past the end"), "{message}");
}

#[test]
fn a_synchronous_copy_reports_what_failed_before_it() {
    let (acl, _alone) = alone();
    let memory = acl.malloc(4096);
    let (x, y, out) =
        (acl.tensor(memory, F32, &[2, 3]), acl.tensor(memory, F32, &[4, 5]), acl.tensor(memory, F32, &[2, 5]));
    acl.run(|w, e| (acl.aclnnMatmulGetWorkspaceSize)(x, y, out, 0, w, e), acl.aclnnMatmul);
    let event = acl.event();
    acl.ok((acl.aclrtRecordEvent)(event, NULL));
    // A query says that the failed operator is through, and takes no error.
    while out!(acl, |status: i32| (acl.aclrtQueryEventStatus)(event, status)) == 0 {
        std::thread::yield_now();
    }
    let mut host = [0u8; 4];
    let mut copy = || (acl.aclrtMemcpy)(host.as_mut_ptr().cast(), 4, memory, 4, common::D2H);
    acl.fails(copy(), AICORE_EXCEPTION, "aclnnMatmul");
    acl.ok(copy());
}

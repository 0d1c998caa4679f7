//! Events. Created, recorded and destroyed without an answer.

use acl_abi::values as acl;

use crate::abi::{Opaque, Out};
use crate::entry::status;
use crate::error::Failure;
use crate::event::Event;
use crate::process::process;

fn create(event: Out<Opaque>, flags: u32) -> Result<(), Failure> {
    event.check("event")?;
    hand_out(event, Event::create(process().current_link()?, flags)?)
}

/// Gives the caller a handle.
pub(super) fn hand_out(event: Out<Opaque>, fresh: Event) -> Result<(), Failure> {
    let handle = process().events.insert(|slot| {
        *slot = Some(fresh);
        Ok(())
    })?;
    event.set("event", handle)
}

/// An event of the thread's device.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtCreateEvent(event: Out<Opaque>) -> i32 {
    status("aclrtCreateEvent", || create(event, 0))
}

/// An event with flags. Every event has a time; the flags that only save cost are kept and change nothing. One for other
/// processes (`ACL_EVENT_IPC`, alone) is recorded, waited for, synchronised and asked for its status, and nothing else.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtCreateEventWithFlag(event: Out<Opaque>, flag: u32) -> i32 {
    status("aclrtCreateEventWithFlag", || create(event, flag))
}

/// As [`aclrtCreateEventWithFlag`].
#[unsafe(no_mangle)]
pub extern "C" fn aclrtCreateEventExWithFlag(event: Out<Opaque>, flag: u32) -> i32 {
    status("aclrtCreateEventExWithFlag", || create(event, flag))
}

/// Destroys the event. Streams that wait for it go on waiting for its last recording.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtDestroyEvent(event: Opaque) -> i32 {
    status("aclrtDestroyEvent", || {
        let process = process();
        let result = process.events.remove(event, "event", Option::take).and_then(|gone| match gone {
            Some(event) => event.destroy(),
            None => Ok(()),
        });
        process.forgive_after_finalise(result)
    })
}

/// Records the event in the stream.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtRecordEvent(event: Opaque, stream: Opaque) -> i32 {
    status("aclrtRecordEvent", || {
        let process = process();
        process.event(event, "event")?.record(&process.stream(stream)?)
    })
}

/// Resets the event in stream order.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtResetEvent(event: Opaque, stream: Opaque) -> i32 {
    status("aclrtResetEvent", || {
        let process = process();
        process.event(event, "event")?.reset(&process.stream(stream)?)
    })
}

/// Waits for the event's last recording; returns at once if there is none.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtSynchronizeEvent(event: Opaque) -> i32 {
    status("aclrtSynchronizeEvent", || process().event(event, "event")?.synchronise())
}

/// Waits at most `timeout` milliseconds; −1 waits without limit.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtSynchronizeEventWithTimeout(event: Opaque, timeout: i32) -> i32 {
    status("aclrtSynchronizeEventWithTimeout", || process().event(event, "event")?.synchronise_for(timeout))
}

/// Whether the last recording is complete (0) or not (1).
#[unsafe(no_mangle)]
pub extern "C" fn aclrtQueryEvent(event: Opaque, status: Out<i32>) -> i32 {
    crate::entry::status("aclrtQueryEvent", || {
        status.check("status")?;
        let event = process().event(event, "event")?;
        event.is_private("aclrtQueryEvent")?;
        let complete = event.is_complete()?;
        status.set("status", if complete { acl::ACL_EVENT_STATUS_COMPLETE } else { acl::ACL_EVENT_STATUS_NOT_READY })
    })
}

/// Whether the last recording is complete (1) or not (0).
#[unsafe(no_mangle)]
pub extern "C" fn aclrtQueryEventStatus(event: Opaque, status: Out<i32>) -> i32 {
    crate::entry::status("aclrtQueryEventStatus", || {
        status.check("status")?;
        let complete = process().event(event, "event")?.is_complete()?;
        let (yes, no) = (acl::ACL_EVENT_RECORDED_STATUS_COMPLETE, acl::ACL_EVENT_RECORDED_STATUS_NOT_READY);
        status.set("status", if complete { yes } else { no })
    })
}

/// Time between two recordings on the device.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtEventElapsedTime(ms: Out<f32>, startEvent: Opaque, endEvent: Opaque) -> i32 {
    status("aclrtEventElapsedTime", || {
        ms.check("ms")?;
        let process = process();
        let (start, end) = (process.event(startEvent, "startEvent")?, process.event(endEvent, "endEvent")?);
        ms.set("ms", start.elapsed_ms(&end)?)
    })
}

/// Whether the stream that waits for the event has got past it (0) or perhaps not (1).
#[unsafe(no_mangle)]
pub extern "C" fn aclrtQueryEventWaitStatus(event: Opaque, status: Out<i32>) -> i32 {
    crate::entry::status("aclrtQueryEventWaitStatus", || {
        status.check("status")?;
        let over = process().event(event, "event")?.wait_is_over()?;
        let (yes, no) = (acl::ACL_EVENT_WAIT_STATUS_COMPLETE, acl::ACL_EVENT_WAIT_STATUS_NOT_READY);
        status.set("status", if over { yes } else { no })
    })
}

/// When the last recording completed, in microseconds of the device's clock.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtEventGetTimestamp(event: Opaque, timestamp: Out<u64>) -> i32 {
    status("aclrtEventGetTimestamp", || {
        timestamp.check("timestamp")?;
        timestamp.set("timestamp", process().event(event, "event")?.timestamp_us()?)
    })
}

/// Number of the event in this session.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtGetEventId(event: Opaque, eventId: Out<u32>) -> i32 {
    status("aclrtGetEventId", || {
        let event = process().event(event, "event")?;
        event.is_private("a number")?;
        eventId.set("eventId", event.id)
    })
}

//! Streams. Created and destroyed without an answer; null is the default stream.

use acl_abi::values as acl;
use wire::Record;

use crate::abi::{Opaque, Out};
use crate::entry::status;
use crate::error::Failure;
use crate::process::process;
use crate::stream::Stream;

/// The least urgent priority; 0 is the most urgent.
pub const PRIORITY_LEAST: u32 = 7;

fn create(stream: Out<Opaque>, priority: u32, flags: u32) -> Result<(), Failure> {
    stream.check("stream")?;
    if priority > PRIORITY_LEAST {
        return Err(Failure::invalid(format!("parameter priority: {priority}, want 0 to {PRIORITY_LEAST}")));
    }
    let process = process();
    let link = process.current_link()?;
    let id = link.next_stream()?;
    link.post(&Record::StreamCreate { stream: id, priority, flags })?;
    let fresh = Stream { link, id, priority, flags, marks: Default::default() };
    let handle = process.streams.insert(|slot| {
        *slot = Some(fresh);
        Ok(())
    })?;
    stream.set("stream", handle)
}

/// A stream of the thread's device.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtCreateStream(stream: Out<Opaque>) -> i32 {
    status("aclrtCreateStream", || create(stream, 0, 0))
}

/// A stream with a priority. Flags are about queues of real hardware; they are kept and change nothing.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtCreateStreamWithConfig(stream: Out<Opaque>, priority: u32, flag: u32) -> i32 {
    status("aclrtCreateStreamWithConfig", || create(stream, priority, flag))
}

fn destroy(stream: Opaque) -> Result<(), Failure> {
    let process = process();
    if stream.is_null() {
        return Err(Failure::invalid("parameter stream: the default stream cannot be destroyed"));
    }
    process.stream(stream)?.is_free("its destruction")?;
    let gone = process.streams.remove(stream, "stream", Option::take)?;
    match gone {
        // A lost session has destroyed it already.
        Some(stream) if !stream.link.is_lost() => stream.link.post(&Record::StreamDestroy { stream: stream.id }),
        _ => Ok(()),
    }
}

/// Destroys the stream once its work is done; does not wait for it.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtDestroyStream(stream: Opaque) -> i32 {
    status("aclrtDestroyStream", || process().forgive_after_finalise(destroy(stream)))
}

/// As [`aclrtDestroyStream`]: work in the stream is finished, not thrown away.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtDestroyStreamForce(stream: Opaque) -> i32 {
    status("aclrtDestroyStreamForce", || process().forgive_after_finalise(destroy(stream)))
}

/// Waits for the stream; reports the first error of its operators.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtSynchronizeStream(stream: Opaque) -> i32 {
    status("aclrtSynchronizeStream", || process().stream(stream)?.synchronise())
}

/// Waits at most `timeout` milliseconds; −1 waits without limit.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtSynchronizeStreamWithTimeout(stream: Opaque, timeout: i32) -> i32 {
    status("aclrtSynchronizeStreamWithTimeout", || process().stream(stream)?.synchronise_for(timeout))
}

/// Whether the stream is idle.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtStreamQuery(stream: Opaque, status: Out<i32>) -> i32 {
    crate::entry::status("aclrtStreamQuery", || {
        status.check("status")?;
        let idle = process().stream(stream)?.is_idle()?;
        status.set("status", if idle { acl::ACL_STREAM_STATUS_COMPLETE } else { acl::ACL_STREAM_STATUS_NOT_READY })
    })
}

/// Makes the stream wait for the event.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtStreamWaitEvent(stream: Opaque, event: Opaque) -> i32 {
    status("aclrtStreamWaitEvent", || {
        let process = process();
        process.event(event, "event")?.make_wait(&process.stream(stream)?)
    })
}

/// Number of the stream in this session.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtStreamGetId(stream: Opaque, streamId: Out<i32>) -> i32 {
    status("aclrtStreamGetId", || streamId.set("streamId", process().stream(stream)?.id as i32))
}

/// As it was created.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtStreamGetPriority(stream: Opaque, priority: Out<u32>) -> i32 {
    status("aclrtStreamGetPriority", || priority.set("priority", process().stream(stream)?.priority))
}

/// As it was created.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtStreamGetFlags(stream: Opaque, flags: Out<u32>) -> i32 {
    status("aclrtStreamGetFlags", || flags.set("flags", process().stream(stream)?.flags))
}

/// Accepted for a live stream, where the value changes nothing here: failure mode and overflow check (as
/// `aclrtSetStreamFailureMode` and `aclrtSetStreamOverflowSwitch`), a tag for listings, and whether operators' shapes are kept
/// for profiling. The priority is fixed when the stream is made.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtSetStreamAttribute(stream: Opaque, stmAttrType: i32, value: Opaque) -> i32 {
    status("aclrtSetStreamAttribute", || {
        if value.is_null() {
            return Err(Failure::null("value"));
        }
        process().stream(stream)?;
        match stmAttrType {
            acl::ACL_STREAM_ATTR_FAILURE_MODE
            | acl::ACL_STREAM_ATTR_FLOAT_OVERFLOW_CHECK
            | acl::ACL_STREAM_ATTR_USER_CUSTOM_TAG
            | acl::ACL_STREAM_ATTR_CACHE_OP_INFO => Ok(()),
            acl::ACL_STREAM_ATTR_PRIORITY => {
                Err(Failure::unsupported("parameter stmAttrType: the priority of a stream is fixed when it is made"))
            }
            other => Err(Failure::invalid(format!("parameter stmAttrType: {other} is no aclrtStreamAttr"))),
        }
    })
}

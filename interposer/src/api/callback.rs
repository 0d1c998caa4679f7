//! Callbacks that run on the host in stream order ([`crate::callbacks`]).

use acl_abi::values as acl;

use crate::abi::Opaque;
use crate::callbacks::Function;
use crate::entry::status;
use crate::error::Failure;
use crate::host_calls::this_thread;
use crate::process::process;

/// Runs `func` in the stream's subscribed thread when the stream gets here; with `ACL_CALLBACK_BLOCK`, the stream waits for it.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtLaunchCallback(func: Option<Function>, userData: Opaque, blockType: i32, stream: Opaque) -> i32 {
    status("aclrtLaunchCallback", || {
        let func = func.ok_or_else(|| Failure::null("fn"))?;
        let blocks = match blockType {
            acl::ACL_CALLBACK_NO_BLOCK => false,
            acl::ACL_CALLBACK_BLOCK => true,
            other => {
                return Err(Failure::invalid(format!("parameter blockType: {other} is no aclrtCallbackBlockType")));
            }
        };
        let process = process();
        process.callbacks.launch(&process.stream(stream)?, func, userData.addr(), blocks)
    })
}

/// Callbacks of the stream are run by the thread with this number (`pthread_self`).
#[unsafe(no_mangle)]
pub extern "C" fn aclrtSubscribeReport(threadId: u64, stream: Opaque) -> i32 {
    status("aclrtSubscribeReport", || {
        let process = process();
        process.callbacks.subscribe(threadId, &process.stream(stream)?)
    })
}

/// Ends the subscription. Callbacks that were not run are dropped, and hold the stream no longer.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtUnSubscribeReport(threadId: u64, stream: Opaque) -> i32 {
    status("aclrtUnSubscribeReport", || {
        let process = process();
        process.callbacks.unsubscribe(threadId, &process.stream(stream)?)
    })
}

/// Waits at most `timeout` milliseconds (−1: without limit) for a callback of this thread's streams, and runs it.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtProcessReport(timeout: i32) -> i32 {
    status("aclrtProcessReport", || process().callbacks.process(this_thread(), timeout))
}

/// Runs `func` in a thread of this library when the stream gets here; the stream waits for it.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtLaunchHostFunc(stream: Opaque, func: Option<Function>, args: Opaque) -> i32 {
    status("aclrtLaunchHostFunc", || {
        let func = func.ok_or_else(|| Failure::null("fn"))?;
        let process = process();
        process.callbacks.host_function(&process.stream(stream)?, func, args.addr())
    })
}

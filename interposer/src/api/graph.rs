//! Captured graphs (`aclmdlRI`).

use acl_abi::values as acl;

use crate::abi::{Opaque, Out, Text};
use crate::capture::Mode;
use crate::entry::status;
use crate::error::Failure;
use crate::graph::{Graph, TaskGroup, exchange_mode};
use crate::log::log;
use crate::process::process;

fn graph(handle: Opaque) -> Result<Graph, Failure> {
    let graph = process().graphs.with(handle, "modelRI", |g| g.clone())?;
    graph.ok_or_else(|| Failure::new(acl::ACL_ERROR_RT_INVALID_HANDLE, "parameter modelRI: being destroyed"))
}

/// Begins a capture on the stream.
#[unsafe(no_mangle)]
pub extern "C" fn aclmdlRICaptureBegin(stream: Opaque, mode: i32) -> i32 {
    status("aclmdlRICaptureBegin", || {
        let process = process();
        process.stream(stream)?.begin_capture(Mode::of(mode)?, |graph| {
            let handle = process.graphs.insert(|slot| {
                *slot = Some(graph);
                Ok(())
            })?;
            Ok(handle.addr())
        })
    })
}

/// Ends the capture where it began; the graph.
#[unsafe(no_mangle)]
pub extern "C" fn aclmdlRICaptureEnd(stream: Opaque, modelRI: Out<Opaque>) -> i32 {
    status("aclmdlRICaptureEnd", || {
        modelRI.check("modelRI")?;
        let process = process();
        match process.stream(stream)?.end_capture() {
            Ok(handle) => modelRI.set("modelRI", std::ptr::without_provenance_mut(handle)),
            Err((failure, gone)) => {
                modelRI.set("modelRI", std::ptr::null_mut())?;
                if let Some(handle) = gone {
                    let handle: Opaque = std::ptr::without_provenance_mut(handle);
                    let _ = process.graphs.remove(handle, "modelRI", Option::take);
                }
                Err(failure)
            }
        }
    })
}

/// Whether the stream is captured, and into which graph.
#[unsafe(no_mangle)]
pub extern "C" fn aclmdlRICaptureGetInfo(stream: Opaque, status: Out<i32>, modelRI: Out<Opaque>) -> i32 {
    crate::entry::status("aclmdlRICaptureGetInfo", || {
        let captured = process().stream(stream)?.capture_status();
        let (handle, state) = match captured {
            None => (0, acl::ACL_MODEL_RI_CAPTURE_STATUS_NONE),
            Some((handle, true)) => (handle, acl::ACL_MODEL_RI_CAPTURE_STATUS_ACTIVE),
            Some((handle, false)) => (handle, acl::ACL_MODEL_RI_CAPTURE_STATUS_INVALIDATED),
        };
        status.set_if_wanted(state);
        modelRI.set_if_wanted(std::ptr::without_provenance_mut(handle));
        Ok(())
    })
}

/// Exchanges what this thread may do while others capture.
#[unsafe(no_mangle)]
pub extern "C" fn aclmdlRICaptureThreadExchangeMode(mode: Out<i32>) -> i32 {
    status("aclmdlRICaptureThreadExchangeMode", || {
        let before = exchange_mode(Mode::of(mode.get("mode")?)?);
        mode.set("mode", before.value())
    })
}

/// Launches the graph in the stream.
#[unsafe(no_mangle)]
pub extern "C" fn aclmdlRIExecuteAsync(modelRI: Opaque, stream: Opaque) -> i32 {
    status("aclmdlRIExecuteAsync", || graph(modelRI)?.launch(&process().stream(stream)?))
}

/// Launches the graph and waits for it.
#[unsafe(no_mangle)]
pub extern "C" fn aclmdlRIExecute(modelRI: Opaque, timeout: i32) -> i32 {
    status("aclmdlRIExecute", || {
        let graph = graph(modelRI)?;
        let stream = graph.link.default_stream();
        graph.launch(&stream)?;
        stream.synchronise_for(timeout)
    })
}

/// Destroys the graph.
#[unsafe(no_mangle)]
pub extern "C" fn aclmdlRIDestroy(modelRI: Opaque) -> i32 {
    status("aclmdlRIDestroy", || {
        let process = process();
        let result = graph(modelRI).and_then(|graph| {
            graph.destroy()?;
            process.graphs.remove(modelRI, "modelRI", Option::take).map(|_| ())
        });
        process.forgive_after_finalise(result)
    })
}

/// Number of the graph in this session.
#[unsafe(no_mangle)]
pub extern "C" fn aclmdlRIGetId(modelRI: Opaque, modelRIId: Out<u32>) -> i32 {
    status("aclmdlRIGetId", || modelRIId.set("modelRIId", graph(modelRI)?.id))
}

/// Lists the nodes in the log, at level `info`.
#[unsafe(no_mangle)]
pub extern "C" fn aclmdlRIDebugPrint(modelRI: Opaque) -> i32 {
    status("aclmdlRIDebugPrint", || {
        let graph = graph(modelRI)?;
        for line in graph.listing() {
            log!(Info, "graph {}: {line}", graph.id);
        }
        Ok(())
    })
}

/// Writes the nodes to a file as JSON: index, stream, name. Arguments are not listed, whatever `flags` asks for.
#[unsafe(no_mangle)]
pub extern "C" fn aclmdlRIDebugJsonPrint(modelRI: Opaque, path: Text, _flags: u32) -> i32 {
    status("aclmdlRIDebugJsonPrint", || {
        let graph = graph(modelRI)?;
        let path = path.lossy().ok_or_else(|| Failure::null("path"))?;
        std::fs::write(&*path, graph.json()).map_err(|e| Failure::invalid(format!("parameter path: {path}: {e}")))
    })
}

/// Operators of the stream from here on can be replaced in the graph.
#[unsafe(no_mangle)]
pub extern "C" fn aclmdlRICaptureTaskGrpBegin(stream: Opaque) -> i32 {
    status("aclmdlRICaptureTaskGrpBegin", || process().stream(stream)?.begin_group())
}

/// Ends the task group; its handle lives as long as the process.
#[unsafe(no_mangle)]
pub extern "C" fn aclmdlRICaptureTaskGrpEnd(stream: Opaque, handle: Out<Opaque>) -> i32 {
    status("aclmdlRICaptureTaskGrpEnd", || {
        handle.check("handle")?;
        let process = process();
        let group: TaskGroup = process.stream(stream)?.end_group()?;
        let made = process.task_groups.insert(|slot| {
            *slot = Some(group);
            Ok(())
        })?;
        handle.set("handle", made)
    })
}

/// Operators of the stream from here on replace those of the task group.
#[unsafe(no_mangle)]
pub extern "C" fn aclmdlRICaptureTaskUpdateBegin(stream: Opaque, handle: Opaque) -> i32 {
    status("aclmdlRICaptureTaskUpdateBegin", || {
        let process = process();
        let group = process.task_groups.with(handle, "handle", |g| g.clone())?;
        let gone = || Failure::new(acl::ACL_ERROR_RT_INVALID_HANDLE, "parameter handle: being destroyed");
        process.stream(stream)?.begin_update(&group.ok_or_else(gone)?)
    })
}

/// Ends the update.
#[unsafe(no_mangle)]
pub extern "C" fn aclmdlRICaptureTaskUpdateEnd(stream: Opaque) -> i32 {
    status("aclmdlRICaptureTaskUpdateEnd", || process().stream(stream)?.end_update())
}

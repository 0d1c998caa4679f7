//! Copies between host and device, and device memory set to a byte.
//!
//! | host memory | to the device | to the host |
//! |---|---|---|
//! | pinned (in the arena) | one record, no byte moved by the client | one record, no byte moved by the client |
//! | pageable, up to 1 KiB to the device | inside the record | through a staging block |
//! | pageable, larger | staging blocks of 256 KiB: the client fills the next while the daemon reads the last | block by block |
//!
//! An asynchronous copy *from* pageable memory takes the bytes before it returns, so the caller may reuse them; one *to* pageable
//! memory keeps its place in the stream and returns when the bytes are there. A synchronous copy is ordered with the
//! process's other synchronous calls and not with streams, as in AscendCL.
//!
//! **Invariant:** host addresses are only read and written by `memcpy` here, with the caller's pointer and length, after the
//! device side was checked; a device address passed as a host address is refused, because it would fault.

use std::sync::Arc;

use acl_abi::values as acl;
use wire::{HostSource, INLINE_COPY_BYTES_MAX, Record};

use crate::abi::Opaque;
use crate::error::Failure;
use crate::link::Link;
use crate::peers::copy_across;
use crate::process::Process;
use crate::stream::Stream;

/// Which way a copy goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    HostToHost,
    HostToDevice,
    DeviceToHost,
    DeviceToDevice,
}

/// Way of an `aclrtMemcpyKind`; `to_device` and `from_device` tell what the addresses are.
fn way(kind: i32, to_device: bool, from_device: bool) -> Result<Way, Failure> {
    let asked = match kind {
        acl::ACL_MEMCPY_HOST_TO_HOST => Way::HostToHost,
        acl::ACL_MEMCPY_HOST_TO_DEVICE | acl::ACL_MEMCPY_HOST_TO_BUF_TO_DEVICE => Way::HostToDevice,
        acl::ACL_MEMCPY_DEVICE_TO_HOST => Way::DeviceToHost,
        acl::ACL_MEMCPY_DEVICE_TO_DEVICE
        | acl::ACL_MEMCPY_INNER_DEVICE_TO_DEVICE
        | acl::ACL_MEMCPY_INTER_DEVICE_TO_DEVICE => Way::DeviceToDevice,
        acl::ACL_MEMCPY_DEFAULT => match (to_device, from_device) {
            (false, false) => Way::HostToHost,
            (true, false) => Way::HostToDevice,
            (false, true) => Way::DeviceToHost,
            (true, true) => Way::DeviceToDevice,
        },
        other => return Err(Failure::invalid(format!("parameter kind: {other} is no aclrtMemcpyKind"))),
    };
    let (want_to, want_from) = match asked {
        Way::HostToHost => (false, false),
        Way::HostToDevice => (true, false),
        Way::DeviceToHost => (false, true),
        Way::DeviceToDevice => (true, true),
    };
    for (parameter, want, is) in [("dst", want_to, to_device), ("src", want_from, from_device)] {
        if want != is {
            let name = |device| if device { "a device address" } else { "a host address" };
            let text = format!("parameter {parameter}: {} where kind {kind} wants {}", name(is), name(want));
            return Err(Failure::invalid(text));
        }
    }
    Ok(asked)
}

/// `aclrtMemcpy` (no stream) and `aclrtMemcpyAsync`.
///
/// # Errors
/// Names the parameter that is wrong; device lost; deferred errors of earlier operators.
pub fn copy(
    process: &Process,
    (dst, room): (Opaque, usize),
    (src, len): (Opaque, usize),
    kind: i32,
    stream: Option<&Stream>,
) -> Result<(), Failure> {
    if len > room {
        return Err(Failure::invalid(format!("parameter count: {len} bytes into a destination of {room}")));
    }
    if len == 0 {
        return Ok(());
    }
    for (parameter, address) in [("dst", dst), ("src", src)] {
        if address.is_null() {
            return Err(Failure::null(parameter));
        }
    }
    if stream.is_none() {
        process.open_links().try_for_each(|link| link.unsafe_while_capturing("aclrtMemcpy"))?;
    }
    let (to, from) = (process.link_of(dst.addr() as u64), process.link_of(src.addr() as u64));
    match (way(kind, to.is_some(), from.is_some())?, to, from) {
        (Way::HostToDevice, Some(link), _) => {
            check_stream(stream, &link)?;
            to_device(&link, dst.addr() as u64, src.cast(), len, stream)
        }
        (Way::DeviceToHost, _, Some(link)) => {
            check_stream(stream, &link)?;
            to_host(&link, dst.cast(), src.addr() as u64, len, stream)
        }
        (Way::DeviceToDevice, Some(to), Some(from)) if !Arc::ptr_eq(&to, &from) => {
            copy_across((&to, dst.addr() as u64), (&from, src.addr() as u64), len as u64, stream)
        }
        (Way::DeviceToDevice, Some(to), Some(_)) => {
            check_stream(stream, &to)?;
            within_device(&to, dst.addr() as u64, src.addr() as u64, len as u64, stream)
        }
        _ => {
            if let Some(stream) = stream {
                // In stream order, as the caller may count on what the stream does before.
                stream.synchronise()?;
            }
            // SAFETY: both are host addresses of the caller's, valid for `len` bytes by the C contract; they may overlap.
            unsafe { std::ptr::copy(src.cast::<u8>(), dst.cast::<u8>(), len) };
            Ok(())
        }
    }
}

fn check_stream(stream: Option<&Stream>, link: &Arc<Link>) -> Result<(), Failure> {
    match stream {
        Some(stream) if !Arc::ptr_eq(&stream.link, link) => {
            let text = format!(
                "parameter stream: it is of device {}, the memory of device {}",
                stream.link.device, link.device
            );
            Err(Failure::invalid(text))
        }
        _ => Ok(()),
    }
}

/// Posts a copy: in its stream without waiting, or as a synchronous call.
fn send<'a>(
    link: &Link,
    stream: Option<&Stream>,
    wait: bool,
    make: impl FnOnce(Option<u32>, Option<wire::ReplyTo>) -> Record<'a>,
) -> Result<(), Failure> {
    let id = stream.map(|s| s.id);
    if !wait {
        return match stream {
            Some(stream) => stream.post(&make(id, None)),
            None => link.post(&make(id, None)),
        };
    }
    let earlier = stream.map(|s| s.marks.posted());
    let answer = link.call(|reply| make(id, Some(reply))).map(|_| ());
    if let (Some(stream), Some(earlier)) = (stream, earlier) {
        stream.marks.count_answered(earlier);
    }
    answer
}

/// Copies `len` bytes of host memory to the device: in `stream`, or at once.
///
/// # Errors
/// As [`copy`].
pub(crate) fn to_device(
    link: &Link,
    dst: u64,
    src: *const u8,
    len: usize,
    stream: Option<&Stream>,
) -> Result<(), Failure> {
    link.check_range("dst", dst, len as u64)?;
    let wait = stream.is_none();
    if let Some(range) = link.client.pinned_range(src, len as u64) {
        let source = HostSource::Pinned(range);
        return send(link, stream, wait, |stream, reply| Record::CopyIn { dst, source, stream, reply });
    }
    if let Some(stream) = stream {
        stream.is_free("a copy from pageable memory")?;
    }
    if len <= INLINE_COPY_BYTES_MAX {
        let mut bytes = [0; INLINE_COPY_BYTES_MAX];
        // SAFETY: `src` is a host address of the caller's, readable for `len` bytes by the C contract, and `len` fits.
        unsafe { std::ptr::copy_nonoverlapping(src, bytes.as_mut_ptr(), len) };
        let source = HostSource::Inline(&bytes[..len]);
        return send(link, stream, wait, |stream, reply| Record::CopyIn { dst, source, stream, reply });
    }
    let mut done = 0;
    while done < len {
        let block = link.client.staging_take().map_err(|l| link.lost(l))?;
        let part = (len - done).min(block.len as usize);
        // SAFETY: `src + done` is readable for `part` bytes (as above); the block is ours, `part` fits into it, and it
        // is in the arena, which does not overlap the caller's memory (pinned memory took the way above).
        unsafe { std::ptr::copy_nonoverlapping(src.add(done), block.ptr, part) };
        let source = HostSource::Staging { block: block.block, len: part as u32 };
        let at = dst + done as u64;
        done += part;
        // Synchronous copies of a session are carried out in order: the answer to the last stands for all.
        let wait = wait && done == len;
        send(link, stream, wait, |stream, reply| Record::CopyIn { dst: at, source, stream, reply })?;
    }
    Ok(())
}

/// Copies `len` bytes of the device to host memory: in `stream`, or at once.
///
/// # Errors
/// As [`copy`].
pub(crate) fn to_host(link: &Link, dst: *mut u8, src: u64, len: usize, stream: Option<&Stream>) -> Result<(), Failure> {
    link.check_range("src", src, len as u64)?;
    if let Some(range) = link.client.pinned_range(dst, len as u64) {
        return send(link, stream, stream.is_none(), |stream, reply| Record::CopyOut {
            dst: range,
            src,
            stream,
            reply,
        });
    }
    if let Some(stream) = stream {
        stream.is_free("a copy to pageable memory")?;
    }
    // SAFETY: `dst` is writable for `len` bytes by the C contract; the fetched bytes are in the arena, readable for `len`, and
    // do not overlap the caller's memory (pinned memory took the way above).
    let take = |bytes: *const u8| unsafe { std::ptr::copy_nonoverlapping(bytes, dst, len) };
    if stream.is_none() && link.take_fetched(src, len as u64, take) {
        return Ok(());
    }
    let mut done = 0;
    while done < len {
        let block = link.client.staging_take().map_err(|l| link.lost(l))?;
        let part = (len - done).min(block.len as usize);
        let range = wire::ArenaRange { offset: block.range.offset, len: part as u64 };
        let at = src + done as u64;
        let answer = send(link, stream, true, |stream, reply| Record::CopyOut { dst: range, src: at, stream, reply });
        if answer.is_ok() {
            // SAFETY: `dst + done` is writable for `part` bytes by the C contract (`part <= len - done`); the block is
            // ours, holds `part` bytes, and does not overlap the caller's memory.
            unsafe { std::ptr::copy_nonoverlapping(block.ptr, dst.add(done), part) };
        }
        link.client.staging_give_back(block);
        answer?;
        done += part;
    }
    Ok(())
}

fn within_device(to: &Arc<Link>, dst: u64, src: u64, len: u64, stream: Option<&Stream>) -> Result<(), Failure> {
    to.check_range("dst", dst, len)?;
    to.check_range("src", src, len)?;
    send(to, stream, stream.is_none(), |stream, reply| Record::CopyDevice { dst, src, len, stream, reply })
}

/// `aclrtMemset` (no stream) and `aclrtMemsetAsync`.
///
/// # Errors
/// As [`copy`].
pub fn set(
    process: &Process,
    (dst, room): (Opaque, usize),
    value: i32,
    len: usize,
    stream: Option<&Stream>,
) -> Result<(), Failure> {
    if len > room {
        return Err(Failure::invalid(format!("parameter count: {len} bytes into a destination of {room}")));
    }
    if len == 0 {
        return Ok(());
    }
    if dst.is_null() {
        return Err(Failure::null("devPtr"));
    }
    let addr = dst.addr() as u64;
    let Some(link) = process.link_of(addr) else {
        return Err(Failure::invalid(format!("parameter devPtr: {addr:#x} is not a device address of this process")));
    };
    check_stream(stream, &link)?;
    if stream.is_none() {
        link.unsafe_while_capturing("aclrtMemset")?;
    }
    link.check_range("devPtr", addr, len as u64)?;
    let (len, value) = (len as u64, value as u8);
    send(&link, stream, stream.is_none(), |stream, reply| Record::Memset { addr, len, value, stream, reply })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn way_follows_kind_and_checks_addresses() {
        for (kind, to, from, want) in [
            (acl::ACL_MEMCPY_HOST_TO_DEVICE, true, false, Some(Way::HostToDevice)),
            (acl::ACL_MEMCPY_HOST_TO_BUF_TO_DEVICE, true, false, Some(Way::HostToDevice)),
            (acl::ACL_MEMCPY_DEVICE_TO_HOST, false, true, Some(Way::DeviceToHost)),
            (acl::ACL_MEMCPY_DEVICE_TO_DEVICE, true, true, Some(Way::DeviceToDevice)),
            (acl::ACL_MEMCPY_HOST_TO_HOST, false, false, Some(Way::HostToHost)),
            (acl::ACL_MEMCPY_DEFAULT, false, true, Some(Way::DeviceToHost)),
            (acl::ACL_MEMCPY_DEFAULT, true, true, Some(Way::DeviceToDevice)),
            (acl::ACL_MEMCPY_HOST_TO_DEVICE, false, false, None),
            (acl::ACL_MEMCPY_DEVICE_TO_HOST, true, false, None),
            (acl::ACL_MEMCPY_HOST_TO_HOST, false, true, None),
            (99, true, true, None),
        ] {
            assert_eq!(way(kind, to, from).ok(), want, "kind {kind}, {to}, {from}");
        }
        let failure = way(acl::ACL_MEMCPY_HOST_TO_DEVICE, true, true).unwrap_err();
        assert!(failure.text.contains("parameter src: a device address"), "{failure}");
    }
}

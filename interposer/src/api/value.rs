//! Single words of device memory that streams write and wait for.

use std::sync::Arc;

use wire::{Record, ValueCondition};

use crate::abi::Opaque;
use crate::entry::status;
use crate::error::Failure;
use crate::process::process;
use crate::stream::Stream;

const WORD_BYTES: u64 = 8;

/// The stream, and the address if a word may be there.
fn word(devAddr: Opaque, stream: Opaque) -> Result<(Stream, u64), Failure> {
    if devAddr.is_null() {
        return Err(Failure::null("devAddr"));
    }
    let process = process();
    let (stream, addr) = (process.stream(stream)?, devAddr.addr() as u64);
    if !addr.is_multiple_of(WORD_BYTES) {
        return Err(Failure::invalid(format!("parameter devAddr: {addr:#x} is not a multiple of {WORD_BYTES}")));
    }
    match process.link_of(addr) {
        Some(link) if !Arc::ptr_eq(&link, &stream.link) => {
            let (of, memory) = (stream.link.device, link.device);
            Err(Failure::invalid(format!("parameter stream: it is of device {of}, the memory of device {memory}")))
        }
        _ => {
            stream.link.check_range("devAddr", addr, WORD_BYTES)?;
            Ok((stream, addr))
        }
    }
}

/// Writes eight bytes when the stream gets there.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtValueWrite(devAddr: Opaque, value: u64, flag: u32, stream: Opaque) -> i32 {
    status("aclrtValueWrite", || {
        if flag != 0 {
            return Err(Failure::invalid(format!("parameter flag: {flag}, must be 0")));
        }
        let (stream, addr) = word(devAddr, stream)?;
        stream.post(&Record::ValueWrite { stream: stream.id, addr, value })
    })
}

/// The stream waits until eight bytes are as `flag` says (`ACL_STREAM_WAIT_VALUE_*`): greater or equal, equal, a common bit,
/// a bit that neither has.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtValueWait(devAddr: Opaque, value: u64, flag: u32, stream: Opaque) -> i32 {
    status("aclrtValueWait", || {
        let unknown = || Failure::invalid(format!("parameter flag: {flag} is no comparison"));
        let until = ValueCondition::of(flag).ok_or_else(unknown)?;
        let (stream, addr) = word(devAddr, stream)?;
        stream.post(&Record::ValueWait { stream: stream.id, addr, value, until })
    })
}

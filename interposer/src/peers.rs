//! Copies from one device to another, and who may reach whom.
//!
//! Devices belong to different daemons, or to different threads in direct mode, so the bytes pass through this process: out of
//! one, into the other, a piece at a time. A copy in a stream is carried out when the stream has come that far, and is over
//! when the call returns: what is queued behind it, on either device, finds the bytes.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use crate::copy::{to_device, to_host};
use crate::error::Failure;
use crate::handle::lock;
use crate::link::Link;
use crate::stream::Stream;

/// Bytes on the way at once: several staging blocks, little against the caller's memory.
const PIECE_BYTES: usize = 4 << 20;

/// Which device was allowed to reach which: pairs (from, peer).
#[derive(Default)]
pub struct Peers(Mutex<BTreeSet<(u32, u32)>>);

impl Peers {
    /// Allows `device` to reach `peer`; false if it was allowed already.
    pub fn allow(&self, device: u32, peer: u32) -> bool {
        lock(&self.0).insert((device, peer))
    }

    /// Takes that back; false if it was not allowed.
    pub fn forbid(&self, device: u32, peer: u32) -> bool {
        lock(&self.0).remove(&(device, peer))
    }

    /// True if `device` was allowed to reach `peer`.
    pub fn is_allowed(&self, device: u32, peer: u32) -> bool {
        lock(&self.0).contains(&(device, peer))
    }
}

/// Copies `len` bytes from one device to another, behind everything that is in `stream`.
///
/// # Errors
/// Addresses outside of allocations; a stream of a third device; errors of earlier operators; device lost.
pub fn copy_across(
    (to, dst): (&Arc<Link>, u64),
    (from, src): (&Arc<Link>, u64),
    len: u64,
    stream: Option<&Stream>,
) -> Result<(), Failure> {
    to.check_range("dst", dst, len)?;
    from.check_range("src", src, len)?;
    if let Some(stream) = stream {
        if !Arc::ptr_eq(&stream.link, to) && !Arc::ptr_eq(&stream.link, from) {
            let text = format!(
                "parameter stream: it is of device {}, the copy goes from device {} to device {}",
                stream.link.device, from.device, to.device
            );
            return Err(Failure::invalid(text));
        }
        stream.synchronise()?;
    }
    let mut piece = vec![0u8; (len as usize).min(PIECE_BYTES)];
    let mut done = 0;
    while done < len {
        let part = (len - done).min(piece.len() as u64);
        to_host(from, piece.as_mut_ptr(), src + done, part as usize, None)?;
        to_device(to, dst + done, piece.as_ptr(), part as usize, None)?;
        done += part;
    }
    Ok(())
}

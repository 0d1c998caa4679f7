//! What a device is asked to do.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use acl_abi::{DataType, Fold, OpCall};

use crate::interface::PhysAddr;

/// One command on a physical stream.
#[derive(Debug)]
pub enum Command {
    /// An operator; the `addr` of every tensor is physical.
    Op(OpCall),
    /// Host to device: all of `source` to `dst`.
    CopyIn {
        /// First byte written.
        dst: PhysAddr,
        /// Bytes to write; read when the command executes.
        source: HostBytes,
    },
    /// Device to host: fills all of `dst`.
    CopyOut {
        /// Bytes to fill; written when the command executes.
        dst: HostBytes,
        /// First byte read.
        src: PhysAddr,
    },
    /// Within the device; ranges may overlap.
    CopyDevice {
        /// First byte written.
        dst: PhysAddr,
        /// First byte read.
        src: PhysAddr,
        /// Bytes.
        len: u64,
    },
    /// Sets bytes.
    Fill {
        /// First byte written.
        addr: PhysAddr,
        /// Bytes.
        len: u64,
        /// Value of every byte.
        value: u8,
    },
    /// What several ranks have, reduced to one.
    Combine(Box<Combine>),
}

/// A reduction of equally long pieces: one in device memory, the others in host memory.
#[derive(Debug)]
pub struct Combine {
    /// First byte written.
    pub dst: PhysAddr,
    /// First byte of the piece in device memory; may be `dst`.
    pub own: PhysAddr,
    /// How many of the others come before it.
    pub place: usize,
    /// The others, in order.
    pub others: Vec<HostBytes>,
    /// Bytes of each piece.
    pub len: u64,
    /// Element type, one that [`Fold::takes`].
    pub element: DataType,
    /// Operation. Pieces are combined in order, 16-bit floats in single precision and rounded once: everyone who has the
    /// same pieces gets the same bits.
    pub fold: Fold,
}

impl Command {
    /// Name for error texts: the operator's symbol, or what kind of copy it is.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Op(call) => call.op.name(),
            Self::CopyIn { .. } => "copy to device",
            Self::CopyOut { .. } => "copy from device",
            Self::CopyDevice { .. } => "copy within device",
            Self::Fill { .. } => "memset",
            Self::Combine(_) => "reduction of a collective",
        }
    }
}

/// Host bytes that a copy reads or fills: owned, or memory that somebody else keeps alive (a session's shared arena).
pub struct HostBytes(Inner);

enum Inner {
    Owned(Vec<u8>),
    Shared { ptr: *mut u8, len: usize, keep: Arc<dyn Any + Send + Sync> },
}

// SAFETY: `ptr` is only reached through `read`/`write` with raw copies, and whoever built the value promised (in
// `HostBytes::shared`) that the range may be read and written from any thread for as long as `keep` lives.
unsafe impl Send for HostBytes {}

impl HostBytes {
    /// Bytes of our own: the payload of an inline copy, or room for an answer.
    pub fn owned(bytes: Vec<u8>) -> Self {
        Self(Inner::Owned(bytes))
    }

    /// `len` bytes at `ptr`, kept mapped by `keep`.
    ///
    /// Another process may write the memory at any time, as is its right with pinned host memory; it is only ever
    /// copied from and to, never looked at, so that a race changes that process's data and nothing else.
    ///
    /// # Safety
    /// `ptr..ptr + len` must be mapped, readable and writable from any thread for as long as `keep` is alive, and no
    /// Rust reference to it may exist in this process meanwhile.
    pub unsafe fn shared(ptr: *mut u8, len: usize, keep: Arc<dyn Any + Send + Sync>) -> Self {
        Self(Inner::Shared { ptr, len, keep })
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        match &self.0 {
            Inner::Owned(bytes) => bytes.len(),
            Inner::Shared { len, .. } => *len,
        }
    }

    /// True for no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The owned bytes; `None` where the memory is shared.
    pub fn as_owned(&self) -> Option<&[u8]> {
        match &self.0 {
            Inner::Owned(bytes) => Some(bytes),
            Inner::Shared { .. } => None,
        }
    }

    /// The owned buffer, for reuse; `None` where the memory was shared (it is let go).
    pub fn into_owned(self) -> Option<Vec<u8>> {
        match self.0 {
            Inner::Owned(bytes) => Some(bytes),
            Inner::Shared { .. } => None,
        }
    }

    /// Start of the bytes, for one raw copy out of them.
    pub(crate) fn as_ptr(&self) -> *const u8 {
        match &self.0 {
            Inner::Owned(bytes) => bytes.as_ptr(),
            Inner::Shared { ptr, .. } => *ptr,
        }
    }

    /// Start of the bytes, for one raw copy into them.
    pub(crate) fn as_mut_ptr(&mut self) -> *mut u8 {
        match &mut self.0 {
            Inner::Owned(bytes) => bytes.as_mut_ptr(),
            Inner::Shared { ptr, .. } => *ptr,
        }
    }

    /// Copies as many bytes as `to` has from the start.
    pub(crate) fn read(&self, to: &mut [u8]) {
        assert!(to.len() <= self.len(), "{} of {} bytes", to.len(), self.len());
        // SAFETY: `self` is valid for its length (our vector, or what `shared`'s caller promised), and no Rust reference to it
        // exists, so `to` does not overlap it.
        unsafe { std::ptr::copy_nonoverlapping(self.as_ptr(), to.as_mut_ptr(), to.len()) };
    }

    /// Sets every byte to 0.
    pub(crate) fn zero(&mut self) {
        let (ptr, len) = (self.as_mut_ptr(), self.len());
        // SAFETY: `ptr..ptr + len` is our vector, or a range that `shared`'s caller promised to be writable.
        unsafe { std::ptr::write_bytes(ptr, 0, len) };
    }
}

impl fmt::Debug for HostBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Inner::Owned(bytes) => write!(f, "HostBytes::owned({} bytes)", bytes.len()),
            Inner::Shared { len, keep, .. } => {
                write!(f, "HostBytes::shared({len} bytes, {} holders)", Arc::strong_count(keep))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_bytes_keep_their_owner_alive() {
        let keep: Arc<dyn Any + Send + Sync> = Arc::new(());
        let mut memory = vec![1u8; 4];
        // SAFETY: `memory` outlives `bytes` and is not touched through a reference until `bytes` is gone.
        let mut bytes = unsafe { HostBytes::shared(memory.as_mut_ptr(), 4, keep.clone()) };
        assert_eq!((bytes.len(), bytes.as_owned(), Arc::strong_count(&keep)), (4, None, 2));
        bytes.zero();
        drop(bytes);
        assert_eq!((memory, Arc::strong_count(&keep)), (vec![0; 4], 1));
    }
}

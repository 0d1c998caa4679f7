//! One reserved range of client addresses, and what is mapped in it.
//!
//! A reservation has a window of device addresses of its own ([`device::Device::reserve`]), so that physical handles that the
//! client maps side by side are side by side for the device as well, and an access may span any number of them.
//!
//! Work in flight is counted for the whole reservation, in epochs: taking a piece away closes the present epoch, and the
//! piece's pages go when that epoch and all before it have drained. So an access costs one count however many handles
//! it spans, and pages never change under queued or running work, while later work never delays the change.

use std::collections::{BTreeMap, VecDeque};

use device::{Extents, PhysAddr};

/// Part of a physical handle in the reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// First client address.
    pub addr: u64,
    /// Bytes.
    pub size: u64,
    /// The session's number for the handle.
    pub handle: u64,
}

#[derive(Debug, Default)]
struct Epoch {
    pins: u32,
    /// Taken away at its end.
    gone: Option<Piece>,
}

/// A reserved range.
#[derive(Debug)]
pub struct Reservation {
    /// First client address.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// Device address of the first byte.
    pub window: PhysAddr,
    /// The client gave the range back; it lives until it has drained.
    pub released: bool,
    pieces: BTreeMap<u64, Piece>,
    mapped: Extents,
    /// Taken away, and still used by work in flight.
    draining: Extents,
    first_epoch: u32,
    /// Never empty; the last one is the present one.
    epochs: VecDeque<Epoch>,
}

impl Reservation {
    /// A range with nothing mapped.
    pub fn new(start: u64, size: u64, window: PhysAddr) -> Self {
        Self {
            start,
            size,
            window,
            released: false,
            pieces: BTreeMap::new(),
            mapped: Extents::default(),
            draining: Extents::default(),
            first_epoch: 0,
            epochs: VecDeque::from([Epoch::default()]),
        }
    }

    /// True if `addr..addr + size` lies inside.
    pub fn holds(&self, addr: u64, size: u64) -> bool {
        addr >= self.start && addr.checked_add(size).is_some_and(|end| end <= self.start + self.size)
    }

    /// Device address of a client address inside.
    pub fn device_addr(&self, addr: u64) -> PhysAddr {
        PhysAddr(self.window.0 + (addr - self.start))
    }

    /// The mapped stretch around `addr`: start and end.
    pub fn stretch(&self, addr: u64) -> Option<(u64, u64)> {
        self.mapped.stretch(addr)
    }

    /// True if something is mapped anywhere in that range.
    pub fn is_mapped(&self, addr: u64, size: u64) -> bool {
        self.mapped.touches(addr, addr + size)
    }

    /// True if work in flight still uses what was mapped in that range.
    pub fn is_draining(&self, addr: u64, size: u64) -> bool {
        self.draining.touches(addr, addr + size)
    }

    /// Number of mapped pieces.
    pub fn pieces(&self) -> usize {
        self.pieces.len()
    }

    /// Notes a piece; its range is neither mapped nor draining.
    pub fn map(&mut self, piece: Piece) {
        self.mapped.insert(piece.addr, piece.addr + piece.size);
        self.pieces.insert(piece.addr, piece);
    }

    /// Takes the piece at `addr` away from later accesses; `None` if none begins there.
    pub fn unmap(&mut self, addr: u64) -> Option<Piece> {
        let piece = self.pieces.remove(&addr)?;
        let end = addr + piece.size;
        self.mapped.remove(addr, end);
        self.draining.insert(addr, end);
        if let Some(present) = self.epochs.back_mut() {
            present.gone = Some(piece);
        }
        self.epochs.push_back(Epoch::default());
        Some(piece)
    }

    /// Counts one use by work in flight; answers the epoch to give back.
    pub fn pin(&mut self) -> u32 {
        let present = self.epochs.len() - 1;
        self.epochs[present].pins += 1;
        self.first_epoch.wrapping_add(present as u32)
    }

    /// Undoes one [`Reservation::pin`].
    pub fn unpin(&mut self, epoch: u32) {
        let epoch = &mut self.epochs[epoch.wrapping_sub(self.first_epoch) as usize];
        assert!(epoch.pins > 0, "unpinned more often than pinned");
        epoch.pins -= 1;
    }

    /// The next piece that no work uses any more.
    pub fn drained(&mut self) -> Option<Piece> {
        if self.epochs.len() < 2 || self.epochs[0].pins > 0 {
            return None;
        }
        self.first_epoch = self.first_epoch.wrapping_add(1);
        let piece = self.epochs.pop_front()?.gone?;
        self.draining.remove(piece.addr, piece.addr + piece.size);
        Some(piece)
    }

    /// True if the client gave the range back and no work uses it.
    pub fn is_over(&self) -> bool {
        self.released && self.epochs.iter().all(|e| e.pins == 0)
    }
}

//! Memory that the session maps itself: reserved addresses, physical handles, mappings of one in the other.

use device::PhysAddr;

use super::reservation::{Piece, Reservation};
use super::{AddressSpace, HANDLE_BYTES, Released, Taken, footprint};

/// Why something about reserved addresses is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReserveError {
    /// No reservation begins there.
    #[error("{0:#x} is not the start of a reserved range (never reserved, or released)")]
    NoReservation(u64),
    /// The range lies in no reservation.
    #[error("{size} bytes at {addr:#x} are not inside one reserved range")]
    Outside {
        /// First address.
        addr: u64,
        /// Bytes.
        size: u64,
    },
    /// Not a multiple of [`HANDLE_BYTES`], or nothing at all.
    #[error("{what} {value:#x} is not a positive multiple of {HANDLE_BYTES} bytes, the granularity of physical memory")]
    Granularity {
        /// Which number.
        what: &'static str,
        /// Its value.
        value: u64,
    },
    /// Something is mapped there already.
    #[error("{size} bytes at {addr:#x} overlap what is mapped there")]
    Mapped {
        /// First address.
        addr: u64,
        /// Bytes.
        size: u64,
    },
    /// What was mapped there is still used by work in flight: try again later.
    #[error("{size} bytes at {addr:#x} were unmapped, and queued work still uses them")]
    Draining {
        /// First address.
        addr: u64,
        /// Bytes.
        size: u64,
    },
    /// No mapping begins there.
    #[error("{0:#x} is not the start of a mapping (never mapped, or unmapped)")]
    NotMapped(u64),
    /// The range still has mappings.
    #[error("the range reserved at {start:#x} still has {pieces} mappings; unmap them first")]
    InUse {
        /// Start of the reservation.
        start: u64,
        /// Its mappings.
        pieces: usize,
    },
    /// No such handle.
    #[error("physical memory {0} does not exist (never allocated, or freed)")]
    NoHandle(u64),
    /// More than the handle has.
    #[error("{size} bytes from {offset} are more than the {whole} bytes of the physical memory")]
    PastHandle {
        /// First byte.
        offset: u64,
        /// Bytes.
        size: u64,
        /// Bytes of the handle.
        whole: u64,
    },
}

/// Physical memory of the session that it maps itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Handle {
    pub(super) physical: PhysAddr,
    pub(super) size: u64,
    /// Pieces that are mapped.
    mapped: u32,
    /// Pieces that are unmapped and still used by work in flight.
    draining: u32,
    /// The client gave it back.
    freed: bool,
    /// Imported: it counts for another session.
    pub(super) borrowed: bool,
}

impl AddressSpace {
    /// Reserves `size` bytes of addresses at `start`, which [`Self::find_gap_aligned`] answered just before, with a window of
    /// the device.
    pub fn reserve(&mut self, start: u64, size: u64, window: PhysAddr) {
        let fresh = Some(Reservation::new(start, size, window));
        let slot = match self.reservations.iter().position(Option::is_none) {
            Some(slot) => {
                self.reservations[slot] = fresh;
                slot
            }
            None => {
                self.reservations.push(fresh);
                self.reservations.len() - 1
            }
        };
        let previous = self.mapped.insert(start, Taken::Reserved(slot as u32));
        assert!(previous.is_none(), "two reservations at {start:#x}");
        self.reserved += 1;
        self.cursor = self.next_free(Taken::Reserved(slot as u32));
    }

    /// Gives a reserved range back.
    ///
    /// # Errors
    /// None begins there; something is mapped in it.
    pub fn release(&mut self, start: u64, mut release: impl FnMut(Released)) -> Result<(), ReserveError> {
        let Some(&Taken::Reserved(slot)) = self.mapped.get(&start) else {
            return Err(ReserveError::NoReservation(start));
        };
        let reservation = self.reservations[slot as usize].as_mut().expect("listed reservations exist");
        if reservation.pieces() > 0 {
            return Err(ReserveError::InUse { start, pieces: reservation.pieces() });
        }
        reservation.released = true;
        self.mapped.remove(&start);
        self.reserved -= 1;
        self.settle(slot, &mut release);
        Ok(())
    }

    /// Notes a physical handle of `size` bytes; its number.
    pub fn add_handle(&mut self, physical: PhysAddr, size: u64) -> u64 {
        self.hold(size);
        self.new_handle(physical, size, false)
    }

    /// As [`Self::add_handle`], for one that counts for another session.
    pub fn borrow_handle(&mut self, physical: PhysAddr, size: u64) -> u64 {
        self.new_handle(physical, size, true)
    }

    fn new_handle(&mut self, physical: PhysAddr, size: u64, borrowed: bool) -> u64 {
        let number = self.next_handle;
        self.next_handle += 1;
        self.handles.insert(number, Handle { physical, size, mapped: 0, draining: 0, freed: false, borrowed });
        number
    }

    /// Gives a physical handle back. While it is mapped, or work in flight uses it, its memory stays.
    ///
    /// # Errors
    /// No such handle.
    pub fn free_handle(&mut self, number: u64, mut release: impl FnMut(Released)) -> Result<(), ReserveError> {
        let handle = self.handles.get_mut(&number).filter(|h| !h.freed).ok_or(ReserveError::NoHandle(number))?;
        handle.freed = true;
        if handle.mapped == 0 && handle.draining > 0 {
            self.unmapped_bytes += footprint(handle.size);
        }
        self.drop_handle(number, &mut release);
        Ok(())
    }

    /// Device memory and bytes of a live handle.
    ///
    /// # Errors
    /// No such handle.
    pub fn handle(&self, number: u64) -> Result<(PhysAddr, u64), ReserveError> {
        let handle = self.handles.get(&number).filter(|h| !h.freed).ok_or(ReserveError::NoHandle(number))?;
        Ok((handle.physical, handle.size))
    }

    /// Checks a mapping of `size` bytes of a handle, from `offset` on, at `addr`; answers where it goes on the device and the
    /// handle's memory.
    ///
    /// # Errors
    /// Says what does not fit; [`ReserveError::Draining`] gets better by itself.
    pub fn check_map(
        &self,
        addr: u64,
        size: u64,
        offset: u64,
        handle: u64,
    ) -> Result<(PhysAddr, PhysAddr), ReserveError> {
        for (what, value, least) in [("address", addr, 1), ("size", size, 1), ("offset", offset, 0)] {
            if value < least || !value.is_multiple_of(HANDLE_BYTES) {
                return Err(ReserveError::Granularity { what, value });
            }
        }
        let (physical, whole) = self.handle(handle)?;
        if offset.checked_add(size).is_none_or(|end| end > whole) {
            return Err(ReserveError::PastHandle { offset, size, whole });
        }
        let outside = ReserveError::Outside { addr, size };
        let Some((_, &Taken::Reserved(slot))) = self.mapped.range(..=addr).next_back() else { return Err(outside) };
        let reservation = self.reservations[slot as usize].as_ref().filter(|r| r.holds(addr, size)).ok_or(outside)?;
        if reservation.is_mapped(addr, size) {
            return Err(ReserveError::Mapped { addr, size });
        }
        if reservation.is_draining(addr, size) {
            return Err(ReserveError::Draining { addr, size });
        }
        Ok((reservation.device_addr(addr), physical))
    }

    /// Notes a mapping that [`Self::check_map`] allowed just before.
    pub fn map_handle(&mut self, addr: u64, size: u64, handle: u64) {
        let Some((_, &Taken::Reserved(slot))) = self.mapped.range(..=addr).next_back() else { return };
        let (Some(reservation), Some(entry)) = (&mut self.reservations[slot as usize], self.handles.get_mut(&handle))
        else {
            return;
        };
        reservation.map(Piece { addr, size, handle });
        entry.mapped += 1;
        self.pieces += 1;
        self.version += 1;
        self.last_stretch = None;
    }

    /// Takes the mapping that begins at `addr` away: no later access resolves to it. Its pages go when work in flight is
    /// through with them.
    ///
    /// # Errors
    /// None begins there.
    pub fn unmap_handle(&mut self, addr: u64, mut release: impl FnMut(Released)) -> Result<(), ReserveError> {
        let Some((_, &Taken::Reserved(slot))) = self.mapped.range(..=addr).next_back() else {
            return Err(ReserveError::NotMapped(addr));
        };
        let reservation = self.reservations[slot as usize].as_mut().expect("listed reservations exist");
        let piece = reservation.unmap(addr).ok_or(ReserveError::NotMapped(addr))?;
        self.last_stretch = None;
        self.pieces -= 1;
        self.version += 1;
        self.draining += 1;
        let handle = self.handles.get_mut(&piece.handle).expect("mapped handles stay");
        handle.mapped -= 1;
        handle.draining += 1;
        if handle.freed && handle.mapped == 0 {
            self.unmapped_bytes += footprint(handle.size);
        }
        self.settle(slot, &mut release);
        Ok(())
    }

    /// Lets go of what no work in flight uses any more.
    pub(super) fn settle(&mut self, slot: u32, release: &mut impl FnMut(Released)) {
        while let Some(reservation) = &mut self.reservations[slot as usize] {
            let Some(piece) = reservation.drained() else { break };
            release(Released::Piece(reservation.device_addr(piece.addr)));
            let handle = self.handles.get_mut(&piece.handle).expect("draining handles stay");
            handle.draining -= 1;
            self.draining -= 1;
            self.drop_handle_pending(piece.handle, release);
        }
        let place = &mut self.reservations[slot as usize];
        if let Some(over) = place.take_if(|r| r.is_over()) {
            release(Released::Window(over.window));
        }
    }

    /// A handle that was waiting for its last use.
    fn drop_handle_pending(&mut self, number: u64, release: &mut impl FnMut(Released)) {
        let Some(handle) = self.handles.get(&number) else { return };
        if handle.freed && handle.mapped + handle.draining == 0 {
            self.unmapped_bytes -= footprint(handle.size);
            self.drop_handle(number, release);
        }
    }

    fn drop_handle(&mut self, number: u64, release: &mut impl FnMut(Released)) {
        let Some(handle) = self.handles.get(&number) else { return };
        if handle.freed && handle.mapped + handle.draining == 0 {
            if !handle.borrowed {
                self.held_bytes -= footprint(handle.size);
            }
            release(Released::Handle(handle.physical));
            self.handles.remove(&number);
        }
    }
}

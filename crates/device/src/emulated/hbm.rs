//! The memory of a functional device: one mapping ([`super::mapping`]), reached by physical address.
//!
//! Ordinary memory is private, anonymous and reserves no swap, so a 64 GiB device costs what is really touched; the kernel
//! hands out its pages zeroed. Behind it lies the aperture, of which only windows with something mapped in them may be touched;
//! the runtime resolves addresses to nothing else. Physical addresses start at [`PHYS_BASE`], far from 0 and from any client's virtual range, so that an
//! address that was never translated is refused instead of landing somewhere.
//!
//! **Ownership:** exactly one [`Hbm`] exists for a device and the thread that executes commands owns it. Reading takes
//! `&Hbm`, writing takes `&mut Hbm`: the borrow checker sees to it that no kernel writes memory that it, or a helper
//! thread, is reading. All `unsafe` about device memory is in this file.

use std::sync::Arc;

use bytemuck::Pod;
use rustix::mm::{Advice, madvise};

use crate::command::HostBytes;
use crate::interface::PhysAddr;

use super::mapping::Mapping;

/// Physical address of the first byte of device memory.
pub const PHYS_BASE: u64 = 1 << 44;

/// Ranges from this size on are zeroed by giving their pages back instead of writing them: the gain over writing starts
/// at a few pages, and giving back shrinks the process.
pub const DROP_PAGES_BYTES_MIN: usize = 256 * 1024;

/// Host page size that page-wise operations assume; larger pages make them refuse, which falls back to writing.
const PAGE_BYTES: usize = 4096;

/// A byte range that is not in the device's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{len} bytes at physical address {addr:#x} are outside the device's {total} bytes")]
pub struct OutOfBounds {
    addr: u64,
    len: u64,
    total: u64,
}

/// Offset from the start of memory of `len` bytes at `addr`, checked against a memory of `total` bytes.
pub fn offset_of(addr: PhysAddr, len: u64, total: u64) -> Result<u64, OutOfBounds> {
    addr.0
        .checked_sub(PHYS_BASE)
        .filter(|offset| offset.checked_add(len).is_some_and(|end| end <= total))
        .ok_or(OutOfBounds { addr: addr.0, len, total })
}

/// Device memory.
#[derive(Debug)]
pub struct Hbm {
    /// Kept alive, and shared with whoever maps windows.
    mapping: Arc<Mapping>,
    base: *mut u8,
    len: usize,
}

// SAFETY: the mapping's bytes belong to this value alone, are not tied to a thread, and are only reached through `&self` and
// `&mut self`, which follow the usual rules; `super::mapping` says when its pages may change.
unsafe impl Send for Hbm {}
// SAFETY: as above; `&self` only reads.
unsafe impl Sync for Hbm {}

impl Hbm {
    /// `len` bytes of zeros, rounded up to whole pages, without an aperture.
    ///
    /// # Errors
    /// What the system says, where so much address space cannot be had.
    #[cfg(test)]
    pub fn new(len: u64) -> std::io::Result<Self> {
        let len = usize::try_from(len).ok().and_then(|len| len.max(1).checked_next_multiple_of(PAGE_BYTES));
        let len = len.ok_or_else(|| std::io::Error::other("more than the address space"))?;
        Ok(Self::of(Arc::new(Mapping::new(len, 0)?)))
    }

    /// The memory and the aperture of `mapping`. There must be no other value for it.
    pub fn of(mapping: Arc<Mapping>) -> Self {
        Self { base: mapping.base(), len: mapping.span(), mapping }
    }

    /// The pages.
    pub fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    /// Bytes of memory and aperture.
    pub fn len(&self) -> u64 {
        self.len as u64
    }

    /// Offset of `len` bytes at `addr` that may be touched: in memory, or in windows where handles are mapped. Every command
    /// is checked with it before it runs, so that an address of the aperture where nothing is mapped is an error too.
    ///
    /// # Errors
    /// If the range is anywhere else.
    pub fn locate(&self, addr: PhysAddr, len: u64) -> Result<usize, OutOfBounds> {
        let offset = offset_of(addr, len, self.len())? as usize;
        let total = self.mapping.memory() as u64;
        self.mapping.is_accessible(offset, len as usize).then_some(offset).ok_or(OutOfBounds {
            addr: addr.0,
            len,
            total,
        })
    }

    /// All of memory, to read.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `base..base + len` is ours until `drop` and only written through `&mut self`. Memory and windows with
        // something mapped in them are readable and initialised (to zeros at least); the rest of the aperture is never
        // indexed, because every command is checked with `locate` first.
        unsafe { std::slice::from_raw_parts(self.base, self.len) }
    }

    /// All of memory, to write.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; `&mut self` makes it the only access.
        unsafe { std::slice::from_raw_parts_mut(self.base, self.len) }
    }

    /// All of memory as elements of one type, to read.
    pub fn elements<E: Pod>(&self) -> &[E] {
        bytemuck::cast_slice(self.bytes())
    }

    /// All of memory as elements of one type, to write.
    pub fn elements_mut<E: Pod>(&mut self) -> &mut [E] {
        bytemuck::cast_slice_mut(self.bytes_mut())
    }

    /// Zeroes `len` bytes from `offset`: large ranges by giving whole pages back to the system, which fills them with zeros when
    /// they are touched again. An engine zeroes gigabytes of cache before it uses any.
    ///
    /// # Panics
    /// If the range is outside of memory.
    pub fn zero(&mut self, offset: usize, len: usize) {
        let (start, end) = (offset.next_multiple_of(PAGE_BYTES), (offset + len) / PAGE_BYTES * PAGE_BYTES);
        // Windows show pages of a file: dropping them from this mapping would not zero them, taking them out of the file does.
        let private = offset + len <= self.mapping.memory();
        let advice = if private { Advice::LinuxDontNeed } else { Advice::LinuxRemove };
        if len >= DROP_PAGES_BYTES_MIN {
            // SAFETY: the pages lie inside our own mapping, in memory or in windows where something is mapped, which
            // `&mut self` lends us alone; afterwards they read as zeros. Where the system refuses, they are written below.
            let dropped = unsafe { madvise(self.base.add(start).cast(), end - start, advice) };
            if dropped.is_ok() {
                self.bytes_mut()[offset..start].fill(0);
                self.bytes_mut()[end..offset + len].fill(0);
                return;
            }
        }
        self.bytes_mut()[offset..offset + len].fill(0);
    }

    /// Sets `len` bytes at `addr` to `value`.
    ///
    /// # Errors
    /// If the range is outside of memory.
    pub fn fill(&mut self, addr: PhysAddr, len: u64, value: u8) -> Result<(), OutOfBounds> {
        let offset = self.locate(addr, len)?;
        if value == 0 {
            self.zero(offset, len as usize);
        } else {
            self.bytes_mut()[offset..offset + len as usize].fill(value);
        }
        Ok(())
    }

    /// Copies all of `source` to `dst`.
    ///
    /// # Errors
    /// If the range is outside of memory.
    pub fn copy_in(&mut self, dst: PhysAddr, source: &HostBytes) -> Result<(), OutOfBounds> {
        let offset = self.locate(dst, source.len() as u64)?;
        // SAFETY: the source is valid for its length (our vector, or what `HostBytes::shared` promised), the target was
        // checked just now; host memory never overlaps our mapping. Bytes that a peer changes meanwhile only make its
        // own data garbage.
        unsafe { std::ptr::copy_nonoverlapping(source.as_ptr(), self.base.add(offset), source.len()) };
        Ok(())
    }

    /// Fills all of `dst` from `src`.
    ///
    /// # Errors
    /// If the range is outside of memory.
    pub fn copy_out(&self, dst: &mut HostBytes, src: PhysAddr) -> Result<(), OutOfBounds> {
        let len = dst.len();
        let offset = self.locate(src, len as u64)?;
        // SAFETY: as in `copy_in`, with the roles exchanged; `dst` may be written (ours, or promised in `shared`).
        unsafe { std::ptr::copy_nonoverlapping(self.base.add(offset), dst.as_mut_ptr(), len) };
        Ok(())
    }

    /// Copies within the device; ranges may overlap.
    ///
    /// # Errors
    /// If either range is outside of memory.
    pub fn copy_within(&mut self, dst: PhysAddr, src: PhysAddr, len: u64) -> Result<(), OutOfBounds> {
        let to = self.locate(dst, len)?;
        let from = self.locate(src, len)?;
        self.bytes_mut().copy_within(from..from + len as usize, to);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_device_reserves_nothing() {
        let mut hbm = Hbm::new(64 << 30).unwrap();
        let far = PhysAddr(PHYS_BASE + (63 << 30));
        hbm.copy_in(far, &HostBytes::owned(vec![7; 3])).unwrap();
        let mut back = HostBytes::owned(vec![0; 4]);
        hbm.copy_out(&mut back, far).unwrap();
        assert_eq!(back.as_owned(), Some(&[7, 7, 7, 0][..]));
    }

    #[test]
    fn zeroed_ranges_read_as_zeros_and_touch_nothing_else() {
        let mut hbm = Hbm::new(4 << 20).unwrap();
        for (offset, len) in [(10, 5), (4096, 4096), (100, DROP_PAGES_BYTES_MIN), (4095, DROP_PAGES_BYTES_MIN * 2 + 2)]
        {
            hbm.bytes_mut().fill(1);
            hbm.zero(offset, len);
            let zeros = hbm.bytes().iter().filter(|&&b| b == 0).count();
            assert!(hbm.bytes()[offset..offset + len].iter().all(|&b| b == 0));
            assert_eq!(zeros, len);
        }
    }

    /// Resident bytes of the mapping that holds this byte, from the system's own books.
    fn resident(hbm: &Hbm, offset: usize) -> u64 {
        let at = hbm.base as usize + offset;
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut inside = false;
        for line in maps.lines() {
            if let Some((range, _)) = line.split_once(' ')
                && let Some((start, end)) = range.split_once('-')
                && let (Ok(start), Ok(end)) = (usize::from_str_radix(start, 16), usize::from_str_radix(end, 16))
            {
                inside = (start..end).contains(&at);
            } else if inside && let Some(kib) = line.strip_prefix("Rss:") {
                return kib.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10;
            }
        }
        panic!("the mapping is not listed");
    }

    #[test]
    fn zeroing_a_large_range_gives_its_pages_back() {
        // Larger than what other tests map beside it, as neighbouring mappings may be listed as one.
        let size = 256usize << 20;
        let mut hbm = Hbm::new(2 << 30).unwrap();
        hbm.fill(PhysAddr(PHYS_BASE + 100), size as u64, 1).unwrap();
        let before = resident(&hbm, 0);
        hbm.zero(100, size);
        assert!(before >= size as u64 && resident(&hbm, 0) <= before - (size as u64 * 9 / 10));
    }

    #[test]
    fn zeroing_a_large_part_of_a_window_takes_its_pages_out_of_the_file() {
        let (memory, size) = (64usize << 20, 32usize << 20);
        let mapping = Arc::new(Mapping::new(memory, 256 << 20).unwrap());
        mapping.map(memory, 0, size).unwrap();
        // A second window onto the same handle: it shows what is in the file.
        let again = memory + (128 << 20);
        mapping.map(again, 0, size).unwrap();
        let mut hbm = Hbm::of(mapping);
        hbm.bytes_mut()[memory..memory + size].fill(1);
        let before = resident(&hbm, memory);
        let (from, len) = (memory + 100, size - 8192);
        hbm.zero(from, len);
        assert!(before >= size as u64 && resident(&hbm, memory) <= before / 10, "{} bytes", resident(&hbm, memory));
        for window in [memory, again] {
            let bytes = &hbm.bytes()[window..window + size];
            assert!(bytes[100..100 + len].iter().all(|&b| b == 0));
            assert!(bytes[..100].iter().chain(&bytes[100 + len..]).all(|&b| b == 1));
        }
    }

    #[test]
    fn addresses_outside_are_refused() {
        let mut hbm = Hbm::new(1 << 20).unwrap();
        let at = |offset: u64| PhysAddr(PHYS_BASE + offset);
        assert!(hbm.fill(at(0), 1 << 20, 3).is_ok());
        for (addr, len) in [
            (at(1), 1 << 20),
            (PhysAddr(0), 1),
            (PhysAddr(PHYS_BASE - 1), 1),
            (at(8), u64::MAX),
            (at(u64::MAX - PHYS_BASE), 1),
        ] {
            let error = hbm.fill(addr, len, 0).unwrap_err();
            assert!(error.to_string().contains("outside the device's 1048576 bytes"), "{error}");
            assert!(hbm.copy_within(at(0), addr, len).is_err());
            assert!(hbm.copy_within(addr, at(0), len).is_err());
        }
        assert!(hbm.copy_in(at((1 << 20) - 1), &HostBytes::owned(vec![1, 2])).is_err());
        assert!(hbm.copy_out(&mut HostBytes::owned(vec![1, 2]), at((1 << 20) - 1)).is_err());
    }
}

//! The [`Device`] trait: the same few calls for every backend.

use sched::{CoreSplit, Nanos, Phase, Work};

use crate::command::Command;
use crate::error::{DeviceError, OpError};

/// Unit of page-wise memory ([`Device::map`]): every host's page size divides it.
pub const PAGE_BYTES: u64 = 64 << 10;

/// An address in a device's physical memory, in bytes. 0 is never a valid one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PhysAddr(pub u64);

impl PhysAddr {
    /// The address `bytes` further on; `None` on overflow.
    pub fn checked_add(self, bytes: u64) -> Option<Self> {
        self.0.checked_add(bytes).map(Self)
    }
}

/// Whether operators are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compute {
    /// Right results, on the CPU.
    Functional,
    /// No arithmetic; memory is never touched and reads back as zeros.
    Timing,
}

/// What a device is.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceInfo {
    /// SoC name that applications see, `Ascend910B3`.
    pub soc_name: String,
    /// Bytes of device memory.
    pub hbm_bytes: u64,
    /// Name of the profile that paces or weighs operators.
    pub profile_name: String,
    /// Whether operators are computed.
    pub compute: Compute,
    /// Whether completions follow the modelled device's time.
    pub paced: bool,
    /// What to write beside a measurement: `emulated Ascend910B3, timing, paced, ω=0.5`.
    pub label: String,
}

/// Device memory in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Not allocated. It may be fragmented.
    pub free: u64,
    /// All there is.
    pub total: u64,
}

/// The end of one command.
#[derive(Debug)]
pub struct Completion {
    /// The caller's name for the command.
    pub token: u64,
    /// When it was complete: the modelled time where the device is paced.
    pub at: Nanos,
    /// Whether it worked.
    pub result: Result<(), OpError>,
    /// How much of a data-dependent output the operator filled (`acl_abi::extent`); `None` for every other operator, and
    /// where nothing is computed.
    pub extent: Option<u64>,
    /// The command, given back so that its buffers can be used again. A [`Command::CopyOut`] into owned bytes has
    /// them filled.
    pub cmd: Box<Command>,
}

/// Something that executes operators. Owned and called by one thread.
pub trait Device: Send {
    /// What it is.
    fn info(&self) -> &DeviceInfo;

    /// Takes `bytes` of memory, 512-byte aligned and reading as zeros. 0 bytes take one granule.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`].
    fn alloc(&mut self, bytes: u64) -> Result<PhysAddr, DeviceError>;

    /// Gives an allocation back. Every command that names it must have completed, or have been submitted before; a
    /// later allocation of the same range never sees its contents.
    ///
    /// # Panics
    /// If `addr` is not the start of a live allocation: a bug of the caller.
    fn free(&mut self, addr: PhysAddr);

    /// Takes `bytes` of page-wise memory: a physical handle, which reads as zeros. It is not addressed by the answer, which
    /// only names it: commands reach it where [`Device::map`] puts it.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`].
    fn alloc_handle(&mut self, bytes: u64) -> Result<PhysAddr, DeviceError>;

    /// Gives a handle back. Nothing of it may be mapped any more; as for [`Device::free`] otherwise.
    ///
    /// # Panics
    /// If `handle` names no live handle: a bug of the caller.
    fn free_handle(&mut self, handle: PhysAddr);

    /// A window of `bytes` addresses, beyond all memory, into which handles can be mapped. Costs no memory.
    ///
    /// # Errors
    /// [`DeviceError::OutOfAddresses`].
    fn reserve(&mut self, bytes: u64) -> Result<PhysAddr, DeviceError>;

    /// Makes `bytes` bytes of `handle`, from `offset` on, appear at `at`, inside one window. Everything is a multiple of
    /// [`PAGE_BYTES`]. Mapped side by side, handles are one range for every command.
    ///
    /// # Errors
    /// [`DeviceError::Map`]; nothing is mapped then.
    ///
    /// # Panics
    /// If the target is not an unmapped part of a window, or the source is not inside the handle: a bug of the caller.
    fn map(&mut self, at: PhysAddr, handle: PhysAddr, offset: u64, bytes: u64) -> Result<(), DeviceError>;

    /// Undoes the [`Device::map`] at `at`. Every command that names these addresses must have completed.
    ///
    /// # Panics
    /// If nothing was mapped at `at`: a bug of the caller.
    fn unmap(&mut self, at: PhysAddr);

    /// Gives a window back, with everything still mapped in it. Commands that name it must have completed or have been
    /// submitted before.
    ///
    /// # Panics
    /// If no window begins at `at`: a bug of the caller.
    fn release(&mut self, at: PhysAddr);

    /// Free and total memory.
    fn memory(&self) -> Memory;

    /// Queues `cmd` on physical stream `stream` (any number that the caller chooses; state is kept only while the stream
    /// has work). It starts at `at` or when its predecessor on the stream ends, whichever is later. `at` must not lie
    /// before a time that [`Device::advance`] has reported a completion for; an earlier `at` counts as that time.
    ///
    /// `work` and `phase` feed the model; addresses in `cmd` are physical.
    #[allow(clippy::too_many_arguments)]
    fn submit(&mut self, at: Nanos, stream: u32, token: u64, phase: Phase, work: Work, cmd: Box<Command>);

    /// Splits the cores between phases for commands submitted from now on; `None` gives every command all of them. Matters
    /// where time is modelled; results never depend on it.
    fn set_core_split(&mut self, split: Option<CoreSplit>);

    /// Appends every completion up to and including `until`, in order of time. Modelled time never passes `until`, and
    /// calling late changes no completion's time.
    fn advance(&mut self, until: Nanos, out: &mut Vec<Completion>);

    /// Time of the earliest completion that [`Device::advance`] would report if nothing else is submitted: `None`
    /// when idle, or when only a worker thread knows (then the `doorbell` rings).
    fn next_completion(&self) -> Option<Nanos>;
}

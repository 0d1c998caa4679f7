//! What a device refuses, and how an operator fails.

/// A device that cannot be made, or memory that cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// No free range is large enough.
    #[error(
        "out of device memory: {wanted} bytes wanted, {free} of {total} free, the largest free range has {largest}"
    )]
    OutOfMemory {
        /// Bytes asked for, rounded up to the allocation granule.
        wanted: u64,
        /// Free bytes in all.
        free: u64,
        /// Bytes of the largest free range.
        largest: u64,
        /// Bytes of the device.
        total: u64,
    },
    /// No addresses are left for another window.
    #[error("no device addresses are left to reserve: {wanted} bytes wanted, {free} free")]
    OutOfAddresses {
        /// Bytes asked for.
        wanted: u64,
        /// Free bytes in all.
        free: u64,
    },
    /// Memory could not be mapped into a window.
    #[error("cannot map {bytes} bytes of device memory: {reason}")]
    Map {
        /// Bytes wanted.
        bytes: u64,
        /// What the system said, or which bound was reached.
        reason: String,
    },
    /// No profile describes the SoC.
    #[error("unknown SoC {name:?}; known: {known}")]
    UnknownSoc {
        /// What was asked for.
        name: String,
        /// Names that exist, separated by commas.
        known: String,
    },
    /// The address range for the emulated memory could not be reserved.
    #[error(
        "cannot reserve {bytes} bytes of address space for device memory: {reason}; ask for a smaller device with `:hbm=GiB`"
    )]
    Reserve {
        /// Bytes wanted.
        bytes: u64,
        /// What the system said.
        reason: String,
    },
    /// A thread could not be started.
    #[error("cannot start the device's worker thread: {reason}")]
    Thread {
        /// What the system said.
        reason: String,
    },
}

/// Why an operator or a copy failed: the text that `aclGetRecentErrMsg` will show.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct OpError {
    /// Begins with the operator's name, `aclnnMatmul: …`.
    pub text: String,
}

impl OpError {
    /// An error with this text.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into() }
    }
}

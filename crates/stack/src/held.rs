//! What a process holds of the system's resources, read from `/proc`: for tests that look for leaks.

use anyhow::{Context, Result};

/// What a process holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Open file descriptors.
    pub descriptors: usize,
    /// Threads.
    pub threads: u64,
    /// Mappings of its address space.
    pub mappings: usize,
    /// Resident memory, KiB.
    pub resident_kib: u64,
}

impl Held {
    /// What process `pid` holds now.
    ///
    /// # Errors
    /// If it has ended or belongs to another user.
    pub fn by(pid: u32) -> Result<Self> {
        let read = |name: &str| {
            let path = format!("/proc/{pid}/{name}");
            std::fs::read_to_string(&path).with_context(|| path)
        };
        let status = read("status")?;
        let field = |name: &str| -> Result<u64> {
            let value = status.lines().find_map(|l| l.strip_prefix(name)?.split_whitespace().next());
            value.and_then(|v| v.parse().ok()).with_context(|| format!("no {name} in the status of process {pid}"))
        };
        Ok(Self {
            descriptors: std::fs::read_dir(format!("/proc/{pid}/fd"))?.count(),
            threads: field("Threads:")?,
            mappings: read("maps")?.lines().count(),
            resident_kib: field("VmRSS:")?,
        })
    }
}

//! Executes one command on device memory.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::command::Command;
use crate::error::OpError;
use crate::interface::PhysAddr;

use super::hbm::{Hbm, OutOfBounds, offset_of};
use super::kernels::{self, Machine};
use super::pool::Pool;

/// Memory and everything a kernel needs besides its arguments. Owned by the worker thread.
pub struct Executor {
    machine: Machine,
}

impl Executor {
    /// An executor on `hbm` with these threads.
    pub fn new(hbm: Hbm, pool: Pool) -> Self {
        Self { machine: Machine::new(hbm, pool) }
    }

    /// Zeroes `bytes` bytes from `offset`.
    pub fn scrub(&mut self, offset: usize, bytes: usize) {
        self.machine.hbm.zero(offset, bytes);
    }

    /// Takes access to a window away.
    pub fn unmap(&mut self, offset: usize, bytes: usize) {
        self.machine.hbm.mapping().unmap(offset, bytes);
    }

    /// Zeroes `bytes` bytes of the handle file from `from`.
    pub fn punch(&mut self, from: u64, bytes: u64) {
        self.machine.hbm.mapping().punch(from, bytes);
    }

    /// Executes `cmd`; the extent that it found, if it is an operator that finds one. A panic inside a kernel is a defect of
    /// ours; it becomes this command's error.
    ///
    /// # Errors
    /// With the operator's name and the reason.
    pub fn run(&mut self, cmd: &mut Command) -> Result<Option<u64>, OpError> {
        let name = cmd.name();
        let outcome = catch_unwind(AssertUnwindSafe(|| self.dispatch(cmd)));
        outcome.unwrap_or_else(|_| Err(OpError::new(format!("{name}: internal error: the emulated kernel panicked"))))
    }

    fn dispatch(&mut self, cmd: &mut Command) -> Result<Option<u64>, OpError> {
        let name = cmd.name();
        let bounds = |error: OutOfBounds| OpError::new(format!("{name}: {error}"));
        let hbm = &mut self.machine.hbm;
        match cmd {
            Command::Op(call) => {
                for tensor in &call.tensors {
                    // What describes no range, or one that is not the device's, is refused by the kernel, which knows the
                    // parameter's name; here it is about the holes in the aperture.
                    let Ok(Some((first, end))) = tensor.byte_span() else { continue };
                    let Some(at) = tensor.addr.checked_add(first).map(PhysAddr) else { continue };
                    if offset_of(at, end - first, hbm.len()).is_ok() {
                        hbm.locate(at, end - first).map_err(bounds)?;
                    }
                }
                kernels::run(call, &mut self.machine)?;
                return Ok(self.machine.extent.take());
            }
            Command::CopyIn { dst, source } => hbm.copy_in(*dst, source).map_err(bounds),
            Command::CopyOut { dst, src } => hbm.copy_out(dst, *src).map_err(bounds),
            Command::CopyDevice { dst, src, len } => hbm.copy_within(*dst, *src, *len).map_err(bounds),
            Command::Fill { addr, len, value } => hbm.fill(*addr, *len, *value).map_err(bounds),
            Command::Combine(c) => super::combine::run(c, hbm).map_err(bounds),
        }
        .map(|()| None)
    }
}

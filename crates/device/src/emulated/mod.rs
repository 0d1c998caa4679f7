//! The emulated device: an Ascend die made of host memory, CPU arithmetic and modelled time.
//!
//! Two independent switches. *Compute*: functional commands run on a worker thread over one mapping; timing
//! commands run nowhere and memory does not exist, so that a model larger than the host fits. *Pace*: completions
//! follow [`model`], or nothing. A functional, paced completion is visible once both the model and the worker are
//! through; the model never waits for the worker.
//!
//! | | unpaced | paced |
//! |---|---|---|
//! | timing | complete at submission | complete when modelled |
//! | functional | complete when computed, reported with the time of the asking | the later of both |
//!
//! **Ownership:** the caller's thread owns [`Emulated`]; the worker owns memory ([`hbm`]). They exchange commands and
//! results, nothing else; and the caller's thread changes what windows show ([`mapping`]) while no command names them.

mod aperture;
mod combine;
mod execute;
mod hbm;
mod kernels;
mod mapping;
mod memory;
pub mod model;
mod pool;
mod worker;

use std::sync::Arc;

use sched::{CoRun, Nanos, Phase, Profile, Work};

use crate::command::Command;
use crate::error::{DeviceError, OpError};
use crate::interface::{Completion, Compute, Device, DeviceInfo, Memory, PAGE_BYTES, PhysAddr};

use aperture::{APERTURE_BYTES, APERTURE_BYTES_MIN, Aperture};
use execute::Executor;
use hbm::{Hbm, PHYS_BASE};
use mapping::Mapping;
use memory::Ranges;
use model::{Id, Model};
use pool::Pool;
use worker::{Finished, Job, Worker};

/// How to make an emulated device.
pub struct EmulatedConfig {
    /// `Ascend910B3`, or a profile's short name.
    pub soc_name: String,
    /// Whether operators are computed.
    pub compute: Compute,
    /// Whether completions follow the model.
    pub pace: bool,
    /// Contention, where paced.
    pub corun: CoRun,
    /// Bytes of device memory; the profile's where `None`.
    pub hbm_bytes: Option<u64>,
    /// Called from the worker thread when results wait and nobody knows: wakes whoever calls [`Device::advance`].
    pub doorbell: Arc<dyn Fn() + Send + Sync>,
}

/// An emulated device.
pub struct Emulated {
    info: DeviceInfo,
    ranges: Ranges,
    aperture: Aperture,
    model: Option<Model>,
    worker: Option<Worker>,
    entries: Vec<Entry>,
    vacant: Vec<Id>,
    /// Commands whose modelled time has come but that are not reported yet, in modelled order.
    due: Vec<(Nanos, Id)>,
    finished: Vec<Finished>,
    /// Streams that a late command was reported for in the present call, and when.
    late: Vec<(u32, Nanos)>,
}

/// A command in flight.
struct Entry {
    token: u64,
    stream: u32,
    /// The command, while no worker has it.
    cmd: Option<Box<Command>>,
    result: Option<Result<Option<u64>, OpError>>,
    /// The model was through when somebody asked, the worker was not.
    late: bool,
}

impl Emulated {
    /// Makes the device.
    ///
    /// # Errors
    /// If no profile has that name, or address space or a thread cannot be had.
    pub fn new(config: EmulatedConfig) -> Result<Self, DeviceError> {
        let EmulatedConfig { soc_name, compute, pace, corun, hbm_bytes, doorbell } = config;
        let Some(profile) = Profile::by_soc_name(&soc_name) else {
            let known: Vec<_> = Profile::ALL.iter().map(|p| p.soc_name).collect();
            return Err(DeviceError::UnknownSoc { name: soc_name, known: known.join(", ") });
        };
        let ranges = Ranges::new(hbm_bytes.unwrap_or(profile.hbm_capacity_bytes));
        let bytes = ranges.total_bytes();
        let start = bytes.max(1).next_multiple_of(PAGE_BYTES);
        let mapping = match compute {
            Compute::Timing => None,
            Compute::Functional => Some(Arc::new(map(start)?)),
        };
        let span = mapping.as_ref().map_or(start + APERTURE_BYTES, |m| m.span() as u64);
        let aperture = Aperture::new(start, span - start, mapping.clone());
        let worker = match mapping {
            None => None,
            Some(mapping) => {
                let worker = Worker::spawn(Executor::new(Hbm::of(mapping), Pool::new()), doorbell);
                let worker = worker.map_err(|e| DeviceError::Thread { reason: e.to_string() })?;
                if !pace {
                    worker.arm();
                }
                Some(worker)
            }
        };
        let soc_name = if soc_name == profile.name { profile.soc_name.to_owned() } else { soc_name };
        let label = format!(
            "emulated {soc_name}, {}, {}",
            match compute {
                Compute::Functional => "functional",
                Compute::Timing => "timing",
            },
            if pace { format!("paced, ω={}", corun.omega) } else { "unpaced".into() }
        );
        let info =
            DeviceInfo { soc_name, hbm_bytes: bytes, profile_name: profile.name.into(), compute, paced: pace, label };
        Ok(Self {
            info,
            ranges,
            aperture,
            model: pace.then(|| Model::new(profile, corun)),
            worker,
            entries: Vec::new(),
            vacant: Vec::new(),
            due: Vec::new(),
            finished: Vec::new(),
            late: Vec::new(),
        })
    }

    fn enter(&mut self, entry: Entry) -> Id {
        match self.vacant.pop() {
            Some(id) => {
                self.entries[id as usize] = entry;
                id
            }
            None => {
                self.entries.push(entry);
                (self.entries.len() - 1) as Id
            }
        }
    }

    /// Takes the worker's results into the entries; answers how many there were.
    fn collect(&mut self) -> usize {
        let Some(worker) = &self.worker else { return 0 };
        worker.take_finished(&mut self.finished);
        let count = self.finished.len();
        for Finished { id, result, cmd } in self.finished.drain(..) {
            let entry = &mut self.entries[id as usize];
            entry.result = Some(result);
            entry.cmd = Some(cmd);
            if self.model.is_none() {
                self.due.push((0, id));
            }
        }
        count
    }
}

/// Memory of `bytes` and the largest aperture that the system gives.
fn map(bytes: u64) -> Result<Mapping, DeviceError> {
    let mut aperture = APERTURE_BYTES;
    loop {
        match Mapping::new(bytes as usize, aperture as usize) {
            Ok(mapping) => return Ok(mapping),
            Err(_) if aperture / 2 >= APERTURE_BYTES_MIN => aperture /= 2,
            Err(e) => return Err(DeviceError::Reserve { bytes, reason: e.to_string() }),
        }
    }
}

/// What a device without memory answers.
fn without_computing(cmd: &mut Command, total: u64, aperture: &Aperture) -> Result<Option<u64>, OpError> {
    let name = cmd.name();
    let check = |addr: PhysAddr, len: u64| match hbm::offset_of(addr, len, total) {
        Err(_) if aperture.is_mapped(addr.0.wrapping_sub(PHYS_BASE), len) => Ok(()),
        found => found.map(|_| ()).map_err(|e| OpError::new(format!("{name}: {e}"))),
    };
    match cmd {
        Command::Op(_) => Ok(()),
        Command::CopyIn { dst, source } => check(*dst, source.len() as u64),
        Command::CopyOut { dst, src } => {
            check(*src, dst.len() as u64)?;
            dst.zero();
            Ok(())
        }
        Command::CopyDevice { dst, src, len } => check(*dst, *len).and_then(|()| check(*src, *len)),
        Command::Fill { addr, len, .. } => check(*addr, *len),
        Command::Combine(c) => check(c.dst, c.len).and_then(|()| check(c.own, c.len)),
    }
    .map(|()| None)
}

impl Device for Emulated {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn alloc(&mut self, bytes: u64) -> Result<PhysAddr, DeviceError> {
        match self.ranges.alloc(bytes) {
            Ok(offset) => Ok(PhysAddr(PHYS_BASE + offset)),
            Err(memory::Exhausted { wanted, free, largest }) => {
                Err(DeviceError::OutOfMemory { wanted, free, largest, total: self.ranges.total_bytes() })
            }
        }
    }

    fn free(&mut self, addr: PhysAddr) {
        let offset = addr.0.wrapping_sub(PHYS_BASE);
        let len = self.ranges.release(offset);
        let len = len.unwrap_or_else(|| panic!("free of {:#x}, which is not the start of an allocation", addr.0));
        if let Some(worker) = &self.worker {
            // Whatever reads the range next was submitted later, so it runs after this.
            worker.push(Job::Scrub(offset as usize, len as usize));
        }
    }

    fn alloc_handle(&mut self, bytes: u64) -> Result<PhysAddr, DeviceError> {
        let len = bytes.max(1).checked_next_multiple_of(PAGE_BYTES).unwrap_or(bytes);
        match self.ranges.alloc_aligned(len, PAGE_BYTES) {
            Ok(offset) => Ok(PhysAddr(PHYS_BASE + offset)),
            Err(memory::Exhausted { wanted, free, largest }) => {
                Err(DeviceError::OutOfMemory { wanted, free, largest, total: self.ranges.total_bytes() })
            }
        }
    }

    fn free_handle(&mut self, handle: PhysAddr) {
        let offset = handle.0.wrapping_sub(PHYS_BASE);
        let len = self.ranges.release(offset);
        let len = len.unwrap_or_else(|| panic!("free of {:#x}, which is not the start of a handle", handle.0));
        if let Some(worker) = &self.worker {
            worker.push(Job::Punch(offset, len));
        }
    }

    fn reserve(&mut self, bytes: u64) -> Result<PhysAddr, DeviceError> {
        self.aperture.reserve(bytes)
    }

    fn map(&mut self, at: PhysAddr, handle: PhysAddr, offset: u64, bytes: u64) -> Result<(), DeviceError> {
        self.aperture.map(at, handle.0 - PHYS_BASE + offset, bytes)
    }

    fn unmap(&mut self, at: PhysAddr) {
        self.aperture.unmap(at);
    }

    fn release(&mut self, at: PhysAddr) {
        if let (Some((offset, len)), Some(worker)) = (self.aperture.release(at), &self.worker) {
            worker.push(Job::Unmap(offset, len, self.aperture.key(offset), self.aperture.unmapped()));
        }
    }

    fn memory(&self) -> Memory {
        Memory { free: self.ranges.free_bytes(), total: self.ranges.total_bytes() }
    }

    fn submit(&mut self, at: Nanos, stream: u32, token: u64, phase: Phase, work: Work, mut cmd: Box<Command>) {
        let entry = |cmd, result| Entry { token, stream, cmd, result, late: false };
        let id = match &self.worker {
            None => {
                let result = without_computing(&mut cmd, self.ranges.total_bytes(), &self.aperture);
                self.enter(entry(Some(cmd), Some(result)))
            }
            Some(_) => {
                let id = self.enter(entry(None, None));
                if let Some(worker) = &self.worker {
                    worker.push(Job::Run(id, cmd));
                }
                id
            }
        };
        match &mut self.model {
            Some(model) => model.submit(at, stream, id, phase, &work),
            None if self.worker.is_none() => self.due.push((at, id)),
            None => {}
        }
    }

    fn set_core_split(&mut self, split: Option<sched::CoreSplit>) {
        if let Some(model) = &mut self.model {
            model.set_core_split(split);
        }
    }

    fn advance(&mut self, until: Nanos, out: &mut Vec<Completion>) {
        let first = out.len();
        if let Some(model) = &mut self.model {
            model.run_until(until);
            while let Some(end) = model.take_ended(until) {
                self.due.push(end);
            }
        }
        self.collect();
        loop {
            self.report(until, out);
            // Without a model every result is awaited; with one, those whose time has come.
            let awaited = self.model.is_none() || self.due.iter().any(|&(at, _)| at <= until);
            let Some(worker) = self.worker.as_ref().filter(|_| awaited) else { break };
            if !worker.arm() || self.collect() == 0 {
                break;
            }
        }
        self.late.clear();
        if !out[first..].is_sorted_by_key(|c| c.at) {
            out[first..].sort_by_key(|c| c.at);
        }
    }

    fn next_completion(&self) -> Option<Nanos> {
        let asked = self.due.iter().find(|&&(_, id)| !self.entries[id as usize].late).map(|&(at, _)| at);
        let modelled = self.model.as_ref().and_then(Model::next_end);
        asked.into_iter().chain(modelled).min()
    }
}

impl Emulated {
    /// Reports what is due by `until` and computed; marks what is due only.
    fn report(&mut self, until: Nanos, out: &mut Vec<Completion>) {
        let Self { due, entries, vacant, late, worker, model, .. } = self;
        let untimed = model.is_none() && worker.is_some();
        due.retain(|&(due_at, id)| {
            if due_at > until {
                return true;
            }
            let entry = &mut entries[id as usize];
            let Some(result) = entry.result.take() else {
                entry.late = true;
                return true;
            };
            let Some(cmd) = entry.cmd.take() else { return false };
            let mut at = if untimed || entry.late { until } else { due_at };
            // A command never completes before its predecessor, which may have been late.
            if let Some(&(_, late_at)) = late.iter().find(|l| l.0 == entry.stream) {
                at = at.max(late_at);
            } else if entry.late {
                late.push((entry.stream, at));
            }
            let extent = result.as_ref().ok().copied().flatten();
            out.push(Completion { token: entry.token, at, result: result.map(|_| ()), extent, cmd });
            vacant.push(id);
            false
        });
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod window_tests;

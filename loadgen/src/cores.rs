//! Which thread runs on which core.
//!
//! Left alone, the system moves whoever reads to where the writer runs: over the loopback that is the server's core, and each
//! then waits for the other's slice of time, which is milliseconds.

use anyhow::Context;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The cores that this process may use.
///
/// # Errors
/// If the system does not say.
pub fn allowed() -> anyhow::Result<Vec<usize>> {
    let set = sched_getaffinity(None).context("asking for this process's cores")?;
    Ok((0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect())
}

/// The core of thread `index` among `cores`; `None` where there are none.
pub fn of(cores: &[usize], index: usize) -> Option<usize> {
    (!cores.is_empty()).then(|| cores[index % cores.len()])
}

/// Keeps the calling thread to `core`.
///
/// # Errors
/// If there is no such core, or this process may not use it.
pub fn keep_to(core: usize) -> anyhow::Result<()> {
    anyhow::ensure!(core < CpuSet::MAX_CPU, "--cores {core}: there is no such core");
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).with_context(|| format!("--cores {core}: this process may not use that core"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_keeps_to_its_core() {
        let core = *allowed().unwrap().last().unwrap();
        let kept = std::thread::spawn(move || keep_to(core).and_then(|()| allowed())).join().unwrap();
        assert_eq!(kept.unwrap(), [core]);
        assert!(keep_to(CpuSet::MAX_CPU - 1).unwrap_err().to_string().contains("may not use that core"));
    }

    #[test]
    fn threads_take_cores_in_turn() {
        assert_eq!([0, 1, 2].map(|i| of(&[4, 6], i)), [Some(4), Some(6), Some(4)]);
        assert_eq!(of(&[], 1), None);
    }
}

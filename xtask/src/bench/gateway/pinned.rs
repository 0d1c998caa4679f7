//! Who runs on which core, and what a process with its children uses.

use std::future::Future;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, anyhow};
use stack::Program;

/// The core that the proxy has to itself.
pub const PROXY_CORE: usize = 0;
/// The core of everything else: engine and clients.
pub const OTHER_CORE: usize = 1;

/// `command`, pinned to a core if the machine has two.
pub fn command(core: usize, program: &Path) -> Command {
    if !several_cores() {
        return Command::new(program);
    }
    let mut command = Command::new("taskset");
    command.args(["-c", &core.to_string()]).arg(program);
    command
}

/// Whether there are cores to divide.
pub fn several_cores() -> bool {
    std::thread::available_parallelism().is_ok_and(|n| n.get() >= 2)
}

/// Runs a future to its end on a thread of its own, pinned to [`OTHER_CORE`]. Programs must not be started in it: they would
/// end with the thread.
///
/// # Errors
/// Those of the future.
pub fn on_other_core<T: Send>(future: impl Future<Output = Result<T>> + Send) -> Result<T> {
    let run = || {
        if several_cores() {
            let mut cores = rustix::thread::CpuSet::new();
            cores.set(OTHER_CORE);
            rustix::thread::sched_setaffinity(None, &cores).context("pinning the load")?;
        }
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
    };
    std::thread::scope(|scope| scope.spawn(run).join()).map_err(|_| anyhow!("the load panicked"))?
}

/// As many descriptors as the system allows, for this process and those it starts: each stream takes two in a proxy.
///
/// # Errors
/// If the limit cannot be changed.
pub fn raise_descriptor_limit() -> Result<()> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).context("raising the limit of open files")
}

/// What a process and its children use.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Processor time so far, seconds.
    pub cpu_s: f64,
    /// Resident memory, MiB.
    pub resident_mib: f64,
}

impl Usage {
    /// Of a program that runs.
    ///
    /// # Errors
    /// If it has ended.
    pub fn of(program: &Program) -> Result<Self> {
        let mut usage = Self::default();
        let mut pids = vec![program.pid()];
        while let Some(pid) = pids.pop() {
            usage.resident_mib += stack::Held::by(pid)?.resident_kib as f64 / 1024.0;
            for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
                let task = task?.path();
                // A thread may end while we look.
                let Ok(account) = std::fs::read_to_string(task.join("schedstat")) else { continue };
                let ns: f64 = account.split_whitespace().next().context("schedstat")?.parse()?;
                usage.cpu_s += ns * 1e-9;
                let children = std::fs::read_to_string(task.join("children")).unwrap_or_default();
                pids.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
            }
        }
        Ok(usage)
    }
}

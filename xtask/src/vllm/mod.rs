//! vLLM and vllm_ascend as published, on virtual NPUs: the environments they run in, and the suites under `tests/python/vllm`.
//!
//! The suites know nothing of this project; `vnpu run` puts them on a device and brings what vllm_ascend needs beside its wheels.

mod load;
pub mod phases;
pub mod server;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::Result;
use stack::Daemon;

use crate::build::{self, Scratch};
use crate::suite::{nothing_left, one};
use crate::test::Tally;
use crate::torch::environment;

/// Versions that go together.
struct Release {
    /// Name of the environment.
    name: &'static str,
    /// The wheels. Their own requirements name other versions of PyTorch, and packages that only other processors need.
    wheels: &'static [&'static str],
    /// What else the environment holds.
    requirements: &'static str,
    /// Suites that run on it, in order.
    suites: &'static [Suite],
}

/// One run of a script.
struct Suite {
    /// The script below `tests/python`, without `.py`.
    script: &'static str,
    /// Parts of the names of the tests that run; none: all.
    tests: &'static [&'static str],
    /// Devices that it sees, each with a daemon of its own.
    devices: usize,
}

impl Suite {
    /// What it is asked for by.
    fn name(&self) -> &'static str {
        self.script.rsplit('/').next().unwrap_or(self.script)
    }
}

const fn suite(script: &'static str, devices: usize) -> Suite {
    Suite { script, tests: &[], devices }
}

/// The release that everything runs on.
const NEWEST: Release = Release {
    name: "vllm-0.23.0",
    wheels: &[
        "torch==2.10.0",
        "torch_npu==2.10.0.post4",
        "torchvision==0.25.0",
        "torchaudio==2.10.0",
        "vllm==0.23.0",
        "vllm_ascend==0.23.0",
        "compressed-tensors==0.17.0",
    ],
    requirements: "tests/python/vllm/requirements.txt",
    suites: &[
        suite("vllm/offline", 1),
        suite("vllm/graphs", 1),
        suite("vllm/sleeping", 1),
        suite("vllm/serve", 1),
        suite("vllm/neighbours", 1),
        suite("vllm/parallel", 2),
        suite("torch/collectives", 2),
    ],
};
/// An older one, which needs less beside its wheels.
const OLDER: Release = Release {
    name: "vllm-0.18.0",
    wheels: &[
        "torch==2.9.0",
        "torch_npu==2.9.0",
        "torchvision==0.24.0",
        "torchaudio==2.9.0",
        "vllm==0.18.0",
        "vllm_ascend==0.18.0",
    ],
    requirements: "tests/python/vllm/requirements-0.18.txt",
    suites: &[Suite {
        script: "vllm/offline",
        tests: &["qwen2_tokens", "qwen3_tokens", "llama_tokens", "prefix_cache", "prompts_in_pieces"],
        devices: 1,
    }],
};
/// The device that suites see.
const DEVICE: &str = "Ascend910B3:functional:hbm=2";

/// The interpreter of the newest release's environment, which is made if need be.
///
/// # Errors
/// If it cannot be made.
pub fn ready() -> Result<PathBuf> {
    made(&NEWEST)
}

fn made(release: &Release) -> Result<PathBuf> {
    let wheels: Vec<String> = release.wheels.iter().map(|&wheel| wheel.to_owned()).collect();
    environment::made(release.name, &wheels, &["--no-deps", "-r"], release.requirements)
}

/// Runs what has `filter` in its name: suites of the newest release, `load`, `phases`, and the older release.
///
/// # Errors
/// If an environment or a daemon cannot be made; failing suites are in the tally.
pub fn run(filter: &str) -> Result<Tally> {
    let mut tally = Tally::default();
    let wanted = |name: &str| name.contains(filter);
    if [NEWEST.name, "load", "phases"].into_iter().chain(NEWEST.suites.iter().map(Suite::name)).any(wanted) {
        println!("── {}", NEWEST.name);
        let python = ready()?;
        tally += suites(&NEWEST, &python, filter)?;
        for (name, test) in [("load", load::run as fn(&Path) -> Result<Tally>), ("phases", phases::run)] {
            if name.contains(filter) || filter == NEWEST.name {
                println!("\n{name} on {}", NEWEST.name);
                tally += timed(name, || test(&python))?;
            }
        }
    }
    if wanted(OLDER.name) {
        println!("── {}", OLDER.name);
        tally += suites(&OLDER, &made(&OLDER)?, OLDER.name)?;
    }
    Ok(tally)
}

/// Runs the suites of a release whose name contains `filter`, or all where it is the release's own name.
fn suites(release: &Release, python: &Path, filter: &str) -> Result<Tally> {
    let scratch = Scratch::new()?;
    let daemons = [
        Daemon::start_named(scratch.path(), "npu0", DEVICE, "fifo")?,
        Daemon::start_named(scratch.path(), "npu1", DEVICE, "fifo")?,
    ];
    let mut tally = Tally::default();
    for suite in release.suites.iter().filter(|suite| suite.name().contains(filter) || filter == release.name) {
        println!("\n{} on {}", suite.name(), release.name);
        let mut command = Command::new(stack::program_path("vnpu")?);
        command.arg("run");
        for daemon in &daemons[..suite.devices] {
            command.arg("--socket").arg(&daemon.socket);
        }
        command.arg("--").arg(python).args(["-B", "-u"]);
        command.arg(build::root().join("tests/python").join(suite.script).with_extension("py")).args(suite.tests);
        tally += timed(suite.name(), || one(suite.name(), command))?;
        tally += nothing_left(&daemons)?;
    }
    Ok(tally)
}

/// Says how long it took.
fn timed(name: &str, test: impl FnOnce() -> Result<Tally>) -> Result<Tally> {
    let start = Instant::now();
    let tally = test()?;
    println!("{name}: {} s", start.elapsed().as_secs());
    Ok(tally)
}

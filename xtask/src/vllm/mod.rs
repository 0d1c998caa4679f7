//! vLLM and vllm_ascend as published, on virtual NPUs: the environments they run in, and the suites under `tests/python/vllm`.
//!
//! The suites know nothing of this project; `vnpu run` puts them on a device and brings what vllm_ascend needs beside its wheels.

mod load;
pub mod phases;
pub mod server;

use std::path::{Path, PathBuf};
use std::process::Command;

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
    /// Suites that run on it, in order, and what they get as arguments: parts of the names of tests.
    suites: &'static [(&'static str, &'static [&'static str])],
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
    suites: &[("offline", &[]), ("graphs", &[]), ("sleeping", &[]), ("serve", &[]), ("neighbours", &[])],
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
    suites: &[("offline", &["qwen2_tokens", "qwen3_tokens", "llama_tokens", "prefix_cache", "prompts_in_pieces"])],
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

/// Runs the suites whose name contains `filter`. `load`, `phases` and the older release run only where they are asked for by name:
/// they have not been seen to pass yet.
///
/// # Errors
/// If an environment or a daemon cannot be made; failing suites are in the tally.
pub fn run(filter: &str) -> Result<Tally> {
    println!("── {}", NEWEST.name);
    let python = ready()?;
    match filter {
        "load" => load::run(&python),
        "phases" => phases::run(&python),
        older if older == OLDER.name => suites(&OLDER, &made(&OLDER)?, ""),
        _ => suites(&NEWEST, &python, filter),
    }
}

fn suites(release: &Release, python: &Path, filter: &str) -> Result<Tally> {
    let scratch = Scratch::new()?;
    let daemons = [Daemon::start_named(scratch.path(), "npu0", DEVICE, "fifo")?];
    let mut tally = Tally::default();
    for (suite, tests) in release.suites.iter().filter(|(suite, _)| suite.contains(filter)) {
        println!("\n{suite} on {}", release.name);
        let mut command = Command::new(stack::program_path("vnpu")?);
        command.args(["run", "--socket"]).arg(&daemons[0].socket).arg("--").arg(python).args(["-B", "-u"]);
        command.arg(build::root().join("tests/python/vllm").join(suite).with_extension("py")).args(*tests);
        tally += one(suite, command)?;
        tally += nothing_left(&daemons)?;
    }
    Ok(tally)
}

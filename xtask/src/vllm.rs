//! vLLM and vllm_ascend as published, on virtual NPUs: the environment they run in, and the suites under `tests/python/vllm`.
//!
//! The suites know nothing of this project; `vnpu run` puts them on a device and brings what vllm_ascend needs beside its wheels.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;
use stack::{Daemon, Ended};

use crate::build::{self, Scratch};
use crate::test::{Tally, summary};
use crate::torch::{environment, nothing_left};

/// The wheels, in versions that go together. Their own requirements name other versions of PyTorch, and packages that only other
/// processors need.
const WHEELS: [&str; 7] = [
    "torch==2.10.0",
    "torch_npu==2.10.0.post4",
    "torchvision==0.25.0",
    "torchaudio==2.10.0",
    "vllm==0.23.0",
    "vllm_ascend==0.23.0",
    "compressed-tensors==0.17.0",
];
/// Name of the environment.
const NAME: &str = "vllm-0.23.0";
/// What else the environment holds.
const REQUIREMENTS: &str = "tests/python/vllm/requirements.txt";
/// Longest that one suite may take.
const SUITE_TIME_MAX: Duration = Duration::from_secs(15 * 60);
/// The device that suites see.
const DEVICE: &str = "Ascend910B3:functional:hbm=2";
/// Suites, in order.
const SUITES: [&str; 2] = ["offline", "serve"];

/// Runs the suites whose name contains `filter`.
///
/// # Errors
/// If the environment or the daemon cannot be made; failing suites are in the tally.
pub fn run(filter: &str) -> Result<Tally> {
    println!("── {NAME}");
    let wheels = WHEELS.map(str::to_owned);
    let python = environment::made(NAME, &wheels, &["--no-deps", "-r"], REQUIREMENTS)?;
    let scratch = Scratch::new()?;
    let daemons = [Daemon::start_named(scratch.path(), "npu0", DEVICE, "fifo")?];
    let mut tally = Tally::default();
    for suite in SUITES.iter().filter(|s| s.contains(filter)) {
        println!("\n{suite} on {NAME}");
        let mut command = Command::new(stack::program_path("vnpu")?);
        command.args(["run", "--socket"]).arg(&daemons[0].socket).arg("--").arg(&python).args(["-B", "-u"]);
        command.arg(build::root().join("tests/python/vllm").join(suite).with_extension("py"));
        tally += one(suite, command)?;
        tally += nothing_left(&daemons)?;
    }
    Ok(tally)
}

fn one(suite: &str, command: Command) -> Result<Tally> {
    let start = Instant::now();
    let mut tally = None;
    let ended = stack::run_script(command, SUITE_TIME_MAX, |line| {
        tally = summary(line).or(tally);
        println!("{line}");
    })?;
    match (&ended, tally) {
        (_, Some(tally)) if ended.success() || tally.failed > 0 => return Ok(tally),
        (Ended::Late, _) => println!("{suite}: FAILED, still running after {SUITE_TIME_MAX:?}"),
        (Ended::Exit(status), _) => println!("{suite}: FAILED, ended with {status} after {:?}", start.elapsed()),
    }
    Ok(Tally { passed: tally.map_or(0, |t| t.passed), failed: 1 })
}

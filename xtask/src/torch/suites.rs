//! Runs the Python suites under `tests/python/torch` with the published wheels against running daemons.
//!
//! One process a suite, so that a crash or a hang of one costs its own results only; each is bounded in time. The suites know
//! nothing of this project: `vnpu run` puts them on virtual NPUs, and what they compute is compared with PyTorch's CPU.

use std::process::Command;

use anyhow::Result;
use stack::Daemon;

use super::environment::{self, Environment};
use crate::build::{self, Scratch};
use crate::suite::nothing_left;
use crate::test::{AGAIN_MAX, Tally};

/// The devices that suites see.
const DEVICE: &str = "Ascend910B3:functional:hbm=2";

/// One run of a script.
struct Suite {
    /// Name of the script, without `.py`.
    script: &'static str,
    /// Variables it runs with.
    variables: &'static [(&'static str, &'static str)],
}

const fn suite(script: &'static str, variables: &'static [(&'static str, &'static str)]) -> Suite {
    Suite { script, variables }
}

/// What runs, in order.
const SUITES: [Suite; 14] = [
    suite("operators", &[]),
    suite("op_db", &[]),
    suite("streams", &[("TASK_QUEUE_ENABLE", "0")]),
    suite("streams", &[("TASK_QUEUE_ENABLE", "1")]),
    suite("streams", &[("TASK_QUEUE_ENABLE", "2")]),
    suite("memory", &[]),
    suite("memory", &[("PYTORCH_NPU_ALLOC_CONF", "expandable_segments:True")]),
    suite("printing_and_random", &[]),
    suite("graphs", &[]),
    suite("processes", &[]),
    suite("collectives", &[]),
    suite("misuse", &[]),
    suite("models", &[]),
    suite("training", &[]),
];

/// Runs the suites whose name contains `filter` on PyTorch `version`.
///
/// # Errors
/// If the environment or the daemons cannot be made; failing suites are in the tally.
pub fn run(version: &'static str, filter: &str) -> Result<Tally> {
    println!("── torch {version}");
    let environment = environment::ready(version)?;
    let scratch = Scratch::new()?;
    let daemons = [
        Daemon::start_named(scratch.path(), "npu0", DEVICE, "fifo")?,
        Daemon::start_named(scratch.path(), "npu1", DEVICE, "fifo")?,
    ];
    let mut tally = Tally::default();
    for suite in SUITES.iter().filter(|s| s.script.contains(filter)) {
        tally += steady(suite, &environment, &daemons)?;
        tally += nothing_left(&daemons)?;
    }
    if "phases".contains(filter) {
        tally += super::phases::run(&environment)?;
    }
    if "many_tokens".contains(filter) {
        tally += super::tokens::run(&environment)?;
    }
    Ok(tally)
}

/// A suite, once more if a few of its tests failed.
fn steady(suite: &Suite, environment: &Environment, daemons: &[Daemon]) -> Result<Tally> {
    let first = one(suite, environment, daemons)?;
    if first.failed == 0 || first.failed > AGAIN_MAX as u64 {
        return Ok(first);
    }
    let second = one(suite, environment, daemons)?;
    if second.failed == 0 {
        println!("unsteady, passed only when run again: {}", suite.script);
    }
    Ok(second)
}

fn one(suite: &Suite, environment: &Environment, daemons: &[Daemon]) -> Result<Tally> {
    let script = build::root().join("tests/python/torch").join(suite.script).with_extension("py");
    let variables: String = suite.variables.iter().map(|(name, value)| format!(" {name}={value}")).collect();
    println!("\n{} on torch {}{variables}", suite.script, environment.version);
    let mut command = Command::new(stack::program_path("vnpu")?);
    command.arg("run");
    for daemon in daemons {
        command.arg("--socket").arg(&daemon.socket);
    }
    command.arg("--").arg(&environment.python).args(["-B", "-u"]).arg(script);
    command.envs(suite.variables.iter().copied());
    crate::suite::one(suite.script, command)
}

//! Unmodified `generate` on a virtual NPU: what the daemon believes its steps are, against what they were.
//!
//! The script's own structure is the truth: the first pass of a `generate` works on prompts, every later one decodes. There
//! are no hints.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use stack::{Daemon, Via};
use system_tests::phases::{Accuracy, Step, compare, found};

use super::environment::Environment;
use crate::build::{self, Scratch};
use crate::test::Tally;

const TIME_MAX: Duration = Duration::from_secs(15 * 60);
/// Promised without hints.
pub const RIGHT_MIN: f64 = 0.95;

/// Runs the script so many times over and compares.
///
/// # Errors
/// If a program cannot be started or the script fails.
pub fn accuracy(environment: &Environment, rounds: u32) -> Result<Accuracy> {
    let scratch = Scratch::new()?;
    let daemon = Daemon::start_named(scratch.path(), "phases", "Ascend910B3:functional:hbm=2", "phase")?;
    let mut command = Via::Daemon(&daemon).run(None)?;
    command.arg(&environment.python).args(["-B", "-u"]);
    command.arg(build::root().join("tests/python/torch/phases.py")).arg(rounds.to_string());
    let mut lines = Vec::new();
    let ended = stack::run_script(command, TIME_MAX, |line| lines.push(line.to_owned()))?;
    ensure!(ended.success(), "phases.py: {ended:?}\n{}", lines.join("\n"));
    let mut truth = Vec::new();
    for line in lines.iter().filter_map(|l| l.strip_prefix("truth ")) {
        let said: Value = serde_json::from_str(line)?;
        let number = |name: &str| said[name].as_u64().with_context(|| format!("{name} in {line}"));
        let step = |phase: &str, tokens| Step { phase: phase.to_owned(), tokens };
        truth.push(step("prefill", number("first")?));
        truth.extend((0..number("then")?).map(|_| step("decode", number("each").unwrap_or(0))));
    }
    let found = found(&daemon)?;
    let most = found.iter().max_by_key(|steps| steps.len()).context("the daemon found no step")?;
    Ok(compare(&truth, most))
}

/// As a test.
///
/// # Errors
/// As [`accuracy`].
pub fn run(environment: &Environment) -> Result<Tally> {
    println!("\nphases on torch {}", environment.version);
    let accuracy = accuracy(environment, 1)?;
    let part = accuracy.of_steps();
    println!(
        "{} of {} steps of `generate` have the right phase: {:.2} %",
        accuracy.right,
        accuracy.steps,
        part * 100.0
    );
    let passed = part >= RIGHT_MIN;
    println!("test phases_of_generate_are_found ... {}", if passed { "ok" } else { "FAILED" });
    Ok(Tally { passed: u64::from(passed), failed: u64::from(!passed) })
}

//! `cargo xtask test`: what CI runs. Each step is named before it starts; the last line counts the tests, those of the Python
//! suites among them.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::{build, torch};

/// What to run.
#[derive(clap::Args)]
pub struct Tests {
    /// Only tests whose name contains this; with --torch, only suites.
    filter: Option<String>,
    /// Only PyTorch and torch_npu, as published, on virtual NPUs: every suite, on two versions.
    #[arg(long)]
    torch: bool,
}

/// How many tests passed and failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Passed.
    pub passed: u64,
    /// Failed.
    pub failed: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

/// Runs what is asked for; a step before the tests that fails ends it.
pub fn run(tests: &Tests) -> Result<()> {
    let start = Instant::now();
    let filter = tests.filter.as_deref();
    let mut tally = Tally::default();
    if tests.torch {
        println!("── programs");
        build::programs()?;
        for version in [torch::FIRST, torch::SECOND] {
            tally += torch::run(version, filter.unwrap_or_default())?;
        }
    } else {
        tally += rust(filter)?;
        if filter.is_none() {
            tally += torch::run(torch::FIRST, "")?;
        }
    }
    println!("\nall steps in {} s", start.elapsed().as_secs());
    println!("{} passed, {} failed", tally.passed, tally.failed);
    ensure!(tally.failed == 0, "tests failed");
    ensure!(tally.passed > 0, "no test ran");
    Ok(())
}

fn rust(filter: Option<&str>) -> Result<Tally> {
    if filter.is_none() {
        step("formatting", Command::new(env!("CARGO")).args(["fmt", "--all", "--check"]))?;
        step(
            "lints",
            Command::new(env!("CARGO")).args([
                "clippy",
                "--release",
                "--locked",
                "--workspace",
                "--all-targets",
                "--",
                "-D",
                "warnings",
            ]),
        )?;
        step("dependency policy", Command::new(env!("CARGO")).args(["deny", "check", "bans", "licenses", "sources"]))?;
    }
    println!("── programs");
    build::programs()?;
    println!("── tests");
    let mut command = Command::new(env!("CARGO"));
    // Documentation examples are compiled by no target of ours; libraries, programs and integration tests are.
    command.args(["test", "--release", "--locked", "--workspace", "--lib", "--bins", "--tests", "--no-fail-fast"]);
    if let Some(filter) = filter {
        command.arg(filter);
    }
    let (mut tally, ok) = count(command)?;
    // A test program that dies has no summary.
    if !ok && tally.failed == 0 {
        tally.failed = 1;
    }
    Ok(tally)
}

fn step(name: &str, command: &mut Command) -> Result<()> {
    println!("── {name}");
    let status = command.current_dir(build::root()).status().with_context(|| name.to_owned())?;
    if !status.success() {
        bail!("{name}: failed");
    }
    Ok(())
}

/// Runs cargo's test runner, shows what it prints, and adds up its summaries.
fn count(mut command: Command) -> Result<(Tally, bool)> {
    let mut child = command.current_dir(build::root()).stdout(Stdio::piped()).spawn().context("starting cargo test")?;
    let stdout = child.stdout.take().context("stdout was piped")?;
    let mut tally = Tally::default();
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        if let Some(more) = summary(&line) {
            tally += more;
        }
        println!("{line}");
    }
    Ok((tally, child.wait()?.success()))
}

/// `test result: ok. 8 passed; 1 failed; …` as numbers.
pub fn summary(line: &str) -> Option<Tally> {
    let rest = line.strip_prefix("test result: ")?.split_once(". ")?.1;
    let mut parts = rest.split("; ");
    let passed = parts.next()?.strip_suffix(" passed")?.parse().ok()?;
    let failed = parts.next()?.strip_suffix(" failed")?.parse().ok()?;
    Some(Tally { passed, failed })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_are_read() {
        let line = "test result: FAILED. 8 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        assert_eq!(summary(line), Some(Tally { passed: 8, failed: 1 }));
        assert_eq!(summary("test ring::wraps ... ok"), None);
    }
}

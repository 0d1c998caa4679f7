//! `cargo xtask test`: what CI runs. Each step is named before it starts; the last line counts the tests.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::build;

/// Runs every step; stops at the first that fails.
pub fn run(filter: Option<&str>) -> Result<()> {
    let start = Instant::now();
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
    let (passed, failed, ok) = count(command)?;
    println!("\nall steps in {} s", start.elapsed().as_secs());
    println!("{passed} passed, {failed} failed");
    ensure!(ok && failed == 0, "tests failed");
    ensure!(passed > 0, "no test ran");
    Ok(())
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
fn count(mut command: Command) -> Result<(u64, u64, bool)> {
    let mut child = command.current_dir(build::root()).stdout(Stdio::piped()).spawn().context("starting cargo test")?;
    let stdout = child.stdout.take().context("stdout was piped")?;
    let (mut passed, mut failed) = (0, 0);
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        if let Some((p, f)) = summary(&line) {
            passed += p;
            failed += f;
        }
        println!("{line}");
    }
    Ok((passed, failed, child.wait()?.success()))
}

/// `test result: ok. 8 passed; 1 failed; …` as numbers.
fn summary(line: &str) -> Option<(u64, u64)> {
    let rest = line.strip_prefix("test result: ")?.split_once(". ")?.1;
    let mut parts = rest.split("; ");
    let passed = parts.next()?.strip_suffix(" passed")?.parse().ok()?;
    let failed = parts.next()?.strip_suffix(" failed")?.parse().ok()?;
    Some((passed, failed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_are_read() {
        let line = "test result: FAILED. 8 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        assert_eq!(summary(line), Some((8, 1)));
        assert_eq!(summary("test ring::wraps ... ok"), None);
    }
}

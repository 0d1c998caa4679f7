//! `cargo xtask test`: what CI runs. Each step is named before it starts; the last line counts the tests, those of the Python
//! suites among them.
//!
//! Tests of clocks, processes and sockets share a small machine with each other. A few failures among thousands are run again,
//! once and alone: what passes then is counted as passed and named as unsteady, to be mended; what fails again has failed.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use system_tests::docs;

use crate::{build, clients, containers, llama, torch, vllm};

/// What to run.
#[derive(clap::Args)]
pub struct Tests {
    /// Only tests whose name contains this; with --torch or --vllm, only suites.
    filter: Option<String>,
    /// Only PyTorch and torch_npu, as published, on virtual NPUs: every suite, on two versions.
    #[arg(long)]
    torch: bool,
    /// Only vLLM and vllm_ascend, as published, on virtual NPUs: 4 GB are installed first.
    #[arg(long, conflicts_with = "torch")]
    vllm: bool,
    /// Only llama.cpp, unmodified, on virtual NPUs: built from source with its CANN backend first, which takes minutes. With the
    /// filter, only models whose name contains it.
    #[arg(long, conflicts_with_all = ["torch", "vllm"])]
    llama: bool,
    /// Only clients of the gateway that take long to install: litellm, and guidellm as load.
    #[arg(long, conflicts_with_all = ["torch", "vllm"])]
    clients: bool,
    /// Only commands of the documentation that take minutes, gigabytes or both: `tasks`, `minutes`, `torch` or `vllm`, as their
    /// blocks say; with the filter, only those of pages whose name contains it.
    #[arg(long, value_name = "LEG", conflicts_with_all = ["torch", "vllm", "clients"])]
    docs: Option<String>,
    /// Only the images and the stack of docker/: started, failing in every way, restarted. Needs Docker and compose.
    #[arg(long, conflicts_with_all = ["torch", "vllm", "clients"])]
    stack: bool,
}

/// All Rust tests. Documentation examples are compiled by no target of ours; libraries, programs and integration tests are.
const TEST: [&str; 8] =
    ["test", "--release", "--locked", "--workspace", "--lib", "--bins", "--tests", "--no-fail-fast"];
/// Most failures that are run again; more are no accident.
pub const AGAIN_MAX: usize = 3;

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
    if let Some(leg) = &tests.docs {
        println!("── programs");
        build::programs()?;
        tally += commands_of_pages(leg, filter.unwrap_or_default())?;
    } else if tests.clients {
        tally += clients::run()?;
    } else if tests.stack {
        tally += containers::run(filter.unwrap_or_default())?;
    } else if tests.vllm {
        println!("── programs");
        build::programs()?;
        tally += vllm::run(filter.unwrap_or_default())?;
    } else if tests.llama {
        println!("── programs");
        build::programs()?;
        tally += llama::run(filter.unwrap_or_default())?;
    } else if tests.torch {
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

/// Runs what the documentation leaves to `leg`.
fn commands_of_pages(leg: &str, filter: &str) -> Result<Tally> {
    let known: Vec<&str> = docs::LEGS.iter().map(|leg| leg.name).filter(|name| !name.is_empty()).collect();
    ensure!(known.contains(&leg), "no commands are left to {leg:?}; there are {}", known.join(", "));
    ensure!(leg != "docker", "what wants images and containers is run by ./x test --stack, which makes them");
    // The project's own tasks, a build among them, are run where the sources are.
    let around = docs::Surroundings { in_the_tree: leg == "tasks", ..docs::Surroundings::default() };
    let mut tally = Tally::default();
    for page in docs::pages()?.into_iter().filter(|page| page.contains(filter)) {
        let before = tally.passed;
        match docs::run_page_in(&page, &[leg], &around, &mut |command| println!("{command}")) {
            Ok(commands) => tally.passed += commands as u64,
            Err(error) => {
                println!("{error:#}");
                tally.failed += 1;
            }
        }
        if tally.passed > before {
            println!("{page} ... ok");
        }
    }
    Ok(tally)
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
    command.args(TEST);
    if let Some(filter) = filter {
        command.arg(filter);
    }
    let first = count(command)?;
    // A test program that dies has no summary, and nothing to run again.
    if !first.ok && first.tally.failed == 0 {
        return Ok(Tally { failed: 1, ..first.tally });
    }
    again(first)
}

/// Runs a few failed tests once more, alone.
fn again(first: Counted) -> Result<Tally> {
    let Counted { mut tally, failed, .. } = first;
    let told = failed.len() as u64 == tally.failed;
    if failed.is_empty() || failed.len() > AGAIN_MAX || !told {
        return Ok(tally);
    }
    println!("── again, alone: {}", failed.join(", "));
    let mut command = Command::new(env!("CARGO"));
    command.args(TEST).args(["--", "--test-threads=1", "--exact"]).args(&failed);
    let second = count(command)?;
    if second.ok && second.tally.passed >= tally.failed {
        println!("unsteady, passed only when run again: {}", failed.join(", "));
        tally = Tally { passed: tally.passed + tally.failed, failed: 0 };
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

/// What a test runner said.
struct Counted {
    tally: Tally,
    /// Names of the tests that failed.
    failed: Vec<String>,
    /// It ended well.
    ok: bool,
}

/// Runs cargo's test runner, shows what it prints, and adds up its summaries.
fn count(mut command: Command) -> Result<Counted> {
    let mut child = command.current_dir(build::root()).stdout(Stdio::piped()).spawn().context("starting cargo test")?;
    let stdout = child.stdout.take().context("stdout was piped")?;
    let mut tally = Tally::default();
    let mut failed = Vec::new();
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        if let Some(more) = summary(&line) {
            tally += more;
        }
        failed.extend(failure(&line).map(str::to_owned));
        println!("{line}");
    }
    Ok(Counted { tally, failed, ok: child.wait()?.success() })
}

/// The name in `test module::name ... FAILED`.
fn failure(line: &str) -> Option<&str> {
    line.strip_prefix("test ")?.strip_suffix(" ... FAILED")
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
        assert_eq!(failure("test ring::wraps ... FAILED"), Some("ring::wraps"));
        assert_eq!(failure("test ring::wraps ... ok"), None);
    }
}

//! `./x fuzz`: builds the fuzz targets with AddressSanitizer and runs each for a while.
//!
//! Coverage and sanitizers are unstable options of the compiler that stands here; `RUSTC_BOOTSTRAP` lets a stable one take them, in
//! a build folder of its own, so no second toolchain is needed. Targets run one after the other, or `--jobs` at a time, at the lowest
//! priority. A target that finds something leaves the input under `fuzz/artifacts`, and the command fails.

use std::collections::VecDeque;
use std::fmt;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::build;

/// What libFuzzer needs of the compiler, and what finds more: comparisons traced, every block counted, memory checked.
const RUSTFLAGS: &str = "--cfg fuzzing -Zsanitizer=address -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
     -Cllvm-args=-sanitizer-coverage-trace-compares";
/// A single input that takes longer is a finding.
const INPUT_SECONDS_MAX: u32 = 60;
/// More memory than this is a finding.
const MEMORY_MIB_MAX: u32 = 2048;
/// Longest input.
const INPUT_BYTES_MAX: usize = 4096;
/// Between two lines of progress.
const SAY_EVERY: Duration = Duration::from_secs(15);
/// Last lines of a target's output that are shown when it fails.
const LINES_SHOWN: usize = 60;

/// What to run.
#[derive(clap::Args)]
pub struct Fuzz {
    /// For how long each target runs.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Only this target; may be given several times.
    #[arg(long)]
    target: Vec<String>,
    /// Targets that run at the same time.
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// Add the inputs that reach more of the code than fuzz/seeds does to fuzz/seeds.
    #[arg(long)]
    keep: bool,
    /// Build and run nothing.
    #[arg(long)]
    build_only: bool,
}

/// How one target ended.
#[derive(Debug, Default)]
struct Ended {
    target: String,
    executions: u64,
    seconds: u64,
    coverage_before: u64,
    coverage: u64,
    corpus: u64,
    memory_mib: u64,
    failed: bool,
}

/// Runs what is asked for.
pub fn run(fuzz: &Fuzz) -> Result<()> {
    let all = targets()?;
    for name in &fuzz.target {
        ensure!(all.contains(name), "no target is called {name}; there are {}", all.join(", "));
    }
    let wanted: VecDeque<String> =
        all.into_iter().filter(|name| fuzz.target.is_empty() || fuzz.target.contains(name)).collect();
    let programs = built(&wanted)?;
    if fuzz.build_only {
        return Ok(());
    }
    let (queue, ended) = (Mutex::new(wanted), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..fuzz.jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().ok().and_then(|mut queue| queue.pop_front());
                    let Some(target) = next else { return };
                    let result = fuzzed(&programs.join(&target), &target, fuzz.seconds);
                    let result = result.unwrap_or_else(|error| {
                        println!("{target}: {error:#}");
                        Ended { target, failed: true, ..Ended::default() }
                    });
                    if let Ok(mut ended) = ended.lock() {
                        ended.push(result);
                    }
                }
            });
        }
    });
    let ended = ended.into_inner().unwrap_or_default();
    println!(
        "\n{:<16} {:>12} {:>8} {:>8} {:>13} {:>7} {:>8}",
        "target", "executions", "seconds", "per s", "coverage", "corpus", "MiB"
    );
    ended.iter().for_each(|e| println!("{e}"));
    if fuzz.keep {
        for e in ended.iter().filter(|e| !e.failed) {
            kept(&programs.join(&e.target), &e.target)?;
        }
    }
    let failed: Vec<&str> = ended.iter().filter(|e| e.failed).map(|e| e.target.as_str()).collect();
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { target, executions, seconds, coverage_before, coverage, corpus, memory_mib, failed } = self;
        let each = executions / seconds.max(&1);
        let covered = format!("{coverage_before}→{coverage}");
        write!(f, "{target:<16} {executions:>12} {seconds:>8} {each:>8} {covered:>13} {corpus:>7} {memory_mib:>8}")?;
        if *failed { f.write_str("  FAILED") } else { Ok(()) }
    }
}

/// Every target has a file.
fn targets() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(build::root().join("fuzz/fuzz_targets"))? {
        names.extend(entry?.path().file_stem().and_then(|stem| stem.to_str()).map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

/// Builds targets; where the programs are.
fn built(targets: &VecDeque<String>) -> Result<PathBuf> {
    let version = Command::new("rustc").arg("-vV").output().context("rustc -vV")?;
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    let host = version.lines().find_map(|l| l.strip_prefix("host: ")).context("rustc -vV names no host")?;
    let mut command = Command::new(env!("CARGO"));
    command.args(["build", "--release", "--locked", "--target", host]).current_dir(build::root().join("fuzz"));
    for target in targets {
        command.args(["--bin", target]);
    }
    // What drives the programs is named after them; the rest is built without, in a fraction of the time.
    if !targets.iter().any(|target| target.starts_with("gateway_") || target.starts_with("daemon_")) {
        command.arg("--no-default-features");
    }
    // For the host's own programs (build scripts, macros) neither flag holds, because a target is named.
    command
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", RUSTFLAGS)
        .env("CARGO_TARGET_DIR", build::root().join("fuzz/target"));
    ensure!(command.status().context("starting cargo")?.success(), "the build of the fuzz targets failed");
    Ok(build::root().join("fuzz/target").join(host).join("release"))
}

/// Folders of a target: seeds, what a run adds to them, what broke something.
fn folders(target: &str) -> Result<[PathBuf; 3]> {
    let folders = ["seeds", "corpus", "artifacts"].map(|kind| build::root().join("fuzz").join(kind).join(target));
    folders.iter().try_for_each(std::fs::create_dir_all)?;
    Ok(folders)
}

fn nice(program: &Path) -> Command {
    let mut command = Command::new("nice");
    command.args(["-n", "19"]).arg(program).current_dir(build::root());
    // Leaks are looked for by the system tests; threads that outlive an input would be taken for some.
    command.env("ASAN_OPTIONS", "detect_leaks=0:allocator_may_return_null=0");
    command
}

fn fuzzed(program: &Path, target: &str, seconds: u64) -> Result<Ended> {
    let [seeds, corpus, artifacts] = folders(target)?;
    let mut command = nice(program);
    command
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-timeout={INPUT_SECONDS_MAX}"))
        .arg(format!("-rss_limit_mb={MEMORY_MIB_MAX}"))
        .arg(format!("-max_len={INPUT_BYTES_MAX}"))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg("-print_final_stats=1");
    let dictionary = build::root().join("fuzz/dictionaries").join(target);
    if dictionary.exists() {
        command.arg(format!("-dict={}", dictionary.display()));
    }
    let start = Instant::now();
    let mut child = command.arg(&corpus).arg(&seeds).stderr(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    let output = child.stderr.take().context("its output was piped")?;
    let mut ended = Ended { target: target.to_owned(), ..Ended::default() };
    let (mut last, mut said) = (VecDeque::new(), start);
    for line in BufReader::new(output).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        ended.read(&line);
        if line.starts_with('#') && said.elapsed() >= SAY_EVERY {
            said = Instant::now();
            println!("{:>4} s  {target}: {line}", start.elapsed().as_secs());
        }
        last.push_back(line);
        if last.len() > LINES_SHOWN {
            last.pop_front();
        }
    }
    ended.failed = !child.wait()?.success();
    ended.seconds = start.elapsed().as_secs();
    if ended.failed {
        last.iter().for_each(|line| println!("{target}: {line}"));
        println!(
            "{target}: the input lies under {}; run it alone with {} INPUT",
            artifacts.display(),
            program.display()
        );
    }
    println!("{ended}");
    Ok(ended)
}

impl Ended {
    /// Takes in a line of libFuzzer's.
    fn read(&mut self, line: &str) {
        let after = |name: &str| -> Option<u64> {
            let rest = line.split_once(name)?.1.trim_start();
            rest[..rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len())].parse().ok()
        };
        if let Some(rest) = line.strip_prefix('#') {
            self.executions =
                rest.split(|c: char| !c.is_ascii_digit()).next().and_then(|n| n.parse().ok()).unwrap_or(0);
            self.coverage = after("cov:").unwrap_or(self.coverage);
            self.corpus = after("corp:").unwrap_or(self.corpus);
            self.memory_mib = after("rss:").unwrap_or(self.memory_mib).max(self.memory_mib);
            if line.contains("INITED") {
                self.coverage_before = self.coverage;
            }
        }
        self.executions = after("stat::number_of_executed_units:").unwrap_or(self.executions);
        self.memory_mib = after("stat::peak_rss_mb:").unwrap_or(self.memory_mib);
    }
}

/// Adds what reaches more of the code than the seeds do to the seeds. How often it gets there does not count: that would keep several times
/// as many, and every test run replays them.
fn kept(program: &Path, target: &str) -> Result<()> {
    let [seeds, corpus, _] = folders(target)?;
    let before = std::fs::read_dir(&seeds)?.count();
    let mut merge = nice(program);
    merge.args(["-merge=1", "-use_counters=0"]).args([&seeds, &corpus]);
    let merged = merge.stderr(Stdio::null()).stdout(Stdio::null()).status()?;
    if !merged.success() {
        bail!("{target}: the corpus could not be merged");
    }
    println!("{target}: {} seeds more", std::fs::read_dir(&seeds)?.count() - before);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_read() {
        let mut ended = Ended::default();
        for line in [
            "INFO: Seed: 1",
            "#30\tINITED cov: 100 ft: 200 corp: 20/5Kb exec/s: 0 rss: 50Mb",
            "#4096\tpulse  cov: 120 ft: 300 corp: 25/9Kb lim: 4096 exec/s: 2048 rss: 60Mb",
            "stat::number_of_executed_units: 5000",
            "stat::peak_rss_mb:              70",
        ] {
            ended.read(line);
        }
        let Ended { executions, coverage_before, coverage, corpus, memory_mib, .. } = ended;
        assert_eq!((executions, coverage_before, coverage, corpus, memory_mib), (5000, 100, 120, 25, 70));
    }

    /// Only `./x fuzz` builds with it: a crate of the workspace that gets a dependency would break that, and nothing else.
    #[test]
    fn the_lock_file_is_that_of_the_crates() {
        let mut command = Command::new(env!("CARGO"));
        command.args([
            "metadata",
            "--locked",
            "--format-version",
            "1",
            "--filter-platform",
            "x86_64-unknown-linux-gnu",
        ]);
        let out = command.current_dir(build::root().join("fuzz")).output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "run `cargo metadata` in fuzz/ once and commit its Cargo.lock: {said}");
    }

    #[test]
    fn every_target_has_seeds_and_a_program() {
        let manifest = std::fs::read_to_string(build::root().join("fuzz/Cargo.toml")).unwrap();
        for target in targets().unwrap() {
            assert!(manifest.contains(&format!("name = \"{target}\"")), "{target}");
            let seeds = build::root().join("fuzz/seeds").join(&target);
            assert!(std::fs::read_dir(&seeds).is_ok_and(|seeds| seeds.count() >= 10), "{target}: too few seeds");
        }
    }
}

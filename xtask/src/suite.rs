//! Suites of Python tests as programs of their own: bounded in time, their lines shown, their summaries counted.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use stack::{Daemon, Ended};

use crate::test::{Tally, summary};

/// Longest that one suite may take.
const SUITE_TIME_MAX: Duration = Duration::from_secs(15 * 60);
/// Longest that a daemon may take to forget an ended client.
const FORGET_TIME_MAX: Duration = Duration::from_secs(10);

/// Runs one suite. A program that ends badly without a failed test counts as one.
///
/// # Errors
/// If it cannot be started.
pub fn one(name: &str, command: Command) -> Result<Tally> {
    let start = Instant::now();
    let mut tally = None;
    let ended = stack::run_script(command, SUITE_TIME_MAX, |line| {
        tally = summary(line).or(tally);
        println!("{line}");
    })?;
    match (&ended, tally) {
        (_, Some(tally)) if ended.success() || tally.failed > 0 => return Ok(tally),
        (Ended::Late, _) => println!("{name}: FAILED, still running after {SUITE_TIME_MAX:?}"),
        (Ended::Exit(status), _) => println!("{name}: FAILED, ended with {status} after {:?}", start.elapsed()),
    }
    Ok(Tally { passed: tally.map_or(0, |t| t.passed), failed: 1 })
}

/// A suite has ended: the daemons hold nothing of it.
pub fn nothing_left(daemons: &[Daemon]) -> Result<Tally> {
    let deadline = Instant::now() + FORGET_TIME_MAX;
    for daemon in daemons {
        loop {
            let status = daemon.status()?;
            let used = status["memory"]["used_bytes"].as_u64().context("no memory.used_bytes")?;
            let sessions = status["sessions"].as_array().map_or(0, Vec::len);
            if used == 0 && sessions == 0 {
                break;
            }
            if Instant::now() >= deadline {
                println!("daemon: FAILED, {sessions} sessions with {used} bytes are left of an ended client");
                return Ok(Tally { passed: 0, failed: 1 });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(Tally { passed: 1, failed: 0 })
}

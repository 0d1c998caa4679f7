//! Ten thousand generated tokens leave the daemon as it was: memory, handles, descriptors.

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use anyhow::{Context, Result};
use stack::{Daemon, Held, Via};

use super::environment::Environment;
use crate::build::{self, Scratch};
use crate::test::Tally;

const TOKENS: u32 = 10_000;
/// An allocator may keep a little more after a longer run; a leak of one descriptor's worth of bytes, 100, for each of the
/// million operators behind ten thousand tokens would be a hundred MiB.
const RESIDENT_GROWTH_KIB_MAX: u64 = 4 * 1024;

/// What the daemon's status says of the only session.
fn objects(daemon: &Daemon) -> Result<[u64; 4]> {
    let status = daemon.status()?;
    let session = &status["sessions"][0];
    let mut counts = [0; 4];
    for (count, name) in counts.iter_mut().zip(["memory_bytes", "allocations", "streams", "events"]) {
        *count = session[name].as_u64().with_context(|| format!("no {name} in {status}"))?;
    }
    Ok(counts)
}

/// Runs the script and looks at the daemon before and after.
///
/// # Errors
/// If a program cannot be started or ends early; what is left behind is a failed test.
pub fn run(environment: &Environment) -> Result<Tally> {
    println!("\nmany_tokens on torch {}: {TOKENS} tokens", environment.version);
    let scratch = Scratch::new()?;
    let daemon = Daemon::start_named(scratch.path(), "tokens", "Ascend910B3:functional:hbm=2", "fifo")?;
    let mut command = Via::Daemon(&daemon).run(None)?;
    command.arg(&environment.python).args(["-B", "-u"]);
    command.arg(build::root().join("tests/python/torch/many_tokens.py")).arg(TOKENS.to_string());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("starting Python")?;
    let mut stdin = child.stdin.take().context("stdin was piped")?;
    let mut lines = BufReader::new(child.stdout.take().context("stdout was piped")?).lines();
    let mut at = |word: &str| -> Result<(Held, [u64; 4])> {
        // torch_npu greets on the same stream.
        loop {
            let line = lines.next().context("the script ended; its last words are above")??;
            if line == word {
                break;
            }
            println!("{line}");
        }
        let seen = (Held::by(daemon.program.pid())?, objects(&daemon)?);
        writeln!(stdin)?;
        Ok(seen)
    };
    let (before, had) = at("warm")?;
    let (after, has) = at("done")?;
    drop(stdin);
    let ended = child.wait()?;
    println!("before: {before:?}\nafter:  {after:?}\nmemory, allocations, streams, events: {had:?}, then {has:?}");
    let same = before.descriptors == after.descriptors && had == has;
    // The admin API's thread pool and an allocator grow and shrink a little by themselves.
    let few = after.threads <= before.threads + 2 && after.mappings <= before.mappings + 50;
    let grown = after.resident_kib.saturating_sub(before.resident_kib);
    let passed = same && few && grown <= RESIDENT_GROWTH_KIB_MAX && ended.success();
    println!("test ten_thousand_tokens_leave_the_daemon_as_it_was ... {}", if passed { "ok" } else { "FAILED" });
    Ok(Tally { passed: u64::from(passed), failed: u64::from(!passed) })
}

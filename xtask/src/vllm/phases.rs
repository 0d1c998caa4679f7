//! vLLM behind the gateway, or asked directly: what the daemon believes its steps are, against what vLLM's own log says.
//!
//! vLLM puts whole prompts, pieces of prompts and decoding sequences into one step on one stream, so all three phases appear; then
//! prefill and decode as two servers on one device.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use stack::{Daemon, Gateway, Via};
use system_tests::phases::{Accuracy, DEVICE, compare, found_after, load, load_of, next_step};

use super::server::{Server, checkpoint};
use crate::build::Scratch;
use crate::test::Tally;
use crate::torch::phases::RIGHT_MIN;

/// Promised with hints.
const HINTED_RIGHT_MIN: f64 = 0.99;
/// Requests of a test.
const REQUESTS: usize = 40;
/// Prompts come in pieces of this at most, beside what decodes.
const SIZES: [&str; 8] =
    ["--load-format", "dummy", "--max-model-len", "4096", "--max-num-seqs", "16", "--max-num-batched-tokens", "256"];

/// How vLLM runs its steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Operator by operator.
    Eager,
    /// As it does unless told otherwise.
    Graphs,
}

impl Mode {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Eager, Self::Graphs];

    /// In names of figures and tests.
    pub fn name(self) -> &'static str {
        ["eager", "graphs"][self as usize]
    }

    /// Arguments of `vllm serve`.
    pub fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Eager => &["--enforce-eager"],
            Self::Graphs => &["--compilation-config", r#"{"cudagraph_capture_sizes":[1,2,4,8,16]}"#],
        }
    }
}

/// Serves so many requests with the shapes of Qwen2.5-7B, with a gateway that hints or with none, and compares.
///
/// # Errors
/// If a program does not start or a request fails.
pub fn accuracy(python: &Path, dir: &Path, mode: Mode, hints: bool, requests: usize) -> Result<Accuracy> {
    let name = format!("{}-{hints}", mode.name());
    let shapes = checkpoint(python, "shapes", dir, &[])?;
    let daemon = Daemon::start_named(dir, &name, DEVICE, "phase")?;
    let socket = dir.join(format!("{name}-hints.sock"));
    let args = [&SIZES[..], mode.arguments()].concat();
    let server = Server::start(python, &Via::Daemon(&daemon), hints.then_some(socket.as_path()), &shapes, &args)?;
    let (before, after) = (server.steps().len(), next_step(&daemon)?);
    if hints {
        let gateway = Gateway::start(&server.http, Some(&socket), &[])?;
        load(&gateway.http, requests)?;
    } else {
        load(&server.http, requests)?;
    }
    let truth = server.steps().split_off(before);
    ensure!(!truth.is_empty(), "vLLM wrote no step into its log:\n{}", server.program.output());
    let found = found_after(&daemon, after)?;
    let most = found.into_iter().max_by_key(Vec::len).context("the daemon found no step")?;
    Ok(compare(&truth, &most))
}

/// Two servers on one device: one whose requests end with their first token, which only prefills, and one whose prompts are short
/// and whose answers are long, which mostly decodes. Both serve at the same time, with gateways that hint or with none.
///
/// # Errors
/// As [`accuracy`].
pub fn two_servers(python: &Path, dir: &Path, hints: bool) -> Result<Accuracy> {
    let shapes = checkpoint(python, "shapes", dir, &[])?;
    let daemon = Daemon::start_named(dir, &format!("two-{hints}"), DEVICE, "phase")?;
    let args = [&SIZES[..], Mode::Eager.arguments(), &["--gpu-memory-utilization", "0.45"]].concat();
    let start = |name: &str| -> Result<(Server, Option<Gateway>)> {
        let socket = dir.join(format!("{name}-{hints}-hints.sock"));
        let socket = hints.then_some(socket.as_path());
        let server = Server::start(python, &Via::Daemon(&daemon), socket, &shapes, &args)?;
        let gateway = socket.map(|socket| Gateway::start(&server.http, Some(socket), &[])).transpose()?;
        Ok((server, gateway))
    };
    let servers = [start("prefill")?, start("decode")?];
    let (before, after) = (servers.each_ref().map(|(server, _)| server.steps().len()), next_step(&daemon)?);
    let [prefill, decode] =
        servers.each_ref().map(|(server, gateway)| gateway.as_ref().map_or(&server.http, |gateway| &gateway.http));
    std::thread::scope(|scope| -> Result<()> {
        let other = scope.spawn(|| load_of(prefill, 2 * REQUESTS, |number| (100 + number * 193 % 900, 1)));
        load_of(decode, REQUESTS, |number| (1 + number % 30, 20 + number % 40))?;
        other.join().map_err(|_| anyhow::anyhow!("a client panicked"))?
    })?;
    let found = found_after(&daemon, after)?;
    let mut sum = Accuracy::default();
    for ((server, _), before) in servers.iter().zip(before) {
        let truth = server.steps().split_off(before);
        // A server's stream is the one that its own log fits best.
        let compared = found.iter().map(|found| compare(&truth, found)).max_by_key(|accuracy| accuracy.right);
        sum += compared.context("the daemon found no step")?;
    }
    let both = ["prefill", "decode"].map(|phase| found.iter().flatten().filter(|f| f.step.phase == phase).count());
    ensure!(both.iter().all(|&steps| steps > REQUESTS / 2), "{both:?} steps of prefill and of decode");
    Ok(sum)
}

/// As tests.
///
/// # Errors
/// As [`accuracy`].
pub fn run(python: &Path) -> Result<Tally> {
    let scratch = Scratch::new()?;
    let mut tally = Tally::default();
    let mut verdict = |name: &str, how: &str, least: f64, accuracy: Accuracy| {
        let part = accuracy.of_steps();
        println!("{} of {} steps, {name}, {how}: {:.2} %", accuracy.right, accuracy.steps, part * 100.0);
        let right = part >= least && accuracy.steps > REQUESTS;
        let how = how.replace(' ', "_");
        println!("test phases_of_steps_{name}_{how} ... {}", if right { "ok" } else { "FAILED" });
        tally += Tally { passed: u64::from(right), failed: u64::from(!right) };
    };
    for (hints, how, least) in [(true, "with hints", HINTED_RIGHT_MIN), (false, "without", RIGHT_MIN)] {
        for mode in Mode::ALL {
            verdict(mode.name(), how, least, accuracy(python, scratch.path(), mode, hints, REQUESTS)?);
        }
        verdict("two_servers", how, least, two_servers(python, scratch.path(), hints)?);
    }
    Ok(tally)
}

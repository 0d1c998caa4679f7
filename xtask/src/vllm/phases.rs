//! vLLM behind the gateway, or asked directly: what the daemon believes its steps are, against what vLLM's own log says.
//!
//! vLLM puts whole prompts, pieces of prompts and decoding sequences into one step on one stream, so all three phases appear.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use stack::{Daemon, Gateway, Via};
use system_tests::phases::{Accuracy, DEVICE, compare, found_after, load, next_step};

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

/// As tests.
///
/// # Errors
/// As [`accuracy`].
pub fn run(python: &Path) -> Result<Tally> {
    let scratch = Scratch::new()?;
    let mut tally = Tally::default();
    for mode in Mode::ALL {
        for (hints, how, least) in [(true, "with hints", HINTED_RIGHT_MIN), (false, "without", RIGHT_MIN)] {
            let accuracy = accuracy(python, scratch.path(), mode, hints, REQUESTS)?;
            let part = accuracy.of_steps();
            println!("{} of {} steps, {}, {how}: {:.2} %", accuracy.right, accuracy.steps, mode.name(), part * 100.0);
            let right = part >= least && accuracy.steps > REQUESTS;
            println!(
                "test phases_of_steps_{}_{} ... {}",
                mode.name(),
                how.replace(' ', "_"),
                if right { "ok" } else { "FAILED" }
            );
            tally += Tally { passed: u64::from(right), failed: u64::from(!right) };
        }
    }
    Ok(tally)
}

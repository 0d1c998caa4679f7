//! How often the daemon is right about what a step is.
//!
//! An engine under test writes down what each of its steps was; the daemon says what it found in the operators. Both are
//! sequences, one a stream. A step counts as right where both have it, in order, with the same phase and the same number of
//! new tokens: a step that was missed, invented or cut in two is wrong as well.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use stack::{Daemon, Engine, Gateway, Http, Via};

/// Takes time only to compute what operators weigh: steps follow one another as fast as they are posted.
pub const DEVICE: &str = "Ascend910B3:timing";

/// What a step was, or is believed to have been.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// `prefill`, `decode` or `mixed`.
    pub phase: String,
    /// New tokens.
    pub tokens: u64,
}

/// A step that the daemon found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What it is believed to be.
    pub step: Step,
    /// Its operators.
    pub operators: u64,
    /// Of them, queued under its phase.
    pub operators_in_phase: u64,
}

/// How often the daemon was right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accuracy {
    /// Steps that were, or that the daemon found, if those are more.
    pub steps: usize,
    /// Found as they were.
    pub right: usize,
    /// Operators of the steps that the daemon found.
    pub operators: u64,
    /// Of them, queued under the step's phase.
    pub operators_right: u64,
}

impl Accuracy {
    /// Part of the steps that were right.
    pub fn of_steps(&self) -> f64 {
        self.right as f64 / self.steps.max(1) as f64
    }

    /// Part of the operators that were queued under their step's phase.
    pub fn of_operators(&self) -> f64 {
        self.operators_right as f64 / self.operators.max(1) as f64
    }
}

impl std::ops::AddAssign for Accuracy {
    fn add_assign(&mut self, other: Self) {
        self.steps += other.steps;
        self.right += other.right;
        self.operators += other.operators;
        self.operators_right += other.operators_right;
    }
}

/// How an engine batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Batching {
    /// Whole prompts and decode, each on its own stream.
    Split,
    /// Prompts in pieces and decode, each on its own stream.
    Chunked,
    /// Pieces of prompts and decode in the same steps.
    Mixed,
}

impl Batching {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Split, Self::Chunked, Self::Mixed];

    /// Name in tables and figures.
    pub fn name(self) -> &'static str {
        ["split", "chunked", "mixed"][self as usize]
    }

    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Split => &[],
            Self::Chunked => &["--enable-chunked-prefill", "--max-num-batched-tokens", "256"],
            Self::Mixed => &["--mixed-batches", "--max-num-batched-tokens", "256"],
        }
    }
}

/// Runs an engine with the shapes of Qwen2.5-7B under `requests` requests, with a gateway that hints or with none, and
/// compares.
///
/// # Errors
/// If a program does not start, a request fails, or the engine wrote nothing down.
pub fn engine(dir: &Path, batching: Batching, hints: bool, requests: usize) -> Result<Accuracy> {
    let name = format!("{}-{hints}", batching.name());
    let daemon = Daemon::start_named(dir, &name, DEVICE, "phase")?;
    let log = dir.join(format!("{name}.jsonl"));
    let socket = dir.join(format!("{name}-hints.sock"));
    let engine = watched_engine(&daemon, hints.then_some(socket.as_path()), &log, batching.arguments())?;
    if hints {
        let gateway = Gateway::start(&engine.http, Some(&socket), &[])?;
        load(&gateway.http, requests)?;
    } else {
        load(&engine.http, requests)?;
    }
    let truth = truth(&log)?;
    let found = found(&daemon)?;
    ensure!(truth.len() == found.len(), "{} loops of the engine, {} streams with steps", truth.len(), found.len());
    let mut sum = Accuracy::default();
    // Both in the order in which the engine made them: prefill first.
    for (truth, found) in truth.iter().zip(&found) {
        sum += compare(truth, found);
    }
    Ok(sum)
}

/// An engine that writes down what its steps are.
///
/// # Errors
/// As [`Engine::start`].
pub fn watched_engine(daemon: &Daemon, hints: Option<&Path>, log: &Path, more: &[&str]) -> Result<Engine> {
    let shapes = ["--model-preset", "qwen2.5-7b", "--load-format", "dummy", "--dtype", "bfloat16"];
    let sizes = ["--served-model-name", "m", "--max-num-seqs", "16", "--max-model-len", "4096"];
    let args: Vec<&str> = shapes.iter().chain(&sizes).chain(more).copied().collect();
    Engine::start_with(&Via::Daemon(daemon), hints, &args, &[("ENGINE_TEST_STEP_LOG", log)])
}

/// Prompts of many lengths; one in eight leaves a single token to the last piece, where prompts come in pieces of 256.
fn prompt_tokens(number: usize) -> usize {
    if number % 8 == 3 { 256 * (1 + number % 3) + 1 } else { 1 + (number * 193) % 900 }
}

/// Sends requests of many lengths, twelve at a time.
///
/// # Errors
/// If one fails.
pub fn load(http: &Http, requests: usize) -> Result<()> {
    load_of(http, requests, |number| (prompt_tokens(number), 4 + number % 40))
}

/// As [`load`]; `sizes` gives the tokens of a request's prompt and of its answer.
///
/// # Errors
/// As there.
pub fn load_of(http: &Http, requests: usize, sizes: impl Fn(usize) -> (usize, usize) + Sync) -> Result<()> {
    let sizes = &sizes;
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..12)
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= requests {
                            return Ok(());
                        }
                        let (asked, answered) = sizes(number);
                        let prompt: Vec<usize> = (0..asked).map(|i| 1 + (i * 31 + number) % 900).collect();
                        let body = json!({ "model": "m", "prompt": prompt, "max_tokens": answered });
                        http.stream("/v1/completions", &body)?.text()?;
                    }
                })
            })
            .collect();
        clients.into_iter().try_for_each(|c| c.join().map_err(|_| anyhow::anyhow!("a client panicked"))?)
    })
}

/// What the engine wrote down: its loops in order of their names' appearance in the engine, each with its steps.
///
/// # Errors
/// If there is nothing.
pub fn truth(log: &Path) -> Result<Vec<Vec<Step>>> {
    let text = std::fs::read_to_string(log).with_context(|| log.display().to_string())?;
    let mut loops: BTreeMap<&str, Vec<Step>> = BTreeMap::new();
    let lines: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    for line in &lines {
        let sequences = line["sequences"].as_array().context("sequences")?;
        let prefilling = sequences.iter().filter(|s| s["prefilling"] == true).count();
        let phase = match prefilling {
            0 => "decode",
            n if n == sequences.len() => "prefill",
            _ => "mixed",
        };
        let tokens = sequences.iter().filter_map(|s| s["new"].as_u64()).sum();
        let name = line["loop"].as_str().context("loop")?;
        loops.entry(name).or_default().push(Step { phase: phase.to_owned(), tokens });
    }
    ensure!(!loops.is_empty(), "the engine wrote no step down");
    // Prefill before decode.
    Ok(loops.into_iter().rev().map(|(_, steps)| steps).collect())
}

/// Steps that the daemon found, by stream.
///
/// # Errors
/// If the admin API does not answer.
pub fn found(daemon: &Daemon) -> Result<Vec<Vec<Found>>> {
    found_after(daemon, 0)
}

/// The number that the next step to begin will have, if no more than one is open.
///
/// # Errors
/// As [`found`].
pub fn next_step(daemon: &Daemon) -> Result<u64> {
    let steps = daemon.admin.get_json("/v1/steps")?;
    let numbers = steps.as_array().context("a list")?.iter().filter_map(|s| s["number"].as_u64());
    Ok(numbers.max().map_or(0, |number| number + 1))
}

/// As [`found`], from step number `after` on.
///
/// # Errors
/// As [`found`].
pub fn found_after(daemon: &Daemon, after: u64) -> Result<Vec<Vec<Found>>> {
    let steps = daemon.admin.get_json(&format!("/v1/steps?after={after}"))?;
    let mut streams: BTreeMap<(u64, u64), Vec<Found>> = BTreeMap::new();
    for step in steps.as_array().context("a list")? {
        let number = |name: &str| step[name].as_u64().with_context(|| format!("{name} in {step}"));
        let phase = step["phase"].as_str().context("phase")?.to_owned();
        let found = Found {
            step: Step { phase, tokens: number("query_tokens")? },
            operators: number("operators")?,
            operators_in_phase: number("operators_in_phase")?,
        };
        streams.entry((number("session")?, number("stream")?)).or_default().push(found);
    }
    Ok(streams.into_values().collect())
}

/// Compares the steps of one stream.
pub fn compare(truth: &[Step], found: &[Found]) -> Accuracy {
    // Longest common subsequence: one that was missed does not make those after it wrong.
    let mut row = vec![0usize; found.len() + 1];
    for step in truth {
        let mut diagonal = 0;
        for (i, other) in found.iter().map(|f| &f.step).enumerate() {
            let above = row[i + 1];
            row[i + 1] = if step == other { diagonal + 1 } else { above.max(row[i]) };
            diagonal = above;
        }
    }
    Accuracy {
        steps: truth.len().max(found.len()),
        right: row[found.len()],
        operators: found.iter().map(|f| f.operators).sum(),
        operators_right: found.iter().map(|f| f.operators_in_phase).sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_missed_invented_and_mistaken_are_wrong() {
        let steps = |text: &str| -> Vec<Step> {
            let phase = |c| if c == 'p' { "prefill" } else { "decode" };
            text.chars().map(|c| Step { phase: phase(c).to_owned(), tokens: 1 }).collect()
        };
        for (truth, found, right, of) in [
            ("pddd", "pddd", 4, 4),
            ("pddd", "pdd", 3, 4),
            ("pdd", "pddd", 3, 4),
            ("pddp", "pdpp", 3, 4),
            ("pd", "", 0, 2),
        ] {
            let found: Vec<_> =
                steps(found).into_iter().map(|step| Found { step, operators: 10, operators_in_phase: 9 }).collect();
            let accuracy = compare(&steps(truth), &found);
            assert_eq!((accuracy.right, accuracy.steps), (right, of), "{truth}");
            assert_eq!(accuracy.operators_right * 10, accuracy.operators * 9);
        }
    }
}

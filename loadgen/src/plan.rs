//! From the command line to a plan: what is sent when, decided before the clock starts.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, ensure};
use loadgen::dataset::{self, Planned};
use loadgen::profile::{self, Gaps, Stage};
use loadgen::prompt::{Block, Kind, Prompt};
use loadgen::schedule;
use loadgen::text;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::body::nanos;
use crate::cli::{ArrivalPattern, DatasetName, RampUp, RunArgs};

/// Requests sent where neither a number nor a duration is given.
const REQUESTS_DEFAULT: usize = 100;

/// What is sent when, from the arguments alone: the same arguments give the same plan. A session's turns stand together.
///
/// # Errors
/// A bad argument or file, with what was expected.
pub fn plan(args: &RunArgs) -> anyhow::Result<Vec<Planned>> {
    check(args)?;
    let mut plan = match args.dataset_name {
        DatasetName::Random => random(args)?,
        DatasetName::Trace => trace(args)?,
        DatasetName::Sharegpt => {
            let sessions = text::sharegpt(&read(args)?, args.multi_turn).with_context(|| path(args))?;
            spread(args, sessions)?
        }
        DatasetName::Custom => {
            let lines = text::json_lines(&read(args)?, args.random_output_len).with_context(|| path(args))?;
            spread(args, lines.into_iter().map(|line| vec![line]).collect())?
        }
    };
    if args.quick {
        plan.truncate(10);
        plan.iter_mut().for_each(|p| p.output_tokens = p.output_tokens.min(32));
    }
    cancel(args, &mut plan);
    ensure!(!plan.is_empty(), "nothing to send: --num-prompts is 0 or the filters leave no request");
    Ok(plan)
}

fn check(args: &RunArgs) -> anyhow::Result<()> {
    ensure!((0.0..1.0).contains(&args.random_range_ratio), "--random-range-ratio must be at least 0 and below 1");
    ensure!((0.0..=100.0).contains(&args.request_cancellation_rate), "--request-cancellation-rate is a percentage");
    for (name, seconds) in
        [("--think-time", args.think_time), ("--request-cancellation-delay", args.request_cancellation_delay)]
    {
        ensure!(seconds >= 0.0 && seconds.is_finite(), "{name} must be 0 or more, not {seconds}");
    }
    for (name, value) in [("--request-rate", args.request_rate), ("--trace-speedup", args.trace_speedup)] {
        ensure!(value.is_none_or(|v| v > 0.0), "{name} must be above 0, not {}", value.unwrap_or_default());
    }
    Ok(())
}

/// Moments at which requests or sessions begin; as many as `count`, or as the stages give.
fn moments(args: &RunArgs, count: Option<usize>) -> anyhow::Result<Vec<f64>> {
    let gaps = match args.arrival_pattern {
        ArrivalPattern::Constant => Gaps::Constant,
        ArrivalPattern::Gamma => Gaps::Gamma(args.burstiness),
    };
    let rate = args.request_rate.unwrap_or(f64::INFINITY);
    let stages: Vec<Stage> = match (&args.stages, args.ramp_up_strategy, args.benchmark_duration) {
        (Some(stages), ..) => profile::parse(stages).map_err(anyhow::Error::msg)?,
        (None, Some(strategy), _) => {
            let ends = (args.ramp_up_start_rps.unwrap_or_default(), args.ramp_up_end_rps.unwrap_or_default());
            let count = count.unwrap_or(REQUESTS_DEFAULT);
            vec![profile::ramp(count, ends.0, ends.1, strategy == RampUp::Exponential)?]
        }
        (None, None, Some(seconds)) => {
            ensure!(rate.is_finite(), "--benchmark-duration needs a --request-rate");
            ensure!(seconds > 0.0 && seconds.is_finite(), "--benchmark-duration must be above 0, not {seconds}");
            vec![Stage { seconds, from: rate, to: rate, exponential: false }]
        }
        (None, None, None) if gaps == Gaps::Constant && rate.is_finite() => {
            let count = count.unwrap_or(REQUESTS_DEFAULT);
            return Ok((0..count).map(|i| i as f64 / rate).collect());
        }
        (None, None, None) => {
            return Ok(schedule::arrivals(count.unwrap_or(REQUESTS_DEFAULT), rate, args.burstiness, args.seed)?);
        }
    };
    Ok(profile::arrivals(&stages, gaps, count, args.seed)?)
}

fn random(args: &RunArgs) -> anyhow::Result<Vec<Planned>> {
    let at = moments(args, args.num_prompts)?;
    let turns = args.session_turns as usize;
    let lengths = dataset::random_lengths(
        at.len() * turns,
        args.random_input_len,
        args.random_output_len,
        args.random_range_ratio,
        args.seed,
    );
    let mut rng = ChaCha8Rng::seed_from_u64(args.seed ^ Kind::Prefix as u64);
    let mut plan = Vec::with_capacity(lengths.len());
    for (session, at_s) in at.into_iter().enumerate() {
        let mut blocks = Vec::new();
        if args.random_prefix_len > 0 {
            let which = rng.random_range(0..args.num_prefixes);
            blocks.push(Block::new(Kind::Prefix, args.seed, u64::from(which), args.random_prefix_len));
        }
        for turn in 0..turns {
            let index = plan.len();
            let (question, answer) = lengths[index];
            blocks.push(Block::new(Kind::Own, args.seed, index as u64, question));
            let at_s = if turn == 0 { at_s } else { args.think_time };
            let mut planned = Planned::new(at_s, Prompt::Blocks(blocks.clone()), answer);
            planned.turn = (turns > 1).then_some((session as u32, turn as u32));
            plan.push(planned);
            // What the server said is not known yet; as many tokens stand for it.
            blocks.push(Block::new(Kind::Answer, args.seed, index as u64, answer));
        }
    }
    Ok(plan)
}

fn trace(args: &RunArgs) -> anyhow::Result<Vec<Planned>> {
    let rows = dataset::parse_trace(&read(args)?).with_context(|| path(args))?;
    let end = args.trace_duration.map_or(f64::INFINITY, |d| args.trace_start + d);
    let mut plan: Vec<Planned> = rows
        .into_iter()
        .filter(|r| r.at_s >= args.trace_start && r.at_s < end)
        .filter(|r| args.max_total_len.is_none_or(|max| r.prompt_tokens.saturating_add(r.output_tokens) <= max))
        .take(args.num_prompts.unwrap_or(usize::MAX))
        .collect();
    dataset::rescale(&mut plan, args.request_rate);
    for planned in &mut plan {
        planned.prompt.reseed(args.seed);
        planned.at_s /= args.trace_speedup.unwrap_or(1.0);
    }
    Ok(plan)
}

/// Gives sessions their moments.
fn spread(args: &RunArgs, mut sessions: Vec<text::Session>) -> anyhow::Result<Vec<Planned>> {
    sessions.truncate(args.num_prompts.unwrap_or(usize::MAX));
    let fits =
        |p: &Planned| args.max_total_len.is_none_or(|max| p.prompt_tokens.saturating_add(p.output_tokens) <= max);
    sessions.retain(|session| session.iter().all(fits));
    let at = moments(args, Some(sessions.len()))?;
    let mut plan = Vec::new();
    for ((session, turns), at_s) in sessions.into_iter().enumerate().zip(at) {
        let several = turns.len() > 1;
        for (turn, mut planned) in turns.into_iter().enumerate() {
            planned.at_s = if turn == 0 { at_s } else { args.think_time };
            planned.turn = several.then_some((session as u32, turn as u32));
            plan.push(planned);
        }
    }
    Ok(plan)
}

fn cancel(args: &RunArgs, plan: &mut [Planned]) {
    let mut rng = ChaCha8Rng::seed_from_u64(args.seed ^ 0xca_4ce1);
    for planned in plan {
        if rng.random_bool(args.request_cancellation_rate / 100.0) {
            planned.cancel_after_s = Some(args.request_cancellation_delay);
        }
    }
}

fn path(args: &RunArgs) -> String {
    args.dataset_path.as_deref().unwrap_or(Path::new("")).display().to_string()
}

fn read(args: &RunArgs) -> anyhow::Result<String> {
    let file = args.dataset_path.as_ref().context("this --dataset-name needs --dataset-path FILE")?;
    std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))
}

/// Writes the plan, one JSON object a line: when, how long, and a hash of what is asked.
///
/// # Errors
/// If `out` does not take it.
pub fn print(plan: &[Planned], out: &mut impl Write) -> std::io::Result<()> {
    for (index, p) in plan.iter().enumerate() {
        let mut line = json!({
            "index": index,
            "at_ns": nanos(p.at_s),
            "prompt_tokens": p.prompt_tokens,
            "output_tokens": p.output_tokens,
            "prompt": &hash(format!("{:?}", p.prompt).as_bytes())[..16],
        });
        if let Some((session, turn)) = p.turn {
            line["session"] = json!(session);
            line["turn"] = json!(turn);
        }
        if let Some(after_s) = p.cancel_after_s {
            line["cancel_after_ns"] = json!(nanos(after_s));
        }
        writeln!(out, "{line}")?;
    }
    Ok(())
}

/// Hash of everything that is sent and when: equal for runs that may be compared.
pub fn workload(args: &RunArgs, plan: &[Planned]) -> String {
    let mut text = Vec::new();
    print(plan, &mut text).expect("memory takes every write");
    let about = (args.vocab_size, &args.endpoint, args.max_concurrency, args.ignore_eos, args.extra_body.as_deref());
    text.extend_from_slice(format!("{about:?}").as_bytes());
    hash(&text)
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

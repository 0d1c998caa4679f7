//! `--experiment agree`: the demo's trace with real processes on the paced device, and the same in virtual time.
//!
//! What the host takes (waking up for a request, turning a step round) is measured first, with one request alone on the
//! whole path, and given to the simulator. What differs then is everything that it leaves out: processes that compete for
//! cores, jitter, HTTP under load. Means and throughput are compared; the promise is 5 %.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use loadgen::dataset;
use sched::calls::Batch;
use sched::policy::PolicyName;
use sched::{CoRun, PolicyConfig};
use serde_json::json;
use sim::engine::{EngineConfig, Mode};
use sim::report::{Objectives, Report};
use sim::step::Weigher;
use sim::{Host, Setup};
use stack::StreamEvent;

use super::workload::{MODEL, PROFILE, requests};
use crate::build::{self, Scratch};
use crate::demo::{self, Serves};
use crate::figures::{Figures, median};

/// Promised.
const ERROR_MAX: f64 = 0.05;
/// Overlap of both sides.
const OMEGA: f64 = 0.5;
/// What the demo's engine runs with.
const MODEL_LEN_MAX: u32 = 8192;
const SLOTS: usize = 256;
/// The request that the host is measured with: tokens of its prompt and its answer. As long as the trace's on average.
const LONE: (u32, u32) = (1024, 128);

/// Runs both sides under `fifo` and `phase`.
pub fn run(quick: bool, figures: &mut Figures) -> Result<()> {
    build::programs()?;
    let scratch = Scratch::new()?;
    let seconds = if quick { 12 } else { 60 };
    let spec = format!("{}:timing:paced:omega={OMEGA}", PROFILE.soc_name);
    let path = build::root().join("loadgen/data/azure_conv_excerpt.csv");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let mut plan = dataset::parse_trace(&text)?;
    plan.retain(|r| r.prompt_tokens.saturating_add(r.output_tokens) <= MODEL_LEN_MAX);
    plan.truncate((f64::from(seconds) * demo::TRACE_RATE) as usize);
    let requests = requests(&plan, demo::TRACE_RATE);
    let corun = CoRun { omega: OMEGA, ..CoRun::default() };
    let host = measure_host(scratch.path(), &spec, if quick { 5 } else { 15 })?;
    let us = |ns: u64| ns as f64 * 1e-3;
    println!(
        "\nhost, one request alone: {:.0} µs to turn a step round, {:.0} µs to wake up",
        us(host.turn),
        us(host.wake)
    );
    figures.set("host_turn_us", us(host.turn));
    figures.set("host_wake_us", us(host.wake));
    let mut worst = 0.0f64;
    println!("\nAzure conversation, {seconds} s at {} requests/s, emulated {spec}", demo::TRACE_RATE);
    println!("{:<8} {:<22} {:>12} {:>12} {:>9}", "", "", "processes", "virtual", "error");
    for policy in [PolicyName::Fifo, PolicyName::Phase] {
        let name = policy.name();
        demo::trace(scratch.path(), &spec, name, &Serves::Reference(&demo::QWEN), seconds, None, figures)?;
        let engine = EngineConfig { max_num_seqs: SLOTS, ..EngineConfig::new(Mode::Split, &MODEL, &PROFILE) };
        let setup = Setup { host, ..Setup::single(PROFILE, corun, PolicyConfig::named(policy), engine) };
        let mut weigher = Weigher::new(MODEL, PROFILE);
        let outcomes = sim::run(&setup, &requests).outcomes;
        let report = Report::new(&outcomes, &Objectives::default(), |prompt| weigher.prefill_alone(prompt));
        for (figure, virtual_) in [
            ("ttft_mean_ms", report.ttft_s.mean * 1e3),
            ("ttft_p50_ms", report.ttft_s.p50 * 1e3),
            ("tpot_mean_ms", report.tpot_s.mean * 1e3),
            ("e2el_mean_ms", report.e2e_s.mean * 1e3),
            ("output_tokens_per_s", report.tokens_per_s),
        ] {
            let real = figures.get(&format!("{name}_{figure}")).with_context(|| format!("loadgen gave no {figure}"))?;
            let error = virtual_ / real - 1.0;
            worst = worst.max(error.abs());
            println!("{name:<8} {figure:<22} {real:>12.2} {virtual_:>12.2} {:>8.2} %", error * 100.0);
            figures.set(format!("virtual_{name}_{figure}"), virtual_);
            figures.set(format!("virtual_{name}_{figure}_error"), error);
        }
    }
    figures.set("virtual_worst_error", worst);
    let verdict = if worst <= ERROR_MAX { "within" } else { "outside" };
    println!("worst error {:.2} %, {verdict} the {:.0} % promised", worst * 100.0, ERROR_MAX * 100.0);
    Ok(())
}

/// What the host takes, from requests that run alone, one after the other: a token's interval beyond its step's modelled
/// time, and the first token's beyond the prompt's and that.
fn measure_host(dir: &Path, spec: &str, requests: usize) -> Result<Host> {
    let stack = demo::Stack::start(dir, "host", spec, "phase", &Serves::Reference(&demo::QWEN))?;
    let (prompt, output) = LONE;
    let tokens: Vec<u32> = (0..prompt).map(|i| 1 + i % 900).collect();
    let body = json!({ "model": "qwen2.5-7b", "prompt": tokens, "max_tokens": output, "ignore_eos": true });
    let (mut first_s, mut between_s) = (Vec::new(), Vec::new());
    for _ in 0..requests {
        let start = Instant::now();
        let mut times = Vec::new();
        for event in stack.gateway.http.stream("/v1/completions", &body)? {
            if let StreamEvent::Text(_, at) = event? {
                times.push(at);
            }
        }
        let (Some(&first), Some(&last)) = (times.first(), times.last()) else { bail!("a request without an answer") };
        first_s.push((first - start).as_secs_f64());
        between_s.push((last - first).as_secs_f64() / f64::from(output - 1));
    }
    let mut weigher = Weigher::new(MODEL, PROFILE);
    let step =
        |weigher: &mut Weigher, context: u32| weigher.step(&Batch::decode(1, u64::from(context)), 1).whole().solo;
    // The answer's tokens see on average so much.
    let decode_s = step(&mut weigher, prompt + output / 2) as f64 * 1e-9;
    let turn_s = median(&between_s) - decode_s;
    let wake_s = median(&first_s) - weigher.prefill_alone(prompt) as f64 * 1e-9 - turn_s;
    let ns = |s: f64| (s.max(0.0) * 1e9) as u64;
    Ok(Host { turn: ns(turn_s), wake: ns(wake_s), ..Host::REFERENCE })
}

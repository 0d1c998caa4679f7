//! `--experiment agree`: the demo's trace with real processes on the paced device, and the same in virtual time.
//!
//! What differs is everything that the simulator leaves out: gateway, HTTP, the host's jitter. Means and throughput are
//! compared; the promise is 5 %.

use anyhow::{Context, Result};
use loadgen::dataset;
use sched::policy::PolicyName;
use sched::{CoRun, PolicyConfig};
use sim::Setup;
use sim::engine::{EngineConfig, Mode};
use sim::report::{Objectives, Report};
use sim::step::Weigher;

use super::workload::{MODEL, PROFILE, requests};
use crate::build::{self, Scratch};
use crate::demo;
use crate::figures::Figures;

/// Promised.
const ERROR_MAX: f64 = 0.05;
/// Overlap of both sides.
const OMEGA: f64 = 0.5;
/// What the demo's engine runs with.
const MODEL_LEN_MAX: u32 = 8192;
const SLOTS: usize = 256;

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
    let mut worst = 0.0f64;
    println!("\nAzure conversation, {seconds} s at {} requests/s, emulated {spec}", demo::TRACE_RATE);
    println!("{:<8} {:<22} {:>12} {:>12} {:>9}", "", "", "processes", "virtual", "error");
    for policy in [PolicyName::Fifo, PolicyName::Phase] {
        let name = policy.name();
        demo::trace(scratch.path(), &spec, name, seconds, figures)?;
        let engine = EngineConfig { max_num_seqs: SLOTS, ..EngineConfig::new(Mode::Split, &MODEL, &PROFILE) };
        let setup = Setup::single(PROFILE, corun, PolicyConfig::named(policy), engine);
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

//! `cargo xtask bench vllm`: what virtualization costs unmodified vLLM, eager and with ACL graphs.
//!
//! The engine runs in the decoder's own process, without its HTTP server, so that a step is the scheduler's, the model's and the
//! device's work and nothing else. A step decodes [`SEQUENCES`] sequences; the figure is the time of a step.

use std::path::Path;

use anyhow::Result;
use stack::{Daemon, Via};

use super::decoder::{Decoder, Pairs, Trips};
use crate::Measure;
use crate::build::{self, Scratch};
use crate::figures::Figures;
use crate::vllm;
use crate::vllm::server::checkpoint;

/// Layers of the model: those of a 7B, so that a step has its number of operators.
const LAYERS: &str = "28";
const SEQUENCES: &str = "4";
const SPEC: &str = "Ascend910B3:functional:hbm=2";
/// Many short turns, as in [`super::torch`].
const PAIRS: usize = 61;
const PAIRS_QUICK: usize = 7;
const TOKENS_A_TURN: u32 = 16;
/// Of the runs whose round trips are counted.
const TOKENS: u32 = 32;

/// Runs the benchmark.
///
/// # Errors
/// If the environment cannot be made or a program fails.
pub fn run(measure: &Measure) -> Result<()> {
    build::programs()?;
    let python = vllm::ready()?;
    let scratch = Scratch::new()?;
    let model = checkpoint(&python, "tiny", scratch.path(), &[LAYERS])?;
    let pairs = if measure.quick { PAIRS_QUICK } else { PAIRS };
    let mut figures = Figures::default();
    for mode in ["eager", "graphs"] {
        compare(&python, scratch.path(), &model, mode, pairs, &mut figures)?;
    }
    figures.write(measure.json.as_deref())
}

fn compare(python: &Path, dir: &Path, model: &Path, mode: &str, pairs: usize, figures: &mut Figures) -> Result<()> {
    println!("starting two engines: Qwen2 of {LAYERS} layers, tiny, fp32, {SEQUENCES} sequences, {mode}, {SPEC}");
    let daemon = Daemon::start_named(dir, mode, SPEC, "fifo")?;
    let start = |via: &Via<'_>| {
        Decoder::start(python, via, "vllm/decode_speed.py", |command| {
            command.arg(model).args([mode, SEQUENCES]).env("VLLM_NO_USAGE_STATS", "1");
        })
    };
    let mut direct = start(&Via::Direct(SPEC))?;
    let mut through = start(&Via::Daemon(&daemon))?;
    direct.run(TOKENS)?;
    let trips = Trips::count(&mut through, &daemon, TOKENS)?;
    let measured = Pairs::run((&mut direct, &mut through), &daemon, pairs, TOKENS_A_TURN)?;
    println!(
        "unmodified vLLM {}, {mode}, {pairs} interleaved pairs of {TOKENS_A_TURN} steps, emulated device",
        through.library
    );
    measured.show(&format!("vllm_{mode}"), figures);
    println!("  {:.2} synchronous round trips a step, {:.0} before the first", trips.a_token, trips.start);
    figures.set(format!("vllm_{mode}_round_trips_per_step"), trips.a_token);
    Ok(())
}

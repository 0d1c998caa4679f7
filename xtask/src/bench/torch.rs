//! `cargo xtask bench torch`: what virtualization costs unmodified torch_npu.
//!
//! Two Python processes with the same tiny model stay up, one with the device in its own process, one through a daemon, and
//! decode by turns. The daemon counts the calls that waited for its answer.
//!
//! How many those are is the model library's doing: each value that it reads on the host is one. So they are counted for each
//! attention implementation, and for a second, newer version of the library ([`NEWER`]), which reads less. A `generate` of n
//! tokens takes a + b·n of them, with a for the prompt and for what `generate` looks at first; b is the figure.

use std::path::Path;

use anyhow::Result;
use stack::{Daemon, Via};

use super::decoder::{Decoder, Pairs, Trips};
use crate::Measure;
use crate::build::{self, Scratch};
use crate::figures::Figures;
use crate::torch;
use crate::torch::environment::{self, Environment};

/// Layers of the model: those of a 7B, so that a token has its number of operators.
const LAYERS: u32 = 28;
const SPEC: &str = "Ascend910B3:functional";
/// Many short turns tell more than few long ones: what disturbs a machine for a second falls on both sides of a pair.
const PAIRS: usize = 81;
const PAIRS_QUICK: usize = 7;
const TOKENS_A_TURN: u32 = 16;
/// Of the runs whose round trips are counted.
const TOKENS: u32 = 64;
const TOKENS_QUICK: u32 = 24;

/// What the newer transformers is installed from.
const NEWER: &str = "tests/python/torch/transformers-5.txt";

/// A model library and its attention.
struct Setting<'a> {
    /// Where the library is, if not in the environment itself.
    library: Option<&'a Path>,
    /// `sdpa` or `eager`.
    attention: &'a str,
    /// Of the figure.
    name: &'a str,
}

/// What the ratio is measured with.
const PLAIN: Setting<'static> = Setting { library: None, attention: "sdpa", name: "" };

/// Starts the decoder of PyTorch.
fn start(env: &Environment, via: &Via<'_>, setting: &Setting<'_>) -> Result<Decoder> {
    Decoder::start(&env.python, via, "torch/decode_speed.py", |command| {
        if let Some(library) = setting.library {
            command.env("PYTHONPATH", library);
        }
        command.arg(LAYERS.to_string()).arg(setting.attention);
    })
}

fn show(trips: &Trips, library: &str, setting: &Setting<'_>, figures: &mut Figures) {
    let Setting { attention, name, .. } = setting;
    println!(
        "  transformers {library}, {attention}: {:.2} synchronous round trips a token, {:.0} before the first",
        trips.a_token, trips.start
    );
    figures.set(format!("torch_round_trips_per_token{name}"), trips.a_token);
    figures.set(format!("torch_round_trips_before_the_first{name}"), trips.start);
}

/// Runs the benchmark.
pub fn run(measure: &Measure) -> Result<()> {
    build::programs()?;
    let env = environment::ready(torch::FIRST)?;
    let scratch = Scratch::new()?;
    let (pairs, tokens) = if measure.quick { (PAIRS_QUICK, TOKENS_QUICK) } else { (PAIRS, TOKENS) };
    let daemon = Daemon::start_named(scratch.path(), "torch", SPEC, "fifo")?;
    let mut figures = compare(&daemon, &env, pairs, tokens)?;
    let newer = env.beside("transformers-5", NEWER)?;
    for setting in [
        Setting { attention: "eager", name: "_eager", ..PLAIN },
        Setting { library: Some(&newer), name: "_newer", ..PLAIN },
        Setting { library: Some(&newer), attention: "eager", name: "_newer_eager" },
    ] {
        let mut decoder = start(&env, &Via::Daemon(&daemon), &setting)?;
        show(&Trips::count(&mut decoder, &daemon, tokens)?, &decoder.library, &setting, &mut figures);
    }
    figures.write(measure.json.as_deref())
}

fn compare(daemon: &Daemon, env: &Environment, pairs: usize, tokens: u32) -> Result<Figures> {
    println!("starting two decoders: Qwen2 of {LAYERS} layers, tiny, bf16, {SPEC}");
    let mut direct = start(env, &Via::Direct(SPEC), &PLAIN)?;
    let mut through = start(env, &Via::Daemon(daemon), &PLAIN)?;
    direct.run(tokens / 2)?;
    let trips = Trips::count(&mut through, daemon, tokens)?;
    let measured = Pairs::run((&mut direct, &mut through), daemon, pairs, TOKENS_A_TURN)?;
    println!("unmodified torch_npu, {pairs} interleaved pairs of {TOKENS_A_TURN} tokens, emulated device");
    let mut figures = Figures::default();
    measured.show("torch", &mut figures);
    show(&trips, &through.library, &PLAIN, &mut figures);
    Ok(figures)
}

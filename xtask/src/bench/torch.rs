//! `cargo xtask bench torch`: what virtualization costs unmodified torch_npu.
//!
//! Two Python processes with the same tiny model stay up, one with the device in its own process, one through a daemon, and
//! decode by turns. The daemon counts the calls that waited for its answer.
//!
//! How many those are is the model library's doing: each value that it reads on the host is one. So they are counted for each
//! attention implementation, and for a second, newer version of the library ([`NEWER`]), which reads less. A `generate` of n
//! tokens takes a + b·n of them, with a for the prompt and for what `generate` looks at first; b is the figure.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, ensure};
use stack::{Daemon, Via, program_path};

use crate::Measure;
use crate::build::{self, Scratch};
use crate::figures::{Figures, median, paired_ratio};
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

/// A process that decodes when asked to.
struct Decoder {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    /// Version of transformers.
    library: String,
}

impl Decoder {
    fn start(env: &Environment, via: &Via<'_>, setting: &Setting<'_>) -> Result<Self> {
        let mut command = Command::new(program_path("vnpu")?);
        command.arg("run");
        match via {
            Via::Daemon(daemon) => command.arg("--socket").arg(&daemon.socket),
            Via::Direct(spec) => command.args(["--direct", spec]),
        };
        command.arg("--").arg(&env.python).arg(build::root().join("tests/python/torch/decode_speed.py"));
        if let Some(library) = setting.library {
            command.env("PYTHONPATH", library);
        }
        command.arg(LAYERS.to_string()).arg(setting.attention).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("starting Python")?;
        let stdin = child.stdin.take().context("stdin was piped")?;
        let stdout = BufReader::new(child.stdout.take().context("stdout was piped")?);
        let mut decoder = Self { child, stdin, stdout, library: String::new() };
        // torch_npu greets on the same stream.
        while decoder.library.is_empty() {
            decoder.library = decoder.line()?.strip_prefix("ready ").unwrap_or_default().to_owned();
        }
        Ok(decoder)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        ensure!(self.stdout.read_line(&mut line)? > 0, "the decoder ended; its last words are above");
        Ok(line.trim().to_owned())
    }

    /// Milliseconds a token.
    fn run(&mut self, tokens: u32) -> Result<f64> {
        writeln!(self.stdin, "{tokens}")?;
        let line = self.line()?;
        line.parse().with_context(|| format!("`{line}` is no time"))
    }
}

impl Drop for Decoder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Calls that waited for an answer, and operators completed, of all sessions so far.
fn counters(daemon: &Daemon) -> Result<(f64, f64)> {
    let status = daemon.status()?;
    let trips = status["round_trips_total"].as_f64().context("no round trips in the daemon's status")?;
    let phases = status["phases"].as_array().context("no phases in the daemon's status")?;
    Ok((trips, phases.iter().filter_map(|p| p["completed"].as_f64()).sum()))
}

/// Synchronous round trips of `generate`.
struct Trips {
    /// Of the prompt, and of what is looked at before it.
    start: f64,
    a_token: f64,
}

impl Trips {
    /// Counts those of two lengths, the longer one twice `tokens`.
    fn count(decoder: &mut Decoder, daemon: &Daemon, tokens: u32) -> Result<Self> {
        // The first time, memory is taken from the device; each taking is a round trip.
        decoder.run(2 * tokens)?;
        let mut of = |tokens| -> Result<f64> {
            let (before, _) = counters(daemon)?;
            decoder.run(tokens)?;
            Ok(counters(daemon)?.0 - before)
        };
        let (short, long) = (of(tokens)?, of(2 * tokens)?);
        Ok(Self { start: 2.0 * short - long, a_token: (long - short) / f64::from(tokens) })
    }

    fn show(&self, library: &str, setting: &Setting<'_>, figures: &mut Figures) {
        let Setting { attention, name, .. } = setting;
        println!(
            "  transformers {library}, {attention}: {:.2} synchronous round trips a token, {:.0} before the first",
            self.a_token, self.start
        );
        figures.set(format!("torch_round_trips_per_token{name}"), self.a_token);
        figures.set(format!("torch_round_trips_before_the_first{name}"), self.start);
    }
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
        let mut decoder = Decoder::start(&env, &Via::Daemon(&daemon), &setting)?;
        Trips::count(&mut decoder, &daemon, tokens)?.show(&decoder.library, &setting, &mut figures);
    }
    figures.write(measure.json.as_deref())
}

fn compare(daemon: &Daemon, env: &Environment, pairs: usize, tokens: u32) -> Result<Figures> {
    println!("starting two decoders: Qwen2 of {LAYERS} layers, tiny, bf16, {SPEC}");
    let mut direct = Decoder::start(env, &Via::Direct(SPEC), &PLAIN)?;
    let mut through = Decoder::start(env, &Via::Daemon(daemon), &PLAIN)?;
    direct.run(tokens / 2)?;
    let trips = Trips::count(&mut through, daemon, tokens)?;
    let (_, operators) = counters(daemon)?;
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for pair in 0..pairs {
        // Who goes first alternates, so that a drift of the machine favours neither.
        let order = if pair % 2 == 0 { [true, false] } else { [false, true] };
        for is_direct in order {
            let value = if is_direct { direct.run(TOKENS_A_TURN)? } else { through.run(TOKENS_A_TURN)? };
            if is_direct { a.push(value) } else { b.push(value) }
        }
        eprint!("\rpair {} of {pairs}", pair + 1);
    }
    eprintln!();
    let (_, operators_after) = counters(daemon)?;
    let generated = (pairs as u32 * TOKENS_A_TURN) as f64;
    let (ratio, low, high) = paired_ratio(&a, &b);
    let operators = (operators_after - operators) / generated;
    println!(
        "unmodified torch_npu, {pairs} interleaved pairs of {TOKENS_A_TURN} tokens, emulated device\n  direct {:.2} ms/token, daemon {:.2} \
         ms/token, ratio {ratio:.4} [{low:.4}, {high:.4}]\n  {operators:.0} operators and copies a token",
        median(&a),
        median(&b),
    );
    let mut figures = Figures::default();
    trips.show(&through.library, &PLAIN, &mut figures);
    figures.set("torch_direct_ms_per_token", median(&a));
    figures.set("torch_daemon_ms_per_token", median(&b));
    figures.set("torch_ratio", ratio);
    figures.set("torch_ratio_low", low);
    figures.set("torch_ratio_high", high);
    figures.set("torch_operators_per_token", operators);
    Ok(figures)
}

//! `cargo xtask bench overhead`: what virtualization costs against the passthrough.
//!
//! Passthrough is the interposer's `direct` mode: the same device backend in the engine's own process. Both sides run
//! interleaved, pair by pair, and the report is the median of the paired ratios with its spread: single runs on a shared
//! machine say little, pairs say more.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use stack::{Daemon, Engine, Http, Via, program_path};

use crate::Measure;
use crate::build::{self, Scratch};
use crate::figures::{Figures, median, paired_ratio};

/// Measured pairs; odd, so that a median is a run.
const PAIRS: usize = 7;
const PAIRS_QUICK: usize = 3;

/// Runs the benchmark.
pub fn run(measure: &Measure) -> Result<()> {
    build::programs()?;
    build::example("interposer", "overhead")?;
    let scratch = Scratch::new()?;
    let pairs = if measure.quick { PAIRS_QUICK } else { PAIRS };
    let mut figures = Figures::default();
    calls(scratch.path(), pairs, measure.quick, &mut figures)?;

    let model = build::root().join("models/tiny-qwen2");
    let model = model.to_str().context("the path of the source tree is not UTF-8")?;
    let tiny: &[&str] = &["--model", model, "--served-model-name", "m"];
    let tokens = if measure.quick { 200 } else { 600 };
    engines(scratch.path(), "tiny_functional", "Ascend910B3:functional", tiny, 4, tokens, pairs, &mut figures)?;
    let qwen: &[&str] =
        &["--model-preset", "qwen2.5-7b", "--load-format", "dummy", "--dtype", "bfloat16", "--served-model-name", "m"];
    let tokens = if measure.quick { 60 } else { 200 };
    let spec = "Ascend910B3:timing:paced:omega=0.5";
    engines(scratch.path(), "paced_7b", spec, qwen, 8, tokens, pairs, &mut figures)?;
    figures.write(measure.json.as_deref())
}

/// Posted operators and synchronous calls, from the interposer's own C entry points.
fn calls(dir: &Path, pairs: usize, quick: bool, figures: &mut Figures) -> Result<()> {
    let example = program_path("examples/overhead")?;
    let daemon = Daemon::start_named(dir, "calls", "Ascend910B3:timing:unpaced", "passthrough")?;
    let json = dir.join("calls.json");
    let mut samples: Vec<(String, Vec<f64>, Vec<f64>)> = Vec::new();
    for _ in 0..pairs {
        for direct in [true, false] {
            let via = if direct { Via::Direct("Ascend910B3:timing:unpaced") } else { Via::Daemon(&daemon) };
            let mut command = via.run(None)?;
            command.arg(&example).arg("--json").arg(&json);
            if quick {
                command.arg("--quick");
            }
            let out = command.output().context("starting the overhead example")?;
            ensure!(out.status.success(), "overhead example: {}", String::from_utf8_lossy(&out.stderr));
            let map: serde_json::Map<String, Value> = serde_json::from_str(&std::fs::read_to_string(&json)?)?;
            for (name, value) in map {
                // A timing device moves no bytes: its bandwidths would be fiction.
                let Some(value) = value.as_f64().filter(|_| !name.ends_with("gb_s")) else { continue };
                if !samples.iter().any(|(n, ..)| *n == name) {
                    samples.push((name.clone(), Vec::new(), Vec::new()));
                }
                if let Some((_, a, b)) = samples.iter_mut().find(|(n, ..)| *n == name) {
                    if direct { a.push(value) } else { b.push(value) }
                }
            }
        }
    }
    println!("\n{:<34} {:>12} {:>12}   medians of {pairs} interleaved runs, emulated device", "", "direct", "daemon");
    for (name, direct, daemon) in samples {
        println!("{name:<34} {:>12.1} {:>12.1}", median(&direct), median(&daemon));
        figures.set(format!("direct_{name}"), median(&direct));
        figures.set(format!("daemon_{name}"), median(&daemon));
    }
    Ok(())
}

/// Tokens a second of the same engine binary, in-process against through the daemon.
#[allow(clippy::too_many_arguments)]
fn engines(
    dir: &Path,
    name: &str,
    spec: &str,
    args: &[&str],
    streams: usize,
    tokens: u32,
    pairs: usize,
    figures: &mut Figures,
) -> Result<()> {
    let daemon = Daemon::start_named(dir, name, spec, "passthrough")?;
    let direct = Engine::start(&Via::Direct(spec), None, args)?;
    let through = Engine::start(&Via::Daemon(&daemon), None, args)?;
    for engine in [&direct, &through] {
        rate(&engine.http, streams, tokens / 4)?;
    }
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for pair in 0..pairs {
        // Who goes first alternates, so that a drift of the machine favours neither.
        let order = if pair % 2 == 0 { [true, false] } else { [false, true] };
        for is_direct in order {
            let engine = if is_direct { &direct } else { &through };
            let value = rate(&engine.http, streams, tokens)?;
            if is_direct { a.push(value) } else { b.push(value) }
        }
    }
    let (ratio, low, high) = paired_ratio(&a, &b);
    println!(
        "\n{name}: {streams} streams × {tokens} tokens, {spec} (emulated)\n  direct {:.1} tok/s, daemon {:.1} tok/s, \
         ratio {ratio:.4} [{low:.4}, {high:.4}] over {pairs} interleaved pairs",
        median(&a),
        median(&b)
    );
    figures.set(format!("{name}_direct_tokens_per_s"), median(&a));
    figures.set(format!("{name}_daemon_tokens_per_s"), median(&b));
    figures.set(format!("{name}_ratio"), ratio);
    figures.set(format!("{name}_ratio_low"), low);
    figures.set(format!("{name}_ratio_high"), high);
    Ok(())
}

/// Output tokens a second of `streams` concurrent requests.
fn rate(http: &Http, streams: usize, tokens: u32) -> Result<f64> {
    let start = std::time::Instant::now();
    let total: u64 = std::thread::scope(|scope| {
        let tasks: Vec<_> = (0..streams)
            .map(|i| {
                scope.spawn(move || -> Result<u64> {
                    let prompt: Vec<u32> = (0..32).map(|k| 1 + (k * 7 + i as u32 * 13) % 900).collect();
                    let body = json!({ "model": "m", "prompt": prompt, "max_tokens": tokens, "ignore_eos": true, "temperature": 0 });
                    let answer = http.post_json("/v1/completions", &body)?;
                    answer["usage"]["completion_tokens"].as_u64().context("the answer has no usage")
                })
            })
            .collect();
        tasks
            .into_iter()
            .map(|t| t.join().map_err(|_| anyhow::anyhow!("a client thread panicked"))?)
            .sum::<Result<u64>>()
    })?;
    ensure!(total == streams as u64 * u64::from(tokens), "asked for {streams} × {tokens} tokens, got {total}");
    Ok(total as f64 / start.elapsed().as_secs_f64())
}

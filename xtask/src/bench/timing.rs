//! `cargo xtask bench timing`: the paced device against the cost model that paces it.
//!
//! The reference engine's own steps run through interposer, daemon and dispatcher, and the wall time that its host sees is
//! set against a second calculation: the operators of a step written down here from the model's dimensions, each with its
//! roofline time, and for co-running a small simulation over the contention model. Only the peaks, the efficiencies and
//! the rate formula are shared with the device.

use anyhow::{Context, Result, ensure};
use sched::model::Model;
use sched::{CoRun, Demand, OpClass, Phase, Profile, Work, corun};
use serde_json::Value;
use stack::{Daemon, Via, program_path};

use crate::Measure;
use crate::build::{self, Scratch};
use crate::figures::{Figures, median};

/// Largest error promised, as a part of the expected time.
const ERROR_MAX: f64 = 0.03;
/// The steps measured: prompt tokens, decode batch, decode context.
const STEPS: (u64, u64, u64) = (1024, 32, 2048);
/// Bytes of a weight, an activation and a cache element.
const ITEM: f64 = 2.0;

/// A product of `[m, k]` and `[k, n]`.
fn product(m: u64, k: u64, n: u64) -> Work {
    let (m, k, n) = (m as f64, k as f64, n as f64);
    Work {
        cube_flops: 2.0 * m * k * n,
        vector_flops: 0.0,
        hbm_bytes: ITEM * (m * k + k * n + m * n),
        class: OpClass::Matmul,
    }
}

/// An elementwise or row-wise operator that moves `elements` elements in and out of HBM. Its arithmetic hides behind them.
fn moves(elements: u64) -> Work {
    Work { cube_flops: 0.0, vector_flops: 0.0, hbm_bytes: ITEM * elements as f64, class: OpClass::Vector }
}

/// The operators that the engine posts for a step of `tokens` new tokens and `rows` outputs, in order. `attention` is the
/// FLOP and the cache elements read, a layer.
fn operators(m: &Model, tokens: u64, rows: u64, attention: (f64, f64)) -> Vec<Work> {
    let (hidden, ffn, heads, keys) = (m.hidden, m.ffn, m.heads * m.head_dim, m.kv_heads * m.head_dim);
    let qkv = heads + 2 * keys;
    // Embedding, cosines and sines by position, first norm.
    let mut step = vec![moves(2 * tokens * hidden), moves(2 * tokens * m.head_dim), moves(2 * tokens * m.head_dim)];
    step.push(moves(2 * tokens * hidden));
    for _ in 0..m.layers {
        step.push(product(tokens, hidden, qkv));
        step.push(moves(tokens * (2 * heads + 2 * m.head_dim)));
        step.push(moves(tokens * (2 * keys + 2 * m.head_dim)));
        step.push(moves(4 * tokens * keys));
        step.push(Work {
            cube_flops: attention.0,
            vector_flops: 0.0,
            hbm_bytes: ITEM * (attention.1 + 2.0 * (tokens * heads) as f64),
            class: OpClass::Matmul,
        });
        step.push(product(tokens, heads, hidden));
        step.push(moves(4 * tokens * hidden));
        step.push(product(tokens, hidden, 2 * ffn));
        step.push(moves(3 * tokens * ffn));
        step.push(product(tokens, ffn, hidden));
        step.push(moves(4 * tokens * hidden));
    }
    if rows < tokens {
        step.push(moves(2 * rows * hidden));
    }
    step.push(product(rows, hidden, m.vocab));
    step.push(moves(rows * m.vocab));
    step
}

/// A prompt of `tokens` tokens, from nothing.
fn prefill(m: &Model, tokens: u64) -> Vec<Work> {
    let s = tokens as f64;
    operators(m, tokens, 1, (2.0 * (m.heads * m.head_dim) as f64 * s * s, 2.0 * (m.kv_heads * m.head_dim) as f64 * s))
}

/// One token for each of `batch` sequences with `context` tokens.
fn decode(m: &Model, batch: u64, context: u64) -> Vec<Work> {
    let all = (batch * context) as f64;
    operators(
        m,
        batch,
        batch,
        (4.0 * (m.heads * m.head_dim) as f64 * all, 2.0 * (m.kv_heads * m.head_dim) as f64 * all),
    )
}

/// Two streams that repeat their steps, with a pause of the host in between; returns the mean step time of each, pause
/// left out, over `span_s` of simulated time.
fn side_by_side(steps: [(&[Demand], Phase, f64); 2], model: &CoRun, span_s: f64) -> [f64; 2] {
    struct Stream {
        next: usize,
        left_s: f64,
        resumes_s: f64,
        began_s: f64,
        times_s: Vec<f64>,
    }
    let new = |d: &[Demand]| Stream { next: 0, left_s: d[0].solo_s, resumes_s: 0.0, began_s: 0.0, times_s: Vec::new() };
    let mut streams = steps.map(|(demands, ..)| new(demands));
    let mut now_s = 0.0;
    while now_s < span_s {
        let running: Vec<usize> = (0..2).filter(|&i| streams[i].resumes_s <= now_s).collect();
        let heads: Vec<_> = running.iter().map(|&i| (steps[i].0[streams[i].next], steps[i].1)).collect();
        let rates = corun::rates(&heads, model);
        let ends = running.iter().zip(&rates).map(|(&i, rate)| now_s + streams[i].left_s / rate);
        let resumes = streams.iter().map(|s| s.resumes_s).filter(|&t| t > now_s);
        let until_s = ends.chain(resumes).fold(f64::INFINITY, f64::min);
        for (&i, rate) in running.iter().zip(&rates) {
            let (stream, (demands, _, pause_s)) = (&mut streams[i], steps[i]);
            stream.left_s -= (until_s - now_s) * rate;
            if stream.left_s > 1e-12 {
                continue;
            }
            stream.next += 1;
            if stream.next == demands.len() {
                stream.times_s.push(until_s - stream.began_s);
                (stream.next, stream.resumes_s) = (0, until_s + pause_s);
                stream.began_s = stream.resumes_s;
            }
            stream.left_s = demands[stream.next].solo_s;
        }
        now_s = until_s;
    }
    streams.map(|s| s.times_s.iter().sum::<f64>() / s.times_s.len().max(1) as f64)
}

/// Runs the benchmark; fails if an error exceeds [`ERROR_MAX`].
pub fn run(measure: &Measure) -> Result<()> {
    build::programs()?;
    build::example("engine", "steps")?;
    let scratch = Scratch::new()?;
    let repeats = if measure.quick { 7 } else { 25 };
    let (tokens, batch, context) = STEPS;
    let (profile, model) = (Profile::A910B3, Model::QWEN2_5_7B);
    let demands = |work: Vec<Work>| work.iter().map(|w| profile.demand(w)).collect::<Vec<Demand>>();
    let (prompt, token) = (demands(prefill(&model, tokens)), demands(decode(&model, batch, context)));
    let alone_s = [&prompt, &token].map(|d| d.iter().map(|d| d.solo_s).sum::<f64>());
    let mut figures = Figures::default();
    println!("\nQwen2.5-7B on a paced, emulated Ascend910B3: prefill of {tokens}, decode of {batch} at {context}");
    println!("{:<26} {:>12} {:>12} {:>9}", "", "expected ms", "measured ms", "error");
    let mut worst = 0.0f64;
    let mut show = |name: &str, expected_s: f64, measured_s: f64| {
        let error = measured_s / expected_s - 1.0;
        worst = worst.max(error.abs());
        println!("{name:<26} {:>12.3} {:>12.3} {:>8.2} %", expected_s * 1e3, measured_s * 1e3, error * 100.0);
        figures.set(format!("{name}_expected_ms"), expected_s * 1e3);
        figures.set(format!("{name}_measured_ms"), measured_s * 1e3);
        figures.set(format!("{name}_error"), error);
    };
    for (index, omega) in [0.0, 0.5, 1.0].into_iter().enumerate() {
        let spec = format!("Ascend910B3:timing:paced:omega={omega}");
        let daemon = Daemon::start_named(scratch.path(), &format!("timing{index}"), &spec, "passthrough")?;
        let numbers = [tokens, batch, context, repeats].map(|n| n.to_string());
        let out = Via::Daemon(&daemon)
            .run(None)?
            .arg(program_path("examples/steps")?)
            .arg("qwen2.5-7b")
            .args(numbers)
            .output()?;
        ensure!(out.status.success(), "steps: {}", String::from_utf8_lossy(&out.stderr));
        let times: Value = serde_json::from_slice(&out.stdout).context("the output of steps")?;
        let all =
            |name: &str| times[name].as_array().into_iter().flatten().filter_map(Value::as_f64).collect::<Vec<f64>>();
        let measured_s = [median(&all("prefill_alone_s")), median(&all("decode_alone_s"))];
        if index == 0 {
            show(&format!("prefill_{tokens}"), alone_s[0], measured_s[0]);
            show(&format!("decode_{batch}_{context}"), alone_s[1], measured_s[1]);
        }
        // What a step takes beyond its operators is its host; beside each other the device does not wait for that.
        let pauses_s = [0, 1].map(|i| (measured_s[i] - alone_s[i]).max(0.0));
        let corun = CoRun { omega, ..CoRun::default() };
        let pair = [(&prompt[..], Phase::Prefill, pauses_s[0]), (&token[..], Phase::Decode, pauses_s[1])];
        let expected_s = side_by_side(pair, &corun, 60.0);
        let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len().max(1) as f64;
        let beside_s = [mean(&all("prefill_beside_s")), mean(&all("decode_beside_s"))];
        show(&format!("corun_omega_{omega}_prefill"), expected_s[0] + pauses_s[0], beside_s[0]);
        show(&format!("corun_omega_{omega}_decode"), expected_s[1] + pauses_s[1], beside_s[1]);
    }
    figures.set("worst_error", worst);
    figures.write(measure.json.as_deref())?;
    println!("worst error {:.2} %, promised {:.0} %", worst * 100.0, ERROR_MAX * 100.0);
    ensure!(worst <= ERROR_MAX, "an error exceeds {:.0} %: is the machine busy?", ERROR_MAX * 100.0);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operators_sum_to_the_closed_form() {
        let m = Model::QWEN2_5_7B;
        for (step, closed) in [(prefill(&m, 1024), m.prefill(1024)), (decode(&m, 32, 2048), m.decode(32, 2048))] {
            let flops: f64 = step.iter().map(|w| w.cube_flops).sum();
            let bytes: f64 = step.iter().map(|w| w.hbm_bytes).sum();
            assert!((flops / closed.cube_flops - 1.0).abs() < 0.01, "{flops} FLOP, closed form {}", closed.cube_flops);
            assert!(
                (0.99..1.15).contains(&(bytes / closed.hbm_bytes)),
                "{bytes} bytes, closed form {}",
                closed.hbm_bytes
            );
        }
    }

    #[test]
    fn streams_that_share_nothing_lose_only_to_interference() {
        let cube = Demand { cube: 1.0, solo_s: 1.0, ..Demand::default() };
        let hbm = Demand { hbm: 1.0, solo_s: 1.0, ..Demand::default() };
        let model = CoRun { omega: 1.0, kappa_prefill: 0.0, kappa_decode: 0.25 };
        let pair = [(&[cube][..], Phase::Prefill, 0.0), (&[hbm][..], Phase::Decode, 0.0)];
        let [prefill_s, decode_s] = side_by_side(pair, &model, 100.0);
        assert!((prefill_s - 1.0).abs() < 1e-9 && (decode_s - 1.25).abs() < 1e-9, "{prefill_s} {decode_s}");
    }
}

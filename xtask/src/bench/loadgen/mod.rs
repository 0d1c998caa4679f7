//! `cargo xtask bench loadgen`: the load generator's own error, against a mock that knows better.
//!
//! Client and mock have a thread each, so two free cores are what the bars are meant for. Each request's error is what the
//! client measured less what the mock says happened; on a busy machine both are late and the verdict says so. Other load
//! generators measure the same mock if they are asked for.

mod rivals;

use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::Measure;
use crate::build::{self, Scratch};
use crate::figures::Figures;
use rivals::Rival;

/// Bars: figure, at most or at least, value, what it is.
const BARS: [(&str, bool, f64, &str); 4] = [
    ("streams_1000_ttft_error_p50_ms", true, 0.1, "error of TTFT at 1,000 streams, p50, ms"),
    ("streams_1000_ttft_error_p99_ms", true, 1.0, "error of TTFT at 1,000 streams, p99, ms"),
    ("streams_valid_max", false, 10_000.0, "streams of 20 tokens/s on one core that stay VALID"),
    ("short_requests_per_s", false, 40_000.0, "short requests a second"),
];

/// What to run.
#[derive(clap::Args)]
pub struct LoadgenBench {
    #[command(flatten)]
    measure: Measure,
    /// Load generators from PyPI that measure the same mock; installed on first use, which takes minutes (AIPerf 1.2 GB,
    /// GuideLLM beside the suites' PyTorch).
    #[arg(long, value_delimiter = ',')]
    rivals: Vec<Rival>,
}

/// Runs the benchmark.
///
/// # Errors
/// If a program is missing or a request of the self-test fails.
pub fn run(bench: &LoadgenBench) -> Result<()> {
    build::programs()?;
    let measure = &bench.measure;
    let scratch = Scratch::new()?;
    let json = scratch.path().join("selftest.json");
    let mut selftest = Command::new(stack::program_path("loadgen")?);
    selftest.args(["selftest", "--itl-ms", "50", "--short", "64", "--json"]).arg(&json);
    if measure.quick {
        selftest.args(["--quick", "--streams", "1,100,1000"]);
    } else {
        selftest.args(["--streams", "1,10,100,1000,2000,3000,4000,5000,6000,8000,10000"]);
    }
    let status = selftest.status().context("starting loadgen")?;
    ensure!(status.success(), "loadgen selftest: requests failed ({status})");
    let mut figures = Figures::default();
    figures.absorb(&json, "")?;
    println!("\n{:<54} {:>12} {:>12}", "", "measured", "bar");
    for (figure, at_most, bar, what) in BARS {
        let Some(value) = figures.get(figure) else { continue };
        let met = if at_most { value <= bar } else { value >= bar };
        let sign = if at_most { "≤" } else { "≥" };
        println!("{what:<54} {value:>12.3} {:>12} {}", format!("{sign} {bar}"), if met { "met" } else { "missed" });
    }
    let streams: &[usize] = if measure.quick { &[1, 1000] } else { &[1, 100, 1000] };
    rivals::run(&bench.rivals, streams, scratch.path(), &mut figures)?;
    figures.write(measure.json.as_deref())
}

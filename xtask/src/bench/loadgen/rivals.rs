//! Other load generators as published on PyPI, against the same mock: what they report of its TTFT beside what it says of
//! itself.
//!
//! A rival's requests cannot be paired with the mock's account, so its error is a difference of percentiles: what it reports
//! less the same percentile of the account. The mock answers all alike, so the two differ by little.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use stack::{Http, Program};
use system_tests::{python, tiny_model};

use crate::clients::{Guidellm, succeeds};
use crate::figures::Figures;

/// Tokens of a prompt and of an answer.
const TOKENS: [u32; 2] = [16, 20];
/// Milliseconds from a request to its first token and between tokens, as in the self-test beside it.
const MOCK_MS: &str = "50";
/// Name under which AIPerf finds the tokenizer in a cache.
const CACHED: &str = "tiny/qwen2";

/// A load generator from PyPI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Rival {
    /// NVIDIA's AIPerf.
    Aiperf,
    /// The vLLM project's GuideLLM.
    Guidellm,
}

/// One that is installed.
enum Installed {
    Aiperf(PathBuf),
    Guidellm(Guidellm),
}

/// Measures the mock with each of `rivals` at each number of streams.
///
/// # Errors
/// If one cannot be installed, fails, or writes a report without a TTFT.
pub fn run(rivals: &[Rival], streams: &[usize], scratch: &Path, figures: &mut Figures) -> Result<()> {
    for rival in rivals {
        let (name, installed) = match rival {
            Rival::Aiperf => {
                let python = python::with_requirements("tests/python/peers/aiperf.txt")?;
                ("aiperf", Installed::Aiperf(python.with_file_name("aiperf")))
            }
            Rival::Guidellm => ("guidellm", Installed::Guidellm(Guidellm::ready()?)),
        };
        for &streams in streams {
            let dir = scratch.join(format!("{name}-{streams}"));
            fs::create_dir(&dir)?;
            let errors = one(&installed, streams, &dir).with_context(|| format!("{name}, {streams} streams"))?;
            println!("{name:<10} {streams:>6} streams: error of TTFT p50 {:.3} ms, p99 {:.3} ms", errors[0], errors[1]);
            for (p, error) in ["p50", "p99"].iter().zip(errors) {
                figures.set(format!("{name}_streams_{streams}_ttft_error_{p}_ms"), error);
            }
        }
    }
    Ok(())
}

/// Reported less true TTFT, p50 and p99, milliseconds.
fn one(rival: &Installed, streams: usize, dir: &Path) -> Result<[f64; 2]> {
    let mut command = Command::new(stack::program_path("loadgen")?);
    command.args(["mock", "--listen", "127.0.0.1:0", "--ttft-ms", MOCK_MS, "--itl-ms", MOCK_MS]);
    let mock = Program::start("mock", command)?;
    let http = Http::new(&mock.ready_url()?);
    let requests = (2 * streams).max(40);
    let ttft = match rival {
        Installed::Aiperf(program) => aiperf(program, http.url(), streams, requests, dir)?,
        Installed::Guidellm(guidellm) => {
            let report = guidellm.run(http.url(), "mock", [streams as u64, requests as u64], TOKENS, dir)?;
            let of = &report["metrics"]["time_to_first_token_ms"]["successful"]["percentiles"];
            [of["p50"].clone(), of["p99"].clone()]
        }
    };
    let mut truth = Vec::new();
    for stream in http.get_json("/truth")?.as_array().context("the mock's truth is no list")? {
        let at = |name: &str| stream[name].as_u64().with_context(|| format!("no {name} in the mock's truth"));
        truth.push((at("first_ns")? - at("read_ns")?) as f64 / 1e6);
    }
    ensure!(truth.len() >= requests, "{} of {requests} requests came", truth.len());
    truth.sort_by(f64::total_cmp);
    let rank = |p: f64| truth[((truth.len() as f64 * p).ceil() as usize).clamp(1, truth.len()) - 1];
    let [p50, p99] = ttft.map(|value| value.as_f64().context("no TTFT in its report"));
    Ok([p50? - rank(0.5), p99? - rank(0.99)])
}

fn aiperf(program: &Path, url: &str, streams: usize, requests: usize, dir: &Path) -> Result<[Value; 2]> {
    let mut command = Command::new(program);
    command.args(["profile", "-m", "mock", "--url", url, "--endpoint-type", "completions", "--streaming"]);
    command.args(["--concurrency", &streams.to_string(), "--request-count", &requests.to_string()]);
    command.args(["--isl", &TOKENS[0].to_string(), "--osl", &TOKENS[1].to_string()]);
    command.args(["--tokenizer", CACHED, "--ui", "none", "--output-artifact-dir"]).arg(dir);
    command.env("HF_HUB_OFFLINE", "1").env("HF_HUB_CACHE", cache(dir)?);
    succeeds(&mut command)?;
    let path = dir.join("profile_export_aiperf.json");
    let report: Value = serde_json::from_str(&fs::read_to_string(&path).context("AIPerf's report")?)?;
    let done = report["request_count"]["avg"].as_f64();
    ensure!(done == Some(requests as f64), "{done:?} of {requests} requests completed");
    let of = &report["time_to_first_token"];
    Ok([of["p50"].clone(), of["p99"].clone()])
}

/// A cache in the hub's layout that holds the repository's tokenizer: AIPerf takes one from there alone, or from the network.
fn cache(dir: &Path) -> Result<PathBuf> {
    let (cache, commit) = (dir.join("hub"), "0".repeat(40));
    let model = cache.join(format!("models--{}", CACHED.replace('/', "--")));
    let snapshot = model.join("snapshots").join(&commit);
    fs::create_dir_all(&snapshot)?;
    fs::create_dir_all(model.join("refs"))?;
    fs::write(model.join("refs/main"), &commit)?;
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(tiny_model().join(file), snapshot.join(file)).with_context(|| file.to_owned())?;
    }
    Ok(cache)
}

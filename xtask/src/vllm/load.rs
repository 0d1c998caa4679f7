//! Load generators as published, `vllm bench serve` and guidellm, against the gateway in front of vLLM.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use stack::{Daemon, Gateway, Via};
use system_tests::tiny_model;

use super::DEVICE;
use super::server::{MODEL, Server};
use crate::build::Scratch;
use crate::clients::{Guidellm, succeeds};
use crate::test::Tally;

/// Requests of each.
const REQUESTS: u64 = 24;

/// Runs both.
///
/// # Errors
/// If a server does not start.
pub fn run(python: &Path) -> Result<Tally> {
    let scratch = Scratch::new()?;
    let daemon = Daemon::start_named(scratch.path(), "load", DEVICE, "phase")?;
    let hints = scratch.path().join("hints.sock");
    let args = ["--gpu-memory-utilization", "0.5", "--max-num-seqs", "8", "--enforce-eager"];
    let server = Server::start(python, &Via::Daemon(&daemon), Some(&hints), &tiny_model(), &args)?;
    let gateway = Gateway::start(&server.http, Some(&hints), &[])?;
    let mut tally = Tally::default();
    let url = gateway.http.url();
    for (name, outcome) in [
        ("vllm_bench_serve", bench_serve(python, &daemon, url, scratch.path())),
        ("guidellm", guidellm(python, url, scratch.path())),
    ] {
        let passed = outcome.is_ok();
        println!("test {name} ... {}", outcome.map_or_else(|e| format!("FAILED: {e:#}"), |()| "ok".to_owned()));
        tally += Tally { passed: u64::from(passed), failed: u64::from(!passed) };
    }
    Ok(tally)
}

/// vLLM's own. It looks for a device when it is imported, as the server does.
fn bench_serve(python: &Path, daemon: &Daemon, url: &str, dir: &Path) -> Result<()> {
    let mut command = Command::new(stack::program_path("vnpu")?);
    command.args(["run", "--socket"]).arg(&daemon.socket).arg("--").arg(python.with_file_name("vllm"));
    command.args(["bench", "serve", "--backend", "openai", "--base-url", url, "--model", MODEL, "--tokenizer"]);
    command.arg(tiny_model()).args([
        "--dataset-name",
        "random",
        "--random-input-len",
        "32",
        "--random-output-len",
        "16",
    ]);
    command.args(["--num-prompts", &REQUESTS.to_string(), "--request-rate", "4", "--ignore-eos"]);
    command.args(["--save-result", "--result-filename", "bench.json", "--result-dir"]).arg(dir);
    command.env("HF_HUB_OFFLINE", "1").env("VLLM_NO_USAGE_STATS", "1");
    succeeds(&mut command)?;
    let text = std::fs::read_to_string(dir.join("bench.json")).context("vllm bench serve wrote no result")?;
    let result: Value = serde_json::from_str(&text)?;
    let (done, tokens) = (result["completed"].as_u64(), result["total_output_tokens"].as_u64());
    ensure!(done == Some(REQUESTS) && tokens == Some(REQUESTS * 16), "{done:?} requests, {tokens:?} tokens");
    Ok(())
}

fn guidellm(python: &Path, url: &str, dir: &Path) -> Result<()> {
    let guidellm = Guidellm::beside(python.to_owned(), "guidellm-beside-vllm")?;
    let report = guidellm.run(url, MODEL, [4, REQUESTS], [32, 16], dir)?;
    let totals = &report["metrics"]["request_totals"];
    let (done, failed) = (totals["successful"].as_u64(), totals["errored"].as_u64());
    ensure!(done == Some(REQUESTS) && failed == Some(0), "{totals}");
    Ok(())
}

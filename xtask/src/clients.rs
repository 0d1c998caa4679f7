//! `cargo xtask test --clients`: clients that no one here wrote and that are too large to install in every test run, as
//! published, against the gateway in front of the reference engine: `litellm` as a client, `guidellm` as load.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use system_tests::{MODEL, Path, python, tiny_model};

use crate::build::{self, Scratch};
use crate::test::Tally;
use crate::torch;

/// Requests of the load.
const REQUESTS: u64 = 40;

/// Runs both.
///
/// # Errors
/// If one cannot be installed.
pub fn run() -> Result<Tally> {
    build::programs()?;
    let path = Path::tiny(&[]);
    let mut tally = Tally::default();
    for (name, client) in [("litellm", litellm as fn(&Path) -> Result<()>), ("guidellm", guidellm)] {
        match client(&path) {
            Ok(()) => {
                println!("client {name} ... ok");
                tally.passed += 1;
            }
            Err(error) => {
                println!("client {name} ... FAILED: {error:#}");
                tally.failed += 1;
            }
        }
    }
    Ok(tally)
}

fn litellm(path: &Path) -> Result<()> {
    let python = python::with_requirements("tests/python/litellm.txt")?;
    let mut command = Command::new(python);
    command.arg(build::root().join("tests/python/litellm_client.py"));
    command.arg(format!("{}/v1", path.gateway.http.url())).arg(MODEL);
    // It would fetch a list of prices.
    command.env("LITELLM_LOCAL_MODEL_COST_MAP", "True");
    succeeds(&mut command)
}

fn guidellm(path: &Path) -> Result<()> {
    let scratch = Scratch::new()?;
    let report = Guidellm::ready()?.run(path.gateway.http.url(), MODEL, [8, REQUESTS], [32, 16], scratch.path())?;
    let totals = &report["metrics"]["request_totals"];
    let (done, failed) = (totals["successful"].as_u64(), totals["errored"].as_u64());
    ensure!(done == Some(REQUESTS) && failed == Some(0), "{totals}");
    Ok(())
}

/// guidellm as published. Its data loader is PyTorch's: it is installed beside the PyTorch of the suites.
pub struct Guidellm {
    python: PathBuf,
    packages: PathBuf,
}

impl Guidellm {
    /// Installs it if need be.
    ///
    /// # Errors
    /// If it cannot be installed.
    pub fn ready() -> Result<Self> {
        Self::beside(torch::environment::ready(torch::FIRST)?.python, "guidellm")
    }

    /// Beside another interpreter's PyTorch, in a directory of this name.
    ///
    /// # Errors
    /// As [`ready`](Self::ready).
    pub fn beside(python: PathBuf, name: &str) -> Result<Self> {
        let packages = torch::environment::beside(&python, name, "tests/python/guidellm.txt")?;
        Ok(Self { python, packages })
    }

    /// Keeps so many `streams` at `url` busy until so many `requests` are done, each with so many tokens of prompt and
    /// answer. Its report of that, which it writes into `dir`.
    ///
    /// # Errors
    /// If it fails, with its own words.
    pub fn run(
        &self,
        url: &str,
        model: &str,
        [streams, requests]: [u64; 2],
        [prompt, output]: [u32; 2],
        dir: &std::path::Path,
    ) -> Result<Value> {
        let report = dir.join("report.json");
        let mut command = Command::new(&self.python);
        command.args(["-m", "guidellm", "run", "--disable-console-interactive", "--backend"]);
        command.arg(format!("kind=openai_http,target={url},model={model}"));
        command.args(["--profile", &format!("kind=concurrent,streams={streams}"), "--constraint"]);
        command.arg(format!("kind=max_requests,count={requests}"));
        command.args(["--data", &format!("kind=synthetic_text,prompt_tokens={prompt},output_tokens={output}")]);
        command.args(["--tokenizer", &format!("kind=huggingface_auto,model={}", tiny_model().display())]);
        command.arg("--output").arg(format!("kind=json,path={}", report.display()));
        command.env("PYTHONPATH", &self.packages);
        command.env("HF_HUB_OFFLINE", "1").env("TORCH_DEVICE_BACKEND_AUTOLOAD", "0");
        succeeds(&mut command)?;
        let report: Value = serde_json::from_str(&std::fs::read_to_string(&report).context("guidellm's report")?)?;
        Ok(report["benchmarks"][0].clone())
    }
}

/// Runs it to its end.
///
/// # Errors
/// If it fails, with all it wrote.
pub fn succeeds(command: &mut Command) -> Result<()> {
    let out = command.output().with_context(|| format!("{command:?}"))?;
    let [words, errors] = [&out.stdout, &out.stderr].map(|text| String::from_utf8_lossy(text));
    ensure!(out.status.success(), "{words}\n{errors}");
    Ok(())
}

//! `cargo xtask test --clients`: clients that no one here wrote and that are too large to install in every test run, as
//! published, against the gateway in front of the reference engine: `litellm` as a client, `guidellm` as load.

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

/// Its data loader is PyTorch's: it is installed beside the PyTorch of the suites.
fn guidellm(path: &Path) -> Result<()> {
    let environment = torch::environment::ready(torch::FIRST)?;
    let packages = environment.beside("guidellm", "tests/python/guidellm.txt")?;
    let scratch = Scratch::new()?;
    let report = scratch.path().join("report.json");
    let mut command = Command::new(&environment.python);
    command.args(["-m", "guidellm", "run", "--disable-console-interactive", "--backend"]);
    command.arg(format!("kind=openai_http,target={},model={MODEL}", path.gateway.http.url()));
    command.args(["--profile", "kind=concurrent,streams=8", "--constraint"]);
    command.arg(format!("kind=max_requests,count={REQUESTS}"));
    command.args(["--data", "kind=synthetic_text,prompt_tokens=32,output_tokens=16", "--tokenizer"]);
    command.arg(format!("kind=huggingface_auto,model={}", tiny_model().display()));
    command.arg("--output").arg(format!("kind=json,path={}", report.display()));
    command.env("PYTHONPATH", packages).env("HF_HUB_OFFLINE", "1").env("TORCH_DEVICE_BACKEND_AUTOLOAD", "0");
    succeeds(&mut command)?;
    let report: Value = serde_json::from_str(&std::fs::read_to_string(&report).context("guidellm's report")?)?;
    let totals = &report["benchmarks"][0]["metrics"]["request_totals"];
    let (done, failed) = (totals["successful"].as_u64(), totals["errored"].as_u64());
    ensure!(done == Some(REQUESTS) && failed == Some(0), "{totals}");
    Ok(())
}

fn succeeds(command: &mut Command) -> Result<()> {
    let out = command.output().with_context(|| format!("{command:?}"))?;
    let [words, errors] = [&out.stdout, &out.stderr].map(|text| String::from_utf8_lossy(text));
    ensure!(out.status.success(), "{words}\n{errors}");
    Ok(())
}

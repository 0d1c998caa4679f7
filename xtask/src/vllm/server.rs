//! `vllm serve` as published, under `vnpu run`, and the checkpoints that it serves.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use stack::{Http, Program, Via};
use system_tests::phases::Step;

use crate::build;
use crate::clients::succeeds;

/// Longest that it may take to load, compile and capture: minutes where two cores do it.
const START_TIME_MAX: Duration = Duration::from_secs(420);
/// The model's name, whatever the checkpoint.
pub const MODEL: &str = "m";

/// A running server.
pub struct Server {
    /// Process, with its engine's.
    pub program: Program,
    /// Its API.
    pub http: Http,
    steps: Arc<Mutex<Vec<Step>>>,
}

impl Server {
    /// Starts a server with the model at `checkpoint`.
    ///
    /// # Errors
    /// If it does not become healthy; the error carries what it wrote.
    pub fn start(python: &Path, via: &Via<'_>, hints: Option<&Path>, checkpoint: &Path, args: &[&str]) -> Result<Self> {
        let port = free_port()?;
        let mut command = via.run(hints)?;
        command.arg(python.with_file_name("vllm")).arg("serve").arg(checkpoint);
        command.args(["--served-model-name", MODEL, "--host", "127.0.0.1", "--port", &port.to_string()]);
        // What each step was, in vLLM's own words.
        command.arg("--enable-logging-iteration-details").args(args).env("VLLM_NO_USAGE_STATS", "1");
        let http = Http::new(&format!("127.0.0.1:{port}"));
        let (asked, steps) = (http.clone(), Arc::new(Mutex::new(Vec::new())));
        let written = Arc::clone(&steps);
        let watch = move |line: &str| {
            if let Some(step) = step(line) {
                written.lock().unwrap_or_else(PoisonError::into_inner).push(step);
            }
        };
        let is_healthy = move || asked.get("/health").is_ok();
        let program = Program::start_when("vllm", command, START_TIME_MAX, is_healthy, watch)?;
        Ok(Self { program, http, steps })
    }

    /// Steps so far, as vLLM itself says.
    pub fn steps(&self) -> Vec<Step> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Nobody else's, as far as the system knows.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).context("no free port")?.port())
}

/// `… Iteration(7): 1 context requests, 30 context tokens, 2 generation requests, 2 generation tokens, …` as a step.
fn step(line: &str) -> Option<Step> {
    let (_, rest) = line.split_once("Iteration(")?.1.split_once("): ")?;
    let number =
        |what: &str| -> Option<u64> { rest.split(", ").find_map(|part| part.strip_suffix(what)?.trim().parse().ok()) };
    let (context, generation) = (number("context requests")?, number("generation requests")?);
    let phase = match (context, generation) {
        (0, 0) => return None,
        (_, 0) => "prefill",
        (0, _) => "decode",
        _ => "mixed",
    };
    let tokens = number("context tokens")? + number("generation tokens")?;
    Some(Step { phase: phase.to_owned(), tokens })
}

/// Writes a checkpoint into `dir` with a script of `tests/python/vllm`; under `vnpu run`, because transformers loads torch_npu where it is
/// installed, and torch_npu its libraries.
///
/// # Errors
/// If the script fails.
pub fn checkpoint(python: &Path, script: &str, dir: &Path, args: &[&str]) -> Result<PathBuf> {
    let path = dir.join(script);
    if !path.exists() {
        let mut command = Via::Direct("Ascend910B3:functional").run(None)?;
        command
            .arg(python)
            .arg(build::root().join("tests/python/vllm").join(script).with_extension("py"))
            .arg(&path)
            .args(args);
        succeeds(command.env("TORCH_DEVICE_BACKEND_AUTOLOAD", "0"))?;
    }
    ensure!(path.join("config.json").is_file(), "{script} wrote no checkpoint into {}", path.display());
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_read_from_the_log() {
        let line = |numbers: [u64; 4]| {
            let [a, b, c, d] = numbers;
            format!(
                "(EngineCore pid=7) INFO 11-21 core.py:421] Iteration(12): {a} context requests, {b} context tokens, {c} \
                 generation requests, {d} generation tokens, iteration elapsed time: 3.21 ms"
            )
        };
        let step = |numbers| step(&line(numbers)).map(|s| (s.phase, s.tokens));
        assert_eq!(step([1, 30, 0, 0]), Some(("prefill".to_owned(), 30)));
        assert_eq!(step([0, 0, 3, 3]), Some(("decode".to_owned(), 3)));
        assert_eq!(step([2, 30, 3, 3]), Some(("mixed".to_owned(), 33)));
        assert_eq!(step([0, 0, 0, 0]), None);
        assert!(super::step("INFO: 127.0.0.1 - \"GET /health HTTP/1.1\" 200 OK").is_none());
    }
}

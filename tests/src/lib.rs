//! What the whole-system tests share: a running path from gateway to emulated device, and waiting with a bound.
//!
//! The tests themselves stand in `tests/tests/`; each starts the real programs, as built by `cargo build --release`.

pub mod browser;
pub mod dashboards;
pub mod docs;
pub mod metrics;
pub mod phases;
pub mod python;
pub mod reference;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use stack::{Daemon, Engine, Gateway, Http, Via};

/// Bound on every wait.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// The functional device most tests use: real arithmetic, no pacing.
pub const FUNCTIONAL: &str = "Ascend910B3:functional";
/// Name under which tests serve the tiny model.
pub const MODEL: &str = "tiny-qwen2";

/// The tiny checkpoint that ships with the repository.
pub fn tiny_model() -> PathBuf {
    stack::source_root().expect("tests run inside the source tree").join("models/tiny-qwen2")
}

/// Engine arguments for the tiny model, then `more`.
pub fn tiny_args(more: &[&str]) -> Vec<String> {
    let model = tiny_model();
    let mut args = vec!["--model".to_owned(), model.display().to_string()];
    args.extend(["--served-model-name", MODEL, "--dtype", "float32"].map(str::to_owned));
    args.extend(more.iter().map(|s| (*s).to_owned()));
    args
}

/// An engine with the tiny model.
pub fn tiny_engine(via: &Via<'_>, hints: Option<&std::path::Path>, more: &[&str]) -> Engine {
    let args = tiny_args(more);
    Engine::start(via, hints, &args.iter().map(String::as_str).collect::<Vec<_>>()).expect("the engine starts")
}

/// The whole path: gateway, engine, daemon. Fields drop in this order.
pub struct Path {
    /// Gateway.
    pub gateway: Gateway,
    /// Engine.
    pub engine: Engine,
    /// Daemon.
    pub daemon: Daemon,
    /// Sockets.
    pub dir: tempfile::TempDir,
}

impl Path {
    /// Starts it with the tiny model on the functional device.
    pub fn tiny(engine_args: &[&str]) -> Self {
        let dir = stack::scratch().expect("a temporary directory");
        let daemon = Daemon::start(dir.path(), FUNCTIONAL, "phase").expect("the daemon starts");
        let hints = dir.path().join("hints.sock");
        let engine = tiny_engine(&Via::Daemon(&daemon), Some(&hints), engine_args);
        let gateway = Gateway::start(&engine.http, Some(&hints), &[]).expect("the gateway starts");
        Self { gateway, engine, daemon, dir }
    }
}

/// Greedy tokens of a prompt, as the text they decode to, through the completions endpoint.
pub fn greedy(http: &Http, prompt: &Value, max_tokens: u32) -> String {
    let body =
        json!({ "model": MODEL, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": true });
    let answer = http.post_json("/v1/completions", &body).expect("a completion");
    answer["choices"][0]["text"].as_str().expect("text").to_owned()
}

/// Waits until `holds`, polling every few milliseconds.
///
/// # Panics
/// After [`PATIENCE`], with `what`.
pub fn wait_for(what: &str, mut holds: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "still waiting after {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
    start.elapsed()
}

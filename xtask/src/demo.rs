//! `./x demo`: the whole path on the emulated device, in two acts.
//!
//! 1. A trained tiny Qwen2 with real arithmetic (`functional`): one chat answer, streamed to the terminal.
//! 2. Qwen2.5-7B without weights on a paced Ascend 910B3 (`timing`): an excerpt of the Azure conversation trace, once
//!    under `fifo` and once under `phase`, and one table of both.
//!
//! Every process is a real one: client → gateway → engine → interposer → vnpu-daemon → emulated device. The engine is the reference
//! engine, or vLLM as published.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use loadgen::policies;
use serde_json::json;
use stack::{Daemon, Engine, Gateway, StreamEvent, Via};

use crate::Measure;
use crate::build::{self, Scratch};
use crate::figures::Figures;
use crate::vllm;
use crate::vllm::server::{MODEL, Server, checkpoint};

/// Mean request rate the trace is rescaled to, requests a second: about three quarters of what one emulated 910B3
/// carries at ω = 0.5 with these lengths, so that queues form and drain.
pub(crate) const TRACE_RATE: f64 = 3.5;
/// Arguments of the engine that replays the trace.
pub(crate) const QWEN: [&str; 10] = [
    "--model-preset",
    "qwen2.5-7b",
    "--load-format",
    "dummy",
    "--dtype",
    "bfloat16",
    "--max-num-seqs",
    "256",
    "--max-model-len",
    "8192",
];
/// Arguments of vLLM for the same. Graphs of a few sizes: capturing the thirty that it would otherwise takes minutes here.
const QWEN_VLLM: [&str; 8] = [
    "--load-format",
    "dummy",
    "--max-num-seqs",
    "256",
    "--max-model-len",
    "8192",
    "--compilation-config",
    r#"{"cudagraph_capture_sizes":[1,2,4,8,16,32,64,128,256]}"#,
];
/// Objectives shown: the paper's.
const OBJECTIVES: [&str; 2] = ["ttft:1000", "tpot:50"];
/// Policies compared, the baseline first.
const POLICIES: [&str; 2] = ["fifo", "phase"];
/// The policy that `--trace` shows.
const TRACED: &str = "phase";
/// Which engine serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// The reference engine of this repository.
    Reference,
    /// vLLM and vllm_ascend as published.
    Vllm,
}

/// What serves behind the gateway, and how it is started.
pub(crate) enum Serves<'a> {
    /// The reference engine with these arguments.
    Reference(&'a [&'a str]),
    /// vLLM: its interpreter, the checkpoint, its arguments.
    Vllm(&'a Path, &'a Path, &'a [&'a str]),
}

/// A running engine.
enum Running {
    Reference(Engine),
    Vllm(Server),
}

/// One engine behind a gateway on a device of its own. Fields drop in this order: clients before servers.
pub(crate) struct Stack {
    pub(crate) gateway: Gateway,
    engine: Running,
    daemon: Daemon,
}

impl Stack {
    pub(crate) fn start(dir: &Path, name: &str, spec: &str, policy: &str, serves: &Serves<'_>) -> Result<Self> {
        let daemon = Daemon::start_named(dir, name, spec, policy)?;
        let hints = dir.join(format!("{name}-hints.sock"));
        let via = Via::Daemon(&daemon);
        let engine = match serves {
            Serves::Reference(args) => Running::Reference(Engine::start(&via, Some(&hints), args)?),
            Serves::Vllm(python, model, args) => Running::Vllm(Server::start(python, &via, Some(&hints), model, args)?),
        };
        let gateway = match &engine {
            Running::Reference(engine) => Gateway::start(&engine.http, Some(&hints), &[])?,
            Running::Vllm(server) => Gateway::start(&server.http, Some(&hints), &[])?,
        };
        Ok(Self { gateway, engine, daemon })
    }

    /// The engine's last words.
    fn output(&self) -> String {
        match &self.engine {
            Running::Reference(engine) => engine.program.output(),
            Running::Vllm(server) => server.program.output(),
        }
    }
}

/// Runs both acts.
pub fn run(measure: &Measure, keep: bool, omega: f64, timeline: Option<&Path>, kind: Kind) -> Result<()> {
    ensure!((0.0..=1.0).contains(&omega), "--omega must lie between 0 and 1, not {omega}");
    build::programs()?;
    let scratch = Scratch::new()?;
    let mut figures = Figures::default();

    println!(
        "\n1  A chat with models/tiny-qwen2 on an emulated Ascend910B3 (functional: real arithmetic, no pacing)\n"
    );
    let model = build::root().join("models/tiny-qwen2");
    let path = model.to_str().context("the path of the source tree is not UTF-8")?;
    let tiny = ["--model", path, "--served-model-name", "tiny-qwen2"];
    let python = if kind == Kind::Vllm { Some(vllm::ready()?) } else { None };
    let serves = match &python {
        None => Serves::Reference(&tiny),
        Some(python) => Serves::Vllm(python, &model, &["--gpu-memory-utilization", "0.5", "--enforce-eager"]),
    };
    let name = if kind == Kind::Vllm { MODEL } else { "tiny-qwen2" };
    let chat = Stack::start(scratch.path(), "chat", "Ascend910B3:functional", "phase", &serves)?;
    println!("   client → gateway → engine → interposer → vnpu-daemon → {}\n", device_label(&chat.daemon)?);
    talk(&chat, name, "What is a virtual NPU?", &mut figures)?;

    let spec = format!("Ascend910B3:timing:paced:omega={omega}");
    let seconds = if measure.quick { 12 } else { 60 };
    println!(
        "\n2  Qwen2.5-7B (shapes, no weights): {seconds} s of the Azure conversation trace at {TRACE_RATE} requests/s\n"
    );
    let mut label = String::new();
    let shapes = python.as_ref().map(|python| checkpoint(python, "shapes", scratch.path(), &[])).transpose()?;
    let serves = match (&python, &shapes) {
        (Some(python), Some(shapes)) => Serves::Vllm(python, shapes, &QWEN_VLLM),
        _ => Serves::Reference(&QWEN),
    };
    for policy in POLICIES {
        let timeline = timeline.filter(|_| policy == TRACED);
        label = trace(scratch.path(), &spec, policy, &serves, seconds, timeline, &mut figures)?;
    }
    figures.set_text("device", &label);
    figures.set("omega", omega);
    print!("{}", policies::table(&label, &POLICIES.map(|policy| (policy.to_owned(), figures.of(policy)))));
    figures.write(measure.json.as_deref())?;

    let url = chat.gateway.http.url();
    if keep {
        println!("\nThe chat stack is running; Ctrl-C ends it. Try:\n");
        println!(
            "  curl -N {url}/v1/chat/completions -H 'content-type: application/json' \\\n    \
             -d '{{\"model\":\"{name}\",\"stream\":true,\"messages\":[{{\"role\":\"user\",\"content\":\"What is prefill?\"}}]}}'"
        );
        println!("  curl {}/v1/status\n", chat.daemon.admin.url());
        loop {
            std::thread::sleep(std::time::Duration::from_secs(3600));
        }
    }
    println!("\nTo keep the chat stack running and try it with curl: ./x demo --keep");
    Ok(())
}

fn device_label(daemon: &Daemon) -> Result<String> {
    let status = daemon.status()?;
    let label = status["device"]["label"].as_str();
    label.map(str::to_owned).with_context(|| format!("no device label in the daemon's status {status}"))
}

/// Asks one question and prints the answer as it arrives.
fn talk(stack: &Stack, model: &str, question: &str, figures: &mut Figures) -> Result<()> {
    println!("   user       {question}");
    print!("   assistant  ");
    let body = json!({
        "model": model,
        "messages": [{ "role": "user", "content": question }],
        "temperature": 0,
        "max_tokens": 120,
        "stream_options": { "include_usage": true },
    });
    let start = Instant::now();
    let mut answer = stack.gateway.http.stream("/v1/chat/completions", &body)?;
    let (mut first, mut tokens, mut done) = (None, 0, false);
    for event in &mut answer {
        match event? {
            StreamEvent::Text(text, at) => {
                first.get_or_insert(at);
                print!("{text}");
                std::io::stdout().flush()?;
            }
            StreamEvent::Usage(usage) => tokens = usage["completion_tokens"].as_u64().unwrap_or(0),
            StreamEvent::Error(error) => anyhow::bail!("the stream broke off: {error}"),
            StreamEvent::Done => done = true,
        }
    }
    ensure!(done, "the stream ended without [DONE]");
    let first = first.context("the answer has no text")?;
    let (ttft_ms, total_ms) = ((first - start).as_secs_f64() * 1e3, start.elapsed().as_secs_f64() * 1e3);
    println!("\n\n   {tokens} tokens, first after {ttft_ms:.0} ms, all after {total_ms:.0} ms");
    figures.set("chat_tokens", tokens as f64);
    figures.set("chat_ttft_ms", ttft_ms);
    Ok(())
}

/// Replays the trace against a fresh stack under `policy`; returns the device's label.
pub(crate) fn trace(
    dir: &Path,
    spec: &str,
    policy: &str,
    serves: &Serves<'_>,
    seconds: u32,
    timeline: Option<&Path>,
    figures: &mut Figures,
) -> Result<String> {
    println!("   {policy}: starting daemon, engine, gateway …");
    let stack = Stack::start(dir, policy, spec, policy, serves)?;
    let label = device_label(&stack.daemon)?;
    let json = dir.join(format!("{policy}.json"));
    if timeline.is_some() {
        let (status, text) = stack.daemon.admin.send("PUT", "/v1/record", r#"{"mib":256}"#)?;
        ensure!(status == 200, "the daemon does not record: {text}");
    }
    let status = Command::new(stack::program_path("loadgen")?)
        .args(["--base-url", stack.gateway.http.url(), "--dataset-name", "trace", "--dataset-path"])
        .arg(build::root().join("loadgen/data/azure_conv_excerpt.csv"))
        .args(["--num-prompts", &((f64::from(seconds) * TRACE_RATE) as u32).to_string()])
        .args(["--request-rate", &TRACE_RATE.to_string(), "--max-total-len", "8192", "--ignore-eos"])
        .args(["--num-warmups", "1", "--request-timeout", "300", "--goodput"])
        .args(OBJECTIVES)
        .arg("--json")
        .arg(&json)
        .stdout(Stdio::null())
        .status()
        .context("starting loadgen")?;
    // 3 is its verdict that this machine is too busy to measure exactly; the figures are there and it has said so.
    ensure!(
        matches!(status.code(), Some(0 | 3)),
        "loadgen failed ({status}); the engine's last words:\n{}",
        stack.output()
    );
    figures.absorb(&json, &format!("{policy}_"))?;
    if let Some(path) = timeline {
        let mut vnpu = Command::new(stack::program_path("vnpu")?);
        vnpu.args(["trace", "--admin", stack.daemon.admin.authority(), "--out"]).arg(path);
        let out = vnpu.output().context("starting vnpu trace")?;
        ensure!(out.status.success(), "vnpu trace: {}", String::from_utf8_lossy(&out.stderr));
        print!("   timeline (opens in ui.perfetto.dev): {}", String::from_utf8_lossy(&out.stdout));
    }
    Ok(label)
}

//! The proxies that are compared: each in front of the same mock engine, each on one core.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;
use stack::{Http, Program, program_path};

use super::pinned::{self, OTHER_CORE, PROXY_CORE, Usage};

/// Longest start of a proxy: LiteLLM imports for half a minute.
const START_TIME_MAX: Duration = Duration::from_secs(120);

/// A peer from PyPI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Peer {
    /// SGLang's router, Rust.
    SglangRouter,
    /// LiteLLM's proxy, Python.
    Litellm,
}

/// One way to the mock engine.
pub struct Contender {
    /// Name in figures.
    pub name: &'static str,
    /// Where requests go.
    pub http: Http,
    /// Path of requests.
    pub path: &'static str,
    program: Option<Program>,
}

impl Contender {
    /// What the proxy uses; nothing where there is none.
    pub fn usage(&self) -> Result<Usage> {
        self.program.as_ref().map_or(Ok(Usage::default()), Usage::of)
    }
}

/// The path that every proxy knows.
const CHAT: &str = "/v1/chat/completions";

/// A mock engine in a process of its own.
///
/// # Errors
/// If it does not start.
pub fn mock(port: u16, first_token_ms: u64, tokens_per_s: f64) -> Result<(Program, Http)> {
    let mut command = pinned::command(OTHER_CORE, &std::env::current_exe()?);
    command.arg("mock-engine").args(["--port", &port.to_string()]);
    command.args(["--first-token-ms", &first_token_ms.to_string(), "--tokens-per-s", &tokens_per_s.to_string()]);
    let program = Program::start("mock engine", command)?;
    let http = Http::new(&program.ready_url()?);
    Ok((program, http))
}

/// Everyone: no proxy, nginx, ours, the peers.
///
/// # Errors
/// If one is missing or does not start.
pub fn all(dir: &Path, engine: &Http, peers: &[Peer]) -> Result<Vec<Contender>> {
    let direct = Contender { name: "direct", http: engine.clone(), path: CHAT, program: None };
    let mut all = vec![direct, nginx(dir, engine)?, ours(dir, engine)?];
    for peer in peers {
        all.push(match peer {
            Peer::SglangRouter => sglang_router(engine)?,
            Peer::Litellm => litellm(dir, engine)?,
        });
    }
    Ok(all)
}

/// Our gateway, on one thread, with limits that nothing here reaches.
///
/// # Errors
/// If it does not start.
pub fn ours(dir: &Path, engine: &Http) -> Result<Contender> {
    let (program, http) = gateway(dir, &engine_table(engine, "prefill_tokens = 1000000000\nsequences = 1000000"))?;
    Ok(Contender { name: "gateway", http, path: CHAT, program: Some(program) })
}

/// An engine in the gateway's file.
pub fn engine_table(engine: &Http, fields: &str) -> String {
    format!("[[engines]]\naddress = \"{}\"\n{fields}\n", engine.authority())
}

/// A gateway on one thread and one core.
///
/// # Errors
/// If it does not start.
pub fn gateway(dir: &Path, config: &str) -> Result<(Program, Http)> {
    let file = dir.join("gateway.toml");
    std::fs::write(&file, format!("pass_through = [\"*\"]\n{config}"))?;
    let mut command = pinned::command(PROXY_CORE, &program_path("gateway")?);
    command.args(["--listen", "127.0.0.1:0", "--threads", "1", "--config"]).arg(&file);
    let program = Program::start("gateway", command)?;
    let http = Http::new(&program.ready_url()?);
    Ok((program, http))
}

/// The same gateway, on a path that it passes through without admission.
pub fn pass_through(gateway: &Contender) -> Contender {
    Contender { name: "gateway_pass", http: gateway.http.clone(), path: "/pass", program: None }
}

fn nginx(dir: &Path, engine: &Http) -> Result<Contender> {
    let found = Command::new("nginx").arg("-v").output();
    if !found.is_ok_and(|out| out.status.success()) {
        bail!("nginx is missing; install it with: sudo apt-get install -y --no-install-recommends nginx");
    }
    let port = free_port()?;
    let engine = engine.authority();
    let dir = dir.join("nginx");
    std::fs::create_dir_all(&dir)?;
    let at = dir.display();
    let temp: String =
        ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|t| format!("{t}_temp_path {at}/{t};\n")).concat();
    let config = dir.join("nginx.conf");
    std::fs::write(
        &config,
        format!(
            "user root;\nworker_processes 1;\nworker_rlimit_nofile 65536;\ndaemon off;\npid {at}/pid;\n\
             error_log {at}/error.log;\nevents {{ worker_connections 16384; }}\nhttp {{\naccess_log off;\n{temp}\
             client_max_body_size 64m;\nclient_body_buffer_size 1m;\nkeepalive_requests 1000000000;\n\
             upstream engine {{ server {engine}; keepalive 4096; keepalive_requests 1000000000; }}\n\
             server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://engine; proxy_http_version 1.1;\n\
             proxy_set_header Connection \"\"; proxy_buffering off; proxy_request_buffering on; }} }}\n}}\n"
        ),
    )?;
    let mut command = without_ready_line(Path::new("nginx"));
    command.arg("-c").arg(&config).arg("-e").arg(dir.join("error.log"));
    started("nginx", command, port)
}

fn sglang_router(engine: &Http) -> Result<Contender> {
    let python = system_tests::python::with_requirements("tests/python/peers/sglang-router.txt")?;
    let (port, metrics) = (free_port()?, free_port()?);
    let mut command = without_ready_line(&python);
    command.args(["-m", "sglang_router.launch_router", "--host", "127.0.0.1", "--port", &port.to_string()]);
    command.args(["--worker-urls", engine.url(), "--policy", "round_robin", "--log-level", "error"]);
    command.args(["--max-concurrent-requests", "100000", "--prometheus-host", "127.0.0.1"]);
    command.args(["--prometheus-port", &metrics.to_string()]);
    started("sglang_router", command, port)
}

fn litellm(dir: &Path, engine: &Http) -> Result<Contender> {
    let python = system_tests::python::with_requirements("tests/python/peers/litellm.txt")?;
    let port = free_port()?;
    let config = dir.join("litellm.yaml");
    let model = json!({ "model": "openai/m", "api_base": format!("{}/v1", engine.url()), "api_key": "none" });
    let settings = json!({ "dangerously_permit_weak_or_unset_master_key": true });
    let file = json!({ "model_list": [{ "model_name": "m", "litellm_params": model }], "general_settings": settings });
    // JSON is YAML.
    std::fs::write(&config, file.to_string())?;
    let mut command = without_ready_line(&python.with_file_name("litellm"));
    command.arg("--config").arg(&config).args(["--host", "127.0.0.1", "--port", &port.to_string()]);
    command.args(["--telemetry", "False", "--num_workers", "1"]);
    command.env("LITELLM_LOCAL_MODEL_COST_MAP", "True").env("LITELLM_LOG", "ERROR");
    started("litellm", command, port)
}

/// A foreign program on the proxy's core. A shell says `ready` for it, so that it starts and ends as ours do.
fn without_ready_line(program: &Path) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", "echo ready; exec \"$@\"", "sh"]);
    let pinned = pinned::command(PROXY_CORE, program);
    command.arg(pinned.get_program()).args(pinned.get_args());
    command
}

/// Starts it and waits until a request gets through.
fn started(name: &'static str, command: Command, port: u16) -> Result<Contender> {
    let program = Program::start(name, command)?;
    let http = Http::new(&format!("127.0.0.1:{port}"));
    let deadline = Instant::now() + START_TIME_MAX;
    let body = json!({ "model": "m", "messages": [{ "role": "user", "content": "hello" }] });
    while http.post_json(CHAT, &body).is_err() {
        if Instant::now() > deadline {
            bail!("{name} did not answer within {START_TIME_MAX:?}:\n{}", program.output());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(Contender { name, http, path: CHAT, program: Some(program) })
}

/// A port that nobody listens on now.
///
/// # Errors
/// If there is none.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0").context("no free port")?.local_addr()?.port())
}

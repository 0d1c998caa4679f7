//! What the programs count: a stack that has seen a bit of everything, and the reference page of its metrics.
//!
//! Some metrics have a series only once something has happened, so the page is made from programs that were used: text prompts
//! and token prompts, two tenants, a stream, a stranger who is refused.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use stack::{Daemon, Engine, Gateway, Http, Via};

use crate::{FUNCTIONAL, MODEL, tiny_engine};

/// A stack with two tenants. Fields drop in this order.
pub struct Used {
    /// Gateway.
    pub gateway: Gateway,
    /// Engine.
    pub engine: Engine,
    /// Daemon.
    pub daemon: Daemon,
    /// Sockets and configuration.
    pub dir: tempfile::TempDir,
}

/// Tenants: name, key and the key's SHA-256.
const TENANTS: [(&str, &str, &str); 2] = [
    ("search", "key-of-search", "bf2e9972d8188c1d2c9315c5574b11d8633aa4cdb3a34b3eb6a03a457fcd0e6c"),
    ("chat", "key-of-chat", "46c9eebffc4e74e76014592bf65b5af45d04b8bcba9a2bd7b988d0670cd50dc9"),
];

impl Used {
    /// Starts it: the tiny model on the functional emulated device under `phase`.
    ///
    /// # Errors
    /// If a program does not start.
    pub fn start() -> Result<Self> {
        let dir = stack::scratch()?;
        let daemon = Daemon::start(dir.path(), FUNCTIONAL, "phase")?;
        let (status, answer) =
            daemon.admin.send("PUT", "/v1/tenants/default", r#"{"memory_limit_bytes":1000000000}"#)?;
        ensure!(status == 200, "a limit for the tenant: {status} {answer}");
        let hints = dir.path().join("hints.sock");
        let engine = tiny_engine(&Via::Daemon(&daemon), Some(&hints), &[]);
        let mut config = format!("[[engines]]\nname = \"tiny\"\naddress = \"{}\"\n", engine.http.authority());
        for (name, _, sha256) in TENANTS {
            let _ = writeln!(config, "[[tenants]]\nname = \"{name}\"\nkey_sha256 = [\"{sha256}\"]");
        }
        let file = dir.path().join("gateway.toml");
        std::fs::write(&file, config)?;
        let gateway =
            Gateway::configured(&file, &["--hints", hints.to_str().context("the hint listener's path is not text")?])?;
        Ok(Self { gateway, engine, daemon, dir })
    }

    /// Sends a little of everything once.
    ///
    /// # Errors
    /// If an answer is not as expected.
    pub fn use_a_little(&self) -> Result<()> {
        for (_, key, _) in TENANTS {
            let http = Http::new(self.gateway.http.url()).with_header("authorization", &format!("Bearer {key}"));
            // A text so long that its tokens a byte are learnt from.
            for prompt in [json!([1, 2, 3, 4, 5, 6, 7, 8]), json!("how many tokens are these? ".repeat(20))] {
                let body = json!({ "model": MODEL, "prompt": prompt, "max_tokens": 12, "ignore_eos": true });
                http.post_json("/v1/completions", &body)?;
            }
            let body = json!({ "model": MODEL, "prompt": [1, 2, 3], "max_tokens": 12, "ignore_eos": true });
            for event in http.stream("/v1/completions", &body)? {
                event?;
            }
        }
        let stranger = Http::new(self.gateway.http.url()).with_header("authorization", "Bearer nobody");
        let (status, _) = stranger.send("POST", "/v1/completions", r#"{"model":"m","prompt":"let me in"}"#)?;
        ensure!(status == 401, "a stranger got {status}");
        Ok(())
    }

    /// Each program's name and the address of its metrics.
    ///
    /// # Errors
    /// If the gateway has no admin listener.
    pub fn programs(&self) -> Result<[(&'static str, Http); 3]> {
        let [daemon, engine] = [&self.daemon.admin, &self.engine.http].map(|http| Http::new(http.url()));
        Ok([("vnpu-daemon", daemon), ("engine", engine), ("gateway", self.gateway.admin()?)])
    }
}

/// One metric, as its page tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metric {
    /// As queries name it: counters with `_total`, histograms without a suffix.
    pub name: String,
    /// `counter`, `gauge` or `histogram`.
    pub kind: String,
    /// What it counts.
    pub help: String,
    /// Names of its labels.
    pub labels: BTreeSet<String>,
}

/// The metrics of a page in the OpenMetrics text format.
pub fn metrics(page: &str) -> Vec<Metric> {
    let mut found: Vec<Metric> = Vec::new();
    for line in page.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|l| l.split_once(' ')) {
            let help = help.trim_end_matches('.').to_owned();
            found.push(Metric { name: name.to_owned(), kind: String::new(), help, labels: BTreeSet::new() });
        } else if let Some((_, kind)) = line.strip_prefix("# TYPE ").and_then(|l| l.split_once(' ')) {
            if let Some(last) = found.last_mut() {
                kind.clone_into(&mut last.kind);
                if kind == "counter" {
                    last.name.push_str("_total");
                }
            }
        } else if let (Some((_, rest)), Some(last)) = (line.split_once('{'), found.last_mut()) {
            let labels = rest.split("\",").filter_map(|pair| pair.split_once("=\"")).map(|(name, _)| name.to_owned());
            last.labels.extend(labels.filter(|name| name != "le"));
        }
    }
    found
}

/// The reference page of the metrics of these programs, each with its page.
pub fn reference(programs: &[(&str, String)]) -> String {
    let mut out = "<!-- made from the running programs by `cargo xtask reference` -->\n# Metrics\n\nEach program serves them at \
                   `/metrics` in the OpenMetrics text format: the daemon and the gateway on their admin listeners (`--admin`), the engine \
                   beside its API. `dashboards/` has Grafana dashboards, recording rules and alerts made of them.\n"
        .to_owned();
    for (program, page) in programs {
        let _ = write!(out, "\n## {program}\n\n| metric | kind | labels | what |\n|---|---|---|---|\n");
        for Metric { name, kind, help, labels } in metrics(page) {
            let labels: Vec<String> = labels.iter().map(|l| format!("`{l}`")).collect();
            let _ = writeln!(out, "| `{name}` | {kind} | {} | {help} |", labels.join(", "));
        }
    }
    out
}

/// The reference page, from programs that this starts.
///
/// # Errors
/// If they do not do what they should.
pub fn page() -> Result<String> {
    let used = Used::start()?;
    used.use_a_little()?;
    let pages = used.programs()?.map(|(name, http)| http.get("/metrics").map(|text| (name, text)));
    Ok(reference(&pages.into_iter().collect::<Result<Vec<_>>>()?))
}

/// Samples of an instant query to a Prometheus; an error where it refuses the query.
///
/// # Errors
/// As said.
pub fn query(prometheus: &Http, expr: &str) -> Result<Vec<Value>> {
    let escaped: String = expr.bytes().map(|b| format!("%{b:02X}")).collect();
    let answer = prometheus.get_json(&format!("/api/v1/query?query={escaped}"))?;
    ensure!(answer["status"] == "success", "{expr}: {answer}");
    Ok(answer["data"]["result"].as_array().cloned().unwrap_or_default())
}

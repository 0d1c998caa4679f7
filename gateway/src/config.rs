//! What the gateway is told: flags for the simple case, a TOML file for the rest.
//!
//! Every field has a default, so a file says only what differs. A field that does not exist is an error with its line:
//! a limit that is silently not set is worse than a gateway that does not start.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use admission::{Quota, TenantLimits};
use anyhow::{Context, bail};
use serde::Deserialize;

use crate::mistakes::{self, Mistake};
use crate::quirks::Kind;

/// The file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Engines.
    pub engines: Vec<Engine>,
    /// The queue in front of them.
    pub queue: Queue,
    /// Bounds on every wait.
    pub timeouts: Timeouts,
    /// Largest request body, bytes.
    pub body_bytes_max: usize,
    /// Engine paths beside the API's own that are passed through: exact, or a beginning that ends in `*`.
    pub pass_through: Vec<String>,
    /// Times that a request is tried on another engine before its answer has begun.
    pub retries: u32,
    /// Kinds of tenants.
    pub tiers: HashMap<String, Tier>,
    /// Who may use the gateway. Without any, everyone may and is one tenant.
    pub tenants: Vec<Tenant>,
    /// What is known of models beside what engines say.
    pub models: Vec<Model>,
    /// What clients' TLS sees; without it they connect without TLS.
    pub tls: Option<Tls>,
    /// The page for operators.
    pub console: Console,
    /// Where OpenTelemetry goes; nowhere if left out.
    pub telemetry: Option<Telemetry>,
    /// The file's text: mistakes have lines.
    #[serde(skip)]
    text: String,
}

/// One engine.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Engine {
    /// Name in metrics and answers; its address if left out.
    #[serde(default)]
    pub name: String,
    /// `host:port`, or a URL: `https://host:port` for TLS.
    pub address: String,
    /// Who may have signed its certificate, PEM; whom the system trusts if left out.
    pub ca: Option<PathBuf>,
    /// What it is: decides how it is asked.
    #[serde(default)]
    pub kind: Kind,
    /// Environment variable that holds the key which the engine wants.
    pub api_key_env: Option<String>,
    /// File that holds it instead, as secrets are mounted.
    pub api_key_file: Option<PathBuf>,
    /// Admin API of the vnpu-daemon under it, `host:port`.
    pub daemon: Option<String>,
    /// Where the interposer in it listens for hints, if not where `--hints` says.
    pub hints: Option<PathBuf>,
    /// Prompt tokens between admission and first token.
    #[serde(default = "prefill_tokens")]
    pub prefill_tokens: u64,
    /// Sequences running.
    #[serde(default = "sequences")]
    pub sequences: u64,
    /// KV cache, tokens; what the engine says if left out, and unlimited if it says nothing.
    pub kv_tokens: Option<u64>,
    /// Longest sequence, tokens; what the engine says if left out.
    pub context_tokens: Option<u64>,
}

/// Prefill work enough that a batch is never short of it, little enough that a new request is not behind seconds of it.
fn prefill_tokens() -> u64 {
    65_536
}

/// vLLM's default batch.
fn sequences() -> u64 {
    256
}

/// Bounds of the queue.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Queue {
    /// Requests.
    pub requests: usize,
    /// Bytes of their bodies.
    pub bytes: u64,
    /// Longest wait, milliseconds; a client may ask for less.
    pub wait_max_ms: u64,
    /// Tokens of output reserved for a request that sets no limit.
    pub output_tokens_default: u64,
}

impl Default for Queue {
    fn default() -> Self {
        Self { requests: 4096, bytes: 1 << 30, wait_max_ms: 60_000, output_tokens_default: 256 }
    }
}

/// Bounds on waits, milliseconds.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// Until the engine accepts a connection.
    pub connect_ms: u64,
    /// From sending until the first token, or the whole answer of a request that is not streamed.
    pub first_token_ms: u64,
    /// Between two pieces of an answer.
    pub inter_token_ms: u64,
    /// For everything after admission.
    pub total_ms: u64,
    /// Silence towards a streaming client after which it gets a comment; 0 is never.
    pub keep_alive_ms: u64,
    /// For running answers after a signal to stop.
    pub drain_ms: u64,
    /// Between two looks at an engine's health.
    pub health_ms: u64,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect_ms: 5_000,
            first_token_ms: 600_000,
            inter_token_ms: 120_000,
            total_ms: 3_600_000,
            // Load balancers commonly close what is silent for 60 s, some for 30.
            keep_alive_ms: 15_000,
            drain_ms: 300_000,
            health_ms: 2_000,
        }
    }
}

impl Timeouts {
    /// Of a field in milliseconds.
    pub fn of(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }
}

/// What tenants of one kind may have.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tier {
    /// Share of the engines' tokens against other tenants that wait.
    pub weight: u32,
    /// Priority band, 0 to 3; requests may ask for less.
    pub band: usize,
    /// Sequences at a time.
    pub sequences: Option<u64>,
    /// Requests a minute.
    pub requests_per_minute: Option<u64>,
    /// Tokens a minute, prompt and output.
    pub tokens_per_minute: Option<u64>,
    /// Tokens a day.
    pub tokens_per_day: Option<u64>,
}

impl Default for Tier {
    fn default() -> Self {
        Self {
            weight: 1,
            band: 1,
            sequences: None,
            requests_per_minute: None,
            tokens_per_minute: None,
            tokens_per_day: None,
        }
    }
}

impl Tier {
    /// For the admission queue.
    pub fn limits(&self) -> TenantLimits {
        TenantLimits { weight: self.weight, sequences: self.sequences.unwrap_or(u64::MAX) }
    }

    /// For the meter.
    pub fn quota(&self) -> Quota {
        Quota {
            requests_per_minute: self.requests_per_minute,
            tokens_per_minute: self.tokens_per_minute,
            tokens_per_day: self.tokens_per_day,
        }
    }
}

/// A model.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Name in requests.
    pub name: String,
    /// Its `tokenizer.json`.
    pub tokenizer: PathBuf,
    /// Longer text is estimated, bytes.
    #[serde(default = "tokenizer_bytes_max")]
    pub tokenizer_bytes_max: u64,
}

/// Well above a usual chat, well below what would hold up its thread's other requests for long.
fn tokenizer_bytes_max() -> u64 {
    32 << 10
}

/// TLS towards clients.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// Certificate and those that signed it, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
}

/// The page for operators, on the admin listener.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Console {
    /// Admin APIs of vnpu-daemons to show, `host:port`, beside those that engines name.
    pub daemons: Vec<String>,
    /// SHA-256 of the keys with which policies can be changed, in hexadecimal; nobody can without.
    pub operator_key_sha256: Vec<String>,
}

/// Export of traces and metrics.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Telemetry {
    /// The collector's URL for OTLP over HTTP, without the signal's path.
    pub endpoint: String,
    /// What the gateway is called there.
    #[serde(default = "service_name")]
    pub service_name: String,
    /// Part of the requests whose span is exported, where the client's trace does not decide.
    #[serde(default = "all")]
    pub sampled_part: f64,
    /// Between two exports of metrics, milliseconds.
    #[serde(default = "metrics_every_ms")]
    pub metrics_every_ms: u64,
}

fn service_name() -> String {
    "gateway".to_owned()
}

fn all() -> f64 {
    1.0
}

/// OpenTelemetry's own default.
fn metrics_every_ms() -> u64 {
    60_000
}

/// One tenant.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tenant {
    /// Name in metrics, logs and hints.
    pub name: String,
    /// Its tier.
    pub tier: Option<String>,
    /// SHA-256 of its keys, in hexadecimal: keys themselves are not kept.
    #[serde(default)]
    pub key_sha256: Vec<String>,
    /// Files that hold a key each, as secrets are mounted; read with the configuration.
    #[serde(default)]
    pub key_files: Vec<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            engines: Vec::new(),
            queue: Queue::default(),
            timeouts: Timeouts::default(),
            body_bytes_max: 64 << 20,
            pass_through: Vec::new(),
            retries: 1,
            tiers: HashMap::new(),
            tenants: Vec::new(),
            models: Vec::new(),
            tls: None,
            telemetry: None,
            console: Console::default(),
            text: String::new(),
        }
    }
}

impl Engine {
    /// Its `host:port`, and whether it wants TLS.
    pub fn authority(&self) -> (String, bool) {
        let (tls, rest) = match self.address.split_once("://") {
            Some(("https", rest)) => (true, rest),
            Some(("http", rest)) => (false, rest),
            _ => return (self.address.clone(), false),
        };
        let rest = rest.trim_end_matches('/');
        let has_port = rest.rsplit_once(':').is_some_and(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
        let port = if has_port {
            ""
        } else if tls {
            ":443"
        } else {
            ":80"
        };
        (format!("{rest}{port}"), tls)
    }

    /// An engine of which only the address is known.
    pub fn at(address: &str) -> Self {
        Self {
            name: address.to_owned(),
            address: address.to_owned(),
            kind: Kind::default(),
            ca: None,
            api_key_env: None,
            api_key_file: None,
            daemon: None,
            hints: None,
            prefill_tokens: prefill_tokens(),
            sequences: sequences(),
            kv_tokens: None,
            context_tokens: None,
        }
    }
}

impl Config {
    /// Everything admitted, everything passed through: what a lone engine's sidecar does without a file.
    pub fn sidecar(upstreams: &[String]) -> Self {
        Self {
            engines: upstreams.iter().map(|u| Engine::at(u)).collect(),
            pass_through: vec!["*".to_owned()],
            ..Self::default()
        }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// What is wrong and in which line.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("{}: cannot be read", path.display()))?;
        Self::parse(&text).with_context(|| format!("{}: not a valid configuration", path.display()))
    }

    /// Reads the text of a file.
    ///
    /// # Errors
    /// What is wrong, and the line where the format can tell.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let mut config: Self = toml::from_str(text)?;
        for engine in &mut config.engines {
            if engine.name.is_empty() {
                engine.name.clone_from(&engine.address);
            }
        }
        text.clone_into(&mut config.text);
        mistakes::find(&config).map_err(|mistake| config.wrong(&mistake))?;
        Ok(config)
    }

    /// A mistake, with its line.
    pub fn wrong(&self, mistake: &Mistake) -> anyhow::Error {
        mistake.in_file(&self.text)
    }

    /// Tier of a tenant; the default one without a name.
    pub fn tier(&self, tenant: &Tenant) -> Tier {
        tenant.tier.as_ref().and_then(|t| self.tiers.get(t)).copied().unwrap_or_default()
    }

    /// Whether a path that is none of the API's own may be passed through.
    pub fn passes(&self, path: &str) -> bool {
        self.pass_through.iter().any(|allowed| match allowed.strip_suffix('*') {
            Some(beginning) => path.starts_with(beginning),
            None => path == allowed,
        })
    }
}

/// Where the configuration comes from.
pub fn load(file: Option<&PathBuf>, upstreams: &[String]) -> anyhow::Result<Config> {
    match (file, upstreams) {
        (Some(path), []) => Config::read(path),
        (None, []) => bail!("no engine: pass --upstream host:port or --config FILE"),
        (Some(_), _) => bail!("--config and --upstream together: name the engines in the file"),
        (None, upstreams) => {
            let config = Config::sidecar(upstreams);
            mistakes::find(&config)?;
            Ok(config)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_says_only_what_differs() {
        let config = Config::parse(
            r#"
            pass_through = ["/v1/rerank", "/v1/audio/*"]
            [[engines]]
            address = "127.0.0.1:8000"
            kind = "vllm-ascend"
            [tiers.gold]
            weight = 4
            tokens_per_minute = 60000
            [[tenants]]
            name = "blue"
            tier = "gold"
            key_sha256 = ["e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]
            "#,
        )
        .unwrap();
        assert_eq!(config.engines[0].name, "127.0.0.1:8000");
        assert_eq!((config.body_bytes_max, config.queue.requests), (64 << 20, 4096));
        assert_eq!(config.tier(&config.tenants[0]).weight, 4);
        for (path, passes) in
            [("/v1/rerank", true), ("/v1/rerank/x", false), ("/v1/audio/speech", true), ("/metrics", false)]
        {
            assert_eq!(config.passes(path), passes, "{path}");
        }
        assert!(Config::sidecar(&["x:1".into()]).passes("/anything"));
    }

    #[test]
    fn address_may_be_a_url() {
        for (address, authority, tls) in [
            ("a:1", "a:1", false),
            ("http://a:1/", "a:1", false),
            ("http://a", "a:80", false),
            ("https://a", "a:443", true),
            ("https://[::1]:8443", "[::1]:8443", true),
            ("https://[::1]", "[::1]:443", true),
            ("ftp://a", "ftp://a", false),
        ] {
            assert_eq!(Engine::at(address).authority(), (authority.to_owned(), tls), "{address}");
        }
    }
}

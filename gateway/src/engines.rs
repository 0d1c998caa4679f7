//! The engines behind the gateway: where they are, what they serve, whether they are worth a try.

use std::net::ToSocketAddrs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use admission::{Breaker, BreakerLimits, Capacity, EngineIndex, EngineSet};
use anyhow::{Context, bail};
use http::HeaderValue;
use parking_lot::{Mutex, RwLock};
use pingora_core::upstreams::peer::HttpPeer;
use serde_json::Value;

use crate::admit::Admitter;
use crate::config::{self, Config, Timeouts};
use crate::quirks::Quirks;

/// One engine.
pub struct Engine {
    /// Position in every table.
    pub index: EngineIndex,
    /// What was configured.
    pub config: config::Engine,
    /// How it differs from others.
    pub quirks: Quirks,
    /// For the connector.
    pub peer: HttpPeer,
    /// `Authorization` that it wants; never the client's where clients have keys of ours.
    pub authorization: Option<HeaderValue>,
    breaker: Mutex<Breaker>,
    models: RwLock<Arc<Vec<Value>>>,
    draining: AtomicBool,
    open: AtomicBool,
}

impl Engine {
    fn new(index: EngineIndex, config: config::Engine, timeouts: &Timeouts) -> anyhow::Result<Self> {
        let address = config.address.to_socket_addrs().ok().and_then(|mut a| a.next());
        let Some(address) = address else {
            bail!("engine `{}` is not a reachable host:port, as in 127.0.0.1:8000", config.address)
        };
        let mut peer = HttpPeer::new(address, false, String::new());
        peer.options.connection_timeout = Some(Timeouts::of(timeouts.connect_ms));
        let key = config.api_key_env.as_ref();
        let key = key.map(|name| {
            std::env::var(name).with_context(|| format!("engine `{}`: no variable {name} with its key", config.name))
        });
        let authorization = key
            .transpose()?
            .map(|key| HeaderValue::from_str(&format!("Bearer {key}")).context("an engine's key has odd characters"))
            .transpose()?;
        Ok(Self {
            index,
            quirks: config.kind.quirks(),
            config,
            peer,
            authorization,
            breaker: Mutex::new(Breaker::new(BreakerLimits::default())),
            models: RwLock::default(),
            draining: AtomicBool::new(false),
            open: AtomicBool::new(true),
        })
    }

    /// Whether it gets new requests.
    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::Relaxed)
    }

    /// Whether someone asked that it gets no new requests.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Its models, as it lists them; empty before it has.
    pub fn models(&self) -> Arc<Vec<Value>> {
        Arc::clone(&self.models.read())
    }

    /// It listed its models. No sequence is longer than the longest context of them.
    pub fn set_models(&self, models: Vec<Value>, admitter: &Arc<Admitter>) {
        let contexts = models.iter().filter_map(|m| m["max_model_len"].as_u64());
        if let (None, Some(context_tokens)) = (self.config.context_tokens, contexts.max()) {
            let now = admitter.ledger(self.index).capacity;
            admitter.set_capacity(self.index, Capacity { context_tokens, ..now });
        }
        *self.models.write() = Arc::new(models);
    }

    fn serves(&self, model: &str) -> bool {
        self.models.read().iter().any(|m| m["id"] == model)
    }

    /// A request or a look reached it.
    pub fn succeeded(&self, admitter: &Arc<Admitter>) {
        self.breaker.lock().succeeded();
        self.update(admitter);
    }

    /// It could not be reached, or broke off before it answered.
    pub fn failed(&self, admitter: &Arc<Admitter>) {
        if self.breaker.lock().failed(admitter.now_us()) {
            tracing::warn!(engine = self.config.name, "engine failed; no requests until it answers again");
        }
        self.update(admitter);
    }

    /// Takes it out of service, or back.
    pub fn set_draining(&self, draining: bool, admitter: &Arc<Admitter>) {
        self.draining.store(draining, Ordering::Relaxed);
        self.update(admitter);
    }

    /// Tells admission if anything has changed, the end of a breaker's pause included.
    pub fn update(&self, admitter: &Arc<Admitter>) {
        let closed = self.breaker.lock().is_closed(admitter.now_us());
        let open = closed && !self.is_draining();
        if self.open.swap(open, Ordering::Relaxed) != open {
            admitter.set_open(self.index, open, !closed);
        }
    }
}

/// All engines of a configuration.
///
/// # Errors
/// If an address does not resolve or a key is missing.
pub fn of(config: &Config) -> anyhow::Result<Vec<Engine>> {
    let each = config.engines.iter().cloned().enumerate();
    each.map(|(index, engine)| Engine::new(index, engine, &config.timeouts)).collect()
}

/// Engines that may get a request for `model`: those that list it, else those that have not listed anything yet; a lone
/// engine may always, and says itself what it does not serve.
pub fn for_model(engines: &[Engine], model: Option<&str>) -> EngineSet {
    let everyone = || engines.iter().map(|e| e.index).collect();
    let Some(model) = model else { return everyone() };
    let listed: EngineSet = engines.iter().filter(|e| e.serves(model)).map(|e| e.index).collect();
    if !listed.is_empty() {
        return listed;
    }
    let unknown: EngineSet = engines.iter().filter(|e| e.models().is_empty()).map(|e| e.index).collect();
    if unknown.is_empty() && engines.len() == 1 { everyone() } else { unknown }
}

/// Engines by how well they suit a session: the same session always gives the same order, and an engine that goes moves only
/// its own sessions (rendezvous hashing).
pub fn for_session(engines: &[Engine], session: &[u8]) -> Vec<EngineIndex> {
    use std::hash::{DefaultHasher, Hasher};
    let mut order: Vec<(u64, EngineIndex)> = engines
        .iter()
        .map(|e| {
            let mut hasher = DefaultHasher::new();
            hasher.write(session);
            hasher.write(e.config.name.as_bytes());
            (hasher.finish(), e.index)
        })
        .collect();
    order.sort_unstable();
    order.into_iter().map(|(_, engine)| engine).collect()
}

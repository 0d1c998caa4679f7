//! The engines behind the gateway: where they are, what they serve, whether they are worth a try.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use admission::{Breaker, BreakerLimits, EngineIndex, EngineSet};
use anyhow::bail;
use http::HeaderValue;
use parking_lot::{Mutex, RwLock};
use pingora_core::upstreams::peer::Scheme;
use serde_json::{Map, Value, json};

use crate::admit::Admitter;
use crate::config::{self, Config, Timeouts};
use crate::follow::Said;
use crate::identity;
use crate::mistakes::Mistake;
use crate::place::Place;
use crate::quirks::Quirks;
use crate::tls;

/// One engine, as one configuration has it. What is known of the engine itself outlives the configuration.
pub struct Engine {
    /// Position in every table.
    pub index: EngineIndex,
    /// What was configured.
    pub config: config::Engine,
    /// How it differs from others.
    pub quirks: Quirks,
    /// Where it is.
    pub place: Place,
    /// What it is called in `Host`: `host:port`.
    pub host: HeaderValue,
    /// `Authorization` that it wants; never the client's where clients have keys of ours.
    pub authorization: Option<HeaderValue>,
    /// Admin API of the daemon under it.
    pub daemon: Option<Place>,
    known: Arc<Known>,
}

/// What is known of an engine, whatever its limits are.
struct Known {
    breaker: Mutex<Breaker>,
    models: RwLock<Arc<Vec<Value>>>,
    said: Mutex<Said>,
    draining: AtomicBool,
    removed: AtomicBool,
    open: AtomicBool,
    /// Prompt tokens whose first token has come.
    prefilled_tokens: AtomicU64,
}

impl Default for Known {
    fn default() -> Self {
        Self {
            breaker: Mutex::new(Breaker::new(BreakerLimits::default())),
            models: RwLock::default(),
            said: Mutex::default(),
            draining: AtomicBool::new(false),
            removed: AtomicBool::new(false),
            open: AtomicBool::new(true),
            prefilled_tokens: AtomicU64::new(0),
        }
    }
}

impl Engine {
    /// The one at `place` in the file. Its `index` and what is known of it come later: whether the whole configuration can be
    /// had is found first.
    fn new(place: usize, config: config::Engine, timeouts: &Timeouts) -> Result<Self, Mistake> {
        let wrong = |member: &str, what: String| {
            Mistake::new(&[&"engines", &place, &member], format!("engine `{}`: {member}: {what}", config.name))
        };
        let (authority, tls) = config.authority();
        if config.ca.is_some() && !tls {
            return Err(wrong("ca", "its address is not https://".to_owned()));
        }
        let authorities = config.ca.as_deref().map(tls::authorities).transpose().map_err(|e| wrong("ca", e))?;
        let place = Place::of(&authority, timeouts, |peer| {
            if tls {
                peer.scheme = Scheme::HTTPS;
                peer.sni = authority.rsplit_once(':').map_or("", |(host, _)| host).trim_matches(['[', ']']).to_owned();
            }
            if let Some(authorities) = authorities {
                // A connection made under other authorities is another connection.
                peer.group_key = tls::fingerprint(&authorities);
                peer.options.ca = Some(authorities);
            }
        });
        let place = place.map_err(|e| wrong("address", e))?;
        let daemon = config.daemon.as_ref().map(|address| Place::of(address, timeouts, |_| ())).transpose();
        let daemon = daemon.map_err(|e| wrong("daemon", e))?;
        let bearer = |key: &str| {
            HeaderValue::from_str(&format!("Bearer {key}")).map_err(|_| "odd characters in the key".to_owned())
        };
        let authorization = match (&config.api_key_env, &config.api_key_file) {
            (None, None) => None,
            (Some(name), None) => {
                let key = std::env::var(name).map_err(|_| format!("no variable {name} with its key"));
                Some(key.and_then(|key| bearer(&key)).map_err(|e| wrong("api_key_env", e))?)
            }
            (None, Some(file)) => {
                let key = identity::key_in(file).and_then(|key| bearer(&key));
                Some(key.map_err(|e| wrong("api_key_file", e))?)
            }
            (Some(_), Some(_)) => {
                return Err(wrong("api_key_file", "and api_key_env: one of them holds the key".to_owned()));
            }
        };
        let host = HeaderValue::from_str(&authority).map_err(|_| wrong("address", "odd characters".to_owned()))?;
        let quirks = config.kind.quirks();
        Ok(Self { index: 0, quirks, config, place, host, authorization, daemon, known: Arc::default() })
    }

    /// Whether it is the engine that another configuration means.
    fn is(&self, other: &config::Engine) -> bool {
        let own = &self.config;
        (&own.name, &own.address, own.kind) == (&other.name, &other.address, other.kind)
    }

    /// Whether it gets new requests.
    pub fn is_open(&self) -> bool {
        self.known.open.load(Ordering::Relaxed)
    }

    /// Whether someone asked that it gets no new requests.
    pub fn is_draining(&self) -> bool {
        self.known.draining.load(Ordering::Relaxed)
    }

    /// Its models, as it lists them; empty before it has.
    pub fn models(&self) -> Arc<Vec<Value>> {
        Arc::clone(&self.known.models.read())
    }

    /// It listed its models. No sequence is longer than the longest context of them.
    pub fn set_models(&self, models: Vec<Value>, admitter: &Arc<Admitter>) {
        let contexts = models.iter().filter_map(|m| m["max_model_len"].as_u64());
        let longest = contexts.max();
        *self.known.models.write() = Arc::new(models);
        self.hear(admitter, |said| said.context_tokens = longest.or(said.context_tokens));
    }

    /// It, or the daemon under it, said something about what it can take; its limits follow.
    pub fn hear(&self, admitter: &Arc<Admitter>, what: impl FnOnce(&mut Said)) {
        let mut said = self.known.said.lock();
        what(&mut said);
        admitter.follow(self.index, said.capacity(&self.config), said.others, said.prefill_ns_per_token());
    }

    /// What it, and the daemon under it, said last.
    pub fn said(&self) -> Said {
        *self.known.said.lock()
    }

    /// It has prefilled so many more tokens.
    pub fn prefilled(&self, tokens: u64) {
        self.known.prefilled_tokens.fetch_add(tokens, Ordering::Relaxed);
    }

    /// Prompt tokens that it has prefilled so far.
    pub fn prefilled_tokens(&self) -> u64 {
        self.known.prefilled_tokens.load(Ordering::Relaxed)
    }

    /// Its ledgers and their limits; no limit is null.
    pub fn load(&self, admitter: &Admitter) -> Map<String, Value> {
        let ledger = admitter.ledger(self.index);
        let limit = |tokens: u64| json!((tokens != u64::MAX).then_some(tokens));
        let members = [
            ("open", json!(self.is_open())),
            ("prefill_tokens", json!(ledger.prefill_tokens)),
            ("prefill_tokens_max", limit(ledger.capacity.prefill_tokens)),
            ("sequences", json!(ledger.sequences)),
            ("sequences_max", limit(ledger.capacity.sequences)),
            ("kv_tokens", json!(ledger.kv_tokens)),
            ("kv_tokens_max", limit(ledger.capacity.kv_tokens)),
            ("context_tokens_max", limit(ledger.capacity.context_tokens)),
            ("others_sequences", json!(ledger.others.sequences)),
            ("others_kv_tokens", json!(ledger.others.kv_tokens)),
            ("prefill_us_per_token", json!(self.said().prefill_ns_per_token().map(|ns| ns / 1e3))),
        ];
        members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    fn serves(&self, model: &str) -> bool {
        self.known.models.read().iter().any(|m| m["id"] == model)
    }

    /// A request or a look reached it.
    pub fn succeeded(&self, admitter: &Arc<Admitter>) {
        self.known.breaker.lock().succeeded();
        self.update(admitter);
    }

    /// It could not be reached, or broke off before it answered.
    pub fn failed(&self, admitter: &Arc<Admitter>) {
        if self.known.breaker.lock().failed(admitter.now_us()) {
            tracing::warn!(engine = self.config.name, "engine failed; no requests until it answers again");
        }
        self.update(admitter);
    }

    /// Takes it out of service, or back.
    pub fn set_draining(&self, draining: bool, admitter: &Arc<Admitter>) {
        self.known.draining.store(draining, Ordering::Relaxed);
        self.update(admitter);
    }

    /// Tells admission if anything has changed, the end of a breaker's pause included.
    pub fn update(&self, admitter: &Arc<Admitter>) {
        let closed = self.known.breaker.lock().is_closed(admitter.now_us());
        let open = closed && !self.is_draining() && !self.known.removed.load(Ordering::Relaxed);
        if self.known.open.swap(open, Ordering::Relaxed) != open {
            admitter.set_open(self.index, open, !closed);
        }
    }
}

/// The engines of a configuration, and those of earlier ones on which something may still run.
#[derive(Default)]
pub struct Engines {
    by_index: Vec<Arc<Engine>>,
    present: EngineSet,
}

impl Engines {
    /// Those of `config`, some of them perhaps those of the configuration `before`. New ones have a place at the admitter;
    /// nobody has been told of removed ones yet.
    ///
    /// # Errors
    /// If an address is none, a key is missing, or there is no place; nothing has changed then.
    pub fn of(config: &Config, before: &Self, admitter: &Admitter) -> anyhow::Result<Self> {
        let each = config.engines.iter().enumerate();
        let each = each.map(|(place, engine)| Engine::new(place, engine.clone(), &config.timeouts));
        let made = each.collect::<Result<Vec<_>, _>>().map_err(|mistake| config.wrong(&mistake))?;
        let (mut by_index, mut present, mut added) = (before.by_index.clone(), EngineSet::EMPTY, EngineSet::EMPTY);
        for mut engine in made {
            if let Some(same) = before.iter().find(|e| e.is(&engine.config)) {
                (engine.index, engine.known) = (same.index, Arc::clone(&same.known));
            } else {
                let Some(index) = admitter.add_engine(engine.said().capacity(&engine.config)) else {
                    admitter.forget_engines(added);
                    bail!(
                        "no place for engine `{}` before removed engines have ended what runs there",
                        engine.config.name
                    )
                };
                engine.index = index;
                added = added.with(index);
            }
            let index = engine.index;
            present = present.with(index);
            let engine = Arc::new(engine);
            match by_index.get_mut(index) {
                Some(place) => *place = engine,
                None => by_index.push(engine),
            }
        }
        Ok(Self { by_index, present })
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Engine>> {
        self.present.iter().filter_map(|index| self.by_index.get(index))
    }

    /// One of them, or one that was removed and has not ended.
    pub fn at(&self, index: EngineIndex) -> &Arc<Engine> {
        &self.by_index[index]
    }

    /// The one of that name.
    pub fn named(&self, name: &str) -> Option<&Arc<Engine>> {
        self.iter().find(|e| e.config.name == name)
    }

    /// Whether there is more than one.
    pub fn are_several(&self) -> bool {
        self.present.iter().nth(1).is_some()
    }

    /// Where they are.
    pub fn present(&self) -> EngineSet {
        self.present
    }

    /// Ends those that `after` does not have: they get nothing new.
    pub fn retire(&self, after: &Self) -> EngineSet {
        let gone = self.present.without(after.present);
        for engine in gone.iter().map(|index| self.at(index)) {
            engine.known.removed.store(true, Ordering::Relaxed);
            engine.known.open.store(false, Ordering::Relaxed);
        }
        gone
    }

    /// Engines that may get a request for `model`: those that list it, else those that have not listed anything yet; a lone
    /// engine may always, and says itself what it does not serve.
    pub fn for_model(&self, model: Option<&str>) -> EngineSet {
        let Some(model) = model else { return self.present };
        let listed: EngineSet = self.iter().filter(|e| e.serves(model)).map(|e| e.index).collect();
        if !listed.is_empty() {
            return listed;
        }
        let unknown: EngineSet = self.iter().filter(|e| e.models().is_empty()).map(|e| e.index).collect();
        if unknown.is_empty() && !self.are_several() { self.present } else { unknown }
    }

    /// Engines by how well they suit a session: the same session always gives the same order, and an engine that goes moves
    /// only its own sessions (rendezvous hashing).
    pub fn for_session(&self, session: &[u8]) -> Vec<EngineIndex> {
        use std::hash::{DefaultHasher, Hasher};
        let weight = |e: &Arc<Engine>| {
            let mut hasher = DefaultHasher::new();
            hasher.write(session);
            hasher.write(e.config.name.as_bytes());
            (hasher.finish(), e.index)
        };
        let mut order: Vec<(u64, EngineIndex)> = self.iter().map(weight).collect();
        order.sort_unstable();
        order.into_iter().map(|(_, engine)| engine).collect()
    }
}

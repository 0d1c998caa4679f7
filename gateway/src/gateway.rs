//! What all requests share.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use admission::{Estimate, Estimator, QueueLimits};
use anyhow::Context;
use parking_lot::{Mutex, RwLock};

use crate::access_log::AccessLog;
use crate::admit::Admitter;
use crate::config::Config;
use crate::connections::Connections;
use crate::console::Feed;
use crate::hints::{Hints, Listeners};
use crate::metrics::{EngineLabel, Metrics, ModelLabel};
use crate::mistakes::Mistake;
use crate::setup::Setup;
use crate::telemetry::Telemetry;
use crate::wants::Wants;

/// The gateway.
pub struct Gateway {
    /// Who goes where and when.
    pub admitter: Arc<Admitter>,
    /// Connections to engines.
    pub connections: Connections,
    /// Objectives of requests that bring none.
    pub objectives: Wants,
    /// Clients' own wishes count.
    pub trusting: bool,
    /// To the schedulers.
    pub hints: Listeners,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// A line for each request.
    pub access_log: Option<AccessLog>,
    /// A span for each request.
    pub telemetry: Option<Telemetry>,
    /// Who looks at the console.
    pub console: Feed,
    file: Option<PathBuf>,
    setup: RwLock<Arc<Setup>>,
    reloading: Mutex<()>,
    estimator: Mutex<Estimator>,
    first_request: u64,
    next_request: AtomicU64,
    next_name: AtomicU64,
    in_flight: AtomicI64,
    stopping: AtomicBool,
}

/// What a reload changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Reloaded {
    /// Engines that get requests from now on.
    pub added: Vec<String>,
    /// Engines that end what they have and get nothing new.
    pub removed: Vec<String>,
    /// Which configuration since the start is in force.
    pub generation: u64,
}

impl Gateway {
    /// In front of the configured engines; `file` is where `config` was read.
    ///
    /// # Errors
    /// If an engine's address is none or its key is missing.
    pub fn new(
        (config, file): (Config, Option<PathBuf>),
        (objectives, trusting): (Wants, bool),
        hints: Hints,
        metrics: Arc<Metrics>,
        access_log: Option<AccessLog>,
    ) -> anyhow::Result<Self> {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |d| d.as_nanos() as u64);
        let limits = QueueLimits { requests: config.queue.requests, bytes: config.queue.bytes };
        let admitter = Arc::new(Admitter::new(limits, since_epoch));
        let telemetry = config.telemetry.as_ref().map(Telemetry::start).transpose()?;
        let setup = Setup::default().next(config, &admitter)?;
        setup.take_over(&Setup::default(), &admitter);
        Ok(Self {
            admitter,
            connections: Connections::default(),
            objectives,
            trusting,
            hints: Listeners::new(hints),
            metrics,
            access_log,
            telemetry,
            console: Feed::default(),
            file,
            setup: RwLock::new(Arc::new(setup)),
            reloading: Mutex::default(),
            estimator: Mutex::default(),
            // Two gateways in a row must not use the same numbers towards one interposer.
            first_request: since_epoch,
            next_request: AtomicU64::new(since_epoch),
            next_name: AtomicU64::new(0),
            in_flight: AtomicI64::new(0),
            stopping: AtomicBool::new(false),
        })
    }

    /// The configuration in force.
    pub fn setup(&self) -> Arc<Setup> {
        Arc::clone(&self.setup.read())
    }

    /// Reads the configuration file again. Requests that run go on under the configuration they came under.
    ///
    /// # Errors
    /// What is wrong with the file, and where; nothing has changed then.
    pub fn reload(&self) -> anyhow::Result<Reloaded> {
        let _one_at_a_time = self.reloading.lock();
        let file = self.file.as_ref().context("no file to read: the gateway was started with --upstream")?;
        let before = self.setup();
        let config = Config::read(file)?;
        if config.telemetry != before.config.telemetry {
            let what = "telemetry cannot change while the gateway runs: start it again";
            return Err(config.wrong(&Mistake::new(&[&"telemetry"], what)));
        }
        let after = Arc::new(before.next(config, &self.admitter)?);
        // New requests first: they know the new engines, and the old ones are still there.
        *self.setup.write() = Arc::clone(&after);
        let gone = after.take_over(&before, &self.admitter);
        self.hints.keep(&after.engines.iter().filter_map(|e| e.config.hints.as_deref()).collect::<Vec<_>>());
        let added = after.engines.present().without(before.engines.present());
        let named =
            |set: admission::EngineSet, of: &Setup| set.iter().map(|e| of.engines.at(e).config.name.clone()).collect();
        Ok(Reloaded { added: named(added, &after), removed: named(gone, &before), generation: after.generation })
    }

    /// A number for a request.
    pub fn next_request(&self) -> u64 {
        self.next_request.fetch_add(1, Ordering::Relaxed)
    }

    /// A name for a request that brought none.
    pub fn request_name(&self) -> String {
        format!("gw-{:x}-{:x}", self.first_request, self.next_name.fetch_add(1, Ordering::Relaxed))
    }

    /// Requests being served now.
    pub fn in_flight(&self) -> i64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// One more, until the value is dropped.
    pub fn enter(&self) -> InFlight<'_> {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(&self.in_flight)
    }

    /// It ends when the requests that run have: not ready for more.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Whether requests are welcome: not stopping, and an engine to send them to.
    pub fn is_ready(&self) -> bool {
        !self.stopping.load(Ordering::Relaxed) && self.setup().engines.iter().any(|e| e.is_open())
    }

    /// What is known of a model's tokens.
    pub fn estimate(&self, model: &str) -> Estimate {
        self.estimator.lock().of(model)
    }

    /// An engine counted a prompt's tokens.
    pub fn learn(&self, model: &str, text_bytes: u64, tokens: u64) {
        self.estimator.lock().learn(model, text_bytes, tokens);
    }

    /// The metrics page, states that are not counted as they happen read now.
    pub fn metrics_page(&self) -> String {
        let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let m = &self.metrics;
        let (requests, bytes, running) = self.admitter.load();
        m.queue_requests.set(signed(requests as u64));
        m.queue_bytes.set(signed(bytes));
        m.admitted.set(signed(running as u64));
        let setup = self.setup();
        // A rate over a series that is born with its first observation misses that one.
        for tenant in setup.tenants.all() {
            m.exist(&tenant.name);
        }
        for engine in setup.engines.iter() {
            let label = EngineLabel { engine: engine.config.name.clone() };
            let ledger = self.admitter.ledger(engine.index);
            m.engine_open.get_or_create(&label).set(i64::from(engine.is_open()));
            m.engine_prefill_tokens.get_or_create(&label).set(signed(ledger.prefill_tokens));
            m.engine_sequences.get_or_create(&label).set(signed(ledger.sequences));
            m.engine_kv_tokens.get_or_create(&label).set(signed(ledger.kv_tokens));
        }
        for (model, estimate) in self.estimator.lock().all() {
            let label = ModelLabel { model: model.to_owned() };
            m.bytes_per_token.get_or_create(&label).set(estimate.bytes_per_token);
            m.estimate_error.get_or_create(&label).set(estimate.error);
        }
        m.page()
    }
}

/// A request being served.
pub struct InFlight<'a>(&'a AtomicI64);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

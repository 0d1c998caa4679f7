//! The configuration in force and what is made of it. A request keeps the one that it came under; another takes its place
//! without anything being dropped.

use std::sync::Arc;

use admission::{EngineSet, QueueLimits};
use pingora_core::listeners::tls::Acceptor;

use crate::admit::Admitter;
use crate::config::Config;
use crate::engines::Engines;
use crate::identity::Tenants;
use crate::mistakes::Mistake;
use crate::tls;
use crate::tokens::Tokenizers;

/// One configuration at work.
#[derive(Default)]
pub struct Setup {
    /// Which one since the start.
    pub generation: u64,
    /// What was configured.
    pub config: Config,
    /// Engines.
    pub engines: Engines,
    /// Who may ask.
    pub tenants: Tenants,
    /// To count prompts.
    pub tokenizers: Tokenizers,
    /// TLS towards clients.
    pub acceptor: Option<Arc<Acceptor>>,
}

impl Setup {
    /// Whether `config` can be had at all.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    pub fn check(config: Config) -> anyhow::Result<()> {
        let limits = QueueLimits { requests: config.queue.requests, bytes: config.queue.bytes };
        Self::default().next(config, &Admitter::new(limits, 0)).map(drop)
    }

    /// Makes `config` the next after this one. Its new engines have a place at the admitter; nothing else has changed yet.
    ///
    /// # Errors
    /// If an engine's address is none or its key is missing, a certificate or tokenizer cannot be used, or there are too many
    /// engines or tenants.
    pub fn next(&self, config: Config, admitter: &Admitter) -> anyhow::Result<Self> {
        let acceptor = config.tls.as_ref().map(tls::acceptor).transpose();
        let acceptor = acceptor.map_err(|(member, what)| config.wrong(&Mistake::new(&[&"tls", &member], what)))?;
        let tokenizers = Tokenizers::of(&config, &self.tokenizers).map_err(|mistake| config.wrong(&mistake))?;
        let tenants = Tenants::of_config(&config, &self.tenants, admitter.now_us())?;
        let engines = Engines::of(&config, &self.engines, admitter)?;
        Ok(Self { generation: self.generation + 1, config, engines, tenants, tokenizers, acceptor })
    }

    /// Takes over from `before`, which new requests do not get any more: limits change, engines that are gone get nothing
    /// new, and who waits goes where this one says. The engines that are gone.
    pub fn take_over(&self, before: &Self, admitter: &Arc<Admitter>) -> EngineSet {
        let gone = before.engines.retire(&self.engines);
        let limits = QueueLimits { requests: self.config.queue.requests, bytes: self.config.queue.bytes };
        let shares = self.tenants.all().iter().map(|t| (t.index, t.tier.limits()));
        self.tenants.take_over(admitter.now_us());
        admitter.configure(self.generation, gone, limits, shares, |model| self.engines.for_model(model));
        for engine in self.engines.iter() {
            engine.hear(admitter, |_| ());
        }
        gone
    }
}

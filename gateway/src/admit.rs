//! Admission at work: the pure queue behind a lock, waiting requests as futures, running ones as leases.
//!
//! A [`Waiting`] that is dropped leaves the queue, a [`Lease`] that is dropped gives everything back. Both do so on every
//! way out, a client that leaves and a task that is dropped included; nothing else returns what was taken.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use admission::{Admission, Capacity, EngineIndex, EngineSet, Explanation, Grant, GrantId, Ledger, Others};
use admission::{PrefixIndex, QueueLimits, Refusal, Request, Served, TenantIndex, TenantLimits, Ticket};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::error::Failure;

/// Tokens of a stream that are booked at a time: a lock for each token would be one for nothing.
const BOOK_TOKENS: u32 = 16;

/// The queue and everything that waits in it or came out of it.
pub struct Admitter {
    state: Mutex<State>,
    started: Instant,
}

struct State {
    admission: Admission,
    waiting: HashMap<Ticket, Entry>,
    prefixes: PrefixIndex,
    /// Of the configuration that eligible engines come from.
    generation: u64,
}

struct Entry {
    sender: oneshot::Sender<Result<Lease, Failure>>,
    model: Option<String>,
    prefix: Vec<u64>,
}

/// Why a request does not get into the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outside {
    /// Waiting has no point.
    Refused(Refusal),
    /// It was prepared for a configuration that is not in force any more.
    Outdated,
}

/// What is asked for beside admission's own request.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// Model, if the request names one: decides which engines are eligible when they change.
    pub model: Option<String>,
    /// Hashes of the prompt's blocks.
    pub prefix: Vec<u64>,
    /// Generation of the configuration that its eligible engines come from.
    pub generation: u64,
}

/// A request in the queue.
pub struct Waiting {
    admitter: Arc<Admitter>,
    ticket: Ticket,
    receiver: oneshot::Receiver<Result<Lease, Failure>>,
}

/// A request's part of an engine.
pub struct Lease {
    admitter: Arc<Admitter>,
    id: GrantId,
    /// Which engine.
    pub engine: EngineIndex,
    /// How long it waited.
    pub waited_us: u64,
    unbooked: u32,
    first: bool,
    /// What the engine says it cost, once it has.
    pub served: Option<Served>,
}

impl Admitter {
    /// Without engines and tenants; `seed` decides the random choices.
    pub fn new(limits: QueueLimits, seed: u64) -> Self {
        let admission = Admission::new(limits, seed);
        let state = State { admission, waiting: HashMap::new(), prefixes: PrefixIndex::default(), generation: 0 };
        Self { state: Mutex::new(state), started: Instant::now() }
    }

    /// Adds an engine; `None` if there is no room for one.
    pub fn add_engine(&self, capacity: Capacity) -> Option<EngineIndex> {
        self.state.lock().admission.add_engine(capacity)
    }

    /// Takes engines away that no request has been told of.
    pub fn forget_engines(&self, engines: EngineSet) {
        let mut state = self.state.lock();
        engines.iter().for_each(|engine| state.admission.remove_engine(engine));
    }

    /// Another configuration is in force: without the engines `removed`, with these bounds and tenants' limits. Who waits
    /// may go where `eligible` says for its model; who may go nowhere is told so.
    pub fn configure(
        self: &Arc<Self>,
        generation: u64,
        removed: EngineSet,
        limits: QueueLimits,
        tenants: impl Iterator<Item = (TenantIndex, TenantLimits)>,
        eligible: impl Fn(Option<&str>) -> EngineSet,
    ) {
        let mut state = self.state.lock();
        let State { admission, waiting, prefixes, .. } = &mut *state;
        admission.set_queue_limits(limits);
        tenants.for_each(|(tenant, limits)| admission.set_tenant(tenant, limits));
        for engine in removed.iter() {
            admission.remove_engine(engine);
            prefixes.forget(engine);
        }
        for (&ticket, entry) in waiting.iter() {
            admission.set_eligible(ticket, eligible(entry.model.as_deref()));
        }
        state.generation = generation;
        self.settle(state);
    }

    /// Microseconds since the start: admission's clock.
    pub fn now_us(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Puts a request into the queue; its `preferred` are the engines that its session prefers.
    ///
    /// # Errors
    /// If it is refused, or its eligible engines are those of an earlier configuration.
    pub fn enter(self: &Arc<Self>, mut request: Request, asked: Asked) -> Result<Waiting, Outside> {
        let (sender, receiver) = oneshot::channel();
        let mut state = self.state.lock();
        if asked.generation < state.generation {
            return Err(Outside::Outdated);
        }
        request.preferred.extend(state.prefixes.preferred(&asked.prefix));
        let ticket = state.admission.offer(request, self.now_us()).map_err(Outside::Refused)?;
        state.waiting.insert(ticket, Entry { sender, model: asked.model, prefix: asked.prefix });
        self.dispatch(state);
        Ok(Waiting { admitter: Arc::clone(self), ticket, receiver })
    }

    /// What would happen to a request, by its deadline.
    pub fn explain(&self, request: &Request) -> (Explanation, Option<Refusal>) {
        let explanation = self.state.lock().admission.explain(request);
        (explanation, explanation.refusal_before(request.deadline_us, self.now_us()))
    }

    /// Opens or closes an engine. Whoever waits for closed engines only is told so.
    pub fn set_open(self: &Arc<Self>, engine: EngineIndex, open: bool, lost_cache: bool) {
        let mut state = self.state.lock();
        state.admission.set_open(engine, open);
        if lost_cache {
            state.prefixes.forget(engine);
        }
        self.settle(state);
    }

    /// An engine's limits, what others have there, and its time for a token of prompt, nanoseconds, follow what it says.
    pub fn follow(self: &Arc<Self>, engine: EngineIndex, capacity: Capacity, others: Others, ns: Option<f64>) {
        let mut state = self.state.lock();
        state.admission.set_prefill_ns_per_token(engine, ns);
        let ledger = *state.admission.ledger(engine);
        if (ledger.capacity, ledger.others) != (capacity, others) {
            state.admission.set_capacity(engine, capacity);
            state.admission.set_others(engine, others);
            self.dispatch(state);
        }
    }

    /// An engine's ledgers now.
    pub fn ledger(&self, engine: EngineIndex) -> Ledger {
        *self.state.lock().admission.ledger(engine)
    }

    /// Requests waiting, the bytes they hold, and requests running.
    pub fn load(&self) -> (usize, u64, usize) {
        let state = self.state.lock();
        let (requests, bytes) = state.admission.queued();
        (requests, bytes, state.admission.running())
    }

    /// Tokens served to a tenant, and its sequences running.
    pub fn tenant(&self, tenant: TenantIndex) -> (u64, u64) {
        let state = self.state.lock();
        (state.admission.served_tokens(tenant), state.admission.sequences(tenant))
    }

    /// Tells those who wait for closed engines only, then lets go whoever may.
    fn settle(self: &Arc<Self>, mut state: parking_lot::MutexGuard<'_, State>) {
        let mut orphans = Vec::new();
        for ticket in state.admission.orphans() {
            state.admission.withdraw(ticket, self.now_us());
            orphans.extend(state.waiting.remove(&ticket));
        }
        self.dispatch(state);
        for orphan in orphans {
            let _ = orphan.sender.send(Err(Failure::EngineUnreachable));
        }
    }

    /// Lets go whoever may; tells them after the lock is free, because a lease that nobody takes comes back at once.
    fn dispatch(self: &Arc<Self>, mut state: parking_lot::MutexGuard<'_, State>) {
        let now_us = self.now_us();
        let mut granted = Vec::new();
        while let Some(Grant { ticket, id, engine, waited_us }) = state.admission.next(now_us) {
            let admitter = Arc::clone(self);
            let lease = Lease { admitter, id, engine, waited_us, unbooked: 0, first: false, served: None };
            if let Some(entry) = state.waiting.remove(&ticket) {
                state.prefixes.sent(&entry.prefix, engine);
                granted.push((entry.sender, lease));
            }
        }
        drop(state);
        for (sender, lease) in granted {
            let _ = sender.send(Ok(lease));
        }
    }
}

impl Waiting {
    /// Waits for its turn. Dropping the future does not give up the place; dropping `self` does.
    ///
    /// # Errors
    /// If no engine is left that could take it.
    pub async fn turn(&mut self) -> Result<Lease, Failure> {
        (&mut self.receiver).await.unwrap_or(Err(Failure::EngineUnreachable))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut state = self.admitter.state.lock();
        if state.waiting.remove(&self.ticket).is_some() {
            state.admission.withdraw(self.ticket, self.admitter.now_us());
            // Its place may have held up others.
            self.admitter.dispatch(state);
        }
    }
}

impl Lease {
    /// The answer has begun.
    pub fn first_token(&mut self) {
        if !self.first {
            self.first = true;
            let mut state = self.admitter.state.lock();
            state.admission.first_token(self.id);
            self.admitter.dispatch(state);
        }
    }

    /// Tokens came.
    pub fn tokens(&mut self, count: u32) {
        self.unbooked = self.unbooked.saturating_add(count);
        if self.unbooked >= BOOK_TOKENS {
            let count = std::mem::take(&mut self.unbooked);
            self.admitter.state.lock().admission.tokens(self.id, u64::from(count));
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut state = self.admitter.state.lock();
        state.admission.tokens(self.id, u64::from(self.unbooked));
        state.admission.finish(self.id, self.served);
        self.admitter.dispatch(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use admission::{Demand, EngineSet};

    fn request() -> Request {
        Request {
            tenant: 0,
            band: 1,
            deadline_us: u64::MAX,
            demand: Demand { prompt_tokens: 10, exact: true, output_tokens: 5, sequences: 1, prompts: 1 },
            bytes: 100,
            eligible: EngineSet::EMPTY.with(0),
            preferred: Vec::new(),
        }
    }

    fn admitter() -> Arc<Admitter> {
        let capacity = Capacity { sequences: 1, ..Capacity::UNLIMITED };
        let admitter = Admitter::new(QueueLimits { requests: 10, bytes: 1000 }, 1);
        assert_eq!(admitter.add_engine(capacity), Some(0));
        Arc::new(admitter)
    }

    #[tokio::test]
    async fn every_way_out_gives_everything_back() {
        let a = admitter();
        let mut first = a.enter(request(), Asked::default()).unwrap();
        let lease = first.turn().await.unwrap();
        let second = a.enter(request(), Asked::default()).unwrap();
        let mut third = a.enter(request(), Asked::default()).unwrap();
        // One leaves while it waits, one is granted and leaves before it notices.
        drop(second);
        assert_eq!(a.load(), (1, 100, 1));
        drop(lease);
        drop(first);
        assert_eq!(a.load(), (0, 0, 1));
        drop(third.turn().await.unwrap());
        let fourth = a.enter(request(), Asked::default()).unwrap();
        assert_eq!(a.load(), (0, 0, 1), "granted, not looked at");
        drop(fourth);
        assert!(a.ledger(0).is_idle());
        assert_eq!(a.load(), (0, 0, 0));
    }

    #[tokio::test]
    async fn who_waits_for_a_dead_engine_is_told() {
        let a = admitter();
        let mut running = a.enter(request(), Asked::default()).unwrap();
        let _lease = running.turn().await.unwrap();
        let mut waiting = a.enter(request(), Asked::default()).unwrap();
        a.set_open(0, false, true);
        assert!(matches!(waiting.turn().await, Err(Failure::EngineUnreachable)));
        assert!(matches!(a.enter(request(), Asked::default()), Err(Outside::Refused(Refusal::NoEngine))));
    }
    #[tokio::test]
    async fn who_waits_goes_where_a_new_configuration_says() {
        let a = admitter();
        let mut running = a.enter(request(), Asked::default()).unwrap();
        let lease = running.turn().await.unwrap();
        let asked = || Asked { model: Some("m".to_owned()), ..Asked::default() };
        let mut waiting = a.enter(request(), asked()).unwrap();
        let limits = QueueLimits { requests: 10, bytes: 1000 };
        let one = EngineSet::EMPTY.with(1);
        assert_eq!(a.add_engine(Capacity::UNLIMITED), Some(1));
        a.configure(1, EngineSet::EMPTY.with(0), limits, std::iter::empty(), |model| {
            if model == Some("m") { one } else { EngineSet::EMPTY }
        });
        assert_eq!(waiting.turn().await.unwrap().engine, 1);
        assert!(matches!(a.enter(request(), asked()), Err(Outside::Outdated)));
        let mut fresh = a.enter(Request { eligible: one, ..request() }, Asked { generation: 1, ..asked() }).unwrap();
        assert_eq!(fresh.turn().await.unwrap().engine, 1);
        assert_eq!(lease.engine, 0, "what runs on a removed engine stays");
        drop((lease, running, waiting, fresh));
        assert_eq!(a.load(), (0, 0, 0));
    }
}

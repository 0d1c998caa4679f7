//! The queue in front of the ledgers.
//!
//! A request is offered, waits, and is granted an engine: of the bands the highest first, of its tenants the one served
//! least for its weight, of that tenant's requests the one with the earliest deadline. The head of this order is never
//! overtaken on an engine that it could use: a large request keeps its place, and smaller ones behind it only go to engines
//! that it cannot. Lower bands get one token in [`LOW_BAND_SHARE`] while they wait, so no band starves another.
//!
//! Fairness is charged with the estimated prompt when a request is admitted, with each token as it is generated, and
//! corrected at the end by what the engine counted, cached prompt tokens left out.

use std::collections::HashMap;

use rand::SeedableRng;
use rand::rngs::SmallRng;

use crate::balance::{Candidate, choose};
use crate::fair::{Fair, TenantLimits};
use crate::ledger::{Capacity, Demand, Ledger, Misfit, Others, Reservation};
use crate::pace::Pace;
use crate::queue::{Queue, Ticket};
use crate::{BANDS, EngineIndex, EngineSet, TenantIndex};

/// Of this many tokens admitted while a lower band waits, one is the lower band's.
const LOW_BAND_SHARE: u64 = 16;
/// Waiting requests looked at for one grant. Reached only if that many wait for engines that are taken or gone.
const SCAN_LEN_MAX: usize = 1024;
/// What a refused client is told to wait while the pace is not known.
const RETRY_DEFAULT_US: u64 = 1_000_000;

/// A request as admission sees it.
#[derive(Clone, Debug)]
pub struct Request {
    /// Who asks.
    pub tenant: TenantIndex,
    /// Priority band, below [`BANDS`]; larger is served first.
    pub band: usize,
    /// When waiting has no point any more.
    pub deadline_us: u64,
    /// What it takes.
    pub demand: Demand,
    /// Memory that it holds while it waits.
    pub bytes: u64,
    /// Engines that serve its model.
    pub eligible: EngineSet,
    /// Engines that remember its beginning or its session, the best first.
    pub preferred: Vec<EngineIndex>,
}

/// Bounds of the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLimits {
    /// Requests.
    pub requests: usize,
    /// Bytes of their bodies.
    pub bytes: u64,
}

/// A running request's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GrantId(u64);

/// A waiting request may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Which one.
    pub ticket: Ticket,
    /// Its name from now on; ends with [`Admission::finish`].
    pub id: GrantId,
    /// Where to.
    pub engine: EngineIndex,
    /// How long it waited.
    pub waited_us: u64,
}

/// Why a request is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It never fits.
    NeverFits(Misfit),
    /// No engine that serves its model is up.
    NoEngine,
    /// The queue is full.
    QueueFull {
        /// When there is likely to be room.
        retry_after_us: u64,
    },
    /// It cannot start before its deadline.
    TooLate {
        /// Predicted wait.
        wait_us: u64,
        /// When the same request is likely to be let in.
        retry_after_us: u64,
    },
}

/// What would happen to a request now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Explanation {
    /// Refused, and why.
    pub refusal: Option<Refusal>,
    /// It would start at once.
    pub starts_now: bool,
    /// Prompt tokens served before it.
    pub tokens_ahead: u64,
    /// Predicted wait; unknown while there is no experience with a backlog and no engine's prefill time is known.
    pub wait_us: Option<u64>,
    /// Predicted time from admission to the first token, on the engine where it is least; unknown where no engine's prefill
    /// time is.
    pub prefill_us: Option<u64>,
}

/// What the engine says a request cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// Prompt tokens computed: without those from the prefix cache.
    pub prompt_tokens: u64,
    /// Tokens generated.
    pub output_tokens: u64,
}

#[derive(Debug)]
struct Running {
    engine: EngineIndex,
    tenant: TenantIndex,
    held: Reservation,
    charged: i64,
    output_tokens: u64,
    output_reserved: u64,
}

#[derive(Debug)]
struct Engine {
    ledger: Ledger,
    open: bool,
    /// Gone for good; another takes its place when nothing runs there any more.
    removed: bool,
    running: usize,
    prefill_ns_per_token: Option<f64>,
}

impl Engine {
    /// Predicted time to prefill so many tokens behind what is in flight.
    fn prefill_us(&self, tokens: u64) -> Option<u64> {
        let ahead = self.ledger.prefill_tokens.saturating_add(tokens);
        self.prefill_ns_per_token.map(|ns| (ahead as f64 * ns / 1e3) as u64)
    }
}

/// Ledgers, queue and fairness of one gateway.
#[derive(Debug)]
pub struct Admission {
    limits: QueueLimits,
    engines: Vec<Engine>,
    fair: Fair,
    queue: Queue,
    running: HashMap<GrantId, Running>,
    /// Tokens admitted from above since a band was served last while it waits.
    passed_over: [u64; BANDS],
    pace: Pace,
    random: SmallRng,
    next_id: u64,
}

impl Admission {
    /// Without engines and tenants; `seed` decides the random choices.
    pub fn new(limits: QueueLimits, seed: u64) -> Self {
        Self {
            limits,
            engines: Vec::new(),
            fair: Fair::default(),
            queue: Queue::default(),
            running: HashMap::new(),
            passed_over: [0; BANDS],
            pace: Pace::default(),
            random: SmallRng::seed_from_u64(seed),
            next_id: 0,
        }
    }

    /// Adds an engine that takes requests, in the place of a removed one where nothing runs any more; `None` if there are
    /// [`ENGINES_MAX`](crate::ENGINES_MAX).
    pub fn add_engine(&mut self, capacity: Capacity) -> Option<EngineIndex> {
        let engine = Engine {
            ledger: Ledger::new(capacity),
            open: true,
            removed: false,
            running: 0,
            prefill_ns_per_token: None,
        };
        if let Some(free) = self.engines.iter().position(|e| e.removed && e.running == 0) {
            self.engines[free] = engine;
            return Some(free);
        }
        if self.engines.len() == crate::ENGINES_MAX {
            return None;
        }
        self.engines.push(engine);
        Some(self.engines.len() - 1)
    }

    /// Takes an engine away: nothing new gets there, what runs there ends there, and who waits for it alone waits in vain
    /// until [`set_eligible`](Self::set_eligible) says otherwise.
    pub fn remove_engine(&mut self, engine: EngineIndex) {
        self.engines[engine].open = false;
        self.engines[engine].removed = true;
        for eligible in self.queue.eligible_mut() {
            *eligible = eligible.without(EngineSet::EMPTY.with(engine));
        }
    }

    /// Other engines serve a waiting request's model than when it came.
    pub fn set_eligible(&mut self, ticket: Ticket, eligible: EngineSet) {
        let Some(waiting) = self.queue.get(ticket) else { return };
        let fitting = self.fitting(&waiting.request.demand, eligible);
        self.queue.set_eligible(ticket, fitting);
    }

    /// Changes an engine's limits. What is in flight above a lower limit runs on.
    pub fn set_capacity(&mut self, engine: EngineIndex, capacity: Capacity) {
        self.engines[engine].ledger.capacity = capacity;
    }

    /// Others than this gateway have so much on an engine.
    pub fn set_others(&mut self, engine: EngineIndex, others: Others) {
        self.engines[engine].ledger.others = others;
    }

    /// An engine is known to take so many nanoseconds for a token of prompt.
    pub fn set_prefill_ns_per_token(&mut self, engine: EngineIndex, ns: Option<f64>) {
        self.engines[engine].prefill_ns_per_token = ns.filter(|&ns| ns > 0.0);
    }

    /// Opens an engine for new requests, or closes it.
    pub fn set_open(&mut self, engine: EngineIndex, open: bool) {
        let engine = &mut self.engines[engine];
        engine.open = open && !engine.removed;
    }

    /// Sets what a tenant may have.
    pub fn set_tenant(&mut self, tenant: TenantIndex, limits: TenantLimits) {
        self.fair.tenant_mut(tenant).limits = limits;
    }

    /// Changes the queue's bounds; who waits already stays.
    pub fn set_queue_limits(&mut self, limits: QueueLimits) {
        self.limits = limits;
    }

    /// Puts a request into the queue.
    ///
    /// # Errors
    /// If waiting has no point.
    pub fn offer(&mut self, mut request: Request, now_us: u64) -> Result<Ticket, Refusal> {
        self.pace.pass(now_us, self.queue.len() > 0);
        if let Some(refusal) = self.explain(&request).refusal_before(request.deadline_us, now_us) {
            return Err(refusal);
        }
        request.eligible = self.fitting(&request.demand, request.eligible);
        self.fair.enters(request.tenant, request.band);
        Ok(self.queue.push(request, now_us))
    }

    /// The next request that may go, if one may. Call until there is none, after every change.
    pub fn next(&mut self, now_us: u64) -> Option<Grant> {
        self.pace.pass(now_us, self.queue.len() > 0);
        let (ticket, engine) = self.head()?;
        let backlog = self.queue.len() > 1;
        let waiting = self.queue.remove(ticket)?;
        let request = waiting.request;
        let prompt = request.demand.prompt_tokens;
        self.fair.serves(request.tenant);
        self.fair.leaves(request.tenant, request.band);
        if backlog || waiting.since_us < now_us {
            self.pace.admitted(prompt);
        }
        self.passed_over[request.band] = 0;
        for lower in 0..request.band {
            let waits = self.fair.waiting(lower).next().is_some();
            self.passed_over[lower] = if waits { self.passed_over[lower].saturating_add(prompt.max(1)) } else { 0 };
        }
        let Engine { ledger, running, .. } = &mut self.engines[engine];
        let held = ledger.reservation(&request.demand);
        ledger.take(held);
        *running += 1;
        let charged = i64::try_from(prompt).unwrap_or(i64::MAX);
        self.fair.charge(request.tenant, charged);
        self.fair.tenant_mut(request.tenant).sequences += held.sequences;
        let id = GrantId(self.next_id);
        self.next_id += 1;
        let output_reserved = held.kv_tokens.saturating_sub(prompt);
        let running = Running { engine, tenant: request.tenant, held, charged, output_tokens: 0, output_reserved };
        self.running.insert(id, running);
        Some(Grant { ticket, id, engine, waited_us: now_us.saturating_sub(waiting.since_us) })
    }

    /// Takes a request out of the queue; false if it is not there (any more).
    pub fn withdraw(&mut self, ticket: Ticket, now_us: u64) -> bool {
        self.pace.pass(now_us, self.queue.len() > 0);
        let Some(waiting) = self.queue.remove(ticket) else { return false };
        self.fair.leaves(waiting.request.tenant, waiting.request.band);
        true
    }

    /// The first token came: prefill is over.
    pub fn first_token(&mut self, id: GrantId) {
        let Some(running) = self.running.get_mut(&id) else { return };
        let prefill_tokens = std::mem::take(&mut running.held.prefill_tokens);
        self.engines[running.engine].ledger.give(Reservation { prefill_tokens, ..Reservation::default() });
    }

    /// Tokens were generated. Beyond what was reserved for them they add to the KV ledger.
    pub fn tokens(&mut self, id: GrantId, count: u64) {
        let Some(running) = self.running.get_mut(&id) else { return };
        running.output_tokens += count;
        let signed = i64::try_from(count).unwrap_or(i64::MAX);
        running.charged = running.charged.saturating_add(signed);
        let above = running.output_tokens.saturating_sub(running.output_reserved);
        if above > 0 {
            running.output_reserved += above;
            let more = Reservation { kv_tokens: above, ..Reservation::default() };
            running.held.kv_tokens += above;
            self.engines[running.engine].ledger.take(more);
        }
        self.fair.charge(running.tenant, signed);
    }

    /// It is over, in whatever way; with the engine's count where there is one.
    pub fn finish(&mut self, id: GrantId, served: Option<Served>) {
        let Some(running) = self.running.remove(&id) else { return };
        let engine = &mut self.engines[running.engine];
        engine.ledger.give(running.held);
        engine.running -= 1;
        self.fair.tenant_mut(running.tenant).sequences -= running.held.sequences;
        if let Some(served) = served {
            let actual = served.prompt_tokens.saturating_add(served.output_tokens);
            let actual = i64::try_from(actual).unwrap_or(i64::MAX);
            self.fair.charge(running.tenant, actual.saturating_sub(running.charged));
        }
    }

    /// What would happen to a request now.
    pub fn explain(&self, request: &Request) -> Explanation {
        let refused = |refusal| Explanation { refusal: Some(refusal), ..Explanation::default() };
        let demand = &request.demand;
        let most = self.fair.tenant(request.tenant).limits.sequences;
        if demand.sequences > most {
            return refused(Refusal::NeverFits(Misfit::Sequences { sequences: demand.sequences, max: most }));
        }
        if let Some(misfit) = self.misfit(request) {
            return refused(Refusal::NeverFits(misfit));
        }
        let usable = self.fitting(demand, request.eligible).and(self.open());
        if usable.is_empty() {
            return refused(Refusal::NoEngine);
        }
        let above = self.queue.tokens_from(request.band);
        let own = self.queue.tokens_of(request.band, request.tenant, request.deadline_us);
        let weight = u64::from(self.fair.tenant(request.tenant).limits.weight.max(1));
        let share = own.saturating_add(demand.prompt_tokens).saturating_mul(self.fair.weights(request.tenant)) / weight;
        let tokens_ahead = above.min(share);
        let starts_now = self.queue.len() == 0 && self.has_room(request);
        let wait_us = if starts_now { Some(0) } else { self.wait_us(tokens_ahead.max(1), demand, usable) };
        let full = self.queue.len() >= self.limits.requests
            || self.queue.bytes().saturating_add(request.bytes) > self.limits.bytes;
        let refusal = (!starts_now && full).then(|| {
            let each = above / (self.queue.len() as u64).max(1);
            Refusal::QueueFull { retry_after_us: self.wait_us(each.max(1), demand, usable).unwrap_or(RETRY_DEFAULT_US) }
        });
        let prefill_us = usable.iter().filter_map(|e| self.engines[e].prefill_us(demand.prompt_tokens)).min();
        Explanation { refusal, starts_now, tokens_ahead, wait_us, prefill_us }
    }

    /// Predicted time until `tokens` and then `demand` are admitted: by the pace of late, else by the engines' prefill time
    /// for what is ahead and what is in flight above the limit.
    fn wait_us(&self, tokens: u64, demand: &Demand, engines: EngineSet) -> Option<u64> {
        self.pace.wait_us(tokens).or_else(|| {
            let known = || engines.iter().map(|e| &self.engines[e]).filter(|e| e.prefill_ns_per_token.is_some());
            let above = known().map(|e| e.ledger.prefill_above(demand)).min()?;
            let per_ns: f64 = known().filter_map(|e| e.prefill_ns_per_token).map(f64::recip).sum();
            Some((tokens.saturating_add(above) as f64 / per_ns / 1e3) as u64)
        })
    }

    /// Requests that wait for engines none of which is open: nothing will come of it soon.
    pub fn orphans(&self) -> Vec<Ticket> {
        let open = self.open();
        let waiting = self.queue.all().filter(|(_, w)| w.request.eligible.and(open).is_empty());
        waiting.map(|(ticket, _)| ticket).collect()
    }

    /// An engine's ledgers.
    pub fn ledger(&self, engine: EngineIndex) -> &Ledger {
        &self.engines[engine].ledger
    }

    /// Requests waiting, and the bytes they hold.
    pub fn queued(&self) -> (usize, u64) {
        (self.queue.len(), self.queue.bytes())
    }

    /// Requests running.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Tokens served to a tenant so far, cached prompt tokens left out where engines say so.
    pub fn served_tokens(&self, tenant: TenantIndex) -> u64 {
        self.fair.tenant(tenant).served_tokens
    }

    /// Sequences of a tenant running now.
    pub fn sequences(&self, tenant: TenantIndex) -> u64 {
        self.fair.tenant(tenant).sequences
    }

    /// Tenants known.
    pub fn tenants(&self) -> usize {
        self.fair.tenants()
    }

    fn open(&self) -> EngineSet {
        self.engines.iter().enumerate().filter(|(_, e)| e.open).map(|(i, _)| i).collect()
    }

    fn misfit(&self, request: &Request) -> Option<Misfit> {
        let mut misfits = request.eligible.iter().map(|e| self.engines[e].ledger.misfit(&request.demand));
        let first = misfits.next()??;
        misfits.all(|m| m.is_some()).then_some(first)
    }

    /// Eligible engines that it fits at some time.
    fn fitting(&self, demand: &Demand, eligible: EngineSet) -> EngineSet {
        eligible.iter().filter(|&e| self.engines[e].ledger.misfit(demand).is_none()).collect()
    }

    fn has_room(&self, request: &Request) -> bool {
        let tenant = self.fair.tenant(request.tenant);
        tenant.sequences.saturating_add(request.demand.sequences) <= tenant.limits.sequences
            && !self.with_room(request, self.fitting(&request.demand, request.eligible).and(self.open())).is_empty()
    }

    fn with_room(&self, request: &Request, among: EngineSet) -> Vec<Candidate> {
        let engines = among.iter().map(|engine| (engine, &self.engines[engine].ledger));
        engines
            .filter(|(_, ledger)| ledger.fits(&request.demand))
            .map(|(engine, ledger)| Candidate { engine, outstanding_tokens: ledger.outstanding_tokens() })
            .collect()
    }

    /// Bands in the order in which they are asked: one that was passed over long enough, then from the highest.
    fn bands(&self) -> impl Iterator<Item = usize> {
        let due = (0..BANDS).find(|&band| {
            let head = self.fair.waiting(band).next().and_then(|t| self.queue.of_tenant(band, t).next());
            let tokens = head.and_then(|t| Some(self.queue.get(t)?.request.demand.prompt_tokens));
            tokens.is_some_and(|t| self.passed_over[band] >= t.max(1).saturating_mul(LOW_BAND_SHARE))
        });
        due.into_iter().chain((0..BANDS).rev().filter(move |&b| Some(b) != due))
    }

    /// Who goes next, and where to.
    fn head(&mut self) -> Option<(Ticket, EngineIndex)> {
        let mut open = self.open();
        let mut looked = 0;
        let mut found = None;
        'search: for band in self.bands() {
            for tenant in self.fair.waiting(band) {
                let state = self.fair.tenant(tenant);
                for ticket in self.queue.of_tenant(band, tenant) {
                    looked += 1;
                    if open.is_empty() || looked > SCAN_LEN_MAX {
                        break 'search;
                    }
                    let Some(waiting) = self.queue.get(ticket) else { continue };
                    let request = &waiting.request;
                    if state.sequences.saturating_add(request.demand.sequences) > state.limits.sequences {
                        break;
                    }
                    let usable = request.eligible.and(open);
                    let candidates = self.with_room(request, usable);
                    if candidates.is_empty() {
                        // It keeps its place: nobody behind it gets onto these engines first.
                        open = open.without(usable);
                        continue;
                    }
                    found = Some((ticket, candidates, request.preferred.clone()));
                    break 'search;
                }
            }
        }
        let (ticket, candidates, preferred) = found?;
        Some((ticket, choose(&candidates, &preferred, &mut self.random)?))
    }
}

impl Explanation {
    /// Predicted time to the first token, where both parts of it are known.
    pub fn ttft_us(&self) -> Option<u64> {
        Some(self.wait_us?.saturating_add(self.prefill_us?))
    }

    /// The refusal at offering, the predicted wait held against the deadline.
    pub fn refusal_before(&self, deadline_us: u64, now_us: u64) -> Option<Refusal> {
        self.refusal.or_else(|| {
            let left_us = deadline_us.saturating_sub(now_us);
            let wait_us = self.wait_us.filter(|&wait_us| wait_us > left_us)?;
            Some(Refusal::TooLate { wait_us, retry_after_us: wait_us - left_us })
        })
    }
}

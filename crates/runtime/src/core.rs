//! The daemon's state machine: records, completions and time in; submissions and replies out.
//!
//! [`Core`] owns the device, the dispatcher and every session's objects, and is owned by one thread, so nothing here
//! locks. It reads no clock: [`crate::DeviceLoop`] and the tests tell it the time.
//!
//! **Time.** [`Core::advance`] moves from the last time it was told to the present one through every completion and every
//! end of a hold-back in between, in order, and lets the dispatcher submit at *that* time, not at the time of the call.
//! Records are taken in at the time of the call. A loop that calls `advance(now)` and then hands over the records that
//! arrived, with the same `now`, therefore never stretches modelled time, however late it woke up.
//!
//! **Invariants**
//! - An item is in exactly one place: queued in the dispatcher, in flight on the device, or finished. Each reply a client
//!   was promised is sent exactly once, unless the session ends first.
//! - The device only ever sees physical addresses that [`crate::translate`] resolved.
//! - What a session does, or its end, changes no byte and no object of another.
//!
//! **Costs** of an operator: one slot, one swap of buffers, one look-up a tensor, one push, one submission, one completion; no
//! allocation once the pools have grown, no system call. `cargo run --release -p runtime --example dispatch_cost` measures
//! them.

use std::collections::{BTreeMap, VecDeque};

use acl_abi::OpCall;
use device::{Completion, Compute, Device};
use sched::dispatch::Window;
use sched::{Action, Dispatcher, Nanos, PolicyConfig, Profile, SessionParams, Token};
use session::ServerSession;
use session::peers::Peers;

use crate::comm::{Comm, CommKey};
use crate::comm_records::Joins;
use crate::items::Items;
use crate::latency::Served;
use crate::limits::Limits;
use crate::memory::Released;
use crate::occupancy::Occupancy;
use crate::parked::Parked;
use crate::pool::Pool;
use crate::port::Port;
use crate::recording::SessionName;
use crate::shared_events::SharedEvents;
use crate::shares::Shares;
use crate::steps::StepLog;
use crate::tenant::{PhaseCount, Tenant};
use crate::tenants::{Accounts, TenantError};
use crate::usage::Meter;
use crate::values::Values;

/// Longest time between two looks at the device while paced work is outstanding and nobody waits for it: bounds how late
/// buffers are recycled, at 1,000 wake-ups a second.
pub const LOOK_EVERY_NS: Nanos = 1_000_000;

/// Items of a session in the dispatcher, in units of [`Limits::queued_items_max`]: besides what has a token here, streams
/// hold records of events, waits and resets, which are small.
const DISPATCHER_ITEMS: usize = 4;

/// Why a device cannot be run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// Work cannot be weighed.
    #[error("no device profile is called {name:?}; known: {}", known_profiles())]
    NoProfile {
        /// The device's profile name.
        name: String,
    },
    /// The system refused something the loop needs.
    #[error("cannot start the dispatch loop: {0}")]
    System(String),
}

/// Why a session cannot be attached.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    /// [`Limits::sessions_max`].
    #[error("{0} sessions are attached, no more are allowed")]
    TooManySessions(usize),
    /// No such tenant.
    #[error(transparent)]
    Tenant(#[from] TenantError),
    /// The dispatcher's answer.
    #[error(transparent)]
    Refused(#[from] sched::dispatch::Refused),
    /// The dispatch thread has ended.
    #[error("the dispatch thread has ended")]
    Stopped,
}

fn known_profiles() -> String {
    Profile::ALL.map(|p| p.name).join(", ")
}

/// When the loop must look again. A doorbell ends every wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// Only when a doorbell rings.
    Doorbell,
    /// By this time, give or take what a timer does.
    By(Nanos),
    /// At this time as exactly as can be: somebody waits for what may happen then.
    At(Nanos),
}

/// Gives memory of a session back to the device, unless another session holds it too.
pub(crate) fn give_back(device: &mut dyn Device, shares: &mut Shares, session: u64, released: Released) {
    match released {
        Released::Block(addr) if shares.let_go(session, addr) => device.free(addr),
        Released::Handle(addr) if shares.let_go(session, addr) => device.free_handle(addr),
        Released::Block(_) | Released::Handle(_) => {}
        Released::Piece(addr) => device.unmap(addr),
        Released::Window(addr) => device.release(addr),
    }
}

/// A device and everything on it.
pub struct Core {
    pub(crate) device: Box<dyn Device>,
    pub(crate) profile: Profile,
    pub(crate) dispatcher: Dispatcher,
    pub(crate) limits: Limits,
    dispatcher_items_max: usize,
    pub(crate) tenants: BTreeMap<u64, (Tenant, Port)>,
    pub(crate) items: Items,
    pub(crate) pool: Pool,
    pub(crate) parked: Vec<Parked>,
    /// Memory that several sessions hold.
    pub(crate) shares: Shares,
    /// Events that several sessions have.
    pub(crate) shared_events: SharedEvents,
    /// Streams that wait for a value in memory.
    pub(crate) values: Values,
    /// Looks at memory that the device has.
    pub(crate) looks: usize,
    /// Communicators by session and the client's number.
    pub(crate) comms: BTreeMap<CommKey, Comm>,
    /// Ranks that are on their way into one.
    pub(crate) joins: Joins,
    /// How ranks on other devices are found.
    pub(crate) peers: Option<Peers>,
    /// Commands of exchanges that the device has.
    pub(crate) moves: usize,
    /// Next physical stream; never reused, the device keeps nothing of an idle one.
    pub(crate) next_physical: u32,
    /// The time that everything has been brought up to.
    pub(crate) time: Nanos,
    /// Items that hold a client up ([`crate::items::Entry::is_urgent`]).
    pub(crate) urgent: usize,
    /// Commands that the device has.
    pub(crate) in_flight: usize,
    /// Completed work of all sessions, past ones included, by [`sched::Phase::index`].
    pub(crate) phases: [PhaseCount; 4],
    /// Sessions with a launch of a graph that is not queued whole.
    pub(crate) replaying: Vec<u64>,
    /// Operators of graphs on their way into the queue.
    pub(crate) replay_call: OpCall,
    /// A graph's operator could not start: see [`Self::bind_late`].
    pub(crate) ended_early: bool,
    pub(crate) sessions_total: u64,
    pub(crate) faults_total: u64,
    pub(crate) hints_total: u64,
    /// Lines for hints that were none, as clients say.
    pub(crate) hints_refused_total: u64,
    /// Requests forgotten because their leases ran out, or because there were too many.
    pub(crate) hints_expired: u64,
    pub(crate) hints_dropped: u64,
    /// No lease runs out before this time.
    pub(crate) leases_end: Nanos,
    pub(crate) steps: StepLog,
    /// Calls answered to sessions that have ended.
    pub(crate) replies_past: u64,
    /// How busy the device is.
    pub(crate) occupancy: Occupancy,
    /// Who used it.
    pub(crate) meter: Meter,
    /// Tenants, and their books.
    pub(crate) accounts: Accounts,
    /// What hints told of the requests of sessions that have ended.
    pub(crate) served_past: Served,
    /// Sessions that ended while there was a recording.
    pub(crate) names_past: VecDeque<SessionName>,
    actions: Vec<Action>,
    completions: Vec<Completion>,
    dropped: Vec<Token>,
}

impl Core {
    /// Takes a device over.
    ///
    /// # Errors
    /// No profile for the device.
    pub fn new(mut device: Box<dyn Device>, policy: PolicyConfig, limits: Limits) -> Result<Self, StartError> {
        let info = device.info();
        let profile = Profile::by_soc_name(&info.profile_name)
            .ok_or_else(|| StartError::NoProfile { name: info.profile_name.clone() })?;
        // A device that is nothing but a model is caught up exactly, so the hand-over takes no modelled time and a window of
        // one loses nothing. Elsewhere operators take an unknown real time: keep a few ahead.
        let modelled = info.paced && info.compute == Compute::Timing;
        let window = if modelled { Window::Adaptive { handoff: 0, max: 16 } } else { Window::Fixed(16) };
        device.set_core_split(policy.core_split());
        let bounds = sched::dispatch::Limits {
            window,
            sessions_max: limits.sessions_max,
            streams_per_session_max: limits.streams_max + 1,
            flags_per_session_max: limits.events_max,
            items_per_session_max: DISPATCHER_ITEMS * limits.queued_items_max,
            events_per_session_max: limits.events_max,
            requests_per_session_max: limits.requests_max,
        };
        Ok(Self {
            device,
            profile,
            dispatcher: Dispatcher::new(policy, bounds),
            limits,
            dispatcher_items_max: DISPATCHER_ITEMS * limits.queued_items_max,
            tenants: BTreeMap::new(),
            items: Items::default(),
            pool: Pool::default(),
            parked: Vec::new(),
            shares: Shares::default(),
            shared_events: SharedEvents::default(),
            values: Values::default(),
            looks: 0,
            comms: BTreeMap::new(),
            joins: Joins::default(),
            peers: None,
            moves: 0,
            next_physical: 0,
            time: 0,
            urgent: 0,
            in_flight: 0,
            phases: [PhaseCount::default(); 4],
            replaying: Vec::new(),
            replay_call: OpCall::new(acl_abi::OpId(0)),
            ended_early: false,
            sessions_total: 0,
            faults_total: 0,
            hints_total: 0,
            hints_refused_total: 0,
            hints_expired: 0,
            hints_dropped: 0,
            leases_end: Nanos::MAX,
            steps: StepLog::default(),
            replies_past: 0,
            occupancy: Occupancy::default(),
            meter: Meter::default(),
            accounts: Accounts::default(),
            served_past: Served::default(),
            names_past: VecDeque::new(),
            actions: Vec::new(),
            completions: Vec::new(),
            dropped: Vec::new(),
        })
    }

    /// Bounds.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The device.
    pub fn device(&self) -> &dyn Device {
        &*self.device
    }

    /// Adds a session of a tenant; `params.tenant` is ignored. Its records come in through [`Core::record`], under its number.
    ///
    /// # Errors
    /// Too many sessions, no such tenant.
    pub fn attach(&mut self, session: &ServerSession, tenant: &str, params: SessionParams) -> Result<(), AttachError> {
        let account = self.accounts.number(tenant)?;
        let params = SessionParams { tenant: account, ..params };
        if self.tenants.len() >= self.limits.sessions_max {
            return Err(AttachError::TooManySessions(self.tenants.len()));
        }
        self.dispatcher.open_session(session.id(), params)?;
        let (default, internal) = (self.new_physical(), self.new_physical());
        let peer = session.peer().clone();
        let mut tenant = Tenant::new(peer, account, default, internal);
        tenant.metered = (0, self.time);
        self.tenants.insert(session.id(), (tenant, Port::new(session.replier().clone())));
        self.sessions_total += 1;
        Ok(())
    }

    /// Ends a session: what it queued is dropped, what it held is free on return.
    ///
    /// Its operators in flight finish (an accelerator cannot take them back) but belong to nobody. Memory may be given
    /// back before they do: [`Device::free`] takes memory that submitted commands name and never shows it to anyone
    /// before they are through; host memory stays mapped as long as a command holds it.
    pub fn detach(&mut self, now: Nanos, session: u64) {
        self.advance(now);
        self.meter_memory(session);
        let Some((mut tenant, port)) = self.tenants.remove(&session) else { return };
        self.replies_past += port.replies();
        self.note_past(session, &tenant.peer);
        self.served_past.merge(&tenant.served);
        self.close_steps(session, &mut tenant);
        let mut dropped = std::mem::take(&mut self.dropped);
        dropped.clear();
        self.dispatcher.close_session(self.time, session, &mut dropped);
        for &token in &dropped {
            let Self { items, pool, urgent, .. } = self;
            items.finish(token, |entry| {
                *urgent -= usize::from(entry.is_urgent());
                if let Some(command) = entry.command.take() {
                    pool.recycle(command);
                }
            });
        }
        self.dropped = dropped;
        self.parked.retain(|p| p.session != session);
        self.replaying.retain(|&s| s != session);
        self.values.forget_session(session);
        self.forget_comms(session);
        self.shared_events_end(session, tenant.events.values().filter_map(|e| e.shared));
        let Self { device, shares, .. } = self;
        tenant.space.release_all(|released| give_back(&mut **device, shares, session, released));
        self.settle_shares();
        self.advance(now);
    }

    /// True while the session's ring may be read. False is back-pressure: the client blocks once its ring is full.
    pub fn has_room(&self, session: u64) -> bool {
        self.has_space(session) && !self.is_replaying(session) || self.stands(session)
    }

    /// False while a launch of a graph is not queued whole and can go on: the session's next record waits for that.
    pub fn is_open(&self, session: u64) -> bool {
        !self.is_replaying(session) || self.stands(session)
    }

    fn is_replaying(&self, session: u64) -> bool {
        !self.replaying.is_empty() && self.replaying.contains(&session)
    }

    /// True if everything that the session has queued waits for something that has not happened. What it waits for may stand in its
    /// ring, so that is read on, up to twice the bound.
    fn stands(&self, session: u64) -> bool {
        let idle =
            |items: usize, in_flight: usize| in_flight == 0 && items > 0 && items < 2 * self.limits.queued_items_max;
        self.tenants.get(&session).is_some_and(|(t, _)| idle(t.items, t.in_flight))
            && self.dispatcher.has_room(session)
            && !self.dispatcher.is_ready(session)
    }

    /// True while the session may queue more.
    pub(crate) fn has_space(&self, session: u64) -> bool {
        self.tenants.get(&session).is_some_and(|(t, _)| t.items < self.limits.queued_items_max)
            && self.dispatcher.has_room(session)
    }

    /// How many records of the session's ring may be taken in now; 0 under back-pressure. Never so many that one of them
    /// could find the dispatcher full: records in a ring can wait, what was taken out cannot.
    pub fn room(&self, session: u64) -> usize {
        let batch = self.limits.drain_records_max;
        match self.has_room(session) {
            false => 0,
            true if self.is_replaying(session) || !self.has_space(session) => 1,
            // Everyone's items are at least this session's, so this errs on the safe side.
            true if self.dispatcher.queued() + self.in_flight + batch >= self.dispatcher_items_max => 1,
            true => batch,
        }
    }

    /// Changes the policy.
    pub fn set_policy(&mut self, now: Nanos, policy: PolicyConfig) {
        self.dispatcher.set_policy(policy);
        self.device.set_core_split(policy.core_split());
        self.tell_requests();
        self.advance(now);
    }

    /// Brings everything up to `now`: see the module's paragraph on time.
    pub fn advance(&mut self, now: Nanos) {
        let now = now.max(self.time);
        if now >= self.leases_end {
            self.expire_hints();
        }
        let mut awaiting_worker = false;
        loop {
            let expiry = self.dispatcher.wake_at(self.time).filter(|&t| t > self.time);
            let completion = self.device.next_completion().filter(|_| !awaiting_worker);
            let next = [expiry, completion].into_iter().flatten().min().filter(|&t| t <= now);
            let target = next.unwrap_or(now).max(self.time);
            let mut completions = std::mem::take(&mut self.completions);
            self.device.advance(target, &mut completions);
            let mut progress = !completions.is_empty();
            // The model says that something is complete and the device has no result: a worker thread is still at it.
            // Then the rest of the way is one step.
            awaiting_worker = !progress && completion.is_some_and(|t| t <= target);
            for completion in completions.drain(..) {
                self.time = self.time.max(completion.at.min(target));
                self.completed(completion);
            }
            self.completions = completions;
            self.time = target;
            progress |= self.step();
            progress |= self.continue_replays() && self.step();
            // At `now`, go on only for a device that is through with what it was given in this moment. Results that a worker
            // thread may finish meanwhile wait for the next call, or the rings would wait for the worker.
            if next.is_none() && !(progress && self.device.next_completion().is_some_and(|t| t <= now)) {
                break;
            }
        }
        self.retry_parked();
    }

    /// Calls of clients that have no answer yet.
    pub fn calls_waiting(&self) -> usize {
        self.items.with_reply() + self.parked.len()
    }

    /// When to call [`Core::advance`] next if no record arrives and no doorbell rings.
    pub fn next_wake(&self, now: Nanos) -> Wake {
        let expiry = self.dispatcher.wake_at(now);
        let completion = self.device.next_completion();
        let patience = self.comm_deadline();
        if self.in_flight == 0 && expiry.is_none() && patience.is_none() && self.parked.is_empty() {
            return Wake::Doorbell;
        }
        // Nothing changes before the earlier of the two; `None`: only a worker thread knows, and it rings.
        let change = [expiry, completion].into_iter().flatten().min();
        let blocked = self.urgent > 0 || !self.parked.is_empty() || self.tenants.keys().any(|&s| !self.has_room(s));
        let release = if blocked { change } else { self.dispatcher.earliest_release(now) };
        let waiter = release.zip(change).map(|(release, change)| release.max(change));
        // Functional work goes to a thread when a hold-back ends, so that moment is not one to be caught up with later.
        let exact = [waiter, expiry, patience].into_iter().flatten().filter(|&t| t > now).min();
        let look = (change.is_some() || !self.parked.is_empty()).then_some(now + LOOK_EVERY_NS);
        match (exact, look) {
            (Some(exact), Some(look)) if exact > look => Wake::By(look),
            (Some(exact), _) => Wake::At(exact),
            (None, Some(look)) => Wake::By(look),
            (None, None) => Wake::Doorbell,
        }
    }

    /// One decision of the dispatcher at [`Self::time`]; true if it changed anything.
    fn step(&mut self) -> bool {
        let mut changed = false;
        // Once, unless an operator ended without the device: what waited for it goes on in the same moment.
        loop {
            self.ended_early = false;
            changed |= self.step_once();
            self.ended_early |= self.look_at_values();
            let (released, submitted) = self.look_at_comms();
            self.ended_early |= released;
            changed |= submitted;
            if !self.ended_early {
                return changed;
            }
        }
    }

    fn step_once(&mut self) -> bool {
        let mut actions = std::mem::take(&mut self.actions);
        actions.clear();
        self.dispatcher.step(self.time, &mut actions);
        for &action in &actions {
            match action {
                Action::Submit { token, .. } => self.submit(token),
                Action::Done { token } => self.done(token),
            }
        }
        let changed = !actions.is_empty();
        self.actions = actions;
        changed
    }

    /// Hands an item to the device.
    pub(crate) fn submit(&mut self, token: Token) {
        if !self.bind_late(token) {
            return;
        }
        self.meter_device();
        let Some(entry) = self.items.get_mut(token) else { return };
        let Some(command) = entry.command.take() else { return };
        entry.submitted = Some(self.time);
        let account = self.tenants.get(&entry.session).map_or(0, |(tenant, _)| tenant.account);
        self.meter.begins(account, entry.physical, entry.phase, &entry.work);
        self.occupancy.begins(self.time, entry.phase);
        self.device.submit(self.time, entry.physical, token, entry.phase, entry.work, command);
        self.in_flight += 1;
        if let Some((tenant, _)) = self.tenants.get_mut(&entry.session) {
            tenant.in_flight += 1;
        }
    }

    pub(crate) fn new_physical(&mut self) -> u32 {
        let physical = self.next_physical;
        self.next_physical = self.next_physical.wrapping_add(1);
        physical
    }
}

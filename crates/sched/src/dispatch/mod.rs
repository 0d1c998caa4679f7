//! Stream queues, events, synchronisation, hand-over to the device: the daemon's loop as a pure state machine.
//!
//! In: streams, items, completions, hints, each with its time. Out of [`Dispatcher::step`]: submissions and answered
//! waiters. The rules that no policy can change:
//!
//! - operators of one stream start and complete in the order in which they were pushed (the device keeps the order of
//!   what it holds);
//! - an event wait holds its stream until the record that preceded it in submission order has completed; without one it
//!   does nothing (`events.rs`: every record is a mark of its own);
//! - a waiter is answered when everything pushed before it on its stream (or in its session) has completed;
//! - a session that closes drops what it queued, keeps what the device holds until that completes, and releases
//!   everyone who waited for it.
//!
//! Everything that goes in and comes out can be recorded and replayed (`record.rs`).
//!
//! Cost: O(1) an item plus O(ready streams) a decision; allocations only where queues grow, for records that something
//! waits for, and for device-wide waiters. Time may be passed in late but never goes back: a smaller `now` counts as the
//! largest seen.

mod codec;
mod events;
mod flags;
mod holds;
mod lifetime;
mod press;
mod record;
mod release;
mod replay;
mod settle;
mod state;
mod stats;
mod stream;
mod tenancy;
mod types;
mod view;

pub use codec::Malformed;
pub use flags::FlagKey;
pub use holds::HoldSpan;
pub use record::{Aside, Entry as RecordEntry, RecordLimits, Recording};
pub use replay::{Record, RecordError, ReplayError, Replayed, Spectator};
pub(crate) use state::sorted;
pub use stats::{HoldReason, HoldStats, PredictionStats, SIZES, Stats, size, size_from};
pub use stream::Op;
pub(crate) use stream::Stream;
pub use tenancy::{LEAD_NS, OWED_NS, TenantParams};
pub use types::{
    Action, EventKey, EventStatus, HintInput, HintKind, Item, Label, Limits, Refused, SessionParams, StreamKey, Token,
    Window,
};
pub use view::Ready;

use crate::Nanos;
use crate::policy::learn::Learner;
use crate::policy::{self, Policy, PolicyConfig};
use events::Events;
use flags::Flags;
use foldhash::{HashMap, HashMapExt};
use lifetime::info;
use serde::{Deserialize, Serialize};
use stream::{Entry, Place};
use tenancy::Tenancy;

#[derive(Debug, Serialize, Deserialize)]
struct Session {
    params: SessionParams,
    streams: Vec<usize>,
    items: usize,
    events: usize,
}

/// A device-wide waiter: one marker on every stream that was busy.
#[derive(Debug, Serialize, Deserialize)]
struct Fence {
    token: Token,
    /// Where the markers stand that have not been reached.
    after: Vec<(usize, Place)>,
}

/// The dispatcher. One a device; single-threaded.
pub struct Dispatcher {
    config: PolicyConfig,
    policy: Box<dyn Policy>,
    /// Measures predictions for a policy that does not.
    meter: Option<Learner>,
    limits: Limits,
    now: Nanos,
    seq: u64,
    sessions: HashMap<u64, Session>,
    keys: HashMap<StreamKey, usize>,
    streams: Vec<Option<Stream>>,
    free: Vec<usize>,
    /// Streams whose next operator could be submitted.
    ready: Vec<usize>,
    /// Where each token in flight is: stream, number within it.
    flying: HashMap<Token, (usize, u64)>,
    events: Events,
    flags: Flags,
    fences: HashMap<u64, Fence>,
    fences_minted: u64,
    /// Streams with waiters in their queue.
    awaited: Vec<usize>,
    /// Answered waiters that no step has handed out yet.
    done: Vec<Token>,
    /// Streams that other devices wait for.
    pressed: Vec<usize>,
    /// Streams to look at again.
    work: Vec<usize>,
    items: usize,
    wake: Option<Nanos>,
    stats: Stats,
    tenancy: Tenancy,
    /// Ready streams whose tenants may go: scratch.
    permitted: Vec<usize>,
    recorder: Option<record::Recorder>,
    /// Hold-backs that have ended, while somebody watches ([`Dispatcher::watch_holds`]).
    holds_watched: Option<Vec<HoldSpan>>,
}

impl Dispatcher {
    /// An empty dispatcher.
    pub fn new(config: PolicyConfig, limits: Limits) -> Self {
        let policy = policy::build(&config, limits.requests_per_session_max);
        Self {
            config,
            meter: (!policy.measures()).then(Learner::new),
            policy,
            limits,
            now: 0,
            seq: 0,
            sessions: HashMap::new(),
            keys: HashMap::new(),
            streams: Vec::new(),
            free: Vec::new(),
            ready: Vec::new(),
            flying: HashMap::new(),
            events: Events::default(),
            flags: Flags::default(),
            fences: HashMap::new(),
            fences_minted: 0,
            awaited: Vec::new(),
            done: Vec::new(),
            pressed: Vec::new(),
            work: Vec::new(),
            items: 0,
            wake: None,
            stats: Stats::default(),
            tenancy: Tenancy::default(),
            permitted: Vec::new(),
            recorder: None,
            holds_watched: None,
        }
    }

    /// Appends an item to a stream.
    pub fn push(&mut self, now: Nanos, key: StreamKey, item: Item) -> Result<(), Refused> {
        self.log(|| RecordEntry::Push(now, key, item));
        let now = self.advance(now);
        let &index = self.keys.get(&key).ok_or(Refused::NoStream(key))?;
        let session = self.sessions.get_mut(&key.session).ok_or(Refused::NoSession(key.session))?;
        let stream = self.streams[index].as_mut().ok_or(Refused::NoStream(key))?;
        if session.items >= self.limits.items_per_session_max {
            return Err(Refused::TooManyItems(self.limits.items_per_session_max));
        }
        let entry = match item {
            Item::Op { token, solo, demand, phase, label } => {
                self.seq += 1;
                let op = Op { token, solo, demand, phase, label, seq: self.seq, pushed: now };
                self.policy.pushed(now, index, &op);
                Entry::Op { op, done: false }
            }
            Item::RecordEvent(event) => {
                if !self.events.contains(event)
                    && let Some(owner) = self.sessions.get_mut(&event.session)
                {
                    if owner.events >= self.limits.events_per_session_max {
                        return Err(Refused::TooManyEvents(self.limits.events_per_session_max));
                    }
                    owner.events += 1;
                }
                Entry::Record { mark: self.events.record(event, index, stream.end()) }
            }
            // Bound in submission order, see `events`: nothing is left to do when the stream gets there.
            Item::ResetEvent(event) => {
                self.forget_event(event);
                return Ok(());
            }
            Item::WaitEvent(event) => match self.events.pending(event) {
                Some(mark) => Entry::Wait { mark },
                None => return Ok(()),
            },
            Item::AwaitFlag(flag) => {
                self.room_for_flag(flag)?;
                self.flags.queued(flag);
                Entry::Await { flag }
            }
            Item::SetFlag(flag) => {
                self.room_for_flag(flag)?;
                Entry::Flag { flag, set: true }
            }
            Item::ClearFlag(flag) => Entry::Flag { flag, set: false },
            Item::Notify { token } => {
                let Some(stream) = self.streams[index].as_mut() else { return Err(Refused::NoStream(key)) };
                if stream.waiters.is_empty() {
                    self.awaited.push(index);
                }
                stream.waiters.push_back(stream.end());
                Entry::Notify { token }
            }
        };
        if let Some(stream) = self.streams[index].as_mut() {
            stream.push(entry);
        }
        if let Some(session) = self.sessions.get_mut(&key.session) {
            session.items += 1;
        }
        self.items += 1;
        self.stats.queued_max = self.stats.queued_max.max(self.items);
        self.work.push(index);
        self.settle(now);
        Ok(())
    }

    fn room_for_flag(&self, flag: FlagKey) -> Result<(), Refused> {
        let max = self.limits.flags_per_session_max;
        // Most sessions have none, so counting is rare.
        if !self.flags.contains(flag) && self.flags.len() >= max && self.flags.count(flag.session) >= max {
            return Err(Refused::TooManyFlags(max));
        }
        Ok(())
    }

    /// Ends every wait for a flag, those that streams have not reached yet included, and forgets the flag.
    pub fn release_flag(&mut self, now: Nanos, flag: FlagKey) {
        self.log(|| RecordEntry::ReleaseFlag(now, flag));
        let now = self.advance(now);
        let streams = self.flags.release(flag);
        self.work.extend(streams);
        self.settle(now);
    }

    /// [`Action::Done`] once the last record of the event completes; with the next step if there is none.
    pub fn notify_event(&mut self, now: Nanos, event: EventKey, token: Token) {
        self.log(|| RecordEntry::NotifyEvent(now, event, token));
        self.advance(now);
        if !self.events.wait(event, token) {
            self.done.push(token);
        }
    }

    /// Forgets an event; waits that were pushed keep their record.
    pub fn destroy_event(&mut self, event: EventKey) {
        self.log(|| RecordEntry::DestroyEvent(event));
        self.forget_event(event);
    }

    fn forget_event(&mut self, event: EventKey) {
        if self.events.forget(event)
            && let Some(session) = self.sessions.get_mut(&event.session)
        {
            session.events -= 1;
        }
    }

    /// [`Action::Done`] once everything that the session has pushed so far completes.
    pub fn notify_device(&mut self, now: Nanos, session: u64, token: Token) {
        self.log(|| RecordEntry::NotifyDevice(now, session, token));
        let now = self.advance(now);
        let Some(open) = self.sessions.get_mut(&session) else {
            self.done.push(token);
            return;
        };
        self.fences_minted += 1;
        let fence = self.fences_minted;
        let mut after = Vec::new();
        for &index in &open.streams {
            if let Some(stream) = self.streams[index].as_mut().filter(|s| !s.is_empty()) {
                after.push((index, stream.end()));
                stream.push(Entry::Fence { fence });
                open.items += 1;
                self.items += 1;
                self.work.push(index);
            }
        }
        if after.is_empty() {
            self.done.push(token);
            return;
        }
        self.fences.insert(fence, Fence { token, after });
        self.settle(now);
    }

    /// The device has completed an operator.
    pub fn complete(&mut self, now: Nanos, token: Token) {
        self.log(|| RecordEntry::Complete(now, token));
        let now = self.advance(now);
        let found = self.flying.remove(&token);
        let completed = found.and_then(|(index, number)| {
            let op = self.streams[index].as_mut()?.complete(now, number)?;
            Some((index, op))
        });
        let Some((index, op)) = completed else {
            self.stats.unknown_completions += 1;
            return;
        };
        self.stats.completed[op.phase.index()] += 1;
        let solo = &mut self.stats.completed_solo_ns[op.phase.index()];
        *solo = solo.saturating_add(op.solo);
        self.tenant_completed(now, index, &op);
        if let Some(meter) = &mut self.meter {
            meter.completed(now, index, &mut self.stats);
        }
        self.policy.completed(now, index, &op, &mut self.stats);
        self.work.push(index);
        self.settle(now);
    }

    /// The gateway says something about a request. Hints only refine: without them, or once their lease has run out,
    /// targets come from the policy's configuration.
    pub fn hint(&mut self, now: Nanos, session: u64, hint: &HintInput) {
        self.log(|| RecordEntry::Hint(now, session, *hint));
        let now = self.advance(now);
        if self.sessions.contains_key(&session) {
            self.policy.hint(now, session, hint, &mut self.stats);
        }
    }

    /// Decides what starts now; appends to `out`.
    pub fn step(&mut self, now: Nanos, out: &mut Vec<Action>) {
        self.log(|| RecordEntry::Step(now));
        let now = self.advance(now);
        let before = out.len();
        self.stats.done += self.done.len() as u64;
        out.extend(self.done.drain(..).map(|token| Action::Done { token }));
        while let Some(choice) = self.next_pressed() {
            self.submit(now, choice, out);
        }
        while let Some(choice) = self.choose(now) {
            if !self.submit(now, choice, out) {
                debug_assert!(false, "the policy chose a stream that is not ready");
                break;
            }
        }
        self.hold_the_rest(now);
        self.log_decisions(&out[before..]);
    }

    /// When [`Dispatcher::step`] must run again at the latest, with no other input: a hold-back wants to be looked at.
    pub fn wake_at(&self, now: Nanos) -> Option<Nanos> {
        self.wake.map(|at| at.max(now))
    }

    /// Changes the policy. Queued and running work is kept; what the old policy had learnt is not.
    pub fn set_policy(&mut self, config: PolicyConfig) {
        self.log(|| RecordEntry::SetPolicy(config));
        self.config = config;
        self.policy = policy::build(&config, self.limits.requests_per_session_max);
        self.meter = (!self.policy.measures()).then(Learner::new);
        for (index, stream) in self.streams.iter().enumerate() {
            let Some(stream) = stream else { continue };
            self.policy.opened(index, &info(stream));
            for (op, in_flight) in stream.ops() {
                self.policy.pushed(op.pushed, index, op);
                if in_flight {
                    if let Some(meter) = &mut self.meter {
                        meter.submitted(self.now, index, op);
                    }
                    self.policy.submitted(self.now, index, op);
                }
            }
        }
        for index in 0..self.streams.len() {
            self.refresh(self.now, index);
        }
    }

    fn advance(&mut self, now: Nanos) -> Nanos {
        self.now = self.now.max(now);
        self.now
    }

    fn submit(&mut self, now: Nanos, choice: policy::Choice, out: &mut Vec<Action>) -> bool {
        let index = choice.stream;
        let Some(stream) = self.streams.get_mut(index).and_then(Option::as_mut).filter(|s| s.ready_at.is_some()) else {
            return false;
        };
        let key = stream.key;
        if choice.expired
            && let Some(held) = &mut stream.held
        {
            held.expired = true;
            self.stats.holds[held.reason.index()].expired += 1;
        }
        let Some((op, number)) = stream.submit(now) else { return false };
        self.unready(now, index);
        self.flying.insert(op.token, (index, number));
        self.stats.submitted[op.phase.index()] += 1;
        self.tenant_submitted(now, index, &op);
        out.push(Action::Submit { token: op.token, stream: key });
        if let Some(meter) = &mut self.meter {
            meter.submitted(now, index, &op);
        }
        self.policy.submitted(now, index, &op);
        self.work.push(index);
        self.settle(now);
        true
    }
}

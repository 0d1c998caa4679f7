//! Stream queues, events, synchronisation, hand-over to the device: the daemon's loop as a pure state machine.

mod stats;
mod types;

pub use stats::{HoldReason, HoldStats, Stats};
pub use types::{
    Action, EventKey, EventStatus, HintInput, HintKind, Item, Limits, Refused, SessionParams, StreamKey, Token, Window,
};

use crate::{Nanos, PolicyConfig};

/// The dispatcher. Signatures are final, behaviour is being filled in.
pub struct Dispatcher {
    policy: PolicyConfig,
    stats: Stats,
}

#[allow(unused_variables, missing_docs)]
impl Dispatcher {
    /// An empty dispatcher.
    pub fn new(policy: PolicyConfig, limits: Limits) -> Self {
        Self { policy, stats: Stats::default() }
    }
    /// Opens a session and its default stream 0.
    pub fn open_session(&mut self, session: u64, params: SessionParams) -> Result<(), Refused> {
        Ok(())
    }
    /// Drops everything that the session queued; `dropped` takes the tokens of operators never submitted and of waiters
    /// never answered. Operators in flight stay the device's until [`Dispatcher::complete`].
    pub fn close_session(&mut self, now: Nanos, session: u64, dropped: &mut Vec<Token>) {}
    /// Opens a stream. Opening an open stream changes its priority.
    pub fn open_stream(&mut self, key: StreamKey, priority: u32) -> Result<(), Refused> {
        Ok(())
    }
    /// Destroys a stream once its queued work has drained; nothing can be pushed from now on.
    pub fn close_stream(&mut self, now: Nanos, key: StreamKey) {}
    /// Appends an item to a stream.
    pub fn push(&mut self, now: Nanos, key: StreamKey, item: Item) -> Result<(), Refused> {
        Ok(())
    }
    /// True while the session may push: false tells the caller to leave its ring alone until work drains.
    pub fn has_room(&self, session: u64) -> bool {
        true
    }
    /// [`Action::Done`] once the last record of the event completes; at once if there is none.
    pub fn notify_event(&mut self, now: Nanos, event: EventKey, token: Token) {}
    /// State of an event.
    pub fn event_status(&self, event: EventKey) -> EventStatus {
        EventStatus::default()
    }
    /// Forgets an event; waits that were pushed keep their record.
    pub fn destroy_event(&mut self, event: EventKey) {}
    /// [`Action::Done`] once everything that the session has pushed so far completes.
    pub fn notify_device(&mut self, now: Nanos, session: u64, token: Token) {}
    /// The device has completed an operator.
    pub fn complete(&mut self, now: Nanos, token: Token) {}
    /// The gateway says something about a request.
    pub fn hint(&mut self, now: Nanos, session: u64, hint: &HintInput) {}
    /// Decides what starts now; appends to `out`.
    pub fn step(&mut self, now: Nanos, out: &mut Vec<Action>) {}
    /// When [`Dispatcher::step`] must run again at the latest, with no other input: a hold-back ends then.
    pub fn wake_at(&self, now: Nanos) -> Option<Nanos> {
        None
    }
    /// No waiter can be answered before this time; `None` without a waiter.
    pub fn earliest_release(&self, now: Nanos) -> Option<Nanos> {
        None
    }
    /// Changes the policy; queued and running work is kept.
    pub fn set_policy(&mut self, policy: PolicyConfig) {
        self.policy = policy;
    }
    /// The policy in force.
    pub fn policy(&self) -> &PolicyConfig {
        &self.policy
    }
    /// Counters.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }
    /// Operators that the device holds.
    pub fn in_flight(&self) -> usize {
        0
    }
    /// Items queued, not counting those in flight.
    pub fn queued(&self) -> usize {
        0
    }
}

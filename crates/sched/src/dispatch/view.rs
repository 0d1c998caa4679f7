//! What a dispatcher shows without changing.

use super::{Dispatcher, EventKey, EventStatus, HoldReason, Op, Stats, Stream, StreamKey};
use crate::Nanos;
use crate::policy::PolicyConfig;

/// A stream whose next operator could be submitted now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ready {
    /// The stream.
    pub stream: StreamKey,
    /// Its next operator.
    pub op: Op,
    /// Since when.
    pub since: Nanos,
    /// Operators of the stream that the device holds.
    pub in_flight: u32,
    /// Why it waits, since when, and until when if nothing happens before; `None` before the next step has decided.
    pub held: Option<(HoldReason, Nanos, Option<Nanos>)>,
}

impl Dispatcher {
    /// True while the session may push: false tells the caller to leave its ring alone until work drains.
    pub fn has_room(&self, session: u64) -> bool {
        self.sessions.get(&session).is_some_and(|s| s.items < self.limits.items_per_session_max)
    }

    /// True if an operator of the session could be submitted, whether the policy holds it back or not.
    pub fn is_ready(&self, session: u64) -> bool {
        let of = |&index: &usize| self.streams[index].as_ref().is_some_and(|stream| stream.key.session == session);
        self.ready.iter().any(of)
    }

    /// State of an event.
    pub fn event_status(&self, event: EventKey) -> EventStatus {
        self.events.status(event)
    }

    /// True while the stream has anything queued or in flight: lets a caller answer a query without a waiter.
    pub fn stream_busy(&self, key: StreamKey) -> bool {
        self.keys.get(&key).and_then(|&i| self.streams[i].as_ref()).is_some_and(|s| !s.is_empty())
    }

    /// True if no other stream of the session has an operator queued or in flight. What else may be there (records and waits
    /// of events, answers) writes nothing.
    pub fn alone_has_operators(&self, key: StreamKey) -> bool {
        let Some(session) = self.sessions.get(&key.session) else { return true };
        let own = self.keys.get(&key).copied();
        let idle = |index: usize| self.streams[index].as_ref().is_none_or(|s| s.ops().next().is_none());
        // Most sessions have all their entries on the one stream.
        let entries = own.and_then(|i| self.streams[i].as_ref()).map_or(0, Stream::len);
        session.items == entries || session.streams.iter().all(|&index| Some(index) == own || idle(index))
    }

    /// The policy in force.
    pub fn policy(&self) -> &PolicyConfig {
        &self.config
    }

    /// Counters.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Operators that the device holds.
    pub fn in_flight(&self) -> usize {
        self.flying.len()
    }

    /// Entries of all queues, operators in flight included.
    pub fn queued(&self) -> usize {
        self.items
    }

    /// Streams whose next operator waits although it could be submitted: reason and since when.
    pub fn held(&self) -> impl Iterator<Item = (StreamKey, HoldReason, Nanos)> {
        self.ready.iter().filter_map(|&i| {
            let stream = self.streams[i].as_ref()?;
            stream.held.map(|h| (stream.key, h.reason, h.since))
        })
    }

    /// The largest time seen.
    pub fn now(&self) -> Nanos {
        self.now
    }

    /// Streams whose next operator could be submitted now.
    pub fn ready(&self) -> impl Iterator<Item = Ready> {
        self.ready.iter().filter_map(|&i| {
            let stream = self.streams[i].as_ref()?;
            let held = stream.held.map(|h| (h.reason, h.since, h.until));
            let (since, in_flight) = (stream.ready_since, stream.in_flight);
            Some(Ready { stream: stream.key, op: *stream.next_op()?, since, in_flight, held })
        })
    }

    /// Every operator that is not complete, by stream and in order; true where the device has it.
    pub fn operators(&self) -> impl Iterator<Item = (StreamKey, Op, bool)> {
        let streams = self.streams.iter().flatten();
        streams.flat_map(|stream| stream.ops().map(|(&op, in_flight)| (stream.key, op, in_flight)))
    }
}

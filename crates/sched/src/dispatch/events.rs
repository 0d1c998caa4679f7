//! Events, by record.
//!
//! Every record is a *mark* of its own. A wait binds, when it is pushed, to the mark that its event has at that moment,
//! so a later record, reset or destruction cannot move it: a wait never passes the record that precedes it in submission
//! order, and never waits for one that follows. A mark exists while its record is pending; an absent mark is complete.

use super::stream::{MarkId, Place};
use super::{EventKey, EventStatus, Token};
use crate::Nanos;
use foldhash::HashMap;
use serde::{Deserialize, Serialize};

/// A pending record.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Mark {
    event: EventKey,
    /// Stream that records, and where.
    pub stream: usize,
    pub place: Place,
    /// Streams that stand at a wait for it.
    pub streams: Vec<usize>,
    /// Host waiters.
    pub tokens: Vec<Token>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Event {
    mark: MarkId,
    time: Option<Nanos>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Events {
    #[serde(serialize_with = "super::sorted")]
    events: HashMap<EventKey, Event>,
    #[serde(serialize_with = "super::sorted")]
    marks: HashMap<MarkId, Mark>,
    minted: MarkId,
    /// Marks that the host waits for, in the order in which it began to.
    awaited: Vec<MarkId>,
}

impl Events {
    /// True where the event has a record since creation or reset.
    pub fn contains(&self, event: EventKey) -> bool {
        self.events.contains_key(&event)
    }

    pub fn record(&mut self, event: EventKey, stream: usize, place: Place) -> MarkId {
        self.minted += 1;
        let mark = self.minted;
        self.events.insert(event, Event { mark, time: None });
        self.marks.insert(mark, Mark { event, stream, place, streams: Vec::new(), tokens: Vec::new() });
        mark
    }

    /// Forgets the event; true if it was known.
    pub fn forget(&mut self, event: EventKey) -> bool {
        self.events.remove(&event).is_some()
    }

    pub fn forget_session(&mut self, session: u64) {
        self.events.retain(|event, _| event.session != session);
    }

    /// The mark that a wait pushed now binds to; `None` where there is nothing to wait for.
    pub fn pending(&self, event: EventKey) -> Option<MarkId> {
        let mark = self.events.get(&event)?.mark;
        self.marks.contains_key(&mark).then_some(mark)
    }

    pub fn mark(&self, mark: MarkId) -> Option<&Mark> {
        self.marks.get(&mark)
    }

    /// A stream has reached a wait; true while the record is pending.
    pub fn block(&mut self, mark: MarkId, stream: usize) -> bool {
        match self.marks.get_mut(&mark) {
            Some(m) => {
                m.streams.push(stream);
                true
            }
            None => false,
        }
    }

    /// A host waiter; false if there is nothing to wait for.
    pub fn wait(&mut self, event: EventKey, token: Token) -> bool {
        let Some(mark) = self.pending(event) else { return false };
        let Some(m) = self.marks.get_mut(&mark) else { return false };
        if m.tokens.is_empty() {
            self.awaited.push(mark);
        }
        m.tokens.push(token);
        true
    }

    /// The record has completed, or will never be reached (`time` is `None`).
    pub fn complete(&mut self, mark: MarkId, time: Option<Nanos>) -> Option<Mark> {
        let m = self.marks.remove(&mark)?;
        if !m.tokens.is_empty() {
            self.awaited.retain(|&a| a != mark);
        }
        if let Some(event) = self.events.get_mut(&m.event).filter(|e| e.mark == mark) {
            event.time = time;
        }
        Some(m)
    }

    /// Drops a stream from the waiters of a mark.
    pub fn unblock(&mut self, mark: MarkId, stream: usize) {
        if let Some(m) = self.marks.get_mut(&mark) {
            m.streams.retain(|&s| s != stream);
        }
    }

    pub fn status(&self, event: EventKey) -> EventStatus {
        match self.events.get(&event) {
            None => EventStatus::default(),
            Some(e) => EventStatus { recorded: true, complete: !self.marks.contains_key(&e.mark), time: e.time },
        }
    }

    /// Takes the host waiters of a session that is gone.
    pub fn abandon_waiters(&mut self, session: u64) -> Vec<Token> {
        let mut tokens = Vec::new();
        self.awaited.retain(|mark| match self.marks.get_mut(mark) {
            Some(m) if m.event.session == session => {
                tokens.append(&mut m.tokens);
                false
            }
            other => other.is_some(),
        });
        tokens
    }

    /// Marks that the host waits for.
    pub fn awaited(&self) -> impl Iterator<Item = &Mark> {
        self.awaited.iter().filter_map(|m| self.marks.get(m))
    }
}

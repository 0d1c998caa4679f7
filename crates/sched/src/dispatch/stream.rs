//! One stream: a queue with a cursor.
//!
//! Entries leave at the front when they have completed. The cursor stands at the first entry that has not started:
//! operators before it are in flight (or complete, behind one that is not), records and waiters before it wait for the
//! front to reach them, waits for events and flags before it have passed. So a record in the middle does not stop later operators from
//! being handed to the device, and an event wait does.

use super::{FlagKey, Label, SessionParams, StreamKey, Token};
use crate::{Demand, Nanos, Phase};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// A record of an event: minted once per [`super::Item::RecordEvent`], never reused.
pub(crate) type MarkId = u64;

/// Weight of the newest operator in the mean operator time that the window follows.
const MEAN_WEIGHT: f64 = 1.0 / 16.0;

/// A place in a stream: what stands before it decides when it is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    /// Number of the entry that stands here.
    pub number: u64,
    /// Predicted solo time of all operators ever pushed before it.
    pub solo_before: u64,
}

/// An operator as policies see it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Op {
    /// Token of the caller.
    pub token: Token,
    /// Predicted time alone.
    pub solo: Nanos,
    /// Predicted need of each resource.
    pub demand: Demand,
    /// Phase.
    pub phase: Phase,
    /// What it is called.
    pub label: Label,
    /// Position in the order of arrival over all streams.
    pub seq: u64,
    /// When it was pushed.
    pub pushed: Nanos,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Entry {
    Op { op: Op, done: bool },
    Record { mark: MarkId },
    Wait { mark: MarkId },
    Await { flag: FlagKey },
    Flag { flag: FlagKey, set: bool },
    Notify { token: Token },
    Fence { fence: u64 },
}

/// Why a stream's next operator is not with the device.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Held {
    pub phase: Phase,
    pub reason: super::HoldReason,
    pub since: Nanos,
    /// When the policy wants to be asked again, if not by something that happens first.
    pub until: Option<Nanos>,
    /// It ends by the age bound.
    pub expired: bool,
    /// The operator that waits.
    pub token: Token,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Stream {
    pub key: StreamKey,
    pub tenant: u32,
    pub weight: u32,
    pub session_priority: u8,
    pub priority: u32,
    entries: VecDeque<Entry>,
    /// Number of entries that have left at the front: the front's number.
    base: u64,
    /// Number of the first entry that has not started.
    cursor: u64,
    pub in_flight: u32,
    /// Predicted solo time of all operators pushed, submitted, completed so far.
    solo_pushed: u64,
    pub solo_submitted: u64,
    pub solo_done: u64,
    /// Since when the oldest operator in flight may have been running: its submission or the completion before it.
    pub running_since: Nanos,
    /// Since when the next operator could have been submitted.
    pub ready_since: Nanos,
    /// Position in the dispatcher's list of ready streams.
    pub ready_at: Option<usize>,
    pub blocked_on: Option<MarkId>,
    /// Waiters in the queue, in order.
    pub waiters: VecDeque<Place>,
    pub held: Option<Held>,
    /// Destroyed by the client: goes when it has drained.
    pub closing: bool,
    /// Its session is gone: only operators in flight are left.
    pub dead: bool,
    mean_solo: f64,
}

impl Stream {
    pub fn new(key: StreamKey, session: SessionParams, priority: u32) -> Self {
        Self {
            key,
            tenant: session.tenant,
            weight: session.weight.max(1),
            session_priority: session.priority,
            priority,
            entries: VecDeque::new(),
            base: 0,
            cursor: 0,
            in_flight: 0,
            solo_pushed: 0,
            solo_submitted: 0,
            solo_done: 0,
            running_since: 0,
            ready_since: 0,
            ready_at: None,
            blocked_on: None,
            waiters: VecDeque::new(),
            held: None,
            closing: false,
            dead: false,
            mean_solo: 0.0,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn push(&mut self, entry: Entry) {
        if let Entry::Op { op, .. } = &entry {
            self.solo_pushed = self.solo_pushed.saturating_add(op.solo);
            let solo = op.solo as f64;
            self.mean_solo += if self.mean_solo == 0.0 { solo } else { (solo - self.mean_solo) * MEAN_WEIGHT };
        }
        self.entries.push_back(entry);
    }

    /// Where the next entry will stand.
    pub fn end(&self) -> Place {
        Place { number: self.base + self.entries.len() as u64, solo_before: self.solo_pushed }
    }

    /// True where the cursor has gone past a place, so that no event wait stands before it any more.
    pub fn is_past(&self, place: Place) -> bool {
        place.number < self.cursor
    }

    /// Mean operator time over the last few.
    pub fn mean_solo(&self) -> f64 {
        self.mean_solo
    }

    /// The entry at the cursor.
    pub fn next(&self) -> Option<&Entry> {
        self.entries.get((self.cursor - self.base) as usize)
    }

    /// The operator at the cursor.
    pub fn next_op(&self) -> Option<&Op> {
        match self.next() {
            Some(Entry::Op { op, .. }) => Some(op),
            _ => None,
        }
    }

    /// Moves the cursor over the entry that it stands at.
    pub fn pass(&mut self) {
        debug_assert!(self.next().is_some());
        self.cursor += 1;
    }

    /// Marks the operator at the cursor as in flight; answers it and its number.
    pub fn submit(&mut self, now: Nanos) -> Option<(Op, u64)> {
        let op = *self.next_op()?;
        if self.in_flight == 0 {
            self.running_since = now;
        }
        self.in_flight += 1;
        self.solo_submitted = self.solo_submitted.saturating_add(op.solo);
        self.cursor += 1;
        Some((op, self.cursor - 1))
    }

    /// Marks the operator with this number as complete.
    pub fn complete(&mut self, now: Nanos, number: u64) -> Option<Op> {
        let index = usize::try_from(number.checked_sub(self.base)?).ok()?;
        match self.entries.get_mut(index)? {
            Entry::Op { op, done } if !*done => {
                *done = true;
                let op = *op;
                self.in_flight -= 1;
                self.solo_done = self.solo_done.saturating_add(op.solo);
                self.running_since = now;
                Some(op)
            }
            _ => None,
        }
    }

    /// Takes the front entry if it has completed, or starts and completes by being reached. An event wait leaves once
    /// the cursor has passed it.
    pub fn retire(&mut self) -> Option<Entry> {
        let retires = match self.entries.front()? {
            Entry::Op { done, .. } => *done,
            Entry::Wait { .. } | Entry::Await { .. } => self.cursor > self.base,
            Entry::Record { .. } | Entry::Flag { .. } | Entry::Notify { .. } | Entry::Fence { .. } => true,
        };
        if !retires {
            return None;
        }
        self.base += 1;
        self.cursor = self.cursor.max(self.base);
        self.entries.pop_front()
    }

    /// The session is gone: takes every entry that has not started, and every waiter. Operators in flight keep their
    /// numbers, and records among them still complete with what they follow.
    pub fn abandon(&mut self, mut dropped: impl FnMut(Entry)) {
        let started = (self.cursor - self.base) as usize;
        for entry in self.entries.drain(started..) {
            dropped(entry);
        }
        for entry in &mut self.entries {
            if matches!(entry, Entry::Notify { .. } | Entry::Fence { .. }) {
                // A passed event wait: retires when reached, means nothing to anyone.
                dropped(std::mem::replace(entry, Entry::Wait { mark: 0 }));
            }
        }
        self.waiters.clear();
        self.dead = true;
        self.blocked_on = None;
    }

    /// Every operator not yet complete, oldest first; true where it is in flight.
    pub fn ops(&self) -> impl Iterator<Item = (&Op, bool)> {
        let started = self.cursor - self.base;
        self.entries.iter().zip(0u64..).filter_map(move |(entry, i)| match entry {
            Entry::Op { op, done: false } => Some((op, i < started)),
            _ => None,
        })
    }

    /// Entries in the queue, in flight ones included.
    pub fn len(&self) -> usize {
        self.entries.len()
    }
}

//! What is queued, running or waited for, by token.
//!
//! The dispatcher and the device know an item only by its token; everything else about it is here. Slots are reused with
//! their buffers, so a steady stream of operators allocates nothing, and a token carries the slot's generation, so a late
//! or repeated token of a finished item finds nothing.

use sched::{Label, Nanos, Phase, Token, Work};
use wire::ReplyTo;

use device::Command;

use crate::comm::Move;
use crate::graph::Replaceable;
use crate::memory::BlockId;

/// What an item is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Work for the device, in a stream; `None`: a synchronous copy, on the session's own internal stream.
    Work(Option<u32>),
    /// Answer when everything earlier in the stream is done, with the stream's error.
    StreamSync(u32),
    /// A mark in the stream that a query looks at; nobody waits for it.
    StreamMark(u32),
    /// Tell the client that the stream has got to its call of this number.
    HostCall(u32),
    /// The stream has got to the wait for a value that stands at this flag.
    ValueReached(u32),
    /// A look at what the wait at this flag waits for.
    ValueLook(u32),
    /// The stream has got to the exchange of communicator `comm` that stands at this flag.
    ExchangeReached {
        /// Communicator.
        comm: u32,
        /// Flag.
        flag: u32,
    },
    /// Bytes of an exchange of communicator `comm`.
    ExchangeMove {
        /// Communicator.
        comm: u32,
        /// Which.
        what: Move,
    },
    /// Answer when the event is complete, with the error of the stream it was recorded in.
    EventSync(u32),
    /// Answer when every stream of the session is idle, with the oldest error.
    DeviceSync,
}

/// One item.
#[derive(Debug)]
pub struct Entry {
    /// Session.
    pub session: u64,
    /// What it is.
    pub purpose: Purpose,
    /// Whom to answer when it is done.
    pub reply: Option<ReplyTo>,
    /// Blocks of the session's memory that it holds.
    pub pins: Vec<BlockId>,
    /// What the device shall do; gone while the device has it.
    pub command: Option<Box<Command>>,
    /// A `StreamFetch` whose bytes were copied.
    pub fetched: bool,
    /// An operator of a graph that reads its arguments when it starts.
    pub late: Option<Replaceable>,
    /// Address and value of a word that is remembered once it is written.
    pub word: Option<(u64, u64)>,
    /// Staging block to give back when it is done.
    pub staging: Option<u32>,
    /// The device's number for its stream.
    pub physical: u32,
    /// What it asks of the device.
    pub work: Work,
    /// Phase it is counted under.
    pub phase: Phase,
    /// What it is called.
    pub label: Label,
    /// Predicted time alone.
    pub solo: Nanos,
    /// When it was given to the device; `None` before.
    pub submitted: Option<Nanos>,
}

impl Entry {
    fn blank() -> Self {
        Self {
            session: 0,
            purpose: Purpose::DeviceSync,
            reply: None,
            pins: Vec::new(),
            command: None,
            fetched: false,
            late: None,
            word: None,
            staging: None,
            physical: 0,
            work: Work::default(),
            phase: Phase::Unknown,
            label: Label::default(),
            solo: 0,
            submitted: None,
        }
    }

    /// True for what holds the client up: it waits for a reply, or for a staging block.
    pub fn is_urgent(&self) -> bool {
        matches!(self.purpose, Purpose::Work(_)) && (self.reply.is_some() || self.staging.is_some())
    }
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    taken: bool,
    entry: Entry,
}

/// Every item of every session. Bounded by [`crate::Limits::queued_items_max`] times the sessions.
#[derive(Debug, Default)]
pub struct Items {
    slots: Vec<Slot>,
    vacant: Vec<u32>,
    with_reply: usize,
}

impl Items {
    /// A token for an entry that `fill` completes. The entry's buffers are empty, everything else is at its default.
    pub fn insert(&mut self, session: u64, purpose: Purpose, fill: impl FnOnce(&mut Entry)) -> Token {
        let index = self.vacant.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, taken: false, entry: Entry::blank() });
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        slot.generation = slot.generation.wrapping_add(1);
        slot.taken = true;
        slot.entry.session = session;
        slot.entry.purpose = purpose;
        fill(&mut slot.entry);
        self.with_reply += usize::from(slot.entry.reply.is_some());
        u64::from(slot.generation) << 32 | u64::from(index)
    }

    /// The item with this token, if it is not finished.
    pub fn get_mut(&mut self, token: Token) -> Option<&mut Entry> {
        let slot = self.slots.get_mut(token as u32 as usize)?;
        (slot.taken && u64::from(slot.generation) == token >> 32).then_some(&mut slot.entry)
    }

    /// Ends an item. `finish` sees it a last time and takes what it wants; `None` if the token names no item.
    pub fn finish<R>(&mut self, token: Token, finish: impl FnOnce(&mut Entry) -> R) -> Option<R> {
        let result = finish(self.get_mut(token)?);
        let index = token as u32;
        let slot = &mut self.slots[index as usize];
        slot.taken = false;
        self.with_reply -= usize::from(slot.entry.reply.is_some());
        let mut pins = std::mem::take(&mut slot.entry.pins);
        pins.clear();
        slot.entry = Entry { pins, ..Entry::blank() };
        self.vacant.push(index);
        Some(result)
    }

    /// Items that somebody waits for. (The reply of an item is set when it is made and never changes.)
    pub fn with_reply(&self) -> usize {
        self.with_reply
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finished_token_finds_nothing_and_its_buffers_are_reused() {
        let mut items = Items::default();
        let a = items.insert(1, Purpose::Work(Some(0)), |e| {
            e.pins.reserve(16);
            e.staging = Some(3);
        });
        assert!(items.get_mut(a).unwrap().is_urgent());
        assert_eq!(items.finish(a, |e| e.session), Some(1));
        assert!(items.get_mut(a).is_none());
        assert_eq!(items.finish(a, |_| ()), None);
        let b = items.insert(2, Purpose::StreamSync(4), |_| {});
        assert_eq!(b as u32, a as u32, "same slot");
        assert_ne!(a, b);
        let entry = items.get_mut(b).unwrap();
        assert!(entry.pins.capacity() >= 16 && entry.staging.is_none());
        assert_eq!((items.slots.len(), items.vacant.len()), (1, 0));
    }
}

//! Streams that stand until eight bytes of device memory are as asked for (`aclrtValueWait`).
//!
//! Such a wait is a flag of the daemon's own. When its stream gets there, the daemon looks at the memory, by a copy through the
//! device as any other; again whenever something completed that may have written it; and releases the flag once it is
//! as asked for. A look that is under way while something completes may be too early: it is repeated.
//!
//! Pure: [`Values`] says what to look at and when a wait is over.

use std::collections::BTreeMap;

use device::PhysAddr;
use wire::ValueCondition;

use crate::memory::BlockId;

/// Session and flag of a wait.
pub type WaitKey = (u64, u32);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The stream has not got there.
    Queued,
    /// Nothing has changed since the last look.
    Standing,
    /// It must be looked at.
    Due,
    /// It is being looked at; `again`: something changed meanwhile.
    Looking { again: bool },
}

/// A wait.
#[derive(Debug)]
pub struct Wait {
    /// Stream that stands.
    pub stream: u32,
    /// Address, the client's.
    pub addr: u64,
    /// The same, the device's.
    pub physical: PhysAddr,
    /// To compare with.
    pub value: u64,
    /// How.
    pub until: ValueCondition,
    /// What keeps the memory.
    pub pins: Vec<BlockId>,
}

/// Waits of every session. Bounded by what the dispatcher takes.
#[derive(Debug, Default)]
pub struct Values {
    waits: BTreeMap<WaitKey, (Wait, State)>,
    due: Vec<WaitKey>,
}

impl Values {
    /// True if no stream waits, or will.
    pub fn is_empty(&self) -> bool {
        self.waits.is_empty()
    }

    /// A wait was queued.
    pub fn insert(&mut self, key: WaitKey, wait: Wait) {
        self.waits.insert(key, (wait, State::Queued));
    }

    /// Its stream has got there.
    pub fn reached(&mut self, key: WaitKey) {
        if let Some((_, state)) = self.waits.get_mut(&key) {
            *state = State::Due;
            self.due.push(key);
        }
    }

    /// Something completed that may have written memory.
    pub fn changed(&mut self) {
        for (&key, (_, state)) in &mut self.waits {
            match state {
                State::Queued | State::Due => {}
                State::Standing => {
                    *state = State::Due;
                    self.due.push(key);
                }
                State::Looking { again } => *again = true,
            }
        }
    }

    /// The next wait to look at.
    pub fn next_due(&mut self) -> Option<(WaitKey, &Wait)> {
        loop {
            let key = self.due.pop()?;
            // One whose session has ended meanwhile is gone.
            if self.waits.contains_key(&key) {
                let (wait, state) = self.waits.get_mut(&key)?;
                *state = State::Looking { again: false };
                return Some((key, wait));
            }
        }
    }

    /// A look has found `memory`, `None` where it failed: the wait, if it is over.
    pub fn found(&mut self, key: WaitKey, memory: Option<u64>) -> Option<Wait> {
        let (wait, state) = self.waits.get_mut(&key)?;
        if memory.is_none_or(|memory| wait.until.holds(memory, wait.value)) {
            return self.waits.remove(&key).map(|(wait, _)| wait);
        }
        *state = match state {
            State::Looking { again: true } => {
                self.due.push(key);
                State::Due
            }
            _ => State::Standing,
        };
        None
    }

    /// The session has ended.
    pub fn forget_session(&mut self, session: u64) {
        self.waits.retain(|&(of, _), _| of != session);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: WaitKey = (1, 9);

    fn values() -> Values {
        let mut values = Values::default();
        let (physical, until) = (PhysAddr(64), ValueCondition::Equal);
        values.insert(KEY, Wait { stream: 3, addr: 8, physical, value: 5, until, pins: Vec::new() });
        values
    }

    fn due(values: &mut Values) -> Option<WaitKey> {
        values.next_due().map(|(key, _)| key)
    }

    #[test]
    fn a_wait_is_looked_at_when_reached_and_when_something_changed() {
        let mut values = values();
        values.changed();
        assert_eq!(due(&mut values), None, "the stream is not there");
        values.reached(KEY);
        assert_eq!((due(&mut values), due(&mut values)), (Some(KEY), None));
        assert!(values.found(KEY, Some(4)).is_none());
        assert_eq!(due(&mut values), None);
        values.changed();
        values.changed();
        assert_eq!((due(&mut values), due(&mut values)), (Some(KEY), None), "once for both");
        assert_eq!(values.found(KEY, Some(5)).map(|w| w.stream), Some(3));
        assert!(values.is_empty());
    }

    #[test]
    fn a_look_that_may_have_been_too_early_is_repeated() {
        let mut values = values();
        values.reached(KEY);
        assert_eq!(due(&mut values), Some(KEY));
        values.changed();
        assert_eq!(due(&mut values), None, "one look at a time");
        assert!(values.found(KEY, Some(4)).is_none());
        assert_eq!(due(&mut values), Some(KEY));
        assert!(values.found(KEY, None).is_some(), "a look that fails ends the wait");
    }

    #[test]
    fn a_session_takes_its_waits_along() {
        let mut values = values();
        values.reached(KEY);
        values.forget_session(1);
        assert!(values.is_empty() && due(&mut values).is_none() && values.found(KEY, Some(5)).is_none());
    }
}

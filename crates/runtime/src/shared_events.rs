//! Events that processes of one tenant share.
//!
//! An event created for other processes (`ACL_EVENT_IPC`) belongs to the device, not to a session: every process that has it,
//! by whatever number, records and waits for the same one. Its creator tells others a key, random and good only for
//! processes of the same user, as those of shared memory are.
//!
//! **Invariants**
//! - An event lives until its last holder destroys it or ends. A key ends with the event's creator.
//! - Whoever waits for a recording that will never be, because its process ended before its stream got there, is told so:
//!   the bytes that the event was to announce were not all written.

use std::collections::{BTreeMap, BTreeSet};

use sched::EventKey;

use crate::shares::{Asker, Key, ShareError};

/// The session that shared events are kept under: no client's.
const NOBODY: u64 = 0;

#[derive(Debug)]
struct SharedEvent {
    uid: u32,
    tenant: u32,
    creator: u64,
    key: Option<Key>,
    /// How often each session has it.
    holders: BTreeMap<u64, u32>,
    /// Session and stream of the last recording.
    recorded: Option<(u64, u32)>,
    /// The last recording will never be complete.
    lost: bool,
    /// Streams that were made to wait for the last recording while it was pending.
    waiting: BTreeSet<(u64, u32)>,
}

/// Shared events of one device.
#[derive(Debug, Default)]
pub struct SharedEvents {
    events: BTreeMap<u32, SharedEvent>,
    keys: BTreeMap<Key, u32>,
    minted: u32,
}

/// What the dispatcher calls it.
pub fn key_of(number: u32) -> EventKey {
    EventKey { session: NOBODY, event: number }
}

impl SharedEvents {
    /// A new event of the asker's; its number.
    pub fn create(&mut self, asker: Asker) -> u32 {
        loop {
            self.minted = self.minted.wrapping_add(1);
            if !self.events.contains_key(&self.minted) {
                break;
            }
        }
        let Asker { session, uid, tenant, .. } = asker;
        let holders = BTreeMap::from([(session, 1)]);
        let (recorded, waiting) = (None, BTreeSet::new());
        let event = SharedEvent { uid, tenant, creator: session, key: None, holders, recorded, lost: false, waiting };
        self.events.insert(self.minted, event);
        self.minted
    }

    /// The event's key; `fresh` makes it when it is asked for first.
    ///
    /// # Errors
    /// Not the asker's to give; no key to be had.
    pub fn export(
        &mut self,
        session: u64,
        number: u32,
        fresh: impl FnOnce() -> Result<Key, ShareError>,
    ) -> Result<Key, ShareError> {
        let event = self.events.get_mut(&number).filter(|e| e.creator == session).ok_or(ShareError::Opened)?;
        if let Some(key) = event.key {
            return Ok(key);
        }
        let key = fresh()?;
        event.key = Some(key);
        self.keys.insert(key, number);
        Ok(key)
    }

    /// The asker has the event as well; its number.
    ///
    /// # Errors
    /// An unknown key, or none for the asker; an event that it created itself.
    pub fn import(&mut self, asker: Asker, key: Key) -> Result<u32, ShareError> {
        let number = *self.keys.get(&key).ok_or(ShareError::Unknown)?;
        let event = self
            .events
            .get_mut(&number)
            .filter(|e| (e.uid, e.tenant) == (asker.uid, asker.tenant))
            .ok_or(ShareError::Unknown)?;
        if event.creator == asker.session {
            return Err(ShareError::Created);
        }
        *event.holders.entry(asker.session).or_default() += 1;
        Ok(number)
    }

    /// `session` lets the event go once; true if nobody has it now.
    pub fn let_go(&mut self, session: u64, number: u32) -> bool {
        let Some(event) = self.events.get_mut(&number) else { return false };
        let left = event.holders.get_mut(&session).map_or(0, |count| {
            *count -= 1;
            *count
        });
        if left == 0 {
            event.holders.remove(&session);
        }
        if event.creator == session
            && let Some(key) = event.key.take()
        {
            self.keys.remove(&key);
        }
        let over = event.holders.is_empty();
        if over {
            self.events.remove(&number);
        }
        over
    }

    /// A recording was queued.
    pub fn recorded(&mut self, number: u32, session: u64, stream: u32) {
        if let Some(event) = self.events.get_mut(&number) {
            event.recorded = Some((session, stream));
            event.lost = false;
            event.waiting.clear();
        }
    }

    /// A wait for a recording that is `pending` was queued. False: the recording is lost.
    pub fn waits(&mut self, number: u32, session: u64, stream: u32, pending: bool) -> bool {
        let Some(event) = self.events.get_mut(&number) else { return true };
        if pending {
            event.waiting.insert((session, stream));
        }
        !event.lost
    }

    /// Stream of `session` that the last recording was made in, if it was this session's.
    pub fn stream_in(&self, number: u32, session: u64) -> Option<u32> {
        let (recorder, stream) = self.events.get(&number)?.recorded?;
        (recorder == session).then_some(stream)
    }

    /// True if the last recording will never be complete.
    pub fn is_lost(&self, number: u32) -> bool {
        self.events.get(&number).is_some_and(|e| e.lost)
    }

    /// `session` has ended: what it recorded last and `never` became complete is lost. The streams of others that waited.
    pub fn recorder_ended(&mut self, session: u64, never: impl Fn(EventKey) -> bool) -> Vec<(u64, u32)> {
        let mut deceived = Vec::new();
        for (&number, event) in &mut self.events {
            if event.recorded.is_some_and(|(by, _)| by == session) && never(key_of(number)) {
                event.lost = true;
                deceived.extend(std::mem::take(&mut event.waiting));
            }
        }
        deceived.retain(|&(waiter, _)| waiter != session);
        deceived
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asker(session: u64) -> Asker {
        Asker { session, uid: 1000, pid: session as u32, tenant: 0 }
    }

    fn shared() -> (SharedEvents, u32, Key) {
        let mut all = SharedEvents::default();
        let number = all.create(asker(1));
        let key = all.export(1, number, || Ok([7; 4])).unwrap();
        (all, number, key)
    }

    #[test]
    fn a_key_is_for_other_processes_of_the_user_while_the_creator_has_the_event() {
        let (mut all, number, key) = shared();
        assert_eq!(all.export(1, number, || unreachable!()), Ok(key), "one key an event");
        assert_eq!(all.import(asker(1), key), Err(ShareError::Created));
        assert_eq!(all.import(Asker { uid: 1001, ..asker(2) }, key), Err(ShareError::Unknown));
        assert_eq!(all.import(Asker { tenant: 1, ..asker(2) }, key), Err(ShareError::Unknown));
        assert_eq!(all.import(asker(2), [8; 4]), Err(ShareError::Unknown));
        assert_eq!(all.import(asker(2), key), Ok(number));
        assert_eq!(all.import(asker(2), key), Ok(number), "twice is all right");
        assert_eq!(all.export(2, number, || Ok([9; 4])), Err(ShareError::Opened));
        assert!(!all.let_go(1, number));
        assert_eq!(all.import(asker(3), key), Err(ShareError::Unknown));
        assert!(!all.let_go(2, number));
        assert!(all.let_go(2, number), "the last holder");
        assert!(all.events.is_empty() && all.keys.is_empty());
    }

    #[test]
    fn who_waited_for_a_recording_that_never_is_is_named_once() {
        let (mut all, number, key) = shared();
        all.import(asker(2), key).unwrap();
        all.recorded(number, 1, 4);
        assert_eq!((all.stream_in(number, 1), all.stream_in(number, 2)), (Some(4), None));
        assert!(all.waits(number, 2, 9, true) && all.waits(number, 2, 9, true) && all.waits(number, 1, 3, true));
        assert_eq!(all.recorder_ended(2, |_| true), [], "it did not record");
        assert_eq!(all.recorder_ended(1, |_| false), [], "it was complete");
        assert!(!all.is_lost(number));
        assert_eq!(all.recorder_ended(1, |key| key == key_of(number)), [(2, 9)]);
        assert!(all.is_lost(number) && !all.waits(number, 2, 9, false));
        all.recorded(number, 2, 5);
        assert!(!all.is_lost(number), "recorded anew");
    }
}

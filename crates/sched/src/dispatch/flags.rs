//! Flags: what a stream can wait for that is not work of a stream.
//!
//! A flag is set or not. It is set and cleared in stream order, and released from outside: by a client whose callback has
//! run, or that carries an event over from another device. Unlike a wait for an event, a wait for a flag looks at the flag
//! when the stream gets there, and waits for a later set.
//!
//! A flag exists from its first mention until it is released and no queued wait refers to it.

use foldhash::HashMap;
use serde::{Deserialize, Serialize};

/// A flag of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FlagKey {
    /// Session.
    pub session: u64,
    /// Flag, as the client minted it.
    pub flag: u32,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Flag {
    set: bool,
    released: bool,
    /// Waits in queues that have not been passed.
    waits: usize,
    /// Streams that stand at one.
    streams: Vec<usize>,
    /// Streams that stood at one when the flag was set: they go on although it may be cleared again.
    granted: Vec<usize>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Flags {
    #[serde(serialize_with = "super::sorted")]
    flags: HashMap<FlagKey, Flag>,
}

impl Flags {
    pub fn contains(&self, key: FlagKey) -> bool {
        self.flags.contains_key(&key)
    }

    pub fn count(&self, session: u64) -> usize {
        self.flags.keys().filter(|key| key.session == session).count()
    }

    /// All flags of all sessions.
    pub fn len(&self) -> usize {
        self.flags.len()
    }

    /// A wait was queued.
    pub fn queued(&mut self, key: FlagKey) {
        self.flags.entry(key).or_default().waits += 1;
    }

    /// A stream has reached a wait: true where it goes on, and the wait is over then.
    pub fn reached(&mut self, key: FlagKey, stream: usize) -> bool {
        let Some(flag) = self.flags.get_mut(&key) else { return true };
        let granted = flag.granted.iter().position(|&s| s == stream).map(|i| flag.granted.swap_remove(i)).is_some();
        if flag.set || flag.released || granted {
            self.passed(key);
            return true;
        }
        if !flag.streams.contains(&stream) {
            flag.streams.push(stream);
        }
        false
    }

    fn passed(&mut self, key: FlagKey) {
        let Some(flag) = self.flags.get_mut(&key) else { return };
        flag.waits = flag.waits.saturating_sub(1);
        if flag.released && flag.waits == 0 {
            self.flags.remove(&key);
        }
    }

    /// Sets the flag; the streams that go on.
    pub fn set(&mut self, key: FlagKey) -> Vec<usize> {
        let flag = self.flags.entry(key).or_default();
        flag.set = true;
        flag.granted.extend(&flag.streams);
        std::mem::take(&mut flag.streams)
    }

    pub fn clear(&mut self, key: FlagKey) {
        if let Some(flag) = self.flags.get_mut(&key) {
            flag.set = false;
        }
    }

    /// Every wait for the flag is over, and so is the flag; the streams that go on.
    pub fn release(&mut self, key: FlagKey) -> Vec<usize> {
        let Some(flag) = self.flags.get_mut(&key) else { return Vec::new() };
        flag.released = true;
        let streams = std::mem::take(&mut flag.streams);
        if flag.waits == 0 {
            self.flags.remove(&key);
        }
        streams
    }

    pub fn forget_session(&mut self, session: u64) {
        self.flags.retain(|key, _| key.session != session);
    }
}

//! Decision records: everything that went into a dispatcher and everything it decided, to ask another one the same.
//!
//! A dispatcher is a function of its inputs, so a record of them replays: [`Record::replay`] feeds a fresh dispatcher and
//! compares every decision. That is how the daemon, a simulator and a changed policy are held against each other.
//!
//! Off by default; then it costs one test an input. On, each input is 3 to 60 bytes behind those before, in a buffer of a
//! fixed size that is taken when the recording starts: the data path does not allocate. A full buffer ends the record, which
//! stays valid up to there, and counts what came after.
//!
//! A recording starts on an idle dispatcher, which it makes anew: sessions, streams, events and flags stay, what the policy and the
//! windows have learnt does not, exactly as in the dispatcher that replays.

use super::codec::{Malformed, Reader, Writer};
use super::{Action, Dispatcher, EventKey, FlagKey, HintInput, Item, Limits, SessionParams, StreamKey, Token};
use crate::{Nanos, PolicyConfig};

/// First bytes of a record; the digit is the layout's version.
const MAGIC: &[u8] = b"vnpurec1";
/// Room behind the limit, so that an entry can be written before it is known not to fit: policies are the largest, a few
/// hundred bytes.
const SLACK_BYTES: usize = 4096;

/// One input or one decision.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry {
    /// [`Dispatcher::open_session`].
    OpenSession(u64, SessionParams),
    /// [`Dispatcher::close_session`].
    CloseSession(Nanos, u64),
    /// [`Dispatcher::open_stream`].
    OpenStream(StreamKey, u32),
    /// [`Dispatcher::close_stream`].
    CloseStream(Nanos, StreamKey),
    /// [`Dispatcher::push`].
    Push(Nanos, StreamKey, Item),
    /// [`Dispatcher::notify_event`].
    NotifyEvent(Nanos, EventKey, Token),
    /// [`Dispatcher::destroy_event`].
    DestroyEvent(EventKey),
    /// [`Dispatcher::release_flag`].
    ReleaseFlag(Nanos, FlagKey),
    /// [`Dispatcher::notify_device`].
    NotifyDevice(Nanos, u64, Token),
    /// [`Dispatcher::complete`].
    Complete(Nanos, Token),
    /// [`Dispatcher::hint`].
    Hint(Nanos, u64, HintInput),
    /// [`Dispatcher::set_policy`].
    SetPolicy(PolicyConfig),
    /// [`Dispatcher::step`].
    Step(Nanos),
    /// What the step before decided, in order.
    Decided(Action),
}

/// A finished record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    bytes: Vec<u8>,
    /// Entries that found no room.
    missing: u64,
}

/// Why a recording does not start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a recording starts on an idle dispatcher; {items} items are queued or running")]
pub struct Busy {
    /// Entries of all queues, and answers not handed out.
    pub items: usize,
}

/// Why a record does not replay.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ReplayError {
    /// Not a record, or not of this version.
    #[error("not a decision record: {0}")]
    Malformed(#[from] Malformed),
    /// The dispatcher decided otherwise.
    #[error("entry {entry}, step at {at} ns: recorded {recorded:?}, decided {decided:?}")]
    Differs {
        /// Number of the entry.
        entry: u64,
        /// Time of the step.
        at: Nanos,
        /// Decision in the record.
        recorded: Option<Action>,
        /// Decision of the replaying dispatcher.
        decided: Option<Action>,
    },
}

/// What a replay went through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Replayed {
    /// Inputs.
    pub inputs: u64,
    /// Decisions, all of them the same.
    pub decisions: u64,
}

/// A record being written.
#[derive(Debug)]
pub(super) struct Recorder {
    writer: Writer,
    bytes_max: usize,
    missing: u64,
}

impl Recorder {
    fn new(config: &PolicyConfig, limits: &Limits, bytes_max: usize) -> Self {
        let mut writer = Writer::with_capacity(bytes_max + SLACK_BYTES);
        writer.raw(MAGIC);
        writer.limits(limits);
        writer.policy(config);
        Self { writer, bytes_max, missing: 0 }
    }

    pub fn append(&mut self, entry: &Entry) {
        let before = self.writer.mark();
        // What is behind a gap cannot be replayed.
        if self.missing == 0 {
            self.writer.entry(entry);
        }
        if self.missing > 0 || self.writer.len() > self.bytes_max {
            self.writer.back_to(before);
            self.missing += 1;
        }
    }
}

impl Dispatcher {
    /// Begins to record, into at most `bytes_max` bytes; drops a record that was under way.
    ///
    /// # Errors
    /// Work is queued or running: ask again later. Nothing was changed.
    pub fn start_record(&mut self, bytes_max: usize) -> Result<(), Busy> {
        let items = self.items + self.flying.len() + self.done.len() + self.fences.len();
        if items > 0 {
            return Err(Busy { items });
        }
        let config = as_read_back(self.config);
        let mut fresh = Self::new(config, self.limits);
        fresh.recorder = Some(Recorder::new(&config, &self.limits, bytes_max));
        let mut sessions: Vec<_> = self.sessions.iter().collect();
        sessions.sort_unstable_by_key(|(id, _)| **id);
        for (&id, session) in sessions {
            // What fitted before fits again.
            let _ = fresh.open_session(id, session.params);
            for stream in session.streams.iter().filter_map(|&i| self.streams[i].as_ref()) {
                let _ = fresh.open_stream(stream.key, stream.priority);
            }
        }
        for (event, time) in self.events.known() {
            let default = StreamKey { session: event.session, stream: 0 };
            if fresh.push(self.now, default, Item::RecordEvent(event)).is_ok() {
                fresh.events.set_time(event, time);
            }
        }
        for flag in self.flags.set_now() {
            let _ = fresh.push(self.now, StreamKey { session: flag.session, stream: 0 }, Item::SetFlag(flag));
        }
        fresh.stats = self.stats.clone();
        *self = fresh;
        Ok(())
    }

    /// Ends the recording; `None` if there was none.
    pub fn take_record(&mut self) -> Option<Record> {
        let Recorder { writer, missing, .. } = self.recorder.take()?;
        Some(Record { bytes: writer.into_bytes(), missing })
    }

    pub(super) fn log(&mut self, entry: impl FnOnce() -> Entry) {
        if let Some(recorder) = &mut self.recorder {
            recorder.append(&entry());
        }
    }
}

/// The configuration as a record gives it back: numbers in text may be off by a bit in the last place.
pub(super) fn as_read_back(config: PolicyConfig) -> PolicyConfig {
    config.to_json().parse().unwrap_or(config)
}

impl Record {
    /// A record from a file.
    ///
    /// # Errors
    /// It does not begin like one.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, Malformed> {
        let record = Self { bytes, missing: 0 };
        record.open()?;
        Ok(record)
    }

    /// The record as a file holds it.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Entries that came after the buffer was full.
    pub fn missing(&self) -> u64 {
        self.missing
    }

    /// Policy and limits that the recording began with.
    ///
    /// # Errors
    /// It does not begin like a record.
    pub fn head(&self) -> Result<(PolicyConfig, Limits), Malformed> {
        self.open().map(|(config, limits, _)| (config, limits))
    }

    /// Every entry in order; ends with the first that cannot be read.
    ///
    /// # Errors
    /// It does not begin like a record.
    pub fn entries(&self) -> Result<impl Iterator<Item = Result<Entry, Malformed>> + '_, Malformed> {
        let (.., mut reader) = self.open()?;
        let mut broken = false;
        Ok(std::iter::from_fn(move || {
            if broken || reader.is_empty() {
                return None;
            }
            let entry = reader.entry();
            broken = entry.is_err();
            Some(entry)
        }))
    }

    /// Feeds the record's inputs to a fresh dispatcher and compares what it decides.
    ///
    /// # Errors
    /// The first decision that differs, or where the record breaks off in the middle of an entry.
    pub fn replay(&self) -> Result<Replayed, ReplayError> {
        let (config, limits) = self.head()?;
        self.replay_on(&mut Dispatcher::new(config, limits))
    }

    /// [`Record::replay`] on a dispatcher of the caller's: a changed one, or one that shall be left in the state at the end.
    ///
    /// # Errors
    /// As [`Record::replay`].
    pub fn replay_on(&self, d: &mut Dispatcher) -> Result<Replayed, ReplayError> {
        let mut out: Vec<Action> = Vec::new();
        let (mut compared, mut at, mut number) = (0, 0, 0);
        let mut replayed = Replayed::default();
        let mut dropped = Vec::new();
        let differs = |entry, at, recorded, decided| Err(ReplayError::Differs { entry, at, recorded, decided });
        for entry in self.entries()? {
            let entry = entry?;
            number += 1;
            if let Entry::Decided(recorded) = entry {
                let decided = out.get(compared).copied();
                if decided != Some(recorded) {
                    return differs(number, at, Some(recorded), decided);
                }
                compared += 1;
                replayed.decisions += 1;
                continue;
            }
            if let Some(&more) = out.get(compared) {
                return differs(number, at, None, Some(more));
            }
            replayed.inputs += 1;
            match entry {
                // Refusals are answers like others: what was refused then is refused now.
                Entry::OpenSession(session, params) => drop(d.open_session(session, params)),
                Entry::OpenStream(key, priority) => drop(d.open_stream(key, priority)),
                Entry::Push(now, key, item) => drop(d.push(now, key, item)),
                Entry::CloseSession(now, session) => {
                    dropped.clear();
                    d.close_session(now, session, &mut dropped);
                }
                Entry::CloseStream(now, key) => d.close_stream(now, key),
                Entry::NotifyEvent(now, event, token) => d.notify_event(now, event, token),
                Entry::DestroyEvent(event) => d.destroy_event(event),
                Entry::ReleaseFlag(now, flag) => d.release_flag(now, flag),
                Entry::NotifyDevice(now, session, token) => d.notify_device(now, session, token),
                Entry::Complete(now, token) => d.complete(now, token),
                Entry::Hint(now, session, hint) => d.hint(now, session, &hint),
                Entry::SetPolicy(config) => d.set_policy(config),
                Entry::Step(now) => {
                    at = now;
                    compared = 0;
                    out.clear();
                    d.step(now, &mut out);
                }
                Entry::Decided(_) => {}
            }
        }
        match out.get(compared) {
            // A full buffer may end between a step and its decisions.
            Some(&more) if self.missing == 0 => differs(number + 1, at, None, Some(more)),
            _ => Ok(replayed),
        }
    }

    fn open(&self) -> Result<(PolicyConfig, Limits, Reader<'_>), Malformed> {
        let mut reader = Reader::new(&self.bytes);
        reader.expect(MAGIC)?;
        let limits = reader.limits()?;
        Ok((reader.policy()?, limits, reader))
    }
}

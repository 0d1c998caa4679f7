//! Reading a decision record: the same state and the same inputs, and every decision compared.

use super::codec::{Malformed, Reader};
use super::record::{BUILD, Entry, MAGIC, VERSION};
use super::{Action, Dispatcher};
use crate::Nanos;

/// A record, from a file or fresh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    bytes: Vec<u8>,
}

/// Why bytes are not a record that can be replayed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Something else.
    #[error("this is no decision record: it begins otherwise")]
    Foreign,
    /// Of another version.
    #[error("a decision record of version {0:?}; this program reads version {ours:?}", ours = char::from(VERSION))]
    Version(char),
    /// Cut off or changed.
    #[error("the decision record is damaged or cut off: its checksum does not match")]
    Damaged,
    /// Of another build.
    #[error(
        "recorded by another build of FlexNPU ({0}; this one is {BUILD}): replay it with the programs of that build"
    )]
    Build(String),
    /// Nonsense behind a good checksum.
    #[error("the decision record cannot be read: {0}")]
    Malformed(#[from] Malformed),
}

/// Why a record does not replay.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ReplayError {
    /// It cannot be read.
    #[error(transparent)]
    Unreadable(#[from] RecordError),
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

impl From<Malformed> for ReplayError {
    fn from(e: Malformed) -> Self {
        Self::Unreadable(e.into())
    }
}

/// What a replay went through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Replayed {
    /// Inputs.
    pub inputs: u64,
    /// Decisions, all of them the same.
    pub decisions: u64,
}

/// Who looks on while a record replays.
pub trait Spectator {
    /// An entry is about to be fed to the dispatcher.
    fn before(&mut self, _entry: &Entry, _dispatcher: &Dispatcher) {}
    /// It was; `decided` is what a step decided.
    fn after(&mut self, entry: &Entry, decided: &[Action], dispatcher: &mut Dispatcher);
}

/// Nobody.
impl Spectator for () {
    fn after(&mut self, _entry: &Entry, _decided: &[Action], _dispatcher: &mut Dispatcher) {}
}

struct Head<'a> {
    about: &'a str,
    forgotten: u64,
    state: &'a [u8],
    entries: Reader<'a>,
}

impl Record {
    /// A record as a file holds it.
    ///
    /// # Errors
    /// It is none, or none that this build can replay; the error says which.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, RecordError> {
        let record = Self { bytes };
        let rest = record.bytes.strip_prefix(MAGIC).ok_or(RecordError::Foreign)?;
        match rest.first() {
            Some(&VERSION) => {}
            Some(&other) => return Err(RecordError::Version(char::from(other))),
            None => return Err(RecordError::Damaged),
        }
        let (body, sum) = record.bytes.split_last_chunk().ok_or(RecordError::Damaged)?;
        if crc32fast::hash(body) != u32::from_le_bytes(*sum) {
            return Err(RecordError::Damaged);
        }
        record.open()?;
        Ok(record)
    }

    /// The record as a file holds it.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What the recording program said about it, JSON.
    pub fn about(&self) -> &str {
        self.open().map_or("", |head| head.about)
    }

    /// Entries that the ring forgot before the first one here.
    pub fn forgotten(&self) -> u64 {
        self.open().map_or(0, |head| head.forgotten)
    }

    /// The dispatcher as it was when the record begins.
    ///
    /// # Errors
    /// The state cannot be read.
    pub fn dispatcher(&self) -> Result<Dispatcher, RecordError> {
        let head = self.open()?;
        let at = self.bytes.len() - head.state.len();
        Dispatcher::restore(head.state).map_err(|_| Malformed { at, what: "a dispatcher's state" }.into())
    }

    /// Every entry in order; ends with the first that cannot be read.
    ///
    /// # Errors
    /// It does not begin like a record.
    pub fn entries(&self) -> Result<impl Iterator<Item = Result<Entry, Malformed>> + '_, RecordError> {
        let mut reader = self.open()?.entries;
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

    /// Feeds the record's inputs to the dispatcher that it begins with and compares what it decides.
    ///
    /// # Errors
    /// The first decision that differs, or what cannot be read.
    pub fn replay(&self) -> Result<Replayed, ReplayError> {
        self.replay_on(&mut self.dispatcher()?, &mut ())
    }

    /// [`Record::replay`] on a dispatcher of the caller's: a changed one, or one that shall be left in the state at the end.
    ///
    /// # Errors
    /// As [`Record::replay`].
    pub fn replay_on(&self, d: &mut Dispatcher, spectator: &mut dyn Spectator) -> Result<Replayed, ReplayError> {
        let mut out: Vec<Action> = Vec::new();
        let (mut compared, mut at, mut number) = (0, 0, 0);
        let mut replayed = Replayed::default();
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
            (compared, at) = (0, entry.time().unwrap_or(at));
            out.clear();
            replayed.inputs += u64::from(!matches!(entry, Entry::Aside(_)));
            spectator.before(&entry, d);
            d.apply(&entry, &mut out);
            spectator.after(&entry, &out, d);
        }
        match out.get(compared) {
            Some(&more) => differs(number + 1, at, None, Some(more)),
            None => Ok(replayed),
        }
    }

    fn open(&self) -> Result<Head<'_>, RecordError> {
        let start = MAGIC.len() + 1;
        let body = self.bytes.get(start..self.bytes.len().saturating_sub(4)).ok_or(RecordError::Damaged)?;
        let mut reader = Reader::new(body);
        let build = reader.text()?;
        if build != BUILD {
            return Err(RecordError::Build(build.to_owned()));
        }
        let about = reader.text()?;
        let (forgotten, state) = reader.head()?;
        Ok(Head { about, forgotten, state, entries: reader })
    }
}

impl Dispatcher {
    /// Feeds one entry of a record. Refusals are answers like others: what was refused then is refused now.
    fn apply(&mut self, entry: &Entry, out: &mut Vec<Action>) {
        match *entry {
            Entry::OpenSession(session, params) => drop(self.open_session(session, params)),
            Entry::OpenStream(key, priority) => drop(self.open_stream(key, priority)),
            Entry::Push(now, key, item) => drop(self.push(now, key, item)),
            Entry::CloseSession(now, session) => self.close_session(now, session, &mut Vec::new()),
            Entry::CloseStream(now, key) => self.close_stream(now, key),
            Entry::NotifyEvent(now, event, token) => self.notify_event(now, event, token),
            Entry::DestroyEvent(event) => self.destroy_event(event),
            Entry::ReleaseFlag(now, flag) => self.release_flag(now, flag),
            Entry::Press(now, key, on) => self.press(now, key, on),
            Entry::NotifyDevice(now, session, token) => self.notify_device(now, session, token),
            Entry::Complete(now, token) => self.complete(now, token),
            Entry::Hint(now, session, hint) => self.hint(now, session, &hint),
            Entry::SetPolicy(config) => self.set_policy(config),
            Entry::SetTenant(tenant, params) => self.set_tenant(tenant, params),
            Entry::RemoveTenant(tenant) => self.remove_tenant(tenant),
            Entry::Step(now) => self.step(now, out),
            Entry::Decided(_) | Entry::Aside(_) => {}
        }
    }
}

impl Entry {
    /// When it happened, where the entry says so.
    pub fn time(&self) -> Option<Nanos> {
        match *self {
            Self::CloseSession(now, _)
            | Self::CloseStream(now, _)
            | Self::Push(now, ..)
            | Self::NotifyEvent(now, ..)
            | Self::ReleaseFlag(now, _)
            | Self::Press(now, ..)
            | Self::NotifyDevice(now, ..)
            | Self::Complete(now, _)
            | Self::Hint(now, ..)
            | Self::Step(now) => Some(now),
            Self::Aside(aside) => Some(aside.ended),
            Self::OpenSession(..)
            | Self::OpenStream(..)
            | Self::DestroyEvent(_)
            | Self::SetPolicy(_)
            | Self::SetTenant(..)
            | Self::RemoveTenant(_)
            | Self::Decided(_) => None,
        }
    }
}

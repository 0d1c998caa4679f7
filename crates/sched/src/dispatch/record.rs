//! Decision records: everything that goes into a dispatcher and everything it decides, for as long as there is room.
//!
//! A dispatcher is a function of its state and its inputs, so both together replay (`replay.rs`): that is how the daemon, a
//! simulator and a changed policy are held against each other, and how a decision is explained afterwards.
//!
//! A recording may begin at any time, under load too, and changes no decision. It is a ring of [`PIECES`] pieces. Each begins with
//! the whole state (`state.rs`) and goes on with the inputs; when one is full the oldest goes. What is kept therefore reaches
//! back for most of the room or of the time that was asked for, and begins where a state is known.
//!
//! Off by default; then it costs one test an input. On, each input is 3 to 60 bytes behind those before. Beginning a piece
//! costs as much as there is queued, once in an eighth of the room.

use super::codec::Writer;
use super::{
    Action, Dispatcher, EventKey, FlagKey, HintInput, Item, Label, SessionParams, StreamKey, TenantParams, Token,
};
use crate::{Nanos, Phase, PolicyConfig};
use std::collections::VecDeque;
use std::sync::Arc;

/// First bytes of a record.
pub(super) const MAGIC: &[u8] = b"vnpurec";
/// The layout's version, the byte behind [`MAGIC`].
pub(super) const VERSION: u8 = b'3';
/// Tells builds apart whose saved states differ.
pub(super) const BUILD: &str = env!("SCHED_SOURCES");
/// Pieces of the ring: forgetting one loses an eighth.
const PIECES: usize = 8;
/// Room behind a piece's limit, so that the entry that fills it needs no allocation.
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
    /// [`Dispatcher::press`].
    Press(Nanos, StreamKey, bool),
    /// [`Dispatcher::notify_device`].
    NotifyDevice(Nanos, u64, Token),
    /// [`Dispatcher::complete`].
    Complete(Nanos, Token),
    /// [`Dispatcher::hint`].
    Hint(Nanos, u64, HintInput),
    /// [`Dispatcher::set_policy`].
    SetPolicy(PolicyConfig),
    /// [`Dispatcher::set_tenant`].
    SetTenant(u32, TenantParams),
    /// [`Dispatcher::remove_tenant`].
    RemoveTenant(u32),
    /// [`Dispatcher::step`].
    Step(Nanos),
    /// What the step before decided, in order.
    Decided(Action),
    /// [`Dispatcher::note_aside`].
    Aside(Aside),
}

/// Work that the device did without being asked by the dispatcher, as synchronous copies are. No input: it decides nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aside {
    /// Whose.
    pub session: u64,
    /// What it is called.
    pub label: Label,
    /// Phase it is counted under.
    pub phase: Phase,
    /// Predicted time alone.
    pub solo: Nanos,
    /// When the device got it.
    pub began: Nanos,
    /// When it was complete.
    pub ended: Nanos,
}

/// How much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordLimits {
    /// Room, bytes. A state that is larger than an eighth of it takes more.
    pub bytes_max: usize,
    /// Time, nanoseconds: what is older goes, give or take an eighth. [`Nanos::MAX`] for as long as there is room.
    pub span: Nanos,
}

#[derive(Debug, PartialEq, Eq)]
struct Piece {
    /// Time of the first entry's predecessor: times are differences.
    base: Nanos,
    began: Nanos,
    state: Vec<u8>,
    entries: Vec<u8>,
    count: u64,
}

/// What a recording holds, cheap to take out of the dispatcher's thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recording {
    pieces: Vec<Arc<Piece>>,
    /// Entries that were forgotten.
    forgotten: u64,
}

impl Recording {
    /// A record as a file holds it. `about` is for whoever reads it, as JSON: nothing here looks at it.
    pub fn to_bytes(&self, about: &str) -> Vec<u8> {
        let entries: usize = self.pieces.iter().map(|p| p.entries.len()).sum();
        let first = self.pieces.first();
        let state = first.map_or(&[][..], |p| &p.state);
        let mut writer = Writer::new(first.map_or(0, |p| p.base), entries + state.len() + about.len() + SLACK_BYTES);
        writer.raw(MAGIC);
        writer.raw(&[VERSION]);
        writer.text(BUILD.as_bytes());
        writer.text(about.as_bytes());
        writer.head(self.forgotten, state);
        for piece in &self.pieces {
            writer.raw(&piece.entries);
        }
        let mut bytes = writer.into_bytes();
        let sum = crc32fast::hash(&bytes);
        bytes.extend_from_slice(&sum.to_le_bytes());
        bytes
    }
}

/// A record being written.
#[derive(Debug)]
pub(super) struct Recorder {
    pub limits: RecordLimits,
    full: VecDeque<Arc<Piece>>,
    base: Nanos,
    began: Nanos,
    state: Vec<u8>,
    writer: Writer,
    count: u64,
    /// Bytes and time at which the open piece is full.
    full_at: (usize, Nanos),
    forgotten: u64,
}

impl Recorder {
    fn new(limits: RecordLimits, now: Nanos, state: Vec<u8>) -> Self {
        let writer = Writer::new(now, 0);
        let mut recorder = Self {
            limits,
            full: VecDeque::new(),
            base: now,
            began: now,
            state: Vec::new(),
            writer,
            count: 0,
            full_at: (0, 0),
            forgotten: 0,
        };
        recorder.open(now, state);
        recorder
    }

    /// Begins a piece at the writer's place in time.
    fn open(&mut self, now: Nanos, state: Vec<u8>) {
        // A piece is never less than its state, or the ring would hold states and nothing else.
        let room = (self.limits.bytes_max / PIECES).saturating_sub(state.len()).max(state.len());
        self.base = self.writer.time();
        self.writer = Writer::new(self.base, room + SLACK_BYTES);
        self.full_at = (room, now.saturating_add(self.limits.span / PIECES as u64));
        (self.began, self.state, self.count) = (now, state, 0);
    }

    fn is_full(&self, now: Nanos) -> bool {
        self.writer.len() >= self.full_at.0 || now >= self.full_at.1
    }

    /// Closes the open piece and begins the next one.
    fn turn(&mut self, now: Nanos, state: Vec<u8>) {
        self.close();
        self.open(now, state);
        self.forget(now);
    }

    fn close(&mut self) {
        let next = Writer::new(self.writer.time(), 0);
        let writer = std::mem::replace(&mut self.writer, next);
        let (state, entries) = (std::mem::take(&mut self.state), writer.into_bytes());
        self.full.push_back(Arc::new(Piece { base: self.base, began: self.began, state, entries, count: self.count }));
    }

    /// Drops the oldest pieces while the others are as much as shall be kept.
    fn forget(&mut self, now: Nanos) {
        let size = |p: &Arc<Piece>| p.state.len() + p.entries.len();
        let mut total = self.state.len() + self.full_at.0 + self.full.iter().map(size).sum::<usize>();
        let needed_from = now.checked_sub(self.limits.span);
        while let Some(piece) = self.full.front() {
            let next_began = self.full.get(1).map_or(self.began, |p| p.began);
            if total <= self.limits.bytes_max && needed_from.is_none_or(|t| next_began > t) {
                break;
            }
            total -= size(piece);
            self.forgotten += piece.count;
            self.full.pop_front();
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.state.len() + self.writer.len() + self.full.iter().map(|p| p.state.len() + p.entries.len()).sum::<usize>()
    }

    /// Since when.
    pub fn since(&self) -> Nanos {
        self.full.front().map_or(self.began, |p| p.began)
    }
}

impl Dispatcher {
    /// Begins to record; drops a record that was under way. Changes no decision.
    pub fn start_record(&mut self, limits: RecordLimits) {
        let state = self.save();
        self.recorder = Some(Recorder::new(limits, self.now, state));
    }

    /// What is recorded so far; the recording goes on. `None` if there is none.
    pub fn copy_record(&mut self) -> Option<Recording> {
        self.recorder.as_ref()?;
        let (now, state) = (self.now, self.save());
        let recorder = self.recorder.as_mut()?;
        recorder.turn(now, state);
        Some(Recording { pieces: recorder.full.iter().cloned().collect(), forgotten: recorder.forgotten })
    }

    /// Ends the recording; `None` if there was none.
    pub fn take_record(&mut self) -> Option<Recording> {
        let mut recorder = self.recorder.take()?;
        recorder.close();
        Some(Recording { pieces: recorder.full.into(), forgotten: recorder.forgotten })
    }

    /// Limits of the recording, bytes held and since when; `None` if there is none.
    pub fn recording(&self) -> Option<(RecordLimits, usize, Nanos)> {
        self.recorder.as_ref().map(|r| (r.limits, r.bytes(), r.since()))
    }

    /// True while everything is recorded.
    pub fn is_recording(&self) -> bool {
        self.recorder.is_some()
    }

    /// Notes work that did not come through here, if there is a recording.
    pub fn note_aside(&mut self, aside: impl FnOnce() -> Aside) {
        if let Some(recorder) = &mut self.recorder {
            recorder.writer.entry(&Entry::Aside(aside()));
            recorder.count += 1;
        }
    }

    /// An input, before it changes anything.
    #[inline]
    pub(super) fn log(&mut self, entry: impl FnOnce() -> Entry) {
        if self.recorder.is_some() {
            self.record(&entry());
        }
    }

    #[inline(never)]
    fn record(&mut self, entry: &Entry) {
        let now = self.now;
        if self.recorder.as_ref().is_some_and(|r| r.is_full(now)) {
            let state = self.save();
            if let Some(recorder) = &mut self.recorder {
                recorder.turn(now, state);
            }
        }
        if let Some(recorder) = &mut self.recorder {
            recorder.writer.entry(entry);
            recorder.count += 1;
        }
    }

    /// What a step decided: in the same piece as the step.
    pub(super) fn log_decisions(&mut self, actions: &[Action]) {
        if let Some(recorder) = &mut self.recorder {
            for &action in actions {
                recorder.writer.entry(&Entry::Decided(action));
            }
            recorder.count += actions.len() as u64;
        }
    }
}

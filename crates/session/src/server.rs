//! The daemon's end of one session.
//!
//! [`ServerSession`] belongs to the dispatch thread. [`Replier`] can be cloned into whatever answers later. Neither ever
//! waits for the client.

use crate::arena::Arena;
use crate::doorbell::SessionBell;
use crate::futex::wake_all;
use crate::shared::{Ring, Shared};
use acl_abi::{OpCall, OpId};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use thiserror::Error;
use wire::ring::Consumer;
use wire::{ArenaRange, DecodeError, HostSource, Record, Reply, ReplyTo};

/// The client broke the protocol: the session must end, its neighbours are not concerned.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Violation {
    /// The ring's positions or lengths make no sense.
    #[error("command ring: {0}")]
    Ring(#[from] wire::ring::Violation),
    /// A record's bytes make no sense.
    #[error("record: {0}")]
    Record(#[from] DecodeError),
    /// A reply slot that does not exist.
    #[error("reply slot {slot} of {slots}")]
    Slot {
        /// What the record says.
        slot: u16,
        /// How many there are.
        slots: u32,
    },
    /// A staging block that does not exist or is shorter.
    #[error("{len} bytes of staging block {block}")]
    Staging {
        /// Block.
        block: u32,
        /// Bytes.
        len: u32,
    },
    /// A range outside the arena.
    #[error("{} bytes at {} of an arena of {arena_bytes}", .range.len, .range.offset)]
    Arena {
        /// What the record says.
        range: ArenaRange,
        /// Bytes of the arena.
        arena_bytes: u64,
    },
}

/// Who the client is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Process id as the kernel says; 0 if it is in a pid namespace that we do not see.
    pub pid: u32,
    /// User id as the kernel says.
    pub uid: u32,
    /// What the client calls itself: for logs only.
    pub process_name: String,
    /// First device address of the range it reserved.
    pub va_base: u64,
    /// Length of that range in bytes.
    pub va_len: u64,
}

/// Answers and gives staging blocks back. Clones speak to the same client.
#[derive(Clone)]
pub struct Replier {
    shared: Arc<Shared>,
    arena: Arc<Arena>,
}

impl Replier {
    /// Writes a reply and wakes the caller if it sleeps. Each [`ReplyTo`] is answered once. Never blocks; a slot that does
    /// not exist is ignored (records were checked when drained).
    pub fn reply(&self, to: ReplyTo, reply: &Reply) {
        if u32::from(to.slot) >= self.shared.layout().reply_slots {
            return;
        }
        let body = self.shared.slot_body(to.slot);
        reply.store(|i, word| body[i].store(word, Ordering::Relaxed));
        let (state, sleeping) = self.shared.slot_state(to.slot);
        state.store(to.seq, Ordering::Release);
        fence(Ordering::SeqCst);
        if sleeping.load(Ordering::Relaxed) != 0 {
            wake_all(state);
        }
    }

    /// Gives a staging block back to the client. Never blocks.
    pub fn release_staging(&self, block: u32) {
        self.shared.release_staging(block);
    }

    /// The application's bytes.
    pub fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    fn check(&self, record: &Record<'_>) -> Result<(), Violation> {
        let reply = match *record {
            Record::StreamSync { reply, .. }
            | Record::StreamQuery { reply, .. }
            | Record::DeviceSync { reply }
            | Record::EventSync { reply, .. }
            | Record::EventQuery { reply, .. }
            | Record::EventElapsed { reply, .. }
            | Record::Malloc { reply, .. }
            | Record::Free { reply, .. }
            | Record::MemInfo { reply }
            | Record::Reserve { reply, .. }
            | Record::Release { reply, .. }
            | Record::PhysicalAlloc { reply, .. }
            | Record::PhysicalFree { reply, .. }
            | Record::Map { reply, .. }
            | Record::Unmap { reply, .. }
            | Record::Export { reply, .. }
            | Record::ExportAllow { reply, .. }
            | Record::ExportClose { reply, .. }
            | Record::Import { reply, .. }
            | Record::OpAnswered { reply, .. }
            | Record::HostWait { reply }
            | Record::EventTime { reply, .. }
            | Record::EventExport { reply, .. }
            | Record::EventImport { reply, .. }
            | Record::CommRoot { reply }
            | Record::CommInit { reply, .. }
            | Record::CommStatus { reply, .. }
            | Record::GraphEnd { reply, .. } => Some(reply),
            Record::CopyIn { ref source, reply, .. } => {
                match *source {
                    HostSource::Inline(_) => {}
                    HostSource::Staging { block, len } => {
                        self.arena.staging_range(block, len).ok_or(Violation::Staging { block, len })?;
                    }
                    HostSource::Pinned(range) => self.check_range(range)?,
                }
                reply
            }
            Record::StreamFetch { dst, reply, .. } => {
                self.check_range(dst)?;
                Some(reply)
            }
            Record::CopyOut { dst, reply, .. } => {
                self.check_range(dst)?;
                reply
            }
            Record::CopyDevice { reply, .. } | Record::Memset { reply, .. } => reply,
            Record::StreamCreate { .. }
            | Record::StreamDestroy { .. }
            | Record::EventCreate { .. }
            | Record::EventDestroy { .. }
            | Record::EventRecord { .. }
            | Record::EventReset { .. }
            | Record::StreamWaitEvent { .. }
            | Record::HostCall { .. }
            | Record::FlagWait { .. }
            | Record::FlagSet { .. }
            | Record::FlagClear { .. }
            | Record::FlagRelease { .. }
            | Record::GraphBegin { .. }
            | Record::GraphNode { .. }
            | Record::GraphLaunch { .. }
            | Record::GraphUpdate { .. }
            | Record::GraphDestroy { .. }
            | Record::ValueWrite { .. }
            | Record::ValueWait { .. }
            | Record::CommDestroy { .. }
            | Record::Exchange { .. }
            | Record::Op { .. }
            | Record::Hint(_)
            | Record::HintsRefused { .. } => None,
        };
        let slots = self.shared.layout().reply_slots;
        match reply {
            Some(ReplyTo { slot, .. }) if u32::from(slot) >= slots => Err(Violation::Slot { slot, slots }),
            _ => Ok(()),
        }
    }

    fn check_range(&self, range: ArenaRange) -> Result<(), Violation> {
        let arena_bytes = self.arena.bytes();
        self.arena.ptr(range).map(|_| ()).ok_or(Violation::Arena { range, arena_bytes })
    }
}

impl std::fmt::Debug for Replier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replier").finish_non_exhaustive()
    }
}

/// The daemon's end of one session. Dropping it tells the client that it is lost.
pub struct ServerSession {
    id: u64,
    peer: Peer,
    replier: Replier,
    consumer: Consumer<Ring>,
    /// The record being read: private memory.
    buffer: Vec<u8>,
    call: OpCall,
    violation: Option<Violation>,
    _bell: SessionBell,
}

/// Records between two looks at a producer that waits for room.
const ROOM_EVERY: usize = 64;

impl ServerSession {
    pub(crate) fn new(id: u64, peer: Peer, shared: Arc<Shared>, bell: SessionBell) -> Self {
        let arena = Arc::new(Arena::new(Arc::clone(&shared)));
        let consumer = Consumer::new(Ring(Arc::clone(&shared)));
        Self {
            id,
            peer,
            replier: Replier { shared, arena },
            consumer,
            buffer: Vec::new(),
            call: OpCall::new(OpId(0)),
            violation: None,
            _bell: bell,
        }
    }

    /// Session number; unique in this process.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Who the client is.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Takes up to `max_records` records in order: copies each once, validates it, passes it on. For [`Record::Op`] the
    /// call is in the third argument, which the callee may swap for another to keep it; otherwise that argument is scratch.
    /// Returns how many it took.
    ///
    /// # Errors
    /// The first violation ends the session: every later drain returns it again. Records before it were passed on.
    pub fn drain(
        &mut self,
        max_records: usize,
        f: &mut dyn FnMut(&Replier, Record<'_>, &mut OpCall),
    ) -> Result<usize, Violation> {
        self.drain_while(max_records, &mut |replier, record, call| {
            f(replier, record, call);
            true
        })
    }

    /// As [`ServerSession::drain`], and stops behind the record for which the callee answers false.
    ///
    /// # Errors
    /// As [`ServerSession::drain`].
    pub fn drain_while(
        &mut self,
        max_records: usize,
        f: &mut dyn FnMut(&Replier, Record<'_>, &mut OpCall) -> bool,
    ) -> Result<usize, Violation> {
        if let Some(violation) = &self.violation {
            return Err(violation.clone());
        }
        let (mut taken, mut wanted) = (0, true);
        while taken < max_records && wanted {
            match self.take(f) {
                Ok(None) => break,
                Ok(Some(more)) => {
                    taken += 1;
                    wanted = more;
                }
                Err(violation) => {
                    self.violation = Some(violation.clone());
                    return Err(violation);
                }
            }
            if taken.is_multiple_of(ROOM_EVERY) {
                self.replier.shared.room().open();
            }
        }
        if taken > 0 {
            self.replier.shared.room().open();
        }
        Ok(taken)
    }

    /// Passes one record on; what the callee says, `None` without a record.
    fn take(
        &mut self,
        f: &mut dyn FnMut(&Replier, Record<'_>, &mut OpCall) -> bool,
    ) -> Result<Option<bool>, Violation> {
        if !self.consumer.pop(&mut self.buffer)? {
            return Ok(None);
        }
        if let Some(stream) = wire::decode_operator(&self.buffer, &mut self.call)? {
            return Ok(Some(f(&self.replier, Record::Op { stream }, &mut self.call)));
        }
        let record = wire::decode(&self.buffer, &mut self.call)?;
        self.replier.check(&record)?;
        Ok(Some(f(&self.replier, record, &mut self.call)))
    }

    /// See [`Replier::reply`].
    pub fn reply(&self, to: ReplyTo, reply: &Reply) {
        self.replier.reply(to, reply);
    }

    /// See [`Replier::release_staging`].
    pub fn release_staging(&self, block: u32) {
        self.replier.release_staging(block);
    }

    /// The application's bytes.
    pub fn arena(&self) -> &Arc<Arena> {
        self.replier.arena()
    }

    /// A handle that answers from elsewhere.
    pub fn replier(&self) -> &Replier {
        &self.replier
    }

    /// True if there are records to drain.
    pub fn has_pending(&self) -> bool {
        self.consumer.has_pending()
    }

    /// Asks the client to ring from now on. True if records are pending: then do not sleep (and cancel).
    pub fn prepare_sleep(&self) -> bool {
        self.consumer.prepare_sleep()
    }

    /// The dispatch thread is awake: the client need not ring.
    pub fn cancel_sleep(&self) {
        self.consumer.cancel_sleep();
    }

    /// Ends the session for the client: whatever it waits for returns `Lost` now.
    pub fn mark_dead(&self) {
        self.replier.shared.declare_lost();
    }
}

impl Drop for ServerSession {
    fn drop(&mut self) {
        self.mark_dead();
    }
}

impl std::fmt::Debug for ServerSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerSession").field("id", &self.id).field("peer", &self.peer).finish_non_exhaustive()
    }
}

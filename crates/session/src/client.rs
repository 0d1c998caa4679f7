//! The client's end: one per process, shared by its threads.
//!
//! A post takes one process-private lock, so that the order in the ring is the application's own, encodes into a buffer
//! that the lock guards, and publishes once. Everything that waits spins for [`crate::SPIN`] and then sleeps on a futex
//! word in shared memory; the watcher changes those words when the daemon is gone.

use crate::arena::Arena;
use crate::doorbell::ring_fd;
use crate::fork::Owner;
use crate::futex::{sleep_while, spin};
use crate::pinned::Pinned;
use crate::reserve::Reservation;
use crate::shared::{BLOCK_FREE, BLOCK_TAKEN, Ring, SEQ_LOST, SEQ_NONE, Shared};
use crate::socket;
use crate::watch::Watcher;
use acl_abi::OpCall;
use parking_lot::{Condvar, Mutex, MutexGuard};
use rustix::fd::OwnedFd;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::time::Duration;
use thiserror::Error;
use wire::control::{Answer, Hello, Layout, RefuseCode};
use wire::ring::{Producer, PushError};
use wire::{ArenaRange, DecodeError, EncodeError, PROTOCOL_VERSION, Record, Reply, ReplyTo};

/// Device addresses that a client reserves: 4 TiB. A caching allocator reserves more than the whole device for each stream.
pub(crate) const VA_BYTES: u64 = 4 << 40;

/// The daemon that owns the device is gone, or ended this session, or this process is a fork of the one that opened it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the session with the device's daemon is over; see its log, and start this process again")]
pub struct Lost;

/// Why there is no session.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// Nobody listens.
    #[error("cannot reach a daemon at {}; start vnpu-daemon with this --socket, or run with --direct", .path.display())]
    Unreachable {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The daemon does not take us, and says why.
    #[error("the daemon at {} refused: {message}", .path.display())]
    Refused {
        /// Where.
        path: PathBuf,
        /// Why.
        code: RefuseCode,
        /// The daemon's words.
        message: String,
    },
    /// The daemon's answer makes no sense.
    #[error("the answer of {} is not a daemon's: {source}", .path.display())]
    Answer {
        /// Where.
        path: PathBuf,
        /// What is wrong.
        source: DecodeError,
    },
    /// The daemon went away, or did not answer in time.
    #[error("the daemon at {} did not answer within {timeout:?}", .path.display())]
    Silent {
        /// Where.
        path: PathBuf,
        /// How long we waited.
        timeout: Duration,
    },
    /// The addresses or the memory of a session could not be had.
    #[error("cannot set up {what}")]
    Setup {
        /// What.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// How to connect.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// For the daemon's logs; the process's own name by default.
    pub process_name: String,
    /// Device addresses to reserve, in bytes; halved while the address-space limit of the process refuses.
    pub va_bytes: u64,
    /// How long to wait for the daemon's answer.
    pub timeout: Duration,
    /// Version to announce: [`PROTOCOL_VERSION`] except in tests.
    pub version: u32,
    /// Operator table to announce: `acl_abi::SIGNATURES_DIGEST` except in tests.
    pub signatures_digest: u64,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            process_name: own_name(),
            va_bytes: VA_BYTES,
            timeout: Duration::from_secs(10),
            version: PROTOCOL_VERSION,
            signatures_digest: acl_abi::SIGNATURES_DIGEST,
        }
    }
}

/// What the daemon said about itself and the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Session number.
    pub session: u64,
    /// Changes with every start of the daemon.
    pub epoch: u64,
    /// Which of the machine's devices it is.
    pub device_index: u32,
    /// Device memory in bytes.
    pub hbm_bytes: u64,
    /// SoC name as `aclrtGetSocName` answers it.
    pub soc_name: String,
    /// Sizes of the shared memory.
    pub layout: Layout,
}

/// A staging block that this process holds. Give it back, or post it as the source of a copy, which gives it to the daemon.
#[derive(Debug)]
pub struct StagingBlock {
    /// Its number.
    pub block: u32,
    /// Its first byte.
    pub ptr: *mut u8,
    /// Its bytes.
    pub len: u32,
    /// The same as a range of the arena: what a copy out names.
    pub range: ArenaRange,
}

// SAFETY: the holder has the block to itself, whichever thread it is in.
unsafe impl Send for StagingBlock {}

/// The producer's state, under the lock that orders the process's posts.
struct Post {
    producer: Producer<Ring>,
    /// The record being encoded.
    buffer: Vec<u8>,
}

/// A reply slot that no call uses, and the sequence number of its last call.
struct FreeSlot {
    slot: u16,
    seq: u32,
}

/// The client's end of a session. `Send` and `Sync`; dropping it ends the session.
pub struct Client {
    facts: Facts,
    shared: Arc<Shared>,
    arena: Arc<Arena>,
    bell: OwnedFd,
    reservation: Reservation,
    owner: Owner,
    post: Mutex<Post>,
    slots: Mutex<Vec<FreeSlot>>,
    slot_freed: Condvar,
    pinned: Mutex<Pinned>,
    /// Where the search for a free staging block starts.
    next_block: AtomicU32,
    _watcher: Option<Watcher>,
}

impl Client {
    /// Opens a session with the daemon that listens at `path`. Starts one small thread.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub fn connect(path: &Path, options: &ConnectOptions) -> Result<Self, ConnectError> {
        let setup = |what| move |source: io::Error| ConnectError::Setup { what, source };
        let silent = || ConnectError::Silent { path: path.to_owned(), timeout: options.timeout };
        let reservation = Reservation::new(options.va_bytes).map_err(setup("the range of device addresses"))?;
        let (va_base, va_len) = reservation.range();
        let hello = Hello {
            version: options.version,
            signatures_digest: options.signatures_digest,
            pid: std::process::id(),
            va_base,
            va_len,
            process_name: options.process_name.clone(),
        };
        let unreachable = |source| ConnectError::Unreachable { path: path.to_owned(), source };
        let socket = socket::connect(path).map_err(unreachable)?;
        socket::send(&socket, &hello.encode(), &[]).map_err(unreachable)?;
        if !socket::wait_readable(&socket, options.timeout).map_err(setup("the wait for the daemon"))? {
            return Err(silent());
        }
        let (bytes, fds) = socket::receive(&socket).map_err(|_| silent())?;
        if bytes.is_empty() {
            return Err(silent());
        }
        let welcome = match Answer::decode(&bytes) {
            Err(source) => return Err(ConnectError::Answer { path: path.to_owned(), source }),
            Ok(Answer::Refuse(r)) => {
                return Err(ConnectError::Refused { path: path.to_owned(), code: r.code, message: r.message });
            }
            Ok(Answer::Welcome(welcome)) => welcome,
        };
        let [memfd, bell] = <[OwnedFd; 2]>::try_from(fds).map_err(|fds| {
            setup("the session's descriptors")(io::Error::other(format!("{} came instead of 2", fds.len())))
        })?;
        let shared = Shared::open(&memfd, welcome.layout).map_err(setup("the shared memory"))?;
        let watcher = Watcher::start(socket, Arc::clone(&shared)).map_err(setup("the watcher thread"))?;
        let facts = Facts {
            session: welcome.session,
            epoch: welcome.epoch,
            device_index: welcome.device_index,
            hbm_bytes: welcome.hbm_bytes,
            soc_name: welcome.soc_name,
            layout: welcome.layout,
        };
        Ok(Self::new(facts, shared, bell, reservation, Some(watcher)))
    }

    pub(crate) fn new(
        facts: Facts,
        shared: Arc<Shared>,
        bell: OwnedFd,
        reservation: Reservation,
        watcher: Option<Watcher>,
    ) -> Self {
        let layout = facts.layout;
        let slots = (0..layout.reply_slots as u16).rev().map(|slot| FreeSlot { slot, seq: SEQ_NONE }).collect();
        Self {
            arena: Arc::new(Arena::new(Arc::clone(&shared))),
            bell,
            reservation,
            owner: Owner::this_process(),
            post: Mutex::new(Post { producer: Producer::new(Ring(Arc::clone(&shared))), buffer: Vec::new() }),
            slots: Mutex::new(slots),
            slot_freed: Condvar::new(),
            pinned: Mutex::new(Pinned::new(layout.staging_bytes(), layout.arena_bytes)),
            next_block: AtomicU32::new(0),
            _watcher: watcher,
            facts,
            shared,
        }
    }

    /// What the daemon said about itself and the device.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// First device address and number of addresses that this process reserved.
    pub fn va(&self) -> (u64, u64) {
        self.reservation.range()
    }

    /// The application's bytes.
    pub fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// True when the session is over; it never comes back.
    pub fn is_lost(&self) -> bool {
        !self.owner.is_this_process() || self.shared.is_lost()
    }

    /// Ends the session: whatever waits in it returns [`Lost`] now, and the daemon is told when the last owner drops the client.
    pub fn end(&self) {
        if self.owner.is_this_process() {
            self.shared.declare_lost();
        }
    }

    fn alive(&self) -> Result<(), Lost> {
        if self.is_lost() { Err(Lost) } else { Ok(()) }
    }

    /// Posts one record; waits while the ring is full.
    ///
    /// # Errors
    /// [`Lost`] when the session is over.
    ///
    /// # Panics
    /// If the record breaks a limit of the protocol. Calls whose sizes an application chooses are encoded first
    /// (`wire::op::encode_op`, which says what is wrong) and posted with [`Client::post_op`].
    pub fn post(&self, record: &Record<'_>, call: Option<&OpCall>) -> Result<(), Lost> {
        self.post_with(|out| wire::encode(record, call, out)).map(|_| ())
    }

    /// Posts an operator from the body that `wire::op::encode_op` made.
    ///
    /// # Errors
    /// [`Lost`] when the session is over.
    ///
    /// # Panics
    /// If the body is longer than `encode_op` makes them.
    pub fn post_op(&self, stream: u32, body: &[u8]) -> Result<(), Lost> {
        self.post_with(|out| wire::encode_op_record(stream, body, out)).map(|_| ())
    }

    /// Posts one record from the bytes that `wire::encode` made.
    ///
    /// # Errors
    /// [`Lost`] when the session is over.
    ///
    /// # Panics
    /// If it is longer than `wire::encode` makes them.
    pub fn post_encoded(&self, bytes: &[u8]) -> Result<(), Lost> {
        self.alive()?;
        let mut post = self.post.lock();
        self.push(&mut post.producer, bytes)?;
        self.published(post);
        Ok(())
    }

    /// Answers the ring's position behind the record.
    fn post_with(&self, encode: impl FnOnce(&mut Vec<u8>) -> Result<(), EncodeError>) -> Result<u64, Lost> {
        self.alive()?;
        let mut post = self.post.lock();
        let Post { producer, buffer } = &mut *post;
        buffer.clear();
        if let Err(e) = encode(buffer) {
            panic!("a record that breaks the protocol: {e}");
        }
        self.push(producer, buffer)?;
        let position = producer.position();
        self.published(post);
        Ok(position)
    }

    /// Pushes, waiting for room as long as the session lives.
    fn push(&self, producer: &mut Producer<Ring>, bytes: &[u8]) -> Result<(), Lost> {
        let mut try_push = || match producer.try_push(bytes) {
            Ok(()) => Ok(true),
            Err(PushError::Full) => self.alive().map(|()| false),
            Err(PushError::Corrupt { .. }) => {
                self.shared.declare_lost();
                Err(Lost)
            }
            Err(e @ PushError::TooLong { .. }) => panic!("{e}"),
        };
        if try_push()? {
            return Ok(());
        }
        let mut result = Ok(false);
        let waited = spin(|| {
            result = try_push();
            result != Ok(false)
        });
        if waited {
            return result.map(|_| ());
        }
        let room = self.shared.room();
        loop {
            let ticket = room.announce();
            if try_push()? {
                return Ok(());
            }
            room.sleep(ticket);
        }
    }

    /// After a publish: lets go of the lock and wakes the consumer if it sleeps.
    fn published(&self, post: MutexGuard<'_, Post>) {
        let must_ring = post.producer.must_ring();
        drop(post);
        if must_ring {
            ring_fd(&self.bell);
        }
    }

    /// Posts the record that `make` makes and waits for its reply.
    ///
    /// # Errors
    /// [`Lost`] when the session is over, also while waiting.
    ///
    /// # Panics
    /// Like [`Client::post`].
    pub fn call<'a>(&self, make: impl FnOnce(ReplyTo) -> Record<'a>) -> Result<Reply, Lost> {
        self.call_with(|to, out| wire::encode(&make(to), None, out)).map(|(reply, _)| reply)
    }

    /// As [`Client::call`], and the ring's position right behind the record ([`Client::position`]).
    ///
    /// # Errors
    /// Like [`Client::call`].
    ///
    /// # Panics
    /// Like [`Client::post`].
    pub fn call_at<'a>(&self, make: impl FnOnce(ReplyTo) -> Record<'a>) -> Result<(Reply, u64), Lost> {
        self.call_with(|to, out| wire::encode(&make(to), None, out))
    }

    /// How much this process has posted: changes with every record.
    pub fn position(&self) -> u64 {
        wire::ring::Memory::tail(&Ring(Arc::clone(&self.shared))).load(Ordering::Acquire)
    }

    /// Posts an operator from the body that `wire::op::encode_op` made and waits for its completion.
    ///
    /// # Errors
    /// [`Lost`] when the session is over, also while waiting.
    ///
    /// # Panics
    /// Like [`Client::post_op`].
    pub fn call_op(&self, stream: u32, body: &[u8]) -> Result<Reply, Lost> {
        self.call_with(|to, out| wire::encode_answered_op(stream, to, body, out)).map(|(reply, _)| reply)
    }

    fn call_with(
        &self,
        encode: impl FnOnce(ReplyTo, &mut Vec<u8>) -> Result<(), EncodeError>,
    ) -> Result<(Reply, u64), Lost> {
        let mut free = self.take_slot()?;
        free.seq = match free.seq.wrapping_add(1) {
            SEQ_LOST => SEQ_NONE + 1,
            seq => seq,
        };
        let to = ReplyTo { slot: free.slot, seq: free.seq };
        let position = self.post_with(|out| encode(to, out))?;
        self.wait_reply(to)?;
        let body = self.shared.slot_body(to.slot);
        let reply = Reply::load(|i| body[i].load(Ordering::Relaxed));
        self.slots.lock().push(free);
        self.slot_freed.notify_one();
        Ok((reply, position))
    }

    /// A free reply slot; waits while as many calls as there are slots wait.
    fn take_slot(&self) -> Result<FreeSlot, Lost> {
        self.alive()?;
        let mut slots = self.slots.lock();
        loop {
            if let Some(slot) = slots.pop() {
                return Ok(slot);
            }
            // Slots of calls that end with `Lost` do not come back, so this cannot wait for a notification only.
            self.slot_freed.wait_for(&mut slots, Duration::from_millis(5));
            self.alive()?;
        }
    }

    fn wait_reply(&self, to: ReplyTo) -> Result<(), Lost> {
        let (state, sleeping) = self.shared.slot_state(to.slot);
        if spin(|| state.load(Ordering::Acquire) == to.seq) {
            return Ok(());
        }
        sleeping.store(1, Ordering::Relaxed);
        // Pairs with the fence in `Replier::reply`.
        fence(Ordering::SeqCst);
        loop {
            let seq = state.load(Ordering::Acquire);
            if seq == to.seq {
                sleeping.store(0, Ordering::Relaxed);
                return Ok(());
            }
            self.alive()?;
            sleep_while(state, seq);
        }
    }

    /// Takes a staging block; waits while all are in use.
    ///
    /// # Errors
    /// [`Lost`] when the session is over.
    pub fn staging_take(&self) -> Result<StagingBlock, Lost> {
        self.alive()?;
        if let Some(block) = self.find_staging() {
            return Ok(block);
        }
        let mut found = None;
        spin(|| {
            found = self.find_staging();
            found.is_some()
        });
        let gate = self.shared.staging();
        while found.is_none() {
            let ticket = gate.announce();
            found = self.find_staging();
            if found.is_none() {
                self.alive()?;
                gate.sleep(ticket);
            }
        }
        found.ok_or(Lost)
    }

    fn find_staging(&self) -> Option<StagingBlock> {
        let states = self.shared.staging_states();
        let start = self.next_block.load(Ordering::Relaxed) as usize;
        for i in 0..states.len() {
            let block = (start + i) % states.len();
            let state = &states[block];
            // A plain look first: a failing exchange would still take the cache line.
            if state.load(Ordering::Relaxed) == BLOCK_FREE
                && state.compare_exchange(BLOCK_FREE, BLOCK_TAKEN, Ordering::Acquire, Ordering::Relaxed).is_ok()
            {
                let block = block as u32;
                self.next_block.store(block + 1, Ordering::Relaxed);
                let len = self.facts.layout.staging_block_bytes;
                let range = self.arena.staging_range(block, len)?;
                return Some(StagingBlock { block, ptr: self.arena.ptr(range)?, len, range });
            }
        }
        None
    }

    /// Gives back a block that was not posted as the source of a copy.
    pub fn staging_give_back(&self, block: StagingBlock) {
        if self.owner.is_this_process() {
            self.shared.release_staging(block.block);
        }
    }

    /// `len` bytes of pinned host memory, aligned to 256; `None` when the arena has no room.
    pub fn pinned_alloc(&self, len: u64) -> Option<*mut u8> {
        if !self.owner.is_this_process() {
            return None;
        }
        let mut pinned = self.pinned.lock();
        let offset = pinned.alloc(len)?;
        self.shared.arena(offset, len)
    }

    /// Frees pinned memory; false if `ptr` is not the start of a live allocation.
    pub fn pinned_free(&self, ptr: *const u8) -> bool {
        self.offset_of(ptr).is_some_and(|offset| self.pinned.lock().free(offset))
    }

    /// The arena range of `len` bytes at `ptr`, if they lie in one pinned allocation. How copies are told apart: no lock
    /// unless the address is in the arena.
    pub fn pinned_range(&self, ptr: *const u8, len: u64) -> Option<ArenaRange> {
        let offset = self.offset_of(ptr)?;
        self.pinned.lock().contains(offset, len).then_some(ArenaRange { offset, len })
    }

    fn offset_of(&self, ptr: *const u8) -> Option<u64> {
        let base = self.shared.arena(0, 0)? as u64;
        let offset = (ptr as u64).checked_sub(base)?;
        (offset < self.facts.layout.arena_bytes && self.owner.is_this_process()).then_some(offset)
    }
}

#[cfg(test)]
impl Client {
    /// The ring's words, for tests that scribble over them.
    pub(crate) fn ring(&self) -> Ring {
        Ring(Arc::clone(&self.shared))
    }

    /// Makes `seq` the last sequence number of every slot.
    pub(crate) fn set_seq(&self, seq: u32) {
        self.slots.lock().iter_mut().for_each(|slot| slot.seq = seq);
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("facts", &self.facts).finish_non_exhaustive()
    }
}

/// This process's name.
pub(crate) fn own_name() -> String {
    std::fs::read_to_string("/proc/self/comm").map_or_else(|_| "unknown".into(), |name| name.trim_end().to_owned())
}

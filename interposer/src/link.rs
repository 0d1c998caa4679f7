//! One session with one device: through a daemon, or with a device hosted by this process.
//!
//! Wraps [`session::Client`] with what the C ABI needs on top: AscendCL codes for everything that can go wrong, ids for
//! streams and events, and a copy of the allocation list, so that a wrong address or a double free is an error at the call
//! that makes it, with text, instead of at the next synchronising one.
//!
//! **Invariant:** a lost session stays lost: every later call answers [`DEVICE_LOST`] at once. `aclrtResetDevice` forgets it,
//! so that the next `aclrtSetDevice` opens a fresh one; memory, streams and events of the old one are gone.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use acl_abi::values as acl;
use session::{Client, ConnectError, ConnectOptions, Lost};
use wire::control::RefuseCode;
use wire::{Record, ReplyTo};

use crate::config::{Config, Mode};
use crate::direct::Direct;
use crate::error::{DEVICE_LOST, Failure};
use crate::fetch::{FETCH_BYTES_MAX, Fetched, Plan, Span};
use crate::graph::Graphs;
use crate::handle::lock;
use crate::hints::Listener;
use crate::host_calls::Bridge;
use crate::log::log;
use crate::space::Space;
use crate::stream::{Marks, Stream};
use crate::trips::Trips;

/// A session.
pub struct Link {
    /// Device number in this process.
    pub device: u32,
    /// Hint listener of this process, with the first session. Declared first: it uses the client.
    _hints: Option<Listener>,
    /// The client's end. Declared before `_direct`, which ends the hosted device.
    pub client: Arc<Client>,
    /// The other end, in direct mode.
    _direct: Option<Direct>,
    next_stream: AtomicU32,
    next_event: AtomicU32,
    next_graph: AtomicU32,
    next_comm: AtomicU32,
    /// Graphs, and captures under way.
    pub(crate) graphs: Mutex<Graphs>,
    /// Something is captured or updated.
    pub(crate) capturing: AtomicBool,
    /// What this process has on the device.
    space: Mutex<Space>,
    default_marks: Arc<Marks>,
    /// Calls of its streams to this process.
    pub bridge: Bridge,
    /// What the last synchronisation fetched.
    fetched: Mutex<Fetched>,
    /// Calls that waited for an answer.
    trips: Trips,
    /// Copies that needed none.
    copies_fetched: AtomicU64,
    /// What the daemon is called in messages.
    place: String,
}

/// Checks that there is a socket at `path`, without connecting.
///
/// # Errors
/// `ACL_ERROR_RT_NO_DEVICE`, with the path and the command that starts a daemon.
pub fn check_socket(path: &Path) -> Result<(), Failure> {
    use std::os::unix::fs::FileTypeExt as _;
    let reason = match std::fs::metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => return Ok(()),
        Ok(_) => "it is not a socket".to_owned(),
        Err(error) => error.to_string(),
    };
    Err(no_daemon(path, &reason))
}

fn no_daemon(path: &Path, reason: &str) -> Failure {
    let text = format!(
        "no daemon at {} ({reason}); start one with `vnpu-daemon --socket {} --device Ascend910B3:functional`, or run the \
         application with `vnpu run --direct Ascend910B3:functional`",
        path.display(),
        path.display()
    );
    Failure::new(acl::ACL_ERROR_RT_NO_DEVICE, text)
}

fn refused(error: ConnectError) -> Failure {
    match error {
        ConnectError::Unreachable { path, source } => no_daemon(&path, &source.to_string()),
        ConnectError::Refused { code: RefuseCode::Version | RefuseCode::Signatures, .. } => {
            Failure::new(acl::ACL_ERROR_RT_DEV_SETUP_ERROR, error.to_string())
        }
        ConnectError::Refused { .. } => Failure::new(acl::ACL_ERROR_RT_RESOURCE_ALLOC_FAIL, error.to_string()),
        ConnectError::Setup { ref source, .. } => {
            Failure::new(acl::ACL_ERROR_RT_RESOURCE_ALLOC_FAIL, format!("{error}: {source}"))
        }
        _ => Failure::new(acl::ACL_ERROR_RT_DEV_SETUP_ERROR, error.to_string()),
    }
}

impl Link {
    /// Opens the session with device number `device`.
    ///
    /// # Errors
    /// No daemon, a daemon of another version, or a device that cannot be hosted; the text says what to do.
    pub fn open(device: u32, config: &Config) -> Result<Self, Failure> {
        let (client, direct, place) = match &config.mode {
            Mode::Daemon(sockets) => {
                let path = &sockets[device as usize];
                let client = Client::connect(path, &ConnectOptions::default()).map_err(refused)?;
                (client, None, format!("the daemon at {}", path.display()))
            }
            Mode::Direct { specs, policy } => {
                let (client, direct) = Direct::host(device, &specs[device as usize], policy)?;
                (client, Some(direct), "the device hosted by this process".to_owned())
            }
        };
        let client = Arc::new(client);
        let bridge = Bridge::new(client.clone());
        let facts = client.facts();
        log!(Info, "session {} with {place}: {}, {} bytes", facts.session, facts.soc_name, facts.hbm_bytes);
        let hints = match (&config.hints, device) {
            (Some(path), 0) => Listener::start(path, client.clone()),
            _ => None,
        };
        Ok(Self {
            device,
            client,
            _direct: direct,
            _hints: hints,
            next_stream: AtomicU32::new(1),
            next_event: AtomicU32::new(1),
            next_graph: AtomicU32::new(1),
            next_comm: AtomicU32::new(1),
            graphs: Mutex::default(),
            capturing: AtomicBool::new(false),
            space: Mutex::default(),
            default_marks: Arc::default(),
            bridge,
            fetched: Mutex::default(),
            trips: Trips::default(),
            copies_fetched: AtomicU64::new(0),
            place,
        })
    }

    /// SoC name.
    pub fn soc_name(&self) -> &str {
        &self.client.facts().soc_name
    }

    /// True once the session is over.
    pub fn is_lost(&self) -> bool {
        self.client.is_lost()
    }

    /// What a lost session answers.
    pub fn lost(&self, _: Lost) -> Failure {
        let text = format!(
            "device {} is lost: {} has ended or closed this session, and memory, streams and events are gone with it; call \
             aclrtResetDevice and aclrtSetDevice to start over",
            self.device, self.place
        );
        Failure::new(DEVICE_LOST, text)
    }

    /// # Errors
    /// Device lost.
    pub fn check_alive(&self) -> Result<(), Failure> {
        if self.is_lost() { Err(self.lost(Lost)) } else { Ok(()) }
    }

    /// Posts a record that needs no answer.
    ///
    /// # Errors
    /// Device lost.
    pub fn post(&self, record: &Record<'_>) -> Result<(), Failure> {
        self.client.post(record, None).map_err(|l| self.lost(l))
    }

    /// Posts an operator by its encoded body.
    ///
    /// # Errors
    /// Device lost.
    pub fn post_op(&self, stream: u32, body: &[u8]) -> Result<(), Failure> {
        self.client.post_op(stream, body).map_err(|l| self.lost(l))
    }

    /// Posts an operator by its encoded body and waits for its completion; the extent that it found, if the device knows one.
    ///
    /// # Errors
    /// Device lost; what the daemon answered.
    pub fn call_op(&self, stream: u32, body: &[u8]) -> Result<Option<u64>, Failure> {
        self.trips.count_operator();
        let reply = self.client.call_op(stream, body).map_err(|l| self.lost(l))?;
        match (reply.status, reply.payload) {
            (0, [extent, known, ..]) => Ok((known != 0).then_some(extent)),
            (code, _) => Err(Failure::new(code, reply.text)),
        }
    }

    /// Posts a record and waits for its answer.
    ///
    /// # Errors
    /// Device lost; what the daemon answered.
    pub fn call<'a>(&self, make: impl FnOnce(ReplyTo) -> Record<'a>) -> Result<[u64; 4], Failure> {
        let counted = |reply| {
            let record = make(reply);
            self.trips.count(&record);
            record
        };
        let reply = self.client.call(counted).map_err(|l| self.lost(l))?;
        match reply.status {
            0 => Ok(reply.payload),
            code => Err(Failure::new(code, reply.text)),
        }
    }

    /// Waits until everything posted to a stream is complete, and fetches what the next copy will probably read
    /// ([`crate::fetch`]).
    ///
    /// # Errors
    /// Device lost; the first error of the stream's operators.
    pub fn synchronise(&self, stream: u32, marks: &Arc<Marks>) -> Result<(), Failure> {
        // One thread at a time fetches: the others wait for their stream without.
        let Ok(mut fetched) = self.fetched.try_lock() else {
            return self.call(|reply| Record::StreamSync { stream, reply }).map(|_| ());
        };
        let (plan, span) = fetched.plan(marks, || {
            let len = FETCH_BYTES_MAX;
            self.client.pinned_alloc(len).and_then(|room| self.client.pinned_range(room, len))
        });
        let counted = |reply| {
            let record = match plan {
                Plan::Plain => Record::StreamSync { stream, reply },
                Plan::Fetch(Span { addr, .. }, dst) => Record::StreamFetch { stream, dst, src: addr, reply },
            };
            self.trips.count(&record);
            record
        };
        let (reply, position) = self.client.call_at(counted).map_err(|l| self.lost(l))?;
        match reply.status {
            0 => {
                let copied = plan != Plan::Plain && reply.payload[0] != 0;
                fetched.answered(marks, span, position, copied);
                Ok(())
            }
            code => Err(Failure::new(code, reply.text)),
        }
    }

    /// Calls that waited for an answer, and copies that the answer to another call carried.
    pub fn round_trips(&self) -> [u64; 2] {
        [self.trips.total(), self.copies_fetched.load(Ordering::Relaxed)]
    }

    /// Shows `take` the `len` bytes at device address `addr` if the last synchronisation fetched them and they cannot have
    /// changed since; false if not.
    pub fn take_fetched(&self, addr: u64, len: u64, take: impl FnOnce(*const u8)) -> bool {
        let Ok(mut fetched) = self.fetched.try_lock() else { return false };
        let found = fetched.find(addr, len, self.client.position());
        let Some(bytes) = found.and_then(|range| self.client.arena().ptr(range)) else { return false };
        self.copies_fetched.fetch_add(1, Ordering::Relaxed);
        take(bytes);
        true
    }

    /// A number for a new stream.
    ///
    /// # Errors
    /// After 2³² − 1 streams: numbers are never used again.
    pub fn next_stream(&self) -> Result<u32, Failure> {
        let next = |n: u32| n.checked_add(1);
        self.next_stream.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).map_err(|_| {
            Failure::new(acl::ACL_ERROR_RT_NO_STREAM_RESOURCE, "this session has used up its stream numbers")
        })
    }

    /// A number for a new graph.
    ///
    /// # Errors
    /// After 2³² − 1 graphs: numbers are never used again.
    pub fn next_graph(&self) -> Result<u32, Failure> {
        let next = |n: u32| n.checked_add(1);
        self.next_graph.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).map_err(|_| {
            Failure::new(acl::ACL_ERROR_RT_NO_MODEL_RESOURCE, "this session has used up its graph numbers")
        })
    }

    /// A number for a new communicator.
    ///
    /// # Errors
    /// After 2³² − 1 communicators: numbers are never used again.
    pub fn next_comm(&self) -> Result<u32, Failure> {
        let next = |n: u32| n.checked_add(1);
        self.next_comm.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).map_err(|_| {
            Failure::new(acl::ACL_ERROR_RT_RESOURCE_ALLOC_FAIL, "this session has used up its communicator numbers")
        })
    }

    /// A number for a new event.
    ///
    /// # Errors
    /// After 2³² − 1 events: numbers are never used again.
    pub fn next_event(&self) -> Result<u32, Failure> {
        let next = |n: u32| n.checked_add(1);
        self.next_event.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).map_err(|_| {
            Failure::new(acl::ACL_ERROR_RT_NO_EVENT_RESOURCE, "this session has used up its event numbers")
        })
    }

    /// The default stream.
    pub fn default_stream(self: &Arc<Self>) -> Stream {
        Stream { link: self.clone(), id: 0, priority: 0, flags: 0, marks: self.default_marks.clone() }
    }

    /// True if `addr` lies in the range of this session's device addresses, allocated or not.
    pub fn owns(&self, addr: u64) -> bool {
        let (base, len) = self.client.va();
        addr.wrapping_sub(base) < len
    }

    /// Allocates device memory.
    ///
    /// # Errors
    /// 207001 when there is none; device lost.
    pub fn malloc(&self, size: u64) -> Result<u64, Failure> {
        let [addr, ..] = self.call(|reply| Record::Malloc { size, reply })?;
        lock(&self.space).allocated(addr, size);
        Ok(addr)
    }

    /// Frees device memory.
    ///
    /// # Errors
    /// Anything but the start of a live allocation; device lost.
    pub fn free(&self, addr: u64) -> Result<(), Failure> {
        if !lock(&self.space).freed(addr) {
            let reserved = lock(&self.space).is_reservation(addr);
            let text = match self.allocation_of(addr) {
                _ if reserved => format!("{addr:#x} is a reserved range; aclrtReleaseMemAddress gives it back"),
                Some((start, size)) => {
                    format!("{addr:#x} is inside the {size}-byte allocation at {start:#x}, not its start")
                }
                None => format!("{addr:#x} is no live allocation (freed twice, or never allocated)"),
            };
            return Err(Failure::invalid(format!("parameter devPtr: {text}")));
        }
        self.call(|reply| Record::Free { addr, reply }).map(|_| ())
    }

    /// Start and size of the live allocation, or of the mapped stretch of a reserved range, that holds `addr`.
    pub fn allocation_of(&self, addr: u64) -> Option<(u64, u64)> {
        lock(&self.space).holder(addr)
    }

    /// Notes memory of another process that was imported.
    pub fn imported(&self, addr: u64, size: u64) {
        lock(&self.space).allocated(addr, size);
    }

    /// Reserves addresses.
    ///
    /// # Errors
    /// 207001 when there are none left; device lost.
    pub fn reserve(&self, size: u64) -> Result<u64, Failure> {
        let [addr, ..] = self.call(|reply| Record::Reserve { size, reply })?;
        lock(&self.space).reserved(addr, size);
        Ok(addr)
    }

    /// Gives reserved addresses back.
    ///
    /// # Errors
    /// None begin there, something is mapped in them; device lost.
    pub fn release(&self, addr: u64) -> Result<(), Failure> {
        self.call(|reply| Record::Release { addr, reply })?;
        lock(&self.space).released(addr);
        Ok(())
    }

    /// Takes physical memory; its number.
    ///
    /// # Errors
    /// 207001 when there is none; a size that is no multiple of 2 MiB; device lost.
    pub fn physical_alloc(&self, size: u64) -> Result<u64, Failure> {
        Ok(self.call(|reply| Record::PhysicalAlloc { size, reply })?[0])
    }

    /// Gives physical memory back.
    ///
    /// # Errors
    /// Device lost.
    pub fn physical_free(&self, handle: u64) -> Result<(), Failure> {
        self.call(|reply| Record::PhysicalFree { handle, reply }).map(|_| ())
    }

    /// Maps physical memory at reserved addresses.
    ///
    /// # Errors
    /// What does not fit; device lost.
    pub fn map(&self, addr: u64, size: u64, offset: u64, handle: u64) -> Result<(), Failure> {
        self.call(|reply| Record::Map { addr, size, offset, handle, reply })?;
        lock(&self.space).mapped(addr, size);
        Ok(())
    }

    /// Undoes the mapping at `addr`.
    ///
    /// # Errors
    /// None begins there; device lost.
    pub fn unmap(&self, addr: u64) -> Result<(), Failure> {
        self.call(|reply| Record::Unmap { addr, reply })?;
        lock(&self.space).unmapped(addr);
        Ok(())
    }

    /// Checks that `len` bytes at `addr` lie in one live allocation.
    ///
    /// # Errors
    /// Names the parameter, the address and the allocation.
    pub fn check_range(&self, parameter: &str, addr: u64, len: u64) -> Result<(), Failure> {
        let text = match self.allocation_of(addr) {
            // The daemon rounds sizes up and has the last word on reads past the end.
            Some((start, size)) if (addr - start).checked_add(len).is_some_and(|end| end <= rounded(size)) => {
                return Ok(());
            }
            Some((start, size)) => {
                format!("{len} bytes at {addr:#x} run past the {size}-byte allocation at {start:#x}")
            }
            None => lock(&self.space).why_not(addr),
        };
        Err(Failure::invalid(format!("parameter {parameter}: {text}")))
    }

    /// Free and total device memory in bytes.
    ///
    /// # Errors
    /// Device lost.
    pub fn memory(&self) -> Result<(u64, u64), Failure> {
        let [free, total, ..] = self.call(|reply| Record::MemInfo { reply })?;
        Ok((free, total))
    }

    /// Bytes of device memory that this session holds, and the most it held at once.
    ///
    /// # Errors
    /// Device lost.
    pub fn memory_held(&self) -> Result<(u64, u64), Failure> {
        let [_, _, held, peak] = self.call(|reply| Record::MemInfo { reply })?;
        Ok((held, peak))
    }
}

/// Bytes that an allocation of `size` really has: CANN pads by 32 and aligns, and clients copy whole padded tensors.
fn rounded(size: u64) -> u64 {
    size.saturating_add(511) / 512 * 512
}

impl Drop for Link {
    fn drop(&mut self) {
        // The bridge's thread has the client, too: it ends with the session.
        self.client.end();
        let [_, fetched] = self.round_trips();
        let session = self.client.facts().session;
        log!(Info, "session {session} with {} closes: {}, {fetched} copies fetched with them", self.place, self.trips);
    }
}

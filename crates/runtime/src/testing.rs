//! A hostile client against the real daemon side, for fuzz targets and the replay of their corpora.
//!
//! [`check_session`] reads its input as a script: records valid and not, words of the shared memory rewritten between two reads
//! of the daemon or, by a second thread, during them. The device computes (`functional`, tiny), and a second session, an honest
//! one, holds memory on it all the while. What must hold whatever the script does: nothing panics, what the client can make the
//! daemon hold stays inside its [`Limits`], everything is free again once it is gone, and the neighbour's bytes are what they
//! were and its operators right.
//!
//! The device and the neighbour outlive a script: a script that leaves something behind breaks a later one, if not itself.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use acl_abi::{Arg, DataType, OpCall, Scalar, TensorDesc, ops};
use device::{DeviceSpec, Emulated};
use sched::{Nanos, PolicyConfig, SessionParams};
use session::testing::{Hostile, Words};
use session::{Client, DeviceFacts, Doorbell, Layout, ServerSession, local};
use wire::testing::Source;
use wire::{ArenaRange, HostSource, Record, ReplyTo};

use crate::{Core, Limits};

const SPEC: &str = "Ascend910B3:functional:hbm=0.0625";
/// As few as a script can hope to reach.
const LIMITS: Limits = Limits {
    sessions_max: 4,
    session_memory_bytes_max: 16 << 20,
    blocks_max: 64,
    reservations_max: 16,
    streams_max: 16,
    events_max: 64,
    queued_items_max: 256,
    requests_max: 64,
    drain_records_max: 32,
};
const LAYOUT: Layout = Layout {
    ring_bytes: 64 << 10,
    arena_bytes: 1 << 20,
    staging_block_bytes: 16 << 10,
    staging_blocks: 8,
    reply_slots: 256,
};
/// Steps of one script.
const STEPS_MAX: usize = 512;
/// For what is in flight when the client goes; an operator takes milliseconds here, an hour would be a way to stop the device.
const SETTLE_MAX: Duration = Duration::from_secs(20);
/// Memory in front of the neighbour's: a few of a guest's blocks.
const HOLE_BYTES: u64 = 8 << 10;
/// Elements of the neighbour's tensors.
const ELEMENTS: usize = 64;

thread_local! {
    static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
}

/// Runs a script; see the module.
///
/// # Panics
/// If a promise is broken.
pub fn check_session(script: &[u8]) {
    WORLD.with_borrow_mut(|world| {
        // A script that broke a promise leaves no world to the next one.
        let mut present = world.take().unwrap_or_else(World::new);
        present.run(script);
        *world = Some(present);
    });
}

/// A device, its state machine, and a neighbour.
struct World {
    core: Core,
    now: Nanos,
    doorbell: Doorbell,
    neighbour: Neighbour,
    /// Used while nobody but the neighbour is there, bytes.
    used_bytes: u64,
}

/// An honest client: two tensors and their sum.
struct Neighbour {
    client: Client,
    server: ServerSession,
    host: ArenaRange,
    base: u64,
}

/// The hostile client and the daemon's end of its session.
struct Guest {
    server: ServerSession,
    hostile: Hostile,
    base: u64,
    open: bool,
    _client: Client,
}

impl World {
    fn new() -> Self {
        let doorbell = Doorbell::new().expect("an eventfd");
        let bell = doorbell.clone();
        let spec: DeviceSpec = SPEC.parse().expect("a spec");
        let device = Emulated::new(spec.emulated(Arc::new(move || bell.ring()))).expect("a device");
        let mut core = Core::new(Box::new(device), PolicyConfig::default(), LIMITS).expect("a profile");
        let (client, server) = session(&doorbell);
        core.attach(&server, crate::DEFAULT_TENANT, SessionParams::default()).expect("room");
        let bytes = (ELEMENTS * 4) as u64;
        let pinned = client.pinned_alloc(bytes).expect("an empty arena");
        let host = client.pinned_range(pinned, bytes).expect("just allocated");
        let base = client.va().0;
        let neighbour = Neighbour { client, server, host, base };
        let mut world = Self { core, now: 1000, doorbell, neighbour, used_bytes: 0 };
        world.settle_in();
        world.used_bytes = world.core.device().memory().total - world.core.device().memory().free;
        world
    }

    /// The neighbour allocates and fills its memory: `a[i] = i`, `b[i] = 2 i`. Before it lies a hole, which guests get: what writes
    /// past the end of a block there hits the neighbour.
    fn settle_in(&mut self) {
        let reply = ReplyTo { slot: 0, seq: 1 };
        let bytes = (ELEMENTS * 4) as u64;
        self.honest(&Record::Malloc { size: HOLE_BYTES, reply }, None);
        for block in 0..3 {
            self.honest(&Record::Malloc { size: bytes, reply }, None);
            let values: Vec<u8> = (0..ELEMENTS).flat_map(|i| ((i * block) as f32).to_le_bytes()).collect();
            let source = HostSource::Inline(&values);
            let dst = self.neighbour.block(block);
            self.honest(&Record::CopyIn { dst, source, stream: None, reply: Some(reply) }, None);
        }
        self.honest(&Record::Free { addr: self.neighbour.base, reply }, None);
    }

    /// A record of the neighbour, taken in at once.
    fn honest(&mut self, record: &Record<'_>, call: Option<&OpCall>) {
        self.neighbour.client.post(record, call).expect("the neighbour's session lives");
        let Self { core, now, neighbour, .. } = self;
        let id = neighbour.server.id();
        let taken = neighbour.server.drain(1, &mut |_, record, call| core.record(*now, id, record, call));
        assert_eq!(taken, Ok(1), "the neighbour's records are taken");
        self.settle();
    }

    /// The neighbour's sum is right, and so are its operands after it.
    fn check_neighbour(&mut self) {
        let (a, b, out) = (self.neighbour.block(1), self.neighbour.block(2), self.neighbour.block(0));
        let tensor = |addr| Some(TensorDesc::contiguous(addr, DataType::F32, &[ELEMENTS as i64]));
        let mut add = OpCall::new(ops::aclnnAdd);
        add.push_tensor(tensor(a)).push_tensor(tensor(b));
        add.push(Arg::Scalar(Scalar { dtype: DataType::F32, bits: u64::from(1f32.to_bits()) }));
        add.push_tensor(tensor(out));
        self.honest(&Record::Op { stream: 0 }, Some(&add));
        for (addr, times) in [(a, 1), (b, 2), (out, 3)] {
            let reply = Some(ReplyTo { slot: 0, seq: 1 });
            self.honest(&Record::CopyOut { dst: self.neighbour.host, src: addr, stream: None, reply }, None);
            let host = self.neighbour.client.arena().ptr(self.neighbour.host).expect("allocated");
            for i in 0..ELEMENTS {
                // SAFETY: `host` has that many floats, and the copy into them is over.
                let value = unsafe { host.cast::<f32>().add(i).read_unaligned() };
                assert_eq!(value, (i * times) as f32, "element {i} of the neighbour's tensor");
            }
        }
    }

    /// Lets time pass until the device has nothing more to do.
    fn settle(&mut self) {
        let since = Instant::now();
        loop {
            self.core.advance(self.now);
            let idle = self.core.device().next_completion().is_none();
            if idle && self.core.in_flight == 0 {
                return;
            }
            assert!(
                since.elapsed() < SETTLE_MAX,
                "the device is busy for {SETTLE_MAX:?} with {} commands",
                self.core.in_flight
            );
            self.now += 1_000_000;
            self.doorbell.wait(Some(Duration::from_millis(1)));
        }
    }

    fn run(&mut self, script: &[u8]) {
        let (client, server) = session(&self.doorbell);
        self.core.attach(&server, crate::DEFAULT_TENANT, SessionParams::default()).expect("room");
        let (hostile, base) = (Hostile::of(&client), client.va().0);
        let mut guest = Guest { server, hostile, base, open: true, _client: client };
        let mut source = Source::near(guest.base, script);
        let beside = source.u8();
        if beside < 240 {
            self.steps(&mut guest, &mut source);
        } else {
            // A second writer, as another thread of the client's process is.
            let (words, done) = (guest.hostile.words(), Arc::new(AtomicBool::new(false)));
            let (seed, end) = (source.u64(), Arc::clone(&done));
            let writer = std::thread::spawn(move || scribble(&words, seed, &end));
            self.steps(&mut guest, &mut source);
            done.store(true, Ordering::Relaxed);
            writer.join().expect("the writer only writes");
        }
        self.check_bounds();
        self.core.detach(self.now, guest.server.id());
        drop(guest);
        self.settle();
        // Lets the device take in what was given back.
        self.core.advance(self.now);
        let memory = self.core.device().memory();
        assert_eq!(memory.total - memory.free, self.used_bytes, "a session that is gone holds nothing");
        self.check_neighbour();
    }

    fn steps(&mut self, guest: &mut Guest, source: &mut Source<'_>) {
        for _ in 0..STEPS_MAX {
            if source.is_empty() || !guest.open {
                break;
            }
            match source.u8() {
                0..=159 => {
                    let (record, call) = source.record();
                    push(guest, &record, call.as_ref());
                }
                160..=191 => {
                    let stream = u32::from(source.u8() % 4);
                    let call = alike(source);
                    push(guest, &Record::Op { stream }, Some(&call));
                }
                192..=199 => {
                    let len = source.below(512);
                    guest.hostile.push(source.bytes(len));
                }
                200..=207 => {
                    let mut bytes = encoded(source);
                    let (at, value) = (source.below(256), source.u8());
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte = value;
                    }
                    guest.hostile.push(&bytes);
                }
                208..=239 => self.turn(guest),
                240..=244 => self.now += Nanos::from(source.u32() % 10_000_000),
                245..=248 => guest.hostile.words().store(source.below(65_536), source.u64()),
                249..=251 => guest.hostile.words().move_tail(source.integer()),
                _ => guest.hostile.words().store_at_head(source.below(16), source.integer() as u64),
            }
        }
        self.turn(guest);
    }

    /// As a turn of the dispatch thread: takes what is there, ends a session that broke the protocol.
    fn turn(&mut self, guest: &mut Guest) {
        let (core, now, id) = (&mut self.core, self.now, guest.server.id());
        core.advance(now);
        let room = core.room(id);
        let taken = guest.server.drain_while(room, &mut |_, record, call| {
            core.record(now, id, record, call);
            core.is_open(id)
        });
        if taken.is_err() {
            core.detach(now, id);
            guest.open = false;
        }
        core.advance(now);
    }

    /// What the client made the daemon hold is inside its limits.
    fn check_bounds(&self) {
        let snapshot = self.core.snapshot(Default::default(), 0);
        for session in &snapshot.sessions {
            assert!(session.memory_bytes <= LIMITS.session_memory_bytes_max, "{session:?}");
            // A record may bring several items; a launch of a graph stops at the bound.
            assert!(session.items <= 2 * LIMITS.queued_items_max, "{session:?}");
        }
        assert!(snapshot.scheduling.requests <= LIMITS.requests_max * LIMITS.sessions_max);
    }
}

impl Neighbour {
    /// Address of one of its blocks, which are handed out in order, a page each and one between.
    fn block(&self, index: usize) -> u64 {
        self.base + HOLE_BYTES + 4096 + 8192 * index as u64
    }
}

fn session(doorbell: &Doorbell) -> (Client, ServerSession) {
    let facts = DeviceFacts { soc_name: "Ascend910B3".into(), hbm_bytes: 0, device_index: 0, epoch: 1 };
    local(LAYOUT, doorbell.clone(), facts).expect("shared memory")
}

fn push(guest: &mut Guest, record: &Record<'_>, call: Option<&OpCall>) {
    let mut bytes = Vec::new();
    wire::encode(record, call, &mut bytes).expect("a valid record");
    guest.hostile.push(&bytes);
}

fn encoded(source: &mut Source<'_>) -> Vec<u8> {
    let (record, call) = source.record();
    let mut bytes = Vec::new();
    wire::encode(&record, call.as_ref(), &mut bytes).expect("a valid record");
    bytes
}

/// A call whose tensors have one shape and type, as most operators want: one that is computed.
fn alike(source: &mut Source<'_>) -> OpCall {
    let mut call = source.call();
    let ndim = source.below(4);
    let dims: Vec<i64> = (0..ndim).map(|_| 1 + source.below(9) as i64).collect();
    let dtype = [DataType::F32, DataType::F16, DataType::BF16, DataType::I64][source.below(4)];
    for tensor in &mut call.tensors {
        *tensor = TensorDesc::contiguous(tensor.addr, dtype, &dims);
    }
    call
}

/// Writes words that matter until told to end.
fn scribble(words: &Words, seed: u64, done: &AtomicBool) {
    let mut state = seed | 1;
    while !done.load(Ordering::Relaxed) {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let value = state >> 40;
        match state % 8 {
            0 => words.move_tail((value % 64) as i64 - 8),
            1 => words.store(value as usize % words.len(), state),
            _ => words.store_at_head(value as usize % 32, (state >> 8) % 512),
        }
        std::thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn corpus_of_hostile_sessions_replays() {
        let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/seeds/session");
        let replayed = wire::testing::replay(seeds.as_ref(), check_session);
        assert!(replayed >= 20, "{replayed} seeds");
    }
}

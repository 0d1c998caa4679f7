//! Whatever two clients do, in whatever order: nothing panics, every call is answered, every byte comes back.

mod common;

use acl_abi::{OpCall, OpId};
use common::{Bench, add, matmul};
use proptest::prelude::*;
use wire::{Hint, HostSource, Record, ReplyTo};

const PAGE: u64 = 2 << 20;

#[derive(Clone, Debug)]
enum Step {
    Malloc(u64),
    Free(usize),
    Op { stream: u32, operands: [usize; 3], elements: i64, large: bool },
    Copy { from: usize, to: usize, len: u64, stream: Option<u32> },
    In { to: usize, len: usize, stream: Option<u32> },
    StreamCreate(u32),
    StreamDestroy(u32),
    EventCreate(u32),
    EventDestroy(u32),
    Event { event: u32, stream: u32, what: u8 },
    Sync { what: u8, id: u32 },
    Reserve(u64),
    Release(usize),
    Physical(u64),
    PhysicalFree(u64),
    Map { reservation: usize, page: u64, pages: u64, handle: u64 },
    Unmap { reservation: usize, page: u64 },
    MappedOp { reservation: usize, page: u64, elements: i64 },
    Hint(u64, u8),
    Pass(u64),
    Policy(u8),
    Die,
}

fn steps() -> impl Strategy<Value = Vec<(bool, Step)>> {
    let stream = || prop_oneof![3 => Just(Some(0u32)), 3 => (0u32..4).prop_map(Some), 1 => Just(None)];
    let step = prop_oneof![
        4 => prop_oneof![1u64..4000, Just(0), 1u64 << 20..4 << 20].prop_map(Step::Malloc),
        3 => (0usize..8).prop_map(Step::Free),
        8 => (0u32..4, [0usize..8, 0..8, 0..8], 0i64..2000, any::<bool>())
            .prop_map(|(stream, operands, elements, large)| Step::Op { stream, operands, elements, large }),
        4 => (0usize..8, 0usize..8, 0u64..5000, stream()).prop_map(|(from, to, len, stream)| Step::Copy { from, to, len, stream }),
        3 => (0usize..8, 0usize..1024, stream()).prop_map(|(to, len, stream)| Step::In { to, len, stream }),
        2 => (0u32..4).prop_map(Step::StreamCreate),
        1 => (0u32..4).prop_map(Step::StreamDestroy),
        2 => (0u32..3).prop_map(Step::EventCreate),
        1 => (0u32..3).prop_map(Step::EventDestroy),
        6 => (0u32..3, 0u32..4, 0u8..3).prop_map(|(event, stream, what)| Step::Event { event, stream, what }),
        5 => (0u8..6, 0u32..4).prop_map(|(what, id)| Step::Sync { what, id }),
        2 => (1u64..6).prop_map(Step::Reserve),
        1 => (0usize..4).prop_map(Step::Release),
        3 => (1u64..3).prop_map(Step::Physical),
        2 => (1u64..8).prop_map(Step::PhysicalFree),
        5 => (0usize..4, 0u64..4, 1u64..3, 1u64..8)
            .prop_map(|(reservation, page, pages, handle)| Step::Map { reservation, page, pages, handle }),
        3 => (0usize..4, 0u64..4).prop_map(|(reservation, page)| Step::Unmap { reservation, page }),
        4 => (0usize..4, 0u64..4, 1i64..800_000)
            .prop_map(|(reservation, page, elements)| Step::MappedOp { reservation, page, elements }),
        1 => (0u64..3, 0u8..4).prop_map(|(request, what)| Step::Hint(request, what)),
        4 => (0u64..3_000_000).prop_map(Step::Pass),
        1 => (0u8..3).prop_map(Step::Policy),
        1 => Just(Step::Die),
    ];
    prop::collection::vec((any::<bool>(), step), 1..150)
}

struct World {
    bench: Bench,
    /// Where the client believes its memory is: guesses, which the runtime must not trust.
    known: [Vec<u64>; 2],
    /// Where it believes its reservations are.
    reserved: [Vec<u64>; 2],
    alive: [bool; 2],
    slot: u16,
}

impl World {
    fn reply(&mut self) -> ReplyTo {
        self.slot = (self.slot + 1) % 64;
        ReplyTo { slot: self.slot, seq: 1 }
    }

    /// Where the client believes a page of a reservation to be.
    fn page(&self, who: usize, reservation: usize, page: u64) -> u64 {
        self.reserved[who].get(reservation).copied().unwrap_or(0x1000_0000) + page * PAGE
    }

    fn record(&mut self, who: usize, record: Record<'_>, call: Option<OpCall>) {
        let (now, id) = (self.bench.now, self.bench.id(who));
        let mut call = call.unwrap_or_else(|| OpCall::new(OpId(0)));
        self.bench.core.record(now, id, record, &mut call);
        self.bench.core.advance(now);
    }

    fn apply(&mut self, who: usize, step: Step) {
        let addr = |world: &Self, index: usize| world.known[who].get(index).copied().unwrap_or(0x1234_5678);
        match step {
            Step::Malloc(size) => {
                let (base, _) = self.bench.client(who).va();
                // Addresses are handed out in order, page by page with a guard: remember a guess.
                let last = self.known[who].last().copied().unwrap_or(base);
                let reply = self.reply();
                self.record(who, Record::Malloc { size, reply }, None);
                self.known[who].push(if self.known[who].is_empty() { base } else { last + 8192 });
            }
            Step::Free(index) => {
                let (reply, addr) = (self.reply(), addr(self, index));
                self.record(who, Record::Free { addr, reply }, None);
            }
            Step::Op { stream, operands: [a, b, c], elements, large } => {
                let [a, b, c] = [addr(self, a), addr(self, b), addr(self, c)];
                let call = if large { matmul(a, b, c, elements / 100) } else { add(a, b, c, &[elements]) };
                self.record(who, Record::Op { stream }, Some(call));
            }
            Step::Copy { from, to, len, stream } => {
                let (src, dst, reply) =
                    (addr(self, from), addr(self, to), Some(self.reply()).filter(|_| stream.is_none()));
                self.record(who, Record::CopyDevice { dst, src, len, stream, reply }, None);
            }
            Step::In { to, len, stream } => {
                let (dst, reply, bytes) = (addr(self, to), Some(self.reply()), vec![1; len]);
                self.record(who, Record::CopyIn { dst, source: HostSource::Inline(&bytes), stream, reply }, None);
            }
            Step::StreamCreate(stream) => {
                self.record(who, Record::StreamCreate { stream, priority: 0, flags: 0 }, None)
            }
            Step::StreamDestroy(stream) => self.record(who, Record::StreamDestroy { stream }, None),
            Step::EventCreate(event) => self.record(who, Record::EventCreate { event, flags: 0 }, None),
            Step::EventDestroy(event) => self.record(who, Record::EventDestroy { event }, None),
            Step::Event { event, stream, what } => {
                let record = match what {
                    0 => Record::EventRecord { event, stream },
                    1 => Record::StreamWaitEvent { stream, event },
                    _ => Record::EventReset { event, stream },
                };
                self.record(who, record, None);
            }
            Step::Sync { what, id } => {
                let reply = self.reply();
                let record = match what {
                    0 => Record::StreamSync { stream: id, reply },
                    1 => Record::StreamQuery { stream: id, reply },
                    2 => Record::DeviceSync { reply },
                    3 => Record::EventSync { event: id, reply },
                    4 => Record::EventElapsed { start: id, end: 0, reply },
                    _ => Record::MemInfo { reply },
                };
                self.record(who, record, None);
            }
            Step::Reserve(pages) => {
                let (reply, (base, _)) = (self.reply(), self.bench.client(who).va());
                self.record(who, Record::Reserve { size: pages * PAGE, reply }, None);
                // Addresses are handed out in order, at multiples of a page with a guard.
                let last = self.reserved[who].last().copied().unwrap_or(base.next_multiple_of(PAGE));
                self.reserved[who].push(if self.reserved[who].is_empty() { last } else { last + (pages + 1) * PAGE });
            }
            Step::Release(index) => {
                let (reply, addr) = (self.reply(), self.page(who, index, 0));
                self.record(who, Record::Release { addr, reply }, None);
            }
            Step::Physical(pages) => {
                let reply = self.reply();
                self.record(who, Record::PhysicalAlloc { size: pages * PAGE, reply }, None);
            }
            Step::PhysicalFree(handle) => {
                let reply = self.reply();
                self.record(who, Record::PhysicalFree { handle, reply }, None);
            }
            Step::Map { reservation, page, pages, handle } => {
                let (reply, addr) = (self.reply(), self.page(who, reservation, page));
                self.record(who, Record::Map { addr, size: pages * PAGE, offset: 0, handle, reply }, None);
            }
            Step::Unmap { reservation, page } => {
                let (reply, addr) = (self.reply(), self.page(who, reservation, page));
                self.record(who, Record::Unmap { addr, reply }, None);
            }
            Step::MappedOp { reservation, page, elements } => {
                let addr = self.page(who, reservation, page);
                self.record(who, Record::Op { stream: 0 }, Some(add(addr, addr, addr, &[elements])));
            }
            Step::Hint(request, what) => {
                let hint = match what {
                    0 => Hint::PrefillStarted { request },
                    1 => Hint::FirstToken { request },
                    2 => Hint::Progress { request, tokens: 5 },
                    _ => Hint::Finished { request },
                };
                self.record(who, Record::Hint(hint), None);
            }
            Step::Pass(ns) => {
                self.bench.now += ns;
                self.bench.core.advance(self.bench.now);
            }
            Step::Policy(which) => {
                let policy = common::policy(sched::policy::PolicyName::ALL[usize::from(which)].name());
                self.bench.core.set_policy(self.bench.now, policy);
            }
            Step::Die => {
                let id = self.bench.id(who);
                self.bench.core.detach(self.bench.now, id);
                self.alive[who] = false;
            }
        }
    }

    /// Memory is accounted once, on both sides of the books.
    fn check(&self) {
        let snapshot = self.bench.core.snapshot(Default::default(), 0);
        let held: u64 = snapshot.sessions.iter().map(|s| s.memory_bytes).sum();
        assert_eq!(held, snapshot.memory.used_bytes);
        assert_eq!(snapshot.sessions.len(), self.alive.iter().filter(|a| **a).count());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn every_call_is_answered_and_every_byte_comes_back(steps in steps(), paced in any::<bool>()) {
        let spec = if paced { "Ascend910B3:timing:paced:hbm=0.015" } else { "Ascend910B3:timing:hbm=0.015" };
        let mut bench = Bench::new(spec, "fifo");
        let start = bench.free_bytes();
        bench.open();
        bench.open();
        let mut world = World { bench, known: [vec![], vec![]], reserved: [vec![], vec![]], alive: [true; 2], slot: 0 };
        for (second, step) in steps {
            world.apply(usize::from(second), step);
            world.check();
        }
        // Time enough for everything, allocations that wait in vain included.
        for _ in 0..2000 {
            world.bench.now += 1_000_000;
            world.bench.core.advance(world.bench.now);
        }
        let snapshot = world.bench.core.snapshot(Default::default(), 0);
        prop_assert_eq!((snapshot.calls_waiting, snapshot.in_flight, snapshot.queued), (0, 0, 0));
        for session in &snapshot.sessions {
            prop_assert_eq!((session.items, session.in_flight, session.memory_freeing_bytes), (0, 0, 0));
        }
        for who in 0..2 {
            world.apply(who, Step::Die);
        }
        prop_assert_eq!(world.bench.free_bytes(), start);
    }
}

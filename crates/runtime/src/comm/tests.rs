//! Ranks without devices: what one "moves" is bytes of a vector, and every order in which ranks can get on is tried.

use proptest::prelude::*;
use sched::Nanos;
use session::Doorbell;
use session::peers::CHUNK_BYTES;

use super::*;

/// A rank whose device is a vector: addresses are indices.
struct Rank {
    comm: Comm,
    memory: Vec<u8>,
    flags: u32,
    over: Vec<(u32, Option<String>)>,
}

impl Rank {
    fn push(&mut self, tag: u64, own: Option<u64>, sends: &[(usize, u64, u64)], receives: &[(usize, u64, u64)]) -> u32 {
        let part = |&(peer, at, len): &(usize, u64, u64)| Part::new(peer, PhysAddr(at), len);
        let reduction = own.map(|own| Reduction { element: DataType::U8, fold: Fold::Sum, own: PhysAddr(own) });
        self.flags += 1;
        let (sends, receives) = (sends.iter().map(part).collect(), receives.iter().map(part).collect());
        let op = Op::new((7, self.flags), Phase::Unknown, Vec::new(), tag, reduction, sends, receives);
        if let Err((op, why)) = self.comm.push(op) {
            self.over.push((op.flag, Some(why)));
        }
        self.flags
    }

    /// One thing, if there is one to do.
    fn turn(&mut self) -> bool {
        let todo = match self.comm.next() {
            Ok(Some(todo)) => todo,
            Ok(None) => return self.collect(),
            Err(why) => {
                self.comm.break_off(why);
                return self.collect();
            }
        };
        let (op, segment) = (self.comm.front().unwrap(), self.comm.member().unwrap().segment().clone());
        let len = todo.what.bytes() as usize;
        let slot = |at: usize| {
            let (from, to, chunk) = todo.slots[at];
            segment.slot(from, to, chunk)
        };
        match todo.what {
            Move::Send { part, .. } => {
                let at = (op.sends[usize::from(part)].physical.0 + todo.offset) as usize;
                // SAFETY: a slot may be written from any thread; `len` is at most a chunk.
                unsafe { std::ptr::copy_nonoverlapping(self.memory[at..at + len].as_ptr(), slot(0), len) };
            }
            Move::Receive { part, .. } => {
                let at = (op.receives[usize::from(part)].physical.0 + todo.offset) as usize;
                // SAFETY: as above, read.
                unsafe { std::ptr::copy_nonoverlapping(slot(0), self.memory[at..at + len].as_mut_ptr(), len) };
            }
            Move::Reduce { .. } => {
                let own = (op.reduced().unwrap().own.0 + todo.offset) as usize;
                let to = (op.receives[0].physical.0 + todo.offset) as usize;
                for i in 0..len {
                    let mut sum = self.memory[own + i];
                    for s in 0..todo.slots.len() {
                        // SAFETY: as above, read.
                        sum = sum.wrapping_add(unsafe { slot(s).add(i).read() });
                    }
                    self.memory[to + i] = sum;
                }
            }
        }
        self.comm.moved(todo.what, Ok(()));
        self.collect();
        true
    }

    fn collect(&mut self) -> bool {
        let before = self.over.len();
        while let Some(Over { op, fault }) = self.comm.over() {
            self.over.push((op.flag, fault));
        }
        self.over.len() > before
    }
}

fn ranks(count: usize, bytes: usize) -> Vec<Rank> {
    let bells: Vec<Doorbell> = (0..count).map(|_| Doorbell::new().unwrap()).collect();
    let members = Member::group(&bells).unwrap();
    let rank = |member: Member| {
        let memory = (0..bytes).map(|i| (i * 7 + member.rank() * 13) as u8).collect();
        Rank { comm: Comm::new(member, 0), memory, flags: 0, over: Vec::new() }
    };
    members.into_iter().map(rank).collect()
}

/// Runs until nobody has anything to do, each time the rank that `order` says next.
fn run(ranks: &mut [Rank], order: &[usize]) {
    let mut idle = 0;
    for &next in order.iter().cycle() {
        let count = ranks.len();
        match ranks[next % count].turn() {
            true => idle = 0,
            false => idle += 1,
        }
        // Everyone was asked, several times.
        if idle > 4 * order.len().max(count) {
            return;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// A reduction in place gives every rank the same sum whatever the order in which ranks get on.
    #[test]
    fn a_reduction_in_place_is_the_sum_everywhere(
        count in 2usize..5,
        bytes in prop_oneof![1u64..100, CHUNK_BYTES - 2..CHUNK_BYTES + 3, 5 * CHUNK_BYTES..6 * CHUNK_BYTES],
        mut order in prop::collection::vec(0usize..4, 8..40),
    ) {
        order.extend(0..4);
        let mut group = ranks(count, bytes as usize);
        let want: Vec<u8> =
            (0..bytes as usize).map(|i| group.iter().fold(0u8, |sum, r| sum.wrapping_add(r.memory[i]))).collect();
        for (me, rank) in group.iter_mut().enumerate() {
            let others: Vec<_> = (0..count).filter(|&p| p != me).map(|p| (p, 0, bytes)).collect();
            let flag = rank.push(1, Some(0), &others, &others);
            rank.comm.reached(flag);
        }
        run(&mut group, &order);
        for rank in &group {
            prop_assert_eq!(&rank.over, &[(1, None)]);
            prop_assert!(rank.memory == want);
        }
    }

    /// Everyone sends everyone something else, twice: nothing is lost or in the wrong place.
    #[test]
    fn messages_arrive_where_they_belong(
        count in 2usize..5,
        bytes in prop_oneof![1u64..100, 4 * CHUNK_BYTES..5 * CHUNK_BYTES],
        mut order in prop::collection::vec(0usize..4, 8..40),
    ) {
        order.extend(0..4);
        let mut group = ranks(count, bytes as usize * count * 3);
        let sent: Vec<Vec<u8>> = group.iter().map(|r| r.memory.clone()).collect();
        for round in 0..2u64 {
            for (me, rank) in group.iter_mut().enumerate() {
                let others = || (0..count).filter(|&p| p != me);
                let sends: Vec<_> = others().map(|p| (p, p as u64 * bytes, bytes)).collect();
                let receives: Vec<_> = others().map(|p| (p, ((1 + round) * count as u64 + p as u64) * bytes, bytes)).collect();
                let flag = rank.push(round, None, &sends, &receives);
                rank.comm.reached(flag);
            }
        }
        run(&mut group, &order);
        for (me, rank) in group.iter().enumerate() {
            prop_assert_eq!(&rank.over, &[(1, None), (2, None)]);
            for p in (0..count).filter(|&p| p != me) {
                let piece = &sent[p][me * bytes as usize..][..bytes as usize];
                for round in 1..3 {
                    prop_assert!(&rank.memory[(round * count + p) * bytes as usize..][..bytes as usize] == piece);
                }
            }
        }
    }
}

#[test]
fn an_exchange_begins_when_its_stream_is_there_and_others_are_told() {
    let mut group = ranks(2, 64);
    for (me, rank) in group.iter_mut().enumerate() {
        rank.push(1, None, &[(1 - me, 0, 8)], &[(1 - me, 32, 8)]);
    }
    assert_eq!((group[0].comm.awaited(), group[1].comm.awaited()), (None, None));
    assert_eq!(group[0].comm.reached(1), None, "nobody had pressed it");
    run(&mut group, &[0, 1]);
    assert!(group.iter().all(|r| r.over.is_empty()), "one rank alone gets nowhere");
    assert_eq!((group[1].comm.awaited(), group[1].comm.awaited()), (Some(7), None), "each once");
    assert_eq!(group[0].comm.awaited(), None);
    assert_eq!(group[1].comm.reached(1), Some(7), "to be released");
    run(&mut group, &[0, 1]);
    assert!(group.iter().all(|r| r.over == [(1, None)]));
}

#[test]
fn a_rank_that_leaves_ends_what_needs_it_and_nothing_else() {
    let mut group = ranks(2, 64);
    for (me, rank) in group.iter_mut().enumerate() {
        for _ in 0..2 {
            let flag = rank.push(1, None, &[(1 - me, 0, 8)], &[(1 - me, 32, 8)]);
            rank.comm.reached(flag);
        }
    }
    // Rank 1 does the first exchange and dies; what it has sent still arrives.
    let mut second = group.pop().unwrap();
    while group[0].turn() | (second.over.is_empty() && second.turn()) {}
    assert_eq!(second.over, [(1, None)]);
    drop(second);
    run(&mut group, &[0]);
    let [(1, None), (2, Some(why))] = &group[0].over[..] else { panic!("{:?}", group[0].over) };
    assert!(why.contains("rank 1 of the communicator is gone"), "{why}");
    group[0].push(1, None, &[(1, 0, 8)], &[]);
    assert!(group[0].over[2].1.is_some(), "the next one ends at once");
    assert!(group[0].comm.fault().is_some());
}

#[test]
fn ranks_that_disagree_are_told_so_all_of_them() {
    type Call = (u64, u64);
    for (calls, want) in [([(1, 8), (2, 8)] as [Call; 2], "another call"), ([(1, 8), (1, 9)], "sends 9 bytes")] {
        let mut group = ranks(3, 64);
        for (me, rank) in group.iter_mut().enumerate() {
            let (tag, len) = calls[usize::from(me == 2)];
            let others: Vec<_> = (0..3).filter(|&p| p != me).map(|p| (p, 0, len)).collect();
            let receives: Vec<_> = others.iter().map(|&(p, _, len)| (p, 16 + 16 * p as u64, len)).collect();
            let flag = rank.push(tag, None, &others, &receives);
            rank.comm.reached(flag);
        }
        run(&mut group, &[0, 1, 2]);
        assert!(group.iter().all(|r| r.over.len() == 1 && r.over[0].1.is_some()), "{want}");
        let first = group[0].over[0].1.clone().unwrap();
        assert!(first.contains(want), "{first}");
    }
}

#[test]
fn a_communicator_that_is_destroyed_goes_when_its_work_is_over() {
    let mut group = ranks(2, 64);
    for (me, rank) in group.iter_mut().enumerate() {
        let flag = rank.push(1, None, &[(1 - me, 0, 8)], &[(1 - me, 32, 8)]);
        rank.comm.reached(flag);
        rank.comm.end();
        assert!(!rank.comm.is_at_end());
        assert!(rank.push(1, None, &[(1 - me, 0, 8)], &[]) > 0 && rank.over.pop().unwrap().1.is_some());
    }
    run(&mut group, &[0, 1]);
    for rank in group {
        assert!(rank.over == [(1, None)] && rank.comm.is_at_end());
        rank.comm.leave();
    }
}

#[test]
fn a_peer_that_never_comes_is_named_after_the_time_that_was_asked_for() {
    const SECOND: Nanos = 1_000_000_000;
    let mut group = ranks(3, 64);
    for (me, rank) in group.iter_mut().enumerate() {
        let others: Vec<_> = (0..3).filter(|&p| p != me).map(|p| (p, 0, 8)).collect();
        let receives: Vec<_> = others.iter().map(|&(p, _, len)| (p, 16 + 16 * p as u64, len)).collect();
        rank.push(1, None, &others, &receives);
        rank.comm.set_patience(2 * SECOND);
    }
    let late = |rank: &mut Rank, now| rank.comm.late(now);
    assert_eq!(late(&mut group[0], 9 * SECOND), None, "its own stream is not there");
    assert_eq!(group[0].comm.deadline(), None);
    group[0].comm.reached(1);
    assert_eq!(late(&mut group[0], 10 * SECOND), None);
    assert_eq!(group[0].comm.deadline(), Some(12 * SECOND));
    // One comes, and what it sends gives the time anew.
    assert_eq!(late(&mut group[0], 11 * SECOND), None);
    group[1].comm.reached(1);
    run(&mut group, &[0, 1]);
    assert_eq!(late(&mut group[0], 11 * SECOND), None);
    assert_eq!(group[0].comm.deadline(), Some(13 * SECOND));
    assert_eq!(late(&mut group[0], 13 * SECOND - 1), None);
    let why = late(&mut group[0], 13 * SECOND).unwrap();
    assert!(why.contains("stood still for 2 s (HCCL_EXEC_TIMEOUT): rank 2 has not come to it"), "{why}");
    // Without a bound it stands for ever.
    group[1].comm.set_patience(0);
    assert_eq!((late(&mut group[1], u64::MAX), group[1].comm.deadline()), (None, None));
}

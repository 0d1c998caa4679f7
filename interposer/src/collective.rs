//! Collectives as what one rank does: copies on its own device, messages to others, messages from others.
//!
//! Every rank sends straight to every other: on one host each pair of devices has a link of its own, and the order of sums is
//! the order of ranks whatever the sizes. A reduction takes everyone's elements at once, so all ranks compute the same bits.
//!
//! Pure: addresses and sizes in, an [`Exchange`] out. Ranks agree on a call through its tag, which holds what must be the same
//! on all of them: which call it is, its type, its operation and its root. Lengths are held against each other message by message.

use acl_abi::{DataType, Fold};
use wire::Exchange;
use wire::exchange::{Combine, Part};

/// Where a rank stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The rank.
    pub rank: u32,
    /// Of how many.
    pub ranks: u32,
}

/// A piece of device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// First byte.
    pub addr: u64,
    /// Bytes.
    pub len: u64,
}

/// What one rank does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Copies on its own device, before anything else: destination, source, bytes.
    pub copies: Vec<(u64, u64, u64)>,
    /// Messages.
    pub exchange: Exchange,
}

/// The calls, as far as ranks must agree on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Call {
    /// `HcclAllReduce`.
    AllReduce = 1,
    /// `HcclReduce`.
    Reduce,
    /// `HcclBroadcast`.
    Broadcast,
    /// `HcclScatter`.
    Scatter,
    /// `HcclAllGather` and its V.
    AllGather,
    /// `HcclReduceScatter` and its V.
    ReduceScatter,
    /// `HcclAlltoAll`, its V and its VC.
    AllToAll,
    /// `HcclSend` with `HcclRecv`, `HcclBatchSendRecv`.
    Message,
}

/// What all ranks of a call must agree on.
pub fn tag(call: Call, element: i32, fold: Option<Fold>, root: u32) -> u64 {
    let fold = fold.map_or(0xff, |f| f as u64);
    u64::from(root) << 32 | (call as u64) << 24 | fold << 16 | u64::from(element as u16)
}

impl Place {
    fn others(self) -> impl Iterator<Item = u32> {
        (0..self.ranks).filter(move |&r| r != self.rank)
    }

    /// A plan of this rank: pieces for others and pieces from others by rank, and its own part.
    ///
    /// `sends` and `receives` have an entry a rank; those of length 0 are no messages.
    fn plan(self, tag: u64, sends: &[Piece], receives: &[Piece]) -> Plan {
        let (own, to) = (sends[self.rank as usize], receives[self.rank as usize]);
        let copies = if own.len > 0 && own.addr != to.addr { vec![(to.addr, own.addr, own.len)] } else { Vec::new() };
        let messages = |pieces: &[Piece]| {
            let parts = self.others().map(|r| (r, pieces[r as usize])).filter(|(_, p)| p.len > 0);
            parts.map(|(r, p)| Part { peer: r as u16, addr: p.addr, len: p.len }).collect()
        };
        Plan { copies, exchange: Exchange { tag, combine: None, sends: messages(sends), receives: messages(receives) } }
    }

    fn none(self) -> Vec<Piece> {
        vec![Piece { addr: 0, len: 0 }; self.ranks as usize]
    }

    fn each(self, piece: impl Fn(u64) -> Piece) -> Vec<Piece> {
        (0..u64::from(self.ranks)).map(piece).collect()
    }

    /// `recv` becomes the sum of everyone's `send` (or what `fold` is).
    pub fn all_reduce(self, tag: u64, (element, fold): (DataType, Fold), send: u64, recv: u64, len: u64) -> Plan {
        let all = self.each(|_| Piece { addr: send, len });
        self.reduce_pieces(tag, (element, fold), &all, recv, len)
    }

    /// Everyone's piece for this rank, reduced, becomes `recv`.
    pub fn reduce_pieces(
        self,
        tag: u64,
        (element, fold): (DataType, Fold),
        pieces: &[Piece],
        recv: u64,
        len: u64,
    ) -> Plan {
        let own = pieces[self.rank as usize].addr;
        let part = |r: u32, p: Piece| Part { peer: r as u16, addr: p.addr, len: p.len };
        let sends = self.others().map(|r| part(r, pieces[r as usize])).filter(|p| p.len > 0).collect();
        let into = Piece { addr: recv, len };
        let receives: Vec<_> = self.others().map(|r| part(r, into)).filter(|p| p.len > 0).collect();
        let alone = receives.is_empty();
        let copies = if alone && len > 0 && own != recv { vec![(recv, own, len)] } else { Vec::new() };
        let combine = (!alone).then_some(Combine { element, fold, own });
        Plan { copies, exchange: Exchange { tag, combine, sends, receives } }
    }

    /// At `root`, `recv` becomes the sum of everyone's `send`.
    pub fn reduce(self, tag: u64, how: (DataType, Fold), root: u32, send: u64, recv: u64, len: u64) -> Plan {
        if self.rank != root {
            let mut sends = self.none();
            sends[root as usize] = Piece { addr: send, len };
            return self.plan(tag, &sends, &self.none());
        }
        let mut plan = self.all_reduce(tag, how, send, recv, len);
        plan.exchange.sends.clear();
        plan
    }

    /// Everyone's `buf` becomes that of `root`.
    pub fn broadcast(self, tag: u64, root: u32, buf: u64, len: u64) -> Plan {
        let whole = Piece { addr: buf, len };
        if self.rank == root {
            let mut receives = self.none();
            receives[root as usize] = whole;
            return self.plan(tag, &self.each(|_| whole), &receives);
        }
        let mut receives = self.none();
        receives[root as usize] = whole;
        self.plan(tag, &self.none(), &receives)
    }

    /// `recv` becomes this rank's piece of the root's `send`.
    pub fn scatter(self, tag: u64, root: u32, send: u64, recv: u64, len: u64) -> Plan {
        let mut receives = self.none();
        receives[root as usize] = Piece { addr: recv, len };
        let sends = if self.rank == root { self.each(|r| Piece { addr: send + r * len, len }) } else { self.none() };
        self.plan(tag, &sends, &receives)
    }

    /// `recv` holds everyone's `send`, at these places.
    pub fn all_gather(self, tag: u64, send: Piece, receives: &[Piece]) -> Plan {
        self.plan(tag, &self.each(|_| send), receives)
    }

    /// Each rank's piece goes to that rank.
    pub fn all_to_all(self, tag: u64, sends: &[Piece], receives: &[Piece]) -> Plan {
        self.plan(tag, sends, receives)
    }

    /// Equal pieces of `len` bytes, one a rank.
    pub fn pieces(self, addr: u64, len: u64) -> Vec<Piece> {
        self.each(|r| Piece { addr: addr + r * len, len })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUM: (DataType, Fold) = (DataType::F32, Fold::Sum);

    /// Every rank's plan of a call, played on vectors of one byte a rank's element: copies, then all messages at once.
    fn play(ranks: u32, memory: &mut [Vec<u8>], plan: impl Fn(Place) -> Plan) {
        let plans: Vec<Plan> = (0..ranks).map(|rank| plan(Place { rank, ranks })).collect();
        for (memory, plan) in memory.iter_mut().zip(&plans) {
            for &(dst, src, len) in &plan.copies {
                memory.copy_within(src as usize..(src + len) as usize, dst as usize);
            }
        }
        let before = memory.to_vec();
        let at = |m: &[u8], addr: u64, len: u64| m[addr as usize..(addr + len) as usize].to_vec();
        for (me, plan) in plans.iter().enumerate() {
            let mut sums = plan.exchange.combine.map(|c| at(&before[me], c.own, plan.exchange.receives[0].len));
            for part in &plan.exchange.receives {
                let theirs = &plans[usize::from(part.peer)].exchange;
                assert_eq!(theirs.tag, plan.exchange.tag);
                let from = theirs.sends.iter().find(|s| usize::from(s.peer) == me).expect("it is sent");
                assert_eq!(from.len, part.len);
                let bytes = at(&before[usize::from(part.peer)], from.addr, from.len);
                match &mut sums {
                    Some(sums) => sums.iter_mut().zip(bytes).for_each(|(s, b)| *s += b),
                    None => memory[me][part.addr as usize..][..bytes.len()].copy_from_slice(&bytes),
                }
            }
            if let Some(sums) = sums {
                memory[me][plan.exchange.receives[0].addr as usize..][..sums.len()].copy_from_slice(&sums);
            }
            let sent: usize =
                plans.iter().map(|p| p.exchange.receives.iter().filter(|r| usize::from(r.peer) == me).count()).sum();
            assert_eq!(sent, plan.exchange.sends.len(), "everything that is sent is received");
        }
    }

    /// Memory of three ranks: 1, 2, 3 … at rank 0, 11, 12 … at rank 1, 21 … at rank 2, and room behind.
    fn three() -> Vec<Vec<u8>> {
        (0..3).map(|r| (0..16).map(|i| if i < 8 { 10 * r + i + 1 } else { 0 }).collect()).collect()
    }

    #[test]
    fn every_collective_does_what_it_is_for() {
        type Case = (&'static str, fn(Place) -> Plan, [[u8; 8]; 3]);
        let z = 0;
        let cases: [Case; 8] = [
            ("all_reduce", |p| p.all_reduce(1, SUM, 0, 8, 2), [[33, 36, z, z, z, z, z, z]; 3]),
            ("reduce", |p| p.reduce(1, SUM, 1, 0, 8, 2), [[z; 8], [33, 36, z, z, z, z, z, z], [z; 8]]),
            ("broadcast", |p| p.broadcast(1, 2, 8, 2), [[z; 8]; 3]),
            (
                "scatter",
                |p| p.scatter(1, 1, 0, 8, 2),
                [[11, 12, z, z, z, z, z, z], [13, 14, z, z, z, z, z, z], [15, 16, z, z, z, z, z, z]],
            ),
            (
                "all_gather",
                |p| p.all_gather(1, Piece { addr: 0, len: 2 }, &p.pieces(8, 2)),
                [[1, 2, 11, 12, 21, 22, z, z]; 3],
            ),
            (
                "reduce_scatter",
                |p| p.reduce_pieces(1, SUM, &p.pieces(0, 2), 8, 2),
                [[33, 36, z, z, z, z, z, z], [39, 42, z, z, z, z, z, z], [45, 48, z, z, z, z, z, z]],
            ),
            (
                "all_to_all",
                |p| p.all_to_all(1, &p.pieces(0, 2), &p.pieces(8, 2)),
                [[1, 2, 11, 12, 21, 22, z, z], [3, 4, 13, 14, 23, 24, z, z], [5, 6, 15, 16, 25, 26, z, z]],
            ),
            (
                // Rank r sends r + 1 bytes to rank 0, nothing to others.
                "all_to_all_v",
                |p| {
                    let mut sends = p.pieces(0, 0);
                    sends[0].len = u64::from(p.rank) + 1;
                    let at = |r: u64| Piece { addr: 8 + r * (r + 1) / 2, len: if p.rank == 0 { r + 1 } else { 0 } };
                    p.all_to_all(1, &sends, &(0..3).map(at).collect::<Vec<_>>())
                },
                [[1, 11, 12, 21, 22, 23, z, z], [z; 8], [z; 8]],
            ),
        ];
        for (name, plan, want) in cases {
            let mut memory = three();
            play(3, &mut memory, plan);
            for (rank, want) in want.iter().enumerate() {
                assert_eq!(&memory[rank][8..], want, "{name}, rank {rank}");
            }
        }
        let mut memory = three();
        play(3, &mut memory, |p| p.broadcast(1, 2, 0, 2));
        assert!(memory.iter().all(|m| m[..2] == [21, 22]));
    }

    #[test]
    fn one_rank_alone_copies() {
        let alone = Place { rank: 0, ranks: 1 };
        for plan in [
            alone.all_reduce(1, SUM, 0, 8, 2),
            alone.reduce(1, SUM, 0, 0, 8, 2),
            alone.scatter(1, 0, 0, 8, 2),
            alone.all_gather(1, Piece { addr: 0, len: 2 }, &alone.pieces(8, 2)),
            alone.reduce_pieces(1, SUM, &alone.pieces(0, 2), 8, 2),
            alone.all_to_all(1, &alone.pieces(0, 2), &alone.pieces(8, 2)),
        ] {
            assert_eq!(plan.copies, [(8, 0, 2)]);
            assert!(plan.exchange.sends.is_empty() && plan.exchange.receives.is_empty());
        }
        assert!(alone.all_reduce(1, SUM, 8, 8, 2).copies.is_empty(), "in place");
        assert!(alone.broadcast(1, 0, 8, 2).copies.is_empty());
    }

    #[test]
    fn tags_tell_calls_apart() {
        let tags = [
            tag(Call::AllReduce, 4, Some(Fold::Sum), 0),
            tag(Call::AllReduce, 4, Some(Fold::Max), 0),
            tag(Call::AllReduce, 3, Some(Fold::Sum), 0),
            tag(Call::Broadcast, 4, None, 0),
            tag(Call::Broadcast, 4, None, 1),
            tag(Call::AllGather, 4, None, 0),
        ];
        let distinct: std::collections::BTreeSet<u64> = tags.into();
        assert_eq!(distinct.len(), tags.len());
    }
}

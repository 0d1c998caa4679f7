//! One rank of a communicator: which of its exchanges is under way, and what can be done for it now.
//!
//! Exchanges of a communicator run one after the other, in the order in which they were issued, each from the moment its stream
//! gets to it. An exchange is messages; a message goes in chunks through the slots that both ranks share
//! ([`session::peers::Segment`]): the sender's device copies into a free slot, the receiver's device copies out of it, and each
//! counts. A reduction takes a chunk of everyone at once and writes the result; that is done in order of rank, so every rank has
//! the same bits. Nothing here waits: [`Comm::next`] says what the device can do now, and is asked again when a chunk is done
//! or a peer rings.
//!
//! **Memory in place.** A reduction may write where the own contribution stands. A chunk is therefore sent to everyone before
//! the result is written over it; the device does both in that order, because a communicator has one physical stream. Nobody
//! waits in a circle for that: whoever is furthest behind has everything that it needs to go on.
//!
//! **Ends.** A peer that does not come in time ([`Comm::set_patience`]), that has left before it sent what is expected, or that disagrees about what is being done, breaks the
//! communicator: every exchange ends with an error, also those of the other ranks.

mod patience;
mod progress;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use acl_abi::{DataType, Fold};
use device::PhysAddr;
use sched::Phase;
use session::peers::{Left, Member};

use crate::memory::BlockId;

pub use progress::{Move, Todo};

/// Session and number of a communicator.
pub type CommKey = (u64, u32);

/// Communicators of one session: what frameworks make (one a process group and one a pair of ranks) several times over.
pub const COMMS_MAX: usize = 64;

/// A message that is being sent or received.
#[derive(Debug)]
pub struct Part {
    /// The other rank.
    pub peer: usize,
    /// First byte, the device's address.
    pub physical: PhysAddr,
    /// Bytes.
    pub len: u64,
    /// Of them, given to the device.
    issued: u64,
    /// Of them, done.
    done: u64,
    /// Number of the message on its channel.
    message: u64,
}

impl Part {
    /// A message of which nothing is done.
    pub fn new(peer: usize, physical: PhysAddr, len: u64) -> Self {
        Self { peer, physical, len, issued: 0, done: 0, message: 0 }
    }
}

/// How receives become one.
#[derive(Clone, Copy, Debug)]
pub struct Reduction {
    /// Element type.
    pub element: DataType,
    /// Operation.
    pub fold: Fold,
    /// Own contribution.
    pub own: PhysAddr,
}

/// An exchange, with the device's addresses.
#[derive(Debug)]
pub struct Op {
    /// Stream that stands at it.
    pub stream: u32,
    /// Flag that the stream waits for.
    pub flag: u32,
    /// What it is counted under.
    pub phase: Phase,
    /// What keeps the memory.
    pub pins: Vec<BlockId>,
    /// What ranks agree on.
    pub tag: u64,
    /// Of a reducing one.
    pub reduction: Option<Reduction>,
    /// Messages to others.
    pub sends: Vec<Part>,
    /// Messages from others.
    pub receives: Vec<Part>,
    /// Its stream is there.
    reached: bool,
    /// Its stream is pressed, because peers are there.
    pressed: bool,
}

impl Op {
    /// An exchange of which nothing is done.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        (stream, flag): (u32, u32),
        phase: Phase,
        pins: Vec<BlockId>,
        tag: u64,
        reduction: Option<Reduction>,
        sends: Vec<Part>,
        receives: Vec<Part>,
    ) -> Self {
        Self { stream, flag, phase, pins, tag, reduction, sends, receives, reached: false, pressed: false }
    }

    fn is_done(&self) -> bool {
        self.sends.iter().chain(&self.receives).all(|p| p.done == p.len)
    }
}

/// What the ranks' counters say of one peer.
#[derive(Clone, Copy, Debug, Default)]
struct Lane {
    /// Messages issued to the peer, and from it.
    out_issued: u64,
    in_issued: u64,
    /// Of those, reached.
    out_reached: u64,
    in_reached: u64,
    /// Chunks on their way into slots, or in them; and out of slots, or out.
    out_chunks: u64,
    in_chunks: u64,
}

/// One rank.
#[derive(Debug)]
pub struct Comm {
    member: Option<Member>,
    rank: usize,
    /// The device's stream for everything it does.
    pub physical: u32,
    lanes: Vec<Lane>,
    ops: VecDeque<Op>,
    /// Commands that the device has.
    in_flight: usize,
    /// Why nothing can be exchanged any more.
    broken: Option<String>,
    /// It goes once its exchanges are over.
    ending: bool,
    patience: patience::Patience,
}

/// An exchange that is over.
#[derive(Debug)]
pub struct Over {
    /// The exchange.
    pub op: Op,
    /// Its error.
    pub fault: Option<String>,
}

impl Comm {
    /// A rank that has come.
    pub fn new(member: Member, physical: u32) -> Self {
        Self {
            rank: member.rank(),
            lanes: vec![Lane::default(); member.ranks()],
            member: Some(member),
            physical,
            ops: VecDeque::new(),
            in_flight: 0,
            broken: None,
            ending: false,
            patience: patience::Patience::default(),
        }
    }

    /// Ranks.
    pub fn ranks(&self) -> usize {
        self.lanes.len()
    }

    /// This rank.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Why nothing can be exchanged, as far as is known without trying: broken, ended, or a rank has died.
    pub fn fault(&self) -> Option<String> {
        if self.ending {
            return Some("the communicator was destroyed".to_owned());
        }
        self.broken.clone().or_else(|| {
            let member = self.member.as_ref()?;
            (0..self.ranks()).find(|&r| r != self.rank && member.left(r) == Left::Died).map(gone)
        })
    }

    /// Queues an exchange.
    ///
    /// # Errors
    /// Messages to this rank itself or to one that there is not; nothing can be exchanged any more. The exchange is given back.
    #[allow(clippy::result_large_err, reason = "an exchange that is refused has memory to let go")]
    pub fn push(&mut self, mut op: Op) -> Result<(), (Op, String)> {
        let wrong = op.sends.iter().chain(&op.receives).find(|p| p.peer >= self.ranks() || p.peer == self.rank);
        if let Some(part) = wrong {
            let why = format!("rank {} has no message for rank {} of {}", self.rank, part.peer, self.ranks());
            return Err((op, why));
        }
        let ended = self.ending.then(|| "the communicator was destroyed".to_owned());
        if let Some(why) = ended.or_else(|| self.broken.clone()) {
            return Err((op, why));
        }
        for part in &mut op.sends {
            let lane = &mut self.lanes[part.peer];
            part.message = lane.out_issued;
            lane.out_issued += 1;
        }
        for part in &mut op.receives {
            let lane = &mut self.lanes[part.peer];
            part.message = lane.in_issued;
            lane.in_issued += 1;
        }
        self.ops.push_back(op);
        Ok(())
    }

    /// The stream has got to the exchange at this flag: the other ranks are told. The stream, if it was pressed.
    pub fn reached(&mut self, flag: u32) -> Option<u32> {
        let Self { ops, lanes, member, rank, .. } = self;
        let op = ops.iter_mut().find(|op| op.flag == flag)?;
        op.reached = true;
        if let Some(member) = member {
            let (segment, me) = (member.segment(), *rank);
            let mut rung = 0u32;
            for part in &op.sends {
                let lane = &mut lanes[part.peer];
                lane.out_reached = lane.out_reached.max(part.message + 1);
                segment.set_offered(me, part.peer, lane.out_reached);
                rung |= 1 << part.peer;
            }
            for part in &op.receives {
                let lane = &mut lanes[part.peer];
                lane.in_reached = lane.in_reached.max(part.message + 1);
                segment.set_wanted(part.peer, me, lane.in_reached);
                rung |= 1 << part.peer;
            }
            (0..lanes.len()).filter(|peer| rung & 1 << peer != 0).for_each(|peer| member.ring(peer));
        }
        std::mem::take(&mut op.pressed).then_some(op.stream)
    }

    /// The stream of an exchange that a peer has got to and this rank has not; each once.
    pub fn awaited(&mut self) -> Option<u32> {
        let Self { ops, member, rank, .. } = self;
        let (segment, me) = (member.as_ref()?.segment(), *rank);
        let op = ops.iter_mut().filter(|op| !op.reached && !op.pressed).find(|op| {
            op.sends.iter().any(|p| segment.wanted(me, p.peer) > p.message)
                || op.receives.iter().any(|p| segment.offered(p.peer, me) > p.message)
        })?;
        op.pressed = true;
        Some(op.stream)
    }

    /// Exchanges that are over, one at a time, in order.
    pub fn over(&mut self) -> Option<Over> {
        if let Some(why) = &self.broken {
            if self.in_flight > 0 {
                return None;
            }
            let fault = Some(why.clone());
            return self.ops.pop_front().map(|op| Over { op, fault });
        }
        let done = self.ops.front().is_some_and(|op| op.reached && op.is_done());
        done.then(|| self.ops.pop_front().map(|op| Over { op, fault: None })).flatten()
    }

    /// Nothing can be exchanged any more; the other ranks find that this one has gone.
    pub fn break_off(&mut self, why: String) {
        self.broken.get_or_insert(why);
        self.member = None;
    }

    /// The client is done with it. True if it can go at once; otherwise it goes once [`Comm::is_at_end`].
    pub fn end(&mut self) {
        self.ending = true;
    }

    /// True once nothing keeps a communicator that was ended.
    pub fn is_at_end(&self) -> bool {
        self.ending && self.ops.is_empty() && self.in_flight == 0
    }

    /// Leaves in order, if it is not broken.
    pub fn leave(self) {
        if let Some(member) = self.member {
            member.end();
        }
    }

    /// True while something is under way or waits for peers.
    pub fn is_busy(&self) -> bool {
        !self.ops.is_empty() || self.ending
    }
}

/// What is said of a rank that is gone.
fn gone(rank: usize) -> String {
    format!("rank {rank} of the communicator is gone (its process or its daemon has ended)")
}

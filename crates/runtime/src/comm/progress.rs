//! What the device can do for the exchange at the front.

use session::peers::{CHUNK_BYTES, Left, Member, SLOTS};

use super::{Comm, Op, Reduction, gone};

/// What a command moves; indices are those of the exchange at the front.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    /// A chunk of a message into a slot.
    Send {
        /// Message.
        part: u16,
        /// Bytes.
        len: u32,
    },
    /// A chunk of a message out of a slot.
    Receive {
        /// Message.
        part: u16,
        /// Bytes.
        len: u32,
    },
    /// A chunk of everyone's, reduced.
    Reduce {
        /// Bytes.
        len: u32,
    },
}

impl Move {
    /// Bytes of each piece.
    pub fn bytes(self) -> u64 {
        match self {
            Self::Send { len, .. } | Self::Receive { len, .. } | Self::Reduce { len } => u64::from(len),
        }
    }
}

/// Something that the device can do now.
#[derive(Debug)]
pub struct Todo {
    /// What.
    pub what: Move,
    /// Offset of the chunk in its message.
    pub offset: u64,
    /// The slots: one to write or read, or one a receive, in order of rank. `(from, to, chunk)`.
    pub slots: Vec<(usize, usize, u64)>,
    /// The first of the exchange.
    pub opens: bool,
}

impl Comm {
    /// The member, while nothing is broken.
    pub fn member(&self) -> Option<&Member> {
        self.member.as_ref()
    }

    /// The exchange at the front.
    pub fn front(&self) -> Option<&Op> {
        self.ops.front()
    }

    /// Something that the device can do now, which it is then taken to do.
    ///
    /// # Errors
    /// Why the communicator is broken.
    pub fn next(&mut self) -> Result<Option<Todo>, String> {
        if self.broken.is_some() || !self.ops.front().is_some_and(|op| op.reached) {
            return Ok(None);
        }
        let todo = match self.next_send()? {
            Some(todo) => Some(todo),
            None if self.front().is_some_and(|op| op.reduction.is_some()) => self.next_reduction()?,
            None => self.next_receive()?,
        };
        self.in_flight += usize::from(todo.is_some());
        Ok(todo)
    }

    fn next_send(&mut self) -> Result<Option<Todo>, String> {
        let Self { ops, lanes, member, rank: me, .. } = self;
        let (Some(op), Some(member)) = (ops.front_mut(), member) else { return Ok(None) };
        let segment = member.segment();
        let opens = op.sends.iter().chain(&op.receives).all(|p| p.issued == 0);
        // Messages to one peer go in order.
        let mut busy = 0u32;
        for (index, part) in op.sends.iter_mut().enumerate() {
            if part.issued == part.len || busy & 1 << part.peer != 0 {
                continue;
            }
            busy |= 1 << part.peer;
            let left = member.left(part.peer);
            let lane = &mut lanes[part.peer];
            let waiting = lane.out_chunks.wrapping_sub(segment.taken(*me, part.peer));
            if waiting > SLOTS {
                return Err(format!("the counters that rank {} shares make no sense", part.peer));
            }
            if waiting == SLOTS {
                if left != Left::No {
                    return Err(gone(part.peer));
                }
                continue;
            }
            let (offset, chunk) = (part.issued, lane.out_chunks);
            let len = CHUNK_BYTES.min(part.len - offset);
            segment.set_head(*me, part.peer, chunk, op.tag, part.len);
            part.issued += len;
            lane.out_chunks += 1;
            let what = Move::Send { part: index as u16, len: len as u32 };
            return Ok(Some(Todo { what, offset, slots: vec![(*me, part.peer, chunk)], opens }));
        }
        Ok(None)
    }

    /// True if the next chunk from `peer` is in its slot; the first of a message must be of the message that is expected.
    fn has_come(&self, peer: usize, first: bool, (tag, len): (u64, u64)) -> Result<bool, String> {
        let Some(member) = &self.member else { return Ok(false) };
        let (segment, chunk) = (member.segment(), self.lanes[peer].in_chunks);
        // In this order: what was sent before the peer left still counts.
        let left = member.left(peer);
        let ahead = segment.sent(peer, self.rank).wrapping_sub(chunk);
        if ahead > SLOTS {
            return Err(format!("the counters that rank {peer} shares make no sense"));
        }
        if ahead == 0 {
            return if left == Left::No { Ok(false) } else { Err(gone(peer)) };
        }
        let theirs = segment.head(peer, self.rank, chunk);
        if first && theirs != (tag, len) {
            return Err(format!(
                "the ranks do not agree on what they exchange: rank {peer} sends {} bytes of a call that rank {} expects \
                 {len} bytes of{}",
                theirs.1,
                self.rank,
                if theirs.0 == tag { "" } else { ", and it is another call, type or operation" }
            ));
        }
        Ok(true)
    }

    fn next_receive(&mut self) -> Result<Option<Todo>, String> {
        let Some(op) = self.ops.front() else { return Ok(None) };
        let mut busy = 0u32;
        let mut found = None;
        for (index, part) in op.receives.iter().enumerate() {
            if part.issued == part.len || busy & 1 << part.peer != 0 {
                continue;
            }
            busy |= 1 << part.peer;
            if self.has_come(part.peer, part.issued == 0, (op.tag, part.len))? {
                found = Some(index);
                break;
            }
        }
        let Some(index) = found else { return Ok(None) };
        let Self { ops, lanes, rank, .. } = self;
        let Some(op) = ops.front_mut() else { return Ok(None) };
        let opens = op.sends.is_empty() && op.receives.iter().all(|p| p.issued == 0);
        let part = &mut op.receives[index];
        let (offset, lane) = (part.issued, &mut lanes[part.peer]);
        let len = CHUNK_BYTES.min(part.len - offset);
        part.issued += len;
        lane.in_chunks += 1;
        let what = Move::Receive { part: index as u16, len: len as u32 };
        Ok(Some(Todo { what, offset, slots: vec![(part.peer, *rank, lane.in_chunks - 1)], opens }))
    }

    fn next_reduction(&mut self) -> Result<Option<Todo>, String> {
        let Some(op) = self.ops.front() else { return Ok(None) };
        let Some(first) = op.receives.first() else { return Ok(None) };
        let (offset, len) = (first.issued, CHUNK_BYTES.min(first.len - first.issued));
        let unsent = op.sends.iter().any(|p| p.issued < p.len.min(offset + len));
        if len == 0 || unsent {
            return Ok(None);
        }
        let mut all = true;
        for part in &op.receives {
            // Every one is looked at: one that has gone ends it although another is late.
            all &= self.has_come(part.peer, offset == 0, (op.tag, part.len))?;
        }
        if !all {
            return Ok(None);
        }
        let Self { ops, lanes, rank, .. } = self;
        let Some(op) = ops.front_mut() else { return Ok(None) };
        let opens = op.sends.is_empty() && offset == 0;
        let mut slots = Vec::with_capacity(op.receives.len());
        for part in &mut op.receives {
            part.issued += len;
            slots.push((part.peer, *rank, lanes[part.peer].in_chunks));
            lanes[part.peer].in_chunks += 1;
        }
        slots.sort_unstable();
        Ok(Some(Todo { what: Move::Reduce { len: len as u32 }, offset, slots, opens }))
    }

    /// A command is done; the peers that it concerns are told.
    pub fn moved(&mut self, what: Move, worked: Result<(), String>) {
        self.in_flight -= 1;
        if let Err(why) = worked {
            return self.break_off(why);
        }
        let Self { ops, member, rank: me, .. } = self;
        let (Some(op), Some(member)) = (ops.front_mut(), member) else { return };
        let segment = member.segment();
        match what {
            Move::Send { part, len } => {
                let part = &mut op.sends[usize::from(part)];
                part.done += u64::from(len);
                segment.count_sent(*me, part.peer);
                member.ring(part.peer);
            }
            Move::Receive { part, len } => {
                let part = &mut op.receives[usize::from(part)];
                part.done += u64::from(len);
                segment.count_taken(part.peer, *me);
                member.ring(part.peer);
            }
            Move::Reduce { len } => {
                for part in &mut op.receives {
                    part.done += u64::from(len);
                    segment.count_taken(part.peer, *me);
                    member.ring(part.peer);
                }
            }
        }
    }
}

impl Op {
    /// How many of the ranks that it receives from come before `rank`.
    pub fn place(&self, rank: usize) -> usize {
        self.receives.iter().filter(|p| p.peer < rank).count()
    }

    /// How receives become one.
    pub fn reduced(&self) -> Option<Reduction> {
        self.reduction
    }
}

//! A synchronisation and the small copy to the host that follows it, in one round trip.
//!
//! Reading one number (`tensor.item()`) is two AscendCL calls: synchronise the stream, copy a few bytes from the device.
//! What is copied is nearly always the output of the stream's last operator. So the synchronising record names that
//! output, the daemon copies it behind the operator into memory that both share, and the copy that follows is answered
//! from there.
//!
//! **Invariant:** a copy is answered from here only if its bytes cannot differ from what a copy now would give. The daemon
//! fetches only while no other stream of the session has an operator queued or running, and the answer counts only until
//! this process posts the next record of any kind. Memory that another process may write is never fetched.
//!
//! **Cost** where the guess is wrong: one copy of at most [`FETCH_BYTES_MAX`] bytes on the device. A stream guesses only
//! while it is right: [`CREDIT`] wrong guesses in a row end it, one guess that would have been right starts it again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

use wire::ArenaRange;

use crate::stream::Marks;

/// Most bytes fetched with a synchronisation: a page, for small tensors printed or converted to lists.
pub const FETCH_BYTES_MAX: u64 = 4096;
/// Wrong guesses in a row that end a stream's guessing.
pub const CREDIT: u8 = 4;

/// Bytes of device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First byte, an address of the client's.
    pub addr: u64,
    /// Number of bytes, 1 to [`FETCH_BYTES_MAX`].
    pub len: u64,
}

impl Span {
    /// A span that may be fetched.
    pub fn small(addr: u64, len: u64) -> Option<Self> {
        (1..=FETCH_BYTES_MAX).contains(&len).then_some(Self { addr, len })
    }

    /// Where `len` bytes at `addr` lie in it.
    fn offset_of(&self, addr: u64, len: u64) -> Option<u64> {
        let offset = addr.checked_sub(self.addr)?;
        (offset.checked_add(len)? <= self.len).then_some(offset)
    }
}

/// What a stream's next small copy will probably read. A guess: threads that race here cost a fetch, nothing else.
#[derive(Debug, Default)]
pub struct Forecast {
    /// Output of the last operator: address in the low 48 bits, bytes above; 0 for none.
    output: AtomicU64,
    credit: AtomicU8,
}

const ADDR_BITS: u32 = 48;

impl Forecast {
    /// The stream's last operator writes `output`, if that is small.
    pub fn wrote(&self, output: Option<Span>) {
        let packed = output.filter(|o| o.addr >> ADDR_BITS == 0).map_or(0, |o| o.addr | o.len << ADDR_BITS);
        self.output.store(packed, Relaxed);
    }

    /// What the next copy would read if it reads the last output.
    pub fn output(&self) -> Option<Span> {
        match self.output.load(Relaxed) {
            0 => None,
            packed => Some(Span { addr: packed & ((1 << ADDR_BITS) - 1), len: packed >> ADDR_BITS }),
        }
    }

    /// Takes one guess; false where the last ones were wrong.
    fn take(&self) -> bool {
        self.credit.fetch_update(Relaxed, Relaxed, |c| c.checked_sub(1)).is_ok()
    }

    fn right(&self) {
        self.credit.store(CREDIT, Relaxed);
    }
}

/// The last synchronisation of a session that had a guess.
#[derive(Default)]
pub struct Fetched {
    last: Option<Last>,
    /// Shared memory that the daemon copies to, once it was needed.
    room: Option<ArenaRange>,
}

struct Last {
    marks: Arc<Marks>,
    span: Span,
    /// Position of the session's ring behind the synchronising record.
    position: u64,
    /// The bytes are in the room; else only the guess is known.
    copied: bool,
}

/// What a synchronisation shall do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Wait only.
    Plain,
    /// Wait, and fetch the span into the room.
    Fetch(Span, ArenaRange),
}

impl Fetched {
    /// What to do with a synchronisation of the stream with these marks; `room` gives shared memory when it is needed first.
    pub fn plan(&mut self, marks: &Arc<Marks>, room: impl FnOnce() -> Option<ArenaRange>) -> (Plan, Option<Span>) {
        self.last = None;
        let span = marks.forecast.output();
        let plan = match span.filter(|_| marks.forecast.take()) {
            None => Plan::Plain,
            Some(span) => {
                self.room = self.room.or_else(room);
                self.room.map_or(Plan::Plain, |room| Plan::Fetch(span, ArenaRange { len: span.len, ..room }))
            }
        };
        (plan, span)
    }

    /// The synchronisation with this guess was answered.
    pub fn answered(&mut self, marks: &Arc<Marks>, span: Option<Span>, position: u64, copied: bool) {
        self.last = span.map(|span| Last { marks: marks.clone(), span, position, copied });
    }

    /// Where in shared memory the `len` bytes at `addr` are, if they are still what the device holds: `position` is the
    /// ring's now. Learns whether the guess was right either way.
    pub fn find(&mut self, addr: u64, len: u64, position: u64) -> Option<ArenaRange> {
        let last = self.last.as_ref().filter(|last| last.position == position)?;
        let offset = last.span.offset_of(addr, len)?;
        last.marks.forecast.right();
        let room = self.room.filter(|_| last.copied)?;
        Some(ArenaRange { offset: room.offset + offset, len })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Mode};
    use crate::link::Link;
    use wire::Record;

    const ROOM: ArenaRange = ArenaRange { offset: 512, len: FETCH_BYTES_MAX };

    /// A synchronisation at `position` that fetches if it is asked to; true if it was.
    fn synchronise(fetched: &mut Fetched, marks: &Arc<Marks>, position: u64) -> bool {
        let (plan, span) = fetched.plan(marks, || Some(ROOM));
        fetched.answered(marks, span, position, plan != Plan::Plain);
        plan != Plan::Plain
    }

    #[test]
    fn a_guess_is_learnt_used_and_given_up() {
        let (mut fetched, marks) = (Fetched::default(), Arc::<Marks>::default());
        assert!(!synchronise(&mut fetched, &marks, 1), "nothing to guess from");
        marks.forecast.wrote(Span::small(0x1000, 16));
        assert!(!synchronise(&mut fetched, &marks, 2), "not proven yet");
        assert_eq!(fetched.find(0x1008, 8, 2), None, "not copied");
        assert!(synchronise(&mut fetched, &marks, 3), "it would have been right");
        assert_eq!(fetched.find(0x1008, 8, 3), Some(ArenaRange { offset: 520, len: 8 }));
        assert_eq!(fetched.find(0x1008, 9, 3), None, "past the end");
        assert_eq!(fetched.find(0xfff, 8, 3), None, "before it");
        let wrong = (4..100).filter(|&at| synchronise(&mut fetched, &marks, at)).count();
        assert_eq!(wrong, usize::from(CREDIT));
        assert_eq!(fetched.find(0x1000, 1, 99), None);
        assert!(synchronise(&mut fetched, &marks, 100), "right again");
    }

    #[test]
    fn any_record_in_between_ends_it() {
        let (mut fetched, marks) = (Fetched::default(), Arc::<Marks>::default());
        marks.forecast.wrote(Span::small(0x1000, 8));
        marks.forecast.right();
        assert!(synchronise(&mut fetched, &marks, 5));
        assert_eq!(fetched.find(0x1000, 8, 6), None);
        assert!(fetched.find(0x1000, 8, 5).is_some());
    }

    #[test]
    fn what_the_daemon_did_not_copy_is_not_found() {
        let (mut fetched, marks) = (Fetched::default(), Arc::<Marks>::default());
        marks.forecast.wrote(Span::small(0x1000, 8));
        marks.forecast.right();
        let (plan, span) = fetched.plan(&marks, || Some(ROOM));
        assert_eq!(plan, Plan::Fetch(Span { addr: 0x1000, len: 8 }, ArenaRange { offset: 512, len: 8 }));
        fetched.answered(&marks, span, 5, false);
        assert_eq!(fetched.find(0x1000, 8, 5), None);
        assert_eq!(Span::small(0, FETCH_BYTES_MAX + 1), None);
        assert_eq!(Span::small(0, 0), None);
    }

    #[test]
    fn a_number_read_after_each_operator_costs_one_round_trip() {
        use acl_abi::{Arg, DataType, OpCall, Scalar, TensorDesc, ops};

        let mode =
            Mode::Direct { specs: vec!["Ascend910B3:functional:hbm=1".to_owned()], policy: "passthrough".to_owned() };
        let link = Arc::new(Link::open(0, &Config { mode, hints: None }).unwrap());
        let stream = link.default_stream();
        let number = link.malloc(64).unwrap();
        link.call(|reply| Record::Memset { addr: number, len: 64, value: 0, stream: None, reply: Some(reply) })
            .unwrap();
        let mut call = OpCall::new(ops::aclnnAdds);
        let one = Scalar { dtype: DataType::F32, bits: u64::from(1f32.to_bits()) };
        let view = TensorDesc::contiguous(number, DataType::F32, &[1]);
        call.push_tensor(Some(view)).push(Arg::Scalar(one)).push(Arg::Scalar(one)).push_tensor(Some(view));
        let mut body = Vec::new();
        wire::op::encode_op(&call, &mut body).unwrap();
        let [before, _] = link.round_trips();
        const READS: u64 = 50;
        for read in 1..=READS {
            stream.post_op(&body, Span::small(number, 4)).unwrap();
            stream.synchronise().unwrap();
            let mut value = [0u8; 4];
            // SAFETY: `bytes` has the 4 bytes that were asked for.
            let take = |bytes: *const u8| value = unsafe { bytes.cast::<[u8; 4]>().read_unaligned() };
            // The first pair only shows that guessing pays.
            assert_eq!(link.take_fetched(number, 4, take), read > 1);
            assert!(read == 1 || f32::from_le_bytes(value) == read as f32, "{value:?}");
        }
        let [after, fetched] = link.round_trips();
        assert_eq!((after - before, fetched), (READS, READS - 1));
    }
}

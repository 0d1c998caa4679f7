//! Records: the entries of the command ring.
//!
//! Streams and events are minted by the client, never reused, and named by a number. `stream: None` marks a synchronous
//! call: it executes at once in ring order and is not ordered with any stream. Stream 0 is the session's default stream
//! and exists from the start.
//!
//! A record is a tag byte and its fields, little endian, without padding. An operator record is tag, stream, and the body
//! of [`crate::op`]. Decoding checks everything that bytes alone can show; ranges of the arena, slots and blocks are
//! checked by `session`, addresses by the daemon.

use crate::cursor::{Put, Reader};
use crate::limits::{GRAPH_NODE_BYTES_MAX, INLINE_COPY_BYTES_MAX};
use crate::op::{decode_op, encode_op};
use crate::{DecodeError, EncodeError, Hint};
use acl_abi::OpCall;

/// Where the answer goes: a reply slot, and the number that tells this answer from an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ReplyTo {
    /// Slot.
    pub slot: u16,
    /// Sequence number of the call in that slot.
    pub seq: u32,
}

/// Bytes in the session's shared arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ArenaRange {
    /// First byte, from the start of the arena.
    pub offset: u64,
    /// Number of bytes.
    pub len: u64,
}

impl ArenaRange {
    /// One past the last byte; `None` where that overflows.
    pub fn end(&self) -> Option<u64> {
        self.offset.checked_add(self.len)
    }
}

/// Where the bytes of a host-to-device copy are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostSource<'a> {
    /// In the record, at most [`INLINE_COPY_BYTES_MAX`].
    Inline(&'a [u8]),
    /// At the start of a staging block, which the daemon gives back once it has read it.
    Staging {
        /// Block.
        block: u32,
        /// Number of bytes.
        len: u32,
    },
    /// In pinned host memory, read when the copy executes.
    Pinned(ArenaRange),
}

impl HostSource<'_> {
    /// Number of bytes to copy.
    pub fn byte_len(&self) -> u64 {
        match self {
            HostSource::Inline(bytes) => bytes.len() as u64,
            HostSource::Staging { len, .. } => u64::from(*len),
            HostSource::Pinned(range) => range.len,
        }
    }
}

/// What a [`Record::ValueWait`] waits for, `memory` being the eight bytes and `value` the record's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueCondition {
    /// `memory - value`, as a signed number, is not negative.
    GreaterOrEqual,
    /// They are equal.
    Equal,
    /// They have a bit in common.
    And,
    /// Some bit is set in neither.
    Nor,
}

impl ValueCondition {
    /// All of them, each at its number in AscendCL.
    pub const ALL: [Self; 4] = [Self::GreaterOrEqual, Self::Equal, Self::And, Self::Nor];

    /// The condition with this number.
    pub fn of(number: u32) -> Option<Self> {
        Self::ALL.get(number as usize).copied()
    }

    /// True if `memory` is as asked for.
    pub fn holds(self, memory: u64, value: u64) -> bool {
        match self {
            Self::GreaterOrEqual => memory.wrapping_sub(value).cast_signed() >= 0,
            Self::Equal => memory == value,
            Self::And => memory & value != 0,
            Self::Nor => !(memory | value) != 0,
        }
    }
}

/// One entry of the command ring. The variants mirror AscendCL calls; see there for their meaning.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Record<'a> {
    StreamCreate {
        stream: u32,
        priority: u32,
        flags: u32,
    },
    StreamDestroy {
        stream: u32,
    },
    StreamSync {
        stream: u32,
        reply: ReplyTo,
    },
    StreamQuery {
        stream: u32,
        reply: ReplyTo,
    },
    DeviceSync {
        reply: ReplyTo,
    },
    EventCreate {
        event: u32,
        flags: u32,
    },
    EventDestroy {
        event: u32,
    },
    EventRecord {
        event: u32,
        stream: u32,
    },
    EventReset {
        event: u32,
        stream: u32,
    },
    StreamWaitEvent {
        stream: u32,
        event: u32,
    },
    EventSync {
        event: u32,
        reply: ReplyTo,
    },
    EventQuery {
        event: u32,
        reply: ReplyTo,
    },
    EventElapsed {
        start: u32,
        end: u32,
        reply: ReplyTo,
    },
    Malloc {
        size: u64,
        reply: ReplyTo,
    },
    Free {
        addr: u64,
        reply: ReplyTo,
    },
    MemInfo {
        reply: ReplyTo,
    },
    /// A key by which other processes of the tenant open an event that was created for it.
    EventExport {
        event: u32,
        reply: ReplyTo,
    },
    /// Event number `event` becomes the one that the key is good for.
    EventImport {
        event: u32,
        key: [u64; 4],
        reply: ReplyTo,
    },
    /// `aclrtReserveMemAddress`.
    Reserve {
        size: u64,
        reply: ReplyTo,
    },
    /// `aclrtReleaseMemAddress`.
    Release {
        addr: u64,
        reply: ReplyTo,
    },
    /// `aclrtMallocPhysical`.
    PhysicalAlloc {
        size: u64,
        reply: ReplyTo,
    },
    /// `aclrtFreePhysical`.
    PhysicalFree {
        handle: u64,
        reply: ReplyTo,
    },
    /// `aclrtMapMem`.
    Map {
        addr: u64,
        size: u64,
        offset: u64,
        handle: u64,
        reply: ReplyTo,
    },
    /// `aclrtUnmapMem`.
    Unmap {
        addr: u64,
        reply: ReplyTo,
    },
    /// Lets other processes of the tenant import the allocation that begins at address `subject`, or physical handle number
    /// `subject`; with `named_only` those that [`Record::ExportAllow`] names.
    Export {
        handle: bool,
        subject: u64,
        size: u64,
        named_only: bool,
        reply: ReplyTo,
    },
    ExportAllow {
        key: [u64; 4],
        pid: u32,
        reply: ReplyTo,
    },
    ExportClose {
        key: [u64; 4],
        reply: ReplyTo,
    },
    /// Imports what the key is good for: an allocation, or a physical handle.
    Import {
        key: [u64; 4],
        handle: bool,
        reply: ReplyTo,
    },
    /// Host to device.
    CopyIn {
        dst: u64,
        source: HostSource<'a>,
        stream: Option<u32>,
        reply: Option<ReplyTo>,
    },
    /// Device to host, `dst.len` bytes.
    CopyOut {
        dst: ArenaRange,
        src: u64,
        stream: Option<u32>,
        reply: Option<ReplyTo>,
    },
    CopyDevice {
        dst: u64,
        src: u64,
        len: u64,
        stream: Option<u32>,
        reply: Option<ReplyTo>,
    },
    Memset {
        addr: u64,
        len: u64,
        value: u8,
        stream: Option<u32>,
        reply: Option<ReplyTo>,
    },
    /// `aclrtValueWrite`: eight bytes of device memory, in stream order.
    ValueWrite {
        stream: u32,
        addr: u64,
        value: u64,
    },
    /// `aclrtValueWait`: the stream waits until the eight bytes at `addr` are as asked for.
    ValueWait {
        stream: u32,
        addr: u64,
        value: u64,
        until: ValueCondition,
    },
    /// An operator; the call itself is decoded into the scratch of [`decode`].
    Op {
        stream: u32,
    },
    /// An operator that is answered when it has completed: `[extent, 1]`, or `[0, 0]` where the device knows no extent.
    OpAnswered {
        stream: u32,
        reply: ReplyTo,
    },
    /// As `StreamSync`, and the `dst.len` bytes at `src` are copied to the host behind the stream's work: `[1]` if they
    /// were, `[0]` if something else of the session was under way or the bytes are not the session's.
    StreamFetch {
        stream: u32,
        dst: ArenaRange,
        src: u64,
        reply: ReplyTo,
    },
    /// When the stream gets here, `call` is told to the client ([`Record::HostWait`]); with `block`, the stream waits for
    /// the flag of that number.
    HostCall {
        stream: u32,
        call: u32,
        block: bool,
    },
    /// Answered as soon as streams have got to some [`Record::HostCall`]: `[count, call, call, call]`. One at a time: an
    /// earlier one is answered with none.
    HostWait {
        reply: ReplyTo,
    },
    /// The stream waits until the flag is set or released.
    FlagWait {
        stream: u32,
        flag: u32,
    },
    /// Sets the flag in stream order.
    FlagSet {
        stream: u32,
        flag: u32,
    },
    /// Clears the flag in stream order.
    FlagClear {
        stream: u32,
        flag: u32,
    },
    /// Ends every wait for the flag, at once, and forgets the flag.
    FlagRelease {
        flag: u32,
    },
    /// When the event's last record completed: `[microseconds]` since the device started.
    EventTime {
        event: u32,
        reply: ReplyTo,
    },
    /// A graph that [`Record::GraphNode`]s fill; it starts where `stream` will be when it is launched.
    GraphBegin {
        graph: u32,
        stream: u32,
    },
    /// Appends a node: the bytes of a record of a stream without an answer. `group` 0: none.
    GraphNode {
        graph: u32,
        group: u32,
        node: &'a [u8],
    },
    /// The graph is complete.
    GraphEnd {
        graph: u32,
        reply: ReplyTo,
    },
    /// Everything of the graph, where `stream` is now.
    GraphLaunch {
        graph: u32,
        stream: u32,
    },
    /// Another operator in place of the `index`-th of a group, also for launches whose streams have not got there.
    GraphUpdate {
        graph: u32,
        group: u32,
        index: u32,
        node: &'a [u8],
    },
    GraphDestroy {
        graph: u32,
    },
    Hint(Hint),
    /// So many lines for hints since the last such record were none.
    HintsRefused {
        lines: u32,
    },
}

impl Record<'_> {
    /// True for the records that carry an operator call.
    pub fn has_call(&self) -> bool {
        matches!(self, Record::Op { .. } | Record::OpAnswered { .. })
    }
}

macro_rules! tags {
    ($($name:ident = $value:literal)*) => { mod tag { $(pub(super) const $name: u8 = $value;)* } };
}
tags! {
    STREAM_CREATE = 1 STREAM_DESTROY = 2 STREAM_SYNC = 3 STREAM_QUERY = 4 DEVICE_SYNC = 5 EVENT_CREATE = 6 EVENT_DESTROY = 7
    EVENT_RECORD = 8 EVENT_RESET = 9 STREAM_WAIT_EVENT = 10 EVENT_SYNC = 11 EVENT_QUERY = 12 EVENT_ELAPSED = 13 MALLOC = 14
    FREE = 15 MEM_INFO = 16 COPY_IN = 17 COPY_OUT = 18 COPY_DEVICE = 19 MEMSET = 20 OP = 21 HINT = 22
    RESERVE = 40 RELEASE = 41 PHYSICAL_ALLOC = 42 PHYSICAL_FREE = 43 MAP = 44 UNMAP = 45
    EXPORT = 46 EXPORT_ALLOW = 47 EXPORT_CLOSE = 48 IMPORT = 49
    OP_ANSWERED = 60 STREAM_FETCH = 61 HOST_CALL = 62 HOST_WAIT = 63 FLAG_WAIT = 64 FLAG_SET = 65 FLAG_CLEAR = 66
    FLAG_RELEASE = 67 EVENT_TIME = 68 GRAPH_BEGIN = 69 GRAPH_NODE = 70 GRAPH_END = 71 GRAPH_LAUNCH = 72 GRAPH_UPDATE = 73
    GRAPH_DESTROY = 74 EVENT_EXPORT = 75 EVENT_IMPORT = 76 VALUE_WRITE = 77 VALUE_WAIT = 78
    HINTS_REFUSED = 79
}

const SOURCE_INLINE: u8 = 0;
const SOURCE_STAGING: u8 = 1;
const SOURCE_PINNED: u8 = 2;

const HAS_STREAM: u8 = 1;
const HAS_REPLY: u8 = 2;

/// Appends `record`; `call` goes with [`Record::Op`] and with nothing else.
///
/// # Errors
/// If the record or the call breaks a limit or the call does not fit its signature; `out` is then unchanged.
pub fn encode(record: &Record<'_>, call: Option<&OpCall>, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    let start = out.len();
    let result = put_record(record, call, out);
    if result.is_err() {
        out.truncate(start);
    }
    result
}

/// Appends an operator record made from a body that [`encode_op`] made earlier.
///
/// # Errors
/// If the body is longer than [`crate::op::OP_BYTES_MAX`].
pub fn encode_op_record(stream: u32, body: &[u8], out: &mut Vec<u8>) -> Result<(), EncodeError> {
    let max = crate::op::OP_BYTES_MAX;
    if body.len() > max {
        return Err(EncodeError::TooMany { what: "bytes of an operator call", count: body.len(), max });
    }
    let [a, b, c, d] = stream.to_le_bytes();
    out.put([tag::OP, a, b, c, d]);
    out.extend_from_slice(body);
    Ok(())
}

/// As [`encode_op_record`], for an operator that is answered.
///
/// # Errors
/// If the body is longer than [`crate::op::OP_BYTES_MAX`].
pub fn encode_answered_op(stream: u32, reply: ReplyTo, body: &[u8], out: &mut Vec<u8>) -> Result<(), EncodeError> {
    let max = crate::op::OP_BYTES_MAX;
    if body.len() > max {
        return Err(EncodeError::TooMany { what: "bytes of an operator call", count: body.len(), max });
    }
    out.u8(tag::OP_ANSWERED);
    out.u32(stream);
    put_reply(reply, out);
    out.extend_from_slice(body);
    Ok(())
}

/// Reads one record. An operator's call goes into `scratch`, whose allocations are reused; other records leave it alone.
///
/// # Errors
/// If the bytes are not exactly one valid record.
pub fn decode<'a>(bytes: &'a [u8], scratch: &mut OpCall) -> Result<Record<'a>, DecodeError> {
    let mut r = Reader::new(bytes);
    let tag = r.u8()?;
    if tag == tag::OP {
        let stream = r.u32()?;
        decode_op(r.take(r.left())?, scratch)?;
        return Ok(Record::Op { stream });
    }
    if tag == tag::OP_ANSWERED {
        let (stream, reply) = (r.u32()?, take_reply(&mut r)?);
        decode_op(r.take(r.left())?, scratch)?;
        return Ok(Record::OpAnswered { stream, reply });
    }
    let record = take_record(tag, &mut r)?;
    r.end()?;
    Ok(record)
}

fn put_pair(tag: u8, a: u32, b: u32, out: &mut Vec<u8>) {
    out.u8(tag);
    out.u32(a);
    out.u32(b);
}

fn put_value(tag: u8, stream: u32, addr: u64, value: u64, out: &mut Vec<u8>) {
    out.u8(tag);
    out.u32(stream);
    out.u64(addr);
    out.u64(value);
}

/// The bytes of a node end the record.
fn put_node(node: &[u8], out: &mut Vec<u8>) -> Result<(), EncodeError> {
    if node.len() > GRAPH_NODE_BYTES_MAX {
        let what = "bytes of a graph's node";
        return Err(EncodeError::TooMany { what, count: node.len(), max: GRAPH_NODE_BYTES_MAX });
    }
    out.extend_from_slice(node);
    Ok(())
}

fn take_node<'a>(r: &mut Reader<'a>) -> Result<&'a [u8], DecodeError> {
    let count = r.left();
    if count > GRAPH_NODE_BYTES_MAX {
        return Err(DecodeError::TooMany { what: "bytes of a graph's node", count, max: GRAPH_NODE_BYTES_MAX });
    }
    r.take(count)
}

fn put_reply(to: ReplyTo, out: &mut Vec<u8>) {
    out.u16(to.slot);
    out.u32(to.seq);
}

/// A record of nothing but numbers and a reply.
fn put_numbers(tag: u8, numbers: &[u64], reply: ReplyTo, out: &mut Vec<u8>) {
    out.u8(tag);
    numbers.iter().for_each(|&n| out.u64(n));
    put_reply(reply, out);
}

fn put_range(range: ArenaRange, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    if range.end().is_none() {
        let what = "bytes of an arena range";
        return Err(EncodeError::TooMany { what, count: range.len as usize, max: usize::MAX });
    }
    out.u64(range.offset);
    out.u64(range.len);
    Ok(())
}

fn put_optional(stream: Option<u32>, reply: Option<ReplyTo>, out: &mut Vec<u8>) {
    let flag = |on, bit| if on { bit } else { 0 };
    out.u8(flag(stream.is_some(), HAS_STREAM) | flag(reply.is_some(), HAS_REPLY));
    if let Some(stream) = stream {
        out.u32(stream);
    }
    if let Some(reply) = reply {
        put_reply(reply, out);
    }
}

fn put_source(source: &HostSource<'_>, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    match *source {
        HostSource::Inline(bytes) => {
            if bytes.len() > INLINE_COPY_BYTES_MAX {
                let what = "bytes of an inline copy";
                return Err(EncodeError::TooMany { what, count: bytes.len(), max: INLINE_COPY_BYTES_MAX });
            }
            out.u8(SOURCE_INLINE);
            out.u16(bytes.len() as u16);
            out.extend_from_slice(bytes);
        }
        HostSource::Staging { block, len } => {
            out.u8(SOURCE_STAGING);
            out.u32(block);
            out.u32(len);
        }
        HostSource::Pinned(range) => {
            out.u8(SOURCE_PINNED);
            put_range(range, out)?;
        }
    }
    Ok(())
}

fn put_record(record: &Record<'_>, call: Option<&OpCall>, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    if call.is_some() != record.has_call() {
        return Err(EncodeError::CallMismatch);
    }
    match *record {
        Record::StreamCreate { stream, priority, flags } => {
            out.u8(tag::STREAM_CREATE);
            out.u32(stream);
            out.u32(priority);
            out.u32(flags);
        }
        Record::StreamDestroy { stream } => {
            out.u8(tag::STREAM_DESTROY);
            out.u32(stream);
        }
        Record::StreamSync { stream, reply } => {
            out.u8(tag::STREAM_SYNC);
            out.u32(stream);
            put_reply(reply, out);
        }
        Record::StreamQuery { stream, reply } => {
            out.u8(tag::STREAM_QUERY);
            out.u32(stream);
            put_reply(reply, out);
        }
        Record::DeviceSync { reply } => {
            out.u8(tag::DEVICE_SYNC);
            put_reply(reply, out);
        }
        Record::EventCreate { event, flags } => {
            out.u8(tag::EVENT_CREATE);
            out.u32(event);
            out.u32(flags);
        }
        Record::EventDestroy { event } => {
            out.u8(tag::EVENT_DESTROY);
            out.u32(event);
        }
        Record::EventRecord { event, stream } => {
            out.u8(tag::EVENT_RECORD);
            out.u32(event);
            out.u32(stream);
        }
        Record::EventReset { event, stream } => {
            out.u8(tag::EVENT_RESET);
            out.u32(event);
            out.u32(stream);
        }
        Record::StreamWaitEvent { stream, event } => {
            out.u8(tag::STREAM_WAIT_EVENT);
            out.u32(stream);
            out.u32(event);
        }
        Record::EventSync { event, reply } => {
            out.u8(tag::EVENT_SYNC);
            out.u32(event);
            put_reply(reply, out);
        }
        Record::EventQuery { event, reply } => {
            out.u8(tag::EVENT_QUERY);
            out.u32(event);
            put_reply(reply, out);
        }
        Record::EventElapsed { start, end, reply } => {
            out.u8(tag::EVENT_ELAPSED);
            out.u32(start);
            out.u32(end);
            put_reply(reply, out);
        }
        Record::Malloc { size, reply } => {
            out.u8(tag::MALLOC);
            out.u64(size);
            put_reply(reply, out);
        }
        Record::Free { addr, reply } => {
            out.u8(tag::FREE);
            out.u64(addr);
            put_reply(reply, out);
        }
        Record::MemInfo { reply } => {
            out.u8(tag::MEM_INFO);
            put_reply(reply, out);
        }
        Record::Reserve { size, reply } => put_numbers(tag::RESERVE, &[size], reply, out),
        Record::Release { addr, reply } => put_numbers(tag::RELEASE, &[addr], reply, out),
        Record::PhysicalAlloc { size, reply } => put_numbers(tag::PHYSICAL_ALLOC, &[size], reply, out),
        Record::PhysicalFree { handle, reply } => put_numbers(tag::PHYSICAL_FREE, &[handle], reply, out),
        Record::Map { addr, size, offset, handle, reply } => {
            put_numbers(tag::MAP, &[addr, size, offset, handle], reply, out);
        }
        Record::Unmap { addr, reply } => put_numbers(tag::UNMAP, &[addr], reply, out),
        Record::Export { handle, subject, size, named_only, reply } => {
            out.u8(tag::EXPORT);
            out.u8(u8::from(handle));
            out.u8(u8::from(named_only));
            out.u64(subject);
            out.u64(size);
            put_reply(reply, out);
        }
        Record::ExportAllow { key, pid, reply } => {
            out.u8(tag::EXPORT_ALLOW);
            out.u32(pid);
            key.iter().for_each(|&word| out.u64(word));
            put_reply(reply, out);
        }
        Record::ExportClose { key, reply } => put_numbers(tag::EXPORT_CLOSE, &key, reply, out),
        Record::Import { key, handle, reply } => {
            out.u8(tag::IMPORT);
            out.u8(u8::from(handle));
            key.iter().for_each(|&word| out.u64(word));
            put_reply(reply, out);
        }
        Record::CopyIn { dst, ref source, stream, reply } => {
            out.u8(tag::COPY_IN);
            out.u64(dst);
            put_source(source, out)?;
            put_optional(stream, reply, out);
        }
        Record::CopyOut { dst, src, stream, reply } => {
            out.u8(tag::COPY_OUT);
            put_range(dst, out)?;
            out.u64(src);
            put_optional(stream, reply, out);
        }
        Record::CopyDevice { dst, src, len, stream, reply } => {
            out.u8(tag::COPY_DEVICE);
            out.u64(dst);
            out.u64(src);
            out.u64(len);
            put_optional(stream, reply, out);
        }
        Record::Memset { addr, len, value, stream, reply } => {
            out.u8(tag::MEMSET);
            out.u64(addr);
            out.u64(len);
            out.u8(value);
            put_optional(stream, reply, out);
        }
        Record::Op { stream } => {
            out.u8(tag::OP);
            out.u32(stream);
            encode_op(call.ok_or(EncodeError::CallMismatch)?, out)?;
        }
        Record::OpAnswered { stream, reply } => {
            out.u8(tag::OP_ANSWERED);
            out.u32(stream);
            put_reply(reply, out);
            encode_op(call.ok_or(EncodeError::CallMismatch)?, out)?;
        }
        Record::StreamFetch { stream, dst, src, reply } => {
            out.u8(tag::STREAM_FETCH);
            out.u32(stream);
            put_range(dst, out)?;
            out.u64(src);
            put_reply(reply, out);
        }
        Record::HostCall { stream, call, block } => {
            put_pair(tag::HOST_CALL, stream, call, out);
            out.u8(block.into());
        }
        Record::HostWait { reply } => {
            out.u8(tag::HOST_WAIT);
            put_reply(reply, out);
        }
        Record::FlagWait { stream, flag } => put_pair(tag::FLAG_WAIT, stream, flag, out),
        Record::FlagSet { stream, flag } => put_pair(tag::FLAG_SET, stream, flag, out),
        Record::FlagClear { stream, flag } => put_pair(tag::FLAG_CLEAR, stream, flag, out),
        Record::FlagRelease { flag } => {
            out.u8(tag::FLAG_RELEASE);
            out.u32(flag);
        }
        Record::EventTime { event, reply } => {
            out.u8(tag::EVENT_TIME);
            out.u32(event);
            put_reply(reply, out);
        }
        Record::EventExport { event, reply } => {
            out.u8(tag::EVENT_EXPORT);
            out.u32(event);
            put_reply(reply, out);
        }
        Record::EventImport { event, key, reply } => {
            out.u8(tag::EVENT_IMPORT);
            out.u32(event);
            key.iter().for_each(|&word| out.u64(word));
            put_reply(reply, out);
        }
        Record::ValueWrite { stream, addr, value } => put_value(tag::VALUE_WRITE, stream, addr, value, out),
        Record::ValueWait { stream, addr, value, until } => {
            put_value(tag::VALUE_WAIT, stream, addr, value, out);
            out.u8(until as u8);
        }
        Record::GraphBegin { graph, stream } => put_pair(tag::GRAPH_BEGIN, graph, stream, out),
        Record::GraphNode { graph, group, node } => {
            put_pair(tag::GRAPH_NODE, graph, group, out);
            put_node(node, out)?;
        }
        Record::GraphEnd { graph, reply } => {
            out.u8(tag::GRAPH_END);
            out.u32(graph);
            put_reply(reply, out);
        }
        Record::GraphLaunch { graph, stream } => put_pair(tag::GRAPH_LAUNCH, graph, stream, out),
        Record::GraphUpdate { graph, group, index, node } => {
            put_pair(tag::GRAPH_UPDATE, graph, group, out);
            out.u32(index);
            put_node(node, out)?;
        }
        Record::GraphDestroy { graph } => {
            out.u8(tag::GRAPH_DESTROY);
            out.u32(graph);
        }
        Record::Hint(ref hint) => {
            out.u8(tag::HINT);
            hint.encode(out)?;
        }
        Record::HintsRefused { lines } => {
            out.u8(tag::HINTS_REFUSED);
            out.u32(lines);
        }
    }
    Ok(())
}

fn take_reply(r: &mut Reader<'_>) -> Result<ReplyTo, DecodeError> {
    Ok(ReplyTo { slot: r.u16()?, seq: r.u32()? })
}

fn take_flag(r: &mut Reader<'_>) -> Result<bool, DecodeError> {
    match r.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(DecodeError::Unknown { what: "flag", value: u64::from(other) }),
    }
}

fn take_condition(r: &mut Reader<'_>) -> Result<ValueCondition, DecodeError> {
    let number = r.u8()?;
    let unknown = DecodeError::Unknown { what: "condition", value: u64::from(number) };
    ValueCondition::of(u32::from(number)).ok_or(unknown)
}

fn take_key(r: &mut Reader<'_>) -> Result<[u64; 4], DecodeError> {
    Ok([r.u64()?, r.u64()?, r.u64()?, r.u64()?])
}

fn take_range(r: &mut Reader<'_>) -> Result<ArenaRange, DecodeError> {
    let range = ArenaRange { offset: r.u64()?, len: r.u64()? };
    match range.end() {
        Some(_) => Ok(range),
        None => Err(DecodeError::Range { what: "length of an arena range", value: range.len as i64 }),
    }
}

fn take_optional(r: &mut Reader<'_>) -> Result<(Option<u32>, Option<ReplyTo>), DecodeError> {
    let flags = r.u8()?;
    if flags & !(HAS_STREAM | HAS_REPLY) != 0 {
        return Err(DecodeError::Unknown { what: "copy flags", value: u64::from(flags) });
    }
    let stream = if flags & HAS_STREAM != 0 { Some(r.u32()?) } else { None };
    let reply = if flags & HAS_REPLY != 0 { Some(take_reply(r)?) } else { None };
    Ok((stream, reply))
}

fn take_source<'a>(r: &mut Reader<'a>) -> Result<HostSource<'a>, DecodeError> {
    match r.u8()? {
        SOURCE_INLINE => {
            let count = usize::from(r.u16()?);
            if count > INLINE_COPY_BYTES_MAX {
                let what = "bytes of an inline copy";
                return Err(DecodeError::TooMany { what, count, max: INLINE_COPY_BYTES_MAX });
            }
            Ok(HostSource::Inline(r.take(count)?))
        }
        SOURCE_STAGING => Ok(HostSource::Staging { block: r.u32()?, len: r.u32()? }),
        SOURCE_PINNED => Ok(HostSource::Pinned(take_range(r)?)),
        other => Err(DecodeError::Unknown { what: "copy source", value: u64::from(other) }),
    }
}

fn take_record<'a>(tag: u8, r: &mut Reader<'a>) -> Result<Record<'a>, DecodeError> {
    Ok(match tag {
        tag::STREAM_CREATE => Record::StreamCreate { stream: r.u32()?, priority: r.u32()?, flags: r.u32()? },
        tag::STREAM_DESTROY => Record::StreamDestroy { stream: r.u32()? },
        tag::STREAM_SYNC => Record::StreamSync { stream: r.u32()?, reply: take_reply(r)? },
        tag::STREAM_QUERY => Record::StreamQuery { stream: r.u32()?, reply: take_reply(r)? },
        tag::DEVICE_SYNC => Record::DeviceSync { reply: take_reply(r)? },
        tag::EVENT_CREATE => Record::EventCreate { event: r.u32()?, flags: r.u32()? },
        tag::EVENT_DESTROY => Record::EventDestroy { event: r.u32()? },
        tag::EVENT_RECORD => Record::EventRecord { event: r.u32()?, stream: r.u32()? },
        tag::EVENT_RESET => Record::EventReset { event: r.u32()?, stream: r.u32()? },
        tag::STREAM_WAIT_EVENT => Record::StreamWaitEvent { stream: r.u32()?, event: r.u32()? },
        tag::EVENT_SYNC => Record::EventSync { event: r.u32()?, reply: take_reply(r)? },
        tag::EVENT_QUERY => Record::EventQuery { event: r.u32()?, reply: take_reply(r)? },
        tag::EVENT_ELAPSED => Record::EventElapsed { start: r.u32()?, end: r.u32()?, reply: take_reply(r)? },
        tag::MALLOC => Record::Malloc { size: r.u64()?, reply: take_reply(r)? },
        tag::FREE => Record::Free { addr: r.u64()?, reply: take_reply(r)? },
        tag::MEM_INFO => Record::MemInfo { reply: take_reply(r)? },
        tag::RESERVE => Record::Reserve { size: r.u64()?, reply: take_reply(r)? },
        tag::RELEASE => Record::Release { addr: r.u64()?, reply: take_reply(r)? },
        tag::PHYSICAL_ALLOC => Record::PhysicalAlloc { size: r.u64()?, reply: take_reply(r)? },
        tag::PHYSICAL_FREE => Record::PhysicalFree { handle: r.u64()?, reply: take_reply(r)? },
        tag::MAP => {
            Record::Map { addr: r.u64()?, size: r.u64()?, offset: r.u64()?, handle: r.u64()?, reply: take_reply(r)? }
        }
        tag::UNMAP => Record::Unmap { addr: r.u64()?, reply: take_reply(r)? },
        tag::EXPORT => {
            let (handle, named_only) = (take_flag(r)?, take_flag(r)?);
            Record::Export { handle, subject: r.u64()?, size: r.u64()?, named_only, reply: take_reply(r)? }
        }
        tag::EXPORT_ALLOW => {
            let pid = r.u32()?;
            Record::ExportAllow { key: take_key(r)?, pid, reply: take_reply(r)? }
        }
        tag::EXPORT_CLOSE => Record::ExportClose { key: take_key(r)?, reply: take_reply(r)? },
        tag::IMPORT => {
            let handle = take_flag(r)?;
            Record::Import { key: take_key(r)?, handle, reply: take_reply(r)? }
        }
        tag::COPY_IN => {
            let (dst, source) = (r.u64()?, take_source(r)?);
            let (stream, reply) = take_optional(r)?;
            Record::CopyIn { dst, source, stream, reply }
        }
        tag::COPY_OUT => {
            let (dst, src) = (take_range(r)?, r.u64()?);
            let (stream, reply) = take_optional(r)?;
            Record::CopyOut { dst, src, stream, reply }
        }
        tag::COPY_DEVICE => {
            let (dst, src, len) = (r.u64()?, r.u64()?, r.u64()?);
            let (stream, reply) = take_optional(r)?;
            Record::CopyDevice { dst, src, len, stream, reply }
        }
        tag::MEMSET => {
            let (addr, len, value) = (r.u64()?, r.u64()?, r.u8()?);
            let (stream, reply) = take_optional(r)?;
            Record::Memset { addr, len, value, stream, reply }
        }
        tag::STREAM_FETCH => {
            Record::StreamFetch { stream: r.u32()?, dst: take_range(r)?, src: r.u64()?, reply: take_reply(r)? }
        }
        tag::HOST_CALL => Record::HostCall {
            stream: r.u32()?,
            call: r.u32()?,
            block: match r.u8()? {
                0 => false,
                1 => true,
                v => return Err(DecodeError::Unknown { what: "bool", value: u64::from(v) }),
            },
        },
        tag::HOST_WAIT => Record::HostWait { reply: take_reply(r)? },
        tag::FLAG_WAIT => Record::FlagWait { stream: r.u32()?, flag: r.u32()? },
        tag::FLAG_SET => Record::FlagSet { stream: r.u32()?, flag: r.u32()? },
        tag::FLAG_CLEAR => Record::FlagClear { stream: r.u32()?, flag: r.u32()? },
        tag::FLAG_RELEASE => Record::FlagRelease { flag: r.u32()? },
        tag::EVENT_TIME => Record::EventTime { event: r.u32()?, reply: take_reply(r)? },
        tag::EVENT_EXPORT => Record::EventExport { event: r.u32()?, reply: take_reply(r)? },
        tag::EVENT_IMPORT => Record::EventImport { event: r.u32()?, key: take_key(r)?, reply: take_reply(r)? },
        tag::VALUE_WRITE => Record::ValueWrite { stream: r.u32()?, addr: r.u64()?, value: r.u64()? },
        tag::VALUE_WAIT => {
            Record::ValueWait { stream: r.u32()?, addr: r.u64()?, value: r.u64()?, until: take_condition(r)? }
        }
        tag::GRAPH_BEGIN => Record::GraphBegin { graph: r.u32()?, stream: r.u32()? },
        tag::GRAPH_NODE => Record::GraphNode { graph: r.u32()?, group: r.u32()?, node: take_node(r)? },
        tag::GRAPH_END => Record::GraphEnd { graph: r.u32()?, reply: take_reply(r)? },
        tag::GRAPH_LAUNCH => Record::GraphLaunch { graph: r.u32()?, stream: r.u32()? },
        tag::GRAPH_UPDATE => {
            Record::GraphUpdate { graph: r.u32()?, group: r.u32()?, index: r.u32()?, node: take_node(r)? }
        }
        tag::GRAPH_DESTROY => Record::GraphDestroy { graph: r.u32()? },
        tag::HINT => Record::Hint(Hint::decode(r)?),
        tag::HINTS_REFUSED => Record::HintsRefused { lines: r.u32()? },
        _ => return Err(DecodeError::Unknown { what: "record", value: u64::from(tag) }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{check_decode, check_round_trip};
    use acl_abi::{DataType, TensorDesc, ops};
    use proptest::prelude::*;

    fn encoded(record: &Record<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        encode(record, None, &mut out).unwrap();
        out
    }

    fn decoded(bytes: &[u8]) -> Result<Record<'_>, DecodeError> {
        decode(bytes, &mut OpCall::new(ops::aclnnAbs))
    }

    const REPLY: ReplyTo = ReplyTo { slot: 7, seq: 0xdead_beef };

    #[test]
    fn malformed_records_are_refused() {
        let copy = Record::CopyIn { dst: 1, source: HostSource::Inline(b"abc"), stream: Some(1), reply: Some(REPLY) };
        let cases: [(&str, Vec<u8>); 8] = [
            ("empty", vec![]),
            ("unknown tag", vec![23]),
            ("trailing byte", [encoded(&Record::DeviceSync { reply: REPLY }), vec![0]].concat()),
            ("unknown source", vec![tag::COPY_IN, 0, 0, 0, 0, 0, 0, 0, 0, 3]),
            (
                "inline length above the limit",
                [&[tag::COPY_IN, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 4][..], &[0; 1100]].concat(),
            ),
            ("arena range overflows", [vec![tag::COPY_OUT], vec![0xff; 16], vec![0; 9]].concat()),
            (
                "unknown flag",
                [&encoded(&Record::Memset { addr: 0, len: 0, value: 0, stream: None, reply: None })[..18], &[4]]
                    .concat(),
            ),
            ("unknown hint", [&[tag::HINT, 6][..], &[0; 8]].concat()),
        ];
        for (what, bytes) in cases {
            assert!(decoded(&bytes).is_err(), "{what}: {:?}", decoded(&bytes));
        }
        let bytes = encoded(&copy);
        for len in 0..bytes.len() {
            assert!(decoded(&bytes[..len]).is_err(), "cut at {len}");
        }
        assert_eq!(decoded(&bytes), Ok(copy));
    }

    #[test]
    fn encoder_refuses_what_the_decoder_would_and_leaves_the_buffer_alone() {
        let long = [0; INLINE_COPY_BYTES_MAX + 1];
        let tenant = "t".repeat(crate::TENANT_BYTES_MAX + 1);
        let range = ArenaRange { offset: u64::MAX, len: 1 };
        let cases = [
            Record::CopyIn { dst: 0, source: HostSource::Inline(&long), stream: None, reply: None },
            Record::CopyIn { dst: 0, source: HostSource::Pinned(range), stream: None, reply: None },
            Record::CopyOut { dst: range, src: 0, stream: None, reply: None },
            Record::Op { stream: 1 },
            Record::Hint(Hint::Admitted {
                request: 1,
                prompt_tokens: 1,
                max_tokens: 1,
                ttft_deadline_ms: 1,
                tpot_target_ms: 1,
                priority: 1,
                tenant,
            }),
        ];
        let mut out = b"before".to_vec();
        for record in cases {
            assert!(encode(&record, None, &mut out).is_err(), "{record:?}");
            assert_eq!(out, b"before");
        }
        let call = OpCall::new(ops::aclnnAbs);
        assert_eq!(encode(&Record::DeviceSync { reply: REPLY }, Some(&call), &mut out), Err(EncodeError::CallMismatch));
    }

    #[test]
    fn conditions_are_ascendcls() {
        use ValueCondition::{And, Equal, GreaterOrEqual, Nor};
        for (until, memory, value, want) in [
            (GreaterOrEqual, 5, 5, true),
            (GreaterOrEqual, 4, 5, false),
            (GreaterOrEqual, 2, u64::MAX, true),
            (Equal, 7, 7, true),
            (Equal, 8, 7, false),
            (And, 6, 2, true),
            (And, 4, 3, false),
            (Nor, u64::MAX - 1, 1, false),
            (Nor, u64::MAX - 1, 0, true),
        ] {
            assert_eq!(until.holds(memory, value), want, "{until:?} {memory} {value}");
        }
        assert_eq!(ValueCondition::of(4), None);
        assert!((0..4).all(|n| ValueCondition::of(n).is_some_and(|c| c as u32 == n)));
    }

    #[test]
    fn operator_records_from_a_body_and_from_a_call_are_the_same() {
        let mut call = OpCall::new(ops::aclnnAbs);
        let t = TensorDesc::contiguous(0x1000, DataType::F16, &[4, 5, 6]);
        call.push_tensor(Some(t)).push_tensor(Some(t));
        let (mut body, mut from_body, mut from_call) = (Vec::new(), Vec::new(), Vec::new());
        encode_op(&call, &mut body).unwrap();
        encode_op_record(9, &body, &mut from_body).unwrap();
        encode(&Record::Op { stream: 9 }, Some(&call), &mut from_call).unwrap();
        assert_eq!(from_body, from_call);
        assert_eq!(from_call.len(), 5 + 2 + 2 * 22);
        let (mut from_body, mut from_call) = (Vec::new(), Vec::new());
        encode_answered_op(9, REPLY, &body, &mut from_body).unwrap();
        encode(&Record::OpAnswered { stream: 9, reply: REPLY }, Some(&call), &mut from_call).unwrap();
        assert_eq!(from_body, from_call);
        assert!(encode_op_record(9, &[0; crate::op::OP_BYTES_MAX + 1], &mut from_body).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn records_survive(source in prop::collection::vec(any::<u8>(), 0..600)) {
            check_round_trip(&source);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            check_decode(&bytes);
        }

        #[test]
        fn damaged_records_never_panic(
            source in prop::collection::vec(any::<u8>(), 0..600),
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        ) {
            let mut bytes = crate::testing::encoded_record(&source);
            for (at, byte) in damage {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            check_decode(&bytes);
        }
    }
}

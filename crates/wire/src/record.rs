//! Records: the entries of the command ring.
//!
//! Streams and events are minted by the client, never reused, and named by a number. `stream: None` marks a synchronous
//! call: it executes at once in ring order and is not ordered with any stream. Stream 0 is the session's default stream
//! and exists from the start.
//!
//! What a record's bytes are says the table in `codec.rs`.

mod codec;
#[cfg(test)]
mod tests;

pub use codec::{decode, decode_operator, encode, encode_answered_op, encode_op_record};

use crate::Hint;

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
    /// In the record, at most [`crate::INLINE_COPY_BYTES_MAX`].
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
    /// A key by which processes of the tenant meet in a communicator (`HcclGetRootInfo`).
    CommRoot {
        reply: ReplyTo,
    },
    /// Communicator `comm` of the session: the one of `ranks` processes that meet under `key`, this one as `rank`. Answered
    /// when all have come, or after so many seconds. Exchanges stand still for at most `exec_timeout_s`, 0 for ever.
    CommInit {
        comm: u32,
        rank: u32,
        ranks: u32,
        timeout_s: u32,
        exec_timeout_s: u32,
        key: [u64; 4],
        reply: ReplyTo,
    },
    /// The communicator goes when everything that was issued on it is over.
    CommDestroy {
        comm: u32,
    },
    /// `[1]` while the communicator is whole, an error with the reason once it is not.
    CommStatus {
        comm: u32,
        reply: ReplyTo,
    },
    /// Part of a collective, in stream order: `body` is a [`crate::Exchange`].
    Exchange {
        stream: u32,
        comm: u32,
        body: &'a [u8],
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

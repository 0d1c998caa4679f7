//! What one client may make the daemon hold. Every table, queue and buffer of the runtime is bounded by a field here.

/// Sessions on one device. Each costs a 260 MiB sparse mapping and a place in every round over the rings.
pub const SESSIONS_MAX: usize = 64;
/// Live allocations of a session. Caching allocators hold hundreds; llama.cpp holds tens.
pub const BLOCKS_MAX: usize = 65_536;
/// Reserved address ranges of a session: a caching allocator makes two a stream.
pub const RESERVATIONS_MAX: usize = 1024;
/// Streams of a session, the default stream not counted. CANN itself stops at 1,984 a device.
pub const STREAMS_MAX: usize = 1024;
/// Events of a session. A caching allocator may keep one a block that crossed streams.
pub const EVENTS_MAX: usize = 65_536;
/// Items of a session that are queued, running or waited for. At the bound its ring is not read until some finish, so
/// the client blocks in the call that finds the ring full: back-pressure, as a full hardware queue gives. One decode step of a 28-layer model is about
/// 1,200 operators; this is a dozen steps ahead.
pub const QUEUED_ITEMS_MAX: usize = 16_384;
/// Requests of a session that hints keep alive; beyond, the one not heard of longest is forgotten. An engine decodes a few
/// hundred and queues some thousands.
pub const REQUESTS_MAX: usize = 4096;
/// Records taken from one ring before the next session's turn: bounds how long one client can hold the loop
/// (about 0.3 ms at 1 µs a record).
pub const DRAIN_RECORDS_MAX: usize = 256;

/// Limits of each session and of the loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Sessions on the device.
    pub sessions_max: usize,
    /// Device memory that one session may hold, in bytes.
    pub session_memory_bytes_max: u64,
    /// Live allocations and physical handles of one session, and mappings.
    pub blocks_max: usize,
    /// Reserved address ranges of one session.
    pub reservations_max: usize,
    /// Streams of one session, without the default stream.
    pub streams_max: usize,
    /// Events of one session.
    pub events_max: usize,
    /// Items of one session that are queued, running or waited for.
    pub queued_items_max: usize,
    /// Requests of one session that hints keep alive.
    pub requests_max: usize,
    /// Records taken from one ring in one turn.
    pub drain_records_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sessions_max: SESSIONS_MAX,
            session_memory_bytes_max: u64::MAX,
            blocks_max: BLOCKS_MAX,
            reservations_max: RESERVATIONS_MAX,
            streams_max: STREAMS_MAX,
            events_max: EVENTS_MAX,
            queued_items_max: QUEUED_ITEMS_MAX,
            requests_max: REQUESTS_MAX,
            drain_records_max: DRAIN_RECORDS_MAX,
        }
    }
}

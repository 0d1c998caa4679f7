//! The named bounds of the protocol. Encoders refuse to exceed them, decoders refuse what does.

/// Most bytes of one record, the operator call included. The largest calls seen are grouped matrix products over a few
/// hundred experts (three tensor lists of 256 at 22 bytes each, 17 KiB); 64 KiB leaves a factor of three and is 1/64 of
/// the default ring.
pub const RECORD_BYTES_MAX: usize = 64 * 1024;

/// Most bytes of a node of a graph: a record less the header that wraps it.
pub const GRAPH_NODE_BYTES_MAX: usize = RECORD_BYTES_MAX - 16;

/// Most bytes that an asynchronous copy carries inside its record; more goes through a staging block.
pub const INLINE_COPY_BYTES_MAX: usize = 1024;

/// Most tensors of one operator call, its lists included.
pub const TENSORS_MAX: usize = 1024;

/// Most scalars of all scalar lists of one operator call.
pub const SCALARS_MAX: usize = 1024;

/// Most entries of all int and bool arrays of one operator call. The longest are sequence lengths, one a request.
pub const INTS_MAX: usize = 8192;

/// Most entries of all float arrays of one operator call.
pub const FLOATS_MAX: usize = 8192;

/// Most bytes of all strings of one operator call.
pub const TEXT_BYTES_MAX: usize = 16 * 1024;

/// Most bytes of the text of a [`crate::Reply`]; longer texts are cut at a character boundary.
pub const REPLY_TEXT_MAX: usize = 400;

/// Most bytes of a tenant's name in a [`crate::Hint`].
pub const TENANT_BYTES_MAX: usize = 64;

/// Most bytes of one hint as a JSON line, newline included.
pub const HINT_JSON_BYTES_MAX: usize = 1024;

/// Most bytes of one handshake message.
pub const CONTROL_BYTES_MAX: usize = 2048;

/// Most bytes of a process name or a SoC name in the handshake.
pub const NAME_BYTES_MAX: usize = 64;

/// Most bytes of the message of a refusal.
pub const REFUSAL_BYTES_MAX: usize = 1024;

/// Most processes of one communicator: the devices of two servers' worth of dies in one host.
pub const RANKS_MAX: usize = 16;

/// Most messages of one [`crate::Exchange`]. A collective needs one each way a rank; batches of point-to-point transfers
/// are the long ones.
pub const EXCHANGE_PARTS_MAX: usize = 1024;

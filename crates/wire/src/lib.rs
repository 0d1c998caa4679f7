//! The session protocol: bytes in, records out.
//!
//! A session is one client process talking to the daemon that owns a device. What crosses between them is defined here
//! and nowhere else: the handshake ([`control`]), the command ring ([`ring`]), the records in it ([`Record`]), operator
//! calls ([`op`]), replies ([`Reply`]) and the gateway's phase hints ([`Hint`]). The crate opens no socket, maps no memory
//! and reads no clock; `session` does that.
//!
//! **Invariants**
//! - A decoder never panics, reads past its input, or allocates more than its named limits allow, whatever the bytes.
//! - `decode(encode(x)) == x` for every value an encoder accepts, and decoders refuse trailing bytes.
//! - Every change of layout, of a record or of a message raises [`PROTOCOL_VERSION`].
//!
//! **Costs.** An operator of four 3-d tensors is about 100 bytes. Encoding and decoding allocate nothing once the
//! caller's buffer and [`acl_abi::OpCall`] have grown to their steady size (hints own a tenant name and may allocate).

pub mod control;
mod cursor;
mod error;
pub mod exchange;
pub mod hint;
pub mod limits;
pub mod op;
pub mod record;
pub mod reply;
pub mod ring;
pub mod testing;

pub use error::{DecodeError, EncodeError};
pub use exchange::Exchange;
pub use hint::Hint;
pub use limits::*;
pub use record::{
    ArenaRange, HostSource, Record, ReplyTo, ValueCondition, decode, decode_operator, encode, encode_answered_op,
    encode_op_record,
};
pub use reply::Reply;

/// Version of everything in this crate. Client and daemon refuse each other where it differs.
pub const PROTOCOL_VERSION: u32 = 9;

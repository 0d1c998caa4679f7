//! The bytes of records: a tag byte and the fields, little endian, without padding. An operator record is tag, stream, and the
//! body of [`crate::op`]. Decoding checks everything that bytes alone can show; ranges of the arena, slots and blocks are
//! checked by `session`, addresses by the daemon.

use super::{ArenaRange, HostSource, Record, ReplyTo, ValueCondition};
use crate::cursor::{Put, Reader};
use crate::limits::{GRAPH_NODE_BYTES_MAX, INLINE_COPY_BYTES_MAX};
use crate::op::{OP_BYTES_MAX, decode_op, encode_op};
use crate::{DecodeError, EncodeError, Hint};
use acl_abi::OpCall;

const OP: u8 = 21;
const HINT: u8 = 22;
const OP_ANSWERED: u8 = 60;

/// Writes both directions from one table: tag, record, and its fields in the order of their bytes. The two behind a semicolon
/// are optional and share a byte that says which of them are there.
macro_rules! records {
    ($($tag:literal $name:ident { $($field:ident)* $(; $stream:ident $reply:ident)? })*) => {
        fn put_record(record: &Record<'_>, call: Option<&OpCall>, out: &mut Vec<u8>) -> Result<(), EncodeError> {
            match record {
                $(Record::$name { $($field,)* $($stream, $reply)? } => {
                    out.u8($tag);
                    $($field.put(out)?;)*
                    $((*$stream, *$reply).put(out)?;)?
                })*
                Record::Hint(hint) => {
                    out.u8(HINT);
                    hint.encode(out)?;
                }
                Record::Op { stream } => {
                    out.u8(OP);
                    stream.put(out)?;
                    encode_op(call.ok_or(EncodeError::CallMismatch)?, out)?;
                }
                Record::OpAnswered { stream, reply } => {
                    out.u8(OP_ANSWERED);
                    stream.put(out)?;
                    reply.put(out)?;
                    encode_op(call.ok_or(EncodeError::CallMismatch)?, out)?;
                }
            }
            Ok(())
        }

        fn take_record<'a>(tag: u8, r: &mut Reader<'a>) -> Result<Record<'a>, DecodeError> {
            Ok(match tag {
                $($tag => {
                    $(let $field = Field::take(r)?;)*
                    $(let ($stream, $reply) = Field::take(r)?;)?
                    Record::$name { $($field,)* $($stream, $reply)? }
                })*
                HINT => Record::Hint(Hint::decode(r)?),
                _ => return Err(DecodeError::Unknown { what: "record", value: u64::from(tag) }),
            })
        }
    };
}

records! {
    1 StreamCreate { stream priority flags }
    2 StreamDestroy { stream }
    3 StreamSync { stream reply }
    4 StreamQuery { stream reply }
    5 DeviceSync { reply }
    6 EventCreate { event flags }
    7 EventDestroy { event }
    8 EventRecord { event stream }
    9 EventReset { event stream }
    10 StreamWaitEvent { stream event }
    11 EventSync { event reply }
    12 EventQuery { event reply }
    13 EventElapsed { start end reply }
    14 Malloc { size reply }
    15 Free { addr reply }
    16 MemInfo { reply }
    17 CopyIn { dst source; stream reply }
    18 CopyOut { dst src; stream reply }
    19 CopyDevice { dst src len; stream reply }
    20 Memset { addr len value; stream reply }
    40 Reserve { size reply }
    41 Release { addr reply }
    42 PhysicalAlloc { size reply }
    43 PhysicalFree { handle reply }
    44 Map { addr size offset handle reply }
    45 Unmap { addr reply }
    46 Export { handle named_only subject size reply }
    47 ExportAllow { pid key reply }
    48 ExportClose { key reply }
    49 Import { handle key reply }
    61 StreamFetch { stream dst src reply }
    62 HostCall { stream call block }
    63 HostWait { reply }
    64 FlagWait { stream flag }
    65 FlagSet { stream flag }
    66 FlagClear { stream flag }
    67 FlagRelease { flag }
    68 EventTime { event reply }
    69 GraphBegin { graph stream }
    70 GraphNode { graph group node }
    71 GraphEnd { graph reply }
    72 GraphLaunch { graph stream }
    73 GraphUpdate { graph group index node }
    74 GraphDestroy { graph }
    75 EventExport { event reply }
    76 EventImport { event key reply }
    77 ValueWrite { stream addr value }
    78 ValueWait { stream addr value until }
    79 HintsRefused { lines }
    80 CommRoot { reply }
    81 CommInit { comm rank ranks timeout_s exec_timeout_s key reply }
    82 CommDestroy { comm }
    83 CommStatus { comm reply }
    84 Exchange { stream comm body }
}

/// Appends `record`; `call` goes with [`Record::Op`] and [`Record::OpAnswered`] and with nothing else.
///
/// # Errors
/// If the record or the call breaks a limit or the call does not fit its signature; `out` is then unchanged.
pub fn encode(record: &Record<'_>, call: Option<&OpCall>, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    if call.is_some() != record.has_call() {
        return Err(EncodeError::CallMismatch);
    }
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
/// If the body is longer than [`OP_BYTES_MAX`].
pub fn encode_op_record(stream: u32, body: &[u8], out: &mut Vec<u8>) -> Result<(), EncodeError> {
    check_body(body)?;
    let [a, b, c, d] = stream.to_le_bytes();
    out.put([OP, a, b, c, d]);
    out.extend_from_slice(body);
    Ok(())
}

/// As [`encode_op_record`], for an operator that is answered.
///
/// # Errors
/// If the body is longer than [`OP_BYTES_MAX`].
pub fn encode_answered_op(stream: u32, reply: ReplyTo, body: &[u8], out: &mut Vec<u8>) -> Result<(), EncodeError> {
    check_body(body)?;
    out.u8(OP_ANSWERED);
    out.u32(stream);
    reply.put(out)?;
    out.extend_from_slice(body);
    Ok(())
}

fn check_body(body: &[u8]) -> Result<(), EncodeError> {
    match body.len() {
        0..=OP_BYTES_MAX => Ok(()),
        count => Err(EncodeError::TooMany { what: "bytes of an operator call", count, max: OP_BYTES_MAX }),
    }
}

/// Reads one record. An operator's call goes into `scratch`, whose allocations are reused; other records leave it alone.
///
/// # Errors
/// If the bytes are not exactly one valid record.
pub fn decode<'a>(bytes: &'a [u8], scratch: &mut OpCall) -> Result<Record<'a>, DecodeError> {
    let mut r = Reader::new(bytes);
    let record = match r.u8()? {
        OP => Record::Op { stream: r.u32()? },
        OP_ANSWERED => Record::OpAnswered { stream: r.u32()?, reply: Field::take(&mut r)? },
        tag => {
            let record = take_record(tag, &mut r)?;
            r.end()?;
            return Ok(record);
        }
    };
    decode_op(r.take(r.left())?, scratch)?;
    Ok(record)
}

/// Reads a record that is nothing but an operator: its stream, and the call into `scratch`; `None` for any other, which
/// [`decode`] reads. Nearly every record is one, and this way it is not carried about as a [`Record`], which is as large as the
/// largest.
///
/// # Errors
/// As [`decode`].
pub fn decode_operator(bytes: &[u8], scratch: &mut OpCall) -> Result<Option<u32>, DecodeError> {
    let mut r = Reader::new(bytes);
    if r.u8()? != OP {
        return Ok(None);
    }
    let stream = r.u32()?;
    decode_op(r.take(r.left())?, scratch)?;
    Ok(Some(stream))
}

/// A field of a record.
trait Field<'a>: Sized {
    /// Appends it.
    fn put(&self, out: &mut Vec<u8>) -> Result<(), EncodeError>;
    /// Reads one.
    fn take(r: &mut Reader<'a>) -> Result<Self, DecodeError>;
}

macro_rules! numbers {
    ($($number:ident)*) => {
        $(impl Field<'_> for $number {
            #[inline]
            fn put(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
                out.$number(*self);
                Ok(())
            }

            #[inline]
            fn take(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
                r.$number()
            }
        })*
    };
}
numbers!(u8 u32 u64);

impl Field<'_> for bool {
    fn put(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        u8::from(*self).put(out)
    }

    fn take(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match r.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(DecodeError::Unknown { what: "flag", value: u64::from(other) }),
        }
    }
}

/// A key of shared memory or of an event.
impl Field<'_> for [u64; 4] {
    fn put(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        self.iter().try_for_each(|word| word.put(out))
    }

    fn take(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok([r.u64()?, r.u64()?, r.u64()?, r.u64()?])
    }
}

impl Field<'_> for ReplyTo {
    fn put(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        out.u16(self.slot);
        self.seq.put(out)
    }

    fn take(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { slot: r.u16()?, seq: r.u32()? })
    }
}

impl Field<'_> for ArenaRange {
    fn put(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        if self.end().is_none() {
            let what = "bytes of an arena range";
            return Err(EncodeError::TooMany { what, count: self.len as usize, max: usize::MAX });
        }
        self.offset.put(out)?;
        self.len.put(out)
    }

    fn take(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let range = Self { offset: r.u64()?, len: r.u64()? };
        match range.end() {
            Some(_) => Ok(range),
            None => Err(DecodeError::Range { what: "length of an arena range", value: range.len as i64 }),
        }
    }
}

impl Field<'_> for ValueCondition {
    fn put(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        (*self as u8).put(out)
    }

    fn take(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let number = r.u8()?;
        let unknown = DecodeError::Unknown { what: "condition", value: u64::from(number) };
        Self::of(u32::from(number)).ok_or(unknown)
    }
}

/// The bytes of a node or of an exchange; they end the record.
impl<'a> Field<'a> for &'a [u8] {
    fn put(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let (count, max) = (self.len(), GRAPH_NODE_BYTES_MAX);
        if count > max {
            return Err(EncodeError::TooMany { what: "bytes of a record's body", count, max });
        }
        out.extend_from_slice(self);
        Ok(())
    }

    fn take(r: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let (count, max) = (r.left(), GRAPH_NODE_BYTES_MAX);
        if count > max {
            return Err(DecodeError::TooMany { what: "bytes of a record's body", count, max });
        }
        r.take(count)
    }
}

const SOURCE_INLINE: u8 = 0;
const SOURCE_STAGING: u8 = 1;
const SOURCE_PINNED: u8 = 2;

impl<'a> Field<'a> for HostSource<'a> {
    fn put(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        match *self {
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
                range.put(out)?;
            }
        }
        Ok(())
    }

    fn take(r: &mut Reader<'a>) -> Result<Self, DecodeError> {
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
            SOURCE_PINNED => Ok(HostSource::Pinned(Field::take(r)?)),
            other => Err(DecodeError::Unknown { what: "copy source", value: u64::from(other) }),
        }
    }
}

const HAS_STREAM: u8 = 1;
const HAS_REPLY: u8 = 2;

/// Stream and answer of a copy, each of which may be missing.
impl Field<'_> for (Option<u32>, Option<ReplyTo>) {
    fn put(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let (stream, reply) = self;
        let flag = |on, bit| if on { bit } else { 0 };
        out.u8(flag(stream.is_some(), HAS_STREAM) | flag(reply.is_some(), HAS_REPLY));
        stream.iter().try_for_each(|stream| stream.put(out))?;
        reply.iter().try_for_each(|reply| reply.put(out))
    }

    fn take(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let flags = r.u8()?;
        if flags & !(HAS_STREAM | HAS_REPLY) != 0 {
            return Err(DecodeError::Unknown { what: "copy flags", value: u64::from(flags) });
        }
        let stream = if flags & HAS_STREAM != 0 { Some(r.u32()?) } else { None };
        let reply = if flags & HAS_REPLY != 0 { Some(Field::take(r)?) } else { None };
        Ok((stream, reply))
    }
}

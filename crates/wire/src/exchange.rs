//! Exchanges: what a collective is made of.
//!
//! Every collective, seen from one rank, is messages to others and messages from others; a reducing one also combines what
//! comes with what the rank has itself. That is all that the daemon knows of collectives: which of them it is, and what goes
//! where, the client works out. The body of a [`crate::Record::Exchange`]:
//!
//! | field | bytes |
//! |---|---|
//! | tag: what all ranks must agree on | 8 |
//! | combine: 0, or 1 with element type (u8), operation (u8) and the address of the own contribution (u64) | 1 or 11 |
//! | sends: count (u16), each peer (u16), address (u64), bytes (u64) | 2 + 18 n |
//! | receives: the same | 2 + 18 n |

use crate::cursor::{Put, Reader};
use crate::limits::{EXCHANGE_PARTS_MAX, RANKS_MAX};
use crate::{DecodeError, EncodeError};
use acl_abi::{DataType, Fold};

/// One message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The other rank.
    pub peer: u16,
    /// Device address of the first byte to send, or to fill.
    pub addr: u64,
    /// Bytes, not 0.
    pub len: u64,
}

/// The receives are combined, in order of rank, with what this rank has itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Combine {
    /// Element type, one that [`Fold::takes`].
    pub element: DataType,
    /// Operation.
    pub fold: Fold,
    /// Device address of the own contribution, as long as each receive.
    pub own: u64,
}

/// What one rank does in one collective.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// What all ranks must agree on, as one number: a message whose sender has another is an error at both ends.
    pub tag: u64,
    /// Every receive has the same address and length, which is where the result goes.
    pub combine: Option<Combine>,
    /// Messages to others, in order.
    pub sends: Vec<Part>,
    /// Messages from others, in order; with `combine` at most one a peer.
    pub receives: Vec<Part>,
}

fn put_parts(parts: &[Part], out: &mut Vec<u8>) {
    out.u16(parts.len() as u16);
    for part in parts {
        out.u16(part.peer);
        out.u64(part.addr);
        out.u64(part.len);
    }
}

fn take_parts(r: &mut Reader<'_>, before: usize) -> Result<Vec<Part>, DecodeError> {
    let count = usize::from(r.u16()?);
    if before + count > EXCHANGE_PARTS_MAX {
        let what = "messages of an exchange";
        return Err(DecodeError::TooMany { what, count: before + count, max: EXCHANGE_PARTS_MAX });
    }
    let part = |r: &mut Reader<'_>| {
        let part = Part { peer: r.u16()?, addr: r.u64()?, len: r.u64()? };
        if usize::from(part.peer) >= RANKS_MAX {
            return Err(DecodeError::Unknown { what: "rank", value: u64::from(part.peer) });
        }
        if part.len == 0 || part.addr.checked_add(part.len).is_none() {
            return Err(DecodeError::Range { what: "bytes of a message", value: part.len.cast_signed() });
        }
        Ok(part)
    };
    (0..count).map(|_| part(r)).collect()
}

impl Exchange {
    /// Appends the body.
    ///
    /// # Errors
    /// More than [`EXCHANGE_PARTS_MAX`] messages.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let count = self.sends.len() + self.receives.len();
        if count > EXCHANGE_PARTS_MAX {
            let what = "messages of an exchange";
            return Err(EncodeError::TooMany { what, count, max: EXCHANGE_PARTS_MAX });
        }
        out.u64(self.tag);
        match self.combine {
            None => out.u8(0),
            Some(Combine { element, fold, own }) => {
                out.put([1, element.abi() as u8, fold as u8]);
                out.u64(own);
            }
        }
        put_parts(&self.sends, out);
        put_parts(&self.receives, out);
        Ok(())
    }

    /// Reads a body.
    ///
    /// # Errors
    /// Bytes that are none; a combination whose receives are not of one place and length, or not whole elements.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        let tag = r.u64()?;
        let combine = match r.u8()? {
            0 => None,
            1 => {
                let (element, fold) = (r.u8()?, r.u8()?);
                let unknown = |what, value: u8| DecodeError::Unknown { what, value: u64::from(value) };
                Some(Combine {
                    element: DataType::from_abi(i32::from(element))
                        .filter(|&e| Fold::takes(e))
                        .ok_or(unknown("element type", element))?,
                    fold: Fold::of(i32::from(fold)).ok_or(unknown("reduction", fold))?,
                    own: r.u64()?,
                })
            }
            other => return Err(DecodeError::Unknown { what: "flag", value: u64::from(other) }),
        };
        let sends = take_parts(&mut r, 0)?;
        let receives = take_parts(&mut r, sends.len())?;
        r.end()?;
        if let Some(combine) = combine {
            let what = "bytes of a combination";
            let len = receives.first().map_or(0, |p| p.len);
            let wrong = DecodeError::Range { what, value: len.cast_signed() };
            let one_place = receives.iter().all(|p| (p.addr, p.len) == (receives[0].addr, len));
            let mut peers: Vec<u16> = receives.iter().map(|p| p.peer).collect();
            peers.sort_unstable();
            peers.dedup();
            let whole = len > 0
                && len.is_multiple_of(u64::from(combine.element.bits() / 8))
                && combine.own.checked_add(len).is_some();
            if !one_place || !whole || peers.len() != receives.len() {
                return Err(wrong);
            }
        }
        Ok(Self { tag, combine, sends, receives })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn part(peer: u16, addr: u64, len: u64) -> Part {
        Part { peer, addr, len }
    }

    fn bytes(exchange: &Exchange) -> Vec<u8> {
        let mut out = Vec::new();
        exchange.encode(&mut out).unwrap();
        out
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        for fold in Fold::ALL {
            for element in [DataType::F32, DataType::BF16, DataType::U8, DataType::I64] {
                let combine = Some(Combine { element, fold, own: 64 });
                let exchange = Exchange {
                    tag: 9,
                    combine,
                    sends: vec![part(1, 64, 16)],
                    receives: vec![part(1, 8, 16), part(2, 8, 16)],
                };
                assert_eq!(Exchange::decode(&bytes(&exchange)), Ok(exchange));
            }
        }
        let plain = Exchange { tag: 0, combine: None, sends: vec![part(3, 5, 7)], receives: vec![] };
        assert_eq!(Exchange::decode(&bytes(&plain)), Ok(plain));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let good = Exchange {
            tag: 1,
            combine: Some(Combine { element: DataType::F32, fold: Fold::Sum, own: 0 }),
            sends: vec![part(1, 0, 8)],
            receives: vec![part(1, 64, 8), part(2, 64, 8)],
        };
        assert!(Exchange::decode(&bytes(&good)).is_ok());
        let bad: [fn(&mut Exchange); 8] = [
            |e| e.sends[0].len = 0,
            |e| e.sends[0].addr = u64::MAX,
            |e| e.sends[0].peer = RANKS_MAX as u16,
            |e| e.receives[1].addr = 65,
            |e| e.receives[1].len = 12,
            |e| e.receives[1].peer = 1,
            |e| e.receives.iter_mut().for_each(|p| p.len = 6),
            |e| e.receives.clear(),
        ];
        for (i, spoil) in bad.into_iter().enumerate() {
            let mut exchange = good.clone();
            spoil(&mut exchange);
            assert!(Exchange::decode(&bytes(&exchange)).is_err(), "case {i}");
        }
        let mut many = good;
        many.sends = vec![part(1, 0, 8); EXCHANGE_PARTS_MAX];
        assert!(many.encode(&mut Vec::new()).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_exchange_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(exchange) = Exchange::decode(&bytes) {
                let mut again = Vec::new();
                exchange.encode(&mut again).unwrap();
                prop_assert_eq!(again, bytes);
            }
        }
    }
}

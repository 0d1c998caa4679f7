//! What daemons say to each other when a communicator is made: one message each way, little-endian words.
//!
//! A joiner sends [`Join`] with the descriptor of its bell. The daemon that the key is of answers, once all have come, with
//! the memory and everyone's bells as descriptors, or with a reason.

use wire::{PROTOCOL_VERSION, RANKS_MAX};

const MAGIC: u64 = u64::from_le_bytes(*b"FlexPeer");
const WELCOME: u64 = 1;
const REFUSE: u64 = 2;
const WORDS: usize = 7;

/// A rank wants in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Join {
    /// What was handed out for the communicator.
    pub key: [u64; 4],
    /// Which rank.
    pub rank: usize,
    /// Of how many.
    pub ranks: usize,
}

impl Join {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let [a, b, c, d] = self.key;
        let place = (self.rank as u64) << 32 | self.ranks as u64;
        words(&[MAGIC, u64::from(PROTOCOL_VERSION), a, b, c, d, place])
    }

    /// Reads one.
    ///
    /// # Errors
    /// What is wrong, for the joiner to be told.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let words: Vec<u64> = bytes.chunks_exact(8).filter_map(|c| c.try_into().ok()).map(u64::from_le_bytes).collect();
        let [MAGIC, version, a, b, c, d, place] = words[..] else {
            return Err("this is no daemon of FlexNPU that asks to join a communicator".to_owned());
        };
        if bytes.len() != WORDS * 8 || version != u64::from(PROTOCOL_VERSION) {
            return Err(format!("daemons of two versions: protocol {version} and {PROTOCOL_VERSION}"));
        }
        let (rank, ranks) = ((place >> 32) as usize, (place & u64::from(u32::MAX)) as usize);
        if rank >= ranks || ranks > RANKS_MAX {
            return Err(format!("rank {rank} of {ranks}; at most {RANKS_MAX} ranks are allowed"));
        }
        Ok(Self { key: [a, b, c, d], rank, ranks })
    }
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

/// The bytes of an answer.
pub fn answer(result: Result<(), &str>) -> Vec<u8> {
    match result {
        Ok(()) => words(&[MAGIC, WELCOME]),
        Err(why) => {
            let mut bytes = words(&[MAGIC, REFUSE]);
            bytes.extend(why.bytes().take(1024));
            bytes
        }
    }
}

/// Reads an answer.
///
/// # Errors
/// Why the joiner is not in.
pub fn read_answer(bytes: &[u8]) -> Result<(), String> {
    let head = |i: usize| bytes.get(8 * i..8 * i + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
    match (head(0), head(1)) {
        (Some(MAGIC), Some(WELCOME)) => Ok(()),
        (Some(MAGIC), Some(REFUSE)) => Err(String::from_utf8_lossy(&bytes[16..]).into_owned()),
        _ => Err("the other daemon's answer makes no sense".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_as_written() {
        let join = Join { key: [1, 2, 3, 4], rank: 2, ranks: 3 };
        assert_eq!(Join::decode(&join.encode()), Ok(join));
        assert!(Join::decode(&join.encode()[..48]).is_err());
        assert!(Join::decode(&Join { rank: 3, ..join }.encode()).unwrap_err().contains("rank 3 of 3"));
        let mut other = join.encode();
        other[8] ^= 1;
        assert!(Join::decode(&other).unwrap_err().contains("two versions"));
        assert_eq!(read_answer(&answer(Ok(()))), Ok(()));
        assert_eq!(read_answer(&answer(Err("no"))), Err("no".to_owned()));
        assert!(read_answer(b"x").is_err());
    }
}

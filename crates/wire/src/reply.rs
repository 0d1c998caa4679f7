//! Replies: the answer to one record, as it lies in a slot of shared memory.
//!
//! A slot is written by the daemon and read by the client that owns it, one 64-bit word at a time, so that both sides use
//! plain atomic words and no byte is read while its type is in doubt. Layout of a slot, in 64-bit words:
//!
//! | word | content |
//! |---|---|
//! | 0 | low half: sequence number (the futex word, written last); high half: 1 while a client thread sleeps on it |
//! | 1 | low half: status; high half: bytes of text |
//! | 2–5 | payload |
//! | 6–55 | text, UTF-8, up to [`REPLY_TEXT_MAX`] bytes |
//!
//! Payload conventions: `Export` and `EventExport` → the key; `Import` → `[address or handle, size, 0, 0]`;
//! `Malloc` and `Reserve` → `[address, 0, 0, 0]`; `PhysicalAlloc` → `[handle, 0, 0, 0]`; `MemInfo` → `[free, total, held by the session, most held]`;
//! `StreamQuery` → 1 complete, 0 not; `EventQuery` → `[complete, pending]`; `OpAnswered` → `[extent, 1, 0, 0]`, or zeros where the device knows
//! none; `StreamFetch` → 1 fetched, 0 not; `HostWait` → `[count, call, call, call]`; `EventTime` → microseconds;
//! `EventElapsed` → bits of an `f32` in milliseconds.

use crate::REPLY_TEXT_MAX;
use crate::cursor::clip;

/// Words of a slot in shared memory (eight cache lines).
pub const SLOT_WORDS: usize = 64;
/// Words of the body, which starts at word 1 of the slot.
pub const BODY_WORDS: usize = 5 + REPLY_TEXT_MAX / 8;

const _: () = assert!(BODY_WORDS < SLOT_WORDS && REPLY_TEXT_MAX.is_multiple_of(8));

/// Answer to one record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// `aclError`; 0 is success.
    pub status: i32,
    /// Values, by the conventions of the module.
    pub payload: [u64; 4],
    /// Error text that names the operator; empty on success. Cut to [`REPLY_TEXT_MAX`] bytes.
    pub text: String,
}

impl Reply {
    /// Success without values.
    pub fn ok() -> Self {
        Self::default()
    }

    /// Success with one value.
    pub fn value(value: u64) -> Self {
        Self { payload: [value, 0, 0, 0], ..Self::default() }
    }

    /// A failure and what it was.
    pub fn error(status: i32, text: impl Into<String>) -> Self {
        Self { status, payload: [0; 4], text: text.into() }
    }

    /// Writes the body through `store(word, value)`; touches only the words in use. Allocates nothing.
    pub fn store(&self, mut store: impl FnMut(usize, u64)) {
        let text = clip(&self.text, REPLY_TEXT_MAX).as_bytes();
        store(0, u64::from(self.status as u32) | (text.len() as u64) << 32);
        for (i, &value) in self.payload.iter().enumerate() {
            store(1 + i, value);
        }
        for (i, chunk) in text.chunks(8).enumerate() {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            store(5 + i, u64::from_le_bytes(word));
        }
    }

    /// Reads the body through `load(word)`, each word once. Lengths out of range are cut and text that is not UTF-8 is
    /// replaced: a reply always decodes.
    pub fn load(mut load: impl FnMut(usize) -> u64) -> Self {
        let first = load(0);
        let len = ((first >> 32) as usize).min(REPLY_TEXT_MAX);
        let payload = std::array::from_fn(|i| load(1 + i));
        let mut text = Vec::new();
        if len > 0 {
            text.reserve_exact(len.next_multiple_of(8));
            for i in 0..len.div_ceil(8) {
                text.extend_from_slice(&load(5 + i).to_le_bytes());
            }
            text.truncate(len);
        }
        let text = String::from_utf8(text).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned());
        Self { status: first as u32 as i32, payload, text }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn through_words(reply: &Reply) -> Reply {
        let mut words = [u64::MAX; BODY_WORDS];
        reply.store(|i, v| words[i] = v);
        Reply::load(|i| words[i])
    }

    #[test]
    fn replies_survive_the_slot() {
        for reply in [
            Reply::ok(),
            Reply::value(u64::MAX),
            Reply::error(-1, "aclnnMatmul: shapes do not match"),
            Reply { status: 507_899, payload: [1, 2, 3, 4], text: "é".repeat(REPLY_TEXT_MAX / 2) },
        ] {
            assert_eq!(through_words(&reply), reply);
        }
    }

    #[test]
    fn long_text_is_cut_between_characters() {
        let text = through_words(&Reply::error(1, "x".to_string() + &"é".repeat(REPLY_TEXT_MAX))).text;
        assert_eq!(text.len(), REPLY_TEXT_MAX - 1);
        assert!(text.ends_with('é'));
    }

    #[test]
    fn hostile_slot_still_decodes() {
        let reply = Reply::load(|_| u64::MAX);
        assert_eq!(reply.status, -1);
        assert!(!reply.text.is_empty());
    }
}

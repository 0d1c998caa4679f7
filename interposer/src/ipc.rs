//! Keys of shared memory: as text, and which of them this process exported or imported.

use std::collections::BTreeMap;
use std::sync::Mutex;

use crate::error::Failure;
use crate::handle::lock;

/// Characters of a key, without the NUL.
pub const KEY_CHARS: usize = 64;

/// A key as the daemon knows it.
pub type Key = [u64; 4];

/// The key as text.
pub fn to_text(key: Key) -> String {
    key.iter().map(|word| format!("{word:016x}")).collect()
}

/// The key in a text.
///
/// # Errors
/// Anything but 64 hexadecimal digits.
pub fn from_text(text: &[u8]) -> Result<Key, Failure> {
    let bad = || Failure::invalid(format!("parameter key: not the {KEY_CHARS} hexadecimal digits of a key"));
    let digits = |chunk: &[u8]| chunk.iter().all(u8::is_ascii_hexdigit);
    if text.len() != KEY_CHARS || !digits(text) {
        return Err(bad());
    }
    let mut key = [0; 4];
    for (word, chunk) in key.iter_mut().zip(text.chunks(KEY_CHARS / 4)) {
        let chunk = std::str::from_utf8(chunk).map_err(|_| bad())?;
        *word = u64::from_str_radix(chunk, 16).map_err(|_| bad())?;
    }
    Ok(key)
}

/// What a key is to this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// Memory of this process, on this device.
    Exported(u32),
    /// Memory of another process, at this address of this device.
    Imported(u32, u64),
}

/// Keys in use.
#[derive(Default)]
pub struct Keys(Mutex<BTreeMap<Key, Known>>);

impl Keys {
    /// Notes a key.
    pub fn insert(&self, key: Key, known: Known) {
        lock(&self.0).insert(key, known);
    }

    /// What a key is.
    pub fn get(&self, key: Key) -> Option<Known> {
        lock(&self.0).get(&key).copied()
    }

    /// Forgets a key.
    pub fn remove(&self, key: Key) {
        lock(&self.0).remove(&key);
    }

    /// Forgets every key: the sessions are over.
    pub fn clear(&self) {
        lock(&self.0).clear();
    }

    /// True if imported memory begins at `addr`.
    pub fn is_import(&self, addr: u64) -> bool {
        lock(&self.0).values().any(|known| matches!(known, Known::Imported(_, at) if *at == addr))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_as_text_and_other_text_is_refused() {
        let key = [1, u64::MAX, 0, 0x0123_4567_89ab_cdef];
        let text = to_text(key);
        assert_eq!((text.len(), from_text(text.as_bytes())), (KEY_CHARS, Ok(key)));
        for bad in ["", "12", &text[1..], &format!("{text}0"), &text.replace('f', "g"), &text.replacen('0', "+", 1)] {
            assert!(from_text(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}

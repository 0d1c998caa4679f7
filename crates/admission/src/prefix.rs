//! Which engine has seen the beginning of a prompt: hashes of its first blocks, each including all before it.
//!
//! Two generations bound the memory: what is not looked up while a generation fills is forgotten with the next.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hasher};

use crate::EngineIndex;

/// Bytes of a block: some hundred tokens, above an engine's own cache block, below a short system prompt.
const BLOCK_BYTES: usize = 512;
/// Blocks looked at: beyond 32 KiB two prompts are the same conversation anyway.
const BLOCKS_MAX: usize = 64;
/// Hashes kept in a generation; some 3 MiB.
const GENERATION_LEN_MAX: usize = 1 << 17;

/// Hashes of the blocks of a prompt's beginning. `scope` keeps models and tenants apart.
pub fn block_hashes(scope: &str, leading: &[u8]) -> Vec<u64> {
    let mut hasher = DefaultHasher::new();
    hasher.write(scope.as_bytes());
    leading
        .chunks_exact(BLOCK_BYTES)
        .take(BLOCKS_MAX)
        .map(|block| {
            hasher.write(block);
            hasher.finish()
        })
        .collect()
}

/// Hash of a block chain → the engine that got it last.
#[derive(Debug, Default)]
pub struct PrefixIndex {
    young: HashMap<u64, EngineIndex>,
    old: HashMap<u64, EngineIndex>,
}

impl PrefixIndex {
    /// Engines that have seen the longest beginnings, longest first.
    pub fn preferred(&self, hashes: &[u64]) -> Vec<EngineIndex> {
        let mut engines = Vec::new();
        for hash in hashes.iter().rev() {
            if let Some(&engine) = self.young.get(hash).or_else(|| self.old.get(hash))
                && !engines.contains(&engine)
            {
                engines.push(engine);
            }
        }
        engines
    }

    /// `engine` gets a prompt with these blocks.
    pub fn sent(&mut self, hashes: &[u64], engine: EngineIndex) {
        if self.young.len() + hashes.len() > GENERATION_LEN_MAX {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.extend(hashes.iter().map(|&h| (h, engine)));
    }

    /// `engine` is gone, and its cache with it.
    pub fn forget(&mut self, engine: EngineIndex) {
        self.young.retain(|_, e| *e != engine);
        self.old.retain(|_, e| *e != engine);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longest_common_beginning_wins_and_memory_is_bounded() {
        let prompt = |tail: u8| [vec![b'a'; 2000], vec![tail; 2000]].concat();
        let mut index = PrefixIndex::default();
        index.sent(&block_hashes("m", &prompt(b'x')), 0);
        index.sent(&block_hashes("m", &prompt(b'y')), 1);
        assert_eq!(index.preferred(&block_hashes("m", &prompt(b'x'))), [0, 1]);
        assert_eq!(index.preferred(&block_hashes("m", &prompt(b'z'))), [1]);
        assert!(index.preferred(&block_hashes("other", &prompt(b'x'))).is_empty());
        assert!(index.preferred(&block_hashes("m", b"short")).is_empty());
        index.forget(1);
        assert_eq!(index.preferred(&block_hashes("m", &prompt(b'y'))), Vec::<usize>::new());
        for i in 0..3 * GENERATION_LEN_MAX as u64 {
            index.sent(&[i << 32], 2);
        }
        assert!(index.young.len() + index.old.len() <= 2 * GENERATION_LEN_MAX);
    }
}

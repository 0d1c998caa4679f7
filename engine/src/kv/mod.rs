//! Accounting of the paged KV cache: which blocks are free, how many a sequence needs.
//!
//! Pure: blocks are numbers here. The memory behind them is [`crate::model::KvCache`].

use std::fmt;

/// Blocks of `block_size` tokens for `tokens` tokens.
pub fn blocks_for(tokens: usize, block_size: usize) -> usize {
    tokens.div_ceil(block_size)
}

/// The blocks of a KV cache that nobody holds.
///
/// **Invariant:** a block is free or held by exactly one holder; giving back one that is free already is a bug of ours
/// and panics.
pub struct BlockPool {
    free: Vec<u32>,
    held: Vec<bool>,
}

impl fmt::Debug for BlockPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockPool({} free of {})", self.free.len(), self.held.len())
    }
}

impl BlockPool {
    /// A pool of blocks `0..total`.
    pub fn new(total: usize) -> Self {
        let total_u32 = u32::try_from(total).expect("block numbers fit 32 bits");
        Self { free: (0..total_u32).rev().collect(), held: vec![false; total] }
    }

    /// Blocks in all.
    pub fn total(&self) -> usize {
        self.held.len()
    }

    /// Blocks nobody holds.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Appends `count` blocks to `blocks`, or none if there are not that many.
    #[must_use]
    pub fn take(&mut self, count: usize, blocks: &mut Vec<u32>) -> bool {
        if count > self.free.len() {
            return false;
        }
        for _ in 0..count {
            if let Some(block) = self.free.pop() {
                debug_assert!(!self.held[block as usize]);
                self.held[block as usize] = true;
                blocks.push(block);
            }
        }
        true
    }

    /// Takes back every block of `blocks` and empties it.
    ///
    /// # Panics
    /// If a block was free already.
    pub fn give_back(&mut self, blocks: &mut Vec<u32>) {
        for block in blocks.drain(..) {
            assert!(std::mem::take(&mut self.held[block as usize]), "block {block} given back twice");
            self.free.push(block);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn take_is_all_or_nothing() {
        let mut pool = BlockPool::new(3);
        let (mut a, mut b) = (Vec::new(), Vec::new());
        assert!(pool.take(2, &mut a));
        assert!(!pool.take(2, &mut b));
        assert!(b.is_empty() && pool.free() == 1);
        pool.give_back(&mut a);
        assert!(a.is_empty() && pool.take(3, &mut b));
        b.sort_unstable();
        assert_eq!(b, [0, 1, 2]);
    }

    #[test]
    #[should_panic(expected = "given back twice")]
    fn a_block_cannot_be_given_back_twice() {
        let mut pool = BlockPool::new(1);
        let mut blocks = Vec::new();
        assert!(pool.take(1, &mut blocks));
        let mut copy = blocks.clone();
        pool.give_back(&mut blocks);
        pool.give_back(&mut copy);
    }
}

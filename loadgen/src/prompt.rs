//! What a prompt is made of, so that two requests share exactly the tokens that they should.
//!
//! A synthetic prompt is a row of blocks, each a seed and a length: the same block is the same tokens wherever it stands.
//! Shared prefixes, the growing context of a session and the hash ids of a Mooncake trace are all that. Pure.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// What is sent.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// Token ids out of blocks: as long as planned whatever the server's tokenizer.
    Blocks(Vec<Block>),
    /// Text. Its length in tokens is the server's to count.
    Text(String),
    /// Token ids as given.
    Ids(Vec<u32>),
    /// A chat's messages, as JSON.
    Messages(serde_json::Value),
}

/// Tokens that are the same wherever the seed is the same; a shorter block is the beginning of a longer one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Block {
    /// Decides the tokens.
    pub seed: u64,
    /// How many.
    pub tokens: u32,
}

impl Block {
    /// A block of `tokens` for the thing number `index` of a kind, under the run's seed.
    pub fn new(kind: Kind, seed: u64, index: u64, tokens: u32) -> Self {
        // SplitMix64's increment keeps neighbouring indices apart.
        let seed = (seed ^ kind as u64).wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Self { seed, tokens }
    }

    fn ids(self, vocab: u32) -> impl Iterator<Item = u32> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        // Never id 0, often a padding id.
        (0..self.tokens).map(move |_| rng.random_range(1..vocab.max(2)))
    }
}

/// What a block stands for: kinds never share tokens but by chance.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(u64)]
pub enum Kind {
    /// One request's own.
    Own = 0,
    /// A prefix that several requests share.
    Prefix = 0x7072_6566_6978,
    /// A block of a trace's prefix cache.
    Hash = 0x6861_7368,
    /// An answer in a session's context.
    Answer = 0x616e_7377_6572,
}

impl Prompt {
    /// A prompt of one request's own.
    pub fn own(seed: u64, index: usize, tokens: u32) -> Self {
        Self::Blocks(vec![Block::new(Kind::Own, seed, index as u64, tokens.max(1))])
    }

    /// Other tokens for another run: as before, equal blocks stay equal.
    pub fn reseed(&mut self, seed: u64) {
        if let Self::Blocks(blocks) = self {
            blocks.iter_mut().for_each(|b| b.seed = b.seed.wrapping_add(seed.wrapping_mul(0xbf58_476d_1ce4_e5b9)));
        }
    }

    /// Length in tokens, where it is known before the server counts: of text, a guess of four bytes a token.
    pub fn tokens(&self) -> u32 {
        match self {
            Self::Blocks(blocks) => blocks.iter().map(|b| b.tokens).sum(),
            Self::Ids(ids) => ids.len() as u32,
            Self::Text(text) => text_tokens(text),
            Self::Messages(messages) => {
                messages.as_array().map_or(0, |m| m.iter().filter_map(|m| m["content"].as_str()).map(text_tokens).sum())
            }
        }
    }

    /// Whether its length in tokens is exact.
    pub fn is_exact(&self) -> bool {
        matches!(self, Self::Blocks(_) | Self::Ids(_))
    }

    /// Its token ids, drawn from 1 to `vocab` less one; `None` for text.
    pub fn ids(&self, vocab: u32) -> Option<Vec<u32>> {
        match self {
            Self::Blocks(blocks) => Some(blocks.iter().flat_map(|b| b.ids(vocab)).collect()),
            Self::Ids(ids) => Some(ids.clone()),
            Self::Text(_) | Self::Messages(_) => None,
        }
    }
}

/// A guess at the tokens of a text.
pub fn text_tokens(text: &str) -> u32 {
    (text.len() as u32).div_ceil(4).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_reproducible_and_in_the_vocabulary() {
        let ids = |seed, index| Prompt::own(seed, index, 1000).ids(50).unwrap();
        assert_eq!(ids(3, 1), ids(3, 1));
        assert_ne!(ids(3, 1), ids(3, 2));
        assert_ne!(ids(3, 1), ids(4, 1));
        assert!(ids(3, 1).iter().all(|id| (1..50).contains(id)) && ids(3, 1).len() == 1000);
    }

    #[test]
    fn shared_blocks_are_shared_tokens_and_nothing_else_is() {
        let with =
            |index| Prompt::Blocks(vec![Block::new(Kind::Prefix, 1, 0, 100), Block::new(Kind::Own, 1, index, 100)]);
        let (a, b) = (with(0).ids(1000).unwrap(), with(1).ids(1000).unwrap());
        assert_eq!(a[..100], b[..100]);
        assert_ne!(a[100..], b[100..]);
        assert_ne!(a[..100], a[100..]);
        let short = Prompt::Blocks(vec![Block::new(Kind::Prefix, 1, 0, 40)]).ids(1000).unwrap();
        assert_eq!(a[..40], short[..], "a shorter block begins like a longer one");
    }
}

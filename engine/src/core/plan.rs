//! One step as plain arrays: what the scheduler decides and the forward pass copies to the device.
//!
//! A step runs a few new tokens of each of several sequences. A decode step has one token a sequence; a prefill step has
//! a prompt, or a piece of one, a sequence. Nothing else distinguishes them.

/// Input of one forward pass. Vectors are reused from step to step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepPlan {
    /// New tokens of all sequences, one sequence after the other.
    pub tokens: Vec<i32>,
    /// Position of each token in its sequence.
    pub positions: Vec<i32>,
    /// KV slot of each token: block · block size + offset.
    pub slots: Vec<i32>,
    /// End of each sequence's tokens in `tokens`.
    pub query_ends: Vec<i64>,
    /// Tokens of each sequence in the KV cache after this step.
    pub key_lens: Vec<i64>,
    /// Blocks of each sequence, `table_width` a row, padded with 0.
    pub block_tables: Vec<i32>,
    /// Entries of a row of `block_tables`.
    pub table_width: usize,
    /// Indices into `tokens` of those that go through the output layer, ascending.
    pub rows: Vec<i32>,
    /// Indices into `rows` whose logits are copied to the host, ascending; the others are chosen greedily on the device.
    pub logits_rows: Vec<u32>,
}

impl StepPlan {
    /// Empties the plan, keeps its memory.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.positions.clear();
        self.slots.clear();
        self.query_ends.clear();
        self.key_lens.clear();
        self.block_tables.clear();
        self.table_width = 0;
        self.rows.clear();
        self.logits_rows.clear();
    }

    /// Number of sequences.
    pub fn sequences(&self) -> usize {
        self.query_ends.len()
    }

    /// True if no sequence has anything in the KV cache yet: the step's own keys are all there are.
    pub fn is_fresh(&self) -> bool {
        let mut start = 0;
        self.query_ends.iter().zip(&self.key_lens).all(|(&end, &len)| end - std::mem::replace(&mut start, end) == len)
    }

    /// Appends `new` tokens of a sequence that has `computed` in the cache and owns `blocks`. Its last new token goes
    /// through the output layer if `output`.
    ///
    /// After the last sequence, [`StepPlan::push_table`] once a sequence.
    ///
    /// # Panics
    /// If `blocks` do not hold the tokens.
    pub fn push(&mut self, new: &[u32], computed: usize, blocks: &[u32], block_size: usize, output: bool) {
        for (i, &token) in new.iter().enumerate() {
            let position = computed + i;
            let slot = blocks[position / block_size] as usize * block_size + position % block_size;
            self.tokens.push(token as i32);
            self.positions.push(position as i32);
            self.slots.push(slot as i32);
        }
        let end = computed + new.len();
        self.table_width = self.table_width.max(end.div_ceil(block_size));
        self.query_ends.push(self.tokens.len() as i64);
        self.key_lens.push(end as i64);
        if output {
            self.rows.push(self.tokens.len() as i32 - 1);
        }
    }

    /// Appends the row of block table of the next sequence; rows are as wide as the widest sequence pushed.
    pub fn push_table(&mut self, blocks: &[u32]) {
        let start = self.block_tables.len();
        self.block_tables.extend(blocks.iter().take(self.table_width).map(|&b| b as i32));
        self.block_tables.resize(start + self.table_width, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_follow_the_block_table() {
        let mut plan = StepPlan::default();
        plan.push(&[7, 8, 9], 3, &[5, 2], 4, true);
        plan.push(&[1], 0, &[3], 4, false);
        plan.push_table(&[5, 2]);
        plan.push_table(&[3]);
        assert_eq!(plan.tokens, [7, 8, 9, 1]);
        assert_eq!(plan.positions, [3, 4, 5, 0]);
        assert_eq!(plan.slots, [23, 8, 9, 12]);
        assert_eq!((&plan.query_ends[..], &plan.key_lens[..]), (&[3, 4][..], &[6, 1][..]));
        assert_eq!((plan.table_width, &plan.block_tables[..]), (2, &[5, 2, 3, 0][..]));
        assert_eq!(plan.rows, [2]);
        assert!(!plan.is_fresh());
    }

    #[test]
    fn whole_prompts_are_fresh() {
        let mut plan = StepPlan::default();
        plan.push(&[1, 2], 0, &[0], 4, true);
        plan.push(&[3], 0, &[1], 4, true);
        assert!(plan.is_fresh());
        plan.push(&[4], 1, &[2], 4, true);
        assert!(!plan.is_fresh());
    }
}

//! Looking at logits, for comparison with other implementations.

use std::sync::Arc;

use super::config::EngineConfig;
use super::load::Source;
use super::plan::StepPlan;
use crate::kv::blocks_for;
use crate::model::checkpoint::decode_row;
use crate::model::{Activations, Capacity, Forward, KvCache};

/// Logits of every position of `tokens`, one row of vocabulary size a position.
///
/// The prompt runs as the engine would run it alone: in one step, or in pieces of `max_num_batched_tokens` with
/// `enable_chunked_prefill` (pieces of one token are decode steps).
///
/// # Errors
/// As [`super::start`], tokens that do not fit the model, and any failure of the forward pass.
pub fn logits(config: EngineConfig, tokens: &[u32]) -> anyhow::Result<Vec<Vec<f32>>> {
    let source = Source::open(&config)?;
    let (vocab, limit) = (source.model.vocab, source.max_model_len);
    anyhow::ensure!(!tokens.is_empty() && tokens.len() <= limit, "{} tokens, want 1 to {limit}", tokens.len());
    anyhow::ensure!(tokens.iter().all(|&t| (t as usize) < vocab), "a token is outside the vocabulary of {vocab}");
    let (device, weights) = source.upload(&config)?;
    let piece =
        if config.enable_chunked_prefill { config.max_num_batched_tokens.min(tokens.len()) } else { tokens.len() };
    let blocks = blocks_for(tokens.len(), config.block_size);
    let capacity = Capacity { tokens: piece, sequences: 1, rows: piece, table_width: blocks };
    let activations = Activations::new(&device, &source.model, source.dtype.bytes(), capacity)?;
    let kv = KvCache::new(&device, &source.model, source.dtype, blocks, config.block_size, true)?;
    let mut forward = Forward::new(&device, weights, Arc::new(kv), activations)?;
    // Not in order, so that a mistake in the block table shows.
    let table: Vec<u32> = (0..blocks as u32).rev().collect();
    let mut rows = Vec::with_capacity(tokens.len());
    let mut plan = StepPlan::default();
    for new in tokens.chunks(piece) {
        plan.clear();
        plan.push(new, rows.len(), &table, config.block_size, false);
        plan.push_table(&table);
        plan.rows.extend(0..new.len() as i32);
        plan.logits_rows.extend(0..new.len() as u32);
        let mut on_logits = |_: usize, bytes: &[u8]| {
            let mut row = Vec::new();
            decode_row(bytes, source.dtype, &mut row);
            rows.push(row);
        };
        forward.run(&plan, &mut on_logits)?;
    }
    Ok(rows)
}

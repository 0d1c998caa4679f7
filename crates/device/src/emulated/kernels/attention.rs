//! FusedInferAttentionScoreV3: attention over packed, batched or paged keys and values.
//!
//! For one query row and one head: scores `sᵢ = scale·(q·kᵢ)`; their maximum `m`; weights `pᵢ = e^(sᵢ − m)`; their sum in the
//! fixed order of [`math::sum`]; `Σ pᵢ·vᵢ`, and one division. Both products are [`gemm::multiply`]'s, the second one piece of
//! [`TOKENS`] tokens after another. Pieces start at multiples of [`TOKENS`] of the sequence, so that the order of every sum
//! depends on nothing but the row itself and the keys it sees: not on how many rows or sequences are computed together, not
//! on how the prompt is cut into chunks, not on pages or threads. So a token has the same bits alone, in a batch, in
//! prefill, in decode, and after its request was put back and computed again. Keys that a row does not see are not
//! multiplied by a weight of 0 but left out, so that an infinity in them does not reach the row.
//!
//! Work is cut into items of one sequence, one kv head and up to [`ROWS`] query rows (the query heads that share a kv
//! head are rows together, so that a key is loaded once for all of them). Large calls compute items on several threads, in
//! waves; results are stored by the worker alone.

use acl_abi::ops;

use super::Family;
use super::args::Args;
use super::attention_plan::{Plan, Sequence};
use super::fault::Outcome;
use super::gemm::{self, Matrix};
use super::nest::store_all;
use super::view::View;
use super::{Machine, math, sized};
use crate::emulated::hbm::Hbm;

/// Operators of this file.
pub const KERNELS: Family = &[(ops::aclnnFusedInferAttentionScoreV3, fused_infer_attention_score_v3)];

/// Query rows that share a pass over the keys, about.
pub const ROWS: usize = 64;

/// Key or value tokens that are widened at a time: 64 KiB at width 128.
pub const TOKENS: usize = 128;

/// Most scores that an item holds: 8 MiB. Longer sequences take fewer rows.
pub const SCORES_MAX: usize = 2 << 20;

/// Multiply-adds from which threads are worth waking.
const PARALLEL_MACS_MIN: usize = 2 << 20;

/// Items of one wave for each thread: evens out causal items of different length.
const ITEMS_PER_THREAD: usize = 4;

/// One item and its buffers.
#[derive(Default)]
pub struct Slot {
    item: Item,
    query: Vec<f32>,
    scores: Vec<f32>,
    tokens: Vec<f32>,
    out: Vec<f32>,
    lse: Vec<f32>,
    outcome: Option<super::fault::Fault>,
}

#[derive(Clone, Copy, Default)]
struct Item {
    sequence: usize,
    kv_head: usize,
    from: usize,
    queries: usize,
}

impl Slot {
    /// Elements that the buffers hold.
    pub fn elements(&self) -> usize {
        [&self.query, &self.scores, &self.tokens, &self.out, &self.lse].iter().map(|b| b.capacity()).sum()
    }
}

/// The operator; parameters in [`super::attention_plan::at`].
pub fn fused_infer_attention_score_v3(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let plan = Plan::new(args)?;
    plan.check_table(&machine.hbm)?;
    let mut outcome = Ok(());
    plan.padding(|view| {
        let stored = store_all(machine, &view, |_, piece: &mut [f32]| piece.fill(0.0));
        outcome = outcome.clone().and(stored);
    });
    outcome?;
    let wave = if macs(&plan) < PARALLEL_MACS_MIN { 1 } else { machine.pool.threads() * ITEMS_PER_THREAD };
    let mut slots = std::mem::take(&mut machine.scratch.attention);
    if slots.len() < wave {
        slots.resize_with(wave, Slot::default);
    }
    let mut items = Items { plan: &plan, next: Item::default() };
    let outcome = loop {
        let mut filled = 0;
        while filled < wave
            && let Some(item) = items.next()
        {
            slots[filled].item = item;
            filled += 1;
        }
        if filled == 0 {
            break Ok(());
        }
        let Machine { hbm, pool, .. } = machine;
        let memory = &*hbm;
        pool.for_each(&mut slots[..filled], |_, slot| slot.outcome = compute(memory, &plan, slot).err());
        let stored = slots[..filled].iter_mut().try_for_each(|slot| match slot.outcome.take() {
            Some(fault) => Err(fault),
            None => {
                store(hbm, &plan, slot);
                Ok(())
            }
        });
        if stored.is_err() {
            break stored;
        }
    };
    machine.scratch.attention = slots;
    outcome
}

/// Multiply-adds of the whole call.
fn macs(plan: &Plan<'_>) -> usize {
    let pairs: usize = (0..plan.sequences)
        .map(|i| plan.sequence(i))
        .map(|s| s.queries().saturating_mul(s.keys))
        .fold(0, usize::saturating_add);
    pairs.saturating_mul(plan.heads * (plan.width + plan.value_width))
}

/// Enumerates a call's items.
struct Items<'p, 'a> {
    plan: &'p Plan<'a>,
    next: Item,
}

impl Iterator for Items<'_, '_> {
    type Item = Item;

    fn next(&mut self) -> Option<Item> {
        loop {
            let Item { sequence, kv_head, from, .. } = self.next;
            if sequence == self.plan.sequences {
                return None;
            }
            let whole = self.plan.sequence(sequence);
            if from == whole.queries() {
                let last = kv_head + 1 == self.plan.kv_heads || from == 0;
                let (sequence, kv_head) = if last { (sequence + 1, 0) } else { (sequence, kv_head + 1) };
                self.next = Item { sequence, kv_head, from: 0, queries: 0 };
                continue;
            }
            let group = self.plan.heads / self.plan.kv_heads;
            let rows = ROWS.min(SCORES_MAX / whole.keys.max(1)).max(1);
            let queries = (rows / group).clamp(1, whole.queries() - from);
            self.next.from += queries;
            return Some(Item { sequence, kv_head, from, queries });
        }
    }
}

/// Number of keys that query `index` of a sequence sees.
fn visible(plan: &Plan<'_>, sequence: &Sequence, index: usize) -> usize {
    if plan.causal {
        (sequence.keys + index + 1).saturating_sub(sequence.queries()).min(sequence.keys)
    } else {
        sequence.keys
    }
}

/// Computes an item into its buffers.
fn compute(hbm: &Hbm, plan: &Plan<'_>, slot: &mut Slot) -> Outcome {
    let Item { sequence, kv_head, from, queries } = slot.item;
    let sequence = plan.sequence(sequence);
    let group = plan.heads / plan.kv_heads;
    let (rows, width, value_width) = (queries * group, plan.width, plan.value_width);
    let query = sized(&mut slot.query, rows * width)?;
    for (i, query) in query.chunks_exact_mut((group * width).max(1)).enumerate() {
        sequence.query.select(0, from + i).narrow(0, kv_head * group, group).load_matrix(hbm, query);
    }
    // Later queries see more: the last one's keys are all that the item needs.
    let keys = visible(plan, &sequence, from + queries - 1);
    let scores = sized(&mut slot.scores, rows * keys)?;
    for from in (0..keys).step_by(TOKENS) {
        let count = TOKENS.min(keys - from);
        let tokens = sized(&mut slot.tokens, count * width)?;
        widen(hbm, tokens, count, |done, limit| plan.keys(hbm, &sequence, kv_head, from + done, limit))?;
        let tokens = Matrix::rows(tokens, count, width).transposed();
        gemm::multiply(Matrix::rows(query, rows, width), tokens, &mut scores[from..], keys, false);
    }
    let out = sized(&mut slot.out, rows * value_width)?;
    let lse = sized(&mut slot.lse, rows)?;
    out.fill(0.0);
    for row in 0..rows {
        let index = from + row / group;
        let seen = visible(plan, &sequence, index);
        lse[row] = weigh(hbm, plan.scale, sequence.mask.as_ref(), index, &mut scores[row * keys..][..seen]);
    }
    for first in (0..keys).step_by(TOKENS) {
        let count = TOKENS.min(keys - first);
        let tokens = sized(&mut slot.tokens, count * value_width)?;
        widen(hbm, tokens, count, |done, limit| plan.values(hbm, &sequence, kv_head, first + done, limit))?;
        let seen = |row: usize| visible(plan, &sequence, from + row / group).clamp(first, first + count) - first;
        let mut row = 0;
        while row < rows {
            // As many rows at a time as see the same tokens of this piece.
            let seen_here = seen(row);
            let together = (row..rows).take_while(|&row| seen(row) == seen_here).count();
            let weights = Matrix::new(scores, row * keys + first, [together, seen_here], [keys as isize, 1]);
            let tokens = Matrix::rows(tokens, seen_here, value_width);
            gemm::multiply(weights, tokens, &mut out[row * value_width..], value_width, true);
            row += together;
        }
    }
    for row in 0..rows {
        let seen = visible(plan, &sequence, from + row / group);
        let sum = math::sum(&scores[row * keys..][..seen]);
        // A row that sees nothing is 0, and its log-sum-exp infinite, as the operator's description has it.
        if sum > 0.0 || sum.is_nan() {
            out[row * value_width..][..value_width].iter_mut().for_each(|value| *value /= sum);
            lse[row] += sum.ln();
        } else {
            lse[row] = f32::INFINITY;
        }
    }
    Ok(())
}

/// Fills `tokens` with `count` tokens in single precision: those of `piece(done, limit)`, a view of one to `limit` of them.
fn widen(hbm: &Hbm, mut tokens: &mut [f32], count: usize, piece: impl Fn(usize, usize) -> Outcome<View>) -> Outcome {
    let mut done = 0;
    while done < count {
        let piece = piece(done, count - done)?;
        let (here, rest) = tokens.split_at_mut(piece.elements());
        piece.load_matrix(hbm, here);
        tokens = rest;
        done += piece.dim(0);
    }
    Ok(())
}

/// Turns scores into weights `e^(scale·s − m)` and answers the maximum `m`.
fn weigh(hbm: &Hbm, scale: f32, mask: Option<&View>, index: usize, scores: &mut [f32]) -> f32 {
    for score in scores.iter_mut() {
        *score *= scale;
    }
    if let Some(mask) = mask {
        let row = mask.select(0, index).row();
        let mut hidden = [0i64; TOKENS];
        for (i, scores) in scores.chunks_mut(TOKENS).enumerate() {
            let hidden = &mut hidden[..scores.len()];
            row.load(hbm, i * TOKENS, hidden);
            for (score, hidden) in scores.iter_mut().zip(hidden) {
                if *hidden != 0 {
                    *score = f32::NEG_INFINITY;
                }
            }
        }
    }
    let largest = math::max(scores);
    if largest == f32::NEG_INFINITY {
        scores.fill(0.0);
    } else {
        math::exp_shifted(scores, largest);
    }
    largest
}

/// Rounds an item's results into memory.
fn store(hbm: &mut Hbm, plan: &Plan<'_>, slot: &Slot) {
    let Item { sequence, kv_head, from, queries } = slot.item;
    let sequence = plan.sequence(sequence);
    let group = plan.heads / plan.kv_heads;
    for query in 0..queries {
        for member in 0..group {
            let (row, head) = (query * group + member, kv_head * group + member);
            let values = &slot.out[row * plan.value_width..][..plan.value_width];
            sequence.out.select(0, from + query).select(0, head).row().store(hbm, 0, values);
            if let Some(lse) = &sequence.lse {
                lse.select(0, from + query).row().store(hbm, head, &slot.lse[row..=row]);
            }
        }
    }
}

//! Attention over packed, batched or paged keys and values: the engine that every attention operator comes to.
//!
//! For one query row and one head: scores `sᵢ = scale·(q·kᵢ)`; their maximum `m`; weights `pᵢ = e^(sᵢ − m)`; their sum in the
//! fixed order of [`math::sum`]; `Σ pᵢ·vᵢ`, and one division. Both products are [`gemm::multiply`]'s, the second one piece of
//! [`TOKENS`] tokens after another. Pieces start at multiples of [`TOKENS`] of the sequence, so that the order of every sum
//! depends on nothing but the row itself and the keys it sees: not on how many rows or sequences are computed together, not
//! on how the prompt is cut into chunks, not on pages or threads. So a token has the same bits alone, in a batch, in
//! prefill, in decode, and after its request was put back and computed again. Keys that a row does not see are not
//! multiplied by a weight of 0 but left out, so that an infinity in them does not reach the row. A row that sees nothing
//! is 0.
//!
//! Work is cut into items of one sequence, one kv head and up to [`ROWS`] query rows (the query heads that share a kv
//! head are rows together, so that a key is loaded once for all of them). Large calls compute items on several threads, in
//! waves; results are stored by the worker alone.
//!
//! [`plan`] is the form that a call is brought into: by [`infer`] from the operators of inference, by [`flash`] from
//! those of training; [`grad`] goes the way back.

pub mod flash;
pub mod grad;
pub mod infer;
mod layout;
mod plan;

use super::fault::{Fault, Outcome};
use super::gemm::{self, Matrix};
use super::nest::store_all;
use super::view::View;
use super::{Machine, math, sized};
use crate::emulated::hbm::Hbm;
use plan::{Dropout, Plan, Sequence};

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
    /// Maximum and sum of every row.
    statistics: Vec<[f32; 2]>,
    outcome: Option<Fault>,
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
        let values = [&self.query, &self.scores, &self.tokens, &self.out].iter().map(|b| b.capacity()).sum::<usize>();
        values + 2 * self.statistics.capacity()
    }
}

/// Computes a call whose block table is checked.
fn run(machine: &mut Machine, plan: &Plan<'_>) -> Outcome {
    let mut outcome = Ok(());
    plan.padding(|view| {
        let stored = store_all(machine, &view, |_, piece: &mut [f32]| piece.fill(0.0));
        outcome = outcome.clone().and(stored);
    });
    outcome?;
    let wave = if macs(plan) < PARALLEL_MACS_MIN { 1 } else { machine.pool.threads() * ITEMS_PER_THREAD };
    let mut slots = std::mem::take(&mut machine.scratch.attention);
    if slots.len() < wave {
        slots.resize_with(wave, Slot::default);
    }
    let mut items = Items { plan, next: Item::default() };
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
        pool.for_each(&mut slots[..filled], |_, slot| slot.outcome = compute(memory, plan, slot).err());
        let stored = slots[..filled].iter_mut().try_for_each(|slot| match slot.outcome.take() {
            Some(fault) => Err(fault),
            None => {
                store(hbm, plan, slot);
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
    let seen = |row: usize| plan.band.seen(from + row / group, sequence.queries(), sequence.keys);
    // Later queries see later keys: from the first one's first key, at the start of its piece, to the last one's end.
    let base = seen(0).0 / TOKENS * TOKENS;
    let keys = seen(rows - 1).1.saturating_sub(base);
    let scores = sized(&mut slot.scores, rows * keys)?;
    for first in (0..keys).step_by(TOKENS) {
        let count = TOKENS.min(keys - first);
        let tokens = sized(&mut slot.tokens, count * width)?;
        let piece = |done, limit| plan.keys.piece(hbm, &sequence, kv_head, base + first + done, limit);
        widen(hbm, tokens, count, piece)?;
        let tokens = Matrix::rows(tokens, count, width).transposed();
        gemm::multiply(Matrix::rows(query, rows, width), tokens, &mut scores[first..], keys, false);
    }
    let out = sized(&mut slot.out, rows * value_width)?;
    let statistics = sized(&mut slot.statistics, rows)?;
    out.fill(0.0);
    for (row, statistics) in statistics.iter_mut().enumerate() {
        let (first, end) = seen(row);
        let row = Row { head: kv_head * group + row % group, index: from + row / group, first, end };
        let start = (row.index - from) * group + row.head - kv_head * group;
        let scores = &mut scores[start * keys..][..keys][first.saturating_sub(base)..end.saturating_sub(base)];
        *statistics = weigh(hbm, plan, &sequence, row, scores);
    }
    for first in (0..keys).step_by(TOKENS) {
        let count = TOKENS.min(keys - first);
        let tokens = sized(&mut slot.tokens, count * value_width)?;
        let piece = |done, limit| plan.values.piece(hbm, &sequence, kv_head, base + first + done, limit);
        widen(hbm, tokens, count, piece)?;
        let here = |row: usize| {
            let (from, end) = seen(row);
            let inside = |key: usize| key.clamp(base + first, base + first + count) - base - first;
            (inside(from), inside(end))
        };
        let mut row = 0;
        while row < rows {
            // As many rows at a time as see the same tokens of this piece.
            let (start, end) = here(row);
            let together = (row..rows).take_while(|&row| here(row) == (start, end)).count();
            if start < end {
                let from = row * keys + first + start;
                let weights = Matrix::new(scores, from, [together, end - start], [keys as isize, 1]);
                let tokens = Matrix::rows(&tokens[start * value_width..], end - start, value_width);
                gemm::multiply(weights, tokens, &mut out[row * value_width..], value_width, true);
            }
            row += together;
        }
    }
    for (out, [_, sum]) in out.chunks_exact_mut(value_width.max(1)).zip(statistics) {
        if *sum > 0.0 || sum.is_nan() {
            out.iter_mut().for_each(|value| *value /= *sum);
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

/// One head of one query, and the keys that it sees.
#[derive(Clone, Copy)]
struct Row {
    head: usize,
    index: usize,
    first: usize,
    end: usize,
}

/// Scales the products of a row's query with the keys it sees, adds the bias, and hides what the mask says.
fn finish_scores(hbm: &Hbm, plan: &Plan<'_>, sequence: &Sequence, row: Row, scores: &mut [f32]) {
    let of_head = |view: View| view.select(0, if view.dim(0) == 1 { 0 } else { row.head });
    let bias = sequence.bias.map(|bias| {
        let view = of_head(bias);
        view.select(0, if view.dim(0) == 1 { 0 } else { row.index }).row()
    });
    let mask = sequence.mask.map(|mask| of_head(mask).select(0, row.index).row());
    let early = plan.bias.is_some_and(|bias| bias.before_scale);
    let (mut terms, mut hidden) = ([0f32; TOKENS], [0i64; TOKENS]);
    for (i, scores) in scores.chunks_mut(TOKENS).enumerate() {
        let at = row.first + i * TOKENS;
        if let Some(bias) = &bias {
            let terms = &mut terms[..scores.len()];
            bias.load(hbm, at, terms);
            for (score, term) in scores.iter_mut().zip(terms) {
                *score = if early { (*score + *term) * plan.scale } else { *score * plan.scale + *term };
            }
        } else {
            scores.iter_mut().for_each(|score| *score *= plan.scale);
        }
        if let Some(mask) = &mask {
            let hidden = &mut hidden[..scores.len()];
            mask.load(hbm, at, hidden);
            for (score, hidden) in scores.iter_mut().zip(hidden) {
                if *hidden != 0 {
                    *score = f32::NEG_INFINITY;
                }
            }
        }
    }
}

/// Turns products into weights `e^(s − m)`; answers the maximum `m` and the weights' sum. Dropout comes after the sum.
fn weigh(hbm: &Hbm, plan: &Plan<'_>, sequence: &Sequence, row: Row, scores: &mut [f32]) -> [f32; 2] {
    finish_scores(hbm, plan, sequence, row, scores);
    let largest = math::max(scores);
    if largest == f32::NEG_INFINITY {
        scores.fill(0.0);
    } else {
        math::exp_shifted(scores, largest);
    }
    let sum = math::sum(scores);
    if let Some(dropout) = &plan.dropout {
        dropout.apply(hbm, plan.heads, sequence, row, scores);
    }
    [largest, sum]
}

impl Dropout {
    /// Drops weights of a row, and divides the others by the probability that they are kept.
    fn apply(&self, hbm: &Hbm, heads: usize, sequence: &Sequence, row: Row, weights: &mut [f32]) {
        let bytes = self.bits.row();
        let before = (sequence.index * heads + row.head) * sequence.queries() + row.index;
        let from = before * sequence.keys + row.first;
        let factor = (1.0 / self.keep) as f32;
        for (i, weight) in weights.iter_mut().enumerate() {
            let bit = from + i;
            let kept = bytes.integer(hbm, bit / 8) >> (bit % 8) & 1 != 0;
            *weight = if kept { *weight * factor } else { 0.0 };
        }
    }
}

/// Rounds an item's results into memory.
fn store(hbm: &mut Hbm, plan: &Plan<'_>, slot: &Slot) {
    let Item { sequence, kv_head, from, queries } = slot.item;
    let sequence = plan.sequence(sequence);
    let group = plan.heads / plan.kv_heads;
    let of_head = |view: &View, query: usize, head: usize| {
        plan.of_sequence(view, &sequence).select(0, from + query).select(0, head).row()
    };
    for query in 0..queries {
        for member in 0..group {
            let (row, head) = (query * group + member, kv_head * group + member);
            let values = &slot.out[row * plan.value_width..][..plan.value_width];
            sequence.out.select(0, from + query).select(0, head).row().store(hbm, 0, values);
            let [largest, sum] = slot.statistics[row];
            if let Some(lse) = &plan.lse {
                // Of a row that sees nothing it is infinite, as the operator's description has it.
                let nothing = sum == 0.0;
                of_head(lse, query, head).store(hbm, 0, &[if nothing { f32::INFINITY } else { largest + sum.ln() }]);
            }
            if let Some(views) = &plan.statistics {
                for (view, value) in views.iter().zip([largest, sum]) {
                    let row = of_head(view, query, head);
                    (0..row.len).for_each(|copy| row.store(hbm, copy, &[value]));
                }
            }
        }
    }
}

//! FlashAttentionScoreGrad and, for packed sequences, FlashAttentionUnpaddingScoreGrad.
//!
//! With weights `P = softmax(S)`, of which dropout keeps `P' = P·d`, and the result's gradient `dO`:
//! `dV = P'ᵀ·dO`, `dP = (dO·Vᵀ)·d`, `dS = scale·P·(dP − Σ P·dP)`, `dQ = dS·K`, `dK = dSᵀ·Q`; heads that share a kv head add
//! up. Weights are computed anew from queries and keys, so `softmaxMax`, `softmaxSum`, `softmaxIn` and `attentionIn` are not
//! looked at. Keys that a query does not see have weight 0. Single precision throughout, one rounding at the end.
//!
//! An item is one sequence and one kv head; large calls compute items on several threads.

use acl_abi::ops;

use super::super::args::Args;
use super::super::fault::{Outcome, ensure};
use super::super::gemm::{self, Matrix};
use super::super::nest::store_all;
use super::super::view::View;
use super::super::{Family, INTERMEDIATE_MAX, Machine, math};
use super::plan::{Plan, Sequence, float};
use super::{PARALLEL_MACS_MIN, ROWS, Row, SCORES_MAX, flash, macs};
use crate::emulated::hbm::Hbm;

/// Operators of this file.
pub const KERNELS: Family = &[
    (ops::aclnnFlashAttentionScoreGrad, score_grad),
    (ops::aclnnFlashAttentionScoreGradV2, score_grad),
    (ops::aclnnFlashAttentionUnpaddingScoreGrad, score_grad),
    (ops::aclnnFlashAttentionUnpaddingScoreGradV2, score_grad),
];

/// Any operator of this file.
pub fn score_grad(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let at = flash::at(args)?;
    let plan = flash::plan(args, at, args.tensor(at.out)?)?;
    ensure!(plan.bias.is_none(), "pseShiftOptional: gradients with it are not supported, pass null");
    let output = |name: &str, like: usize| -> Outcome<View> {
        let position = args.op().signature().position(name).unwrap_or(usize::MAX);
        let view = float(args, position, args.output(position)?)?;
        let want = args.tensor(like)?;
        ensure!(view.dims() == want.dims(), "{name}: shape {:?}, want {:?}", view.dims(), want.dims());
        Ok(view)
    };
    let outs = [output("dqOut", at.query)?, output("dkOut", at.key)?, output("dvOut", at.value)?];
    let grads = [
        plan.in_form(outs[0], plan.heads)?,
        plan.in_form(outs[1], plan.kv_heads)?,
        plan.in_form(outs[2], plan.kv_heads)?,
    ];
    for view in &outs {
        store_all(machine, view, |_, piece: &mut [f32]| piece.fill(0.0))?;
    }
    let wave = if macs(&plan) < PARALLEL_MACS_MIN { 1 } else { machine.pool.threads() };
    let mut items = (0..plan.sequences).flat_map(|s| (0..plan.kv_heads).map(move |h| (s, h))).peekable();
    while items.peek().is_some() {
        let mut slots: Vec<_> = items.by_ref().take(wave).map(|(s, h)| (s, h, Ok(Grads::default()))).collect();
        let memory = &machine.hbm;
        machine.pool.for_each(&mut slots, |_, (sequence, head, grads)| {
            *grads = compute(memory, &plan, &plan.sequence(*sequence), *head);
        });
        for (sequence, head, result) in slots {
            result?.store(&mut machine.hbm, &plan, &plan.sequence(sequence), head, &grads);
        }
    }
    Ok(())
}

/// Gradients of one item, row-major: queries `[queries, group, width]`, keys and values `[keys, width]`.
#[derive(Default)]
struct Grads {
    query: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
}

fn compute(hbm: &Hbm, plan: &Plan<'_>, sequence: &Sequence, kv_head: usize) -> Outcome<Grads> {
    let group = plan.heads / plan.kv_heads;
    let (queries, keys) = (sequence.queries(), sequence.keys);
    let (width, value_width) = (plan.width, plan.value_width);
    let all = [queries * group * width, keys * width, keys * value_width];
    ensure!(all.iter().all(|&n| n <= INTERMEDIATE_MAX), "gradients of {all:?} elements, at most {INTERMEDIATE_MAX}");
    let mut grads = Grads { query: vec![0.0; all[0]], key: vec![0.0; all[1]], value: vec![0.0; all[2]] };
    if queries == 0 || keys == 0 {
        return Ok(grads);
    }
    let (mut key, mut value) = (vec![0.0; all[1]], vec![0.0; all[2]]);
    super::widen(hbm, &mut key, keys, |done, limit| plan.keys.piece(hbm, sequence, kv_head, done, limit))?;
    super::widen(hbm, &mut value, keys, |done, limit| plan.values.piece(hbm, sequence, kv_head, done, limit))?;
    let (key, value) = (Matrix::rows(&key, keys, width), Matrix::rows(&value, keys, value_width));
    let step = (ROWS.min(SCORES_MAX / keys).max(1) / group).max(1);
    for from in (0..queries).step_by(step) {
        let rows = step.min(queries - from) * group;
        let (mut query, mut dy) = (vec![0.0; rows * width], vec![0.0; rows * value_width]);
        for i in 0..rows / group {
            let heads = |view: &View| view.select(0, from + i).narrow(0, kv_head * group, group);
            heads(&sequence.query).load_matrix(hbm, &mut query[i * group * width..][..group * width]);
            heads(&sequence.out).load_matrix(hbm, &mut dy[i * group * value_width..][..group * value_width]);
        }
        let (query, dy) = (Matrix::rows(&query, rows, width), Matrix::rows(&dy, rows, value_width));
        let (mut weights, mut slopes) = (vec![0.0; rows * keys], vec![0.0; rows * keys]);
        gemm::multiply(query, key.transposed(), &mut weights, keys, false);
        gemm::multiply(dy, value.transposed(), &mut slopes, keys, false);
        let mut kept = vec![0.0; rows * keys];
        for row in 0..rows {
            let index = from + row / group;
            let (first, end) = plan.band.seen(index, queries, keys);
            let place = Row { head: kv_head * group + row % group, index, first, end };
            let range = row * keys..(row + 1) * keys;
            let line = Line { weights: &mut weights[range.clone()], slopes: &mut slopes[range.clone()] };
            line.turn(hbm, plan, sequence, place, &mut kept[range]);
        }
        gemm::multiply(Matrix::rows(&kept, rows, keys).transposed(), dy, &mut grads.value, value_width, true);
        let slopes = Matrix::rows(&slopes, rows, keys);
        gemm::multiply(slopes, key, &mut grads.query[from * group * width..], width, false);
        gemm::multiply(slopes.transposed(), query, &mut grads.key, width, true);
    }
    Ok(grads)
}

/// One row of products and of gradients of kept weights.
struct Line<'a> {
    weights: &'a mut [f32],
    slopes: &'a mut [f32],
}

impl Line<'_> {
    /// Turns products into `P'` (in `kept`) and gradients of weights into gradients of products.
    fn turn(self, hbm: &Hbm, plan: &Plan<'_>, sequence: &Sequence, row: Row, kept: &mut [f32]) {
        let Self { weights, slopes } = self;
        for unseen in [0..row.first, row.end..weights.len()] {
            slopes[unseen].fill(0.0);
        }
        let seen = row.first..row.end;
        let (weights, slopes, kept) = (&mut weights[seen.clone()], &mut slopes[seen.clone()], &mut kept[seen]);
        super::finish_scores(hbm, plan, sequence, row, weights);
        let largest = math::max(weights);
        if largest == f32::NEG_INFINITY {
            slopes.fill(0.0);
            return;
        }
        math::exp_shifted(weights, largest);
        let sum = math::sum(weights);
        weights.iter_mut().for_each(|weight| *weight /= sum);
        kept.copy_from_slice(weights);
        if let Some(dropout) = &plan.dropout {
            dropout.apply(hbm, plan.heads, sequence, row, kept);
            dropout.apply(hbm, plan.heads, sequence, row, slopes);
        }
        let mean: f32 = math::sum(&weights.iter().zip(slopes.iter()).map(|(p, s)| p * s).collect::<Vec<_>>());
        for (slope, weight) in slopes.iter_mut().zip(weights) {
            *slope = if *weight == 0.0 { 0.0 } else { plan.scale * *weight * (*slope - mean) };
        }
    }
}

impl Grads {
    fn store(&self, hbm: &mut Hbm, plan: &Plan<'_>, sequence: &Sequence, kv_head: usize, outs: &[View; 3]) {
        let group = plan.heads / plan.kv_heads;
        let [dq, dk, dv] = outs;
        for (i, row) in self.query.chunks_exact((plan.width).max(1)).enumerate() {
            let view = plan.of_sequence(dq, sequence).select(0, i / group).select(0, kv_head * group + i % group);
            view.row().store(hbm, 0, row);
        }
        for (view, values, width) in [(dk, &self.key, plan.width), (dv, &self.value, plan.value_width)] {
            let view = plan.of_keys(view, sequence);
            for (token, row) in values.chunks_exact(width.max(1)).enumerate() {
                view.select(0, token).select(0, kv_head).row().store(hbm, 0, row);
            }
        }
    }
}

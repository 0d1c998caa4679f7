//! `static-ratio`: prefill and decode take turns in a fixed ratio of time.
//!
//! Each phase is charged the predicted time of what it dispatches, over its part. While both want the device, the one that
//! has been charged less goes, alone; the other waits even while the first only has operators in flight, so that phases
//! never overlap. A phase that was away comes back with at most one quantum of credit. A phase alone has the device for
//! itself. Operators of unknown or mixed phase are outside of the ratio.

use super::{Board, Candidate, Choice, Hold, Policy, PolicyConfig, StreamIndex};
use crate::dispatch::{HoldReason, Op, Stats};
use crate::{Nanos, Phase};
use serde::{Deserialize, Serialize};

const PREFILL: usize = 0;
const DECODE: usize = 1;

#[derive(Serialize, Deserialize)]
pub(super) struct StaticRatio {
    /// Part of the time.
    part: [f64; 2],
    /// Predicted time dispatched over the part, nanoseconds.
    charged: [f64; 2],
    flying: [u32; 2],
    quantum: f64,
    age_max: Nanos,
}

fn side(phase: Phase) -> Option<usize> {
    match phase {
        Phase::Prefill => Some(PREFILL),
        Phase::Decode => Some(DECODE),
        Phase::Unknown | Phase::Mixed => None,
    }
}

impl StaticRatio {
    pub fn new(config: &PolicyConfig) -> Self {
        Self {
            part: [config.prefill_part, 1.0 - config.prefill_part],
            charged: [0.0; 2],
            flying: [0; 2],
            quantum: config.fair_quantum_ms * 1e6,
            age_max: config.age_max(),
        }
    }

    /// Whose turn it is, if anybody's.
    fn turn(&mut self, wants: [bool; 2]) -> Option<usize> {
        let turn = match wants {
            [true, true] => return Some(if self.charged[PREFILL] <= self.charged[DECODE] { PREFILL } else { DECODE }),
            [true, false] => PREFILL,
            [false, true] => DECODE,
            [false, false] => return None,
        };
        let away = 1 - turn;
        self.charged[away] = self.charged[away].max(self.charged[turn] - self.quantum);
        Some(turn)
    }
}

impl Policy for StaticRatio {
    fn choose(&mut self, now: Nanos, board: &Board<'_>, _stats: &mut Stats) -> Option<Choice> {
        if board.ready.is_empty() {
            return None;
        }
        let mut wants = self.flying.map(|n| n > 0);
        for c in board.ready() {
            if let Some(side) = side(c.op.phase) {
                wants[side] = true;
            }
        }
        let turn = self.turn(wants);
        let may = |c: &Candidate<'_>| match side(c.op.phase) {
            None => true,
            Some(side) => turn == Some(side) && self.flying[1 - side] == 0,
        };
        let free = board.ready().filter(may).min_by_key(|c| c.op.seq);
        free.map(|c| Choice { stream: c.stream, expired: false }).or_else(|| board.expired(now, self.age_max))
    }

    fn hold(&self, _now: Nanos, candidate: &Candidate<'_>) -> Hold {
        Hold::aged(HoldReason::PhaseShare, None, candidate, self.age_max)
    }

    fn submitted(&mut self, _now: Nanos, _stream: StreamIndex, op: &Op) {
        if let Some(side) = side(op.phase) {
            self.flying[side] += 1;
            self.charged[side] += op.solo as f64 / self.part[side];
        }
    }

    fn completed(&mut self, _now: Nanos, _stream: StreamIndex, op: &Op, _stats: &mut Stats) {
        if let Some(side) = side(op.phase) {
            self.flying[side] -= 1;
        }
    }
}

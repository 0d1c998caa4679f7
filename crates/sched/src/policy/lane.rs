//! One stream as `phase` sees it: its steps, what they use, and what its operators are expected to take.

use super::StreamInfo;
use super::clock::{StepClock, TokenClock};
use crate::{Demand, Nanos};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Part that one operator keeps in the picture of what a stream's phase uses, per operator that follows.
const USAGE_DECAY: f64 = 0.98;

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Lane {
    pub info: StreamInfo,
    pub prefill: StepClock,
    pub decode: StepClock,
    pub token: TokenClock,
    /// The open decode step was short of slack and has the device until it ends.
    pub due: bool,
    /// By when the open decode step must end.
    pub step_due: Nanos,
    pub prefill_flying: u32,
    pub decode_flying: u32,
    /// Expected time of its prefill operators in flight.
    pub prefill_flying_time: Nanos,
    /// Since when the device holds none of its decode operators.
    pub quiet_since: Nanos,
    pub prefill_usage: Demand,
    pub decode_usage: Demand,
    /// Expected time of every operator queued or in flight, in order: corrections change, sums must not.
    expected: VecDeque<Nanos>,
    flying: usize,
}

impl Lane {
    pub fn new(info: StreamInfo) -> Self {
        Self {
            info,
            prefill: StepClock::default(),
            decode: StepClock::default(),
            token: TokenClock::default(),
            due: false,
            step_due: Nanos::MAX,
            prefill_flying: 0,
            decode_flying: 0,
            prefill_flying_time: 0,
            quiet_since: 0,
            prefill_usage: Demand::default(),
            decode_usage: Demand::default(),
            expected: VecDeque::new(),
            flying: 0,
        }
    }

    /// A decode step is open, and not one that the host has walked away from without a boundary.
    pub fn decoding(&self, now: Nanos, gap: Nanos) -> bool {
        self.decode.open().is_some() && (self.decode.pending() > 0 || now < self.quiet_since.saturating_add(gap))
    }

    /// An operator was queued.
    pub fn push(&mut self, expected: Nanos) {
        self.expected.push_back(expected);
    }

    /// The next operator went to the device; what it is expected to take.
    pub fn submit(&mut self) -> Nanos {
        self.flying += 1;
        self.expected.get(self.flying - 1).copied().unwrap_or(0)
    }

    /// The oldest operator in flight completed; what it was expected to take.
    pub fn complete(&mut self) -> Nanos {
        self.flying = self.flying.saturating_sub(1);
        self.expected.pop_front().unwrap_or(0)
    }

    /// The oldest operator not in flight will never run; what it was expected to take.
    pub fn drop_next(&mut self) -> Nanos {
        self.expected.remove(self.flying).unwrap_or(0)
    }

    /// The session is gone: its steps will never end.
    pub fn abandon(&mut self) {
        (self.prefill, self.decode, self.due) = (StepClock::default(), StepClock::default(), false);
    }
}

/// Adds up what streams of a phase use; solo time follows.
pub(super) fn add(sum: &mut Demand, more: &Demand) {
    sum.cube += more.cube;
    sum.vector += more.vector;
    sum.hbm += more.hbm;
    sum.static_s += more.static_s;
    sum.solo_s += more.solo_s;
}

/// Takes an operator into a stream's picture of what it uses.
pub(super) fn remember(usage: &mut Demand, op: &Demand) {
    for part in [&mut usage.cube, &mut usage.vector, &mut usage.hbm, &mut usage.static_s, &mut usage.solo_s] {
        *part *= USAGE_DECAY;
    }
    add(usage, op);
}

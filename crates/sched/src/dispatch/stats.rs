//! Counters of a dispatcher; they only ever grow, but for the rates that a policy has learnt.

use crate::{Nanos, Phase};
use serde::{Deserialize, Serialize};

/// Why a ready operator is not submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum HoldReason {
    /// `fifo`, `core-split`: an older operator of another stream goes first.
    Order,
    /// `phase`: decode has slack; prefill uses it.
    DecodeHasSlack,
    /// `phase`: prefill waits for a decode step that is short of slack.
    DecodeDue,
    /// `phase`: decode waits while an overdue prefill takes its turn (both are overloaded).
    PrefillOverdue,
    /// `phase`: another prefill goes first.
    PrefillOrder,
    /// `quota`: the session has had its dispatches of this round.
    QuotaSpent,
    /// `priority`, or a tenant with a higher priority: something more important is ready or running.
    LowerPriority,
    /// `static-ratio`: the other phase is behind its part of the time, or still running.
    PhaseShare,
    /// The tenant is ahead of its part of the device.
    TenantShare,
    /// The tenant has as much on the device as it may.
    TenantWindow,
}

impl HoldReason {
    /// Every reason, in the order of [`Stats::holds`].
    pub const ALL: [Self; 10] = [
        Self::Order,
        Self::DecodeHasSlack,
        Self::DecodeDue,
        Self::PrefillOverdue,
        Self::PrefillOrder,
        Self::QuotaSpent,
        Self::LowerPriority,
        Self::PhaseShare,
        Self::TenantShare,
        Self::TenantWindow,
    ];

    /// Index into [`Stats::holds`].
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Name as metrics show it.
    pub const fn name(self) -> &'static str {
        const NAMES: [&str; HoldReason::ALL.len()] = [
            "order",
            "decode_has_slack",
            "decode_due",
            "prefill_overdue",
            "prefill_order",
            "quota_spent",
            "lower_priority",
            "phase_share",
            "tenant_share",
            "tenant_window",
        ];
        NAMES[self as usize]
    }

    /// What it means, for people.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Order => "an older operator of another stream goes first",
            Self::DecodeHasSlack => "decode has slack before its next token is due; prefill uses it",
            Self::DecodeDue => "a decode step is short of slack and has the device until it ends",
            Self::PrefillOverdue => "an overdue prefill takes its turn; prefill and decode are both overloaded",
            Self::PrefillOrder => "another prefill goes first",
            Self::QuotaSpent => "the session has had its dispatches of this round",
            Self::LowerPriority => "something more important is ready or running",
            Self::PhaseShare => "the other phase is behind its part of the time, or still running",
            Self::TenantShare => "the tenant is ahead of its part of the device",
            Self::TenantWindow => "the tenant has as many operators on the device as it may",
        }
    }
}

/// Hold-backs for one reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldStats {
    /// Operators held back.
    pub count: u64,
    /// Time that ready operators were held back, nanoseconds, summed over operators.
    pub total_ns: Nanos,
    /// Longest one.
    pub longest_ns: Nanos,
    /// Ended by the age bound instead of by the policy.
    pub expired: u64,
}

/// Sizes of operators told apart: below 2 µs, then doubling up to 33 ms and above.
pub const SIZES: usize = 16;

/// Size of an operator that is predicted to take so long alone.
pub fn size(solo: Nanos) -> usize {
    (solo.max(1).ilog2() as usize).saturating_sub(10).min(SIZES - 1)
}

/// The least predicted time of a size, nanoseconds.
pub const fn size_from(size: usize) -> Nanos {
    if size == 0 { 0 } else { 1 << (size + 10) }
}

/// Parts per million of a relative error at which it is cut: a thousand times the time that was measured.
const ERROR_PPM_MAX: f64 = 1e9;

/// How well the time alone of operators of a phase and size was predicted, over those that had the device for themselves.
/// Every policy measures it; `phase` learns from it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PredictionStats {
    /// Operators measured.
    pub samples: u64,
    /// What they took, nanoseconds.
    pub measured_ns: Nanos,
    /// By how much the cost model was off, summed without sign.
    pub error_ns: Nanos,
    /// By how much the prediction was off after correction by what was learnt so far.
    pub corrected_error_ns: Nanos,
    /// Error of the cost model relative to the measured time, parts per million, summed without sign.
    pub error_ppm: u64,
    /// The same of the corrected prediction.
    pub corrected_error_ppm: u64,
    /// Operators that took a quarter of the cost model's time or less, or four times or more: not followed so far.
    pub out_of_range: u64,
}

impl PredictionStats {
    /// Counts an operator that took `took` alone, against the cost model's word and the corrected one.
    pub(crate) fn add(&mut self, took: Nanos, predicted: Nanos, corrected: Nanos) {
        let ppm = |error: Nanos| (error as f64 / took.max(1) as f64 * 1e6).min(ERROR_PPM_MAX) as u64;
        let (error, corrected_error) = (took.abs_diff(predicted), took.abs_diff(corrected));
        self.samples += 1;
        self.measured_ns = self.measured_ns.saturating_add(took);
        self.error_ns = self.error_ns.saturating_add(error);
        self.corrected_error_ns = self.corrected_error_ns.saturating_add(corrected_error);
        self.error_ppm = self.error_ppm.saturating_add(ppm(error));
        self.corrected_error_ppm = self.corrected_error_ppm.saturating_add(ppm(corrected_error));
    }

    /// Mean absolute relative error of the cost model and of the corrected prediction; 0 without samples.
    pub fn mean_relative_errors(&self) -> (f64, f64) {
        let mean = |ppm: u64| ppm as f64 * 1e-6 / self.samples.max(1) as f64;
        (mean(self.error_ppm), mean(self.corrected_error_ppm))
    }
}

impl std::ops::AddAssign for PredictionStats {
    fn add_assign(&mut self, other: Self) {
        self.samples += other.samples;
        self.measured_ns = self.measured_ns.saturating_add(other.measured_ns);
        self.error_ns = self.error_ns.saturating_add(other.error_ns);
        self.corrected_error_ns = self.corrected_error_ns.saturating_add(other.corrected_error_ns);
        self.error_ppm = self.error_ppm.saturating_add(other.error_ppm);
        self.corrected_error_ppm = self.corrected_error_ppm.saturating_add(other.corrected_error_ppm);
        self.out_of_range += other.out_of_range;
    }
}

/// Counters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Operators submitted, by [`crate::Phase::index`].
    pub submitted: [u64; 4],
    /// Operators completed, by phase.
    pub completed: [u64; 4],
    /// Predicted solo time of completed operators, by phase.
    pub completed_solo_ns: [Nanos; 4],
    /// Time that ready operators were held back, by phase.
    pub held_ns: [Nanos; 4],
    /// Hold-backs by [`HoldReason::index`].
    pub holds: [HoldStats; HoldReason::ALL.len()],
    /// Waiters answered.
    pub done: u64,
    /// Items dropped with their session.
    pub dropped: u64,
    /// Completions of tokens that were not in flight.
    pub unknown_completions: u64,
    /// Most items queued at once, over all sessions.
    pub queued_max: usize,
    /// Decode steps seen to complete.
    pub decode_steps: u64,
    /// Decode steps that completed after they were due.
    pub decode_steps_late: u64,
    /// Turns given to an overdue prefill while decode was due too.
    pub overloaded_turns: u64,
    /// Times that such turns began to be needed: prefill and decode are both overloaded and share by a fixed ratio.
    pub overloads: u64,
    /// For how long they were, nanoseconds, summed when an overload ends.
    pub overloaded_ns: Nanos,
    /// Predictions of time alone, by phase and [`size`].
    pub predictions: [[PredictionStats; SIZES]; 4],
    /// Learnt rates of prefill and of decode beside each other, in thousandths of their rate alone; 0 where nothing is
    /// learnt.
    pub corun_rates_permille: [u32; 2],
    /// Times that prefill and decode began to run side by side because it was predicted to pay.
    pub coruns: u64,
    /// Hints forgotten because their lease ran out.
    pub hints_expired: u64,
    /// Requests forgotten because a session had too many.
    pub hints_dropped: u64,
}

impl Stats {
    /// Operators submitted.
    pub fn submitted_total(&self) -> u64 {
        self.submitted.iter().sum()
    }

    /// Predictions of a phase's operators of every size.
    pub fn predicted(&self, phase: Phase) -> PredictionStats {
        let mut all = PredictionStats::default();
        self.predictions[phase.index()].iter().for_each(|&p| all += p);
        all
    }

    /// Operators completed.
    pub fn completed_total(&self) -> u64 {
        self.completed.iter().sum()
    }
}

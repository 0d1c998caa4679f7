//! Counters of a dispatcher; they only ever grow, but for the rates that a policy has learnt.

use crate::Nanos;

/// Why a ready operator is not submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
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
    /// `priority`: something more important is ready or running.
    LowerPriority,
    /// `static-ratio`: the other phase is behind its part of the time, or still running.
    PhaseShare,
}

impl HoldReason {
    /// Every reason, in the order of [`Stats::holds`].
    pub const ALL: [Self; 8] = [
        Self::Order,
        Self::DecodeHasSlack,
        Self::DecodeDue,
        Self::PrefillOverdue,
        Self::PrefillOrder,
        Self::QuotaSpent,
        Self::LowerPriority,
        Self::PhaseShare,
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
        ];
        NAMES[self as usize]
    }
}

/// Hold-backs for one reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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

/// How well the time alone of a phase's operators was predicted, over those that had the device for themselves; `phase`
/// learns from them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PredictionStats {
    /// Operators measured.
    pub samples: u64,
    /// What they took, nanoseconds.
    pub measured_ns: Nanos,
    /// By how much the cost model was off, summed without sign.
    pub error_ns: Nanos,
    /// By how much the prediction was off after correction by what was learnt so far.
    pub corrected_error_ns: Nanos,
    /// Operators that took a quarter of the cost model's time or less, or four times or more: not followed so far.
    pub out_of_range: u64,
}

/// Counters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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
    /// Predictions of time alone, by phase.
    pub predictions: [PredictionStats; 4],
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

    /// Operators completed.
    pub fn completed_total(&self) -> u64 {
        self.completed.iter().sum()
    }
}

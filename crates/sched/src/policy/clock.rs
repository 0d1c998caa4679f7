//! Steps of a stream, and when its next token is due.
//!
//! An engine runs a model step as a stretch of operators that ends where the host looks: a synchronisation, a record, a
//! read-back. The dispatcher reports such points as boundaries. Not every boundary ends a step (allocators record
//! events, samplers read back twice), so a stretch counts as a step only if it holds a fair part of the work of the
//! steps before; after an idle gap it counts without a boundary.
//!
//! A decoding stream owes a token every τ, counted from its first step; each step pays one. Work done early is credit,
//! bounded by configuration; work done late is debt, bounded more tightly, so that an unlucky stretch does not keep
//! prefill away for long after it is over.

use crate::Nanos;
use serde::{Deserialize, Serialize};

/// Part of the mean step's work below which a boundary does not end a step. Under a half, so that steps which really
/// became smaller pull the mean down even while two of them count as one, and are told apart again.
const STEP_PART_MIN: f64 = 0.4;
/// Queued and completed work, over the mean step's, from which the host has begun to queue the next step. Steps differ by
/// less from one to the next.
const AHEAD: f64 = 1.5;
/// Weight of the newest step in the mean.
const NEWEST: f64 = 0.3;
/// A stream without work for so long has ended its step even if no boundary said so.
const IDLE_GAP: Nanos = 1_000_000;
/// From here on a pause between two steps is no host's turn: there was nothing to decode.
const GAP_MAX: Nanos = 10_000_000;
/// Most debt of a decoding stream, and the pause after which its schedule starts anew, in τ.
const DEBT_MAX: u64 = 2;
/// Bounds of measured over predicted step time that predictions are scaled by.
const TRIM: (f64, f64) = (0.5, 4.0);

/// A step that ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StepEnd {
    pub began: Nanos,
    pub ended: Nanos,
    /// Predicted time of its operators.
    pub work: Nanos,
}

/// Bookkeeping of one stream's steps of one phase.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct StepClock {
    /// When the open step's first operator was pushed.
    open: Option<Nanos>,
    /// Predicted time of its operators completed, and of those queued or in flight.
    done: Nanos,
    pending: Nanos,
    empty_since: Nanos,
    mean_work: Option<f64>,
    /// Measured over predicted step time.
    trim: f64,
    /// The open step ran undisturbed so far, so that its duration says something about the prediction.
    clean: bool,
    /// When the latest step ended, and what the host usually takes from there to the next one.
    ended: Option<Nanos>,
    mean_gap: f64,
}

impl StepClock {
    /// When the open step began.
    pub fn open(&self) -> Option<Nanos> {
        self.open
    }

    /// Predicted time of operators queued or in flight.
    pub fn pending(&self) -> Nanos {
        self.pending
    }

    /// Time alone that the open step still needs: what is queued, or what steps usually take where the host has not queued
    /// it all yet, or has queued a part of the next step too.
    pub fn remaining(&self) -> Nanos {
        if self.open.is_none() {
            return 0;
        }
        let seen = self.done.saturating_add(self.pending) as f64;
        let expected = match self.mean_work {
            Some(mean) if seen > AHEAD * mean => mean,
            Some(mean) => mean.max(seen),
            None => seen,
        };
        let left = (expected - self.done as f64).max(0.0);
        (left * if self.trim > 0.0 { self.trim } else { 1.0 }) as Nanos
    }

    /// What the host usually takes from the end of a step to the begin of the next.
    pub fn turn(&self) -> Nanos {
        self.mean_gap as Nanos
    }

    /// What a step takes alone, if nobody is in the way: on average, or what the first one has queued so far.
    pub fn alone(&self) -> Nanos {
        let work = self.mean_work.unwrap_or(self.done.saturating_add(self.pending) as f64);
        (work * if self.trim > 0.0 { self.trim } else { 1.0 }) as Nanos
    }

    /// No step has ended yet.
    pub fn is_new(&self) -> bool {
        self.mean_work.is_none()
    }

    /// Somebody else ran beside the open step, or it was held back.
    pub fn disturb(&mut self) {
        self.clean = false;
    }

    /// An operator was queued. Answers the step that a long idle gap has ended before it.
    pub fn pushed(&mut self, now: Nanos, solo: Nanos) -> Option<StepEnd> {
        let idle = self.pending == 0 && self.open.is_some() && now.saturating_sub(self.empty_since) >= IDLE_GAP;
        let ended = if idle { self.end(self.empty_since) } else { None };
        if self.open.is_none() {
            self.begin(now);
        }
        self.pending = self.pending.saturating_add(solo);
        ended
    }

    /// A queued operator will never run.
    pub fn dropped(&mut self, solo: Nanos) {
        self.pending = self.pending.saturating_sub(solo);
    }

    /// An operator completed.
    pub fn completed(&mut self, now: Nanos, solo: Nanos) {
        self.pending = self.pending.saturating_sub(solo);
        self.done = self.done.saturating_add(solo);
        if self.pending == 0 {
            self.empty_since = now;
        }
    }

    /// The host can look at what has completed so far.
    pub fn boundary(&mut self, now: Nanos) -> Option<StepEnd> {
        let ended = self.end(now)?;
        if self.pending > 0 {
            // The host is a step ahead: the next one is queued already.
            self.begin(now);
        }
        Some(ended)
    }

    fn begin(&mut self, now: Nanos) {
        if let Some(gap) = self.ended.take().map(|ended| now.saturating_sub(ended)).filter(|&gap| gap < GAP_MAX) {
            self.mean_gap += NEWEST * (gap as f64 - self.mean_gap);
        }
        self.open = Some(now);
        self.empty_since = now;
        self.done = 0;
        self.clean = true;
    }

    fn end(&mut self, now: Nanos) -> Option<StepEnd> {
        let began = self.open?;
        let (done, work) = (self.done as f64, self.done);
        if self.done == 0 {
            return None;
        }
        match &mut self.mean_work {
            Some(mean) if done < STEP_PART_MIN * *mean => return None,
            Some(mean) => *mean += NEWEST * (done - *mean),
            None => self.mean_work = Some(done),
        }
        if self.clean {
            let measured = (now.saturating_sub(began) as f64 / done).clamp(TRIM.0, TRIM.1);
            self.trim = if self.trim > 0.0 { self.trim + NEWEST * (measured - self.trim) } else { measured };
        }
        self.open = None;
        self.ended = Some(now);
        Some(StepEnd { began, ended: now, work })
    }
}

/// When a decoding stream's next token is due.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct TokenClock {
    due: Option<Nanos>,
    last: Nanos,
}

impl TokenClock {
    /// The next token's due time.
    pub fn due(&self) -> Option<Nanos> {
        self.due
    }

    /// A step begins. After a long pause nobody is waiting any more: the schedule starts anew.
    pub fn begin(&mut self, now: Nanos, tau: Nanos) {
        if self.due.is_none() || now.saturating_sub(self.last) > DEBT_MAX * tau {
            self.due = Some(now + tau);
        }
    }

    /// A step has ended: its token is out. Answers whether that was late.
    pub fn token(&mut self, now: Nanos, tau: Nanos, credit: Nanos) -> bool {
        let due = self.due.unwrap_or(now + tau);
        self.due = Some((due + tau).clamp(now.saturating_sub(DEBT_MAX * tau), now + credit));
        self.last = now;
        now > due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Nanos = 1_000_000;

    #[test]
    fn a_boundary_within_a_step_does_not_end_it() {
        let mut clock = StepClock::default();
        let mut now = 0;
        let mut run = |clock: &mut StepClock, ms: u64| {
            clock.pushed(now, ms * MS);
            now += ms * MS;
            clock.completed(now, ms * MS);
            clock.boundary(now).map(|s| (s.ended - s.began) / MS)
        };
        assert_eq!(run(&mut clock, 10), Some(10), "the first step sets the measure");
        assert_eq!(run(&mut clock, 2), None, "an allocator's record");
        assert_eq!(run(&mut clock, 8), Some(10));
        // Steps that really became small count again after a while.
        let counted = (0..10).filter(|_| run(&mut clock, 2).is_some()).count();
        assert!(counted >= 3, "{counted} of 10");
    }

    #[test]
    fn remaining_work_is_what_steps_usually_take() {
        let mut clock = StepClock::default();
        clock.pushed(0, 10 * MS);
        assert_eq!(clock.remaining(), 10 * MS, "nothing known but what is queued");
        clock.completed(10 * MS, 10 * MS);
        clock.boundary(10 * MS);
        assert_eq!(clock.remaining(), 0, "no step is open");
        clock.pushed(11 * MS, MS);
        assert_eq!(clock.remaining(), 10 * MS, "one of ten milliseconds is queued so far");
        clock.completed(12 * MS, MS);
        assert_eq!(clock.remaining(), 9 * MS);
        clock.pushed(12 * MS, 19 * MS);
        assert_eq!(clock.remaining(), 9 * MS, "the host is a step ahead");
    }

    #[test]
    fn measured_steps_trim_the_prediction_unless_disturbed() {
        for (disturbed, want) in [(false, 20 * MS), (true, 10 * MS)] {
            let mut clock = StepClock::default();
            clock.pushed(0, 10 * MS);
            if disturbed {
                clock.disturb();
            }
            clock.completed(20 * MS, 10 * MS);
            clock.boundary(20 * MS);
            clock.pushed(20 * MS, 10 * MS);
            assert_eq!(clock.remaining(), want, "disturbed: {disturbed}");
        }
    }

    #[test]
    fn a_step_alone_and_its_hosts_turn() {
        let mut clock = StepClock::default();
        assert_eq!(clock.alone(), 0);
        let mut now = 0;
        for pause in [MS, MS, 500 * MS].into_iter().cycle().take(30) {
            clock.pushed(now, 10 * MS);
            clock.completed(now + 10 * MS, 10 * MS);
            clock.boundary(now + 10 * MS);
            now += 10 * MS + pause;
        }
        assert_eq!(clock.alone(), 10 * MS);
        assert!((MS / 2..=MS).contains(&clock.turn()), "{}: a long pause is none", clock.turn());
    }

    #[test]
    fn an_idle_gap_ends_a_step_without_a_boundary() {
        let mut clock = StepClock::default();
        assert_eq!(clock.pushed(0, MS), None);
        clock.completed(MS, MS);
        assert_eq!(clock.pushed(MS + IDLE_GAP / 2, MS), None);
        clock.completed(3 * MS, MS);
        assert_eq!(clock.pushed(3 * MS + IDLE_GAP, MS), Some(StepEnd { began: 0, ended: 3 * MS, work: 2 * MS }));
    }

    #[test]
    fn credit_and_debt_are_bounded() {
        let (tau, credit) = (50 * MS, 400 * MS);
        let mut clock = TokenClock::default();
        clock.begin(0, tau);
        assert_eq!(clock.due(), Some(tau));
        // Twenty tokens in quick succession: eight intervals of credit, not twenty.
        for i in 1..=20 {
            assert!(!clock.token(i * MS, tau, credit));
        }
        assert_eq!(clock.due(), Some(20 * MS + credit));
        // A token that is a second late leaves two intervals of debt, not twenty.
        assert!(clock.token(1_420 * MS, tau, credit));
        assert_eq!(clock.due(), Some(1_320 * MS));
        // After a pause the schedule starts anew.
        clock.begin(1_520 * MS, tau);
        assert_eq!(clock.due(), Some(1_320 * MS), "two intervals are no pause");
        clock.begin(1_521 * MS, tau);
        assert_eq!(clock.due(), Some(1_571 * MS));
    }
}

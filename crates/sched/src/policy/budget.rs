//! By when a decode step must end so that a request still has its tokens in time.
//!
//! TPOT is a mean: a request that said how many tokens it wants may stand still for long and catch up, as long as all of
//! them are out by `τ` times their number. What it can spend is that less what its remaining steps take at decode's pace
//! beside a little prefill ([`Pace::cycle`]). A request that cannot make it any more has nothing left to protect here; its
//! pace is bounded elsewhere.
//!
//! When it *has* a decode slot matters: an engine may park it after its first token. Hints tell: a second token means that
//! it decodes; no second token although steps that began after the first have ended means that it is parked.

use crate::Nanos;
use serde::{Deserialize, Serialize};

/// Decode steps of a session that may end after a request's first token without a second one before it counts as parked:
/// the one that ran then, the one that the request was in, and one for the hint to arrive.
const PARKED_AFTER_STEPS: u64 = 3;

/// Where decode stands when a budget is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    pub now: Nanos,
    /// When the step under way was begun: whoever came later is in the next one.
    pub opened: Nanos,
    /// What the step under way still takes.
    pub left: Nanos,
    /// What every step after it takes if decode has the device, and what it is planned with.
    pub fastest: Nanos,
    pub cycle: Nanos,
    /// From a step's end until its tokens are out.
    pub turn: Nanos,
}

/// A request that has its first token.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Decoding {
    first: Nanos,
    /// Since when it has a slot, once that is known.
    since: Option<Nanos>,
    /// Tokens as last heard, the first included, and the session's decode steps then.
    heard: u32,
    steps: u64,
}

/// What a request asks of the step under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asks {
    /// Nothing: it has no slot.
    Parked,
    /// Nothing: it is late whatever happens.
    Lost,
    /// To have ended by then.
    EndBy(Nanos),
}

impl Decoding {
    /// The first token is out, after so many decode steps of the session.
    pub fn new(now: Nanos, steps: u64) -> Self {
        Self { first: now, since: None, heard: 1, steps }
    }

    /// So many tokens are out; the latest step began at `began`.
    pub fn progress(&mut self, tokens: u32, steps: u64, began: Nanos) {
        // Until now it may have been parked. The step that brought the second token began with the slot.
        let early = steps < self.steps + PARKED_AFTER_STEPS;
        self.since.get_or_insert(if early { self.first } else { began.max(self.first) });
        (self.heard, self.steps) = (tokens.max(self.heard), steps);
    }

    /// It had no slot when its session had so many decode steps behind it.
    pub fn is_parked(&self, steps: u64) -> bool {
        self.since.is_none() && steps >= self.steps + PARKED_AFTER_STEPS
    }

    /// A slot became free, and it is next: what holds after a first token holds from now on.
    pub fn next_in(&mut self, now: Nanos, steps: u64) {
        (self.first, self.steps) = (now, steps);
    }

    /// Since when it has its first token, or is next for a slot.
    pub fn first(&self) -> Nanos {
        self.first
    }

    /// Tokens that are out by now, after so many decode steps of the session.
    pub fn tokens(&self, steps: u64) -> u32 {
        let since_heard = if self.since.is_some() { steps.saturating_sub(self.steps) } else { 0 };
        self.heard.saturating_add(u32::try_from(since_heard).unwrap_or(u32::MAX))
    }

    /// What it asks of the step under way, if it wants `wanted` tokens `tau` apart on average.
    pub fn asks(&self, pace: &Pace, steps: u64, tau: Nanos, wanted: u32) -> Asks {
        let since = match self.since {
            Some(since) => since,
            None if self.is_parked(steps) => return Asks::Parked,
            None => self.first,
        };
        let out = self.tokens(steps);
        let wanted = wanted.max(out.saturating_add(1));
        // This step brings one, or none if it began without the request.
        let brings = u32::from(self.first <= pace.opened);
        let later = Nanos::from(wanted - out - brings);
        let end = since.saturating_add(tau.saturating_mul(Nanos::from(wanted - 1)));
        // Late by more than a token's time even if decode has the device from now on.
        let soonest = pace.now.saturating_add(pace.left).saturating_add(later.saturating_mul(pace.fastest));
        if end.saturating_add(tau) < soonest {
            return Asks::Lost;
        }
        Asks::EndBy(end.saturating_sub(later.saturating_mul(pace.cycle)).saturating_sub(pace.turn))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Nanos = 1_000_000;
    const TAU: Nanos = 50 * MS;

    fn pace(now: Nanos) -> Pace {
        Pace { now, opened: now, left: 15 * MS, fastest: 15 * MS, cycle: 20 * MS, turn: 0 }
    }

    #[test]
    fn a_request_may_spend_what_its_later_tokens_leave() {
        let first = 1_000 * MS;
        for (wanted, end_by) in [
            // One more token, 50 ms after the first.
            (2, first + 50 * MS),
            // Ten more in half a second; nine steps of 20 ms come after this one.
            (11, first + 500 * MS - 180 * MS),
            (1, first + 50 * MS),
        ] {
            let asks = Decoding::new(first, 7).asks(&pace(first), 7, TAU, wanted);
            assert_eq!(asks, Asks::EndBy(end_by), "{wanted}");
        }
    }

    #[test]
    fn who_came_after_the_step_began_needs_the_next_one_too() {
        let pace = Pace { opened: 990 * MS, ..pace(1_000 * MS) };
        let asks = Decoding::new(1_000 * MS, 0).asks(&pace, 0, TAU, 2);
        assert_eq!(asks, Asks::EndBy(1_030 * MS));
        let asks = Decoding::new(1_000 * MS, 0).asks(&Pace { turn: MS, ..pace }, 0, TAU, 2);
        assert_eq!(asks, Asks::EndBy(1_029 * MS), "and its token has to be handed out");
    }

    #[test]
    fn tokens_count_by_steps_between_two_hints() {
        let mut r = Decoding::new(0, 0);
        assert_eq!(r.tokens(2), 1, "it may be parked");
        r.progress(2, 1, 0);
        assert_eq!((r.tokens(1), r.tokens(9)), (2, 10));
        r.progress(17, 12, 0);
        assert_eq!(r.tokens(12), 17);
        // 33 more at 50 ms; this step and 32 after it.
        assert_eq!(r.asks(&pace(200 * MS), 12, TAU, 50), Asks::EndBy(49 * TAU - 32 * 20 * MS));
    }

    #[test]
    fn steps_without_a_second_token_mean_parked_until_one_comes() {
        let mut r = Decoding::new(0, 10);
        assert!(matches!(r.asks(&pace(MS), 12, TAU, 100), Asks::EndBy(_)));
        assert_eq!(r.asks(&pace(MS), 13, TAU, 100), Asks::Parked);
        let mut next = r;
        next.next_in(MS, 13);
        assert!(matches!(next.asks(&pace(MS), 13, TAU, 100), Asks::EndBy(_)), "a slot became free");
        assert_eq!(next.asks(&pace(MS), 16, TAU, 100), Asks::Parked, "for somebody else");
        r.progress(2, 400, 6_000 * MS);
        assert_eq!(r.asks(&pace(6_016 * MS), 400, TAU, 100), Asks::EndBy(6_000 * MS + 99 * TAU - 97 * 20 * MS));
    }

    #[test]
    fn who_is_late_whatever_happens_asks_for_nothing() {
        let r = Decoding::new(0, 0);
        assert_eq!(r.asks(&pace(84 * MS), 0, TAU, 2), Asks::EndBy(50 * MS));
        assert_eq!(r.asks(&pace(86 * MS), 0, TAU, 2), Asks::Lost);
        // Behind the planned pace, 20 ms a step, and still in time at the fastest, 15.
        assert_eq!(r.asks(&pace(600 * MS), 0, TAU, 30), Asks::EndBy(29 * TAU - 28 * 20 * MS));
        assert_eq!(r.asks(&pace(1_064 * MS), 0, TAU, 30), Asks::EndBy(29 * TAU - 28 * 20 * MS));
        assert_eq!(r.asks(&pace(1_066 * MS), 0, TAU, 30), Asks::Lost);
    }
}

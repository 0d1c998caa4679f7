//! What the gateway said about requests, for as long as it keeps saying something.
//!
//! Hints tighten or relax targets of one session: the earliest deadline and the highest priority of its requests without a
//! first token, and the smallest token interval of those that have one. Each request lives on a lease that any hint about it renews, so a
//! gateway that dies cannot make the dispatcher hold anything back for longer than the lease.

use crate::Nanos;
use crate::dispatch::{HintInput, HintKind, Stats};
use std::collections::BTreeMap;

/// What is wanted where a hint does not say, and how long a hint counts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Targets {
    /// Time to the first token.
    pub ttft: Nanos,
    /// Part of it after which a request is urgent.
    pub urgent: f64,
    /// Silence after which a request is forgotten.
    pub lease: Nanos,
}

impl Targets {
    /// What a request wants that was admitted at `admitted`, with a target of its own unless `ttft` is 0.
    pub fn first_token(&self, admitted: Nanos, ttft: Nanos, priority: u8) -> FirstToken {
        let ttft = if ttft > 0 { ttft } else { self.ttft };
        let patience = (ttft as f64 * self.urgent) as Nanos;
        FirstToken { deadline: admitted.saturating_add(ttft), urgent_at: admitted.saturating_add(patience), priority }
    }
}

#[derive(Clone, Copy, Debug)]
struct Request {
    wants: FirstToken,
    tpot: Nanos,
    first_token: bool,
    heard: Nanos,
}

/// When a first token is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FirstToken {
    pub deadline: Nanos,
    pub urgent_at: Nanos,
    /// Larger goes first.
    pub priority: u8,
}

impl FirstToken {
    /// What two requests want of the one prefill that stands before both.
    fn both(self, other: Self) -> Self {
        Self {
            deadline: self.deadline.min(other.deadline),
            urgent_at: self.urgent_at.min(other.urgent_at),
            priority: self.priority.max(other.priority),
        }
    }
}

/// The requests of one session.
#[derive(Clone, Debug, Default)]
pub(super) struct Leases {
    requests: BTreeMap<u64, Request>,
    /// What those without a first token want.
    waiting: Option<FirstToken>,
    /// The smallest interval that a request with a first token asked for.
    tpot: Option<Nanos>,
    /// No lease runs out before this time.
    expires: Nanos,
}

impl Leases {
    /// What the requests without a first token want, taken together: engines prefill them one after the other, so whoever
    /// is first carries the urgency of those behind.
    pub fn waiting(&self) -> Option<FirstToken> {
        self.waiting
    }

    /// The smallest token interval that a request which is decoding asked for.
    pub fn tpot(&self) -> Option<Nanos> {
        self.tpot
    }

    /// Takes a hint in.
    pub fn hint(&mut self, now: Nanos, hint: &HintInput, targets: &Targets, requests_max: usize, stats: &mut Stats) {
        match hint.kind {
            HintKind::Admitted { ttft, tpot, priority, .. } => {
                if self.requests.len() >= requests_max
                    && !self.requests.contains_key(&hint.request)
                    && let Some(oldest) = self.requests.iter().min_by_key(|(_, r)| r.heard).map(|(&id, _)| id)
                {
                    self.requests.remove(&oldest);
                    stats.hints_dropped += 1;
                }
                let wants = targets.first_token(now, ttft, priority);
                self.requests.insert(hint.request, Request { wants, tpot, first_token: false, heard: now });
            }
            HintKind::Finished | HintKind::Aborted => {
                if self.requests.remove(&hint.request).is_none() {
                    return;
                }
            }
            HintKind::PrefillStarted | HintKind::FirstToken | HintKind::Progress { .. } => {
                let Some(request) = self.requests.get_mut(&hint.request) else { return };
                request.heard = now;
                if request.first_token || hint.kind == HintKind::PrefillStarted {
                    // Nothing but the lease changed: the summary stands.
                    return;
                }
                request.first_token = true;
            }
        }
        self.summarise(targets.lease);
    }

    /// Forgets requests whose lease has run out.
    pub fn expire(&mut self, now: Nanos, targets: &Targets, stats: &mut Stats) {
        if self.requests.is_empty() || now < self.expires {
            return;
        }
        let before = self.requests.len();
        self.requests.retain(|_, r| now < r.heard.saturating_add(targets.lease));
        stats.hints_expired += (before - self.requests.len()) as u64;
        self.summarise(targets.lease);
    }

    fn summarise(&mut self, lease: Nanos) {
        let live = self.requests.values();
        self.waiting = live.clone().filter(|r| !r.first_token).map(|r| r.wants).reduce(FirstToken::both);
        self.tpot = live.clone().filter(|r| r.first_token).map(|r| r.tpot).filter(|&t| t > 0).min();
        self.expires = live.map(|r| r.heard.saturating_add(lease)).min().unwrap_or(Nanos::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGETS: Targets = Targets { ttft: 1_000, urgent: 0.7, lease: 100 };

    fn admitted(request: u64, ttft: Nanos, tpot: Nanos, priority: u8) -> HintInput {
        let kind = HintKind::Admitted { prompt_tokens: 1, max_tokens: 1, ttft, tpot, priority };
        HintInput { request, kind }
    }

    #[test]
    fn those_without_a_first_token_count_by_the_most_urgent_and_the_others_by_the_shortest_interval() {
        let (mut leases, mut stats) = (Leases::default(), Stats::default());
        let of = |request, kind| HintInput { request, kind };
        for (now, hint, deadline, priority, tpot) in [
            (10, admitted(1, 0, 40, 0), Some(1_010), 0, None),
            (20, admitted(2, 300, 30, 2), Some(320), 2, None),
            (30, of(1, HintKind::PrefillStarted), Some(320), 2, None),
            (40, of(1, HintKind::FirstToken), Some(320), 2, Some(40)),
            (50, of(2, HintKind::FirstToken), None, 0, Some(30)),
            (55, admitted(3, 0, 0, 1), Some(1_055), 1, Some(30)),
            (60, of(2, HintKind::Aborted), Some(1_055), 1, Some(40)),
            (70, of(1, HintKind::Progress { tokens: 9 }), Some(1_055), 1, Some(40)),
            (75, of(9, HintKind::FirstToken), Some(1_055), 1, Some(40)),
            (80, of(1, HintKind::Finished), Some(1_055), 1, None),
            (90, of(3, HintKind::Aborted), None, 0, None),
        ] {
            leases.hint(now, &hint, &TARGETS, 8, &mut stats);
            let waiting = leases.waiting();
            assert_eq!(waiting.map(|w| w.deadline), deadline, "{hint:?}");
            assert_eq!(waiting.map_or(0, |w| w.priority), priority, "{hint:?}");
            assert_eq!(leases.tpot(), tpot, "{hint:?}");
        }
    }

    #[test]
    fn the_first_to_lose_patience_is_not_always_the_first_due() {
        let (mut leases, mut stats) = (Leases::default(), Stats::default());
        leases.hint(0, &admitted(1, 1_000, 0, 0), &TARGETS, 8, &mut stats);
        leases.hint(500, &admitted(2, 400, 0, 0), &TARGETS, 8, &mut stats);
        let want = FirstToken { deadline: 900, urgent_at: 700, priority: 0 };
        assert_eq!(leases.waiting(), Some(want));
    }

    #[test]
    fn silence_ends_a_lease_and_any_word_renews_it() {
        let (mut leases, mut stats) = (Leases::default(), Stats::default());
        leases.hint(0, &admitted(1, 0, 40, 0), &TARGETS, 8, &mut stats);
        leases.hint(50, &HintInput { request: 1, kind: HintKind::PrefillStarted }, &TARGETS, 8, &mut stats);
        leases.expire(149, &TARGETS, &mut stats);
        assert!(leases.waiting().is_some());
        leases.expire(150, &TARGETS, &mut stats);
        assert_eq!((leases.tpot(), leases.waiting(), stats.hints_expired), (None, None, 1));
    }

    #[test]
    fn too_many_requests_forget_the_one_unheard_for_longest() {
        let (mut leases, mut stats) = (Leases::default(), Stats::default());
        for i in 0..5 {
            leases.hint(i, &admitted(i, 100, 0, 0), &TARGETS, 3, &mut stats);
        }
        let first = leases.waiting().map(|w| w.deadline);
        assert_eq!((leases.requests.len(), first, stats.hints_dropped), (3, Some(102), 2));
    }
}

//! What the gateway said about requests, for as long as it keeps saying something.
//!
//! Hints tighten or relax targets of one session: the first-token deadline of the oldest request that has none, and the
//! smallest token interval that a request asked for. Each request lives on a lease that any hint about it renews, so a
//! gateway that dies cannot make the dispatcher hold anything back for longer than the lease.

use crate::Nanos;
use crate::dispatch::{HintInput, HintKind, Stats};
use std::collections::BTreeMap;

#[derive(Clone, Copy, Debug)]
struct Request {
    admitted: Nanos,
    ttft: Nanos,
    tpot: Nanos,
    first_token: bool,
    heard: Nanos,
}

/// When a first token is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FirstToken {
    pub admitted: Nanos,
    /// Wanted within this time from admission; 0 = the configured target.
    pub ttft: Nanos,
}

/// The requests of one session.
#[derive(Clone, Debug, Default)]
pub(super) struct Leases {
    requests: BTreeMap<u64, Request>,
    /// The oldest request without a first token.
    waiting: Option<FirstToken>,
    /// The smallest interval that a request asked for.
    tpot: Option<Nanos>,
    /// No lease runs out before this time.
    expires: Nanos,
}

impl Leases {
    /// The oldest request without a first token.
    pub fn waiting(&self) -> Option<FirstToken> {
        self.waiting
    }

    /// The smallest token interval that a live request asked for.
    pub fn tpot(&self) -> Option<Nanos> {
        self.tpot
    }

    /// Takes a hint in.
    pub fn hint(&mut self, now: Nanos, hint: &HintInput, lease: Nanos, requests_max: usize, stats: &mut Stats) {
        match hint.kind {
            HintKind::Admitted { ttft, tpot, .. } => {
                if self.requests.len() >= requests_max
                    && !self.requests.contains_key(&hint.request)
                    && let Some(oldest) = self.requests.iter().min_by_key(|(_, r)| r.heard).map(|(&id, _)| id)
                {
                    self.requests.remove(&oldest);
                    stats.hints_dropped += 1;
                }
                self.requests
                    .insert(hint.request, Request { admitted: now, ttft, tpot, first_token: false, heard: now });
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
        self.summarise(lease);
    }

    /// Forgets requests whose lease has run out.
    pub fn expire(&mut self, now: Nanos, lease: Nanos, stats: &mut Stats) {
        if self.requests.is_empty() || now < self.expires {
            return;
        }
        let before = self.requests.len();
        self.requests.retain(|_, r| now < r.heard.saturating_add(lease));
        stats.hints_expired += (before - self.requests.len()) as u64;
        self.summarise(lease);
    }

    fn summarise(&mut self, lease: Nanos) {
        let live = self.requests.values();
        self.waiting = live
            .clone()
            .filter(|r| !r.first_token)
            .min_by_key(|r| r.admitted)
            .map(|r| FirstToken { admitted: r.admitted, ttft: r.ttft });
        self.tpot = live.clone().map(|r| r.tpot).filter(|&t| t > 0).min();
        self.expires = live.map(|r| r.heard.saturating_add(lease)).min().unwrap_or(Nanos::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admitted(request: u64, tpot: Nanos) -> HintInput {
        let kind = HintKind::Admitted { prompt_tokens: 1, max_tokens: 1, ttft: 700, tpot, priority: 0 };
        HintInput { request, kind }
    }

    #[test]
    fn the_oldest_request_without_a_first_token_waits() {
        let (mut leases, mut stats) = (Leases::default(), Stats::default());
        for (now, hint, waiting, tpot) in [
            (10, admitted(1, 40), Some(10), Some(40)),
            (20, admitted(2, 30), Some(10), Some(30)),
            (30, HintInput { request: 1, kind: HintKind::PrefillStarted }, Some(10), Some(30)),
            (40, HintInput { request: 1, kind: HintKind::FirstToken }, Some(20), Some(30)),
            (50, HintInput { request: 2, kind: HintKind::Aborted }, None, Some(40)),
            (60, HintInput { request: 1, kind: HintKind::Progress { tokens: 9 } }, None, Some(40)),
            (70, HintInput { request: 9, kind: HintKind::FirstToken }, None, Some(40)),
            (80, HintInput { request: 1, kind: HintKind::Finished }, None, None),
        ] {
            leases.hint(now, &hint, 1_000, 8, &mut stats);
            assert_eq!(leases.waiting().map(|w| w.admitted), waiting, "{hint:?}");
            assert_eq!(leases.tpot(), tpot, "{hint:?}");
        }
    }

    #[test]
    fn silence_ends_a_lease_and_any_word_renews_it() {
        let (mut leases, mut stats) = (Leases::default(), Stats::default());
        leases.hint(0, &admitted(1, 40), 100, 8, &mut stats);
        leases.hint(50, &HintInput { request: 1, kind: HintKind::PrefillStarted }, 100, 8, &mut stats);
        leases.expire(120, 100, &mut stats);
        assert_eq!(leases.tpot(), Some(40));
        leases.expire(150, 100, &mut stats);
        assert_eq!((leases.tpot(), leases.waiting(), stats.hints_expired), (None, None, 1));
    }

    #[test]
    fn too_many_requests_forget_the_one_unheard_for_longest() {
        let (mut leases, mut stats) = (Leases::default(), Stats::default());
        for i in 0..5 {
            leases.hint(i, &admitted(i, 10 + i), 1_000, 3, &mut stats);
        }
        assert_eq!((leases.requests.len(), leases.tpot(), stats.hints_dropped), (3, Some(12), 2));
    }
}

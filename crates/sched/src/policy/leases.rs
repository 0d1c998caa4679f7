//! What the gateway said about requests, for as long as it keeps saying something.
//!
//! Hints tighten or relax targets of one session: the earliest deadline and the highest priority of its requests without a
//! first token, the smallest token interval of those that have one, and by when the decode step under way must end for
//! them ([`super::budget`]). All of it lives on a lease that any hint of the session renews, so a gateway that dies cannot
//! make the dispatcher hold anything back for longer than the lease. A request of which nothing is heard for many leases is
//! forgotten even so: its end was lost.

use super::budget::{Asks, Decoding, Pace};
use crate::Nanos;
use crate::dispatch::{HintInput, HintKind, Stats};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Weight of the newest request in what requests leave unused of their limit.
const UNUSED_NEWEST: f64 = 1.0 / 16.0;

/// Leases that a request may be silent for while the gateway speaks of others: a prompt that queues has nothing to say.
const SILENT_LEASES: u64 = 30;

/// Part of the requests that decode below which those whose first token was in time are too few to slow all others down for,
/// while prompts pile up.
const IN_TIME_MIN: f64 = 0.2;

/// What is wanted where a hint does not say, and how long a hint counts.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
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

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Request {
    wants: FirstToken,
    tpot: Nanos,
    prompt_tokens: u32,
    max_tokens: u32,
    /// Once its first token is out.
    decoding: Option<Decoding>,
    /// Its first token was late.
    late: bool,
    heard: Nanos,
}

/// When a first token is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Leases {
    requests: BTreeMap<u64, Request>,
    /// What those without a first token want.
    waiting: Option<FirstToken>,
    /// The smallest interval that a request with a first token asked for.
    tpot: Option<Nanos>,
    /// When the gateway last said anything about the session, and when no request had been silent for longer than since.
    heard: Nanos,
    oldest: Nanos,
    /// Prompt tokens that wait for their first token, and that had theirs.
    waiting_tokens: u64,
    prefilled_tokens: u64,
    /// The largest limit of those that wait.
    longest_waiting: u32,
    /// Decode steps that ended, and when the latest began.
    steps: u64,
    step_began: Nanos,
    /// Part of their limit by which requests ended short of it; most clients allow more than they need.
    unused: f64,
}

/// What the requests of a session ask of the decode step under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct StepAsks {
    /// The earliest end that someone asks for who can still be in time.
    pub end_by: Option<Nanos>,
    /// Someone decodes who is late whatever happens.
    pub lost: bool,
    /// Someone waits for a decode slot.
    pub parked: bool,
    /// Someone decodes whose limit nobody said.
    pub unlimited: bool,
    /// How many decode, and the most tokens that one of them still wants.
    pub decoding: usize,
    pub longest: u32,
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
        self.heard = now;
        match hint.kind {
            HintKind::Admitted { prompt_tokens, max_tokens, ttft, tpot, priority } => {
                if self.requests.len() >= requests_max
                    && !self.requests.contains_key(&hint.request)
                    && let Some(oldest) = self.requests.iter().min_by_key(|(_, r)| r.heard).map(|(&id, _)| id)
                {
                    self.requests.remove(&oldest);
                    stats.hints_dropped += 1;
                }
                let wants = targets.first_token(now, ttft, priority);
                let request =
                    Request { wants, tpot, prompt_tokens, max_tokens, decoding: None, late: false, heard: now };
                self.requests.insert(hint.request, request);
            }
            HintKind::Finished | HintKind::Aborted => {
                let Some(request) = self.requests.remove(&hint.request) else { return };
                if request.decoding.is_some_and(|d| !d.is_parked(self.steps)) {
                    self.slot_free(now);
                }
                if hint.kind == HintKind::Finished
                    && let Some(decoding) = request.decoding
                    && request.max_tokens > 0
                {
                    let used = f64::from(decoding.tokens(self.steps)) / f64::from(request.max_tokens);
                    self.unused += UNUSED_NEWEST * ((1.0 - used).clamp(0.0, 1.0) - self.unused);
                }
            }
            HintKind::PrefillStarted | HintKind::FirstToken | HintKind::Progress { .. } => {
                let Some(request) = self.requests.get_mut(&hint.request) else { return };
                request.heard = now;
                if hint.kind == HintKind::PrefillStarted {
                    // Nothing but the lease changed: the summary stands.
                    return;
                }
                let had_one = request.decoding.is_some();
                let decoding = request.decoding.get_or_insert_with(|| Decoding::new(now, self.steps));
                if let HintKind::Progress { tokens } = hint.kind {
                    decoding.progress(tokens, self.steps, self.step_began);
                }
                if had_one {
                    return;
                }
                request.late = now > request.wants.deadline;
                self.prefilled_tokens += u64::from(request.prompt_tokens);
            }
        }
        self.summarise();
    }

    /// A decode slot became free: whoever has waited longest for one gets it, or will be found parked again.
    fn slot_free(&mut self, now: Nanos) {
        let steps = self.steps;
        let parked = self.requests.values_mut().filter_map(|r| r.decoding.as_mut()).filter(|d| d.is_parked(steps));
        if let Some(next) = parked.min_by_key(|d| d.first()) {
            next.next_in(now, steps);
        }
    }

    /// Forgets requests whose lease has run out.
    pub fn expire(&mut self, now: Nanos, targets: &Targets, stats: &mut Stats) {
        let dead = now >= self.heard.saturating_add(targets.lease);
        let silence_max = targets.lease.saturating_mul(SILENT_LEASES);
        if self.requests.is_empty() || (!dead && now < self.oldest.saturating_add(silence_max)) {
            return;
        }
        let before = self.requests.len();
        self.requests.retain(|_, r| !dead && now < r.heard.saturating_add(silence_max));
        stats.hints_expired += (before - self.requests.len()) as u64;
        self.summarise();
    }

    /// Prompt tokens of requests without a first token.
    pub fn waiting_tokens(&self) -> u64 {
        self.waiting_tokens
    }

    /// The most tokens that a request without a first token may want.
    pub fn longest_waiting(&self) -> u32 {
        self.longest_waiting
    }

    /// Prompt tokens of all requests that have had their first token.
    pub fn prefilled_tokens(&self) -> u64 {
        self.prefilled_tokens
    }

    /// A decode step of the session began.
    pub fn step_began(&mut self, now: Nanos) {
        self.step_began = now;
    }

    /// A decode step of the session ended.
    pub fn step_ended(&mut self) {
        self.steps += 1;
    }

    /// Requests that have a first token and are not known to be parked.
    pub fn in_step(&self) -> usize {
        self.requests.values().filter(|r| r.decoding.is_some_and(|d| !d.is_parked(self.steps))).count()
    }

    /// What its requests ask of the decode step under way. With `saturated`, those whose first token was late ask for nothing,
    /// and where fewer than [`IN_TIME_MIN`] of all were in time, nobody does.
    pub fn step_asks(&self, pace: &Pace, tau: Nanos, saturated: bool) -> StepAsks {
        let mut out = StepAsks::default();
        let few = saturated && {
            let decode = || self.requests.values().filter(|r| r.decoding.is_some_and(|d| !d.is_parked(self.steps)));
            (decode().filter(|r| !r.late).count() as f64) < IN_TIME_MIN * decode().count() as f64
        };
        for r in self.requests.values() {
            let Some(decoding) = r.decoding else { continue };
            out.decoding += 1;
            if r.max_tokens == 0 {
                out.unlimited = true;
                continue;
            }
            let tau = if r.tpot > 0 { r.tpot } else { tau };
            let wanted = (f64::from(r.max_tokens) * (1.0 - self.unused)) as u32;
            let left = wanted.saturating_sub(decoding.tokens(self.steps));
            out.longest = out.longest.max(left);
            match decoding.asks(pace, self.steps, tau, wanted) {
                Asks::Parked => out.parked = true,
                Asks::EndBy(by) if !(few || saturated && r.late) => {
                    out.end_by = Some(out.end_by.map_or(by, |earliest| earliest.min(by)));
                }
                Asks::Lost | Asks::EndBy(_) => out.lost = true,
            }
        }
        out
    }

    fn summarise(&mut self) {
        let live = self.requests.values();
        self.waiting = live.clone().filter(|r| r.decoding.is_none()).map(|r| r.wants).reduce(FirstToken::both);
        self.tpot = live.clone().filter(|r| r.decoding.is_some()).map(|r| r.tpot).filter(|&t| t > 0).min();
        self.longest_waiting = live.clone().filter(|r| r.decoding.is_none()).map(|r| r.max_tokens).max().unwrap_or(0);
        self.waiting_tokens = live.clone().filter(|r| r.decoding.is_none()).map(|r| u64::from(r.prompt_tokens)).sum();
        self.oldest = live.map(|r| r.heard).min().unwrap_or(Nanos::MAX);
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
    fn while_prompts_pile_up_a_few_that_were_in_time_do_not_slow_the_others_down() {
        const MS: Nanos = 1_000_000;
        let asks = |in_time: u64, saturated: bool| {
            let (mut leases, mut stats) = (Leases::default(), Stats::default());
            for id in 0..10 {
                // Nobody's first token is late at once; from the target on each is.
                let kind =
                    HintKind::Admitted { prompt_tokens: 1, max_tokens: 100, ttft: MS, tpot: 50 * MS, priority: 0 };
                leases.hint(0, &HintInput { request: id, kind }, &TARGETS, 16, &mut stats);
                let at = if id < in_time { 0 } else { 2 * MS };
                leases.hint(at, &HintInput { request: id, kind: HintKind::FirstToken }, &TARGETS, 16, &mut stats);
            }
            let pace = Pace { now: 2 * MS, opened: 2 * MS, left: 15 * MS, fastest: 15 * MS, cycle: 20 * MS, turn: 0 };
            let asks = leases.step_asks(&pace, 50 * MS, saturated);
            (asks.end_by.is_some(), asks.lost)
        };
        assert_eq!(asks(0, false), (true, false), "who was late is protected while the pile is small");
        assert_eq!(asks(2, true), (true, true), "two of ten are enough");
        assert_eq!(asks(1, true), (false, true));
        assert_eq!(asks(1, false), (true, false));
    }

    #[test]
    fn the_longest_that_waits_is_the_largest_limit_without_a_first_token() {
        let (mut leases, mut stats) = (Leases::default(), Stats::default());
        let admitted = |request, max_tokens| HintInput {
            request,
            kind: HintKind::Admitted { prompt_tokens: 1, max_tokens, ttft: 0, tpot: 0, priority: 0 },
        };
        let mut longest = |hint| {
            leases.hint(1, &hint, &TARGETS, 8, &mut stats);
            leases.longest_waiting()
        };
        assert_eq!([longest(admitted(1, 40)), longest(admitted(2, 900))], [40, 900]);
        assert_eq!(longest(HintInput { request: 2, kind: HintKind::FirstToken }), 40);
        assert_eq!(longest(HintInput { request: 1, kind: HintKind::Aborted }), 0);
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
    fn a_silent_request_lasts_while_the_gateway_speaks_of_others_but_not_for_ever() {
        let (mut leases, mut stats) = (Leases::default(), Stats::default());
        leases.hint(0, &admitted(1, 0, 0, 0), &TARGETS, 8, &mut stats);
        let mut forgotten = None;
        for now in (50..10_000).step_by(50) {
            leases.hint(now, &admitted(2, 0, 0, 0), &TARGETS, 8, &mut stats);
            leases.expire(now, &TARGETS, &mut stats);
            if leases.waiting().map(|w| w.deadline) != Some(1_000) {
                forgotten.get_or_insert(now);
            }
        }
        assert_eq!((forgotten, stats.hints_expired), (Some(100 * SILENT_LEASES), 1));
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

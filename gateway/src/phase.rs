//! The life of one request: QUEUED → PREFILL → DECODE → DONE.
//!
//! A pure state machine. What happened comes in, with its time; hints for the scheduler and the durations to record
//! come out. Whoever holds a [`Lifecycle`] ends it exactly once, however the request ends.

use std::time::Instant;

use wire::Hint;

use crate::request::Summary;
use crate::wants::Wants;

/// Tokens between two progress hints, after one for the second token: often enough to follow a request's pace, seldom enough to cost nothing.
const PROGRESS_EVERY_TOKENS: u32 = 16;

/// Phase of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Not yet sent to the engine.
    Queued,
    /// Sent; no token yet.
    Prefill,
    /// Tokens are coming.
    Decode,
    /// Over.
    Done,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// The engine's answer was passed on whole.
    Finished,
    /// The client went away first.
    ClientLeft,
    /// The engine failed, was unreachable, or answered with an error.
    Failed,
}

/// One request's state.
#[derive(Debug)]
pub struct Lifecycle {
    request: u64,
    phase: Phase,
    arrived: Instant,
    first_token: Option<Instant>,
    tokens: u32,
    reported_tokens: u32,
}

impl Lifecycle {
    /// A request that has just arrived.
    pub fn new(request: u64, now: Instant) -> Self {
        Self { request, phase: Phase::Queued, arrived: now, first_token: None, tokens: 0, reported_tokens: 0 }
    }

    /// Its phase.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Tokens seen so far.
    pub fn tokens(&self) -> u32 {
        self.tokens
    }

    /// When the first token came.
    pub fn first_token(&self) -> Option<Instant> {
        self.first_token
    }

    /// Seconds from arrival to the first token.
    pub fn ttft_s(&self) -> Option<f64> {
        Some(self.first_token?.duration_since(self.arrived).as_secs_f64())
    }

    /// Seconds a token after the first, if there were at least two.
    pub fn tpot_s(&self, now: Instant) -> Option<f64> {
        let first = self.first_token?;
        (self.tokens >= 2).then(|| now.duration_since(first).as_secs_f64() / f64::from(self.tokens - 1))
    }

    /// It goes to the engine now: QUEUED → PREFILL.
    pub fn sent(&mut self, summary: &Summary, wants: &Wants) -> Vec<Hint> {
        debug_assert_eq!(self.phase, Phase::Queued);
        self.phase = Phase::Prefill;
        self.announced(summary, wants)
    }

    /// What the scheduler of an engine is told that gets it now: the first, or another after that one failed.
    pub fn announced(&self, summary: &Summary, wants: &Wants) -> Vec<Hint> {
        let request = self.request;
        vec![
            Hint::Admitted {
                request,
                prompt_tokens: summary.prompt_tokens,
                max_tokens: summary.max_tokens,
                ttft_deadline_ms: wants.ttft_ms,
                tpot_target_ms: wants.tpot_ms,
                priority: wants.priority,
                tenant: wants.tenant.clone(),
            },
            Hint::PrefillStarted { request },
        ]
    }

    /// What the scheduler of an engine is told that does not get it after all.
    pub fn withdrawn(&self) -> Hint {
        Hint::Aborted { request: self.request }
    }

    /// Tokens came: PREFILL → DECODE at the first.
    pub fn tokens_came(&mut self, count: u32, now: Instant) -> Option<Hint> {
        if count == 0 || self.phase == Phase::Done {
            return None;
        }
        self.tokens = self.tokens.saturating_add(count);
        if self.first_token.is_none() {
            self.first_token = Some(now);
            self.phase = Phase::Decode;
            self.reported_tokens = 1;
            return Some(Hint::FirstToken { request: self.request });
        }
        // The second token tells that the engine decodes it: some are parked after the first.
        let every = if self.reported_tokens == 1 { 1 } else { PROGRESS_EVERY_TOKENS };
        (self.tokens - self.reported_tokens >= every).then(|| {
            self.reported_tokens = self.tokens;
            Hint::Progress { request: self.request, tokens: self.tokens }
        })
    }

    /// It is over. Says nothing if the engine never saw it, or if it was over before.
    pub fn ended(&mut self, end: End) -> Option<Hint> {
        let before = std::mem::replace(&mut self.phase, Phase::Done);
        if matches!(before, Phase::Queued | Phase::Done) {
            return None;
        }
        let request = self.request;
        Some(if end == End::Finished { Hint::Finished { request } } else { Hint::Aborted { request } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn sent() -> (Lifecycle, Instant) {
        let now = Instant::now();
        let mut life = Lifecycle::new(7, now);
        let summary = Summary { prompt_tokens: 100, max_tokens: 50, stream: true };
        let hints =
            life.sent(&summary, &Wants { priority: 3, tenant: "blue".to_owned(), ..Wants::objectives(1000, 50) });
        let admitted = Hint::Admitted {
            request: 7,
            prompt_tokens: 100,
            max_tokens: 50,
            ttft_deadline_ms: 1000,
            tpot_target_ms: 50,
            priority: 3,
            tenant: "blue".to_owned(),
        };
        assert_eq!(hints, [admitted, Hint::PrefillStarted { request: 7 }]);
        (life, now)
    }

    #[test]
    fn first_token_opens_decode_and_progress_follows_with_the_second_and_every_sixteen() {
        let (mut life, now) = sent();
        let at = now + Duration::from_millis(200);
        assert!(matches!(life.tokens_came(1, at), Some(Hint::FirstToken { request: 7 })));
        assert_eq!(life.phase(), Phase::Decode);
        let hints: Vec<Hint> = (0..40).filter_map(|_| life.tokens_came(1, at)).collect();
        assert!(
            matches!(
                hints[..],
                [
                    Hint::Progress { tokens: 2, .. },
                    Hint::Progress { tokens: 18, .. },
                    Hint::Progress { tokens: 34, .. }
                ]
            ),
            "{hints:?}"
        );
        assert_eq!(life.ttft_s(), Some(0.2));
        let tpot = life.tpot_s(at + Duration::from_secs(4)).unwrap();
        assert!((tpot - 0.1).abs() < 1e-9, "{tpot}");
    }

    #[test]
    fn each_end_says_one_thing_once() {
        for (end, finished) in [(End::Finished, true), (End::ClientLeft, false), (End::Failed, false)] {
            let (mut life, _) = sent();
            let hint = life.ended(end).unwrap();
            assert_eq!(matches!(hint, Hint::Finished { request: 7 }), finished, "{end:?}");
            assert!(life.ended(End::Failed).is_none(), "a second end is silent");
            assert!(life.tokens_came(1, Instant::now()).is_none(), "late tokens are not hinted");
        }
    }

    #[test]
    fn request_that_the_engine_never_saw_leaves_no_hint() {
        assert!(Lifecycle::new(1, Instant::now()).ended(End::ClientLeft).is_none());
    }
}

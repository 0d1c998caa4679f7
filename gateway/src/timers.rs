//! When to speak to a silent client, and when to stop waiting for a silent engine.
//!
//! Pure. One timer serves a request: it is set to [`Timers::due`], and [`Timers::at`] says what its end means.

use std::time::{Duration, Instant};

use crate::config::Timeouts;

/// What the end of the timer means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Nothing yet: something came in the meantime.
    Nothing,
    /// The client has heard nothing for too long.
    KeepAlive,
    /// The engine has said nothing for too long; what it owes.
    Silent(&'static str),
}

/// Times of one request.
#[derive(Clone, Copy, Debug)]
pub struct Timers {
    keep_alive: Option<Duration>,
    spoke: Instant,
    inter_token: Duration,
    first_token: Instant,
    total: Instant,
    heard: Option<Instant>,
}

impl Timers {
    /// For a request that goes to the engine now; keep-alives only where the client takes a stream.
    pub fn new(timeouts: &Timeouts, streamed: bool, now: Instant) -> Self {
        Self {
            keep_alive: (streamed && timeouts.keep_alive_ms > 0).then(|| Timeouts::of(timeouts.keep_alive_ms)),
            spoke: now,
            inter_token: Timeouts::of(timeouts.inter_token_ms),
            first_token: now + Timeouts::of(timeouts.first_token_ms),
            total: now + Timeouts::of(timeouts.total_ms),
            heard: None,
        }
    }

    /// For a request that waits for admission, `left` at most.
    pub fn waiting(timeouts: &Timeouts, streamed: bool, now: Instant, left: Duration) -> Self {
        let end = now + left.min(Timeouts::of(timeouts.total_ms));
        Self { first_token: end, total: end, ..Self::new(timeouts, streamed, now) }
    }

    /// It goes to the engine now; when the client heard from us last stays.
    #[must_use]
    pub fn sent(self, timeouts: &Timeouts, now: Instant) -> Self {
        Self { spoke: self.spoke, keep_alive: self.keep_alive, ..Self::new(timeouts, false, now) }
    }

    /// Something was written to the client.
    pub fn spoke(&mut self, now: Instant) {
        self.spoke = now;
    }

    /// A piece of the answer came.
    pub fn heard(&mut self, now: Instant) {
        self.heard = Some(now);
    }

    /// When to look again.
    pub fn due(&self) -> Instant {
        let silent = self.silent_at().0;
        self.keep_alive.map_or(silent, |every| silent.min(self.spoke + every))
    }

    /// What it means that it is `now`.
    pub fn at(&self, now: Instant) -> Due {
        let (at, what) = self.silent_at();
        if now >= at {
            return Due::Silent(what);
        }
        let quiet = self.keep_alive.is_some_and(|every| now >= self.spoke + every);
        if quiet { Due::KeepAlive } else { Due::Nothing }
    }

    fn silent_at(&self) -> (Instant, &'static str) {
        let next = match self.heard {
            None => (self.first_token, "a first token"),
            Some(heard) => (heard + self.inter_token, "the next token"),
        };
        if self.total < next.0 { (self.total, "the whole answer") } else { next }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_silence_has_its_own_end() {
        let timeouts = Timeouts {
            first_token_ms: 100_000,
            inter_token_ms: 30_000,
            total_ms: 150_000,
            keep_alive_ms: 15_000,
            ..Timeouts::default()
        };
        let start = Instant::now();
        let at = |s: u64| start + Duration::from_secs(s);
        let mut timers = Timers::new(&timeouts, true, start);
        assert_eq!((timers.due(), timers.at(at(14)), timers.at(at(15))), (at(15), Due::Nothing, Due::KeepAlive));
        timers.spoke(at(15));
        assert_eq!((timers.due(), timers.at(at(29))), (at(30), Due::Nothing));
        assert_eq!(timers.at(at(100)), Due::Silent("a first token"));
        timers.heard(at(90));
        timers.spoke(at(119));
        assert_eq!((timers.due(), timers.at(at(120))), (at(120), Due::Silent("the next token")));
        timers.heard(at(140));
        assert_eq!(timers.at(at(150)), Due::Silent("the whole answer"));
        let waits = Timers::waiting(&timeouts, true, start, Duration::from_secs(20));
        assert_eq!((waits.at(at(16)), waits.at(at(20))), (Due::KeepAlive, Due::Silent("a first token")));
        assert_eq!(waits.sent(&timeouts, at(10)).due(), at(15), "the client's silence goes on");
        let plain = Timers::new(&timeouts, false, start);
        assert_eq!((plain.due(), plain.at(at(99))), (at(100), Due::Nothing));
    }
}

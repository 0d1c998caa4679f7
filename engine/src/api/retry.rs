//! When a refused client should come back.
//!
//! Client libraries retry a 429 twice by themselves; a delay that is too short multiplies the load exactly when there is
//! too much of it. So the delay follows from how fast requests have been finishing lately.

use std::time::{Duration, Instant};

/// Shortest and longest delay told, in seconds.
const DELAY_S_MIN: u64 = 1;
const DELAY_S_MAX: u64 = 30;
/// The rate is measured over windows of at least this length.
const WINDOW: Duration = Duration::from_secs(2);
/// Come back when this share of the queue has moved on: waiting for all of it would leave the engine idle.
const QUEUE_SHARE: f64 = 0.1;

/// Requests finished per second, over the last window.
#[derive(Debug)]
pub(crate) struct FinishRate {
    since: Instant,
    finished: u64,
    per_s: Option<f64>,
}

impl FinishRate {
    pub(crate) fn new(now: Instant) -> Self {
        Self { since: now, finished: 0, per_s: None }
    }

    /// Seconds until a tenth of the `waiting` requests will be gone, given that `finished` were finished up to `now`.
    pub(crate) fn retry_after_s(&mut self, now: Instant, finished: u64, waiting: usize) -> u64 {
        let window = now.saturating_duration_since(self.since);
        if window >= WINDOW {
            self.per_s = Some(finished.saturating_sub(self.finished) as f64 / window.as_secs_f64());
            (self.since, self.finished) = (now, finished);
        }
        match self.per_s {
            None => DELAY_S_MIN,
            // Saturates: a rate of zero gives the longest delay.
            Some(per_s) => ((waiting as f64 * QUEUE_SHARE / per_s).ceil() as u64).clamp(DELAY_S_MIN, DELAY_S_MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_follows_the_rate_at_which_requests_finish() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut rate = FinishRate::new(start);
        assert_eq!(rate.retry_after_s(at(1), 10, 1000), DELAY_S_MIN, "nothing is known yet");
        assert_eq!(rate.retry_after_s(at(10), 100, 1000), 10, "10 a second, 100 have to go");
        assert_eq!(rate.retry_after_s(at(11), 500, 1000), 10, "the window is too short to learn from");
        assert_eq!(rate.retry_after_s(at(20), 10_100, 1000), DELAY_S_MIN, "1000 a second");
        assert_eq!(rate.retry_after_s(at(30), 10_100, 1000), DELAY_S_MAX, "nothing finished");
        assert_eq!(rate.retry_after_s(at(40), 10_101, 0), DELAY_S_MIN, "nothing waits");
    }
}

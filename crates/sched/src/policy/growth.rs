//! How a session's decode steps grow with the requests in them.
//!
//! A request that spends its budget while others join finds its later steps longer than they were. What a step takes more for
//! each request is the slope of a line through recent steps, requests against work. As long as all steps had the same number
//! of requests, steps are taken to be proportional to it: the most that another request can cost, believed until the next step
//! with another number ends.

use crate::Nanos;
use serde::{Deserialize, Serialize};

/// Weight of the newest step; as in the mean of steps ([`super::clock`]) that this adds to.
const NEWEST: f64 = 0.3;
/// Weight of the newest step in the spread: the line outlasts a stretch of steps of the same size.
const NEWEST_SPREAD: f64 = 0.05;
/// Variance of the number of requests below which there is no line.
const SPREAD_MIN: f64 = 1e-3;

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct Growth {
    /// Requests and work of steps, on average, and how the two vary together.
    requests: f64,
    work: f64,
    variance: f64,
    covariance: f64,
    seen: bool,
}

impl Growth {
    /// A step of so many requests took so much work.
    pub fn step(&mut self, requests: usize, work: Nanos) {
        let (requests, work) = (requests as f64, work as f64);
        if !self.seen {
            *self = Self { requests, work, seen: true, ..Self::default() };
            return;
        }
        let (dr, dw) = (requests - self.requests, work - self.work);
        self.variance += NEWEST_SPREAD * (dr * dr - self.variance);
        self.covariance += NEWEST_SPREAD * (dr * dw - self.covariance);
        self.requests += NEWEST * dr;
        self.work += NEWEST * dw;
    }

    /// What a step of so many requests takes more than the mean step; than the `open` one while there is no mean.
    pub fn more(&self, requests: usize, open: (usize, Nanos)) -> Nanos {
        if !self.seen {
            let mut first = Self::default();
            first.step(open.0, open.1);
            return first.more(requests, open);
        }
        let proportional = if self.requests > 0.0 { self.work / self.requests } else { 0.0 };
        let slope = if self.variance < SPREAD_MIN { proportional } else { self.covariance / self.variance };
        ((requests as f64 - self.requests).max(0.0) * slope.clamp(0.0, proportional)) as Nanos
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_of_one_size_are_taken_to_be_proportional_until_another_is_seen() {
        let mut growth = Growth::default();
        assert_eq!(growth.more(9, (3, 60)), 120, "nothing is known but the first step");
        for _ in 0..40 {
            growth.step(2, 100);
        }
        assert_eq!(([1, 2, 6].map(|n| growth.more(n, (0, 0)))), [0, 0, 200]);
        // A line with a large constant: 90 and 5 a request.
        for n in [2, 4, 8, 4, 2, 8, 4, 2] {
            growth.step(n, 90 + 5 * n as Nanos);
        }
        let [at, more] = [growth.requests as usize, growth.requests as usize + 10].map(|n| growth.more(n, (0, 0)));
        assert!((40..=60).contains(&(more - at)), "{} for ten more", more - at);
    }
}

//! The figures of a run. Definitions are those of the load generator, from the engine's side; times in seconds.
//!
//! TPOT is reported twice. *From the first token*: `(last − first)/(n − 1)`, what a user feels. *In the slot*:
//! `(last − slot)/(n − 1)`, time parked without a decode slot left out, which is what the paper's tables compare. A request
//! of one token has neither. Percentiles are exact (nearest rank).

use sched::Nanos;

use crate::Outcome;

/// Objectives of a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Objectives {
    /// TPOT from the first token, seconds.
    pub tpot_s: f64,
    /// TTFT floor, seconds: the objective is this or twice the prompt's prefill time alone, whichever is larger.
    pub ttft_s: f64,
}

impl Default for Objectives {
    /// TPOT 50 ms, TTFT 1 s: the paper's.
    fn default() -> Self {
        Self { tpot_s: 0.05, ttft_s: 1.0 }
    }
}

/// A distribution.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spread {
    /// Mean.
    pub mean: f64,
    /// Median.
    pub p50: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Largest.
    pub max: f64,
}

impl Spread {
    /// Of these values; all 0 without any.
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let rank = |p: f64| values.get(((p * values.len() as f64).ceil() as usize).max(1) - 1).copied();
        Self {
            mean: values.iter().sum::<f64>() / values.len().max(1) as f64,
            p50: rank(0.5).unwrap_or(0.0),
            p99: rank(0.99).unwrap_or(0.0),
            max: values.last().copied().unwrap_or(0.0),
        }
    }
}

/// What a run, or a part of its requests, came to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Report {
    /// Requests.
    pub requests: usize,
    /// First arrival to last token, seconds.
    pub duration_s: f64,
    /// Arrival to first token.
    pub ttft_s: Spread,
    /// A token, while in a decode slot.
    pub tpot_slot_s: Spread,
    /// A token, from the first on.
    pub tpot_s: Spread,
    /// Arrival to last token.
    pub e2e_s: Spread,
    /// Longest gap between two tokens of a request.
    pub stall_s: Spread,
    /// The same, time without a slot left out.
    pub stall_slot_s: Spread,
    /// Output tokens a second.
    pub tokens_per_s: f64,
    /// Requests a second.
    pub requests_per_s: f64,
    /// Requests within their objectives a second.
    pub goodput_per_s: f64,
    /// Part of the requests within their objectives.
    pub goodput_share: f64,
}

impl Report {
    /// Over `outcomes`; `alone` is a prompt's prefill time with nothing else on the device.
    pub fn new(outcomes: &[Outcome], goal: &Objectives, mut alone: impl FnMut(u32) -> Nanos) -> Self {
        let s = |ns: Nanos| ns as f64 * 1e-9;
        let begin = outcomes.iter().map(|o| o.arrival).min().unwrap_or(0);
        let end = outcomes.iter().map(|o| o.last).max().unwrap_or(0);
        let duration_s = s(end - begin).max(f64::MIN_POSITIVE);
        let of = |f: &dyn Fn(&Outcome) -> Nanos| Spread::of(outcomes.iter().map(|o| s(f(o))).collect());
        let many = || outcomes.iter().filter(|o| o.output > 1);
        let per_token = |from: &dyn Fn(&Outcome) -> Nanos| {
            Spread::of(many().map(|o| s(o.last - from(o)) / f64::from(o.output - 1)).collect())
        };
        let good = outcomes.iter().filter(|o| {
            let ttft_max = goal.ttft_s.max(2.0 * s(alone(o.prompt)));
            let tpot = if o.output > 1 { s(o.last - o.first) / f64::from(o.output - 1) } else { 0.0 };
            s(o.first - o.arrival) <= ttft_max && tpot <= goal.tpot_s
        });
        let good = good.count() as f64;
        let tokens: f64 = outcomes.iter().map(|o| f64::from(o.output)).sum();
        Self {
            requests: outcomes.len(),
            duration_s,
            ttft_s: of(&|o| o.first - o.arrival),
            tpot_slot_s: per_token(&|o| o.slot),
            tpot_s: per_token(&|o| o.first),
            e2e_s: of(&|o| o.last - o.arrival),
            stall_s: of(&|o| o.stall),
            stall_slot_s: of(&|o| o.stall_in_slot),
            tokens_per_s: tokens / duration_s,
            requests_per_s: outcomes.len() as f64 / duration_s,
            goodput_per_s: good / duration_s,
            goodput_share: good / outcomes.len().max(1) as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parked_time_counts_from_the_first_token_only() {
        const MS: Nanos = 1_000_000;
        let parked = Outcome {
            arrival: 0,
            prompt: 10,
            output: 11,
            first: 100 * MS,
            slot: 600 * MS,
            last: 800 * MS,
            stall: 500 * MS,
            ..Outcome::default()
        };
        let prompt = Outcome { output: 1, first: 1500 * MS, slot: 1500 * MS, last: 1500 * MS, ..parked };
        let report = Report::new(&[parked, prompt], &Objectives::default(), |_| 800 * MS);
        assert!((report.tpot_slot_s.mean - 0.02).abs() < 1e-12, "{:?}", report.tpot_slot_s);
        assert!((report.tpot_s.mean - 0.07).abs() < 1e-12);
        assert_eq!(report.goodput_share, 0.5, "70 ms a token is too slow; 1.5 s is within twice 0.8 s");
        assert!((report.tokens_per_s - 12.0 / 1.5).abs() < 1e-9);
        assert_eq!((report.ttft_s.p50, report.ttft_s.p99), (0.1, 1.5));
    }
}

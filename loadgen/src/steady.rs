//! The steady part of a run: without the time in which the server filled up, and without the end in which it ran dry.
//!
//! The beginning is cut where that makes the mean of the rest most certain (MSER-5: White, *An effective truncation heuristic
//! for bias reduction in simulation output*, Simulation 69, 1997; batches of five, at most half of the run). The end is the
//! last sending. Pure.

use serde_json::{Map, Value, json};

use crate::measure::{Objectives, Outcome};
use crate::report::{Report, marks};

/// Values averaged before the rule is applied.
const BATCH: usize = 5;
/// Fewer completed requests than this have no steady part that anybody could find.
const REQUESTS_MIN: usize = 50;
/// Metrics shown of it.
const METRICS: [&str; 4] = ["ttft", "tpot", "itl", "e2el"];

/// The steady part.
#[derive(Clone, Debug)]
pub struct Steady {
    /// From this sending, nanoseconds from the start of the run.
    pub from_ns: u64,
    /// To the last sending.
    pub to_ns: u64,
    /// Requests sent in it.
    pub report: Report,
    /// Output tokens that came in it, a second.
    pub tokens_per_s: f64,
}

impl Steady {
    /// Finds it; `None` where too few requests completed or all were sent at once.
    pub fn find(outcomes: &[Outcome]) -> Option<Self> {
        let mut done: Vec<&Outcome> = outcomes.iter().filter(|o| o.completed()).collect();
        done.sort_unstable_by_key(|o| o.sent_ns);
        let ttft: Vec<f64> = done.iter().filter_map(|o| o.ttft_ms()).collect();
        if ttft.len() < REQUESTS_MIN {
            return None;
        }
        let from_ns = done[truncation(&ttft)].sent_ns;
        let to_ns = done[done.len() - 1].sent_ns;
        if to_ns <= from_ns {
            return None;
        }
        let within: Vec<Outcome> =
            outcomes.iter().filter(|o| (from_ns..=to_ns).contains(&o.sent_ns)).cloned().collect();
        let tokens: f64 = done
            .iter()
            .map(|o| {
                let came = o.chunks_ns.iter().filter(|t| (from_ns..=to_ns).contains(t)).count();
                came as f64 * f64::from(o.output_tokens) / o.chunks_ns.len().max(1) as f64
            })
            .sum();
        Some(Self {
            from_ns,
            to_ns,
            report: Report::new(&within, &Objectives::default()),
            tokens_per_s: tokens / ((to_ns - from_ns) as f64 / 1e9),
        })
    }

    /// Flat figures, all of which begin with `steady_`.
    pub fn figures(&self) -> Map<String, Value> {
        let mut out = Map::new();
        out.insert("steady_from_s".into(), json!(self.from_ns as f64 / 1e9));
        out.insert("steady_to_s".into(), json!(self.to_ns as f64 / 1e9));
        out.insert("steady_requests".into(), json!(self.report.completed));
        out.insert("steady_output_tokens_per_s".into(), json!(self.tokens_per_s));
        for name in METRICS {
            let samples = self.report.metric(name).map(marks);
            for (mark, value) in samples.into_iter().flatten().filter_map(|(mark, value)| Some((mark, value?))) {
                out.insert(format!("steady_{name}_{mark}_ms"), json!(value));
            }
        }
        out
    }
}

/// How many of `values` to leave out at the beginning.
fn truncation(values: &[f64]) -> usize {
    let batches: Vec<f64> = values.chunks_exact(BATCH).map(|b| b.iter().sum::<f64>() / BATCH as f64).collect();
    let (mut best, mut least) = (0, f64::INFINITY);
    let (mut count, mut sum, mut squares) = (0.0, 0.0, 0.0);
    // From the end, so that each tail's variance is one step from the last.
    for start in (0..batches.len()).rev() {
        let value = batches[start];
        count += 1.0;
        sum += value;
        squares += value * value;
        let variance = (squares / count - (sum / count).powi(2)).max(0.0);
        if start <= batches.len() / 2 && variance / count <= least {
            (best, least) = (start, variance / count);
        }
    }
    best * BATCH
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcomes(ttft_ms: impl Fn(u64) -> u64, count: u64) -> Vec<Outcome> {
        (0..count)
            .map(|i| {
                let sent_ns = i * 100_000_000;
                Outcome {
                    scheduled_ns: sent_ns,
                    sent_ns,
                    chunks_ns: vec![sent_ns + ttft_ms(i) * 1_000_000],
                    output_tokens: 1,
                    ..Outcome::default()
                }
            })
            .collect()
    }

    #[test]
    fn the_filling_up_is_left_out() {
        // The first forty get slower and slower, then it stays so, with some noise.
        let steady = Steady::find(&outcomes(|i| i.min(40) * 10 + i % 3, 200)).unwrap();
        let from_s = steady.from_ns as f64 / 1e9;
        assert!((3.5..=4.5).contains(&from_s), "{from_s}");
        assert_eq!(steady.to_ns, 19_900_000_000);
        assert!((steady.tokens_per_s - 10.0).abs() < 0.5, "{}", steady.tokens_per_s);
        assert_eq!(steady.figures()["steady_ttft_p50_ms"], json!(401.0));
    }

    #[test]
    fn a_steady_run_is_steady_from_the_beginning() {
        let steady = Steady::find(&outcomes(|_| 50, 60)).unwrap();
        assert_eq!(steady.from_ns, 0);
    }

    #[test]
    fn few_requests_have_none() {
        assert!(Steady::find(&outcomes(|_| 50, 20)).is_none());
    }
}

//! Everything a run measured, as samples and as figures.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use crate::measure::{Objectives, Outcome, Samples};

/// Everything a run measured.
#[derive(Clone, Debug)]
pub struct Report {
    /// Requests that completed.
    pub completed: usize,
    /// Requests that failed.
    pub failed: usize,
    /// Requests that the plan ended.
    pub cancelled: usize,
    /// Completed requests whose prompt the server counts otherwise than planned.
    pub prompts_off: usize,
    /// Duration, seconds: first scheduled send to last chunk.
    pub duration_s: f64,
    /// Prompt tokens of completed requests.
    pub prompt_tokens: u64,
    /// Output tokens of completed requests.
    pub output_tokens: u64,
    /// Requests that met the objectives, if any were given.
    pub good: Option<usize>,
    /// Name and samples, milliseconds, in the order they are shown.
    pub samples: Vec<(&'static str, Samples)>,
    /// Failures by what they say, most frequent first.
    pub errors: Vec<(String, usize)>,
}

/// Name and value of a distribution's marks, as figures have them.
pub fn marks(samples: &Samples) -> [(&'static str, Option<f64>); 4] {
    [("mean", samples.mean()), ("p50", samples.p(50.0)), ("p90", samples.p(90.0)), ("p99", samples.p(99.0))]
}

impl Report {
    /// Computes a report from outcomes.
    pub fn new(outcomes: &[Outcome], goal: &Objectives) -> Self {
        let done: Vec<&Outcome> = outcomes.iter().filter(|o| o.completed()).collect();
        let start = outcomes.iter().map(|o| o.scheduled_ns).min().unwrap_or(0);
        let end = outcomes.iter().filter_map(Outcome::last_ns).fold(start, u64::max);
        let each = |f: fn(&Outcome) -> Option<f64>| Samples::new(done.iter().filter_map(|o| f(o)).collect());
        Self {
            completed: done.len(),
            failed: outcomes.iter().filter(|o| o.error.is_some()).count(),
            cancelled: outcomes.iter().filter(|o| o.cancelled).count(),
            prompts_off: done.iter().filter(|o| o.expected_prompt_tokens.is_some_and(|n| n != o.prompt_tokens)).count(),
            duration_s: (end - start) as f64 / 1e9,
            prompt_tokens: done.iter().map(|o| u64::from(o.prompt_tokens)).sum(),
            output_tokens: done.iter().map(|o| u64::from(o.output_tokens)).sum(),
            good: (*goal != Objectives::default()).then(|| outcomes.iter().filter(|o| o.meets(goal)).count()),
            samples: vec![
                ("ttft", each(Outcome::ttft_ms)),
                ("ttft_from_send", each(Outcome::ttft_from_send_ms)),
                ("tpot", each(Outcome::tpot_ms)),
                ("itl", Samples::new(done.iter().flat_map(|o| o.chunk_gaps_ms()).collect())),
                ("token_gap", Samples::new(done.iter().flat_map(|o| o.token_gaps_ms()).collect())),
                ("e2el", each(Outcome::e2e_ms)),
                ("e2el_from_send", each(Outcome::e2e_from_send_ms)),
                ("send_lag", Samples::new(outcomes.iter().map(Outcome::send_lag_ms).collect())),
            ],
            errors: errors(outcomes),
        }
    }

    /// The samples of one metric, milliseconds.
    pub fn metric(&self, name: &str) -> Option<&Samples> {
        self.samples.iter().find(|(n, _)| *n == name).map(|(_, s)| s)
    }

    /// Flat figures: `ttft_p50_ms`, `output_tokens_per_s`, … Undefined figures are left out.
    pub fn figures(&self) -> Map<String, Value> {
        let mut out = Map::new();
        let rate = |n: f64| if self.duration_s > 0.0 { n / self.duration_s } else { 0.0 };
        out.insert("completed".into(), json!(self.completed));
        out.insert("failed".into(), json!(self.failed));
        out.insert("cancelled".into(), json!(self.cancelled));
        out.insert("prompts_off".into(), json!(self.prompts_off));
        out.insert("duration_s".into(), json!(self.duration_s));
        out.insert("prompt_tokens".into(), json!(self.prompt_tokens));
        out.insert("output_tokens".into(), json!(self.output_tokens));
        out.insert("requests_per_s".into(), json!(rate(self.completed as f64)));
        out.insert("output_tokens_per_s".into(), json!(rate(self.output_tokens as f64)));
        out.insert("total_tokens_per_s".into(), json!(rate((self.output_tokens + self.prompt_tokens) as f64)));
        if let Some(good) = self.good {
            out.insert("goodput_requests_per_s".into(), json!(rate(good as f64)));
            let all = self.completed + self.failed;
            out.insert("goodput_share".into(), json!(good as f64 / all.max(1) as f64));
        }
        for (name, samples) in &self.samples {
            for (mark, value) in marks(samples) {
                if let Some(value) = value {
                    out.insert(format!("{name}_{mark}_ms"), json!(value));
                }
            }
        }
        out
    }
}

fn errors(outcomes: &[Outcome]) -> Vec<(String, usize)> {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for error in outcomes.iter().filter_map(|o| o.error.as_deref()) {
        *counts.entry(error).or_default() += 1;
    }
    let mut counts: Vec<_> = counts.into_iter().map(|(error, count)| (error.to_owned(), count)).collect();
    counts.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(chunks_ms: &[u64], tokens: u32) -> Outcome {
        let chunks_ns = chunks_ms.iter().map(|ms| ms * 1_000_000).collect();
        Outcome { chunks_ns, output_tokens: tokens, ..Outcome::default() }
    }

    #[test]
    fn goodput_counts_failures_as_missed() {
        let goal = Objectives::parse(&["ttft:600".into(), "tpot:150".into()]).unwrap();
        let good = outcome(&[500, 600], 2);
        let slow = outcome(&[700, 800], 2);
        let failed = Outcome { error: Some("503".into()), ..good.clone() };
        let report = Report::new(&[good, slow, failed.clone(), failed], &goal);
        assert_eq!((report.completed, report.failed, report.good), (2, 2, Some(1)));
        assert_eq!(report.errors, [("503".to_owned(), 2)]);
    }

    #[test]
    fn figures_leave_undefined_values_out() {
        let figures = Report::new(&[outcome(&[1000], 1)], &Objectives::default()).figures();
        assert!(figures.contains_key("ttft_p50_ms") && !figures.contains_key("tpot_p50_ms"));
        assert!(!figures.contains_key("goodput_share"));
    }
}

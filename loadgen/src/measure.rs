//! What is measured, and how: definitions first, because rivals differ in all of them.
//!
//! - **TTFT**: from the moment the request was *scheduled* to the arrival of the first chunk with non-empty content. A
//!   role-only chunk does not count; time the request waited inside this program does (it is also shown alone, as
//!   *send lag*).
//! - **TPOT**: `(last − first content chunk) / (n − 1)`, n = completion tokens as the server's usage says, else chunks.
//!   Undefined for n < 2, and such requests do not enter its percentiles.
//! - **ITL**: gaps between successive content chunks, pooled over requests (a chunk may carry several tokens).
//! - **E2E**: from the scheduled moment to the last content chunk.
//! - **Throughput**: completed requests' output tokens over the time from the first scheduled send to the last chunk.
//! - **Goodput**: requests that meet every given objective, over the same duration. A failed request meets none.
//!
//! Percentiles are exact (nearest rank on all samples), not estimated from buckets.

use serde_json::{Map, Value, json};

/// What happened to one request. Times are seconds from the start of the run.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// When it was to be sent.
    pub scheduled_s: f64,
    /// When it was sent.
    pub sent_s: f64,
    /// Arrival of every chunk with content.
    pub chunks_s: Vec<f64>,
    /// Prompt tokens: from the server's usage, else as planned.
    pub prompt_tokens: u32,
    /// Completion tokens: from the server's usage, else the number of chunks.
    pub output_tokens: u32,
    /// Why it failed, if it did.
    pub error: Option<String>,
}

impl Outcome {
    /// Time to first token, seconds.
    pub fn ttft_s(&self) -> Option<f64> {
        self.chunks_s.first().map(|t| t - self.scheduled_s)
    }

    /// Time per output token after the first, seconds.
    pub fn tpot_s(&self) -> Option<f64> {
        let (first, last) = (self.chunks_s.first()?, self.chunks_s.last()?);
        (self.output_tokens >= 2).then(|| (last - first) / f64::from(self.output_tokens - 1))
    }

    /// End-to-end latency, seconds.
    pub fn e2e_s(&self) -> Option<f64> {
        self.chunks_s.last().map(|t| t - self.scheduled_s)
    }

    /// True if it completed and its TTFT and TPOT are within the objectives (seconds).
    pub fn meets(&self, goal: &Objectives) -> bool {
        let within = |value: Option<f64>, limit: Option<f64>| limit.is_none_or(|l| value.is_none_or(|v| v <= l));
        self.error.is_none()
            && self.ttft_s().is_some()
            && within(self.ttft_s(), goal.ttft_s)
            && within(self.tpot_s(), goal.tpot_s)
            && within(self.e2e_s(), goal.e2e_s)
    }
}

/// Service-level objectives, seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Objectives {
    /// Time to first token.
    pub ttft_s: Option<f64>,
    /// Time per output token.
    pub tpot_s: Option<f64>,
    /// End to end.
    pub e2e_s: Option<f64>,
}

impl Objectives {
    /// Parses `name:milliseconds` pairs, as in `ttft:1000 tpot:50`.
    ///
    /// # Errors
    /// A sentence naming the pair and what was expected.
    pub fn parse(pairs: &[String]) -> Result<Self, String> {
        let mut out = Self::default();
        for pair in pairs {
            let parsed = pair.split_once(':').and_then(|(n, v)| Some((n, v.parse::<f64>().ok()?)));
            let Some((name, ms)) = parsed.filter(|(_, ms)| *ms > 0.0) else {
                return Err(format!("--goodput {pair}: want name:milliseconds, as in ttft:1000"));
            };
            match name {
                "ttft" => out.ttft_s = Some(ms / 1e3),
                "tpot" => out.tpot_s = Some(ms / 1e3),
                "e2el" | "e2e" => out.e2e_s = Some(ms / 1e3),
                other => return Err(format!("--goodput {other}: unknown objective, want ttft, tpot or e2el")),
            }
        }
        Ok(out)
    }
}

/// Exact percentile by nearest rank of sorted `values`; `p` in percent.
pub fn percentile(values: &[f64], p: f64) -> Option<f64> {
    let rank = (p / 100.0 * values.len() as f64).ceil() as usize;
    values.get(rank.clamp(1, values.len().max(1)) - 1).copied()
}

/// One distribution, sorted.
#[derive(Clone, Debug, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Sorts `values`.
    pub fn new(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        Self(values)
    }

    /// Percentile, `p` in percent.
    pub fn p(&self, p: f64) -> Option<f64> {
        percentile(&self.0, p)
    }

    /// Mean.
    pub fn mean(&self) -> Option<f64> {
        (!self.0.is_empty()).then(|| self.0.iter().sum::<f64>() / self.0.len() as f64)
    }
}

/// Everything a run measured.
#[derive(Clone, Debug)]
pub struct Report {
    /// Requests that completed.
    pub completed: usize,
    /// Requests that failed.
    pub failed: usize,
    /// Duration, seconds: first scheduled send to last chunk.
    pub duration_s: f64,
    /// Prompt tokens of completed requests.
    pub prompt_tokens: u64,
    /// Output tokens of completed requests.
    pub output_tokens: u64,
    /// Requests that met the objectives, if any were given.
    pub good: Option<usize>,
    /// Name and samples, seconds: ttft, tpot, itl, e2el, send_lag.
    pub samples: Vec<(&'static str, Samples)>,
    /// The most frequent failure, if any.
    pub first_error: Option<String>,
}

impl Report {
    /// Computes a report from outcomes.
    pub fn new(outcomes: &[Outcome], goal: &Objectives) -> Self {
        let done: Vec<&Outcome> = outcomes.iter().filter(|o| o.error.is_none()).collect();
        let start = outcomes.iter().map(|o| o.scheduled_s).fold(f64::INFINITY, f64::min);
        let end = outcomes.iter().filter_map(|o| o.chunks_s.last().copied()).fold(start, f64::max);
        let collect = |f: &dyn Fn(&Outcome) -> Option<f64>| Samples::new(done.iter().filter_map(|o| f(o)).collect());
        let gaps = done.iter().flat_map(|o| o.chunks_s.windows(2).map(|w| w[1] - w[0])).collect();
        Self {
            completed: done.len(),
            failed: outcomes.len() - done.len(),
            duration_s: (end - start).max(0.0),
            prompt_tokens: done.iter().map(|o| u64::from(o.prompt_tokens)).sum(),
            output_tokens: done.iter().map(|o| u64::from(o.output_tokens)).sum(),
            good: (*goal != Objectives::default()).then(|| outcomes.iter().filter(|o| o.meets(goal)).count()),
            samples: vec![
                ("ttft", collect(&Outcome::ttft_s)),
                ("tpot", collect(&Outcome::tpot_s)),
                ("itl", Samples::new(gaps)),
                ("e2el", collect(&Outcome::e2e_s)),
                ("send_lag", Samples::new(outcomes.iter().map(|o| o.sent_s - o.scheduled_s).collect())),
            ],
            first_error: outcomes.iter().find_map(|o| o.error.clone()),
        }
    }

    /// Flat figures: `ttft_p50_ms`, `output_tokens_per_s`, … Undefined figures are left out.
    pub fn figures(&self) -> Map<String, Value> {
        let mut out = Map::new();
        let rate = |n: f64| if self.duration_s > 0.0 { n / self.duration_s } else { 0.0 };
        out.insert("completed".into(), json!(self.completed));
        out.insert("failed".into(), json!(self.failed));
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
            let marks = [
                ("mean", samples.mean()),
                ("p50", samples.p(50.0)),
                ("p90", samples.p(90.0)),
                ("p99", samples.p(99.0)),
            ];
            for (mark, value) in marks {
                if let Some(value) = value {
                    out.insert(format!("{name}_{mark}_ms"), json!(value * 1e3));
                }
            }
        }
        out
    }

    /// A table for people.
    pub fn table(&self) -> String {
        let mut out = format!(
            "requests   {} completed, {} failed in {:.1} s ({:.2}/s)\ntokens     {} in, {} out ({:.1} out/s)\n",
            self.completed,
            self.failed,
            self.duration_s,
            self.completed as f64 / self.duration_s.max(1e-9),
            self.prompt_tokens,
            self.output_tokens,
            self.output_tokens as f64 / self.duration_s.max(1e-9),
        );
        if let Some(good) = self.good {
            out += &format!("goodput    {good} of {} requests met the objectives\n", self.completed + self.failed);
        }
        out += &format!("{:<10} {:>10} {:>10} {:>10} {:>10}   ms\n", "", "mean", "p50", "p90", "p99");
        for (name, s) in &self.samples {
            let cell = |v: Option<f64>| v.map_or("-".into(), |v| format!("{:.2}", v * 1e3));
            out += &format!(
                "{:<10} {:>10} {:>10} {:>10} {:>10}\n",
                name.to_uppercase().replace('_', " "),
                cell(s.mean()),
                cell(s.p(50.0)),
                cell(s.p(90.0)),
                cell(s.p(99.0))
            );
        }
        if let Some(error) = &self.first_error {
            out += &format!("first failure: {error}\n");
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(scheduled: f64, chunks: &[f64], tokens: u32) -> Outcome {
        Outcome {
            scheduled_s: scheduled,
            sent_s: scheduled,
            chunks_s: chunks.to_vec(),
            output_tokens: tokens,
            ..Outcome::default()
        }
    }

    #[test]
    fn definitions() {
        let o = outcome(1.0, &[1.5, 1.6, 1.9], 5);
        assert_eq!(o.ttft_s(), Some(0.5));
        assert!((o.tpot_s().unwrap() - 0.1).abs() < 1e-12, "five tokens in three chunks: (1.9 − 1.5)/4");
        assert!((o.e2e_s().unwrap() - 0.9).abs() < 1e-12);
        assert_eq!(outcome(0.0, &[1.0], 1).tpot_s(), None);
    }

    #[test]
    fn percentiles_are_nearest_rank() {
        let v: Vec<f64> = (1..=10).map(f64::from).collect();
        for (p, want) in [(50.0, 5.0), (90.0, 9.0), (99.0, 10.0), (100.0, 10.0), (1.0, 1.0)] {
            assert_eq!(percentile(&v, p), Some(want), "p{p}");
        }
        assert_eq!(percentile(&[], 50.0), None);
    }

    #[test]
    fn goodput_counts_failures_as_missed() {
        let goal = Objectives::parse(&["ttft:600".into(), "tpot:150".into()]).unwrap();
        let good = outcome(0.0, &[0.5, 0.6], 2);
        let slow = outcome(0.0, &[0.7, 0.8], 2);
        let failed = Outcome { error: Some("503".into()), ..good.clone() };
        let report = Report::new(&[good, slow, failed], &goal);
        assert_eq!((report.completed, report.failed, report.good), (2, 1, Some(1)));
        assert_eq!(report.first_error.as_deref(), Some("503"));
    }

    #[test]
    fn bad_objectives_say_what_to_write() {
        for (pair, want) in
            [("ttft", "name:milliseconds"), ("ttft:-1", "name:milliseconds"), ("speed:1", "want ttft, tpot or e2el")]
        {
            let error = Objectives::parse(&[pair.to_owned()]).unwrap_err();
            assert!(error.contains(want), "{pair}: {error}");
        }
    }

    #[test]
    fn figures_leave_undefined_values_out() {
        let figures = Report::new(&[outcome(0.0, &[1.0], 1)], &Objectives::default()).figures();
        assert!(figures.contains_key("ttft_p50_ms") && !figures.contains_key("tpot_p50_ms"));
        assert!(!figures.contains_key("goodput_share"));
    }
}

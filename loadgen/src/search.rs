//! The highest rate that meets an objective, as an interval: the objective's language and the order of probes. Pure.

use crate::report::Report;

/// Most probes of one search.
pub const PROBES_MAX: usize = 40;

/// What must hold at a rate.
#[derive(Clone, Debug, PartialEq)]
pub struct Slo(Vec<Term>);

#[derive(Clone, Debug, PartialEq)]
struct Term {
    metric: &'static str,
    /// Percentile; `None` is the mean.
    p: Option<f64>,
    /// `None` in a figure that is shown and not judged.
    limit_ms: Option<f64>,
}

/// Metrics that an objective may name.
const METRICS: [&str; 7] = ["ttft", "ttft_from_send", "tpot", "itl", "token_gap", "e2el", "e2el_from_send"];

/// What is shown of each run where no objective says otherwise.
const SHOWN: [(&str, f64); 5] = [("ttft", 50.0), ("ttft", 99.0), ("tpot", 50.0), ("tpot", 99.0), ("e2el", 99.0)];

impl Slo {
    /// No objective, only figures to be shown. Where requests are sent as fast as answers come there is no schedule to count
    /// from, and latencies are `from_send`.
    pub fn shown(from_send: bool) -> Self {
        let metric = |name| match (name, from_send) {
            ("ttft", true) => "ttft_from_send",
            ("e2el", true) => "e2el_from_send",
            _ => name,
        };
        Self(SHOWN.map(|(name, p)| Term { metric: metric(name), p: Some(p), limit_ms: None }).into())
    }

    /// This objective, and what else is `shown`.
    pub fn and(mut self, shown: Self) -> Self {
        let known = self.0.clone();
        self.0.extend(shown.0.into_iter().filter(|s| !known.iter().any(|t| (t.metric, t.p) == (s.metric, s.p))));
        self
    }

    /// Parses `ttft:p99<1s,tpot:p99<50ms`.
    ///
    /// # Errors
    /// A sentence naming the term and what was expected.
    pub fn parse(text: &str) -> Result<Self, String> {
        text.split(',').map(Term::parse).collect::<Result<_, _>>().map(Self)
    }

    /// Each term's figure in `report`; terms that it has no samples for are left out.
    pub fn judge(&self, report: &Report) -> Vec<Judged> {
        let value = |term: &Term| {
            let samples = report.metric(term.metric)?;
            match term.p {
                Some(p) => samples.p(p),
                None => samples.mean(),
            }
        };
        let mark = |term: &Term| term.p.map_or("mean".into(), |p| format!("p{p}"));
        self.0
            .iter()
            .filter_map(|term| {
                let label = format!("{} {}", term.metric, mark(term));
                Some(Judged { label, value_ms: value(term)?, limit_ms: term.limit_ms })
            })
            .collect()
    }

    /// The first term that `report` misses, in words; `None` if it meets all. A failed request misses any objective.
    pub fn missed(&self, report: &Report) -> Option<String> {
        if report.failed > 0 || report.completed == 0 {
            let requests = if report.failed == 1 { "request" } else { "requests" };
            return Some(format!("{} {requests} failed", report.failed));
        }
        let missed = self.judge(report).into_iter().find(|j| j.limit_ms.is_some_and(|limit| j.value_ms >= limit))?;
        Some(format!("{} {:.1} ms", missed.label, missed.value_ms))
    }
}

/// One term of an objective beside what was measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Judged {
    /// As in `ttft p99`.
    pub label: String,
    /// Measured, milliseconds.
    pub value_ms: f64,
    /// Not reached, milliseconds; `None` if it is only shown.
    pub limit_ms: Option<f64>,
}

impl Term {
    fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("--slo {text}: want metric:mark<time, as in ttft:p99<1s or tpot:mean<50ms");
        let (name, rest) = text.trim().split_once(':').ok_or_else(wrong)?;
        let (mark, limit) = rest.split_once('<').ok_or_else(wrong)?;
        let metric = METRICS
            .into_iter()
            .find(|m| *m == name.trim())
            .ok_or_else(|| format!("--slo {text}: unknown metric {name}, want one of {}", METRICS.join(", ")))?;
        let p = match mark.trim() {
            "mean" => None,
            other => {
                let p: f64 = other.strip_prefix('p').and_then(|p| p.parse().ok()).ok_or_else(wrong)?;
                Some(p).filter(|p| (0.0..=100.0).contains(p)).ok_or_else(wrong).map(Some)?
            }
        };
        let limit = limit.trim().trim_start_matches('=');
        let (number, scale) = match (limit.strip_suffix("ms"), limit.strip_suffix('s')) {
            (Some(ms), _) => (ms, 1.0),
            (None, Some(s)) => (s, 1e3),
            (None, None) => return Err(wrong()),
        };
        let limit_ms = number.trim().parse::<f64>().map_err(|_| wrong())? * scale;
        if limit_ms > 0.0 { Ok(Self { metric, p, limit_ms: Some(limit_ms) }) } else { Err(wrong()) }
    }
}

/// Doubles or halves from a first rate until one passes and one does not, then halves the ratio between them.
#[derive(Clone, Debug)]
pub struct Search {
    next: f64,
    lowest: f64,
    precision: f64,
    probes: usize,
    /// Highest rate that passed.
    pub passed: Option<f64>,
    /// Lowest rate that did not.
    pub missed: Option<f64>,
}

impl Search {
    /// Begins at `start` requests a second; ends when the two ends differ by no more than `precision` (0.05 is 5 %), or below
    /// `lowest`.
    pub fn new(start: f64, lowest: f64, precision: f64) -> Self {
        Self { next: start, lowest, precision, probes: 0, passed: None, missed: None }
    }

    /// The rate to probe next; `None` at the end.
    pub fn next(&self) -> Option<f64> {
        let close = |low: f64, high: f64| high / low <= 1.0 + self.precision;
        let found = self.passed.zip(self.missed).is_some_and(|(low, high)| close(low, high));
        (!found && self.probes < PROBES_MAX && self.next >= self.lowest).then_some(self.next)
    }

    /// Takes what the probe of [`Search::next`] showed.
    pub fn tell(&mut self, passed: bool) {
        self.probes += 1;
        match passed {
            true => self.passed = Some(self.next),
            false => self.missed = Some(self.next),
        }
        self.next = match (self.passed, self.missed) {
            (Some(low), Some(high)) => (low * high).sqrt(),
            (Some(low), None) => low * 2.0,
            (None, Some(high)) => high / 2.0,
            (None, None) => self.next,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::{Objectives, Outcome};

    #[test]
    fn the_edge_is_enclosed_wherever_it_is() {
        for edge in [0.014, 0.9, 1.0, 7.3, 4000.0] {
            let mut search = Search::new(1.0, 0.001, 0.05);
            let mut probes = 0;
            while let Some(rate) = search.next() {
                search.tell(rate < edge);
                probes += 1;
            }
            let (low, high) = (search.passed.unwrap(), search.missed.unwrap());
            assert!(low < edge && edge <= high && high / low <= 1.05, "{edge} in [{low}, {high}]");
            assert!(probes <= 20, "{probes} probes for {edge}");
        }
    }

    #[test]
    fn a_search_without_an_edge_ends() {
        for always in [true, false] {
            let mut search = Search::new(1.0, 0.001, 0.05);
            while search.next().is_some() {
                search.tell(always);
            }
            assert_eq!((search.passed.is_some(), search.missed.is_some()), (always, !always));
        }
    }

    #[test]
    fn objectives_are_read_and_judged() {
        let slo = Slo::parse("ttft:p99<1s, tpot:mean<50ms").unwrap();
        let with = |first: u64, last: u64, error: Option<&str>| {
            let chunks_ns = vec![first * 1_000_000, last * 1_000_000];
            let outcome =
                Outcome { chunks_ns, output_tokens: 2, error: error.map(str::to_owned), ..Outcome::default() };
            slo.missed(&Report::new(&[outcome], &Objectives::default()))
        };
        assert_eq!(with(900, 940, None), None);
        assert_eq!(with(1200, 1240, None).unwrap(), "ttft p99 1200.0 ms");
        assert_eq!(with(900, 960, None).unwrap(), "tpot mean 60.0 ms");
        assert_eq!(with(1, 2, Some("no")).unwrap(), "1 request failed");
        let labels = |slo: Slo| slo.0.iter().map(|t| (t.metric, t.limit_ms)).collect::<Vec<_>>();
        let all = labels(Slo::parse("ttft:p99<1s").unwrap().and(Slo::shown(false)));
        assert_eq!((all.len(), all[0]), (SHOWN.len(), ("ttft", Some(1000.0))), "p99 stands there once, with its limit");
        assert_eq!(labels(Slo::shown(true))[0], ("ttft_from_send", None));
        let slow = Outcome { chunks_ns: vec![9_000_000_000], ..Outcome::default() };
        assert_eq!(Slo::shown(false).missed(&Report::new(&[slow], &Objectives::default())), None);
        for bad in ["ttft", "ttft:p99", "ttft:p99<1", "speed:p99<1s", "ttft:p101<1s", "ttft:p99<-1s"] {
            assert!(Slo::parse(bad).unwrap_err().contains("--slo"), "{bad}");
        }
    }
}

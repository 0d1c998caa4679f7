//! A run as a file: vLLM's schema, so that what reads its results reads these, and a versioned block of ours.
//!
//! The figures of vLLM's names are by vLLM's definitions (from send). Ours, under `loadgen`, count from the schedule, carry
//! intervals, the verdict about the client, and every distribution as an HDR histogram, three significant digits, in
//! nanoseconds: `compare` needs nothing else. Pure.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer, V2DeflateSerializer};
use serde_json::{Map, Value, json};

use crate::audit::Audit;
use crate::measure::{Outcome, Samples};
use crate::report::Report;
use crate::stats::{self, Estimate, Interval};
use crate::steady::Steady;

/// Version of the block `loadgen`; rises when a field changes its meaning.
pub const VERSION: u64 = 1;
/// Longest time a histogram holds, nanoseconds: an hour. Longer ones count as that.
const TIME_NS_MAX: u64 = 3_600_000_000_000;

/// What a result file says beside figures.
#[derive(Clone, Debug, Default)]
pub struct About {
    /// Seconds since 1970 at the run's end.
    pub unix_s: u64,
    /// Model name.
    pub model: String,
    /// Path of the endpoint.
    pub endpoint: String,
    /// The command line.
    pub command: Vec<String>,
    /// Seed.
    pub seed: u64,
    /// Hash of everything that was sent and when.
    pub workload: String,
    /// Requests a second asked for.
    pub request_rate: Option<f64>,
    /// Shape of the gaps.
    pub burstiness: f64,
    /// Limit on requests in flight.
    pub max_concurrency: Option<usize>,
}

/// The whole file; `detailed` adds every request.
pub fn save(about: &About, report: &Report, audit: &Audit, outcomes: &[Outcome], detailed: bool) -> Value {
    let mut out = vllm(about, report);
    if detailed {
        details(outcomes, &mut out);
    }
    let steady = Steady::find(outcomes).map(|s| s.figures());
    let metrics: Map<String, Value> =
        report.samples.iter().map(|(name, samples)| ((*name).to_owned(), metric(samples))).collect();
    out.insert(
        "loadgen".into(),
        json!({
            "version": VERSION,
            "workload": about.workload,
            "seed": about.seed,
            "command": about.command,
            "verdict": audit.verdict().to_string(),
            "figures": report.figures(),
            "client": audit.figures(),
            "steady": steady,
            "completed": report.completed,
            "failed": report.failed,
            "good": report.good,
            "errors": report.errors.iter().map(|(what, count)| json!({ "error": what, "count": count })).collect::<Vec<_>>(),
            "metrics": metrics,
        }),
    );
    Value::Object(out)
}

/// vLLM's fields, by its definitions.
fn vllm(about: &About, report: &Report) -> Map<String, Value> {
    let per_s = |n: f64| n / report.duration_s.max(1e-9);
    let Value::Object(mut out) = json!({
        "date": about.unix_s,
        "endpoint_type": if about.endpoint.ends_with("/chat/completions") { "openai-chat" } else { "openai" },
        "model_id": about.model,
        "num_prompts": report.completed + report.failed,
        "request_rate": about.request_rate.filter(|r| r.is_finite()).map_or(json!("inf"), |r| json!(r)),
        "burstiness": about.burstiness,
        "max_concurrency": about.max_concurrency,
        "duration": report.duration_s,
        "completed": report.completed,
        "failed": report.failed,
        "total_input_tokens": report.prompt_tokens,
        "total_output_tokens": report.output_tokens,
        "request_throughput": per_s(report.completed as f64),
        "request_goodput": report.good.map(|good| per_s(good as f64)),
        "output_throughput": per_s(report.output_tokens as f64),
        "total_token_throughput": per_s((report.output_tokens + report.prompt_tokens) as f64),
    }) else {
        unreachable!("an object is an object")
    };
    for (theirs, ours) in [("ttft", "ttft_from_send"), ("tpot", "tpot"), ("itl", "itl"), ("e2el", "e2el_from_send")] {
        let Some(samples) = report.metric(ours) else { continue };
        for (mark, value) in [
            ("mean", samples.mean()),
            ("median", samples.p(50.0)),
            ("std", samples.deviation()),
            ("p50", samples.p(50.0)),
            ("p90", samples.p(90.0)),
            ("p95", samples.p(95.0)),
            ("p99", samples.p(99.0)),
        ] {
            out.insert(format!("{mark}_{theirs}_ms"), json!(value));
        }
    }
    out
}

/// One list a field over all requests, in the order they were planned: vLLM's, in seconds, and our five moments.
fn details(outcomes: &[Outcome], out: &mut Map<String, Value>) {
    let seconds = |ms: f64| ms / 1e3;
    let list = |f: &dyn Fn(&Outcome) -> Value| Value::Array(outcomes.iter().map(f).collect());
    out.insert("input_lens".into(), list(&|o| json!(o.prompt_tokens)));
    out.insert("output_lens".into(), list(&|o| json!(o.output_tokens)));
    out.insert("ttfts".into(), list(&|o| json!(o.ttft_from_send_ms().map_or(0.0, seconds))));
    out.insert("itls".into(), list(&|o| json!(o.chunk_gaps_ms().map(seconds).collect::<Vec<_>>())));
    out.insert("errors".into(), list(&|o| json!(o.error.as_deref().unwrap_or(""))));
    out.insert(
        "requests".into(),
        list(&|o| {
            json!({
                "index": o.index,
                "scheduled_ns": o.scheduled_ns,
                "sent_ns": o.sent_ns,
                "headers_ns": o.headers_ns,
                "chunks_ns": o.chunks_ns,
                "prompt_tokens": o.prompt_tokens,
                "output_tokens": o.output_tokens,
                "error": o.error,
            })
        }),
    );
}

fn metric(samples: &Samples) -> Value {
    let mean = stats::mean(samples.sorted());
    json!({
        "count": samples.sorted().len(),
        "mean_ms": samples.mean(),
        "mean_interval_ms": mean.map(|i| [i.low, i.high]),
        "histogram_ns": encode(samples),
    })
}

fn encode(samples: &Samples) -> String {
    let mut histogram = Histogram::<u64>::new_with_bounds(1, TIME_NS_MAX, 3).expect("constant bounds are in order");
    for ms in samples.sorted() {
        histogram.saturating_record(((ms * 1e6) as u64).max(1));
    }
    let mut bytes = Vec::new();
    V2DeflateSerializer::new().serialize(&histogram, &mut bytes).expect("memory takes every write");
    STANDARD.encode(bytes)
}

/// What is wrong with a result file.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum LoadError {
    /// No JSON.
    #[error("not JSON: {0}")]
    Json(String),
    /// JSON of something else.
    #[error("no block `loadgen` of version {VERSION}; write one with --save-result")]
    Version,
    /// A field that is missing or of another kind.
    #[error("`{0}` is missing or damaged")]
    Field(String),
}

/// A result read back.
#[derive(Debug)]
pub struct Saved {
    /// Hash of what was sent and when.
    pub workload: String,
    /// What the client said of itself.
    pub verdict: String,
    /// Requests that completed and failed.
    pub completed: usize,
    /// Requests that failed.
    pub failed: usize,
    /// Requests that met the objectives, if there were any.
    pub good: Option<usize>,
    /// Output tokens a second.
    pub tokens_per_s: f64,
    /// Name and distribution.
    pub metrics: Vec<(String, Distribution)>,
}

/// A distribution out of a file.
#[derive(Debug)]
pub struct Distribution {
    mean: Option<Estimate>,
    /// How many samples are at most the value, ascending; milliseconds.
    cumulative: Vec<(usize, f64)>,
}

impl Saved {
    /// Reads a file that [`save`] made.
    ///
    /// # Errors
    /// What is missing.
    pub fn load(text: &str) -> Result<Self, LoadError> {
        let whole: Value = serde_json::from_str(text).map_err(|e| LoadError::Json(e.to_string()))?;
        let block = &whole["loadgen"];
        if block["version"] != VERSION {
            return Err(LoadError::Version);
        }
        let missing = |name: &str| LoadError::Field(name.to_owned());
        let text = |name: &str| block[name].as_str().map(str::to_owned).ok_or_else(|| missing(name));
        let count = |name: &str| block[name].as_u64().map(|n| n as usize).ok_or_else(|| missing(name));
        let metrics = block["metrics"].as_object().ok_or_else(|| missing("metrics"))?;
        Ok(Self {
            workload: text("workload")?,
            verdict: text("verdict")?,
            completed: count("completed")?,
            failed: count("failed")?,
            good: count("good").ok(),
            tokens_per_s: whole["output_throughput"].as_f64().ok_or_else(|| missing("output_throughput"))?,
            metrics: metrics
                .iter()
                .map(|(name, value)| Ok((name.clone(), Distribution::read(value).ok_or_else(|| missing(name))?)))
                .collect::<Result<_, LoadError>>()?,
        })
    }
}

impl Distribution {
    fn read(value: &Value) -> Option<Self> {
        let bytes = STANDARD.decode(value["histogram_ns"].as_str()?).ok()?;
        let histogram: Histogram<u64> = Deserializer::new().deserialize(&mut bytes.as_slice()).ok()?;
        let mut seen = 0;
        let cumulative = histogram
            .iter_recorded()
            .map(|step| {
                seen += step.count_since_last_iteration() as usize;
                (seen, histogram.median_equivalent(step.value_iterated_to()) as f64 / 1e6)
            })
            .collect();
        let interval = value["mean_interval_ms"]
            .as_array()
            .and_then(|i| Some(Interval { low: i.first()?.as_f64()?, high: i.get(1)?.as_f64()? }));
        Some(Self { mean: value["mean_ms"].as_f64().map(|value| Estimate { value, interval }), cumulative })
    }

    /// Number of samples.
    pub fn count(&self) -> usize {
        self.cumulative.last().map_or(0, |(seen, _)| *seen)
    }

    /// Sample of a rank from 0, milliseconds.
    fn at(&self, rank: usize) -> f64 {
        let step = self.cumulative.partition_point(|(seen, _)| *seen <= rank);
        self.cumulative[step.min(self.cumulative.len() - 1)].1
    }

    /// A mark (`mean`, or `p50` and the like), milliseconds; `None` without samples.
    pub fn mark(&self, mark: &str) -> Option<Estimate> {
        let Some(p) = mark.strip_prefix('p').and_then(|p| p.parse::<f64>().ok()) else { return self.mean };
        let count = self.count();
        let rank = ((p / 100.0 * count as f64).ceil() as usize).clamp(1, count.max(1)) - 1;
        (count > 0).then(|| Estimate {
            value: self.at(rank),
            interval: stats::quantile(count, p / 100.0, |rank| self.at(rank)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::Objectives;

    fn outcomes(count: u64) -> Vec<Outcome> {
        (0..count)
            .map(|i| Outcome {
                index: i as usize,
                scheduled_ns: i * 1_000_000,
                sent_ns: i * 1_000_000 + 500_000,
                chunks_ns: vec![i * 1_000_000 + (i + 1) * 2_000_000, i * 1_000_000 + (i + 1) * 3_000_000],
                output_tokens: 2,
                ..Outcome::default()
            })
            .collect()
    }

    #[test]
    fn what_is_saved_is_read_back_within_three_digits() {
        let outcomes = outcomes(500);
        let report = Report::new(&outcomes, &Objectives::default());
        let about = About { workload: "w".into(), ..About::default() };
        let file = save(&about, &report, &Audit::default(), &outcomes, true);
        let saved = Saved::load(&file.to_string()).unwrap();
        assert_eq!((saved.completed, saved.failed, saved.good, saved.workload.as_str()), (500, 0, None, "w"));
        for (name, samples) in &report.samples {
            let (_, back) = saved.metrics.iter().find(|(n, _)| n == name).unwrap();
            for p in [1.0, 50.0, 90.0, 99.0] {
                let (got, want) = (back.mark(&format!("p{p}")).unwrap().value, samples.p(p).unwrap());
                assert!((got - want).abs() <= want * 1e-3 + 1e-5, "{name} p{p}: {got} for {want}");
            }
            assert_eq!(back.mark("mean").unwrap().value, samples.mean().unwrap());
        }
    }

    #[test]
    fn vllm_s_names_have_vllm_s_meaning() {
        let outcomes = outcomes(3);
        let report = Report::new(&outcomes, &Objectives::default());
        let file = save(&About::default(), &report, &Audit::default(), &outcomes, true);
        assert_eq!(file["median_ttft_ms"], json!(3.5), "from send: 4 ms less the half that it left late");
        assert_eq!(file["loadgen"]["figures"]["ttft_p50_ms"], json!(4.0));
        assert_eq!(file["itls"][1], json!([0.002]));
        assert_eq!(file["request_rate"], json!("inf"));
    }

    #[test]
    fn other_files_are_refused() {
        assert!(matches!(Saved::load("x"), Err(LoadError::Json(_))));
        assert_eq!(Saved::load("{}").unwrap_err(), LoadError::Version);
        assert_eq!(Saved::load("{\"loadgen\":{\"version\":1}}").unwrap_err(), LoadError::Field("metrics".into()));
    }
}

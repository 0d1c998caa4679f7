//! `loadgen sweep`: the same requests under one load after another, and how latency grows with it.

use std::path::PathBuf;

use anyhow::{Context, ensure};
use loadgen::audit::Verdict;
use loadgen::curve::{self, Load};
use loadgen::search::Slo;
use serde_json::{Map, Value, json};

use crate::cli::{DatasetName, RunArgs};
use crate::out::say;
use crate::several::{only, point, write};
use crate::{plan, run};

/// Seconds of a rate's schedule where neither a number of requests nor a time is given.
const SECONDS_DEFAULT: f64 = 30.0;

/// A target and the loads.
#[derive(Clone, Debug, clap::Args)]
pub struct SweepArgs {
    /// The target and what it is sent.
    #[command(flatten)]
    pub run: RunArgs,
    /// Requests a second, one run each, as in `1,2,4,8`.
    #[arg(long, value_delimiter = ',', required_unless_present = "concurrencies", conflicts_with_all = ["concurrencies", "request_rate", "stages", "ramp_up_strategy"])]
    pub request_rates: Vec<f64>,
    /// Most requests in flight, one run each, as in `1,8,64`; with --request-rate under that rate, else as fast as answers come.
    #[arg(long, visible_alias = "max-concurrencies", value_delimiter = ',', conflicts_with = "max_concurrency")]
    pub concurrencies: Vec<usize>,
    /// Objective whose limits stand in the plots, as in `ttft:p99<1s,tpot:p99<50ms`; the table says which loads meet it.
    #[arg(long)]
    pub slo: Option<String>,
    /// Time between one run and the next, seconds.
    #[arg(long, default_value_t = 1.0)]
    pub pause_seconds: f64,
}

impl SweepArgs {
    /// What differs, and the runs.
    fn runs(&self) -> anyhow::Result<(Load, Vec<(f64, RunArgs)>)> {
        if self.request_rates.is_empty() {
            ensure!(!self.concurrencies.contains(&0), "--concurrencies: 0 requests at once is no load");
            let run = |n: &usize| (*n as f64, RunArgs { max_concurrency: Some(*n), ..self.run.clone() });
            return Ok((Load::Concurrency, self.concurrencies.iter().map(run).collect()));
        }
        for rate in &self.request_rates {
            ensure!(*rate > 0.0 && rate.is_finite(), "--request-rates: {rate} is no rate; want numbers above 0");
        }
        let given = self.run.num_prompts.is_some() || self.run.benchmark_duration.is_some();
        let run = |rate: &f64| {
            let seconds = if given { self.run.benchmark_duration } else { Some(SECONDS_DEFAULT) };
            (*rate, RunArgs { request_rate: Some(*rate), benchmark_duration: seconds, ..self.run.clone() })
        };
        Ok((Load::Rate, self.request_rates.iter().map(run).collect()))
    }
}

/// Runs it. The exit code: 1 if every request of every run failed, 3 if the client was the limit of one.
///
/// # Errors
/// A bad argument, or as a run's.
pub fn command(args: &SweepArgs) -> anyhow::Result<u8> {
    only(&args.run, true)?;
    ensure!(args.pause_seconds >= 0.0 && args.pause_seconds.is_finite(), "--pause-seconds must be 0 or more");
    let (load, runs) = args.runs()?;
    let has_schedule = load == Load::Rate
        || args.run.request_rate.is_some()
        || args.run.stages.is_some()
        || args.run.ramp_up_strategy.is_some()
        || args.run.dataset_name == DatasetName::Trace;
    let shown = Slo::shown(!has_schedule);
    let slo = match &args.slo {
        Some(text) => Slo::parse(text).map_err(anyhow::Error::msg)?.and(shown),
        None => shown,
    };
    let plans = runs.iter().map(|(_, run)| plan::plan(run)).collect::<anyhow::Result<Vec<_>>>()?;
    let (mut points, mut figures) = (Vec::new(), Map::new());
    let (mut limited, mut completed) = (false, 0);
    for (i, ((at, run), plan)) in runs.iter().zip(&plans).enumerate() {
        if i > 0 {
            std::thread::sleep(std::time::Duration::from_secs_f64(args.pause_seconds));
        }
        let finished = run::finish(run, plan)?;
        let verdict = finished.audit.verdict();
        limited |= verdict != Verdict::Valid;
        completed += finished.report.completed;
        let words = match (&verdict, slo.missed(&finished.report)) {
            (Verdict::ClientLimited(_), _) => verdict.to_string(),
            (Verdict::Valid, Some(why)) => format!("missed, {why}"),
            (Verdict::Valid, None) if args.slo.is_some() => "met".to_owned(),
            (Verdict::Valid, None) => verdict.to_string(),
        };
        eprintln!("{} {}: {words}", curve::shown(*at), load.name());
        for (name, value) in finished.report.figures().into_iter().chain(finished.audit.figures()) {
            figures.insert(format!("{}_{}_{name}", load.figure(), curve::shown(*at)), value);
        }
        points.push(point(*at, words, &slo, &finished.report));
    }
    say!("{}", curve::table(load, &points));
    if let Some(path) = &args.run.html {
        page(args, path, load, &points)?;
    }
    figures.insert("runs".into(), json!(points.len()));
    write(args.run.json.as_deref(), Value::Object(figures))?;
    Ok(if completed == 0 { 1 } else { u8::from(limited) * 3 })
}

fn page(args: &SweepArgs, path: &PathBuf, load: Load, points: &[curve::Point]) -> anyhow::Result<()> {
    let title = args.slo.clone().unwrap_or_else(|| format!("{} runs of {}", points.len(), args.run.base_url));
    let missed = points.iter().filter(|p| p.verdict.starts_with("missed")).count();
    let limited = points.iter().filter(|p| p.verdict.starts_with("CLIENT-LIMITED")).count();
    let found = match (args.slo.is_some(), limited) {
        (_, 1..) => format!("the client was the limit in {limited} of {} runs", points.len()),
        (true, 0) => format!("met in {} of {} runs", points.len() - missed, points.len()),
        (false, 0) => format!("{} runs", points.len()),
    };
    std::fs::write(path, curve::page(&title, &found, &run::command_line(), load, points))
        .with_context(|| format!("writing {}", path.display()))
}

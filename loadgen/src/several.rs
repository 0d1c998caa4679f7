//! Commands of several runs or their results: `compare`, `ab`, `search`.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use loadgen::audit;
use loadgen::compare::{self, Row};
use loadgen::curve::{self, Load, Point};
use loadgen::report::Report;
use loadgen::result::Saved;
use loadgen::search::{Search, Slo};
use serde_json::{Map, Value, json};

use crate::cli::RunArgs;
use crate::out::say;
use crate::{plan, run};

/// How often a probe that was the client's fault is made: a busy moment of the machine should not end a search.
const TRIES: usize = 3;

/// Two results.
#[derive(Clone, Debug, clap::Args)]
pub struct CompareArgs {
    /// First result, as --save-result wrote it.
    pub a: PathBuf,
    /// Second result: what the verdicts are about.
    pub b: PathBuf,
    /// Write the rows as one flat JSON object.
    #[arg(long)]
    pub json: Option<PathBuf>,
}

/// Two targets.
#[derive(Clone, Debug, clap::Args)]
pub struct AbArgs {
    /// Target A and what both are sent.
    #[command(flatten)]
    pub run: RunArgs,
    /// Target B.
    #[arg(long)]
    pub base_url_b: String,
    /// Rounds; in each both targets are measured once, first A and then B, next time the other way round.
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
}

/// A target and an objective.
#[derive(Clone, Debug, clap::Args)]
pub struct SearchArgs {
    /// The target and what it is sent.
    #[command(flatten)]
    pub run: RunArgs,
    /// What must hold, as in `ttft:p99<1s,tpot:p99<50ms`; a failed request misses it.
    #[arg(long)]
    pub slo: String,
    /// First rate, requests a second.
    #[arg(long, default_value_t = 1.0)]
    pub start_rate: f64,
    /// Schedule of each probe, seconds. Short ones do not see a queue grow.
    #[arg(long, default_value_t = 30.0)]
    pub probe_seconds: f64,
    /// Ends when the interval is this narrow, as a share.
    #[arg(long, default_value_t = 0.05)]
    pub precision: f64,
}

/// `loadgen compare A B`.
///
/// # Errors
/// A file that is no result, or results of different workloads.
pub fn compare(args: &CompareArgs) -> anyhow::Result<u8> {
    let load = |path: &Path| -> anyhow::Result<Saved> {
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        Saved::load(&text).with_context(|| path.display().to_string())
    };
    let (a, b) = (load(&args.a)?, load(&args.b)?);
    let rows = compare::saved(&a, &b)?;
    say!("{}", compare::table(&rows));
    for (name, side) in [("A", &a), ("B", &b)] {
        if side.verdict != audit::Verdict::Valid.to_string() {
            say!("{name} was {}\n", side.verdict);
        }
    }
    write(args.json.as_deref(), figures(&rows))?;
    Ok(0)
}

/// `loadgen ab`.
///
/// # Errors
/// As a run's.
pub fn ab(args: &AbArgs) -> anyhow::Result<u8> {
    ensure!(args.rounds >= 2, "--rounds {}: an interval needs at least 2", args.rounds);
    only(&args.run, false)?;
    let b = RunArgs { base_url: args.base_url_b.clone(), ..args.run.clone() };
    let plan = plan::plan(&args.run)?;
    let mut sides: [Vec<Map<String, Value>>; 2] = [Vec::new(), Vec::new()];
    let mut limited = None;
    for round in 0..args.rounds {
        for side in if round % 2 == 0 { [0, 1] } else { [1, 0] } {
            let target = if side == 0 { &args.run } else { &b };
            let finished = run::finish(target, &plan)?;
            let name = ["A", "B"][side];
            ensure!(
                finished.report.completed > 0,
                "{name}: every request failed: {:?}",
                finished.report.errors.first()
            );
            let figures = finished.report.figures();
            let mark = |name: &str| figures.get(name).and_then(Value::as_f64).unwrap_or(f64::NAN);
            let verdict = finished.audit.verdict();
            eprintln!(
                "round {round} {name}: TTFT p50 {:.2} ms, TPOT p50 {:.2} ms, {verdict}",
                mark("ttft_p50_ms"),
                mark("tpot_p50_ms")
            );
            if verdict != audit::Verdict::Valid {
                limited = Some(verdict);
            }
            sides[side].push(figures);
        }
    }
    let rows: Vec<Row> = sides[0][0].keys().filter_map(|name| row(name, &sides)).collect();
    say!("{}", compare::table(&rows));
    say!("{}\n", limited.as_ref().map_or_else(|| audit::Verdict::Valid.to_string(), ToString::to_string));
    write(args.run.json.as_deref(), figures(&rows))?;
    Ok(if limited.is_some() { 3 } else { 0 })
}

/// One figure of every round of both sides, if it is one that can be better or worse.
fn row(name: &str, sides: &[Vec<Map<String, Value>>; 2]) -> Option<Row> {
    let (unit, lower_is_better) = match name {
        _ if name.starts_with("send_lag") => return None,
        _ if name.ends_with("_ms") => ("ms", true),
        _ if name.ends_with("_per_s") => ("/s", false),
        "goodput_share" => ("share", false),
        "failed" => ("", true),
        _ => return None,
    };
    let side = |i: usize| -> Option<Vec<f64>> { sides[i].iter().map(|figures| figures.get(name)?.as_f64()).collect() };
    compare::rounds(name.trim_end_matches("_ms"), unit, &side(0)?, &side(1)?, lower_is_better)
}

/// `loadgen search`.
///
/// # Errors
/// As a run's, or an objective that is none.
pub fn search(args: &SearchArgs) -> anyhow::Result<u8> {
    let slo = Slo::parse(&args.slo).map_err(anyhow::Error::msg)?;
    ensure!(
        args.start_rate > 0.0 && args.start_rate.is_finite(),
        "--start-rate must be above 0, not {}",
        args.start_rate
    );
    ensure!(args.precision > 0.0, "--precision must be above 0, not {}", args.precision);
    ensure!(args.probe_seconds > 0.0, "--probe-seconds must be above 0, not {}", args.probe_seconds);
    only(&args.run, true)?;
    // At a lower rate a probe would have no request.
    let mut search = Search::new(args.start_rate, 1.0 / args.probe_seconds, args.precision);
    let mut probes = Vec::new();
    let mut limited = false;
    while let Some(rate) = search.next() {
        let finished = probe(args, rate)?;
        let verdict = finished.audit.verdict();
        limited = verdict != audit::Verdict::Valid;
        if limited {
            say!("{rate:.3} requests/s: {verdict}\n");
            break;
        }
        let missed = slo.missed(&finished.report);
        let shown = missed.as_ref().map_or_else(|| "met".into(), |why| format!("missed, {why}"));
        say!("{rate:.3} requests/s: {shown}\n");
        probes.push(point(rate, shown, &slo, &finished.report));
        search.tell(missed.is_none());
    }
    let ends = (search.passed, search.missed);
    let found = match ends {
        (Some(low), Some(high)) => format!("highest rate that meets it: between {low:.3} and {high:.3} requests/s"),
        (Some(low), None) => format!("{low:.3} requests/s still meet it; nothing higher was probed"),
        (None, _) => "no rate meets it".to_owned(),
    };
    say!("{}: {found}\n", args.slo);
    if let Some(path) = &args.run.html {
        let page = curve::page(&args.slo, &found, &run::command_line(), Load::Rate, &probes);
        std::fs::write(path, page).with_context(|| format!("writing {}", path.display()))?;
    }
    write(args.run.json.as_deref(), json!({ "rate_met": ends.0, "rate_missed": ends.1 }))?;
    Ok(if limited { 3 } else { u8::from(ends.0.is_none()) })
}

/// Measures one rate, again if the client was the limit.
fn probe(args: &SearchArgs, rate: f64) -> anyhow::Result<run::Finished> {
    let requests = (rate * args.probe_seconds).ceil() as usize;
    let run = RunArgs { request_rate: Some(rate), num_prompts: Some(requests), ..args.run.clone() };
    let plan = plan::plan(&run)?;
    for _ in 1..TRIES {
        let finished = run::finish(&run, &plan)?;
        if finished.audit.verdict() == audit::Verdict::Valid {
            return Ok(finished);
        }
    }
    run::finish(&run, &plan)
}

/// A run as a point of a curve.
pub fn point(load: f64, verdict: String, slo: &Slo, report: &Report) -> Point {
    let per_s = |n: f64| n / report.duration_s.max(1e-9);
    Point {
        load,
        verdict,
        judged: slo.judge(report),
        requests_per_s: per_s(report.completed as f64),
        tokens_per_s: per_s(report.output_tokens as f64),
    }
}

/// Refuses what a command of several runs would not do: results and tables are those of one run.
///
/// # Errors
/// The flag that is not for it.
pub fn only(run: &RunArgs, html: bool) -> anyhow::Result<()> {
    ensure!(!run.save_result && run.csv.is_none(), "--save-result and --csv are for one run");
    ensure!(html || run.html.is_none(), "--html is for one run, a sweep or a search");
    ensure!(!run.dry_run, "--dry-run is for one run");
    Ok(())
}

fn figures(rows: &[Row]) -> Value {
    let mut out = Map::new();
    for row in rows {
        let name = row.name.replace(' ', "_");
        out.insert(format!("{name}_a"), json!(row.a));
        out.insert(format!("{name}_b"), json!(row.b));
        out.insert(format!("{name}_difference"), json!(row.difference.value));
        if let Some(i) = row.difference.interval {
            out.insert(format!("{name}_difference_low"), json!(i.low));
            out.insert(format!("{name}_difference_high"), json!(i.high));
        }
        out.insert(format!("{name}_verdict"), json!(row.verdict.name()));
    }
    Value::Object(out)
}

/// Writes figures, if a file was asked for.
///
/// # Errors
/// If it cannot be written.
pub fn write(path: Option<&Path>, figures: Value) -> anyhow::Result<()> {
    let Some(path) = path else { return Ok(()) };
    std::fs::write(path, serde_json::to_string_pretty(&figures)? + "\n")
        .with_context(|| format!("writing {}", path.display()))
}

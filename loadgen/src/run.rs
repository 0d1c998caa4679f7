//! One run: the plan is made ready, sent, measured, audited, reported.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use loadgen::audit::{self, Audit, Verdict};
use loadgen::dataset::Planned;
use loadgen::measure::{Objectives, Outcome, Samples};
use loadgen::report::Report;
use loadgen::result::{self, About};
use loadgen::steady::Steady;
use loadgen::{console, csv, html};
use serde_json::Value;

use crate::body::Template;
use crate::cli::RunArgs;
use crate::engine::connect::Pool;
use crate::engine::target::{Given, Target};
use crate::engine::{self, Config, Job, Progress, request};
use crate::out::{self, say};
use crate::{live, plan};

/// How a run went.
pub struct Finished {
    /// What was measured.
    pub report: Report,
    /// What the client says of itself.
    pub audit: Audit,
    /// Every request.
    pub outcomes: Vec<Outcome>,
    /// What the result file says beside figures.
    about: About,
}

impl Finished {
    /// The exit code: 1 if everything failed, 3 if the client was the limit.
    pub fn exit_code(&self) -> u8 {
        match self.audit.verdict() {
            _ if self.report.completed == 0 && self.report.failed > 0 => 1,
            Verdict::Valid => 0,
            Verdict::ClientLimited(_) => 3,
        }
    }
}

/// The command without a subcommand: runs, prints, writes. The exit code.
///
/// # Errors
/// A bad argument, a file that cannot be read or written, a server that names no model.
pub fn command(args: &RunArgs) -> anyhow::Result<u8> {
    let plan = plan::plan(args)?;
    if args.dry_run {
        out::with(|out| plan::print(&plan, out));
        return Ok(0);
    }
    let run = finish(args, &plan)?;
    let steady = Steady::find(&run.outcomes);
    say!(
        "{}{}",
        console::table(&run.report, steady.as_ref(), &args.percentile_metrics, &args.metric_percentiles),
        run.audit.table()
    );
    if let Some(path) = &args.json {
        let mut figures = run.report.figures();
        figures.extend(steady.iter().flat_map(Steady::figures));
        figures.extend(run.audit.figures());
        write(path, &Value::Object(figures))?;
    }
    if let Some(path) = &args.html {
        write_text(path, &html::page(&run.about, &run.report, &run.audit, &run.outcomes))?;
    }
    if let Some(path) = &args.csv {
        write_text(path, &csv::table(&run.outcomes))?;
    }
    if args.save_result {
        let file = result::save(&run.about, &run.report, &run.audit, &run.outcomes, args.save_detailed);
        write(&args.result_filename, &file)?;
    }
    Ok(run.exit_code())
}

fn write(path: &Path, value: &Value) -> anyhow::Result<()> {
    write_text(path, &(serde_json::to_string_pretty(value)? + "\n"))
}

fn write_text(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

/// Sends `plan` as `args` say and makes a report of it.
///
/// # Errors
/// As [`measure`]'s, or an objective that is none.
pub fn finish(args: &RunArgs, plan: &[Planned]) -> anyhow::Result<Finished> {
    let goal = Objectives::parse(&args.goodput).map_err(anyhow::Error::msg)?;
    let args = &RunArgs { model: Some(model(args, &target(args)?)?), ..args.clone() };
    let (outcomes, audit) = measure(args, plan)?;
    let about = About {
        unix_s: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        model: args.model.clone().unwrap_or_default(),
        endpoint: args.endpoint.clone(),
        command: command_line(),
        seed: args.seed,
        workload: plan::workload(args, plan),
        request_rate: args.request_rate,
        burstiness: args.burstiness,
        max_concurrency: args.max_concurrency,
    };
    Ok(Finished { report: Report::new(&outcomes, &goal), audit, outcomes, about })
}

/// Sends `plan` as `args` say.
///
/// # Errors
/// A bad argument, or a server that names no model.
pub fn measure(args: &RunArgs, plan: &[Planned]) -> anyhow::Result<(Vec<Outcome>, Audit)> {
    let descriptors_max = engine::raise_descriptors();
    let target = target(args)?;
    let jobs = Template::new(args, model(args, &target)?)?.jobs(plan)?;
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let config = Config {
        threads: args.threads(),
        max_concurrency: args.max_concurrency,
        run_id: format!("loadgen{:x}", since_epoch.as_micros() as u64),
        cores: args.cores.clone(),
    };
    for i in 0..args.num_warmups {
        let first = jobs[i % jobs.len()].turns[..1].to_vec();
        let one = Job { at_ns: 0, turns: first };
        engine::run(&target, vec![one], &config, &Arc::default())?;
    }
    let progress = Arc::new(Progress::default());
    let mut due_ns: Vec<u64> = jobs.iter().map(|j| j.at_ns).collect();
    due_ns.sort_unstable();
    let planned = live::Planned { total: plan.len(), due_ns, threads: config.threads };
    let ended = AtomicBool::new(false);
    let run = std::thread::scope(|scope| {
        if !args.no_progress {
            scope.spawn(|| live::draw(&progress, &planned, &ended));
        }
        let run = engine::run(&target, jobs, &config, &progress);
        ended.store(true, Ordering::Release);
        run
    })?;
    let audit = audit(&run, plan, descriptors_max, args.max_concurrency.is_some());
    Ok((run.outcomes, audit))
}

fn audit(run: &engine::Run, plan: &[Planned], descriptors_max: u64, limited: bool) -> Audit {
    let lag = Samples::new(run.outcomes.iter().map(Outcome::own_lag_ms).collect());
    let ttft = Samples::new(run.outcomes.iter().filter_map(Outcome::ttft_ms).collect());
    let ascending = |f: fn(&Outcome) -> u64| {
        let mut at: Vec<u64> = run.outcomes.iter().map(f).collect();
        at.sort_unstable();
        at
    };
    let (asked_rate, achieved_rate) = audit::rates(&ascending(|o| o.scheduled_ns), &ascending(|o| o.sent_ns));
    Audit {
        planned: plan.len(),
        sent: run.outcomes.len(),
        lag_p99_ms: lag.p(99.0).unwrap_or(0.0),
        ttft_p50_ms: ttft.p(50.0).unwrap_or(0.0),
        lag_max_ms: lag.p(100.0).unwrap_or(0.0),
        asked_rate: asked_rate.filter(|_| !limited && !plan.iter().any(Planned::follows)),
        achieved_rate,
        descriptors_max,
        threads: run.threads.clone(),
    }
}

/// The command line, to be shown.
pub fn command_line() -> Vec<String> {
    without_secrets(std::env::args())
}

/// A command line that may be shown: the values of `--api-key` and `--header` are left out.
fn without_secrets(line: impl Iterator<Item = String>) -> Vec<String> {
    let mut hide = false;
    line.map(|word| {
        let flag = word.split('=').next().unwrap_or_default();
        let secret = matches!(flag, "--api-key" | "--header");
        match (std::mem::replace(&mut hide, secret && flag == word), secret && flag != word) {
            (true, _) => "…".to_owned(),
            (false, true) => format!("{flag}=…"),
            (false, false) => word,
        }
    })
    .collect()
}

fn target(args: &RunArgs) -> anyhow::Result<Target> {
    let filed = args
        .api_key_file
        .as_deref()
        .map(|file| std::fs::read_to_string(file).with_context(|| format!("--api-key-file {}", file.display())));
    let filed = filed.transpose()?;
    Target::new(&Given {
        base_url: &args.base_url,
        path: &args.endpoint,
        api_key: filed.as_deref().map(str::trim).or(args.api_key.as_deref()),
        headers: &args.header,
        http2: args.http2,
        timeout: Duration::from_secs(args.request_timeout),
    })
}

/// The model that was named, else the first that the server lists.
fn model(args: &RunArgs, target: &Target) -> anyhow::Result<String> {
    match &args.model {
        Some(model) => Ok(model.clone()),
        None => first_model(target).with_context(|| format!("asking {}/v1/models", args.base_url)),
    }
}

fn first_model(target: &Target) -> anyhow::Result<String> {
    let body = engine::block_on(get(target, "/v1/models"))??;
    let value: serde_json::Value = serde_json::from_slice(&body).context("the answer is not JSON")?;
    value["data"][0]["id"].as_str().map(str::to_owned).context("no model listed; name one with --model")
}

/// Body of a GET of `path`.
///
/// # Errors
/// A connection that failed, or a status that is no success.
pub async fn get(target: &Target, path: &str) -> anyhow::Result<bytes::Bytes> {
    let pool = Pool::new(target.endpoint.clone());
    request::get(&pool, &target.get(path)?).await.map_err(|f| anyhow::anyhow!("{f}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_written_down() {
        let line = "loadgen --api-key k1 --seed 1 --header a:k2 --api-key=k3 --header=b:k4 --json x";
        let shown = without_secrets(line.split(' ').map(str::to_owned)).join(" ");
        assert_eq!(shown, "loadgen --api-key … --seed 1 --header … --api-key=… --header=… --json x");
    }
}

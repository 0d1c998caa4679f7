//! `loadgen selftest`: what this program measures of the mock, beside what the mock says really happened.
//!
//! The mock is a process of its own, and each thread of either has a core to itself where there are enough. Requests come from
//! a Poisson process at the rate that keeps so many streams running; those count that were sent once as many run. Each
//! request's error is its measured time less the mock's own account of the same request; what remains is this program, both
//! network stacks and the loopback between them. The mock's lateness against its nominal schedule is shown beside it: where
//! that is large, the machine is too busy for the mock, too.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Parser;
use loadgen::audit::Verdict;
use loadgen::measure::{Outcome, Samples};
use serde_json::{Map, json};

use crate::cli::{Cli, RunArgs};
use crate::engine::target::{Given, Target};
use crate::mock::truth::Truth;
use crate::out::say;
use crate::{cores, engine, plan, run};

/// Tokens of an answer where there are fewer than [`FEW`] streams: more requests in the same time.
const TOKENS_OF_FEW: u32 = 10;
/// Fewer streams than this are few.
const FEW: usize = 100;
/// Requests that are measured at least.
const REQUESTS_MIN: usize = 30;

/// How the self-test is made.
#[derive(Clone, Debug, clap::Args)]
pub struct SelftestArgs {
    /// Numbers of concurrent streams, on average.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 10, 100, 1000])]
    pub streams: Vec<usize>,
    /// Time to the first token, milliseconds.
    #[arg(long, default_value_t = 50.0)]
    pub ttft_ms: f64,
    /// Time between tokens, milliseconds.
    #[arg(long, default_value_t = 50.0)]
    pub itl_ms: f64,
    /// Tokens of each answer.
    #[arg(long, default_value_t = 100)]
    pub tokens: u32,
    /// Threads of the load generator.
    #[arg(long, default_value_t = 1)]
    pub threads: usize,
    /// Threads of the mock.
    #[arg(long, default_value_t = 1)]
    pub mock_threads: usize,
    /// Tokens of all streams leave at the same moments, as from an engine's decode steps.
    #[arg(long)]
    pub in_step: bool,
    /// Measure short requests as well: one token at once, as many at a time as this, for --short-seconds.
    #[arg(long, default_value_t = 0)]
    pub short: usize,
    /// Short requests sent.
    #[arg(long, default_value_t = 100_000)]
    pub short_requests: usize,
    /// Write the figures as one flat JSON object.
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// Shorter answers.
    #[arg(long)]
    pub quick: bool,
}

/// Error of one number of streams, milliseconds.
struct Row {
    /// Streams that ran at once, on average.
    at_once: f64,
    ttft: Samples,
    tpot: Samples,
    mock_late: Samples,
    audit: loadgen::audit::Audit,
    failed: usize,
}

/// Whose threads keep to which cores.
#[derive(Clone, Default)]
struct Cores {
    client: Vec<usize>,
    mock: Vec<usize>,
}

impl Cores {
    /// One for each thread, the first for the mock's; none where there are fewer cores than threads.
    fn divide(all: &[usize], mock_threads: usize, threads: usize) -> Self {
        match all.split_at_checked(mock_threads) {
            Some((mock, rest)) if rest.len() >= threads => Self { mock: mock.into(), client: rest[..threads].into() },
            _ => Self::default(),
        }
    }
}

/// Runs it. The exit code: 1 if a request failed.
///
/// # Errors
/// If the mock cannot be started or answers nonsense.
pub fn command(args: &SelftestArgs) -> anyhow::Result<u8> {
    let mut figures = Map::new();
    let (mut failed, mut valid_max) = (0, 0);
    let cores = Cores::divide(&cores::allowed()?, args.mock_threads, args.threads);
    match cores.client.is_empty() {
        true => say!("client and mock share the cores: there are fewer than they have threads\n"),
        false => say!("client on cores {:?}, mock on cores {:?}\n", cores.client, cores.mock),
    }
    say!(
        "{:>8} {:>8} {:>11} {:>11} {:>11} {:>11} {:>14}   ms of error, and verdict\n",
        "streams",
        "at once",
        "TTFT p50",
        "TTFT p99",
        "TPOT p50",
        "TPOT p99",
        "mock late p99"
    );
    for &streams in &args.streams {
        let row = streams_row(args, &cores, streams)?;
        failed += row.failed;
        // A mock that is a token behind does not make the load that the row is about.
        let mock_kept_up = row.mock_late.p(99.0).is_none_or(|ms| ms <= args.itl_ms);
        if row.failed == 0 && mock_kept_up && row.audit.verdict() == Verdict::Valid {
            valid_max = valid_max.max(streams);
        }
        let cell = |s: &Samples, p: f64| s.p(p).unwrap_or(f64::NAN);
        say!(
            "{streams:>8} {:>8.0} {:>11.4} {:>11.4} {:>11.4} {:>11.4} {:>14.4}   busy {:.0} %, {}{}\n",
            row.at_once,
            cell(&row.ttft, 50.0),
            cell(&row.ttft, 99.0),
            cell(&row.tpot, 50.0),
            cell(&row.tpot, 99.0),
            cell(&row.mock_late, 99.0),
            row.audit.busy_max() * 100.0,
            row.audit.verdict(),
            if mock_kept_up { "" } else { "; the mock fell behind" }
        );
        for (name, samples) in [("ttft_error", &row.ttft), ("tpot_error", &row.tpot), ("mock_late", &row.mock_late)] {
            for p in [50, 99] {
                figures.insert(format!("streams_{streams}_{name}_p{p}_ms"), json!(samples.p(f64::from(p))));
            }
        }
        for (name, value) in row.audit.figures() {
            figures.insert(format!("streams_{streams}_{name}"), value);
        }
        figures.insert(format!("streams_{streams}_failed"), json!(row.failed));
        figures.insert(format!("streams_{streams}_at_once"), json!(row.at_once));
    }
    say!("most streams that were VALID, the mock keeping up: {valid_max}\n");
    figures.insert("streams_valid_max".into(), json!(valid_max));
    if args.short > 0 {
        failed += short(args, &cores, &mut figures)?;
    }
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_string_pretty(&figures)? + "\n")
            .with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(u8::from(failed > 0))
}

fn streams_row(args: &SelftestArgs, cores: &Cores, streams: usize) -> anyhow::Result<Row> {
    let mock = Mock::start(args, cores, args.ttft_ms, args.itl_ms)?;
    let tokens = args.tokens.min(match (streams < FEW, args.quick) {
        (true, _) => TOKENS_OF_FEW,
        (false, true) => 2 * TOKENS_OF_FEW,
        (false, false) => args.tokens,
    });
    let stream_s = ((args.ttft_ms + args.itl_ms * f64::from(tokens.saturating_sub(1))) / 1e3).max(0.01);
    let rate = streams as f64 / stream_s;
    // As many come while the streams gather as there are to be, and as many again, at least, once they run.
    let run = run_args(
        &mock.url,
        args.threads,
        &cores.client,
        &[
            ("--num-prompts", (streams + streams.max(REQUESTS_MIN)).to_string()),
            ("--request-rate", rate.to_string()),
            ("--random-input-len", "16".into()),
            ("--random-output-len", tokens.to_string()),
        ],
    )?;
    let (outcomes, audit) = run::measure(&run, &plan::plan(&run)?)?;
    let truths = mock.truths()?;
    let pair = |o: &Outcome| truths.get(&(o.index as u64)).copied();
    let done: Vec<(&Outcome, Truth)> =
        outcomes.iter().filter(|o| o.error.is_none()).filter_map(|o| Some((o, pair(o)?))).collect();
    let gathered_ns = (stream_s * 1e9) as u64;
    let sent_last_ns = outcomes.iter().map(|o| o.sent_ns).max().unwrap_or_default();
    let counted = || done.iter().filter(|(o, _)| o.scheduled_ns >= gathered_ns);
    Ok(Row {
        at_once: at_once(&outcomes, gathered_ns, sent_last_ns),
        ttft: Samples::new(counted().filter_map(|(o, t)| Some(o.ttft_from_send_ms()? - t.ttft_ms())).collect()),
        tpot: Samples::new(counted().filter_map(|(o, t)| Some((o.tpot_ms()? - t.tpot_ms()?).abs())).collect()),
        mock_late: Samples::new(counted().map(|(_, t)| t.ttft_ms() - args.ttft_ms).collect()),
        audit,
        failed: outcomes.len() - done.len(),
    })
}

/// How many of `outcomes` were under way on average between two moments.
fn at_once(outcomes: &[Outcome], from_ns: u64, to_ns: u64) -> f64 {
    let within = |o: &Outcome| Some(o.last_ns()?.min(to_ns).saturating_sub(o.sent_ns.max(from_ns)));
    let sum: u64 = outcomes.iter().filter_map(within).sum();
    sum as f64 / to_ns.saturating_sub(from_ns).max(1) as f64
}

/// How many short requests a second go through.
fn short(args: &SelftestArgs, cores: &Cores, figures: &mut Map<String, serde_json::Value>) -> anyhow::Result<usize> {
    let mock = Mock::start(args, cores, 0.0, 0.0)?;
    let requests = if args.quick { args.short_requests.min(10_000) } else { args.short_requests };
    let run = run_args(
        &mock.url,
        args.threads,
        &cores.client,
        &[
            ("--num-prompts", requests.to_string()),
            ("--random-input-len", "4".into()),
            ("--random-output-len", "1".into()),
            ("--max-concurrency", args.short.to_string()),
        ],
    )?;
    let (outcomes, audit) = run::measure(&run, &plan::plan(&run)?)?;
    let report = loadgen::report::Report::new(&outcomes, &Default::default());
    let rate = report.completed as f64 / report.duration_s;
    say!("short requests, {} at a time: {rate:.0}/s, busy {:.0} %\n", args.short, audit.busy_max() * 100.0);
    figures.insert("short_requests_per_s".into(), json!(rate));
    figures.insert("short_busy_share".into(), json!(audit.busy_max()));
    Ok(report.failed)
}

fn run_args(url: &str, threads: usize, cores: &[usize], flags: &[(&str, String)]) -> anyhow::Result<RunArgs> {
    let threads = threads.to_string();
    let mut line = vec!["loadgen", "--base-url", url, "--threads", &threads, "--no-progress"];
    line.extend(["--model", "mock", "--num-warmups", "1"]);
    line.extend(flags.iter().flat_map(|(name, value)| [*name, value.as_str()]));
    Ok(RunArgs { cores: cores.to_vec(), ..Cli::try_parse_from(line)?.run })
}

/// A mock in a process of its own, ended when dropped.
struct Mock {
    child: Child,
    url: String,
}

impl Mock {
    fn start(args: &SelftestArgs, cores: &Cores, ttft_ms: f64, itl_ms: f64) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["mock", "--listen", "127.0.0.1:0", "--threads", &args.mock_threads.to_string()]);
        command.args(["--ttft-ms", &ttft_ms.to_string(), "--itl-ms", &itl_ms.to_string()]);
        if !cores.mock.is_empty() {
            let cores: Vec<String> = cores.mock.iter().map(usize::to_string).collect();
            command.args(["--cores", &cores.join(",")]);
        }
        if args.in_step {
            command.arg("--in-step");
        }
        let mut child = command.stdout(Stdio::piped()).spawn().context("starting the mock")?;
        let mut line = String::new();
        let out = child.stdout.take().context("the mock has no output")?;
        let mut mock = Self { child, url: String::new() };
        BufReader::new(out).read_line(&mut line)?;
        ensure!(line.starts_with("ready "), "the mock did not start: {line}");
        mock.url = line.trim_start_matches("ready ").trim().to_owned();
        Ok(mock)
    }

    /// What happened since the last time this was asked, by request.
    fn truths(&self) -> anyhow::Result<HashMap<u64, Truth>> {
        let target = Target::new(&Given {
            base_url: &self.url,
            path: "/",
            api_key: None,
            headers: &[],
            http2: false,
            timeout: Duration::from_secs(60),
        })?;
        let body = engine::block_on(run::get(&target, "/truth"))??;
        let truths: Vec<Truth> = serde_json::from_slice(&body).context("the mock's truth is not what it should be")?;
        Ok(truths.into_iter().map(|t| (t.id, t)).collect())
    }
}

impl Drop for Mock {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_divided_where_there_are_enough() {
        let divided = Cores::divide(&[2, 3, 7, 9], 1, 2);
        assert_eq!((divided.mock, divided.client), (vec![2], vec![3, 7]));
        for few in [&[][..], &[4], &[4, 5]] {
            let shared = Cores::divide(few, 1, 2);
            assert!(shared.mock.is_empty() && shared.client.is_empty(), "{few:?}");
        }
    }

    #[test]
    fn streams_at_once_are_counted_within_the_stretch() {
        let stream = |sent_ns, last_ns| Outcome { sent_ns, chunks_ns: vec![last_ns], ..Outcome::default() };
        let all = [stream(0, 150), stream(100, 200), stream(150, 900), stream(20, 80), stream(300, 400)];
        assert_eq!(at_once(&all, 100, 200), 2.0);
    }
}

//! `loadgen`: drives an OpenAI-compatible endpoint in open loop and measures TTFT, TPOT, ITL and E2E latency.
//!
//! Flags carry the names that vLLM's benchmark made familiar. Definitions of every figure: `measure.rs`.

mod client;
mod measure;

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::{Parser, ValueEnum};

use loadgen::dataset::{self, Planned};
use loadgen::schedule;
use measure::{Objectives, Report};

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum DatasetName {
    /// Lengths from --random-input-len and --random-output-len, arrivals from --request-rate.
    Random,
    /// Lengths and arrivals of a recorded trace (Azure CSV or Mooncake JSON lines).
    Trace,
}

/// Drive an OpenAI-compatible endpoint on an absolute schedule and measure TTFT, TPOT, ITL, E2E latency.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Where the server listens.
    #[arg(long, default_value = "http://127.0.0.1:8000")]
    base_url: String,
    /// Path of the endpoint; token-exact prompts need /v1/completions.
    #[arg(long, default_value = "/v1/completions")]
    endpoint: String,
    /// Model name; asked of /v1/models when left out.
    #[arg(long)]
    model: Option<String>,
    /// Sent as a bearer token.
    #[arg(long, env = "OPENAI_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// Where requests come from.
    #[arg(long, value_enum, default_value = "random")]
    dataset_name: DatasetName,
    /// Trace file, for --dataset-name trace.
    #[arg(long)]
    dataset_path: Option<PathBuf>,
    /// Number of requests (trace: the first so many; all when left out).
    #[arg(long)]
    num_prompts: Option<usize>,
    /// Requests a second; `inf` sends all at once. For a trace: rescales it to this mean rate.
    #[arg(long)]
    request_rate: Option<f64>,
    /// Shape of the gamma distribution of gaps: 1 is Poisson, below is burstier.
    #[arg(long, default_value_t = 1.0)]
    burstiness: f64,
    /// Trace: skip requests before this offset, seconds.
    #[arg(long, default_value_t = 0.0)]
    trace_start: f64,
    /// Trace: stop at this many seconds (of the trace) after the start.
    #[arg(long)]
    trace_duration: Option<f64>,
    /// Leave out requests whose prompt and output together exceed this many tokens.
    #[arg(long)]
    max_total_len: Option<u32>,
    /// Most requests in flight; time spent waiting for a place counts as latency.
    #[arg(long)]
    max_concurrency: Option<usize>,
    /// Mean prompt length, tokens.
    #[arg(long, default_value_t = 256)]
    random_input_len: u32,
    /// Mean output length, tokens.
    #[arg(long, default_value_t = 128)]
    random_output_len: u32,
    /// Lengths vary by this share of the mean, up and down.
    #[arg(long, default_value_t = 0.0)]
    random_range_ratio: f64,
    /// Prompt token ids are drawn from 1 to this, less one.
    #[arg(long, default_value_t = 1000)]
    vocab_size: u32,
    /// Ask the server to generate to the planned length.
    #[arg(long)]
    ignore_eos: bool,
    /// Seed of arrivals, lengths and prompts.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Requests sent one after another before the clock starts; not measured.
    #[arg(long, default_value_t = 0)]
    num_warmups: usize,
    /// Objectives, as in `--goodput ttft:1000 tpot:50` (milliseconds).
    #[arg(long, num_args = 1..)]
    goodput: Vec<String>,
    /// A request that takes longer has failed, seconds.
    #[arg(long, default_value_t = 600)]
    request_timeout: u64,
    /// Extra header, `Name: value`; may be given again.
    #[arg(long)]
    header: Vec<String>,
    /// JSON object merged into every body.
    #[arg(long)]
    extra_body: Option<String>,
    /// Write the figures as one flat JSON object.
    #[arg(long, visible_alias = "result-filename")]
    json: Option<PathBuf>,
    /// At most 10 requests of at most 32 output tokens: a look whether everything works.
    #[arg(long)]
    quick: bool,
    /// Print no progress.
    #[arg(long)]
    no_progress: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(report) if report.completed == 0 => ExitCode::FAILURE,
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("loadgen: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &Args) -> anyhow::Result<Report> {
    let goal = Objectives::parse(&args.goodput).map_err(anyhow::Error::msg)?;
    let plan = plan(args)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let outcomes = runtime.block_on(async {
        let mut target = target(args)?;
        if target.model.is_empty() {
            target.model =
                first_model(&target).await.with_context(|| format!("asking {}/v1/models", target.base_url))?;
        }
        for i in 0..args.num_warmups {
            let one = Planned { at_s: 0.0, ..plan[i % plan.len()] };
            client::run(&target, &[one], None, &Arc::default()).await;
        }
        let progress = Arc::new(client::Progress::default());
        let drawing = (!args.no_progress).then(|| tokio::spawn(draw(Arc::clone(&progress), plan.len())));
        let outcomes = client::run(&target, &plan, args.max_concurrency, &progress).await;
        if let Some(drawing) = drawing {
            drawing.abort();
            eprint!("{}", if std::io::stderr().is_terminal() { "\r\x1b[K" } else { "" });
        }
        anyhow::Ok(outcomes)
    })?;
    let report = Report::new(&outcomes, &goal);
    print!("{}", report.table());
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&report.figures())? + "\n";
        std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(report)
}

fn plan(args: &Args) -> anyhow::Result<Vec<Planned>> {
    let mut plan = match args.dataset_name {
        DatasetName::Random => {
            let count = args.num_prompts.unwrap_or(100);
            let at = schedule::arrivals(count, args.request_rate.unwrap_or(f64::INFINITY), args.burstiness, args.seed)?;
            ensure!(
                (0.0..1.0).contains(&args.random_range_ratio),
                "--random-range-ratio must be at least 0 and below 1"
            );
            let lengths = dataset::random_lengths(
                count,
                args.random_input_len,
                args.random_output_len,
                args.random_range_ratio,
                args.seed,
            );
            at.into_iter()
                .zip(lengths)
                .map(|(at_s, (prompt_tokens, output_tokens))| Planned { at_s, prompt_tokens, output_tokens })
                .collect()
        }
        DatasetName::Trace => trace(args)?,
    };
    if args.quick {
        plan.truncate(10);
        plan.iter_mut().for_each(|p| p.output_tokens = p.output_tokens.min(32));
    }
    ensure!(!plan.is_empty(), "nothing to send: --num-prompts is 0 or the filters leave no request");
    Ok(plan)
}

fn trace(args: &Args) -> anyhow::Result<Vec<Planned>> {
    let Some(path) = &args.dataset_path else { bail!("--dataset-name trace needs --dataset-path FILE") };
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let rows = dataset::parse_trace(&text).with_context(|| path.display().to_string())?;
    let end = args.trace_duration.map_or(f64::INFINITY, |d| args.trace_start + d);
    let mut plan: Vec<Planned> = rows
        .into_iter()
        .filter(|r| r.at_s >= args.trace_start && r.at_s < end)
        .filter(|r| args.max_total_len.is_none_or(|max| r.prompt_tokens.saturating_add(r.output_tokens) <= max))
        .take(args.num_prompts.unwrap_or(usize::MAX))
        .collect();
    if let Some(rate) = args.request_rate {
        ensure!(rate > 0.0, "--request-rate must be above 0 (or `inf`), not {rate}");
    }
    dataset::rescale(&mut plan, args.request_rate);
    Ok(plan)
}

fn target(args: &Args) -> anyhow::Result<client::Target> {
    let mut headers = Vec::new();
    for header in &args.header {
        let (name, value) =
            header.split_once(':').with_context(|| format!("--header `{header}`: want `Name: value`"))?;
        headers.push((name.trim().to_owned(), value.trim().to_owned()));
    }
    let extra_body = match &args.extra_body {
        Some(text) => serde_json::from_str(text).context("--extra-body must be a JSON object")?,
        None => serde_json::Map::new(),
    };
    Ok(client::Target {
        base_url: args.base_url.trim_end_matches('/').to_owned(),
        endpoint: args.endpoint.clone(),
        model: args.model.clone().unwrap_or_default(),
        api_key: args.api_key.clone(),
        headers,
        extra_body,
        ignore_eos: args.ignore_eos,
        vocab: args.vocab_size,
        seed: args.seed,
        timeout: Duration::from_secs(args.request_timeout),
    })
}

async fn first_model(target: &client::Target) -> anyhow::Result<String> {
    let body = client::get(target, "/v1/models").await.map_err(anyhow::Error::msg)?;
    let value: serde_json::Value = serde_json::from_slice(&body).context("the answer is not JSON")?;
    value["data"][0]["id"].as_str().map(str::to_owned).context("no model listed; name one with --model")
}

/// Draws progress on standard error: in place on a terminal, a line every ten seconds elsewhere.
async fn draw(progress: Arc<client::Progress>, total: usize) {
    let terminal = std::io::stderr().is_terminal();
    let period = Duration::from_secs(if terminal { 1 } else { 10 });
    loop {
        tokio::time::sleep(period).await;
        let (sent, done) = (progress.sent.load(Ordering::Relaxed), progress.done.load(Ordering::Relaxed));
        let line = format!("sent {sent}/{total}, done {done}, in flight {}", sent - done);
        let mut err = std::io::stderr();
        let _ = if terminal { write!(err, "\r\x1b[K{line}") } else { writeln!(err, "{line}") };
    }
}

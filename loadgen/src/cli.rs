//! The command line. Flags carry the names that vLLM's benchmark made familiar, with AIPerf's as aliases.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::mock::MockArgs;
use crate::selftest::SelftestArgs;
use crate::several::{AbArgs, CompareArgs, SearchArgs};
use crate::sweep::SweepArgs;
use crate::under::PoliciesArgs;

/// Drive an OpenAI-compatible endpoint on an absolute schedule and measure TTFT, TPOT, ITL, E2E latency.
///
/// Exit code: 0, 1 if every request failed, 2 if the command was wrong, 3 if the load generator itself was the limit
/// (CLIENT-LIMITED).
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// Something else than a run.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// A run.
    #[command(flatten)]
    pub run: RunArgs,
}

/// What else there is to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve OpenAI streams whose every token has a known moment: the ground truth for load generators.
    Mock(MockArgs),
    /// Measure the mock and print this program's own error, for each number of concurrent streams.
    Selftest(SelftestArgs),
    /// Compare two results of the same workload: differences, intervals, better or worse or no evidence.
    Compare(CompareArgs),
    /// Measure two targets in turns and compare them round by round.
    Ab(AbArgs),
    /// Print a completion script for a shell.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page (roff).
    Man,
    /// Measure one target under one dispatch policy of its daemon after another: the table of `./x demo`.
    Policies(PoliciesArgs),
    /// Measure one load after another, rates or concurrencies: one table, one page with latency against load.
    Sweep(SweepArgs),
    /// Find the highest rate that meets an objective, as an interval.
    Search(SearchArgs),
}

/// Where requests come from.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum DatasetName {
    /// Lengths from --random-input-len and --random-output-len, arrivals from --request-rate.
    Random,
    /// Lengths and arrivals of a recorded trace: Azure CSV, BurstGPT CSV or Mooncake JSON lines.
    Trace,
    /// Questions, or with --multi-turn conversations, of ShareGPT's JSON.
    Sharegpt,
    /// JSON lines with `prompt` (text or token ids) or `messages`, and perhaps `output_tokens`.
    #[value(alias = "jsonl")]
    Custom,
}

/// How gaps between arrivals vary.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum ArrivalPattern {
    /// As --burstiness says: Poisson unless it is changed.
    #[value(alias = "poisson")]
    Gamma,
    /// Not at all.
    Constant,
}

/// How a ramp rises.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum RampUp {
    /// By the same amount in the same time.
    Linear,
    /// By the same factor in the same time.
    Exponential,
}

/// A run.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Where the server listens; `https://` is TLS (SSL_CERT_FILE names other roots than the system's).
    #[arg(long, visible_alias = "url", default_value = "http://127.0.0.1:8000")]
    pub base_url: String,
    /// Path of the endpoint; token-exact prompts need /v1/completions.
    #[arg(long, default_value = "/v1/completions")]
    pub endpoint: String,
    /// Model name; asked of /v1/models when left out.
    #[arg(long, visible_alias = "model-names")]
    pub model: Option<String>,
    /// Sent as a bearer token.
    #[arg(long, env = "OPENAI_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// File that holds it instead, as secrets are mounted.
    #[arg(long, value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,
    /// Speak HTTP/2 (over plain TCP: with prior knowledge).
    #[arg(long)]
    pub http2: bool,
    /// Threads, each with its own connections; as many as there are cores when left out.
    #[arg(long, visible_alias = "workers-max")]
    pub threads: Option<usize>,
    /// Cores that threads keep to, one each: where a server on the same machine is kept to others.
    #[arg(long, value_delimiter = ',')]
    pub cores: Vec<usize>,
    /// Where requests come from.
    #[arg(long, value_enum, default_value = "random")]
    pub dataset_name: DatasetName,
    /// File of the trace, conversations or JSON lines.
    #[arg(long, visible_alias = "input-file")]
    pub dataset_path: Option<PathBuf>,
    /// Number of requests, or of sessions (from a file: the first so many; all when left out).
    #[arg(long, visible_alias = "request-count")]
    pub num_prompts: Option<usize>,
    /// Requests a second; `inf` sends all at once. For a trace: rescales it to this mean rate.
    #[arg(long)]
    pub request_rate: Option<f64>,
    /// Shape of the gamma distribution of gaps: 1 is Poisson, below is burstier.
    #[arg(long, visible_alias = "arrival-smoothness", default_value_t = 1.0)]
    pub burstiness: f64,
    /// Gaps between arrivals.
    #[arg(long, value_enum, default_value = "gamma")]
    pub arrival_pattern: ArrivalPattern,
    /// Send for so many seconds instead of a number of requests.
    #[arg(long, conflicts_with = "num_prompts")]
    pub benchmark_duration: Option<f64>,
    /// Rates one after another: seconds and requests a second, or a straight ramp, as in `60s:10,30s:10-50,60s:50`.
    #[arg(long, conflicts_with_all = ["request_rate", "benchmark_duration", "ramp_up_strategy"])]
    pub stages: Option<String>,
    /// The rate rises over the whole run, from --ramp-up-start-rps to --ramp-up-end-rps.
    #[arg(long, value_enum, requires_all = ["ramp_up_start_rps", "ramp_up_end_rps"], conflicts_with_all = ["request_rate", "benchmark_duration"])]
    pub ramp_up_strategy: Option<RampUp>,
    /// Rate at the beginning of the ramp, requests a second.
    #[arg(long)]
    pub ramp_up_start_rps: Option<f64>,
    /// Rate at its end.
    #[arg(long)]
    pub ramp_up_end_rps: Option<f64>,
    /// Turns of a session: each carries what was said before it, and is due --think-time after the answer to the last.
    #[arg(long, visible_alias = "session-turns-mean", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub session_turns: u32,
    /// Time between an answer and the session's next turn, seconds.
    #[arg(long, default_value_t = 0.0)]
    pub think_time: f64,
    /// Percentage of requests whose client leaves before the end.
    #[arg(long, default_value_t = 0.0)]
    pub request_cancellation_rate: f64,
    /// How long after sending it leaves, seconds.
    #[arg(long, default_value_t = 0.0)]
    pub request_cancellation_delay: f64,
    /// Trace: this many times as fast.
    #[arg(long, conflicts_with = "request_rate")]
    pub trace_speedup: Option<f64>,
    /// ShareGPT: send whole conversations, turn by turn.
    #[arg(long)]
    pub multi_turn: bool,
    /// Trace: skip requests before this offset, seconds.
    #[arg(long, default_value_t = 0.0)]
    pub trace_start: f64,
    /// Trace: stop at this many seconds (of the trace) after the start.
    #[arg(long)]
    pub trace_duration: Option<f64>,
    /// Leave out requests whose prompt and output together exceed this many tokens.
    #[arg(long)]
    pub max_total_len: Option<u32>,
    /// Most requests in flight; time spent waiting for a place counts as latency.
    #[arg(long, visible_alias = "concurrency")]
    pub max_concurrency: Option<usize>,
    /// Mean prompt length, tokens.
    #[arg(long, visible_alias = "isl", default_value_t = 256)]
    pub random_input_len: u32,
    /// Mean output length, tokens.
    #[arg(long, visible_alias = "osl", default_value_t = 128)]
    pub random_output_len: u32,
    /// Lengths vary by this share of the mean, up and down.
    #[arg(long, default_value_t = 0.0)]
    pub random_range_ratio: f64,
    /// Tokens of a prefix before every prompt, shared by those that draw the same.
    #[arg(long, visible_alias = "prefix-prompt-length", default_value_t = 0)]
    pub random_prefix_len: u32,
    /// How many such prefixes there are.
    #[arg(long, visible_alias = "num-prefix-prompts", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub num_prefixes: u32,
    /// Prompt token ids are drawn from 1 to this, less one.
    #[arg(long, default_value_t = 1000)]
    pub vocab_size: u32,
    /// Ask the server to generate to the planned length.
    #[arg(long)]
    pub ignore_eos: bool,
    /// Seed of arrivals, lengths and prompts.
    #[arg(long, visible_alias = "random-seed", default_value_t = 0)]
    pub seed: u64,
    /// Requests sent one after another before the clock starts; not measured.
    #[arg(long, visible_alias = "warmup-request-count", default_value_t = 0)]
    pub num_warmups: usize,
    /// Objectives, as in `--goodput ttft:1000 tpot:50` (milliseconds).
    #[arg(long, num_args = 1..)]
    pub goodput: Vec<String>,
    /// A request that takes longer has failed, seconds.
    #[arg(long, visible_alias = "request-timeout-seconds", default_value_t = 600)]
    pub request_timeout: u64,
    /// Extra header, `Name: value`; may be given again.
    #[arg(long)]
    pub header: Vec<String>,
    /// JSON object merged into every body.
    #[arg(long, visible_alias = "extra-inputs")]
    pub extra_body: Option<String>,
    /// Write the figures as one flat JSON object.
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// Write the result, in vLLM's schema and with a block of ours, to --result-filename.
    #[arg(long)]
    pub save_result: bool,
    /// Add every request to the result.
    #[arg(long, requires = "save_result")]
    pub save_detailed: bool,
    /// Where the result goes.
    #[arg(long, visible_alias = "profile-export-file", default_value = "loadgen-result.json")]
    pub result_filename: PathBuf,
    /// Write one self-contained page with plots (also `sweep` and `search`: latency against load).
    #[arg(long)]
    pub html: Option<PathBuf>,
    /// Write every request as a line of CSV.
    #[arg(long)]
    pub csv: Option<PathBuf>,
    /// Latencies on the console.
    #[arg(long, value_delimiter = ',', default_values = METRICS, value_parser = METRICS)]
    pub percentile_metrics: Vec<String>,
    /// Percentiles on the console, beside the median.
    #[arg(long, value_delimiter = ',', default_values_t = [90.0, 99.0], value_parser = percentile)]
    pub metric_percentiles: Vec<f64>,
    /// Print the schedule, one JSON object a request, and send nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// At most 10 requests of at most 32 output tokens: a look whether everything works.
    #[arg(long)]
    pub quick: bool,
    /// Print no progress.
    #[arg(long)]
    pub no_progress: bool,
}

/// Latencies that the console shows.
const METRICS: [&str; 5] = ["ttft", "tpot", "itl", "token_gap", "e2el"];

fn percentile(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|p| (0.0..=100.0).contains(p)).ok_or_else(|| "want a number from 0 to 100".into())
}

impl RunArgs {
    /// Threads of the engine: what was asked for, else one a core.
    pub fn threads(&self) -> usize {
        self.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)).max(1)
    }
}

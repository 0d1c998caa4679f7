//! The command line. Flags carry the names that vLLM's benchmark made familiar, with AIPerf's as aliases.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::mock::MockArgs;
use crate::selftest::SelftestArgs;
use crate::several::{AbArgs, CompareArgs, SearchArgs};

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
    /// Find the highest rate that meets an objective, as an interval.
    Search(SearchArgs),
}

/// Where requests come from.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum DatasetName {
    /// Lengths from --random-input-len and --random-output-len, arrivals from --request-rate.
    Random,
    /// Lengths and arrivals of a recorded trace (Azure CSV or Mooncake JSON lines).
    Trace,
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
    /// Speak HTTP/2 (over plain TCP: with prior knowledge).
    #[arg(long)]
    pub http2: bool,
    /// Threads, each with its own connections; as many as there are cores when left out.
    #[arg(long, visible_alias = "workers-max")]
    pub threads: Option<usize>,
    /// Where requests come from.
    #[arg(long, value_enum, default_value = "random")]
    pub dataset_name: DatasetName,
    /// Trace file, for --dataset-name trace.
    #[arg(long, visible_alias = "input-file")]
    pub dataset_path: Option<PathBuf>,
    /// Number of requests (trace: the first so many; all when left out).
    #[arg(long, visible_alias = "request-count")]
    pub num_prompts: Option<usize>,
    /// Requests a second; `inf` sends all at once. For a trace: rescales it to this mean rate.
    #[arg(long)]
    pub request_rate: Option<f64>,
    /// Shape of the gamma distribution of gaps: 1 is Poisson, below is burstier.
    #[arg(long, visible_alias = "arrival-smoothness", default_value_t = 1.0)]
    pub burstiness: f64,
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

fn percentile(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|p| (0.0..=100.0).contains(p)).ok_or_else(|| "want a number from 0 to 100".into())
}

impl RunArgs {
    /// Threads of the engine: what was asked for, else one a core.
    pub fn threads(&self) -> usize {
        self.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)).max(1)
    }
}

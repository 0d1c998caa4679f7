//! `cargo xtask`: the project's own tasks. `./x` is the same with a look for missing tools first.
//!
//! Ctrl-C ends every program that a task started and removes its scratch directory, then exits with 130.

mod bench;
mod build;
mod clients;
mod containers;
mod demo;
mod figures;
mod fuzz;
mod llama;
mod site;
mod suite;
mod test;
mod torch;
mod vllm;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

/// Tasks of the FlexNPU repository.
#[derive(Parser)]
#[command(name = "xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

/// What every measuring task takes.
#[derive(Args, Clone)]
pub struct Measure {
    /// Write the figures as one flat JSON object, figure name → value.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Under a minute once built: shorter runs, wider intervals.
    #[arg(long)]
    quick: bool,
}

#[derive(Subcommand)]
enum Task {
    /// The whole path on the emulated device: a chat, then a trace under two dispatch policies.
    Demo {
        #[command(flatten)]
        measure: Measure,
        /// Write a timeline of the trace under `phase`: opens in Perfetto and chrome://tracing.
        #[arg(long, value_name = "FILE")]
        trace: Option<PathBuf>,
        /// Leave the chat stack running afterwards, until Ctrl-C.
        #[arg(long)]
        keep: bool,
        /// Overlap of co-running operators on the emulated device, 0 (serialise) to 1 (fluid).
        #[arg(long, default_value_t = 0.5)]
        omega: f64,
        /// The engine: this repository's, or vLLM as published (installs 4 GB first).
        #[arg(long, default_value = "reference")]
        engine: demo::Kind,
    },
    /// Formatting, lints, dependency policy, every test, PyTorch on virtual NPUs.
    Test(test::Tests),
    /// Fuzz targets under AddressSanitizer: everything that reads what an untrusted process, client or engine sends.
    Fuzz(fuzz::Fuzz),
    /// Makes the documentation site of docs/ in target/site, and follows every link of it.
    Site,
    /// Makes the PyTorch in a virtual environment load without CUDA: stand-ins for the NVIDIA libraries that are missing.
    TorchEnv {
        /// The virtual environment.
        dir: PathBuf,
    },
    /// An engine without a model, for `bench gateway`.
    #[command(hide = true)]
    MockEngine(bench::gateway::mock::MockEngine),
    /// Writes what is made from other files: the reference pages under docs/reference/ from openapi/ and from the running programs,
    /// the Grafana dashboards from dashboards/panels.yaml.
    Reference,
    /// Measure something; prints a table.
    #[command(subcommand)]
    Bench(Bench),
}

#[derive(Subcommand)]
enum Bench {
    /// What virtualization costs: posted operators, synchronous calls, engine tokens/s, direct against daemon.
    Overhead {
        #[command(flatten)]
        measure: Measure,
    },
    /// Dispatch policies against each other, static placements, the ideal bound and a clairvoyant schedule, in virtual time.
    Dispatch {
        #[command(flatten)]
        measure: Measure,
        /// Only this one: a (the paper's workloads), b (traces), c (two tenants), agree (virtual time against real
        /// processes; left out unless asked for).
        #[arg(long)]
        experiment: Option<bench::dispatch::Experiment>,
        /// Write one self-contained page with plots.
        #[arg(long, value_name = "FILE")]
        html: Option<PathBuf>,
        /// Write a timeline of the first case at ω = 0.5 under `phase`: opens in Perfetto and chrome://tracing.
        #[arg(long, value_name = "FILE")]
        trace: Option<PathBuf>,
    },
    /// What the daemon spends on an operator at 50,000 operators/s, and how busy one dispatch thread keeps two paced devices.
    DispatchCost {
        #[command(flatten)]
        measure: Measure,
    },
    /// The gateway beside nginx and an LLM peer, in front of one mock engine: CPU a request, latency, streams, cancellation,
    /// leaks; or a soak.
    Gateway(bench::gateway::GatewayBench),
    /// Whether the books of tenants sum up to the device's busy time, under load and over a `kill -9` of the daemon.
    Ledger(bench::ledger::LedgerBench),
    /// The load generator's own error against a mock that knows better, and how much load one core makes.
    Loadgen(bench::loadgen::LoadgenBench),
    /// How often the daemon is right about the phase of a step: the engine with hints and without, torch_npu's generate.
    Phases {
        #[command(flatten)]
        measure: Measure,
        /// Leave PyTorch out.
        #[arg(long)]
        without_torch: bool,
    },
    /// Unmodified torch_npu, greedy decoding: ms a token through the daemon against direct, round trips a token.
    Torch {
        #[command(flatten)]
        measure: Measure,
    },
    /// Unmodified vLLM, eager and with ACL graphs: ms a decode step through the daemon against direct, round trips a step.
    Vllm {
        #[command(flatten)]
        measure: Measure,
    },
    /// The paced device against the cost model: decode step and prefill of Qwen2.5-7B, alone and co-running.
    Timing {
        #[command(flatten)]
        measure: Measure,
    },
}

fn run(task: Task) -> anyhow::Result<()> {
    match task {
        Task::Demo { measure, keep, omega, trace, engine } => {
            demo::run(&measure, keep, omega, trace.as_deref(), engine)
        }
        Task::Test(tests) => test::run(&tests),
        Task::Reference => {
            build::programs()?;
            let metrics = (build::root().join("docs/reference/metrics.md"), system_tests::metrics::page()?);
            let pages = system_tests::reference::pages()?.into_iter().chain(system_tests::dashboards::files()?);
            for (path, text) in pages.chain([metrics]) {
                std::fs::create_dir_all(path.parent().unwrap_or(&path))?;
                std::fs::write(path, text)?;
            }
            Ok(())
        }
        Task::Fuzz(options) => fuzz::run(&options),
        Task::Site => site::run(),
        Task::TorchEnv { dir } => torch::complete(&dir),
        Task::MockEngine(mock) => bench::gateway::mock::run(mock),
        Task::Bench(Bench::Gateway(gateway)) => bench::gateway::run(&gateway),
        Task::Bench(Bench::Overhead { measure }) => bench::overhead::run(&measure),
        Task::Bench(Bench::Dispatch { measure, experiment, html, trace }) => {
            bench::dispatch::run(&measure, experiment, html.as_deref(), trace.as_deref())
        }
        Task::Bench(Bench::DispatchCost { measure }) => bench::dispatch_cost::run(&measure),
        Task::Bench(Bench::Ledger(bench)) => bench::ledger::run(&bench),
        Task::Bench(Bench::Loadgen(bench)) => bench::loadgen::run(&bench),
        Task::Bench(Bench::Phases { measure, without_torch }) => bench::phases::run(&measure, without_torch),
        Task::Bench(Bench::Torch { measure }) => bench::torch::run(&measure),
        Task::Bench(Bench::Vllm { measure }) => bench::vllm::run(&measure),
        Task::Bench(Bench::Timing { measure }) => bench::timing::run(&measure),
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    // The task runs on one thread to its end: children die with the thread that started them.
    let (done, mut ended) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = done.send(run(cli.task));
    });
    runtime.block_on(async {
        let mut terminate = match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(signal) => signal,
            Err(error) => {
                eprintln!("error: no signal handler: {error}");
                return ExitCode::FAILURE;
            }
        };
        tokio::select! {
            result = &mut ended => match result {
                Ok(Ok(())) => ExitCode::SUCCESS,
                Ok(Err(error)) => {
                    eprintln!("error: {error:#}");
                    ExitCode::FAILURE
                }
                Err(_) => ExitCode::FAILURE,
            },
            _ = tokio::signal::ctrl_c() => interrupted(),
            _ = terminate.recv() => interrupted(),
        }
    })
}

fn interrupted() -> ExitCode {
    stack::end_all();
    build::remove_scratch();
    eprintln!();
    std::process::exit(130)
}

//! `cargo xtask bench gateway`: what the gateway costs beside other proxies, and what it holds on to.
//!
//! Everyone is in front of the same mock engine, in the same run, one after the other in every round. The proxy has one
//! core; engine and clients share another, so requests a second say as much about these as about a fast proxy. Processor
//! time a request is the proxy's own, its children's included, from the kernel's accounts.

mod books;
mod cancel;
mod client;
mod contender;
mod leaks;
pub mod mock;
mod pinned;
mod plain;
mod raw;
mod soak;
mod streams;

use anyhow::Result;

use crate::Measure;
use crate::build::{self, Scratch};
use crate::figures::Figures;
pub use contender::Peer;

/// Part of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Whole answers: latency, requests a second, processor time.
    Plain,
    /// Streams at a fixed rate.
    Streams,
    /// Long prompts at once.
    Prompts,
    /// From a client's close to its work's end.
    Cancel,
    /// Random ends; everything returns.
    Leaks,
}

/// What to run.
#[derive(clap::Args)]
pub struct GatewayBench {
    #[command(flatten)]
    measure: Measure,
    /// Only this part.
    #[arg(long)]
    part: Option<Part>,
    /// Peers from PyPI to compare with; installed on first use (LiteLLM takes 750 MB).
    #[arg(long, value_delimiter = ',', default_value = "sglang-router")]
    peers: Vec<Peer>,
    /// Mixed traffic for so long while engines are killed, instead of the rest.
    #[arg(long, value_name = "MINUTES", num_args = 0..=1, default_missing_value = "30")]
    soak: Option<u64>,
}

/// Runs it.
///
/// # Errors
/// If a contender is missing or a request fails.
pub fn run(bench: &GatewayBench) -> Result<()> {
    build::programs()?;
    pinned::raise_descriptor_limit()?;
    if let Some(minutes) = bench.soak {
        return soak::run(&bench.measure, minutes);
    }
    if !pinned::several_cores() {
        println!("one core only: proxy, engine and clients share it, and every figure says so much less");
    }
    let scratch = Scratch::new()?;
    let (dir, quick) = (scratch.path(), bench.measure.quick);
    let mut figures = Figures::default();
    let wanted = |part| bench.part.is_none_or(|only| only == part);
    if wanted(Part::Plain) || wanted(Part::Streams) {
        let (_engine, http) = contender::mock(0, 0, 20.0)?;
        let mut all = contender::all(dir, &http, &bench.peers)?;
        if wanted(Part::Streams) {
            streams::run(&all, quick, &mut figures)?;
        }
        if wanted(Part::Plain) {
            let mut cpu_of: Vec<usize> = (0..all.len()).collect();
            let gateway = all.iter().position(|c| c.name == "gateway").unwrap_or_default();
            all.push(contender::pass_through(&all[gateway]));
            cpu_of.push(gateway);
            plain::run(&all, &cpu_of, quick, &mut figures)?;
        }
    }
    if wanted(Part::Prompts) {
        streams::prompts(dir, &bench.peers, quick, &mut figures)?;
    }
    if wanted(Part::Cancel) {
        cancel::run(dir, quick, &mut figures)?;
    }
    if wanted(Part::Leaks) {
        leaks::run(dir, quick, &mut figures)?;
    }
    figures.write(bench.measure.json.as_deref())
}

//! `loadgen`: drives an OpenAI-compatible endpoint in open loop and measures TTFT, TPOT, ITL and E2E latency.
//!
//! Definitions of every figure: `measure.rs`. How they are taken: `engine/mod.rs`.

mod body;
mod cli;
mod clock;
mod engine;
mod mock;
mod plan;
mod run;
mod selftest;
mod several;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    let result = match &cli.command {
        None => run::command(&cli.run),
        Some(cli::Command::Mock(args)) => mock::serve(args).map(|()| 0),
        Some(cli::Command::Selftest(args)) => selftest::command(args),
        Some(cli::Command::Compare(args)) => several::compare(args),
        Some(cli::Command::Ab(args)) => several::ab(args),
        Some(cli::Command::Search(args)) => several::search(args),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("loadgen: {error:#}");
            ExitCode::from(2)
        }
    }
}

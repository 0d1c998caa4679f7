//! `loadgen`: drives an OpenAI-compatible endpoint in open loop and measures TTFT, TPOT, ITL and E2E latency.
//!
//! Definitions of every figure: `measure.rs`. How they are taken: `engine/mod.rs`.

mod body;
mod cli;
mod clock;
mod cores;
mod engine;
mod live;
mod mock;
mod out;
mod plan;
mod run;
mod selftest;
mod several;
mod sweep;
mod under;

use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    let result = match &cli.command {
        None => run::command(&cli.run),
        Some(cli::Command::Mock(args)) => mock::serve(args).map(|()| 0),
        Some(cli::Command::Selftest(args)) => selftest::command(args),
        Some(cli::Command::Compare(args)) => several::compare(args),
        Some(cli::Command::Ab(args)) => several::ab(args),
        Some(cli::Command::Search(args)) => several::search(args),
        Some(cli::Command::Policies(args)) => under::command(args),
        Some(cli::Command::Sweep(args)) => sweep::command(args),
        Some(cli::Command::Completions { shell }) => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut cli::Cli::command(), "loadgen", &mut script);
            out::with(|out| out.write_all(&script));
            Ok(0)
        }
        Some(cli::Command::Man) => {
            out::with(|out| clap_mangen::Man::new(cli::Cli::command()).render(out));
            Ok(0)
        }
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("loadgen: {error:#}");
            ExitCode::from(2)
        }
    }
}

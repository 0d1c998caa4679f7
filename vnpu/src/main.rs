//! `vnpu`: runs applications on a virtual NPU and tells what they will find there.
//!
//! `vnpu run` is all it takes to put an unmodified AscendCL application on the interposer: it links the library under the
//! names that applications load, puts that directory first in `LD_LIBRARY_PATH`, sets the variables and becomes the
//! command. `vnpu policy` shows and changes how a daemon dispatches, `vnpu record`,
//! `vnpu trace` and `vnpu replay` tell what it decided and why, `vnpu top`
//! watches it, `vnpu tenant` and `vnpu usage` say who may use and who used how much. `vnpu ops` and `vnpu functions` list what is supported.

mod admin;
mod health;
mod library;
mod links;
mod policy;
mod python;
mod record;
mod run;
mod tables;
mod tenant;
mod top;

use std::io::{ErrorKind, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

/// Run AscendCL applications on a virtual NPU.
#[derive(Debug, Parser)]
#[command(name = "vnpu", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a command on a virtual NPU.
    Run(run::Run),
    /// Make the directory of library links, and print it.
    Libs {
        /// Directory to make or refresh.
        #[arg(long)]
        dir: PathBuf,
        /// Put the library itself there, too: the directory may then be mounted elsewhere, in a container say.
        #[arg(long)]
        copy: bool,
    },
    Health(health::Health),
    Policy(policy::Policy),
    Record(record::RecordArgs),
    Trace(record::TraceArgs),
    Replay(record::ReplayArgs),
    Top(top::Top),
    Tenant(tenant::Tenant),
    Usage(tenant::Usage),
    /// List the operators, and which of them the device computes.
    Ops(Listing),
    /// List the C functions, which of them work, and which clients use them.
    Functions(Listing),
}

#[derive(Debug, Args)]
struct Listing {
    /// As JSON, one array.
    #[arg(long)]
    json: bool,
    /// Only what is supported.
    #[arg(long)]
    supported: bool,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(run) => return run.exec(),
        Command::Libs { dir, copy } => libs(&dir, copy),
        Command::Health(health) => health.run(),
        Command::Policy(policy) => policy.run().and_then(|text| print(&text)),
        Command::Record(record) => record.run().and_then(|text| print(&text)),
        Command::Trace(trace) => trace.run().and_then(|text| print(&text)),
        Command::Replay(replay) => replay.run().and_then(|text| print(&text)),
        Command::Top(top) => top.run(),
        Command::Tenant(tenant) => tenant.run().and_then(|text| print(&text)),
        Command::Usage(usage) => usage.run().and_then(|text| print(&text)),
        Command::Ops(listing) => print(&tables::operators().render(listing.json, listing.supported)),
        Command::Functions(listing) => library::find()
            .and_then(|path| tables::functions(&path))
            .and_then(|table| print(&table.render(listing.json, listing.supported))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vnpu: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn libs(dir: &std::path::Path, copy: bool) -> anyhow::Result<()> {
    let library = library::find()?;
    let library = if copy { links::copy(&library, dir)? } else { library };
    links::refresh(&library, dir)?;
    python::refresh(&dir.join(python::DIR))?;
    print(&format!("{}\n", dir.canonicalize()?.display()))
}

/// Writes to stdout; a reader that has seen enough is no error.
fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

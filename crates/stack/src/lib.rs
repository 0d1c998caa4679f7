//! Starts the real programs and ends them: what the demo, the benchmarks and the whole-system tests stand on.
//!
//! Every program prints one `ready …` line when it serves; starting waits for that line, never for a fixed time. A
//! program ends with the value that started it: first politely, then by force. Should this process die without running
//! destructors, the kernel ends its children (`PR_SET_PDEATHSIG`).
//!
//! Deliberately not here: any protocol of ours. This crate sees processes, ports and HTTP, as a user would.

mod held;
mod http;
mod process;
mod script;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

pub use held::Held;
pub use http::{Completion, Http, StreamEvent};
pub use process::{Program, end_all, program_path};
pub use script::{Ended, run_script};

/// Longest that a program may take to say `ready`.
pub const START_TIME_MAX: Duration = Duration::from_secs(120);

/// A daemon that owns one emulated device.
pub struct Daemon {
    /// Process.
    pub program: Program,
    /// Socket that clients connect to.
    pub socket: PathBuf,
    /// `http://host:port` of the admin API.
    pub admin: Http,
}

impl Daemon {
    /// Starts a daemon with the device `spec` and the dispatch policy `policy`; its socket lies in `dir`.
    ///
    /// # Errors
    /// If it does not become ready; the error carries what it wrote.
    pub fn start(dir: &Path, spec: &str, policy: &str) -> Result<Self> {
        Self::start_named(dir, "npu0", spec, policy)
    }

    /// Like [`start`](Self::start), with a socket name of its own.
    ///
    /// # Errors
    /// As there.
    pub fn start_named(dir: &Path, name: &str, spec: &str, policy: &str) -> Result<Self> {
        let socket = dir.join(format!("{name}.sock"));
        let mut command = Command::new(program_path("vnpu-daemon")?);
        command.arg("--socket").arg(&socket).args(["--device", spec, "--policy", policy, "--admin", "127.0.0.1:0"]);
        let program = Program::start("vnpu-daemon", command)?;
        let admin = program.ready_field("admin").context("the daemon's ready line has no admin=")?;
        Ok(Self { socket, admin: Http::new(&admin), program })
    }

    /// The daemon's status as JSON.
    ///
    /// # Errors
    /// If the admin API does not answer.
    pub fn status(&self) -> Result<serde_json::Value> {
        self.admin.get_json("/v1/status")
    }
}

/// How an engine reaches a device.
pub enum Via<'a> {
    /// Through a daemon.
    Daemon(&'a Daemon),
    /// The device backend in the engine's own process: the passthrough that overhead is measured against.
    Direct(&'a str),
}

impl Via<'_> {
    /// `vnpu run … --`: what is added is a command that runs on the device, and listens for phase hints at `hints`, if asked to.
    ///
    /// # Errors
    /// If `vnpu` has not been built.
    pub fn run(&self, hints: Option<&Path>) -> Result<Command> {
        let mut command = Command::new(program_path("vnpu")?);
        command.arg("run");
        match self {
            Self::Daemon(daemon) => command.arg("--socket").arg(&daemon.socket),
            Self::Direct(spec) => command.args(["--direct", spec]),
        };
        if let Some(hints) = hints {
            command.arg("--hints").arg(hints);
        }
        command.arg("--");
        Ok(command)
    }
}

/// The reference engine, run unmodified under `vnpu run`.
pub struct Engine {
    /// Process.
    pub program: Program,
    /// Its OpenAI-compatible server.
    pub http: Http,
    /// Where the interposer listens for phase hints, if asked to.
    pub hints: Option<PathBuf>,
}

impl Engine {
    /// Starts an engine on a free port with `args`.
    ///
    /// # Errors
    /// If it does not become ready; the error carries what it wrote.
    pub fn start(via: &Via<'_>, hints: Option<&Path>, args: &[&str]) -> Result<Self> {
        Self::start_with(via, hints, args, &[])
    }

    /// Like [`start`](Self::start), with environment variables of its own.
    ///
    /// # Errors
    /// As there.
    pub fn start_with(via: &Via<'_>, hints: Option<&Path>, args: &[&str], variables: &[(&str, &Path)]) -> Result<Self> {
        let mut command = via.run(hints)?;
        command.arg(program_path("engine")?).args(["--host", "127.0.0.1", "--port", "0"]).args(args);
        command.envs(variables.iter().copied());
        let program = Program::start("engine", command)?;
        let url = program.ready_url()?;
        Ok(Self { program, http: Http::new(&url), hints: hints.map(Path::to_owned) })
    }
}

/// The gateway beside an engine.
pub struct Gateway {
    /// Process.
    pub program: Program,
    /// Where clients connect.
    pub http: Http,
}

impl Gateway {
    /// Starts a gateway on a free port in front of `upstream` (an engine's address).
    ///
    /// # Errors
    /// If it does not become ready; the error carries what it wrote.
    pub fn start(upstream: &Http, hints: Option<&Path>, args: &[&str]) -> Result<Self> {
        let mut own = vec!["--upstream", upstream.authority()];
        if let Some(hints) = hints {
            own.extend(["--hints", hints.to_str().context("the hint listener's path is not text")?]);
        }
        Self::run(&[&own, args].concat())
    }

    /// Starts a gateway on a free port with the configuration file at `config`.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn configured(config: &Path, args: &[&str]) -> Result<Self> {
        let config = config.to_str().context("the configuration's path is not text")?;
        Self::run(&[&["--config", config], args].concat())
    }

    fn run(args: &[&str]) -> Result<Self> {
        let mut command = Command::new(program_path("gateway")?);
        command.args(["--listen", "127.0.0.1:0"]).args(args);
        let program = Program::start("gateway", command)?;
        let url = program.ready_url()?;
        Ok(Self { program, http: Http::new(&url) })
    }

    /// Its admin API.
    ///
    /// # Errors
    /// If the ready line has none.
    pub fn admin(&self) -> Result<Http> {
        let url = self.program.ready_field("admin").context("the gateway's ready line has no admin=")?;
        Ok(Http::new(&url))
    }
}

/// Top of the source tree that the programs were built from.
///
/// # Errors
/// If the running executable does not lie in a `target` directory.
pub fn source_root() -> Result<PathBuf> {
    let exe = std::env::current_exe().context("no path of the running executable")?;
    let root = exe.ancestors().find(|d| d.join("Cargo.lock").is_file()).map(Path::to_owned);
    root.with_context(|| format!("{} is not inside a source tree", exe.display()))
}

/// A directory that goes when the value does.
///
/// # Errors
/// If none can be made.
pub fn scratch() -> Result<tempfile::TempDir> {
    tempfile::Builder::new().prefix("flexnpu-").tempdir().context("no temporary directory")
}

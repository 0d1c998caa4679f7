//! `vnpu run`: environment and `exec`.
//!
//! Exit status where the command does not run, as of `env` and container tools: 127 the command is not found, 126 it cannot
//! be executed, 125 anything that is wrong before.

use std::ffi::OsString;
use std::io::{Error, ErrorKind};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, bail};
use clap::Args;

use crate::{library, links, python};

/// Arguments of `vnpu run`.
#[derive(Debug, Args)]
pub struct Run {
    /// Socket of a running vnpu-daemon; several, separated by commas or repeated, make several devices. Without it and without
    /// --direct, what VNPU_SOCKET holds.
    #[arg(long, value_delimiter = ',', conflicts_with = "direct")]
    socket: Vec<PathBuf>,
    /// Host the device inside the application, without a daemon: <soc>[:functional|:timing][:paced|:unpaced][:omega=F]…, for
    /// example Ascend910B3:functional. Separated by commas for several devices.
    #[arg(long, value_name = "SPEC")]
    direct: Option<String>,
    /// Dispatch policy of a hosted device.
    #[arg(long, requires = "direct")]
    policy: Option<String>,
    /// Unix socket at which the application takes the gateway's phase hints.
    #[arg(long, value_name = "PATH")]
    hints: Option<PathBuf>,
    /// Log of the library on stderr: off, error, warn, info or debug.
    #[arg(long, value_parser = ["off", "error", "warn", "info", "debug"])]
    log: Option<String>,
    /// Directory for the library links, beside the library unless given.
    #[arg(long, value_name = "DIR")]
    libs_dir: Option<PathBuf>,
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

impl Run {
    /// Becomes the command; returns only if that fails.
    pub fn exec(self) -> ExitCode {
        let mut command = match self.prepare() {
            Ok(command) => command,
            Err(error) => {
                eprintln!("vnpu run: {error:#}");
                return ExitCode::from(125);
            }
        };
        let error = command.exec();
        eprintln!("vnpu run: {}: {error}", Path::new(command.get_program()).display());
        ExitCode::from(status(&error))
    }

    fn prepare(&self) -> anyhow::Result<Command> {
        let library = library::find()?;
        let dir = self.libs_dir.clone().unwrap_or_else(|| links::default_dir(&library));
        links::refresh(&library, &dir)?;
        python::refresh(&dir.join(python::DIR))?;
        let dir = dir.canonicalize()?;
        let (program, arguments) = self.command.split_first().context("no command")?;
        let mut command = Command::new(program);
        command.args(arguments);
        for (name, value) in self.variables()? {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.env("LD_LIBRARY_PATH", first(&dir, std::env::var_os("LD_LIBRARY_PATH")));
        command.env("PYTHONPATH", last(&dir.join(python::DIR), std::env::var_os("PYTHONPATH")));
        Ok(command)
    }

    /// What the library reads (`None`: unset).
    fn variables(&self) -> anyhow::Result<Vec<(&'static str, Option<OsString>)>> {
        let mut out = match &self.direct {
            Some(spec) => vec![
                ("VNPU_MODE", Some("direct".into())),
                ("VNPU_DEVICE", Some(spec.into())),
                ("VNPU_SOCKET", None),
                ("VNPU_POLICY", self.policy.as_ref().map(OsString::from)),
            ],
            None => vec![
                ("VNPU_MODE", Some("daemon".into())),
                ("VNPU_SOCKET", Some(sockets(&self.socket, std::env::var_os("VNPU_SOCKET"))?)),
                ("VNPU_DEVICE", None),
                ("VNPU_POLICY", None),
            ],
        };
        if let Some(hints) = &self.hints {
            out.push(("VNPU_HINTS", Some(std::path::absolute(hints)?.into())));
        }
        if let Some(log) = &self.log {
            out.push(("VNPU_LOG", Some(log.into())));
        }
        Ok(out)
    }
}

/// The sockets of the command line, or of the environment, checked and absolute: the command may change its directory.
fn sockets(given: &[PathBuf], environment: Option<OsString>) -> anyhow::Result<OsString> {
    let inherited: Vec<PathBuf> = match environment {
        Some(list) if given.is_empty() => {
            list.to_string_lossy().split(',').map(str::trim).filter(|s| !s.is_empty()).map(PathBuf::from).collect()
        }
        _ => Vec::new(),
    };
    let paths = if given.is_empty() { &inherited } else { given };
    if paths.is_empty() {
        bail!("give a device: --socket PATH of a running vnpu-daemon, or --direct Ascend910B3:functional");
    }
    let mut out = OsString::new();
    for path in paths {
        let hint = || {
            format!(
                "no daemon socket at {}; start one with `vnpu-daemon --socket {} --device Ascend910B3:functional`",
                path.display(),
                path.display()
            )
        };
        let metadata = std::fs::metadata(path).with_context(hint)?;
        if !metadata.file_type().is_socket() {
            bail!("{}: it is not a socket", hint());
        }
        if !out.is_empty() {
            out.push(",");
        }
        out.push(std::path::absolute(path)?);
    }
    Ok(out)
}

/// `dir` before whatever the variable holds.
fn first(dir: &Path, rest: Option<OsString>) -> OsString {
    let mut out = dir.as_os_str().to_owned();
    if let Some(rest) = rest.filter(|r| !r.is_empty()) {
        out.push(":");
        out.push(rest);
    }
    out
}

/// `dir` behind whatever the variable holds: modules of the user's own come first.
fn last(dir: &Path, rest: Option<OsString>) -> OsString {
    match rest.filter(|r| !r.is_empty()) {
        Some(mut out) => {
            out.push(":");
            out.push(dir);
            out
        }
        None => dir.as_os_str().to_owned(),
    }
}

fn status(error: &Error) -> u8 {
    if error.kind() == ErrorKind::NotFound { 127 } else { 126 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Run, String> {
        #[derive(Debug, clap::Parser)]
        struct Cli {
            #[command(flatten)]
            run: Run,
        }
        let all = std::iter::once("run").chain(arguments.iter().copied());
        <Cli as clap::Parser>::try_parse_from(all).map(|c| c.run).map_err(|e| e.to_string())
    }

    fn variable(run: &Run, name: &str) -> Option<String> {
        let variables = run.variables().unwrap();
        let value = variables.into_iter().find(|(n, _)| *n == name).unwrap_or_else(|| panic!("{name} is not set")).1;
        value.map(|v| v.into_string().unwrap())
    }

    #[test]
    fn direct_mode_sets_the_device_and_forgets_sockets() {
        let run =
            parse(&["--direct", "Ascend910B3:timing", "--policy", "fifo", "--hints", "/h", "--", "python", "-c", "x"])
                .unwrap();
        for (name, want) in [
            ("VNPU_MODE", Some("direct")),
            ("VNPU_DEVICE", Some("Ascend910B3:timing")),
            ("VNPU_POLICY", Some("fifo")),
            ("VNPU_SOCKET", None),
            ("VNPU_HINTS", Some("/h")),
        ] {
            assert_eq!(variable(&run, name).as_deref(), want, "{name}");
        }
        assert_eq!(run.command, ["python", "-c", "x"]);
    }

    #[test]
    fn sockets_are_checked_and_made_absolute() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let both = format!("{0},{0}", path.display());
        let run = parse(&["--socket", &both, "--", "true"]).unwrap();
        assert_eq!(variable(&run, "VNPU_SOCKET"), Some(both.clone()));
        assert_eq!(sockets(&[], Some(both.clone().into())).unwrap(), OsString::from(&both), "from the environment");
        assert_eq!(sockets(std::slice::from_ref(&path), Some("/elsewhere".into())).unwrap(), path);
        assert!(sockets(&[], None).is_err());
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        for missing in [dir.path().join("b.sock"), file] {
            let run = parse(&["--socket", missing.to_str().unwrap(), "--", "true"]).unwrap();
            let error = format!("{:#}", run.variables().unwrap_err());
            assert!(error.contains("vnpu-daemon --socket"), "{error}");
        }
    }

    #[test]
    fn contradictions_are_refused() {
        for arguments in
            [&["--direct", "x", "--socket", "y", "--", "true"][..], &["--policy", "fifo", "--", "true"], &[]]
        {
            assert!(parse(arguments).is_err(), "{arguments:?}");
        }
    }

    #[test]
    fn libraries_go_first_and_modules_last() {
        assert_eq!(first(Path::new("/d"), Some("/a:/b".into())), "/d:/a:/b");
        assert_eq!(first(Path::new("/d"), Some("".into())), "/d");
        assert_eq!(first(Path::new("/d"), None), "/d");
        assert_eq!(last(Path::new("/d"), Some("/a:/b".into())), "/a:/b:/d");
        assert_eq!(last(Path::new("/d"), None), "/d");
    }
}

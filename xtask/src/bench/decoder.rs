//! Two processes that decode by turns, one with the device in its own process, one through a daemon: what virtualization costs an
//! engine that nobody here wrote.
//!
//! A decoder is a Python program under `vnpu run` that says `ready`, then decodes as many tokens as each line asks for and answers
//! `ms` with the milliseconds one took. The daemon counts the calls that waited for its answer.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, ensure};
use stack::{Daemon, Via};

use crate::build;
use crate::figures::{Figures, median, paired_ratio};

/// A process that decodes when asked to.
pub struct Decoder {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    /// What it said behind `ready`: a version.
    pub library: String,
}

impl Decoder {
    /// Starts `script`, a file below `tests/python`, with the interpreter `python`; `set` adds arguments and variables.
    ///
    /// # Errors
    /// If it ends before it is ready.
    pub fn start(python: &Path, via: &Via<'_>, script: &str, set: impl FnOnce(&mut Command)) -> Result<Self> {
        let mut command = via.run(None)?;
        command.arg(python).arg(build::root().join("tests/python").join(script));
        set(&mut command);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("starting Python")?;
        let stdin = child.stdin.take().context("stdin was piped")?;
        let stdout = BufReader::new(child.stdout.take().context("stdout was piped")?);
        let mut decoder = Self { child, stdin, stdout, library: String::new() };
        // Others greet on the same stream.
        while decoder.library.is_empty() {
            decoder.library = decoder.line()?.strip_prefix("ready ").unwrap_or_default().to_owned();
        }
        Ok(decoder)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        ensure!(self.stdout.read_line(&mut line)? > 0, "the decoder ended; its last words are above");
        Ok(line.trim().to_owned())
    }

    /// Decodes so many tokens; milliseconds a token.
    ///
    /// # Errors
    /// If it has ended.
    pub fn run(&mut self, tokens: u32) -> Result<f64> {
        writeln!(self.stdin, "{tokens}")?;
        loop {
            // An engine may write its log between.
            if let Some(time) = self.line()?.strip_prefix("ms ") {
                return time.parse().with_context(|| format!("`{time}` is no time"));
            }
        }
    }
}

impl Drop for Decoder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Calls that waited for an answer, and operators completed, of all sessions so far.
///
/// # Errors
/// If the admin API does not answer.
pub fn counters(daemon: &Daemon) -> Result<(f64, f64)> {
    let status = daemon.status()?;
    let trips = status["round_trips_total"].as_f64().context("no round trips in the daemon's status")?;
    let phases = status["phases"].as_array().context("no phases in the daemon's status")?;
    Ok((trips, phases.iter().filter_map(|p| p["completed"].as_f64()).sum()))
}

/// Synchronous round trips of `generate`.
pub struct Trips {
    /// Of the prompt, and of what is looked at before it.
    pub start: f64,
    /// Of each token after it.
    pub a_token: f64,
}

impl Trips {
    /// Counts those of two lengths, the longer one twice `tokens`.
    ///
    /// # Errors
    /// If the decoder or the daemon has ended.
    pub fn count(decoder: &mut Decoder, daemon: &Daemon, tokens: u32) -> Result<Self> {
        // The first time, memory is taken from the device; each taking is a round trip.
        decoder.run(2 * tokens)?;
        let mut of = |tokens| -> Result<f64> {
            let (before, _) = counters(daemon)?;
            decoder.run(tokens)?;
            Ok(counters(daemon)?.0 - before)
        };
        let (short, long) = (of(tokens)?, of(2 * tokens)?);
        Ok(Self { start: 2.0 * short - long, a_token: (long - short) / f64::from(tokens) })
    }
}

/// Milliseconds a token of both, by turns.
pub struct Pairs {
    direct: Vec<f64>,
    daemon: Vec<f64>,
    /// Operators and copies a token through the daemon.
    pub operators: f64,
}

impl Pairs {
    /// So many turns of each, of so many tokens.
    ///
    /// # Errors
    /// If a decoder or the daemon has ended.
    pub fn run(
        (direct, through): (&mut Decoder, &mut Decoder),
        daemon: &Daemon,
        pairs: usize,
        tokens: u32,
    ) -> Result<Self> {
        let (_, before) = counters(daemon)?;
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for pair in 0..pairs {
            // Who goes first alternates, so that a drift of the machine favours neither.
            let order = if pair % 2 == 0 { [true, false] } else { [false, true] };
            for is_direct in order {
                let value = if is_direct { direct.run(tokens)? } else { through.run(tokens)? };
                if is_direct { a.push(value) } else { b.push(value) }
            }
            eprint!("\rpair {} of {pairs}", pair + 1);
        }
        eprintln!();
        let (_, after) = counters(daemon)?;
        let operators = (after - before) / f64::from(pairs as u32 * tokens);
        Ok(Self { direct: a, daemon: b, operators })
    }

    /// One line for people, and figures whose names begin with `name`.
    pub fn show(&self, name: &str, figures: &mut Figures) {
        let (ratio, low, high) = paired_ratio(&self.direct, &self.daemon);
        let (direct, daemon) = (median(&self.direct), median(&self.daemon));
        println!(
            "  direct {direct:.2} ms/token, daemon {daemon:.2} ms/token, ratio {ratio:.4} [{low:.4}, {high:.4}]\n  {:.0} operators and \
             copies a token",
            self.operators
        );
        figures.set(format!("{name}_direct_ms_per_token"), direct);
        figures.set(format!("{name}_daemon_ms_per_token"), daemon);
        figures.set(format!("{name}_ratio"), ratio);
        figures.set(format!("{name}_ratio_low"), low);
        figures.set(format!("{name}_ratio_high"), high);
        figures.set(format!("{name}_operators_per_token"), self.operators);
    }
}

//! `vnpu record`, `vnpu trace`, `vnpu replay`: what a daemon decided, as a file, as a timeline, in words.
//!
//! The daemon only keeps the record; everything else happens here, by replaying it (`explain`).

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::{ArgGroup, Args};
use explain::{About, Hold, Timeline, chrome, decision};
use sched::Nanos;
use sched::dispatch::{HoldReason, Record, ReplayError};
use serde_json::{Value, json};

use crate::admin::Admin;

/// Largest record taken in: the daemon's own bound and the states that may lie beyond it.
const RECORD_BYTES_MAX: u64 = 2 << 30;
const MIB: u64 = 1 << 20;
const NS_PER_S: f64 = 1e9;

/// Keep or save a record of every dispatch decision of a running daemon.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true).args(["out", "start", "stop"]))]
pub struct RecordArgs {
    #[command(flatten)]
    source: Source,
    /// Save to this file: what the daemon has recorded so far, or, if it does not record, the next --seconds.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Begin to record, the oldest forgotten when --mib or --seconds are full, until --stop.
    #[arg(long)]
    start: bool,
    /// End the recording and forget it.
    #[arg(long)]
    stop: bool,
}

/// Where a record comes from.
#[derive(Debug, Args)]
struct Source {
    /// Address of the daemon's admin API, as its `--admin` says.
    #[arg(long, value_name = "HOST:PORT", env = "VNPU_ADMIN", default_value = "127.0.0.1:9400")]
    admin: SocketAddr,
    /// How long, seconds: what is recorded from now on if nothing is recorded yet, or how far back a ring reaches.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: Option<u32>,
    /// Memory of the daemon that the record may take, MiB.
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(1..=1024))]
    mib: Option<u32>,
}

impl Source {
    fn query(&self) -> String {
        let fields = [("seconds", self.seconds), ("mib", self.mib)];
        let text: Vec<String> =
            fields.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", value?))).collect();
        text.join("&")
    }

    /// The record: of the ring, or of the next seconds.
    fn fetch(&self) -> Result<Record> {
        let wait = Duration::from_secs(u64::from(self.seconds.unwrap_or(0)) + 60);
        let bytes = Admin::new(self.admin, wait).bytes(&format!("/v1/record?{}", self.query()), RECORD_BYTES_MAX)?;
        Record::from_bytes(bytes).with_context(|| format!("what {} sent", self.admin))
    }
}

impl RecordArgs {
    /// Runs the command; what to print.
    ///
    /// # Errors
    /// No daemon, its refusal, or a file that cannot be written.
    pub fn run(self) -> Result<String> {
        let admin = Admin::new(self.source.admin, Duration::ZERO);
        if self.start {
            let body = json!({ "seconds": self.source.seconds, "mib": self.source.mib });
            let state = admin.put("/v1/record", "application/json", &body.to_string())?;
            let mib = state["bytes_max"].as_u64().unwrap_or(0) / MIB;
            return Ok(format!("recording the last {mib} MiB\n"));
        }
        if self.stop {
            return admin.delete("/v1/record").map(|()| "not recording any more\n".to_owned());
        }
        let record = self.source.fetch()?;
        let path = self.out.context("--out FILE")?;
        std::fs::write(&path, record.bytes()).with_context(|| format!("cannot write {}", path.display()))?;
        let entries = record.entries()?.count();
        Ok(format!("{entries} inputs and decisions, {} bytes: {}\n", record.bytes().len(), path.display()))
    }
}

/// Write a timeline that Perfetto (ui.perfetto.dev) and chrome://tracing open: operators, hold-backs, requests.
#[derive(Debug, Args)]
pub struct TraceArgs {
    #[command(flatten)]
    source: Source,
    /// Of a record in a file instead of a daemon's.
    #[arg(long, value_name = "RECORD", conflicts_with_all = ["seconds", "mib"])]
    from: Option<PathBuf>,
    /// File to write, JSON.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Largest file, MiB; the last events are left out beyond.
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u64).range(1..))]
    out_mib: u64,
}

impl TraceArgs {
    /// Runs the command; what to print.
    ///
    /// # Errors
    /// No record, one that does not replay, or a file that cannot be written.
    pub fn run(self) -> Result<String> {
        let record = match &self.from {
            Some(path) => read(path)?,
            None => self.source.fetch()?,
        };
        let mut timeline = Timeline::of(&record)?;
        if let Some(seconds) = self.source.seconds {
            timeline.keep_last(u64::from(seconds) * NS_PER_S as Nanos);
        }
        let file = File::create(&self.out).with_context(|| format!("cannot write {}", self.out.display()))?;
        let mut out = BufWriter::new(file);
        let written = chrome::write(&timeline, &mut out, self.out_mib * MIB)?;
        out.flush().with_context(|| format!("cannot write {}", self.out.display()))?;
        let mut text = format!(
            "{:.3} s, {} operators, {} hold-backs, {} requests: {} ({} events, {} bytes)\n",
            (timeline.ended - timeline.began) as f64 / NS_PER_S,
            timeline.operators.len(),
            timeline.holds.len(),
            timeline.requests.len(),
            self.out.display(),
            written.events,
            written.bytes,
        );
        if written.left_out > 0 {
            text += &format!("{} events did not fit: --out-mib allows a larger file\n", written.left_out);
        }
        Ok(text)
    }
}

/// Replay a record: does it give the same decisions? With --at, explain them.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// A record, as `vnpu record --out` wrote it.
    file: PathBuf,
    /// Explain the decisions from this time on: seconds since the daemon's start, or +SECONDS since the record's beginning.
    #[arg(long, value_name = "[+]SECONDS")]
    at: Option<String>,
    /// … for so long, milliseconds; 0 for the one decision that was in force.
    #[arg(long, value_name = "MS", default_value_t = 0.0, requires = "at")]
    r#for: f64,
    /// … but at most so many.
    #[arg(long, value_name = "N", default_value_t = 20, requires = "at")]
    most: usize,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

fn read(path: &Path) -> Result<Record> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Record::from_bytes(bytes).with_context(|| path.display().to_string())
}

impl ReplayArgs {
    /// Runs the command; what to print.
    ///
    /// # Errors
    /// No record, or one that gives other decisions.
    pub fn run(self) -> Result<String> {
        let record = read(&self.file)?;
        let timeline = match Timeline::of(&record) {
            Ok(timeline) => timeline,
            Err(e @ ReplayError::Differs { .. }) => bail!("NOT the same decisions: {e}"),
            Err(e) => return Err(e.into()),
        };
        let Some(at) = &self.at else {
            return Ok(if self.json { format!("{:#}\n", summary(&timeline)) } else { text(&timeline) });
        };
        let relative = at.starts_with('+');
        let seconds: f64 = at.trim_start_matches('+').parse().with_context(|| format!("--at {at}: no seconds"))?;
        let from = (seconds * NS_PER_S) as Nanos + if relative { timeline.began } else { 0 };
        let range = |ns: Nanos| format!("{:.3}", ns as f64 / NS_PER_S);
        ensure!(
            (timeline.began..=timeline.ended).contains(&from),
            "--at {at}: the record goes from {} to {} s",
            range(timeline.began),
            range(timeline.ended)
        );
        let most = if self.r#for > 0.0 { self.most } else { 1 };
        // The one in force at a time was made before it.
        let (from, to) = if self.r#for > 0.0 { (from, from + (self.r#for * 1e6) as Nanos) } else { (from + 1, from) };
        let (found, _) = decision::find(&record, from, to, most)?;
        if self.json {
            return Ok(format!("{}\n", serde_json::to_string_pretty(&found)?));
        }
        let mut out: String = found.decisions.iter().map(|d| d.text(&timeline.about, timeline.began)).collect();
        if found.decisions.is_empty() {
            out += "nothing was chosen or held back until then\n";
        }
        if found.more > 0 {
            out += &format!("… and {} more: --most\n", found.more);
        }
        Ok(out)
    }
}

/// Hold-backs for one reason.
struct Held {
    reason: HoldReason,
    count: usize,
    total: Nanos,
    longest: Hold,
}

/// By reason.
fn holds(timeline: &Timeline) -> Vec<Held> {
    let of = |reason| {
        let own = || timeline.holds.iter().filter(move |h| h.reason == reason);
        let longest = *own().max_by_key(|h| h.ended - h.since)?;
        Some(Held { reason, count: own().count(), total: own().map(|h| h.ended - h.since).sum(), longest })
    };
    HoldReason::ALL.into_iter().filter_map(of).collect()
}

fn summary(timeline: &Timeline) -> Value {
    json!({
        "same_decisions": true,
        "inputs": timeline.replayed.inputs,
        "decisions": timeline.replayed.decisions,
        "began_ns": timeline.began,
        "ended_ns": timeline.ended,
        "entries_forgotten_before": timeline.forgotten,
        "device": timeline.about.device,
        "policies": timeline.policies.iter().map(|p| json!({ "at_ns": p.at, "policy": p.policy })).collect::<Vec<_>>(),
        "operators": timeline.operators.len(),
        "requests": timeline.requests.len(),
        "holds": holds(timeline)
            .into_iter()
            .map(|Held { reason, count, total, longest }| {
                json!({
                    "reason": reason.name(),
                    "count": count,
                    "total_ns": total,
                    "longest_ns": longest.ended - longest.since,
                    "longest_since_ns": longest.since,
                })
            })
            .collect::<Vec<_>>(),
    })
}

fn text(timeline: &Timeline) -> String {
    let About { device, .. } = &timeline.about;
    let s = |ns: Nanos| ns as f64 / NS_PER_S;
    let policies: Vec<&str> = timeline.policies.iter().map(|p| p.policy.name.name()).collect();
    let mut out = format!(
        "the same {} decisions from {} inputs\n{:.3} to {:.3} s, policy {}{}{device}\n{} operators, {} requests\n",
        timeline.replayed.decisions,
        timeline.replayed.inputs,
        s(timeline.began),
        s(timeline.ended),
        policies.join(", then "),
        if device.is_empty() { "" } else { ", " },
        timeline.operators.len(),
        timeline.requests.len(),
    );
    if timeline.forgotten > 0 {
        out += &format!("{} earlier entries were forgotten\n", timeline.forgotten);
    }
    for Held { reason, count, total, longest } in holds(timeline) {
        out += &format!(
            "held back {count} times, {:.3} s in all, {:.3} ms at the longest, from {:.3} s: {} ({})\n",
            s(total),
            (longest.ended - longest.since) as f64 / 1e6,
            s(longest.since),
            reason.name(),
            reason.words()
        );
    }
    out
}

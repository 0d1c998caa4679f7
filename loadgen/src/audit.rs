//! Whether the load generator itself was the bottleneck: every run ends in a verdict about the instrument.
//!
//! The bounds are judgements. A request sent 5 ms late changes a TTFT of 100 ms by a twentieth, and that is where this stops
//! calling the figures the server's; where the first token takes seconds, as when everything is sent at once, 2 % of it may pass. A loop that stood still for 1 % of the run has touched one request in a hundred, which
//! is what p99 shows. Pure.

use std::fmt;

use serde_json::{Map, Value, json};

/// 99 % of requests leave within this of the moment they could, milliseconds.
pub const LAG_P99_MS_MAX: f64 = 5.0;
/// … or within this share of the median time to first token, where that is longer.
pub const LAG_SHARE_MAX: f64 = 0.02;
/// Share of the run during which a thread's loop may stand still.
pub const STALLED_SHARE_MAX: f64 = 0.01;
/// A loop that is this late stands still, milliseconds.
pub const STALL_MS: f64 = 10.0;
/// Share of its time that a thread may be busy.
pub const BUSY_SHARE_MAX: f64 = 0.95;
/// Share of the asked rate that must be reached.
pub const RATE_SHARE_MIN: f64 = 0.99;
/// Below this many seconds of schedule a rate says nothing about the client: one late request is a percent.
const RATE_SECONDS_MIN: f64 = 1.0;

/// How one thread of the engine fared.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Thread {
    /// Time it ran, nanoseconds.
    pub wall_ns: u64,
    /// CPU time it used, nanoseconds.
    pub cpu_ns: u64,
    /// Longest stall of its loop, nanoseconds.
    pub stall_max_ns: u64,
    /// Sum of its stalls longer than [`STALL_MS`], nanoseconds.
    pub stalled_ns: u64,
    /// Connections it opened.
    pub connections: usize,
    /// Connections that failed for want of a descriptor.
    pub descriptors_missed: usize,
}

/// The health of the client over a run.
#[derive(Clone, Debug, Default)]
pub struct Audit {
    /// Requests planned.
    pub planned: usize,
    /// Requests sent.
    pub sent: usize,
    /// Percentile 99 of the client's own lag, milliseconds.
    pub lag_p99_ms: f64,
    /// Largest, milliseconds.
    pub lag_max_ms: f64,
    /// Median time to first token, milliseconds: what the lag is held against.
    pub ttft_p50_ms: f64,
    /// Requests a second that the schedule asked for; `None` where everything was due at once, sessions think or a limit
    /// on concurrency sets the rate.
    pub asked_rate: Option<f64>,
    /// Requests a second that left, over the same stretch.
    pub achieved_rate: f64,
    /// Descriptors the process may open.
    pub descriptors_max: u64,
    /// The threads.
    pub threads: Vec<Thread>,
}

/// What the audit says.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// The figures are the server's.
    Valid,
    /// The client was too slow; why, in a sentence.
    ClientLimited(String),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Valid => f.write_str("VALID"),
            Self::ClientLimited(cause) => write!(f, "CLIENT-LIMITED: {cause}"),
        }
    }
}

impl Audit {
    /// Largest share of its time that a thread was busy.
    pub fn busy_max(&self) -> f64 {
        self.threads.iter().map(|t| share(t.cpu_ns, t.wall_ns)).fold(0.0, f64::max)
    }

    /// Longest stall of any thread, milliseconds.
    pub fn stall_max_ms(&self) -> f64 {
        self.threads.iter().map(|t| t.stall_max_ns).max().unwrap_or(0) as f64 / 1e6
    }

    fn stalled_share(&self) -> f64 {
        self.threads.iter().map(|t| share(t.stalled_ns, t.wall_ns)).fold(0.0, f64::max)
    }

    /// The verdict: the first cause in the order of how much it explains.
    pub fn verdict(&self) -> Verdict {
        let missed: usize = self.threads.iter().map(|t| t.descriptors_missed).sum();
        let cause = if missed > 0 {
            format!(
                "{missed} connections failed for want of a descriptor, the limit is {}; raise it (ulimit -n) or lower the concurrency",
                self.descriptors_max
            )
        } else if self.sent < self.planned {
            format!("{} of {} requests were not sent", self.planned - self.sent, self.planned)
        } else if self.busy_max() > BUSY_SHARE_MAX {
            format!(
                "a thread was busy {:.0} % of the time; use more --threads on free cores, or more machines",
                self.busy_max() * 100.0
            )
        } else if self.stalled_share() > STALLED_SHARE_MAX {
            format!(
                "a thread stood still for {:.1} % of the run, at longest {:.0} ms; the machine is too busy for it",
                self.stalled_share() * 100.0,
                self.stall_max_ms()
            )
        } else if self.lag_p99_ms > LAG_P99_MS_MAX.max(LAG_SHARE_MAX * self.ttft_p50_ms) {
            format!("requests left late: p99 {:.1} ms, at most {:.1} ms", self.lag_p99_ms, self.lag_max_ms)
        } else if self.asked_rate.is_some_and(|asked| self.achieved_rate < asked * RATE_SHARE_MIN) {
            format!(
                "{:.1} requests/s left where the schedule asked for {:.1}",
                self.achieved_rate,
                self.asked_rate.unwrap_or_default()
            )
        } else {
            return Verdict::Valid;
        };
        Verdict::ClientLimited(cause)
    }

    /// Two lines for people: what was looked at, then the verdict.
    pub fn table(&self) -> String {
        format!(
            "client     lag p99 {:.2} ms, max {:.2} ms; longest stall {:.1} ms; busiest thread {:.0} %; {} connections on {} threads\n{}\n",
            self.lag_p99_ms,
            self.lag_max_ms,
            self.stall_max_ms(),
            self.busy_max() * 100.0,
            self.threads.iter().map(|t| t.connections).sum::<usize>(),
            self.threads.len(),
            self.verdict()
        )
    }

    /// Flat figures, all of which begin with `client_`.
    pub fn figures(&self) -> Map<String, Value> {
        let mut out = Map::new();
        let mut set = |name: &str, value: Value| out.insert(format!("client_{name}"), value);
        set("lag_p99_ms", json!(self.lag_p99_ms));
        set("lag_max_ms", json!(self.lag_max_ms));
        set("stall_max_ms", json!(self.stall_max_ms()));
        set("stalled_share", json!(self.stalled_share()));
        set("busy_share", json!(self.busy_max()));
        set("achieved_rate", json!(self.achieved_rate));
        if let Some(asked) = self.asked_rate {
            set("asked_rate", json!(asked));
        }
        set("connections", json!(self.threads.iter().map(|t| t.connections).sum::<usize>()));
        set("threads", json!(self.threads.len()));
        set("verdict", json!(self.verdict().to_string()));
        out
    }
}

/// Rates over the stretch from the first to the last of `scheduled` against the same requests' `sent` moments (both
/// ascending, nanoseconds): asked and achieved, requests a second. Asked is `None` for a stretch too short to tell.
pub fn rates(scheduled_ns: &[u64], sent_ns: &[u64]) -> (Option<f64>, f64) {
    let rate = |at: &[u64]| match (at.first(), at.last()) {
        (Some(first), Some(last)) if last > first => (at.len() - 1) as f64 / ((last - first) as f64 / 1e9),
        _ => 0.0,
    };
    let long = |at: &[u64]| at.len() > 1 && (at[at.len() - 1] - at[0]) as f64 / 1e9 >= RATE_SECONDS_MIN;
    (long(scheduled_ns).then(|| rate(scheduled_ns)), rate(sent_ns))
}

fn share(part: u64, whole: u64) -> f64 {
    part as f64 / (whole as f64).max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn healthy() -> Audit {
        let thread = Thread { wall_ns: 1_000_000_000, cpu_ns: 300_000_000, ..Thread::default() };
        Audit {
            planned: 10,
            sent: 10,
            asked_rate: Some(10.0),
            achieved_rate: 10.0,
            threads: vec![thread; 2],
            ..Audit::default()
        }
    }

    #[test]
    fn every_cause_is_found_and_health_is_valid() {
        assert_eq!(healthy().verdict(), Verdict::Valid);
        let slow_server = Audit { lag_p99_ms: 30.0, ttft_p50_ms: 2000.0, ..healthy() };
        assert_eq!(slow_server.verdict(), Verdict::Valid, "30 ms of two seconds");
        type Case = (fn(&mut Audit), &'static str);
        let cases: [Case; 6] = [
            (|a| a.threads[1].descriptors_missed = 3, "ulimit -n"),
            (|a| a.sent = 9, "1 of 10 requests were not sent"),
            (|a| a.threads[0].cpu_ns = 990_000_000, "busy 99 %"),
            (|a| a.threads[1].stalled_ns = 20_000_000, "stood still for 2.0 %"),
            (|a| a.lag_p99_ms = 6.0, "left late: p99 6.0 ms"),
            (|a| a.achieved_rate = 9.0, "9.0 requests/s left where the schedule asked for 10.0"),
        ];
        for (harm, want) in cases {
            let mut audit = healthy();
            harm(&mut audit);
            let verdict = audit.verdict().to_string();
            assert!(verdict.starts_with("CLIENT-LIMITED: ") && verdict.contains(want), "{verdict}");
            assert!(audit.table().ends_with(&format!("{verdict}\n")));
        }
    }

    #[test]
    fn rates_are_over_the_schedule_s_stretch() {
        let second = 1_000_000_000;
        assert_eq!(rates(&[0, second, 2 * second], &[0, second, 4 * second]), (Some(1.0), 0.5));
        assert_eq!(rates(&[0, 0], &[0, 5]).0, None, "everything at once has no rate");
        assert_eq!(rates(&[], &[]), (None, 0.0));
    }
}

//! The part of a daemon's status that is shown. A field that a daemon does not know is zero.

use serde::Deserialize;

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Status {
    pub device: Device,
    pub memory: Memory,
    pub policy: Policy,
    pub uptime_ns: u64,
    pub in_flight: u64,
    pub queued: u64,
    pub calls_waiting: u64,
    pub faults_total: u64,
    pub hints_total: u64,
    pub round_trips_total: u64,
    pub phases: Vec<Phase>,
    pub holds: Vec<Hold>,
    pub held_now: Vec<Held>,
    pub occupancy: Occupancy,
    pub requests: Requests,
    pub scheduling: Scheduling,
    pub recording: Option<Recording>,
    pub sessions: Vec<Session>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Device {
    pub label: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Memory {
    pub used_bytes: u64,
    pub total_bytes: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Policy {
    pub name: String,
    pub tpot_ms: f64,
    pub ttft_ms: f64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Phase {
    pub phase: String,
    pub queued: u64,
    pub in_flight: u64,
    pub completed: u64,
    pub measured_ns: u64,
    pub held_ns: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Hold {
    pub reason: String,
    pub count: u64,
    pub total_ns: u64,
    pub longest_ns: u64,
    pub expired: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Held {
    pub session: u64,
    pub reason: String,
    pub held_ns: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Occupancy {
    pub busy_ns: u64,
    pub both_ns: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Requests {
    pub waiting: u64,
    pub prefilling: u64,
    pub decoding: u64,
    pub finished: u64,
    pub aborted: u64,
    pub ttft: Histogram,
    pub tpot: Histogram,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Histogram {
    pub count: u64,
    pub buckets: Vec<(usize, u64)>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Scheduling {
    pub decode_steps: u64,
    pub decode_steps_late: u64,
    pub coruns: u64,
    pub overloads: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Recording {
    pub bytes: u64,
    pub bytes_max: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Session {
    pub session: u64,
    pub pid: u32,
    pub process: String,
    pub memory_bytes: u64,
    pub items: u64,
    pub in_flight: u64,
    pub back_pressure: bool,
    pub round_trips: u64,
    pub requests: Requests,
    pub phases: Vec<Phase>,
}

/// Where a bucket begins, milliseconds: `crates/runtime/src/latency.rs`.
fn bucket_ms(index: usize) -> f64 {
    if index == 0 { 0.0 } else { 0.1 * ((index as f64 - 1.0) / 8.0).exp2() }
}

impl Histogram {
    /// Percentiles of what came since `before`, milliseconds: the middle of the bucket. `None` if nothing came.
    pub fn percentile_since(&self, before: &Self, part: f64) -> Option<f64> {
        let had = |index| before.buckets.iter().find(|(i, _)| *i == index).map_or(0, |(_, n)| *n);
        let new: Vec<(usize, u64)> = self.buckets.iter().map(|&(i, n)| (i, n.saturating_sub(had(i)))).collect();
        let total: u64 = new.iter().map(|(_, n)| n).sum();
        let rank = ((part * total as f64).ceil() as u64).max(1);
        let mut seen = 0;
        new.into_iter().find_map(|(index, n)| {
            seen += n;
            (seen >= rank && n > 0).then(|| (bucket_ms(index) + bucket_ms(index + 1)) / 2.0)
        })
    }
}

//! What is shown of one daemon: its last status, and rates between that and an earlier one. Pure.

use std::collections::VecDeque;

use serde::Serialize;

use super::status::{Histogram, Phase, Requests, Status};

/// Rates are over the last so many seconds …
const RATE_S: f64 = 5.0;
/// … and percentiles of requests, which come less often, over so many.
const LATENCY_S: f64 = 60.0;
const NS_PER_S: f64 = 1e9;

/// One daemon's recent past.
#[derive(Debug, Default)]
pub struct History {
    shots: VecDeque<Status>,
    /// Why there is no answer, if there is none.
    pub lost: Option<String>,
}

impl History {
    /// An answer.
    pub fn push(&mut self, status: Status) {
        self.lost = None;
        // Another start of the daemon counts from zero.
        if self.shots.back().is_some_and(|last| status.uptime_ns < last.uptime_ns) {
            self.shots.clear();
        }
        let oldest = status.uptime_ns.saturating_sub((LATENCY_S * NS_PER_S) as u64);
        self.shots.push_back(status);
        while self.shots.len() > 2 && self.shots[1].uptime_ns <= oldest {
            self.shots.pop_front();
        }
    }

    /// The last answer.
    pub fn last(&self) -> Option<&Status> {
        self.shots.back()
    }

    fn before(&self, seconds: f64) -> Option<&Status> {
        let last = self.shots.back()?;
        let from = last.uptime_ns.saturating_sub((seconds * NS_PER_S) as u64);
        self.shots.iter().take(self.shots.len() - 1).find(|s| s.uptime_ns >= from).or(self.shots.iter().rev().nth(1))
    }
}

/// One daemon.
#[derive(Clone, Debug, Default, Serialize)]
pub struct View {
    pub admin: String,
    /// Why there is no answer; what follows is the last one then.
    pub lost: Option<String>,
    pub device: String,
    pub policy: String,
    pub tpot_target_ms: f64,
    pub ttft_target_ms: f64,
    pub uptime_s: f64,
    /// Part of the time in which the device held anything.
    pub busy: f64,
    /// Part of that in which it held prefill and decode.
    pub together: f64,
    pub memory_used_bytes: u64,
    pub memory_total_bytes: u64,
    pub in_flight: u64,
    pub queued: u64,
    pub calls_waiting: u64,
    pub round_trips_per_s: f64,
    pub hints_per_s: f64,
    pub faults: u64,
    pub decode_steps_per_s: f64,
    /// Part of the decode steps that were late.
    pub late: f64,
    /// Times that the policy let both phases run side by side.
    pub coruns_per_s: f64,
    /// Times that both phases wanted more than there is, since the daemon's start.
    pub overloads: u64,
    pub recording: Option<String>,
    pub phases: Vec<PhaseRow>,
    pub requests: RequestRow,
    pub holds: Vec<HoldRow>,
    pub sessions: Vec<SessionRow>,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct PhaseRow {
    pub phase: String,
    pub in_flight: u64,
    pub queued: u64,
    pub operators_per_s: f64,
    /// Part of the time that its operators took on the device.
    pub device: f64,
    /// Streams held back, as a part of the time: over 1 if several were.
    pub held: f64,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct RequestRow {
    pub waiting: u64,
    pub prefilling: u64,
    pub decoding: u64,
    pub finished_per_s: f64,
    pub aborted: u64,
    pub ttft_p50_ms: Option<f64>,
    pub ttft_p99_ms: Option<f64>,
    pub tpot_p50_ms: Option<f64>,
    pub tpot_p99_ms: Option<f64>,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct HoldRow {
    pub reason: String,
    /// Streams held back for it now.
    pub now: usize,
    pub per_s: f64,
    /// Part of the time.
    pub time: f64,
    pub longest_ms: f64,
    pub expired: u64,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct SessionRow {
    pub session: u64,
    pub pid: u32,
    pub process: String,
    pub memory_bytes: u64,
    pub queued: u64,
    pub in_flight: u64,
    pub back_pressure: bool,
    pub prefill_per_s: f64,
    pub decode_per_s: f64,
    pub round_trips_per_s: f64,
    pub requests: RequestRow,
    /// Why its streams are held back now.
    pub held: Option<String>,
}

/// Change a second of a counter that only grows.
fn rate(now: u64, before: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { now.saturating_sub(before) as f64 / seconds } else { 0.0 }
}

fn requests(now: &Requests, before: Option<&Requests>, earlier: Option<&Requests>, seconds: f64) -> RequestRow {
    let nothing = Histogram::default();
    let of = |now: &Histogram, then: Option<&Histogram>, part| now.percentile_since(then.unwrap_or(&nothing), part);
    let (ttft, tpot) = (earlier.map(|r| &r.ttft), earlier.map(|r| &r.tpot));
    RequestRow {
        waiting: now.waiting,
        prefilling: now.prefilling,
        decoding: now.decoding,
        finished_per_s: before.map_or(0.0, |b| rate(now.finished, b.finished, seconds)),
        aborted: now.aborted,
        ttft_p50_ms: of(&now.ttft, ttft, 0.5),
        ttft_p99_ms: of(&now.ttft, ttft, 0.99),
        tpot_p50_ms: of(&now.tpot, tpot, 0.5),
        tpot_p99_ms: of(&now.tpot, tpot, 0.99),
    }
}

fn phase_rate(now: &[Phase], before: Option<&Vec<Phase>>, phase: &str, seconds: f64) -> f64 {
    let of = |phases: &[Phase]| phases.iter().find(|p| p.phase == phase).map_or(0, |p| p.completed);
    before.map_or(0.0, |b| rate(of(now), of(b), seconds))
}

/// What to show.
pub fn view(admin: &str, history: &History) -> View {
    let lost = history.lost.clone();
    let Some(now) = history.last() else { return View { admin: admin.to_owned(), lost, ..View::default() } };
    let before = history.before(RATE_S);
    let earlier = history.before(LATENCY_S);
    let seconds = before.map_or(0.0, |b| now.uptime_ns.saturating_sub(b.uptime_ns) as f64 / NS_PER_S);
    let per_s = |of: &dyn Fn(&Status) -> u64| before.map_or(0.0, |b| rate(of(now), of(b), seconds));
    let part = |of: &dyn Fn(&Status) -> u64| per_s(of) / NS_PER_S;
    let busy = part(&|s| s.occupancy.busy_ns);
    let phases = now.phases.iter().enumerate().map(|(i, p)| {
        let of = |s: &Status, of: fn(&Phase) -> u64| s.phases.get(i).map_or(0, of);
        PhaseRow {
            phase: p.phase.clone(),
            in_flight: p.in_flight,
            queued: p.queued,
            operators_per_s: per_s(&|s| of(s, |p| p.completed)),
            device: part(&|s| of(s, |p| p.measured_ns)),
            held: part(&|s| of(s, |p| p.held_ns)),
        }
    });
    let holds = now.holds.iter().enumerate().filter(|(_, h)| h.count > 0).map(|(i, h)| HoldRow {
        reason: h.reason.clone(),
        now: now.held_now.iter().filter(|held| held.reason == h.reason).count(),
        per_s: per_s(&|s| s.holds.get(i).map_or(0, |h| h.count)),
        time: part(&|s| s.holds.get(i).map_or(0, |h| h.total_ns)),
        longest_ms: h.longest_ns as f64 / 1e6,
        expired: h.expired,
    });
    let sessions = now.sessions.iter().map(|s| {
        let of = |status: &'_ Status| status.sessions.iter().position(|b| b.session == s.session);
        let then = before.and_then(|b| Some(&b.sessions[of(b)?]));
        let long_ago = earlier.and_then(|b| Some(&b.sessions[of(b)?]));
        let held = now.held_now.iter().find(|h| h.session == s.session);
        SessionRow {
            session: s.session,
            pid: s.pid,
            process: s.process.clone(),
            memory_bytes: s.memory_bytes,
            queued: s.items.saturating_sub(s.in_flight),
            in_flight: s.in_flight,
            back_pressure: s.back_pressure,
            prefill_per_s: phase_rate(&s.phases, then.map(|t| &t.phases), "prefill", seconds),
            decode_per_s: phase_rate(&s.phases, then.map(|t| &t.phases), "decode", seconds),
            round_trips_per_s: then.map_or(0.0, |t| rate(s.round_trips, t.round_trips, seconds)),
            requests: requests(&s.requests, then.map(|t| &t.requests), long_ago.map(|t| &t.requests), seconds),
            held: held.map(|h| h.reason.clone()),
        }
    });
    let steps = per_s(&|s| s.scheduling.decode_steps);
    let late = per_s(&|s| s.scheduling.decode_steps_late);
    View {
        admin: admin.to_owned(),
        lost,
        device: now.device.label.clone(),
        policy: now.policy.name.clone(),
        tpot_target_ms: now.policy.tpot_ms,
        ttft_target_ms: now.policy.ttft_ms,
        uptime_s: now.uptime_ns as f64 / NS_PER_S,
        busy,
        together: if busy > 0.0 { part(&|s| s.occupancy.both_ns) / busy } else { 0.0 },
        memory_used_bytes: now.memory.used_bytes,
        memory_total_bytes: now.memory.total_bytes,
        in_flight: now.in_flight,
        queued: now.queued,
        calls_waiting: now.calls_waiting,
        round_trips_per_s: per_s(&|s| s.round_trips_total),
        hints_per_s: per_s(&|s| s.hints_total),
        faults: now.faults_total,
        decode_steps_per_s: steps,
        late: if steps > 0.0 { late / steps } else { 0.0 },
        coruns_per_s: per_s(&|s| s.scheduling.coruns),
        overloads: now.scheduling.overloads,
        recording: now.recording.as_ref().map(|r| format!("{}/{} MiB", r.bytes >> 20, r.bytes_max >> 20)),
        phases: phases.collect(),
        requests: requests(&now.requests, before.map(|b| &b.requests), earlier.map(|b| &b.requests), seconds),
        holds: holds.collect(),
        sessions: sessions.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn status(second: u64) -> Status {
        serde_json::from_value(json!({
            "uptime_ns": second * 1_000_000_000,
            "policy": { "name": "phase", "tpot_ms": 50.0, "something": "new" },
            "occupancy": { "busy_ns": second * 800_000_000, "both_ns": second * 200_000_000 },
            "phases": [
                { "phase": "prefill", "completed": 100 * second, "measured_ns": second * 500_000_000, "queued": 7 },
                { "phase": "decode", "completed": 1000 * second, "held_ns": second * 250_000_000 },
            ],
            "holds": [
                { "reason": "decode_due", "count": 0 },
                { "reason": "decode_has_slack", "count": 3 * second, "total_ns": second * 250_000_000, "longest_ns": 90_000_000 },
            ],
            "held_now": [{ "session": 4, "reason": "decode_has_slack", "held_ns": 5 }],
            "requests": {
                "decoding": 2, "finished": 2 * second,
                "ttft": { "count": second, "buckets": [[81, 1], [100, second]] },
                "tpot": { "count": 0, "buckets": [] },
            },
            "sessions": [{
                "session": 4, "pid": 77, "process": "engine", "items": 9, "in_flight": 2, "round_trips": 40 * second,
                "phases": [{ "phase": "decode", "completed": 1000 * second }],
            }],
        }))
        .unwrap()
    }

    #[test]
    fn rates_are_differences_over_the_daemons_own_time() {
        let mut history = History::default();
        (0..=200).for_each(|second| history.push(status(second)));
        assert!(history.shots.len() <= 62, "{} kept", history.shots.len());
        let v = view("a:1", &history);
        assert!((v.busy - 0.8).abs() < 1e-9 && (v.together - 0.25).abs() < 1e-9);
        assert_eq!((v.phases[0].operators_per_s, v.phases[0].queued), (100.0, 7));
        assert!((v.phases[0].device - 0.5).abs() < 1e-9 && (v.phases[1].held - 0.25).abs() < 1e-9);
        assert_eq!(v.holds.len(), 1, "reasons that never held anything are left out");
        assert_eq!((v.holds[0].per_s, v.holds[0].now, v.holds[0].longest_ms), (3.0, 1, 90.0));
        assert_eq!((v.requests.finished_per_s, v.requests.tpot_p50_ms), (2.0, None));
        // Bucket 100 goes from 531 to 579 ms; the one in bucket 81 is older than a minute.
        assert!(v.requests.ttft_p50_ms.is_some_and(|ms| (531.0..579.0).contains(&ms)), "{:?}", v.requests);
        let s = &v.sessions[0];
        assert_eq!((s.queued, s.decode_per_s, s.round_trips_per_s), (7, 1000.0, 40.0));
        assert_eq!(s.held.as_deref(), Some("decode_has_slack"));
    }

    #[test]
    fn another_start_of_the_daemon_begins_anew_and_silence_keeps_the_last_picture() {
        let mut history = History::default();
        history.push(status(100));
        history.push(status(3));
        assert_eq!(view("a:1", &history).phases[0].operators_per_s, 0.0);
        history.lost = Some("no answer".into());
        let v = view("a:1", &history);
        assert_eq!((v.lost.as_deref(), v.uptime_s), (Some("no answer"), 3.0));
        history.push(status(4));
        assert_eq!(view("a:1", &history).lost, None);
        assert!(view("b:2", &History::default()).phases.is_empty());
    }
}

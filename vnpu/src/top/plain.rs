//! The same as lines of text, for logs, pipes and scripts.

use std::fmt::Write as _;

use super::draw::{bytes, count, millis, uptime};
use super::view::View;

/// A daemon as lines; the first begins with its address, the others are indented.
pub fn plain(v: &View) -> String {
    let mut out = String::new();
    let state = match &v.lost {
        Some(why) => format!("lost: {why}"),
        None => format!("up {}", uptime(v.uptime_s)),
    };
    let _ = writeln!(out, "{}  {state}  policy {}  {}", v.admin, v.policy, v.device);
    if v.phases.is_empty() {
        return out;
    }
    let part = |part: f64| format!("{:.0} %", part * 100.0);
    let recording = v.recording.as_ref().map_or(String::new(), |r| format!("  recording {r}"));
    let _ = writeln!(
        out,
        "  busy {}  both phases {}  memory {} of {}  on device {}  queued {}  calls waiting {}  round trips/s {}{recording}",
        part(v.busy),
        part(v.together),
        bytes(v.memory_used_bytes),
        bytes(v.memory_total_bytes),
        v.in_flight,
        v.queued,
        v.calls_waiting,
        count(v.round_trips_per_s),
    );
    for p in v.phases.iter().filter(|p| p.operators_per_s > 0.0 || p.queued + p.in_flight > 0) {
        let _ = writeln!(
            out,
            "  {}: on device {}  queued {}  operators/s {}  device {}  held {}",
            p.phase,
            p.in_flight,
            p.queued,
            count(p.operators_per_s),
            part(p.device),
            part(p.held),
        );
    }
    let r = &v.requests;
    let _ = writeln!(
        out,
        "  requests: waiting {}  prefill {}  decode {}  finished/s {}  TTFT p50 {} p99 {} ms  TPOT p50 {} p99 {} ms",
        r.waiting,
        r.prefilling,
        r.decoding,
        count(r.finished_per_s),
        millis(r.ttft_p50_ms),
        millis(r.ttft_p99_ms),
        millis(r.tpot_p50_ms),
        millis(r.tpot_p99_ms),
    );
    for h in v.holds.iter().filter(|h| h.per_s > 0.0 || h.now > 0) {
        let _ = writeln!(
            out,
            "  held back, {}: now {}  per s {}  time {}  longest {} ms",
            h.reason,
            h.now,
            count(h.per_s),
            part(h.time),
            millis(Some(h.longest_ms)),
        );
    }
    for s in &v.sessions {
        let _ = writeln!(
            out,
            "  session {} {} (pid {}): memory {}  queued {}  prefill op/s {}  decode op/s {}  TTFT p50 {} ms  TPOT p50 {} ms{}",
            s.session,
            s.process,
            s.pid,
            bytes(s.memory_bytes),
            s.queued,
            count(s.prefill_per_s),
            count(s.decode_per_s),
            millis(s.requests.ttft_p50_ms),
            millis(s.requests.tpot_p50_ms),
            s.held.as_ref().map_or(String::new(), |held| format!("  held: {held}")),
        );
    }
    out
}

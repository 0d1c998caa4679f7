//! What is seen of a run while it goes on: on a terminal a few lines redrawn in place, elsewhere a plain line now and then.
//!
//! The engine counts in atomics and, once a request, under a lock that only this reader shares; percentiles here are of a
//! coarse histogram and for the eye alone.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::clock::process_cpu_ns;
use crate::engine::Progress;

/// Width of the bar, characters.
const BAR: usize = 30;
/// How often lines are redrawn on a terminal.
const REDRAWN: Duration = Duration::from_millis(500);
/// How often a line is written where there is no terminal.
const WRITTEN: Duration = Duration::from_secs(10);
/// How often it is looked whether the run has ended.
const LOOKED: Duration = Duration::from_millis(20);

/// What is planned.
pub struct Planned {
    /// Requests.
    pub total: usize,
    /// When requests are due, ascending, nanoseconds from the start; turns that wait for an answer are not among them.
    pub due_ns: Vec<u64>,
    /// Threads of the client.
    pub threads: usize,
}

/// One look at a run.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    seconds: f64,
    total: usize,
    due: usize,
    sent: usize,
    done: usize,
    failed: usize,
    /// Chunks a second since the look before.
    chunk_rate: f64,
    /// Milliseconds, p50 and p99 so far.
    ttft_ms: Option<[f64; 2]>,
    tpot_ms: Option<[f64; 2]>,
    /// Share of its threads' time that the client computes, since the look before.
    busy: f64,
    lag_max_ms: f64,
}

/// Draws until `ended`.
pub fn draw(progress: &Progress, planned: &Planned, ended: &AtomicBool) {
    let mut err = std::io::stderr();
    let terminal = err.is_terminal();
    let period = if terminal { REDRAWN } else { WRITTEN };
    let began = Instant::now();
    let (mut looked, mut chunks, mut cpu_ns, mut drawn) = (began, 0, process_cpu_ns(), 0);
    while !ended.load(Ordering::Acquire) {
        std::thread::sleep(LOOKED);
        let since = looked.elapsed();
        if since < period {
            continue;
        }
        looked = Instant::now();
        let (chunks_before, cpu_before_ns) = (chunks, cpu_ns);
        chunks = progress.chunks.load(Ordering::Relaxed);
        cpu_ns = process_cpu_ns();
        let seen = Seen {
            chunk_rate: (chunks - chunks_before) as f64 / since.as_secs_f64(),
            busy: (cpu_ns - cpu_before_ns) as f64 / since.as_nanos() as f64 / planned.threads.max(1) as f64,
            ..look(progress, planned, began.elapsed())
        };
        let text = if terminal { over(drawn, &lines(&seen)) } else { line(&seen) + "\n" };
        drawn = if terminal { lines(&seen).len() } else { 0 };
        let _ = err.write_all(text.as_bytes());
    }
    let _ = err.write_all(over(drawn, &[]).as_bytes());
}

fn look(progress: &Progress, planned: &Planned, elapsed: Duration) -> Seen {
    let latencies = progress.latencies.lock().unwrap_or_else(PoisonError::into_inner);
    let marks = |h: &hdrhistogram::Histogram<u32>| {
        (!h.is_empty()).then(|| [0.5, 0.99].map(|q| h.value_at_quantile(q) as f64 / 1e3))
    };
    let load = |n: &std::sync::atomic::AtomicUsize| n.load(Ordering::Relaxed);
    Seen {
        seconds: elapsed.as_secs_f64(),
        total: planned.total,
        due: planned.due_ns.partition_point(|at| u128::from(*at) <= elapsed.as_nanos()),
        sent: load(&progress.sent),
        done: load(&progress.done),
        failed: load(&progress.failed),
        ttft_ms: marks(&latencies.ttft_us),
        tpot_ms: marks(&latencies.tpot_us),
        lag_max_ms: latencies.lag_max_ns as f64 / 1e6,
        ..Seen::default()
    }
}

/// `lines` in the place of as many as were `drawn` before.
fn over(drawn: usize, lines: &[String]) -> String {
    let mut out = if drawn > 0 { format!("\x1b[{drawn}A\r\x1b[J") } else { String::new() };
    lines.iter().for_each(|line| out.extend([line.as_str(), "\n"]));
    out
}

/// For a log.
fn line(seen: &Seen) -> String {
    let Seen { seconds, total, sent, done, failed, chunk_rate, busy, .. } = seen;
    let mut out = format!(
        "{seconds:.0} s: sent {sent} of {total}, {} in flight, {done} done, {failed} failed, {chunk_rate:.0} chunks/s",
        sent.saturating_sub(*done)
    );
    if let Some([p50, _]) = seen.ttft_ms {
        let _ = write!(out, ", TTFT p50 {p50:.1} ms");
    }
    let _ = write!(out, ", client busy {:.0} %", busy * 100.0);
    out
}

/// For a terminal.
fn lines(seen: &Seen) -> Vec<String> {
    let share = seen.done as f64 / seen.total.max(1) as f64;
    let full = (share.clamp(0.0, 1.0) * BAR as f64) as usize;
    let marks = |name: &str, at: Option<[f64; 2]>| match at {
        Some([p50, p99]) => format!("{name} p50 {p50:.1} p99 {p99:.1} ms"),
        None => format!("{name} -"),
    };
    let rate = |n: usize| n as f64 / seen.seconds.max(1e-9);
    vec![
        format!(
            "[{}{}] {:.0} %  {:.0} s  {} of {} done",
            "#".repeat(full),
            ".".repeat(BAR - full),
            share * 100.0,
            seen.seconds,
            seen.done,
            seen.total
        ),
        format!(
            "requests  due {:.1}/s, sent {:.1}/s, {} in flight, {} failed",
            rate(seen.due),
            rate(seen.sent),
            seen.sent.saturating_sub(seen.done),
            seen.failed
        ),
        format!(
            "latency   {}, {}, {:.0} chunks/s of ended requests",
            marks("TTFT", seen.ttft_ms),
            marks("TPOT", seen.tpot_ms),
            seen.chunk_rate
        ),
        format!("client    busy {:.0} %, latest sending {:.2} ms late", seen.busy * 100.0, seen.lag_max_ms),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_say_how_far_how_fast_how_well() {
        let seen = Seen {
            seconds: 10.0,
            total: 80,
            due: 41,
            sent: 40,
            done: 20,
            failed: 3,
            ttft_ms: Some([51.0, 80.0]),
            busy: 0.25,
            ..Seen::default()
        };
        let text = lines(&seen).join("\n");
        for want in [
            "[#######......",
            "25 %",
            "due 4.1/s, sent 4.0/s, 20 in flight, 3 failed",
            "p99 80.0 ms, TPOT -",
            "busy 25 %",
        ] {
            assert!(text.contains(want), "no `{want}` in\n{text}");
        }
        assert!(line(&seen).starts_with("10 s: sent 40 of 80, 20 in flight"), "{}", line(&seen));
    }

    #[test]
    fn lines_are_drawn_over_those_before() {
        assert_eq!(over(0, &["a".into(), "b".into()]), "a\nb\n");
        assert_eq!(over(2, &["c".into()]), "\x1b[2A\r\x1b[Jc\n");
        assert_eq!(over(0, &[]), "");
    }
}

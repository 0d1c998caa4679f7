//! The report on the console, in the layout that users of vLLM's benchmark know, with what that leaves out beside it.
//!
//! A latency's first number counts from the schedule. Behind it stand the same from send, where that is another, and the
//! 95 % interval, `-` where the samples are too few to say. Pure.

use std::fmt::Write;

use crate::measure::Samples;
use crate::report::Report;
use crate::stats;
use crate::steady::Steady;

const WIDTH: usize = 50;
/// Kinds of failure that are named.
const ERRORS_SHOWN: usize = 5;

/// The table, of those latencies that `metrics` names; `percentiles` beside mean and median.
pub fn table(report: &Report, steady: Option<&Steady>, metrics: &[String], percentiles: &[f64]) -> String {
    let mut out = format!("{:=^WIDTH$}\n", " Serving Benchmark Result ");
    let per_s = |n: f64| n / report.duration_s.max(1e-9);
    let mut line = |name: &str, value: String| {
        let _ = writeln!(out, "{name:<40} {value:<10}");
    };
    line("Successful requests:", report.completed.to_string());
    line("Failed requests:", report.failed.to_string());
    if report.cancelled > 0 {
        line("Cancelled requests:", report.cancelled.to_string());
    }
    line("Benchmark duration (s):", format!("{:.2}", report.duration_s));
    line("Total input tokens:", report.prompt_tokens.to_string());
    if report.prompts_off > 0 {
        line("Prompts of another length than planned:", report.prompts_off.to_string());
    }
    line("Total generated tokens:", report.output_tokens.to_string());
    line("Request throughput (req/s):", format!("{:.2}", per_s(report.completed as f64)));
    if let Some(good) = report.good {
        let share = good as f64 / (report.completed + report.failed).max(1) as f64;
        line("Request goodput (req/s):", format!("{:.2}  ({:.1} % of requests)", per_s(good as f64), share * 100.0));
    }
    line("Output token throughput (tok/s):", format!("{:.2}", per_s(report.output_tokens as f64)));
    line(
        "Total Token throughput (tok/s):",
        format!("{:.2}", per_s((report.output_tokens + report.prompt_tokens) as f64)),
    );
    if let Some(steady) = steady {
        let (from, to) = (steady.from_ns as f64 / 1e9, steady.to_ns as f64 / 1e9);
        line("Steady output throughput (tok/s):", format!("{:.2}  ({from:.1} s to {to:.1} s)", steady.tokens_per_s));
    }
    for (title, short, name, from_send) in [
        ("Time to First Token", "TTFT", "ttft", Some("ttft_from_send")),
        ("Time per Output Token (excl. 1st token)", "TPOT", "tpot", None),
        ("Inter-token Latency (between chunks)", "ITL", "itl", None),
        ("Token Gap (between tokens)", "gap", "token_gap", None),
        ("End-to-end Latency", "E2EL", "e2el", Some("e2el_from_send")),
    ] {
        let shown = metrics.iter().any(|m| m == name);
        let Some(samples) = report.metric(name).filter(|s| shown && !s.sorted().is_empty()) else { continue };
        let sent = from_send.and_then(|name| report.metric(name));
        let _ = writeln!(out, "{title:-^WIDTH$}");
        let mean = stats::mean(samples.sorted());
        latency(&mut out, &format!("Mean {short} (ms):"), samples.mean(), sent.and_then(Samples::mean), mean);
        let marks = [50.0].iter().chain(percentiles.iter().filter(|p| **p != 50.0));
        for &p in marks {
            let name = if p == 50.0 { format!("Median {short} (ms):") } else { format!("P{p} {short} (ms):") };
            let values = samples.sorted();
            let interval = stats::quantile(values.len(), p / 100.0, |rank| values[rank]);
            latency(&mut out, &name, samples.p(p), sent.and_then(|s| s.p(p)), interval);
        }
    }
    let _ = writeln!(out, "{:=<WIDTH$}", "");
    for (error, count) in report.errors.iter().take(ERRORS_SHOWN) {
        let _ = writeln!(out, "failed {count}×: {error}");
    }
    out
}

fn latency(out: &mut String, name: &str, value: Option<f64>, sent: Option<f64>, interval: Option<stats::Interval>) {
    let Some(value) = value else { return };
    let interval = interval.map_or("-".into(), |i| format!("[{:.2}, {:.2}]", i.low, i.high));
    let _ = match sent {
        Some(sent) => writeln!(out, "{name:<40} {value:<10.2} from send {sent:<10.2} {interval}"),
        None => writeln!(out, "{name:<40} {value:<10.2} {:<20} {interval}", ""),
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::{Objectives, Outcome};

    #[test]
    fn the_lines_are_those_that_scripts_look_for() {
        let outcomes: Vec<Outcome> = (0..20)
            .map(|i| Outcome {
                index: i,
                sent_ns: 1_000_000,
                chunks_ns: vec![(i as u64 + 5) * 1_000_000, 50_000_000],
                output_tokens: 2,
                prompt_tokens: 3,
                ..Outcome::default()
            })
            .collect();
        let text = table(&Report::new(&outcomes, &Objectives::default()), None, &["ttft".into()], &[90.0, 99.0]);
        let find = |name: &str| {
            let line = text.lines().find(|l| l.starts_with(name)).unwrap_or_else(|| panic!("no `{name}` in\n{text}"));
            line[name.len()..].split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(find("Successful requests:"), ["20"]);
        assert_eq!(find("Total input tokens:"), ["60"]);
        assert_eq!(find("Median TTFT (ms):")[..4], ["14.00", "from", "send", "13.00"]);
        assert_eq!(find("P99 TTFT (ms):").last().unwrap(), "-", "twenty samples say nothing of p99");
        assert!(!text.contains("TPOT"), "only what was asked for");
        assert!(text.starts_with("============ Serving Benchmark Result ============\n"), "{text}");
    }
}

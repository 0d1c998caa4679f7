//! Two results against each other, and two targets over repeated rounds: differences, intervals, verdicts. Pure.

use crate::result::Saved;
use crate::stats::{self, Estimate, Verdict};

/// Metrics compared, and their marks.
const METRICS: [&str; 6] = ["ttft", "ttft_from_send", "tpot", "itl", "token_gap", "e2el"];
const MARKS: [&str; 4] = ["mean", "p50", "p90", "p99"];

/// One figure of both sides.
#[derive(Clone, Debug)]
pub struct Row {
    /// Which, as in `ttft p99`.
    pub name: String,
    /// Its unit.
    pub unit: &'static str,
    /// The first side's.
    pub a: f64,
    /// The second side's.
    pub b: f64,
    /// Second less first.
    pub difference: Estimate,
    /// What that says about the second.
    pub verdict: Verdict,
}

/// The two runs did not send the same.
#[derive(Debug, thiserror::Error, PartialEq)]
#[error("the runs sent different workloads ({a} and {b}): same flags, seed and data make the same one")]
pub struct DifferentWorkloads {
    /// Hash of the first.
    pub a: String,
    /// Hash of the second.
    pub b: String,
}

/// Compares two results.
///
/// # Errors
/// If their workloads differ: a difference would say nothing about the servers.
pub fn saved(a: &Saved, b: &Saved) -> Result<Vec<Row>, DifferentWorkloads> {
    if a.workload != b.workload {
        return Err(DifferentWorkloads { a: short(&a.workload), b: short(&b.workload) });
    }
    let mut rows = Vec::new();
    let mut push = |name: String, unit, ea: Estimate, eb: Estimate, lower_is_better| {
        let difference = stats::difference(&ea, &eb);
        let verdict = Verdict::of(&difference, lower_is_better);
        rows.push(Row { name, unit, a: ea.value, b: eb.value, difference, verdict });
    };
    for name in METRICS {
        let find = |s: &'_ Saved| s.metrics.iter().position(|(n, _)| n == name);
        let (Some(ia), Some(ib)) = (find(a), find(b)) else { continue };
        for mark in MARKS {
            if let (Some(ea), Some(eb)) = (a.metrics[ia].1.mark(mark), b.metrics[ib].1.mark(mark)) {
                push(format!("{name} {mark}"), "ms", ea, eb, true);
            }
        }
    }
    let share = |good: usize, s: &Saved| {
        let all = s.completed + s.failed;
        Estimate { value: good as f64 / all.max(1) as f64, interval: stats::share(good, all) }
    };
    push("completed".into(), "share", share(a.completed, a), share(b.completed, b), false);
    if let (Some(ga), Some(gb)) = (a.good, b.good) {
        push("goodput".into(), "share", share(ga, a), share(gb, b), false);
    }
    // One number a run has no interval; `ab` repeats runs and has one.
    let single = |value| Estimate { value, interval: None };
    push("throughput".into(), "tok/s", single(a.tokens_per_s), single(b.tokens_per_s), false);
    Ok(rows)
}

fn short(hash: &str) -> String {
    hash.chars().take(12).collect()
}

/// One figure over rounds in which both sides took turns: the mean of the rounds' differences.
pub fn rounds(name: &str, unit: &'static str, a: &[f64], b: &[f64], lower_is_better: bool) -> Option<Row> {
    let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| b - a).collect();
    let difference = stats::repeated(&differences)?;
    let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
    Some(Row {
        name: name.to_owned(),
        unit,
        a: mean(a),
        b: mean(b),
        verdict: Verdict::of(&difference, lower_is_better),
        difference,
    })
}

/// A table of rows.
pub fn table(rows: &[Row]) -> String {
    let mut out = format!("{:<22} {:>11} {:>11} {:>24}  {:<6} B is\n", "", "A", "B", "B − A, 95 % interval", "");
    for row in rows {
        let interval = match row.difference.interval {
            Some(i) => format!("{:+.3} [{:+.3}, {:+.3}]", row.difference.value, i.low, i.high),
            None => format!("{:+.3} [too few samples]", row.difference.value),
        };
        out += &format!(
            "{:<22} {:>11.3} {:>11.3} {:>24}  {:<6} {}\n",
            row.name,
            row.a,
            row.b,
            interval,
            row.unit,
            row.verdict.name()
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::Audit;
    use crate::measure::{Objectives, Outcome};
    use crate::report::Report;
    use crate::result::{About, save};

    fn result(workload: &str, slower_ms: u64) -> Saved {
        let outcomes: Vec<Outcome> = (0..400)
            .map(|i| {
                let first = (100 + slower_ms + i % 20) * 1_000_000;
                let chunks_ns = vec![first, first + 10_000_000 + i % 7];
                Outcome { index: i as usize, chunks_ns, output_tokens: 2, ..Outcome::default() }
            })
            .collect();
        let report = Report::new(&outcomes, &Objectives::default());
        let about = About { workload: workload.into(), ..About::default() };
        Saved::load(&save(&about, &report, &Audit::default(), &outcomes, false).to_string()).unwrap()
    }

    fn verdict(rows: &[Row], name: &str) -> Verdict {
        rows.iter().find(|r| r.name == name).unwrap_or_else(|| panic!("no {name}")).verdict
    }

    #[test]
    fn a_real_difference_is_found_and_no_other() {
        let rows = saved(&result("w", 0), &result("w", 30)).unwrap();
        for name in ["ttft mean", "ttft p50", "ttft p99", "e2el p50"] {
            assert_eq!(verdict(&rows, name), Verdict::Worse, "{name}");
        }
        for name in ["tpot p50", "itl p99", "completed", "throughput"] {
            assert_eq!(verdict(&rows, name), Verdict::NoEvidence, "{name}");
        }
        assert_eq!(verdict(&saved(&result("w", 30), &result("w", 0)).unwrap(), "ttft p50"), Verdict::Better);
        assert!(table(&rows).contains("too few samples"), "throughput is one number");
    }

    #[test]
    fn different_workloads_are_refused() {
        assert!(saved(&result("w", 0), &result("v", 0)).unwrap_err().to_string().contains("w and v"));
    }

    #[test]
    fn rounds_are_judged_by_their_pairs() {
        // Rounds differ far more from each other than A and B within one.
        let (a, b) = ([10.0, 50.0, 90.0, 20.0], [11.0, 51.2, 90.9, 21.1]);
        let row = rounds("ttft p50", "ms", &a, &b, true).unwrap();
        assert_eq!(row.verdict, Verdict::Worse);
        assert!(rounds("x", "ms", &a[..1], &b[..1], true).is_none());
    }
}

//! What `phase` must reach, case by case: `SPECIFICATION.md` has the same list in words.

use std::fmt::Write;

use sched::policy::PolicyName;

use sim::Report;

use super::row::{Row, key};
use crate::figures::Figures;

/// One requirement in one case.
#[derive(Clone, Debug, PartialEq)]
pub struct Bar {
    /// What is required.
    pub name: &'static str,
    /// Of which case.
    pub case: String,
    /// What was reached.
    pub value: f64,
    /// What is wanted.
    pub want: f64,
    /// True if more is better.
    pub at_least: bool,
    /// What the clairvoyant schedule reaches, where that can be said: beyond it nobody gets.
    pub oracle: Option<f64>,
}

impl Bar {
    /// True if it is reached; differences beyond the sixth digit do not count.
    pub fn met(&self) -> bool {
        let slack = 1e-6 * self.want.abs();
        if self.at_least { self.value >= self.want - slack } else { self.value <= self.want + slack }
    }
}

/// Load at which nobody may have a higher goodput.
const COMPARED_LOAD: &str = "80 %";

/// Every requirement that the rows say something about.
pub fn check(rows: &[Row]) -> Vec<Bar> {
    let mut bars = Vec::new();
    for group in rows.chunk_by(|a, b| a.case() == b.case()) {
        let of = |name: &str| group.iter().find(|r| r.contender == name);
        let Some(phase) = of("phase") else { continue };
        let case = format!("({}) {}, {}, ω = {}", phase.experiment, phase.workload, phase.load, phase.omega);
        let mut bar = |name, value: f64, want: f64, at_least: bool, oracle: Option<f64>| {
            bars.push(Bar { name, case: case.clone(), value, want, at_least, oracle });
        };
        let ours = &phase.report;
        // The paper's comparison has four slots; with more there is no head-of-line blocking to remove.
        if phase.experiment == 'a'
            && phase.workload.ends_with(" 4 slots")
            && let (Some(base), Some(oracle)) = (of("static-colocation"), of("oracle"))
        {
            let (base, oracle) = (&base.report, &oracle.report);
            bar("mean TTFT, × the oracle's", ours.ttft_s.mean / oracle.ttft_s.mean, 1.15, false, Some(1.0));
            let less = if phase.workload.starts_with("1024/256") { 92.0 } else { 98.0 };
            let reduction = |r: &Report| (1.0 - r.ttft_s.mean / base.ttft_s.mean) * 100.0;
            bar("mean TTFT, % below static co-location", reduction(ours), less, true, Some(reduction(oracle)));
            let throughput = |r: &Report| r.tokens_per_s / base.tokens_per_s;
            bar("throughput, × static co-location", throughput(ours), 1.0, true, Some(throughput(oracle)));
            let gain = oracle.tokens_per_s - base.tokens_per_s;
            // Under half a per cent is the tail of the run, not a gain from overlap.
            if phase.omega > 0.0 && gain > 5e-3 * base.tokens_per_s {
                let part = (ours.tokens_per_s - base.tokens_per_s) / gain;
                bar("throughput, part of the oracle's gain", part, 0.9, true, Some(1.0));
            }
            let tpot = |r: &Report| (r.tpot_slot_s.mean / base.tpot_slot_s.mean - 1.0) * 100.0;
            let most = if phase.load == "at once" { 4.0 } else { 1.0 };
            bar("mean TPOT in the slot, % above", tpot(ours), most, false, Some(tpot(oracle)));
        }
        if phase.experiment == 'b' {
            let policy = |r: &&Row| PolicyName::ALL.iter().any(|p| p.name() == r.contender) && r.contender != "phase";
            // The same requests arrive for everyone: parts of them compare, rates would count how long the last one takes.
            let best = group.iter().filter(policy).map(|r| r.report.goodput_share).fold(0.0, f64::max);
            let oracle = of("oracle").map(|o| o.report);
            if phase.load == COMPARED_LOAD && best > 0.0 {
                let clairvoyant = oracle.map(|o| o.goodput_share / best);
                bar("goodput, × the best other policy", ours.goodput_share / best, 1.0, true, clairvoyant);
            }
            if phase.load == "at once" {
                let part = |r: &Report| r.tokens_per_s / phase.ideal_tokens_per_s;
                bar("throughput, × the ideal bound", part(ours), 0.95, true, oracle.as_ref().map(part));
            } else if let Some(oracle) = oracle.filter(|o| o.ttft_s.p99 < 1.0) {
                let p99 = oracle.ttft_s.p99;
                bar("TTFT p99 where the oracle's is under 1 s", ours.ttft_s.p99, 1.0, false, Some(p99));
            }
        }
    }
    bars
}

/// One requirement over all its cases.
pub struct Summary<'a> {
    /// What is required.
    pub name: &'static str,
    /// Its bars.
    pub bars: Vec<&'a Bar>,
}

impl<'a> Summary<'a> {
    /// Of every requirement, in the order of their first case.
    pub fn of(bars: &'a [Bar]) -> Vec<Self> {
        let mut out: Vec<Self> = Vec::new();
        for bar in bars {
            match out.iter_mut().find(|s| s.name == bar.name) {
                Some(summary) => summary.bars.push(bar),
                None => out.push(Self { name: bar.name, bars: vec![bar] }),
            }
        }
        out
    }

    /// Cases that meet it.
    pub fn met(&self) -> usize {
        self.bars.iter().filter(|b| b.met()).count()
    }

    /// The case that is furthest from being met, or nearest to being missed.
    pub fn worst(&self) -> Option<&'a Bar> {
        let margin = |b: &Bar| if b.at_least { b.value - b.want } else { b.want - b.value };
        self.bars.iter().copied().min_by(|a, b| margin(a).total_cmp(&margin(b)))
    }
}

/// The bars that are missed, and how many are met.
pub fn table(bars: &[Bar]) -> String {
    let missed: Vec<&Bar> = bars.iter().filter(|b| !b.met()).collect();
    let mut out = format!("\n`phase` meets {} of {} requirements\n", bars.len() - missed.len(), bars.len());
    for bar in missed {
        let sign = if bar.at_least { "≥" } else { "≤" };
        let oracle = bar.oracle.map_or(String::new(), |o| format!("; the oracle has {o:.3}"));
        let (case, name, value, want) = (&bar.case, bar.name, bar.value, bar.want);
        let _ = writeln!(out, "  missed  {case:<44} {name:<42} {value:>9.3}, wanted {sign} {want}{oracle}");
    }
    out
}

/// Every bar's value, and the counts.
pub fn figures(bars: &[Bar], figures: &mut Figures) {
    for bar in bars {
        figures.set(format!("bar_{}_{}", key(&bar.case.replace("ω", "omega")), key(bar.name)), bar.value);
    }
    figures.set("bars", bars.len() as f64);
    figures.set("bars_met", bars.iter().filter(|b| b.met()).count() as f64);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(contender: &str, ttft_s: f64, tokens_per_s: f64) -> Row {
        let mut report = Report { tokens_per_s, ..Report::default() };
        report.ttft_s.mean = ttft_s;
        report.tpot_slot_s.mean = 0.0155;
        Row {
            experiment: 'a',
            workload: "1024/256, 4 slots".into(),
            load: "at once".into(),
            omega: 0.5,
            contender: contender.into(),
            report,
            ideal_tokens_per_s: 300.0,
        }
    }

    #[test]
    fn bars_compare_with_the_baseline_and_the_oracle() {
        let rows = [row("static-colocation", 100.0, 200.0), row("phase", 9.0, 209.0), row("oracle", 8.0, 210.0)];
        let bars = check(&rows);
        let met: Vec<(&str, bool)> = bars.iter().map(|b| (b.name, b.met())).collect();
        assert_eq!(
            met,
            [
                ("mean TTFT, × the oracle's", true),
                ("mean TTFT, % below static co-location", false),
                ("throughput, × static co-location", true),
                ("throughput, part of the oracle's gain", true),
                ("mean TPOT in the slot, % above", true),
            ]
        );
        let text = table(&bars);
        assert!(text.contains("meets 4 of 5") && text.contains("91.000, wanted ≥ 92; the oracle has 92.000"), "{text}");
    }

    #[test]
    fn a_summary_shows_the_case_that_is_furthest_off() {
        let bar = |name, value, at_least| Bar { name, case: String::new(), value, want: 1.0, at_least, oracle: None };
        let bars = [bar("a", 2.0, true), bar("b", 0.5, false), bar("a", 0.9, true), bar("b", 0.7, false)];
        let got: Vec<_> = Summary::of(&bars).iter().map(|s| (s.name, s.met(), s.worst().unwrap().value)).collect();
        assert_eq!(got, [("a", 1, 0.9), ("b", 2, 0.7)]);
    }
}

//! `cargo xtask bench dispatch`: dispatch policies in virtual time, against baselines and bounds.
//!
//! | experiment | requests |
//! |---|---|
//! | a | the paper's four Qwen2.5-7B workloads, 200 prompts at once and Poisson at 90 % of capacity |
//! | b | excerpts of Azure conversation, Azure code and Mooncake traces at 50–100 % of capacity, and all at once |
//! | c | a prefill-heavy and a decode-heavy tenant on one device |
//! | agree | the demo's trace with real processes, against the same in virtual time |
//!
//! Every run is `sim::run`: the real dispatcher and the emulated device's timing model, at ω = 0, 0.5 and 1. Every figure is
//! *emulated*. What the issue asks of `phase` is computed beside the figures ([`bars`]) and printed, met or not; nothing
//! here fails because a policy is slow.

mod agree;
mod bars;
mod contender;
mod html;
mod plot;
mod row;
mod timeline;
mod workload;

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::Measure;
use crate::figures::Figures;
use contender::Contender;
use row::Row;
use workload::Case;

/// Overlaps shown.
pub const OMEGAS: [f64; 3] = [0.0, 0.5, 1.0];

/// What to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Experiment {
    /// The paper's four workloads.
    A,
    /// Traces.
    B,
    /// Two tenants.
    C,
    /// Virtual time against real processes.
    Agree,
}

/// Runs the benchmark.
pub fn run(measure: &Measure, experiment: Option<Experiment>, html: Option<&Path>, trace: Option<&Path>) -> Result<()> {
    let mut figures = Figures::default();
    figures.set_text("device", "emulated Ascend910B3, timing, paced, virtual time");
    if experiment == Some(Experiment::Agree) {
        agree::run(measure.quick, &mut figures)?;
        return figures.write(measure.json.as_deref());
    }
    let wanted = |e| experiment.is_none_or(|only| only == e);
    let mut cases = Vec::new();
    if wanted(Experiment::A) {
        cases.extend(workload::paper(measure.quick)?);
    }
    if wanted(Experiment::B) {
        cases.extend(workload::traces(measure.quick)?);
    }
    if wanted(Experiment::C) {
        cases.extend(workload::tenants(measure.quick)?);
    }
    if let Some(path) = trace {
        timeline::write(&cases, path)?;
    }
    let rows = simulate(&cases);
    for row in &rows {
        row.figures(&mut figures);
    }
    print!("{}", row::tables(&rows));
    let bars = bars::check(&rows);
    print!("{}", bars::table(&bars));
    bars::figures(&bars, &mut figures);
    figures.write(measure.json.as_deref())?;
    if let Some(path) = html {
        std::fs::write(path, html::page(&rows, &bars)).with_context(|| format!("writing {}", path.display()))?;
        println!("plots: {}", path.display());
    }
    Ok(())
}

/// Every case under every contender; the rows come in the order of the cases whatever thread ran them.
fn simulate(cases: &[Case]) -> Vec<Row> {
    let jobs: Vec<(&Case, Contender)> =
        cases.iter().flat_map(|case| contender::all(case).into_iter().map(move |c| (case, c))).collect();
    // Who never has two operators side by side does the same at every overlap: one run stands for all.
    let runs: Vec<usize> = (0..jobs.len()).filter(|&i| stands_for(&jobs, i) == i).collect();
    let made = each(runs.len(), |i| {
        let (case, contender) = jobs[runs[i]];
        contender.run(case)
    });
    let rows: Vec<Row> = (0..jobs.len())
        .flat_map(|i| {
            let run = runs.binary_search(&stands_for(&jobs, i)).unwrap_or(0);
            let case = jobs[i].0;
            made[run].iter().map(|row| Row {
                omega: case.omega,
                ideal_tokens_per_s: case.ideal_tokens_per_s(),
                ..row.clone()
            })
        })
        .collect();
    // A case of two tenants gives two cases of rows: bring those of one together.
    let mut cases: Vec<_> = Vec::new();
    for row in &rows {
        let case = row.case();
        if !cases.contains(&case) {
            cases.push(case);
        }
    }
    let place = |row: &Row| cases.iter().position(|&case| case == row.case()).unwrap_or(usize::MAX);
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by_key(|&i| place(&rows[i]));
    order.into_iter().map(|i| rows[i].clone()).collect()
}

/// The job whose run gives this one's figures: itself, or the first that differs in an overlap which does not matter.
fn stands_for(jobs: &[(&Case, Contender)], index: usize) -> usize {
    let (case, contender) = jobs[index];
    if contender.overlaps() {
        return index;
    }
    let same = |(other, c): &(&Case, Contender)| *c == contender && other.same_but_for_overlap(case);
    jobs.iter().position(same).unwrap_or(index)
}

/// `work(0)` to `work(count - 1)` on all cores, results in order. Says how far it is every few seconds.
fn each<T: Send>(count: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    const SAYS_EVERY: Duration = Duration::from_secs(5);
    let next = AtomicUsize::new(0);
    let done: Mutex<(Vec<(usize, T)>, Instant)> = Mutex::new((Vec::new(), Instant::now()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(count.max(1));
    let began = Instant::now();
    eprintln!("{count} simulations on {threads} threads");
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        return;
                    }
                    let made = work(index);
                    let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                    done.0.push((index, made));
                    if done.1.elapsed() >= SAYS_EVERY {
                        done.1 = Instant::now();
                        eprintln!("{} of {count} after {} s", done.0.len(), began.elapsed().as_secs());
                    }
                }
            });
        }
    });
    let (mut done, _) = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, made)| made).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_on_all_cores_comes_back_in_order() {
        assert_eq!(each(100, |i| i * i), (0..100).map(|i| i * i).collect::<Vec<_>>());
        assert!(each(0, |i| i).is_empty());
    }

    /// Runs that stand for others must be what those would have been.
    #[test]
    fn who_overlaps_nothing_does_the_same_at_every_overlap() {
        let (mut low, mut high) =
            (workload::tenants(true).unwrap().remove(0), workload::tenants(true).unwrap().remove(2));
        for case in [&mut low, &mut high] {
            case.requests.truncate(12);
        }
        assert!(low.same_but_for_overlap(&high) && low.omega != high.omega);
        for contender in contender::all(&low) {
            let [a, b] = [&low, &high].map(|case| contender.run(case));
            if !contender.overlaps() {
                assert!(a.iter().zip(&b).all(|(a, b)| a.report == b.report), "{}", contender.name());
            }
        }
        let jobs: Vec<(&Case, Contender)> =
            [&low, &high].into_iter().flat_map(|c| contender::all(c).into_iter().map(move |k| (c, k))).collect();
        let half = jobs.len() / 2;
        for (i, (_, contender)) in jobs.iter().enumerate() {
            let want = if contender.overlaps() { i } else { i % half };
            assert_eq!(stands_for(&jobs, i), want, "{}", contender.name());
        }
    }
}

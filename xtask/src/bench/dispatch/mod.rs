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
mod workload;

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

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
pub fn run(measure: &Measure, experiment: Option<Experiment>, html: Option<&Path>) -> Result<()> {
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
    let rows = simulate(&cases)?;
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
fn simulate(cases: &[Case]) -> Result<Vec<Row>> {
    let jobs: Vec<(&Case, Contender)> =
        cases.iter().flat_map(|case| contender::all(case).into_iter().map(move |c| (case, c))).collect();
    let next = AtomicUsize::new(0);
    let rows: Mutex<Vec<(usize, Vec<Row>)>> = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(jobs.len().max(1));
    eprintln!("{} simulations on {threads} threads", jobs.len());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some((case, contender)) = jobs.get(index) else { return };
                    let mine = contender.run(case);
                    let mut rows = rows.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    rows.push((index, mine));
                    if rows.len().is_multiple_of(100) {
                        eprintln!("{} of {} done", rows.len(), jobs.len());
                    }
                }
            });
        }
    });
    let mut rows = rows.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    rows.sort_by_key(|(index, _)| *index);
    let rows: Vec<Row> = rows.into_iter().flat_map(|(_, rows)| rows).collect();
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
    Ok(order.into_iter().map(|i| rows[i].clone()).collect())
}

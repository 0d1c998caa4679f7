//! `cargo xtask bench phases`: how often the daemon is right about which phase a step is in.
//!
//! The reference engine, which writes down what its steps are, in its three ways of batching, with hints and without; and
//! unmodified `generate` of the published transformers and torch_npu, without hints. Fails below what is promised.

use anyhow::{Result, ensure};
use system_tests::phases::{Accuracy, Batching, engine};

use crate::Measure;
use crate::build::{self, Scratch};
use crate::figures::Figures;
use crate::torch::phases::RIGHT_MIN;
use crate::torch::{self, environment};

/// Promised with hints.
const HINTED_RIGHT_MIN: f64 = 0.99;

/// Runs the benchmark; `without_torch` leaves PyTorch out.
pub fn run(measure: &Measure, without_torch: bool) -> Result<()> {
    build::programs()?;
    let scratch = Scratch::new()?;
    let requests = if measure.quick { 40 } else { 200 };
    let mut figures = Figures::default();
    let mut missed = Vec::new();
    println!("\n{:<28} {:>7} {:>9} {:>12}", "", "steps", "right", "operators");
    let mut show = |name: &str, accuracy: &Accuracy, least: f64| {
        let (steps, operators) = (accuracy.of_steps(), accuracy.of_operators());
        println!("{name:<28} {:>7} {:>8.2} % {:>10.2} %", accuracy.steps, steps * 100.0, operators * 100.0);
        let key = name.replace([' ', ','], "_").replace("__", "_");
        figures.set(format!("{key}_steps"), accuracy.steps as f64);
        figures.set(format!("{key}_steps_right"), steps);
        figures.set(format!("{key}_operators_right"), operators);
        if steps < least {
            missed.push(format!("{name}: {:.2} %, promised {:.0} %", steps * 100.0, least * 100.0));
        }
    };
    for batching in Batching::ALL {
        for (hints, how, least) in [(true, "with hints", HINTED_RIGHT_MIN), (false, "without", RIGHT_MIN)] {
            let accuracy = engine(scratch.path(), batching, hints, requests)?;
            show(&format!("engine {}, {how}", batching.name()), &accuracy, least);
        }
    }
    if !without_torch {
        let environment = environment::ready(torch::FIRST)?;
        let rounds = if measure.quick { 1 } else { 4 };
        show("torch_npu generate, without", &torch::phases::accuracy(&environment, rounds)?, RIGHT_MIN);
    }
    println!(
        "emulated device; a step is right if it was found with its phase and its number of tokens, an operator if it was\nqueued under its step's phase"
    );
    figures.write(measure.json.as_deref())?;
    ensure!(missed.is_empty(), "below what is promised: {}", missed.join("; "));
    Ok(())
}

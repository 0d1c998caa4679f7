//! `cargo xtask bench dispatch-cost`: what the daemon spends on an operator, and how many devices one thread serves.
//!
//! **CPU.** A client posts steps of Qwen2.5-7B to a real daemon at a fixed rate; the processor time of the daemon's threads
//! over that time, from the kernel's accounts, over the operators posted. The device takes no time, so that all of it is the
//! daemon's: taking records in, weighing, classifying, queueing, deciding, submitting, completing, learning, answering.
//! `idle` is what it spends without a client. Operators at even distances, which no engine posts, keep the thread awake
//! between them; that figure is shown beside.
//!
//! **Devices.** One dispatch thread with one paced device, and with two, each decoding without end: the part of the time in
//! which a device was idle.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sched::policy::PolicyName;
use stack::{Daemon, program_path};

use crate::Measure;
use crate::build::{self, Scratch};
use crate::figures::{Figures, median};

/// Operators a second: promised for this rate.
const RATE: f64 = 50_000.0;
/// Promised for the policies, microseconds.
const COST_MAX_US: f64 = 1.0;

/// Runs the benchmark.
pub fn run(measure: &Measure) -> Result<()> {
    build::programs()?;
    build::example("runtime", "load")?;
    build::example("runtime", "busy_devices")?;
    let scratch = Scratch::new()?;
    let mut figures = Figures::default();
    let (rounds, seconds) = if measure.quick { (3, 1.0) } else { (7, 2.0) };
    cost(scratch.path(), rounds, seconds, &mut figures)?;
    devices(if measure.quick { 3.0 } else { 15.0 }, if measure.quick { 3 } else { 5 }, &mut figures)?;
    figures.write(measure.json.as_deref())
}

/// Processor time of a process so far, seconds: of all its threads, and of the one called `dispatch`.
fn cpu_s(pid: u32) -> Result<(f64, f64)> {
    let (mut all, mut dispatch) = (0.0, 0.0);
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?.path();
        // A thread may end while we look.
        let Ok(name) = std::fs::read_to_string(task.join("comm")) else { continue };
        let Ok(account) = std::fs::read_to_string(task.join("schedstat")) else { continue };
        let ns: f64 = account.split_whitespace().next().context("schedstat")?.parse()?;
        all += ns * 1e-9;
        if name.trim() == "dispatch" {
            dispatch += ns * 1e-9;
        }
    }
    Ok((all, dispatch))
}

/// What `work` costs a daemon: seconds of all its threads, and of the dispatch thread; and what `work` answers.
fn spent<T>(daemon: &Daemon, work: impl FnOnce() -> Result<T>) -> Result<(f64, f64, T)> {
    let before = cpu_s(daemon.program.pid())?;
    let value = work()?;
    let after = cpu_s(daemon.program.pid())?;
    Ok((after.0 - before.0, after.1 - before.1, value))
}

/// Posts for so long; operators, and seconds it took.
fn post(daemon: &Daemon, rate: f64, seconds: f64, even: bool) -> Result<(f64, f64)> {
    let mut command = Command::new(program_path("examples/load")?);
    command.arg(&daemon.socket).args([rate.to_string(), seconds.to_string()]);
    if even {
        command.arg("even");
    }
    let out = command.output().context("starting load")?;
    ensure!(out.status.success(), "load: {}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8_lossy(&out.stdout);
    let mut numbers = text.split_whitespace().map(str::parse::<f64>);
    let mut number = || numbers.next().context("load prints two numbers")?.context("load prints numbers");
    Ok((number()?, number()?))
}

fn cost(dir: &Path, rounds: usize, seconds: f64, figures: &mut Figures) -> Result<()> {
    let mut daemons = PolicyName::ALL
        .iter()
        .map(|policy| {
            let (name, spec) = (policy.name(), "Ascend910B3:timing");
            Ok((name, Daemon::start_named(dir, name, spec, name)?, Vec::new(), Vec::new(), Vec::new()))
        })
        .collect::<Result<Vec<_>>>()?;
    // One after the other in each round, so that a drift of the machine meets all.
    for _ in 0..rounds {
        for (_, daemon, steps, thread, even) in &mut daemons {
            let (all_s, dispatch_s, (operators, took_s)) = spent(daemon, || post(daemon, RATE, seconds, false))?;
            ensure!(
                operators / took_s > 0.9 * RATE,
                "only {:.0} operators/s were posted: is the machine busy?",
                operators / took_s
            );
            steps.push(all_s / operators * 1e6);
            thread.push(dispatch_s / operators * 1e6);
            let (all_s, _, (operators, _)) = spent(daemon, || post(daemon, RATE, seconds / 2.0, true))?;
            even.push(all_s / operators * 1e6);
        }
    }
    let start = Instant::now();
    let (idle_s, ..) = spent(&daemons[0].1, || {
        std::thread::sleep(Duration::from_secs(1));
        Ok(())
    })?;
    let idle = idle_s / start.elapsed().as_secs_f64();
    println!(
        "\ndaemon CPU an operator at {RATE:.0} operators/s, µs; medians of {rounds} interleaved rounds, emulated device"
    );
    println!("{:<14} {:>12} {:>16} {:>14}", "policy", "whole steps", "dispatch thread", "even distances");
    for (name, _, steps, thread, even) in &daemons {
        println!("{name:<14} {:>12.3} {:>16.3} {:>14.3}", median(steps), median(thread), median(even));
        figures.set(format!("dispatch_us_{name}"), median(steps));
        figures.set(format!("dispatch_even_us_{name}"), median(even));
    }
    println!("without a client: {:.2} ms of CPU a second", idle * 1e3);
    figures.set("dispatch_idle_ms_per_s", idle * 1e3);
    let worst = daemons.iter().map(|(_, _, steps, ..)| median(steps)).fold(0.0, f64::max);
    let verdict = if worst <= COST_MAX_US { "within" } else { "above" };
    println!("worst policy {worst:.3} µs, {verdict} the {COST_MAX_US:.0} µs promised");
    figures.set("dispatch_us", worst);
    Ok(())
}

/// Idle share and steps a second of each of `count` devices on one thread.
fn busy(count: usize, seconds: f64) -> Result<Vec<(f64, f64)>> {
    let out = Command::new(program_path("examples/busy_devices")?)
        .args([count.to_string(), seconds.to_string()])
        .output()
        .context("starting busy_devices")?;
    ensure!(out.status.success(), "busy_devices: {}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let line = |line: &str| -> Result<(f64, f64)> {
        let (busy, steps) = line.split_once(' ').context("two numbers a line")?;
        Ok((1.0 - busy.parse::<f64>()?, steps.parse()?))
    };
    text.lines().map(line).collect()
}

fn devices(seconds: f64, rounds: usize, figures: &mut Figures) -> Result<()> {
    let (mut one, mut two) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        one.extend(busy(1, seconds / rounds as f64)?);
        two.extend(busy(2, seconds / rounds as f64)?);
    }
    let [one, two] = [one, two].map(|runs| {
        let (idle, steps): (Vec<f64>, Vec<f64>) = runs.into_iter().unzip();
        (median(&idle), median(&steps))
    });
    println!(
        "\none dispatch thread, paced devices that decode Qwen2.5-7B without end, {rounds} interleaved rounds (emulated)"
    );
    for (name, (idle, steps)) in [("one device", one), ("two devices", two)] {
        println!("{name:<14} idle {:>6.2} % of the time, {steps:.1} steps/s each", idle * 100.0);
    }
    figures.set("one_device_idle_share", one.0);
    figures.set("two_devices_idle_share", two.0);
    figures.set("two_devices_steps_ratio", two.1 / one.1);
    Ok(())
}

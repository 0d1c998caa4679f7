//! Whole answers: latency on one connection, requests a second and processor time a request on many.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::client::{Client, chat, percentile};
use super::contender::Contender;
use super::pinned::on_other_core;
use crate::figures::{Figures, median};

/// Connections under load.
const CONNECTIONS: usize = 32;
/// Sizes of the request's body, and how figures call them.
const BODIES: [(usize, &str); 2] = [(1024, "1k"), (32 << 10, "32k")];

#[derive(Default)]
struct Runs {
    p50_us: Vec<f64>,
    p99_us: Vec<f64>,
    per_s: Vec<f64>,
    cpu_us: Vec<f64>,
    resident_mib: Vec<f64>,
}

/// Every contender in turn, again and again; `cpu_of` says whose processor time counts for it.
///
/// # Errors
/// If a request fails.
pub fn run(all: &[Contender], cpu_of: &[usize], quick: bool, figures: &mut Figures) -> Result<()> {
    let (rounds, seconds) = if quick { (2, 0.5) } else { (5, 1.5) };
    let time = Duration::from_secs_f64(seconds);
    for (bytes, size) in BODIES {
        let mut runs: Vec<Runs> = all.iter().map(|_| Runs::default()).collect();
        for round in 0..rounds {
            for turn in 0..all.len() {
                // Who goes first changes, so that a drift of the machine favours nobody.
                let i = (turn + round) % all.len();
                let (contender, meter) = (&all[i], &all[cpu_of[i]]);
                let load = |connections| on_other_core(closed_loop(contender, bytes, connections, time));
                let mut alone = load(1)?;
                runs[i].p50_us.push(percentile(&mut alone, 50.0));
                runs[i].p99_us.push(percentile(&mut alone, 99.0));
                let (before, start) = (meter.usage()?, Instant::now());
                let many = load(CONNECTIONS)?.len() as f64;
                let (after, took) = (meter.usage()?, start.elapsed());
                runs[i].per_s.push(many / took.as_secs_f64());
                runs[i].cpu_us.push((after.cpu_s - before.cpu_s) / many * 1e6);
                runs[i].resident_mib.push(after.resident_mib);
            }
        }
        table(all, &runs, rounds, size, figures);
    }
    Ok(())
}

fn table(all: &[Contender], runs: &[Runs], rounds: usize, size: &str, figures: &mut Figures) {
    println!(
        "\nwhole answers, {size} body; medians of {rounds} interleaved rounds; one connection (latency), {CONNECTIONS} (the rest)"
    );
    println!(
        "{:<16} {:>12} {:>12} {:>12} {:>16} {:>10}",
        "", "added p50 µs", "added p99 µs", "requests/s", "CPU µs/request", "RSS MiB"
    );
    for (contender, run) in all.iter().zip(runs) {
        let added = |of: fn(&Runs) -> &Vec<f64>| median(of(run)) - median(of(&runs[0]));
        let (p50, p99) = (added(|r| &r.p50_us), added(|r| &r.p99_us));
        let (per_s, cpu_us, rss) = (median(&run.per_s), median(&run.cpu_us), median(&run.resident_mib));
        println!("{:<16} {p50:>12.0} {p99:>12.0} {per_s:>12.0} {cpu_us:>16.1} {rss:>10.1}", contender.name);
        let mut set = |what: &str, value| figures.set(format!("{}_{size}_{what}", contender.name), value);
        set("p50_us", median(&run.p50_us));
        set("p99_us", median(&run.p99_us));
        set("added_p50_us", p50);
        set("added_p99_us", p99);
        set("requests_per_s", per_s);
        set("cpu_us", cpu_us);
        set("rss_mib", rss);
    }
}

/// Requests one after the other on each of several connections; the time each took, microseconds.
async fn closed_loop(contender: &Contender, bytes: usize, connections: usize, time: Duration) -> Result<Vec<f64>> {
    let body = chat(bytes, false, 16);
    let tasks: Vec<_> = (0..connections)
        .map(|_| {
            let (authority, path, body) = (contender.http.authority().to_owned(), contender.path, body.clone());
            tokio::spawn(async move {
                let mut client = Client::connect(&authority).await?;
                let end = Instant::now() + time;
                let mut took_us = Vec::new();
                while Instant::now() < end {
                    let start = Instant::now();
                    client.whole(path, body.clone()).await?;
                    took_us.push(start.elapsed().as_secs_f64() * 1e6);
                }
                anyhow::Ok(took_us)
            })
        })
        .collect();
    let mut all = Vec::new();
    for task in tasks {
        all.extend(task.await??);
    }
    Ok(all)
}

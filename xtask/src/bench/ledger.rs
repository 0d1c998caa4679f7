//! `cargo xtask bench ledger`: whether the books of tenants are the device's, under a load of real engines, over a `kill -9`.
//!
//! Two tenants of one paced, emulated 910B3 run an engine each (Qwen2.5-7B, timing), prompts and decoding mixed. Every two
//! seconds the ledger's sums are held against the device's busy time. In the middle the daemon is killed and started again, and the
//! engines with it; at the end the ledger is held against both lives of the device together.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::{Value, json};
use stack::{Daemon, Engine, Http, Program, Via, program_path};

use crate::Measure;
use crate::build::{self, Scratch};
use crate::figures::Figures;

const SPEC: &str = "Ascend910B3:timing:paced:omega=0.5";
const TENANTS: [(&str, u32); 2] = [("one", 1), ("three", 3)];
const MINUTES_QUICK: f64 = 0.5;
/// Requests of an engine at once: enough to decode in batches.
const STREAMS: usize = 8;
/// What the ledger may be off, of the busy time.
const DIFFERENCE_MAX: f64 = 0.005;

/// What it takes.
#[derive(Args, Clone)]
pub struct LedgerBench {
    #[command(flatten)]
    measure: Measure,
    /// How long.
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
}

struct Life {
    daemon: Daemon,
    engines: Vec<Engine>,
}

impl Life {
    fn start(dir: &Path) -> Result<Self> {
        let socket = dir.join("npu0.sock");
        let mut command = Command::new(program_path("vnpu-daemon")?);
        command.arg("--socket").arg(&socket).args(["--device", SPEC, "--policy", "phase", "--admin", "127.0.0.1:0"]);
        command.arg("--tenants").arg(dir.join("tenants.toml")).arg("--tenant-sockets").arg(dir.join("tenants"));
        command.arg("--ledger").arg(dir.join("usage.ledger"));
        let program = Program::start("vnpu-daemon", command)?;
        let admin = program.ready_field("admin").context("the daemon's ready line has no admin=")?;
        let mut daemon = Daemon { program, socket, admin: Http::new(&admin) };
        let qwen = ["--model-preset", "qwen2.5-7b", "--load-format", "dummy", "--dtype", "bfloat16"];
        let args = [&qwen[..], &["--served-model-name", "m", "--num-kv-blocks", "800"]].concat();
        let mut engines = Vec::new();
        for (tenant, _) in TENANTS {
            daemon.socket = dir.join("tenants").join(tenant).join("npu.sock");
            engines.push(Engine::start(&Via::Daemon(&daemon), None, &args)?);
        }
        Ok(Self { daemon, engines })
    }

    /// Busy time of the device as the daemon's status says, and the ledger's books, in this order.
    fn look(&self) -> Result<(f64, Value)> {
        let busy = self.daemon.status()?["occupancy"]["busy_ns"].as_f64().context("no busy time in the status")?;
        Ok((busy, self.daemon.admin.get_json("/v1/usage")?))
    }
}

fn sum(usage: &Value) -> f64 {
    usage["tenants"].as_object().into_iter().flatten().filter_map(|(_, t)| t["device_ns"].as_f64()).sum()
}

fn busy(usage: &Value) -> f64 {
    usage["busy_ns"].as_f64().unwrap_or(0.0)
}

/// Requests one after the other until told to stop.
fn stream(http: &Http, lane: usize, over: &AtomicBool) {
    let mut n = lane;
    while !over.load(Ordering::Relaxed) {
        let prompt: Vec<u32> = (0..100 + 150 * (n % 8)).map(|k| 1 + (k as u32 * 7 + n as u32 * 13) % 900).collect();
        let body = json!({ "model": "m", "prompt": prompt, "max_tokens": 64, "ignore_eos": true, "temperature": 0 });
        if http.post_json("/v1/completions", &body).is_err() {
            // The daemon was killed: its engine is gone with it.
            return;
        }
        n += STREAMS;
    }
}

/// Loads a life for so long; the worst that sums were off meanwhile, the last look, and how long before the end it was.
fn load(life: &mut Life, time: Duration, kill: bool) -> Result<(f64, f64, Value, Duration)> {
    let over = AtomicBool::new(false);
    let Life { daemon, engines } = life;
    let admin = daemon.admin.url().to_owned();
    std::thread::scope(|scope| {
        for engine in &*engines {
            for lane in 0..STREAMS {
                let over = &over;
                scope.spawn(move || stream(&engine.http, lane, over));
            }
        }
        let watch = || -> Result<(f64, f64, Value, Duration)> {
            let (start, admin) = (Instant::now(), Http::new(&admin));
            let (mut worst, mut last) = (0.0f64, None);
            while start.elapsed() < time {
                std::thread::sleep(Duration::from_secs(2).min(time));
                let status = admin.get_json("/v1/status")?["occupancy"]["busy_ns"].as_f64().unwrap_or(0.0);
                let seen = Instant::now();
                let usage = admin.get_json("/v1/usage")?;
                worst = worst.max((sum(&usage) - busy(&usage)).abs() / busy(&usage).max(1.0));
                last = Some((status, usage, seen));
            }
            let (status, usage, seen) = last.context("the load was too short")?;
            Ok((worst, status, usage, seen.elapsed()))
        };
        let seen = watch();
        if kill {
            daemon.program.kill();
        }
        over.store(true, Ordering::Relaxed);
        seen
    })
}

/// Runs the benchmark.
pub fn run(bench: &LedgerBench) -> Result<()> {
    build::programs()?;
    let scratch = Scratch::new()?;
    let dir = scratch.path();
    let mut text = String::new();
    for (tenant, weight) in TENANTS {
        text += &format!("[tenants.{tenant}]\nweight = {weight}\n");
    }
    std::fs::write(dir.join("tenants.toml"), text)?;
    let minutes = if bench.measure.quick { MINUTES_QUICK } else { bench.minutes };
    let half = Duration::from_secs_f64(minutes * 30.0);

    let mut first = Life::start(dir)?;
    let (worst_before, status_before, usage_before, _) = load(&mut first, half, true)?;
    drop(first);
    let mut second = Life::start(dir)?;
    let (_, restarted) = second.look()?;
    // Between the last look and the kill both may have grown; what was seen must be there.
    let lost_s = (busy(&usage_before) - busy(&restarted)).max(0.0) * 1e-9;
    let (worst_after, _, _, _) = load(&mut second, half, false)?;
    let (status_after, usage) = second.look()?;
    let (ledger, device) = (busy(&usage), status_before + status_after);
    // The status of the first life is from just before its end: the ledger may have up to that much more.
    let between = (ledger - device) / device;
    let worst = worst_before.max(worst_after).max((sum(&usage) - ledger).abs() / ledger.max(1.0));
    println!("\nledger of two tenants, {SPEC} (emulated), {minutes} minutes, the daemon killed (-9) half way");
    println!("  device busy                        {:>10.3} s", ledger * 1e-9);
    let mut figures = Figures::default();
    for (tenant, weight) in TENANTS {
        let ns = usage["tenants"][tenant]["device_ns"].as_f64().unwrap_or(0.0);
        println!("  tenant {tenant:<10} weight {weight}        {:>10.3} s  {:>6.2} %", ns * 1e-9, 100.0 * ns / ledger);
        figures.set(format!("ledger_{tenant}_device_s"), ns * 1e-9);
    }
    println!("  worst difference of sums           {:>12.6} %", 100.0 * worst);
    println!("  ledger over both lives' busy time  {:>+12.6} %", 100.0 * between);
    println!("  of what was seen, lost by the kill {:>10.3} s", lost_s);
    figures.set("ledger_worst_difference", worst);
    figures.set("ledger_over_device", between);
    figures.set("ledger_lost_s", lost_s);
    figures.set("ledger_busy_s", ledger * 1e-9);
    figures.write(bench.measure.json.as_deref())?;
    ensure!(worst <= DIFFERENCE_MAX, "the tenants' device times are off by {worst} of the busy time");
    ensure!(between.abs() <= DIFFERENCE_MAX, "the ledger is off by {between} of the busy time");
    ensure!(lost_s == 0.0, "{lost_s} s that were seen are not in the ledger any more");
    Ok(())
}

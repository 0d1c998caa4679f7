//! What can happen to a container: stopped, killed, frozen, cut off. Each is done to each program in turn, under load.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use stack::Http;
use system_tests::metrics;

use super::compose::{Compose, Lives, docker, network};
use super::load::{self, Ends, Load};

/// A program, and what is known of it.
#[derive(Clone, Copy)]
struct Victim {
    service: &'static str,
    /// Which others may start again with it: an engine whose device is gone ends, and its restart policy brings it back.
    with: &'static [&'static str],
    /// Where clients ask while something is done to it.
    asked: &'static str,
    /// A figure of its own that only grows while it lives, if Prometheus has one.
    counts: Option<&'static str>,
}

impl Victim {
    /// Clients connect to it, through a network of their own.
    fn asked_itself(self) -> bool {
        matches!(self.service, "gateway" | "front")
    }
}

const VICTIMS: [Victim; 8] = [
    Victim {
        service: "vnpu-daemon-0",
        with: &["engine-0"],
        asked: "GATEWAY_PORT",
        counts: Some("vnpu_operators_completed_total"),
    },
    Victim {
        service: "vnpu-daemon-1",
        with: &["engine-1"],
        asked: "GATEWAY_PORT",
        counts: Some("vnpu_operators_completed_total"),
    },
    Victim { service: "engine-0", with: &[], asked: "GATEWAY_PORT", counts: Some("vllm:prompt_tokens_total") },
    Victim { service: "engine-1", with: &[], asked: "GATEWAY_PORT", counts: Some("vllm:prompt_tokens_total") },
    Victim { service: "gateway", with: &[], asked: "GATEWAY_PORT", counts: Some("gateway_prompt_tokens_total") },
    Victim { service: "gateway-b", with: &[], asked: "FRONT_PORT", counts: Some("gateway_prompt_tokens_total") },
    Victim { service: "front", with: &[], asked: "FRONT_PORT", counts: None },
    Victim { service: "prometheus", with: &[], asked: "GATEWAY_PORT", counts: None },
];
/// Requests before and after a fault.
const AROUND: Duration = Duration::from_secs(1);
/// Until everything works again after the fault is over.
const RECOVERY_MAX: Duration = Duration::from_secs(90);
/// Between two looks of Prometheus.
const LOOK_EVERY_S: u64 = 5;
/// Who chooses between two of something: each uses both again before a fault is over.
const CHOOSING: [&str; 3] = ["gateway", "gateway-b", "front"];
/// Until Prometheus has it: two of its looks, and some.
const SHOWN_MAX: Duration = Duration::from_secs(15);
/// Requests in a row that must succeed then.
const IN_A_ROW: usize = 10;

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// `docker stop`, then `start`.
    Stop,
    /// `kill -9` of the program; the restart policy brings it back.
    Kill,
    /// `docker pause`, then `unpause`.
    Pause,
    /// `docker network disconnect`, then `connect`.
    Disconnect,
}

impl Fault {
    /// How long it lasts: so long that a look of Prometheus (every 5 s, each of at most 5 s) falls into it and fails.
    fn lasts(self) -> Duration {
        match self {
            Self::Stop => Duration::from_secs(7),
            Self::Kill => Duration::ZERO,
            Self::Pause | Self::Disconnect => Duration::from_millis(10_500),
        }
    }
}

/// Does everything to everyone; a line for each.
///
/// # Errors
/// The first that is not as promised.
pub fn all(compose: &Compose, key: &str) -> Result<()> {
    println!(
        "   {:<14} {:<11} {:>9} {:>8} {:>12} {:>11}  failures",
        "container", "", "finished", "failed", "longest, s", "back in, s"
    );
    for victim in VICTIMS {
        let http = compose.published(victim.asked).with_header("authorization", &format!("Bearer {key}"));
        for fault in [Fault::Stop, Fault::Kill, Fault::Pause, Fault::Disconnect] {
            let service = victim.service;
            let (ends, back) = one(compose, &http, victim, fault).with_context(|| format!("{fault:?} {service}"))?;
            let failed: Vec<String> = ends.failed.iter().map(|(what, count)| format!("{count} {what}")).collect();
            println!(
                "   {service:<14} {:<11} {:>9} {:>8} {:>12.1} {:>11.1}  {}",
                format!("{fault:?}").to_lowercase(),
                ends.finished,
                ends.failures(),
                ends.longest.as_secs_f64(),
                back.as_secs_f64(),
                failed.join(", ")
            );
        }
    }
    Ok(())
}

fn one(compose: &Compose, http: &Http, victim: Victim, fault: Fault) -> Result<(Ends, Duration)> {
    let Victim { service, with, .. } = victim;
    let before = compose.lives()?;
    let load = Load::start(http);
    std::thread::sleep(AROUND);
    let container = compose.container(service)?;
    let begins_anew = matches!(fault, Fault::Stop | Fault::Kill);
    let start = Instant::now();
    match fault {
        Fault::Stop => docker(&["stop", &container])?,
        Fault::Kill => kill(compose, service)?,
        Fault::Pause => docker(&["pause", &container])?,
        Fault::Disconnect => docker(&["network", "disconnect", &network(), &container])?,
    };
    std::thread::sleep(fault.lasts());
    match fault {
        Fault::Stop => docker(&["start", &container])?,
        Fault::Kill => String::new(),
        Fault::Pause => docker(&["unpause", &container])?,
        Fault::Disconnect => docker(&["network", "connect", "--alias", service, &network(), &container])?,
    };
    let over = Instant::now();
    let anew: Vec<&str> = if begins_anew { [&[service], with].concat() } else { Vec::new() };
    let recovered = recover(compose, http, (service, &anew), &before);
    let back = over.elapsed();
    std::thread::sleep(AROUND);
    let ends = load.end()?;
    recovered?;

    let after = compose.lives()?;
    for (name, life) in &before {
        let same = after.get(name) == Some(life);
        ensure!(same || name == service || with.contains(&name.as_str()), "{name} was started again");
    }
    ensure!(
        (after.get(service) != before.get(service)) == begins_anew,
        "{service} lived on, or began anew, unlike what was done to it"
    );
    ensure!(ends.finished > 0, "nothing finished");
    if service == "prometheus" {
        ensure!(ends.failures() == 0, "requests failed for want of Prometheus: {:?}", ends.failed);
    }
    if !victim.asked_itself() {
        ensure!(ends.before_anything == 0, "requests failed although its twin was there: {:?}", ends.failed);
    }
    shown(compose, victim, fault, start)?;
    Ok((ends, back))
}

/// Ends the program as the kernel would when memory is short.
fn kill(compose: &Compose, victim: &str) -> Result<String> {
    let pid = compose.inspect(victim)?["State"]["Pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
    let pid = pid.and_then(rustix::process::Pid::from_raw).context("no such process")?;
    rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
    Ok(String::new())
}

/// Waits until those that begin `anew` have, all are well, gateways use both engines and `front` both gateways, and requests succeed in
/// a row.
fn recover(compose: &Compose, http: &Http, (victim, anew): (&str, &[&str]), before: &Lives) -> Result<()> {
    let start = Instant::now();
    for service in anew {
        while compose.lives()?.get(*service) == before.get(*service) {
            ensure!(start.elapsed() < RECOVERY_MAX, "{service} is not started again");
            std::thread::sleep(Duration::from_millis(100));
        }
        compose.healthy(service)?;
    }
    compose.healthy(victim)?;
    loop {
        let both = |by: &&'static str| -> Result<()> {
            let open =
                compose.inside(by, 9090)?.within(Duration::from_secs(5)).metric("gateway_engine_open").context(*by)?;
            ensure!(open == 2.0, "{by} uses {open} of two");
            Ok(())
        };
        let served = || (0..IN_A_ROW).try_for_each(|i| load::ask(&http.within(load::HANGS_AFTER), i % 2 == 0));
        let Err(why) = CHOOSING.iter().try_for_each(both).and_then(|()| served()) else { return Ok(()) };
        ensure!(start.elapsed() < RECOVERY_MAX, "not as before after {RECOVERY_MAX:?}: {why:#}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Dashboards show what was done: that the victim was not seen since `start`, or that it counts from nothing again. What is done to
/// Prometheus itself nobody else sees; it goes on to look.
fn shown(compose: &Compose, victim: Victim, fault: Fault, start: Instant) -> Result<()> {
    let (service, asked) = (victim.service, Instant::now());
    let prometheus = compose.published("PROMETHEUS_PORT");
    let over = |function: &str, metric: &str, range_s: u64| -> Result<Vec<Value>> {
        metrics::query(&prometheus, &format!("{function}({metric}{{instance=~\"{service}:.*\"}}[{range_s}s])"))
    };
    loop {
        let seen = if service == "prometheus" {
            let engines = metrics::query(&prometheus, "up{job=\"engine\"} == 1").unwrap_or_default();
            // Younger than the end of what was done to it.
            let fresh = metrics::query(&prometheus, "time() - timestamp(up{job=\"engine\"}) < 5").unwrap_or_default();
            engines.len() == 2 && fresh.len() == 2
        } else if fault == Fault::Kill {
            let Some(metric) = victim.counts else { return Ok(()) };
            // With a look from before.
            over("resets", metric, start.elapsed().as_secs() + LOOK_EVERY_S + 1)?.iter().any(|s| s["value"][1] != "0")
        } else if fault == Fault::Disconnect && victim.asked_itself() {
            // It is in another network as well, in which Prometheus still sees it, and that it has lost whom it sends requests to.
            over("min_over_time", "gateway_engine_open", start.elapsed().as_secs() + 1)?
                .iter()
                .any(|s| s["value"][1] == "0")
        } else {
            over("min_over_time", "up", start.elapsed().as_secs() + 1)?.iter().any(|s| s["value"][1] == "0")
        };
        if seen {
            return Ok(());
        }
        ensure!(asked.elapsed() < SHOWN_MAX, "Prometheus has not seen what was done to {service}");
        std::thread::sleep(Duration::from_millis(500));
    }
}

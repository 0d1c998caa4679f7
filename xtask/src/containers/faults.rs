//! What can happen to a container: stopped, killed, frozen, cut off. Each is done to each program in turn, under load.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use stack::Http;
use system_tests::metrics;

use super::compose::{Compose, Lives, docker, network};
use super::load::{self, Ends, Load};

/// Programs, and which others may start again with each: an engine whose device is gone ends, and its restart policy brings it back.
const VICTIMS: [(&str, &[&str]); 4] =
    [("vnpu-daemon-0", &["engine-0"]), ("engine-0", &[]), ("gateway", &[]), ("prometheus", &[])];
/// Requests before and after a fault.
const AROUND: Duration = Duration::from_secs(1);
/// Until everything works again after the fault is over.
const RECOVERY_MAX: Duration = Duration::from_secs(90);
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
    /// How long it lasts: long enough for Prometheus (every 5 s) and for the gateway's looks (every second).
    fn lasts(self) -> Duration {
        match self {
            Self::Stop => Duration::from_secs(7),
            Self::Kill => Duration::ZERO,
            Self::Pause | Self::Disconnect => Duration::from_secs(3),
        }
    }
}

/// Does everything to everyone; a line for each.
///
/// # Errors
/// The first that is not as promised.
pub fn all(compose: &Compose, key: &str) -> Result<()> {
    let http = compose.published("GATEWAY_PORT").with_header("authorization", &format!("Bearer {key}"));
    println!(
        "   {:<14} {:<11} {:>9} {:>8} {:>12} {:>11}  failures",
        "container", "", "finished", "failed", "longest, s", "back in, s"
    );
    for (victim, with) in VICTIMS {
        for fault in [Fault::Stop, Fault::Kill, Fault::Pause, Fault::Disconnect] {
            let (ends, back) =
                one(compose, &http, (victim, with), fault).with_context(|| format!("{fault:?} {victim}"))?;
            let failed: Vec<String> = ends.failed.iter().map(|(what, count)| format!("{count} {what}")).collect();
            println!(
                "   {victim:<14} {:<11} {:>9} {:>8} {:>12.1} {:>11.1}  {}",
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

fn one(compose: &Compose, http: &Http, (victim, with): (&str, &[&str]), fault: Fault) -> Result<(Ends, Duration)> {
    let before = compose.lives()?;
    let load = Load::start(http);
    std::thread::sleep(AROUND);
    let container = compose.container(victim)?;
    let wanted_life = matches!(fault, Fault::Stop | Fault::Kill);
    match fault {
        Fault::Stop => docker(&["stop", &container])?,
        Fault::Kill => kill(compose, victim)?,
        Fault::Pause => docker(&["pause", &container])?,
        Fault::Disconnect => docker(&["network", "disconnect", &network(), &container])?,
    };
    std::thread::sleep(fault.lasts());
    match fault {
        Fault::Stop => docker(&["start", &container])?,
        Fault::Kill => String::new(),
        Fault::Pause => docker(&["unpause", &container])?,
        Fault::Disconnect => docker(&["network", "connect", "--alias", victim, &network(), &container])?,
    };
    let over = Instant::now();
    let anew: Vec<&str> = if wanted_life { [&[victim], with].concat() } else { Vec::new() };
    let recovered = recover(compose, http, (victim, &anew), &before);
    let back = over.elapsed();
    std::thread::sleep(AROUND);
    let ends = load.end()?;
    recovered?;

    let after = compose.lives()?;
    for (service, life) in &before {
        let same = after.get(service) == Some(life);
        ensure!(same || *service == victim || with.contains(service), "{service} was started again");
    }
    ensure!(
        (after.get(victim) != before.get(victim)) == wanted_life,
        "{victim} lived on, or began anew, unlike what was done to it"
    );
    ensure!(ends.finished > 0, "nothing finished");
    if victim == "prometheus" {
        ensure!(ends.failures() == 0, "requests failed for want of Prometheus: {:?}", ends.failed);
    } else if fault == Fault::Stop {
        shown(compose, victim)?;
    }
    Ok((ends, back))
}

/// Ends the program as the kernel would when memory is short.
fn kill(compose: &Compose, victim: &str) -> Result<String> {
    let pid = compose.inspect(victim)?["State"]["Pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
    let pid = pid.and_then(rustix::process::Pid::from_raw).context("no such process")?;
    rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
    Ok(String::new())
}

/// Waits until those that begin `anew` have, all are well, the gateway uses both engines, and requests succeed in a row.
fn recover(compose: &Compose, http: &Http, (victim, anew): (&str, &[&str]), before: &Lives) -> Result<()> {
    let start = Instant::now();
    for service in anew {
        while compose.lives()?.get(service) == before.get(service) {
            ensure!(start.elapsed() < RECOVERY_MAX, "{service} is not started again");
            std::thread::sleep(Duration::from_millis(100));
        }
        compose.healthy(service)?;
    }
    compose.healthy(victim)?;
    loop {
        let open = || -> Result<f64> {
            compose.inside("gateway", 9090)?.within(Duration::from_secs(5)).metric("gateway_engine_open")
        };
        let served = || (0..IN_A_ROW).try_for_each(|i| load::ask(&http.within(load::HANGS_AFTER), i % 2 == 0));
        let state = match open() {
            Ok(2.0) => served().map_err(|e| format!("{e:#}")),
            Ok(open) => Err(format!("the gateway uses {open} engines")),
            Err(e) => Err(format!("{e:#}")),
        };
        let Err(why) = state else { return Ok(()) };
        ensure!(start.elapsed() < RECOVERY_MAX, "not as before after {RECOVERY_MAX:?}: {why}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Prometheus has seen that it was down.
fn shown(compose: &Compose, victim: &str) -> Result<()> {
    let query = format!("min_over_time(up{{instance=~\"{victim}:.*\"}}[1m])");
    let samples = metrics::query(&compose.published("PROMETHEUS_PORT"), &query)?;
    let down = samples.iter().any(|s| s["value"][1] == "0");
    ensure!(down, "Prometheus has not seen that {victim} was down: {samples:?}");
    Ok(())
}

//! Gateways and engines are restarted one after the other behind one address: not one request is lost.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::compose::{Compose, docker};
use super::load::Load;

/// Who is restarted, and where it is seen whether it is used again: a gateway's address, and the metric's label.
const RESTARTED: [(&str, &[&str]); 4] = [
    ("gateway", &["front"]),
    ("gateway-b", &["front"]),
    ("engine-0", &["gateway", "gateway-b"]),
    ("engine-1", &["gateway", "gateway-b"]),
];
/// Until it is used again.
const USED_AGAIN_MAX: Duration = Duration::from_secs(60);

/// Restarts each, under load at the one address.
///
/// # Errors
/// If a request fails.
pub fn all(compose: &mut Compose, key: &str) -> Result<()> {
    let http = compose.published("FRONT_PORT").with_header("authorization", &format!("Bearer {key}"));
    let before = compose.lives()?;
    let load = Load::start(&http);
    let restarted = RESTARTED.iter().try_for_each(|(service, seen_by)| {
        docker(&["restart", "--time", "70", &compose.container(service)?])?;
        compose.healthy(service)?;
        seen_by
            .iter()
            .try_for_each(|by| used(compose, service, by))
            .with_context(|| format!("after a restart of {service}"))
    });
    let ends = load.end()?;
    restarted?;
    let after = compose.lives()?;
    for (service, _) in RESTARTED {
        ensure!(before.get(service) != after.get(service), "{service} was not restarted");
    }
    println!(
        "   {} requests finished, {} failed, longest {:.1} s",
        ends.finished,
        ends.failures(),
        ends.longest.as_secs_f64()
    );
    ensure!(ends.failures() == 0 && ends.finished > 30, "{ends:?}");
    Ok(())
}

fn used(compose: &Compose, service: &str, by: &str) -> Result<()> {
    let start = Instant::now();
    let name = format!("gateway_engine_open{{engine=\"{service}\"}}");
    let admin = compose.inside(by, 9090)?;
    while admin.metric(&name)? != 1.0 {
        ensure!(start.elapsed() < USED_AGAIN_MAX, "{by} does not use it again");
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

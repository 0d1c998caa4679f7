//! The profile `trace`: the gateway tells a collector of each request, and what it counts.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::compose::Compose;
use super::{images, load};

/// Until the collector has it: the gateway sends spans every few seconds and figures every minute or less.
const TOLD_MAX: Duration = Duration::from_secs(90);
const REQUESTS: usize = 3;

/// Starts the profile with the gateway's other file, asks, and reads the collector's log.
///
/// # Errors
/// If it does not say what was asked.
pub fn all(compose: &mut Compose, key: &str) -> Result<()> {
    images::collector()?;
    compose.set("GATEWAY_CONFIG", "./gateway-trace.toml");
    compose.set("OTEL_IMAGE", images::COLLECTOR);
    compose.run(&["--profile", "trace", "up", "-d", "--no-build", "gateway", "otel-collector"])?;
    compose.healthy("gateway")?;
    let http = compose.published("GATEWAY_PORT").with_header("authorization", &format!("Bearer {key}"));
    (0..REQUESTS).try_for_each(|index| load::ask(&http, index % 2 == 0))?;
    let start = Instant::now();
    loop {
        let log = compose.run(&["--profile", "trace", "logs", "--no-color", "otel-collector"])?;
        let spans = log.lines().filter(|line| line.contains("text_completion tiny-qwen2")).count();
        let missing: Vec<&str> = ["gen_ai.request.model", "gen_ai.server.time_to_first_token", "gateway.engine"]
            .into_iter()
            .filter(|word| !log.contains(word))
            .collect();
        if spans >= REQUESTS && missing.is_empty() {
            return Ok(());
        }
        ensure!(
            start.elapsed() < TOLD_MAX,
            "the collector was told of {spans} of {REQUESTS} requests, and nothing of {missing:?}:\n{log}"
        );
        std::thread::sleep(Duration::from_millis(500));
    }
}

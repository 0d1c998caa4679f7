//! The profile `vllm`: an engine's image that is none of ours, on the virtual device 0 in the place of `engine-0`.
//!
//! vLLM's image cannot be had here. What stands in its place understands the same command line and runs our engine on Debian as it is,
//! so everything that the profile adds to a foreign image is tried: libraries from the volume, sockets, user, name, model.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::compose::Compose;
use super::{images, load};

/// Until requests come through to it.
const SERVES_MAX: Duration = Duration::from_secs(60);
const REQUESTS: u32 = 4;
const PROFILE: [&str; 2] = ["--profile", "vllm"];

/// Starts it as the documentation says, asks it, and removes it.
///
/// # Errors
/// If requests are not computed by it on the virtual device.
pub fn all(compose: &mut Compose, key: &str) -> Result<()> {
    images::foreign_engine()?;
    compose.set("VLLM_IMAGE", images::FOREIGN_ENGINE);
    let up = ["up", "-d", "--no-build", "--scale", "engine-0=0", "gateway", "vllm"];
    let served = compose.run(&[&PROFILE[..], &up].concat()).and_then(|_| serves(compose, key));
    compose.run(&[&PROFILE[..], &["rm", "--stop", "--force", "vllm"]].concat())?;
    served
}

fn serves(compose: &Compose, key: &str) -> Result<()> {
    ensure!(compose.inspect("engine-0").is_err(), "engine-0 is there as well");
    let http = compose.published("GATEWAY_PORT").with_header("authorization", &format!("Bearer {key}"));
    let start = Instant::now();
    while let Err(error) = load::ask(&http, false) {
        ensure!(
            start.elapsed() < SERVES_MAX,
            "{error:#}:\n{}",
            compose.run(&[&PROFILE[..], &["logs", "--tail", "30", "vllm"]].concat())?
        );
        std::thread::sleep(Duration::from_millis(200));
    }
    let device = compose.inside("vnpu-daemon-0", 7070)?;
    let figures = || -> Result<[f64; 2]> {
        Ok([device.metric("vnpu_operators_completed_total")?, device.metric("vnpu_hints_total")?])
    };
    let before = figures()?;
    (0..REQUESTS).try_for_each(|index| load::ask(&http, index % 2 == 0))?;
    let after = figures()?;
    ensure!(before.iter().zip(&after).all(|(before, after)| before < after), "the device saw nothing of it: {after:?}");
    Ok(())
}

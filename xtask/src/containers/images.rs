//! The images: built by the script that users call, small, without a shell, the same every time.

use std::process::Command;

use anyhow::{Result, ensure};
use serde_json::Value;

use super::compose::{Compose, TAG, directory, docker};
use crate::build;

/// Images, and the most that each may have, MiB.
const IMAGES: [(&str, u64); 6] =
    [("libs", 64), ("vnpu-daemon", 64), ("engine", 64), ("gateway", 64), ("loadgen", 64), ("prometheus", 256)];
/// Tag of the second build.
const AGAIN: &str = "test-again";

/// Builds all, from the programs of this build and the base that `docker/base.sh` makes.
///
/// # Errors
/// If that fails, with its last words.
pub fn build(tag: &str, anew: bool) -> Result<()> {
    if docker(&["image", "inspect", "flexnpu-base"]).is_err() {
        super::compose::output(Command::new(directory().join("base.sh")).current_dir(build::root()))?;
    }
    let mut command = Command::new(directory().join("build.sh"));
    command.args(["--binaries", "target/release"]).current_dir(build::root());
    command.env("TAG", tag).env("BASE", "flexnpu-base");
    if anew {
        command.env("NO_CACHE", "1");
    }
    super::compose::output(&mut command).map(drop)
}

/// They are small, and there is no shell in them.
///
/// # Errors
/// Which is not so.
pub fn look() -> Result<()> {
    for (name, mib_max) in IMAGES {
        let image = format!("flexnpu-{name}:{TAG}");
        let about = inspect(&image)?;
        let mib = about["Size"].as_u64().unwrap_or(u64::MAX) >> 20;
        println!("   {image}: {mib} MiB");
        ensure!(mib <= mib_max, "{image} has {mib} MiB; at most {mib_max}");
        let shell = docker(&["run", "--rm", "--network", "none", "--entrypoint", "/bin/sh", &image, "-c", "true"]);
        ensure!(shell.is_err(), "{image} has a shell");
    }
    Ok(())
}

/// Containers run as nobody, with nothing to write to and no capability.
///
/// # Errors
/// Which does not.
pub fn confined(compose: &Compose, services: &[&str]) -> Result<()> {
    for service in services {
        let about = compose.inspect(service)?;
        let (config, host) = (&about["Config"], &about["HostConfig"]);
        ensure!(config["User"] == "65532:65532", "{service} runs as {}", config["User"]);
        ensure!(host["ReadonlyRootfs"] == true, "{service} may write to its root");
        ensure!(
            host["CapDrop"][0] == "ALL" && host["CapAdd"].as_array().is_none_or(Vec::is_empty),
            "{service} has capabilities"
        );
        for limit in ["Memory", "PidsLimit"] {
            ensure!(host[limit].as_u64().is_some_and(|l| l > 0), "{service} has no {limit}");
        }
    }
    Ok(())
}

/// Built once more from nothing, each has the same layers.
///
/// # Errors
/// Which has not.
pub fn again() -> Result<()> {
    build(AGAIN, true)?;
    let compared = IMAGES.iter().try_for_each(|(name, _)| {
        let [first, second] =
            [TAG, AGAIN].map(|tag| inspect(&format!("flexnpu-{name}:{tag}")).map(|i| i["RootFS"]["Layers"].clone()));
        let (first, second) = (first?, second?);
        ensure!(first.is_array() && first == second, "flexnpu-{name} differs: {first} and {second}");
        Ok(())
    });
    remove(AGAIN);
    compared
}

fn inspect(image: &str) -> Result<Value> {
    let all: Value = serde_json::from_str(&docker(&["image", "inspect", image])?)?;
    Ok(all[0].clone())
}

/// Removes all of a tag.
pub fn remove(tag: &str) {
    for (name, _) in IMAGES {
        // It may not have been built.
        let _ = docker(&["image", "rm", "--force", &format!("flexnpu-{name}:{tag}")]);
    }
}

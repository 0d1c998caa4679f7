//! The images: built by the script that users call, small, without a shell, the same every time.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use serde_json::Value;

use super::compose::{BASE, Compose, TAG, directory, docker, output};
use crate::build;

/// Images, and the most that each may have, MiB.
const IMAGES: [(&str, u64); 6] =
    [("libs", 64), ("vnpu-daemon", 64), ("engine", 64), ("gateway", 64), ("loadgen", 64), ("prometheus", 256)];
/// Tag of the second build.
const AGAIN: &str = "test-again";
/// What the stages of docker/Dockerfile that no image is made of are labelled with.
const STAGE: &str = "label=flexnpu.stage";
/// Time of every file in the test's images: that of the last commit would change with a commit beside the test.
pub const EPOCH: &str = "1577836800";
/// Runs and does nothing: in the place of an image that cannot be made here.
pub const STAND_IN: &str = "flexnpu-stand-in:test";
/// An OpenTelemetry collector: rotel, as published.
pub const COLLECTOR: &str = "flexnpu-collector:test";
/// An engine's image that is none of ours: Debian, and a program called `vllm`.
pub const FOREIGN_ENGINE: &str = "flexnpu-foreign-engine:test";

/// Builds all, from the programs of this build and the base that `docker/base.sh` makes.
///
/// # Errors
/// If that fails, with its last words.
pub fn build(tag: &str, anew: bool) -> Result<()> {
    if docker(&["image", "inspect", BASE]).is_err() {
        output(Command::new(directory().join("base.sh")).arg(BASE).current_dir(build::root()))?;
    }
    let mut command = Command::new(directory().join("build.sh"));
    command.args(["--binaries", "target/release"]).current_dir(build::root());
    command.env("TAG", tag).env("BASE", BASE).env("SOURCE_DATE_EPOCH", EPOCH);
    if anew {
        command.env("NO_CACHE", "1");
    }
    output(&mut command).map(drop)
}

/// Makes an image that does nothing.
///
/// # Errors
/// If Docker does not.
pub fn stand_in() -> Result<()> {
    made(STAND_IN, r#"CMD ["/bin/sleep", "infinity"]"#, None)
}

/// Makes an image of an OpenTelemetry collector that somebody else wrote and that writes what it gets to its log.
///
/// # Errors
/// If it cannot be installed, or Docker does not make the image.
pub fn collector() -> Result<()> {
    let python = system_tests::python::with_requirements("tests/python/otel.txt")?;
    let program = output(Command::new(python).args(["-c", "import rotel; print(rotel.__path__[0] + '/rotel-agent')"]))?;
    // The arguments are those of another collector: a shell takes them for its own and does not use them.
    let run = r#"RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends libpython3.11 >/dev/null
COPY rotel-agent /usr/bin/
ENTRYPOINT ["/bin/sh", "-c", "exec /usr/bin/rotel-agent start --exporter blackhole --otlp-http-endpoint 0.0.0.0:4318 \
--debug-log traces --debug-log metrics --debug-log-verbosity detailed"]
"#;
    made(COLLECTOR, run, Some(program.trim().as_ref()))
}

/// Makes an image in which `vllm serve MODEL …` is our engine; it leaves out what only vLLM knows.
///
/// # Errors
/// If Docker does not make the image.
pub fn foreign_engine() -> Result<()> {
    let run = r#"COPY engine /usr/bin/
RUN printf '%s\n' '#!/bin/sh' 'model=$2; shift 2; for word; do shift; case $word in --enforce-eager) ;; *) set -- "$@" "$word";; esac; done' \
    'exec engine --model "$model" "$@"' >/usr/bin/vllm && chmod 755 /usr/bin/vllm
"#;
    made(FOREIGN_ENGINE, run, Some(&build::root().join("target/release/engine")))
}

/// Makes an image on the base; `file` may be copied from.
fn made(image: &str, lines: &str, file: Option<&Path>) -> Result<()> {
    let dir = stack::scratch()?;
    std::fs::write(dir.path().join("Dockerfile"), format!("FROM {BASE}\nLABEL flexnpu.stage=test\n{lines}"))?;
    if let Some((file, name)) = file.and_then(|file| Some((file, file.file_name()?))) {
        std::fs::copy(file, dir.path().join(name))?;
    }
    output(Command::new("docker").args(["build", "--quiet", "--tag", image]).arg(dir.path())).map(drop)
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

/// Removes all of a tag, and stages that no image needs any more: the classic builder leaves them as images without a name.
pub fn remove(tag: &str) {
    let mut names: Vec<String> = IMAGES.map(|(name, _)| format!("flexnpu-{name}:{tag}")).to_vec();
    if tag == TAG {
        names.extend([STAND_IN, COLLECTOR, FOREIGN_ENGINE].map(str::to_owned));
    }
    for name in names {
        // It may not have been built.
        let _ = docker(&["image", "rm", "--force", &name]);
    }
    let _ = docker(&["image", "prune", "--force", "--filter", STAGE]);
}

/// Images that a test has left: those of its tags, and stages without a name.
///
/// # Errors
/// If Docker does not answer.
pub fn remain() -> Result<Vec<String>> {
    let stages = docker(&["image", "ls", "-aq", "--filter", "dangling=true", "--filter", STAGE])?;
    let tagged =
        docker(&["image", "ls", "--format", "{{.Repository}}:{{.Tag}}", "--filter", "reference=flexnpu-*:test*"])?;
    Ok(stages.lines().chain(tagged.lines()).map(str::to_owned).collect())
}

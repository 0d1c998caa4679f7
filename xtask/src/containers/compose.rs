//! The running stack: `docker compose` and what `docker` says of its containers.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use stack::Http;
use system_tests::docs::Surroundings;

use super::images;
use crate::build;

/// Name that everything of the test begins with.
pub const PROJECT: &str = "flexnpu-test";
/// Tag of the test's images.
pub const TAG: &str = "test";
/// What they are made on: Debian, by `docker/base.sh`.
pub const BASE: &str = "flexnpu-base";
/// Services that run only when asked for.
pub const PROFILES: [&str; 4] = ["load", "vllm", "trace", "ascend"];
/// For a container to be well.
const HEALTHY_TIME_MAX: Duration = Duration::from_secs(90);

/// Where the machine publishes the stack, by variable; the documentation's ports, and these.
const PUBLISHED: [(&str, &str); 4] =
    [("GATEWAY_PORT", "8080"), ("PROMETHEUS_PORT", "9090"), ("GRAFANA_PORT", "3000"), ("FRONT_PORT", "8081")];

/// One project of compose; its containers, networks and volumes go with the value.
pub struct Compose {
    program: Vec<&'static str>,
    files: Vec<&'static str>,
    variables: BTreeMap<&'static str, String>,
}

/// What tells one life of a container from another, by service.
pub type Lives = BTreeMap<String, String>;

impl Compose {
    /// Nothing runs yet. Whatever an interrupted test has left goes.
    ///
    /// # Errors
    /// If there is no compose, or no free port.
    pub fn new() -> Result<Self> {
        let plugin = Command::new("docker").args(["compose", "version"]).stderr(Stdio::null()).output();
        let program = match plugin {
            Ok(out) if out.status.success() => vec!["docker", "compose"],
            _ => vec!["docker-compose"],
        };
        let known = Command::new(program[0]).arg("version").output().is_ok_and(|out| out.status.success());
        ensure!(known, "missing: docker compose. Install docker-compose-v2, or docker-compose");
        let mut variables = BTreeMap::from([("TAG", TAG.to_owned()), ("COMPOSE_PROJECT_NAME", PROJECT.to_owned())]);
        variables.insert("PROMETHEUS_IMAGE", format!("flexnpu-prometheus:{TAG}"));
        // A container that starts again keeps such a port; one of Docker's choice it would not.
        for (name, _) in PUBLISHED {
            let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
            variables.insert(name, port.to_string());
        }
        let compose = Self { program, files: vec!["compose.yaml"], variables };
        compose.down();
        Ok(compose)
    }

    /// What is around the commands of the documentation that concern the stack: this project's names, ports and images. Grafana has
    /// a stand-in that does nothing, because no image of it can be made here.
    pub fn surroundings(&self) -> Surroundings {
        let mut variables = self.variables.clone();
        variables.insert("BASE", BASE.to_owned());
        variables.insert("SOURCE_DATE_EPOCH", images::EPOCH.to_owned());
        variables.insert("BINARIES", "target/release".to_owned());
        variables.insert("GRAFANA_IMAGE", images::STAND_IN.to_owned());
        let ports = PUBLISHED.map(|(name, port)| (port, self.published_port(name)));
        let names = BTreeMap::from([("docker compose", self.program.join(" "))]);
        Surroundings { in_the_tree: true, variables, names, ports: ports.into_iter().collect() }
    }

    /// From now on with the file `name` beside the others.
    pub fn with_file(&mut self, name: &'static str) {
        self.files.push(name);
    }

    /// Sets a variable of the file.
    pub fn set(&mut self, name: &'static str, value: &str) {
        self.variables.insert(name, value.to_owned());
    }

    /// Runs a command of compose to its end; what it wrote.
    ///
    /// # Errors
    /// If it fails, with its own words.
    pub fn run(&self, args: &[&str]) -> Result<String> {
        self.run_until(args, &[0])
    }

    /// The same, with any of these exit codes.
    ///
    /// # Errors
    /// As there.
    pub fn run_until(&self, args: &[&str], codes: &[i32]) -> Result<String> {
        self.run_with(&self.files, args, codes)
    }

    fn run_with(&self, files: &[&str], args: &[&str], codes: &[i32]) -> Result<String> {
        let mut command = Command::new(self.program[0]);
        command.args(&self.program[1..]).current_dir(directory()).envs(&self.variables);
        for file in files {
            command.args(["-f", file]);
        }
        output_of(command.args(args), codes)
    }

    /// Starts these services and what they need, and waits until they are well.
    ///
    /// # Errors
    /// If one is not, with its last words.
    pub fn up(&self, services: &[&str]) -> Result<()> {
        self.run(&[&["up", "-d", "--no-build"], services].concat())?;
        services.iter().try_for_each(|service| self.healthy(service).map(drop))
    }

    /// What Docker knows of the project's containers that have `labels`.
    fn inspected(&self, labels: &[String]) -> Result<Vec<Value>> {
        let mut command = vec!["ps", "-aq", "--no-trunc"];
        labels.iter().for_each(|label| command.extend(["--filter", label]));
        let ids = docker(&command)?;
        if ids.trim().is_empty() {
            return Ok(Vec::new());
        }
        Ok(serde_json::from_str(&docker(&["inspect"].into_iter().chain(ids.lines()).collect::<Vec<_>>())?)?)
    }

    /// The container of a service.
    ///
    /// # Errors
    /// If there is none.
    pub fn container(&self, service: &str) -> Result<String> {
        Ok(self.inspect(service)?["Id"].as_str().unwrap_or_default().to_owned())
    }

    /// What Docker knows of a service's container.
    ///
    /// # Errors
    /// If there is none.
    pub fn inspect(&self, service: &str) -> Result<Value> {
        let labels = [label("project", PROJECT), label("service", service), label("oneoff", "False")];
        self.inspected(&labels)?.into_iter().next().with_context(|| format!("no container of {service}"))
    }

    /// Waits until a service is well; how long that took.
    ///
    /// # Errors
    /// If it takes too long, with the program's last words.
    pub fn healthy(&self, service: &str) -> Result<Duration> {
        let start = Instant::now();
        while self.inspect(service)?["State"]["Health"]["Status"] != "healthy" {
            if start.elapsed() > HEALTHY_TIME_MAX {
                bail!(
                    "{service} is not well after {HEALTHY_TIME_MAX:?}:\n{}",
                    self.run(&["logs", "--tail", "30", service])?
                );
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(start.elapsed())
    }

    /// A port that the host publishes.
    pub fn published(&self, name: &str) -> Http {
        Http::new(&format!("127.0.0.1:{}", self.published_port(name)))
    }

    fn published_port(&self, name: &str) -> u16 {
        self.variables[name].parse().unwrap_or(0)
    }

    /// A port of a service, over the network that only containers and this machine are in.
    ///
    /// # Errors
    /// If it has no address there.
    pub fn inside(&self, service: &str, port: u16) -> Result<Http> {
        let networks = &self.inspect(service)?["NetworkSettings"]["Networks"];
        let address = networks[network()]["IPAddress"].as_str().filter(|a| !a.is_empty());
        Ok(Http::new(&format!("{}:{port}", address.with_context(|| format!("{service} has no address"))?)))
    }

    /// Which life each running container is in.
    ///
    /// # Errors
    /// If Docker does not answer.
    pub fn lives(&self) -> Result<Lives> {
        let life = |about: Value| {
            let service = about["Config"]["Labels"]["com.docker.compose.service"].as_str()?.to_owned();
            // What ends by itself has done its work, and does it again when its neighbours are started.
            (service != "libs").then(|| (service, about["State"]["StartedAt"].to_string()))
        };
        let all = self.inspected(&[label("project", PROJECT), label("oneoff", "False")])?;
        Ok(all.into_iter().filter_map(life).collect())
    }

    /// Ends everything, and removes containers, networks and volumes.
    pub fn down(&self) {
        let mut down = Vec::new();
        PROFILES.iter().for_each(|profile| down.extend(["--profile", profile]));
        down.extend(["down", "--volumes", "--remove-orphans", "--timeout", "2"]);
        // There may be nothing to remove.
        let _ = self.run_with(&["compose.yaml", "replicas.yaml"], &down, &[0]);
    }

    /// Whether something of the project is left; what.
    ///
    /// # Errors
    /// If Docker does not answer.
    pub fn remains() -> Result<Vec<String>> {
        let own = label("project", PROJECT);
        let mut left = Vec::new();
        for what in [&["ps", "-aq"][..], &["network", "ls", "-q"], &["volume", "ls", "-q"]] {
            let ids = docker(&[what, &["--filter", &own]].concat())?;
            left.extend(ids.lines().map(|id| format!("{} {id}", what[0])));
        }
        Ok(left)
    }
}

fn label(name: &str, value: &str) -> String {
    format!("label=com.docker.compose.{name}={value}")
}

impl Drop for Compose {
    fn drop(&mut self) {
        self.down();
    }
}

/// The network of daemons, engines and gateways.
pub fn network() -> String {
    format!("{PROJECT}_inside")
}

/// Where the files of compose are.
pub fn directory() -> PathBuf {
    build::root().join("docker")
}

/// Runs a command of `docker`; what it wrote.
///
/// # Errors
/// If it fails, with its own words.
pub fn docker(args: &[&str]) -> Result<String> {
    output(Command::new("docker").args(args))
}

/// Runs a command to its end; what it wrote.
///
/// # Errors
/// If it fails, with its own words.
pub fn output(command: &mut Command) -> Result<String> {
    output_of(command, &[0])
}

fn output_of(command: &mut Command, codes: &[i32]) -> Result<String> {
    let out = command.output().with_context(|| format!("{command:?}"))?;
    let [said, complained] = [out.stdout, out.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    ensure!(
        out.status.code().is_some_and(|code| codes.contains(&code)),
        "{:?}: {}\n{said}{complained}",
        command.get_args(),
        out.status
    );
    Ok(said)
}

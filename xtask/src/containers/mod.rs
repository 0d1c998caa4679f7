//! `cargo xtask test --stack`: the images and the stack of `docker/`, as a user starts them, and what can happen to them.
//!
//! The base is made by `docker/base.sh`, as in a network without a registry, and the programs are those of this build. Grafana is left
//! out: no image of it can be made here; everything that it would ask of Prometheus is asked by the test.

mod compose;
mod faults;
mod images;
mod load;
mod queries;
mod rolling;
mod trace;
mod vllm;

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use system_tests::{docs, metrics};

use crate::build;
use crate::test::Tally;
use compose::{Compose, directory};

/// What runs. Grafana does not.
const SERVICES: [&str; 6] = ["vnpu-daemon-0", "vnpu-daemon-1", "engine-0", "engine-1", "gateway", "prometheus"];
/// What the demo's table is made of here: fewer requests than a user's.
const PROMPTS: &str = "20";

/// Until Prometheus has looked at everyone: some of its looks.
const LOOKED_AT_MAX: Duration = Duration::from_secs(30);

/// What compose.yaml leaves engines to end what runs.
const GRACE: Duration = Duration::from_secs(70);

/// A step's name and what it does.
type Step = (&'static str, fn(&mut Compose) -> Result<()>);

/// Builds, starts, tries, ends.
///
/// # Errors
/// If there is no Docker or compose, or nothing can be built.
pub fn run(filter: &str) -> Result<Tally> {
    let answers = Command::new("docker").arg("version").output().is_ok_and(|out| out.status.success());
    ensure!(
        answers,
        "missing: Docker. Install it (apt-get install docker.io docker-compose) and start it, or leave --stack out"
    );
    build::programs()?;
    let start = Instant::now();
    images::build(compose::TAG, false)?;
    images::stand_in()?;
    println!("   images in {} s", start.elapsed().as_secs());
    let tally = tried(&mut Compose::new()?, filter);
    images::remove(compose::TAG);
    let (mut tally, left) = (tally, [Compose::remains()?, images::remain()?].concat());
    if left.is_empty() {
        tally.passed += 1;
    } else {
        println!("stack nothing_is_left_behind ... FAILED: {}", left.join(", "));
        tally.failed += 1;
    }
    Ok(tally)
}

/// What comes later stands on what comes first: these are always run, in this order.
const STANDS_ON: [&str; 2] = ["stack_starts_and_answers_with_a_key", "replicas_start_and_prometheus_looks_at_each"];

fn tried(compose: &mut Compose, filter: &str) -> Tally {
    let steps: [Step; 12] = [
        ("commands_of_the_documentation_run", documented),
        ("every_profile_is_sound", profiles),
        ("images_are_small_and_have_no_shell", |_| images::look()),
        (STANDS_ON[0], started),
        ("containers_have_no_root_and_nothing_to_write_to", |compose| images::confined(compose, &SERVICES)),
        ("load_generator_prints_the_table_of_the_demo", table),
        ("every_query_has_an_answer_from_the_stacks_own_prometheus", queries::all),
        ("an_image_that_is_none_of_ours_serves_on_the_virtual_device", |compose| vllm::all(compose, &key("demo_key")?)),
        (STANDS_ON[1], replicas),
        ("each_container_fails_in_every_way_and_all_recovers", |compose| faults::all(compose, &key("demo_key")?)),
        ("rolling_restart_of_gateways_and_engines_drops_no_request", |compose| {
            rolling::all(compose, &key("load_key")?)
        }),
        ("requests_are_traced_to_a_collector", |compose| trace::all(compose, &key("demo_key")?)),
    ];
    let again: Step = ("images_are_the_same_when_built_again", |compose| {
        compose.down();
        images::again()
    });
    let mut tally = Tally::default();
    // Whatever fails, the others are tried, but for those that stand on it.
    for (name, step) in steps.into_iter().chain([again]) {
        if !name.contains(filter) && !STANDS_ON.contains(&name) {
            continue;
        }
        let start = Instant::now();
        match step(compose) {
            Ok(()) => {
                println!("stack {name} ... ok ({} s)", start.elapsed().as_secs());
                tally.passed += 1;
            }
            Err(error) => {
                println!("stack {name} ... FAILED: {error:#}");
                tally.failed += 1;
                if STANDS_ON.contains(&name) {
                    break;
                }
            }
        }
    }
    compose.down();
    tally
}

/// Every command of the documentation that wants images and containers, as it stands there. Each page ends what it started.
fn documented(compose: &mut Compose) -> Result<()> {
    compose.set("LOADGEN_PROMPTS", PROMPTS);
    let around = compose.surroundings();
    let mut commands = 0;
    for page in docs::pages()? {
        let ran = docs::run_page_in(&page, &["docker"], &around, &mut |command| println!("   {command}"));
        if ran.as_ref().map_or(true, |&count| count > 0) {
            compose.down();
        }
        commands += ran?;
    }
    ensure!(commands >= 8, "only {commands} commands");
    Ok(())
}

/// Compose takes the file with each profile, those too whose images cannot be had here.
fn profiles(compose: &mut Compose) -> Result<()> {
    for profile in compose::PROFILES {
        let services = compose.run(&["--profile", profile, "config", "--services"])?;
        let own = match profile {
            "load" => "loadgen",
            "vllm" => "vllm",
            "trace" => "otel-collector",
            _ => "vllm-ascend",
        };
        ensure!(services.lines().any(|service| service == own), "no {own} in the profile {profile}: {services}");
    }
    Ok(())
}

/// A key that `docker/build.sh` has made.
fn key(name: &str) -> Result<String> {
    let file = directory().join("secrets").join(name);
    Ok(std::fs::read_to_string(&file).with_context(|| file.display().to_string())?.trim().to_owned())
}

/// As a user's second command, without Grafana.
fn started(compose: &mut Compose) -> Result<()> {
    let start = Instant::now();
    compose.up(&SERVICES)?;
    println!("   up in {} s", start.elapsed().as_secs());
    let gateway = compose.published("GATEWAY_PORT");
    let body = json!({ "model": "tiny-qwen2", "max_tokens": 60, "messages": [{ "role": "user", "content": "What is prefill?" }] });
    let (status, _) = gateway.send("POST", "/v1/chat/completions", &body.to_string())?;
    ensure!(status == 401, "a stranger got {status}");
    let known = gateway.with_header("authorization", &format!("Bearer {}", key("demo_key")?));
    let text = known.stream("/v1/chat/completions", &body)?.text()?;
    ensure!(text.split_whitespace().count() > 5, "the model says `{text}`");
    // Its hints came to the device that computed it, and only there.
    for (daemon, hints) in [("vnpu-daemon-0", true), ("vnpu-daemon-1", false)] {
        let got = compose.inside(daemon, 7070)?.metric("vnpu_hints_total")?;
        ensure!((got > 0.0) == hints, "{daemon} got {got} hints");
    }
    Ok(())
}

fn table(compose: &mut Compose) -> Result<()> {
    compose.set("LOADGEN_PROMPTS", PROMPTS);
    // 3 is its verdict that this machine is too busy to measure exactly; the figures are there and it has said so.
    let text = compose.run_until(&["run", "--rm", "-T", "loadgen"], &[0, 3])?;
    for words in ["emulated", "fifo", "phase", "TTFT p50", "TPOT p99", "goodput"] {
        ensure!(text.contains(words), "no `{words}` in the load generator's table: {text}");
    }
    print!("{text}");
    Ok(())
}

/// Two gateways and two engines of one model from now on; Prometheus looks at all of them.
fn replicas(compose: &mut Compose) -> Result<()> {
    compose.with_file("replicas.yaml");
    let start = Instant::now();
    compose.up(&[&SERVICES[..], &["gateway-b", "front"]].concat())?;
    // An engine that begins anew with its device is asked to stop in its first moments: it must hear that.
    ensure!(
        start.elapsed() < GRACE,
        "{:?}: somebody was not asked to stop but killed at the end of its grace",
        start.elapsed()
    );
    let (start, prometheus) = (Instant::now(), compose.published("PROMETHEUS_PORT"));
    let mut wanted: Vec<String> = ["gateway", "gateway-b", "front"].map(|name| format!("{name}:9090")).to_vec();
    wanted.extend([0, 1].map(|index| format!("engine-{index}:8000")));
    wanted.extend([0, 1].map(|index| format!("vnpu-daemon-{index}:7070")));
    wanted.sort();
    loop {
        let up = metrics::query(&prometheus, "up == 1").unwrap_or_default();
        let mut up: Vec<&str> = up.iter().filter_map(|s| s["metric"]["instance"].as_str()).collect();
        up.sort_unstable();
        if up == wanted {
            break;
        }
        ensure!(start.elapsed() < LOOKED_AT_MAX, "Prometheus sees {up:?}, not {wanted:?}");
        std::thread::sleep(Duration::from_millis(500));
    }
    // Whoever stands in front must not count requests a second time.
    let twice =
        metrics::query(&prometheus, "{job=\"front\",__name__=~\"gateway_requests.*|gen_ai.*|gateway_tenant.*\"}")?;
    ensure!(twice.is_empty(), "counted twice: {twice:?}");
    Ok(())
}

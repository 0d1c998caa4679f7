//! Dashboards, rules and alerts against a real Prometheus that scrapes the running programs: every query has an answer, every alert
//! was seen to fire, and the reference has every metric.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use stack::Http;
use system_tests::metrics::{self, Used};
use system_tests::{PATIENCE, dashboards, python, wait_for};

/// One of Prometheus' programs, from the system or from where `./x test` puts it.
fn tool(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let own = stack::source_root().unwrap().join("target/tools/prometheus/usr/bin");
    let found = std::env::split_paths(&path).chain([own]).map(|dir| dir.join(name)).find(|file| file.is_file());
    found.unwrap_or_else(|| panic!("`{name}` is missing: `./x test` fetches it, or `apt-get install prometheus`"))
}

fn rules() -> PathBuf {
    stack::source_root().unwrap().join("dashboards/prometheus")
}

fn promtool(args: &[&str]) {
    let out = Command::new(tool("promtool")).current_dir(rules()).args(args).output().unwrap();
    let said = [out.stdout, out.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(out.status.success(), "promtool {args:?}: {said}");
}

fn yaml(file: &Path) -> Value {
    serde_yaml_ng::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
}

fn list(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

/// Values of `key` in the rules of a file.
fn named(file: &str, key: &str) -> BTreeSet<String> {
    let groups = list(&yaml(&rules().join(file))["groups"]);
    groups.iter().flat_map(|g| list(&g["rules"])).filter_map(|r| Some(r[key].as_str()?.to_owned())).collect()
}

#[test]
fn dashboards_are_what_their_source_says() {
    for (path, text) in dashboards::files().unwrap() {
        let have = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(have == text, "{} is not what panels.yaml says: run `cargo xtask reference`", path.display());
    }
}

/// No Grafana runs here: what its makers publish of its format stands in for it.
#[test]
fn dashboards_have_nothing_that_grafana_does_not_know() {
    let root = stack::source_root().unwrap();
    let python = python::with_requirements("tests/python/grafana.txt").unwrap();
    let mut command = Command::new(python);
    command.arg(root.join("tests/python/grafana.py"));
    let files: Vec<PathBuf> = dashboards::files().unwrap().into_iter().map(|(path, _)| path).collect();
    let out = command.args(&files).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(String::from_utf8_lossy(&out.stdout).lines().count(), files.len(), "each was read");
}

/// What Grafana is told to load is where compose puts it, and its Prometheus is compose's.
#[test]
fn provisioning_names_what_compose_has() {
    let root = stack::source_root().unwrap();
    let services = &yaml(&root.join("docker/compose.yaml"))["services"];
    let grafana = root.join("dashboards/grafana");
    let mounts = list(&services["grafana"]["volumes"]);
    let inside = |own: &str| {
        let mount =
            mounts.iter().find_map(|mount| mount.as_str()?.strip_prefix(own)?.strip_prefix(':')?.strip_suffix(":ro"));
        mount.unwrap_or_else(|| panic!("{own} is not mounted")).to_owned()
    };
    assert_eq!(inside("../dashboards/grafana/provisioning"), "/etc/grafana/provisioning");
    let providers = list(&yaml(&grafana.join("provisioning/dashboards/flexnpu.yaml"))["providers"]);
    let paths: Vec<_> = providers.iter().map(|provider| provider["options"]["path"].clone()).collect();
    assert_eq!(paths, [inside("../dashboards/grafana")]);
    let sources = list(&yaml(&grafana.join("provisioning/datasources/flexnpu.yaml"))["datasources"]);
    for source in &sources {
        let url = source["url"].as_str().unwrap();
        let (service, port) = url.strip_prefix("http://").and_then(|authority| authority.split_once(':')).unwrap();
        let published = list(&services[service]["ports"]);
        assert!(
            published.iter().any(|own| own.as_str().is_some_and(|own| own.ends_with(&format!(":{port}")))),
            "{url}"
        );
    }
    assert_eq!(sources.iter().filter(|source| source["isDefault"] == true).count(), 1, "what a dashboard asks first");
}

#[test]
fn the_tenant_dashboard_shows_every_figure_of_tenants() {
    let reference = std::fs::read_to_string(stack::source_root().unwrap().join("docs/reference/metrics.md")).unwrap();
    let words = reference.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let metrics: BTreeSet<&str> = words.filter(|word| word.starts_with("vnpu_tenant_")).collect();
    assert!(metrics.len() >= 12, "{metrics:?}");
    let queries = dashboards::queries().unwrap();
    let shown = |metric: &str| {
        queries.iter().any(|(place, expr)| place.starts_with("FlexNPU tenant") && expr.contains(&format!("{metric}{{")))
    };
    let missing: Vec<_> = metrics.into_iter().filter(|metric| !shown(metric)).collect();
    assert!(missing.is_empty(), "not on the tenant dashboard: {missing:?}");
}

#[test]
fn rules_beside_the_dashboards_are_sound_and_every_alert_has_been_seen_to_fire() {
    promtool(&["check", "config", "prometheus.yaml"]);
    promtool(&["test", "rules", "tests.yaml"]);
    let tests = list(&yaml(&rules().join("tests.yaml"))["tests"]);
    let cases = tests.iter().flat_map(|test| list(&test["alert_rule_test"]));
    let fired: BTreeSet<String> = cases
        .filter(|case| !list(&case["exp_alerts"]).is_empty())
        .map(|case| case["alertname"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(named("alerts.yaml", "alert"), fired, "each alert has a test in which it fires");
}

/// A Prometheus with our rules that scrapes these programs every second; ends with the value.
struct Prometheus {
    child: Child,
    http: Http,
    _dir: tempfile::TempDir,
}

impl Prometheus {
    fn scraping(programs: &[(&str, Http)]) -> Self {
        let dir = stack::scratch().unwrap();
        let mut config = "global: { scrape_interval: 1s, evaluation_interval: 1s }\nrule_files:\n".to_owned();
        for file in ["recording.yaml", "alerts.yaml"] {
            config += &format!("  - {}\n", rules().join(file).display());
        }
        config += "scrape_configs:\n";
        for (job, http) in programs {
            config +=
                &format!("  - {{ job_name: {job}, static_configs: [{{ targets: ['{}'] }}] }}\n", http.authority());
        }
        let file = dir.path().join("prometheus.yaml");
        std::fs::write(&file, config).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = Command::new(tool("prometheus"));
        command.arg(format!("--config.file={}", file.display()));
        command.arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()));
        command.arg(format!("--web.listen-address=127.0.0.1:{port}"));
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let own = Self { child, http: Http::new(&format!("http://127.0.0.1:{port}")), _dir: dir };
        wait_for("Prometheus to be ready", || own.http.get("/-/ready").is_ok());
        own
    }

    /// True if the query has at least one sample, each a number.
    fn answers(&self, expr: &str) -> bool {
        let samples = metrics::query(&self.http, expr).unwrap();
        let number = |s: &Value| s["value"][1].as_str().is_some_and(|v| v.parse::<f64>().is_ok_and(f64::is_finite));
        !samples.is_empty() && samples.iter().all(number)
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn every_query_of_the_dashboards_is_answered_and_every_metric_is_in_the_reference() {
    let used = Used::start().unwrap();
    let programs = used.programs().unwrap();
    let prometheus = Prometheus::scraping(&programs);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                used.use_a_little().unwrap();
            }
        });
        let recorded = named("recording.yaml", "record").into_iter().map(|name| ("recording rule".to_owned(), name));
        let mut open: Vec<(String, String)> = dashboards::queries()
            .unwrap()
            .into_iter()
            .map(|(place, expr)| (place, dashboards::plain(&expr, "30s")))
            .chain(recorded)
            .collect();
        assert!(open.len() > 60, "only {} queries were read", open.len());
        let deadline = Instant::now() + PATIENCE;
        while !open.is_empty() && Instant::now() < deadline && !load.is_finished() {
            open.retain(|(_, expr)| !prometheus.answers(expr));
            std::thread::sleep(Duration::from_millis(500));
        }
        over.store(true, Ordering::Relaxed);
        load.join().unwrap();
        assert!(open.is_empty(), "these have no answer: {open:#?}");
    });
    let groups = list(&prometheus.http.get_json("/api/v1/rules").unwrap()["data"]["groups"]);
    let rules: Vec<Value> = groups.iter().flat_map(|group| list(&group["rules"])).collect();
    assert!(rules.len() >= 20, "{rules:?}");
    for rule in &rules {
        assert!(rule["health"] == "ok" && rule["state"] != "firing", "{rule}");
    }
    let pages = programs.each_ref().map(|(name, http)| (*name, http.get("/metrics").unwrap()));
    let have = std::fs::read_to_string(stack::source_root().unwrap().join("docs/reference/metrics.md")).unwrap();
    assert!(
        have == metrics::reference(&pages),
        "docs/reference/metrics.md is not what the programs say: run `cargo xtask reference`"
    );
}

//! The dashboards' queries and the rules, on the Prometheus of the stack.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::Value;
use system_tests::{dashboards, metrics};

use super::compose::Compose;
use super::key;
use super::load::Load;

/// Rates need a few scrapes of 5 s.
const PATIENCE: Duration = Duration::from_secs(90);

/// Asks everything until it is answered, under load of both tenants; then looks at the rules.
///
/// # Errors
/// What has no answer, or which rule does not work.
pub fn all(compose: &mut Compose) -> Result<()> {
    let prometheus = compose.published("PROMETHEUS_PORT");
    let gateway = compose.published("GATEWAY_PORT");
    // A limit is shown where there is one.
    let limit = r#"{"memory_limit_bytes":1000000000}"#;
    let (status, answer) = compose.inside("vnpu-daemon-0", 7070)?.send("PUT", "/v1/tenants/default", limit)?;
    ensure!(status == 200, "a limit for the tenant: {status} {answer}");
    let mut loads = Vec::new();
    for name in ["demo_key", "load_key"] {
        loads.push(Load::start(&gateway.with_header("authorization", &format!("Bearer {}", key(name)?))));
    }
    let plain = |(place, expr): (String, String)| (place, dashboards::plain(&expr, "1m"));
    let mut open: Vec<(String, String)> = dashboards::queries()?.into_iter().map(plain).collect();
    let asked = open.len();
    let start = Instant::now();
    // What a text teaches about its tokens, and who is refused: the clients of the load send numbers and have keys.
    let text = serde_json::json!({ "model": "tiny-qwen2", "prompt": "how many tokens are these? ".repeat(10), "max_tokens": 4 });
    while !open.is_empty() && start.elapsed() < PATIENCE {
        gateway.send("POST", "/v1/completions", &text.to_string())?;
        gateway
            .with_header("authorization", &format!("Bearer {}", key("demo_key")?))
            .post_json("/v1/completions", &text)?;
        let mut without = Vec::new();
        for (place, expr) in open {
            let number = |s: &Value| s["value"][1].as_str().is_some_and(|v| v.parse::<f64>().is_ok_and(f64::is_finite));
            if !metrics::query(&prometheus, &expr)?.iter().any(number) {
                without.push((place, expr));
            }
        }
        open = without;
        std::thread::sleep(Duration::from_secs(1));
    }
    for load in loads {
        let ends = load.end()?;
        ensure!(ends.failures() == 0, "requests failed: {:?}", ends.failed);
    }
    ensure!(open.is_empty(), "{} of {asked} queries have no answer: {open:#?}", open.len());
    println!("   {asked} queries answered within {} s", start.elapsed().as_secs());
    let rules: Value = prometheus.get_json("/api/v1/rules")?;
    let groups = rules["data"]["groups"].as_array().cloned().unwrap_or_default();
    let rules: Vec<Value> = groups.iter().flat_map(|g| g["rules"].as_array().cloned().unwrap_or_default()).collect();
    ensure!(rules.len() >= 20, "only {} rules", rules.len());
    for rule in &rules {
        ensure!(rule["health"] == "ok", "{rule}");
        ensure!(rule["state"] != "firing" || rule["labels"]["severity"] != "page", "{rule}");
    }
    Ok(())
}

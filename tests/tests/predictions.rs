//! How well operators' times are predicted, as the daemon tells it: `/v1/status` and `vnpu_prediction_*` of `/metrics`.

use serde_json::{Value, json};
use stack::{Daemon, Engine, Via};

const QWEN: [&str; 8] =
    ["--model-preset", "qwen2.5-7b", "--load-format", "dummy", "--dtype", "bfloat16", "--served-model-name", "m"];

/// Samples of a metric as labels and value; the name stands before the labels.
fn metric(page: &str, name: &str) -> Vec<(String, f64)> {
    let of = |line: &str| {
        let (labels, value) = line.strip_prefix(name)?.strip_prefix('{')?.split_once("} ")?;
        Some((labels.to_owned(), value.parse().unwrap()))
    };
    page.lines().filter_map(of).collect()
}

/// Sum over a phase's sizes.
fn total(page: &str, name: &str, phase: &str) -> f64 {
    let label = format!("phase=\"{phase}\"");
    metric(page, name).iter().filter(|(labels, _)| labels.contains(&label)).map(|(_, v)| v).sum()
}

/// Serves a few requests one after the other, so that operators have the device for themselves; status and metrics.
fn served(policy: &str) -> (Value, String) {
    let dir = stack::scratch().unwrap();
    let daemon = Daemon::start(dir.path(), "Ascend910B3:timing:paced:omega=0.5", policy).unwrap();
    let engine = Engine::start(&Via::Daemon(&daemon), None, &QWEN).unwrap();
    for i in 0..6 {
        let prompt: Vec<u32> = (0..600).map(|k| 1 + (k * 7 + i * 13) % 900).collect();
        let body = json!({ "model": "m", "prompt": prompt, "max_tokens": 16, "ignore_eos": true });
        engine.http.post_json("/v1/completions", &body).unwrap();
    }
    (daemon.status().unwrap(), daemon.admin.get("/metrics").unwrap())
}

#[test]
fn prediction_errors_are_reported_by_phase_and_size_under_every_kind_of_policy() {
    // The device is the cost model: nothing is off. With a quarter of the cores for prefill, which the cost model does not
    // know, prefill takes longer than predicted, and what is learnt corrects that.
    for (policy, off) in [("phase", false), ("fifo", false), ("core-split:prefill_part=0.25", true)] {
        let (status, page) = served(policy);
        for phase in ["prefill", "decode"] {
            let sum = |name: &str| total(&page, name, phase);
            let [measured, error, corrected] =
                ["measured", "error", "corrected_error"].map(|n| sum(&format!("vnpu_prediction_{n}_seconds_total")));
            assert!(sum("vnpu_prediction_samples_total") > 1000.0 && measured > 0.0, "{policy}, {phase}:\n{page}");
            if off && phase == "prefill" {
                assert!(error > 0.3 * measured, "{policy}: {error} s off in {measured} s");
                assert!(corrected < 0.5 * error, "{policy}: corrected {corrected} s, before {error} s");
            } else if !off {
                assert!(error < 0.01 * measured, "{policy}, {phase}: {error} s off in {measured} s");
            }
        }
        // Both ways to ask tell the same.
        let sizes = metric(&page, "vnpu_prediction_mean_relative_error");
        let predictions = status["predictions"].as_array().unwrap();
        assert_eq!(sizes.len(), predictions.len(), "{policy}");
        for p in predictions {
            let size = p["size_from_ns"].as_u64().unwrap() / 1000;
            let labels = format!("phase=\"{}\",size_from_us=\"{size}\"", p["phase"].as_str().unwrap());
            let (_, shown) = sizes.iter().find(|(l, _)| *l == labels).unwrap_or_else(|| panic!("{labels}:\n{page}"));
            let told = p["mean_relative_error"].as_f64().unwrap();
            assert!((shown - told).abs() < 1e-9, "{policy}, {labels}: {shown} and {told}");
        }
    }
}

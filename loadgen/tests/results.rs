//! Results: percentiles checked against the log, comparisons, search.

mod common;

use std::process::{Command, Stdio};

use common::{Mock, PROGRAM, figures, loadgen, number, run, text};
use serde_json::Value;

/// Nearest rank, written once more.
fn rank(mut values: Vec<f64>, p: f64) -> f64 {
    values.sort_by(|a, b| a.partial_cmp(b).unwrap());
    values[((values.len() as f64 * p / 100.0).ceil() as usize).max(1) - 1]
}

fn close(what: &str, got: f64, want: f64) {
    assert!((got - want).abs() <= 1e-6 * want.abs().max(1.0), "{what}: {got}, the log says {want}");
}

#[test]
fn percentiles_equal_a_computation_from_the_log() {
    let mock = Mock::start(&["--ttft-ms", "10", "--itl-ms", "3", "--tokens-per-chunk", "2", "--error-every", "9"]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("result.json");
    let (out, flat) = run(
        &mock,
        &[
            &["--num-prompts", "80", "--request-rate", "100", "--random-output-len", "9", "--save-result"][..],
            &["--save-detailed", "--result-filename", path.to_str().unwrap()],
        ]
        .concat(),
    );
    assert!(matches!(out.status.code(), Some(0 | 3)), "{}", text(&out));
    let result = figures(&path);
    let at = |r: &Value, name: &str| r[name].as_f64().unwrap();
    let chunks =
        |r: &Value| -> Vec<f64> { r["chunks_ns"].as_array().unwrap().iter().map(|t| t.as_f64().unwrap()).collect() };
    let log: Vec<&Value> = result["requests"].as_array().unwrap().iter().filter(|r| r["error"].is_null()).collect();
    assert_eq!((log.len(), number(&flat, "failed")), (72, 8.0));
    let each = |f: &dyn Fn(&Value) -> f64| -> Vec<f64> { log.iter().map(|r| f(r) / 1e6).collect() };
    let ttft = each(&|r| chunks(r)[0] - at(r, "scheduled_ns"));
    let sent = each(&|r| chunks(r)[0] - at(r, "sent_ns"));
    let tpot = each(&|r| (chunks(r)[chunks(r).len() - 1] - chunks(r)[0]) / (at(r, "output_tokens") - 1.0));
    let e2el = each(&|r| chunks(r)[chunks(r).len() - 1] - at(r, "scheduled_ns"));
    let itl: Vec<f64> =
        log.iter().flat_map(|r| chunks(r).windows(2).map(|w| (w[1] - w[0]) / 1e6).collect::<Vec<_>>()).collect();
    for (name, values) in [("ttft", &ttft), ("ttft_from_send", &sent), ("tpot", &tpot), ("e2el", &e2el), ("itl", &itl)]
    {
        for p in [50.0, 90.0, 99.0] {
            close(&format!("{name} p{p}"), number(&flat, &format!("{name}_p{p}_ms")), rank(values.clone(), p));
        }
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        close(&format!("{name} mean"), number(&flat, &format!("{name}_mean_ms")), mean);
    }
    close("vLLM's TTFT is from send", number(&result, "p99_ttft_ms"), rank(sent, 99.0));
    assert_eq!(result["loadgen"]["version"], 1);
}

#[test]
fn compare_tells_a_slower_server_and_refuses_another_workload() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let save = |name: &str, ttft_ms: &str, seed: &str| {
        let mock = Mock::start(&["--ttft-ms", ttft_ms, "--itl-ms", "1"]);
        let (out, _) = run(
            &mock,
            &[
                &["--num-prompts", "40", "--request-rate", "80", "--random-output-len", "3", "--seed", seed][..],
                &["--save-result", "--result-filename", &path(name)],
            ]
            .concat(),
        );
        assert!(matches!(out.status.code(), Some(0 | 3)), "{}", text(&out));
    };
    save("fast.json", "5", "0");
    save("slow.json", "400", "0");
    save("other.json", "5", "1");
    let json = path("compared.json");
    let out = loadgen(&["compare", &path("fast.json"), &path("slow.json"), "--json", &json]);
    assert!(out.status.success(), "{}", text(&out));
    let compared = figures(json.as_ref());
    assert_eq!(compared["ttft_p50_verdict"], "worse", "{}", text(&out));
    assert!(number(&compared, "ttft_p50_difference") > 100.0);
    assert_eq!(compared["ttft_p99_verdict"], "no evidence", "forty requests say nothing of p99");
    let ignored = loadgen(&["ab", "--base-url-b", "http://127.0.0.1:9", "--save-result"]);
    assert!(text(&ignored).contains("are for one run"), "{}", text(&ignored));
    let refused = loadgen(&["compare", &path("fast.json"), &path("other.json")]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused).contains("different workloads"), "{}", text(&refused));
}

#[test]
fn ab_measures_in_turns() {
    let (fast, slow) = (Mock::start(&["--ttft-ms", "5"]), Mock::start(&["--ttft-ms", "300"]));
    let flags = ["--num-prompts", "10", "--random-output-len", "1", "--rounds", "3", "--no-progress"];
    let out = loadgen(&[&["ab", "--base-url", &fast.url, "--base-url-b", &slow.url][..], &flags].concat());
    assert!(matches!(out.status.code(), Some(0 | 3)), "{}", text(&out));
    let text = text(&out);
    let row = text.lines().find(|l| l.starts_with("ttft_p50")).unwrap_or_else(|| panic!("{text}"));
    assert!(row.ends_with("worse"), "{row}");
    assert_eq!(text.lines().filter(|l| l.starts_with("round ")).count(), 6);
}

#[test]
fn search_encloses_what_the_server_can_do() {
    // Four at a time, 100 ms each: 40 requests a second.
    let mock = Mock::start(&["--ttft-ms", "100", "--slots", "4"]);
    let dir = tempfile::tempdir().unwrap();
    let (json, page) = (dir.path().join("search.json"), dir.path().join("search.html"));
    let out = loadgen(
        &[
            &[
                "search",
                "--base-url",
                &mock.url,
                "--random-output-len",
                "1",
                "--slo",
                "ttft:p99<800ms",
                "--no-progress",
            ][..],
            &["--start-rate", "20", "--probe-seconds", "2", "--precision", "1", "--json", json.to_str().unwrap()],
            &["--html", page.to_str().unwrap()],
        ]
        .concat(),
    );
    match out.status.code() {
        Some(0) => {
            let found = figures(&json);
            assert!(std::fs::read_to_string(&page).unwrap().contains("ttft p99 against the rate"));
            let (met, missed) = (number(&found, "rate_met"), number(&found, "rate_missed"));
            assert!(met < missed && met < 80.0, "{found}: 80 a second wait for over a second: {}", text(&out));
        }
        Some(3) => assert!(text(&out).contains("CLIENT-LIMITED"), "{}", text(&out)),
        other => panic!("{other:?}: {}", text(&out)),
    }
}

#[test]
fn sweep_measures_each_load_by_itself() {
    // Two at a time, 50 ms each: 40 requests a second.
    let mock = Mock::start(&["--ttft-ms", "50", "--slots", "2"]);
    let dir = tempfile::tempdir().unwrap();
    let (json, page) = (dir.path().join("sweep.json"), dir.path().join("sweep.html"));
    let sweep = |flags: &[&str]| {
        let common =
            ["sweep", "--base-url", &mock.url, "--random-output-len", "1", "--no-progress", "--num-prompts", "40"];
        let files = ["--json", json.to_str().unwrap(), "--html", page.to_str().unwrap()];
        let out = loadgen(&[&common[..], &files, &["--pause-seconds", "0.1"], flags].concat());
        // On a busy machine one of the runs may have been the client's fault.
        assert!(matches!(out.status.code(), Some(0 | 3)), "{}", text(&out));
        (text(&out), figures(&json))
    };
    let (words, rates) = sweep(&["--request-rates", "10,160", "--slo", "ttft:p50<250ms"]);
    let slow = number(&rates, "request_rate_10_ttft_p50_ms");
    let fast = number(&rates, "request_rate_160_ttft_p50_ms");
    // 40 requests in a quarter of a second take a second: half wait for longer than 250 ms.
    assert!((50.0..250.0).contains(&slow) && fast > 250.0, "{slow} and {fast} ms\n{words}");
    assert!(words.contains("CLIENT-LIMITED") || words.contains("missed, ttft p50"), "{words}");
    let shown = std::fs::read_to_string(&page).unwrap();
    assert!(shown.contains("ttft p50 against the rate") && shown.contains("line d") && shown.contains("e2el p99"));
    let (words, at_once) = sweep(&["--concurrencies", "1,8"]);
    let (one, eight) =
        (number(&at_once, "max_concurrency_1_e2el_from_send_p50_ms"), "max_concurrency_8_e2el_from_send_p50_ms");
    assert!(number(&at_once, eight) > 2.0 * one, "eight queue for two places\n{words}");
    assert!(words.contains("requests at once") && words.contains("ttft_from_send p50"), "{words}");
}

#[test]
fn page_table_completions_and_manual_are_written() {
    let mock = Mock::start(&["--ttft-ms", "2", "--itl-ms", "1", "--error-every", "10"]);
    let dir = tempfile::tempdir().unwrap();
    let (page, csv) = (dir.path().join("run.html"), dir.path().join("run.csv"));
    let files = ["--html", page.to_str().unwrap(), "--csv", csv.to_str().unwrap()];
    let (out, _) =
        run(&mock, &[&["--num-prompts", "60", "--random-output-len", "4", "--seed", "77"], &files[..]].concat());
    let page = std::fs::read_to_string(page).unwrap_or_else(|e| panic!("{e}: {}", text(&out)));
    assert!(page.contains("seed 77") && page.contains("as --error-every asks") && page.ends_with("</html>\n"));
    assert_eq!(std::fs::read_to_string(csv).unwrap().lines().count(), 61);
    for (args, want) in [(&["completions", "bash"][..], "--request-rate"), (&["man"], "request\\-rate")] {
        let out = loadgen(args);
        assert!(out.status.success() && text(&out).contains(want), "{args:?}");
    }
}

/// `loadgen … | head`: the reader leaves, the run goes on to its end and its exit code.
#[test]
fn a_reader_that_leaves_takes_nothing_with_it() {
    let mock = Mock::start(&["--ttft-ms", "2", "--itl-ms", "1"]);
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("figures.json");
    let run = ["--base-url", &mock.url, "--no-progress", "--num-prompts", "3", "--json", json.to_str().unwrap()];
    let dry = ["--dry-run", "--num-prompts", "5000"];
    for args in [&run[..], &dry[..], &["man"], &["completions", "zsh"]] {
        let mut child = Command::new(PROGRAM).args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let out = child.wait_with_output().unwrap();
        assert_eq!((out.status.code(), text(&out)), (Some(0), String::new()), "{args:?}");
    }
    assert_eq!(figures(&json)["completed"], 3);
}

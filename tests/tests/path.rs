//! One request the whole way: client → gateway → engine → interposer → vnpu-daemon → emulated device.

use serde_json::json;
use stack::{Daemon, StreamEvent, Via};
use system_tests::{FUNCTIONAL, MODEL, Path, greedy, tiny_engine, wait_for};

/// Prompts that exercise different lengths, below and above one KV block.
fn prompts() -> Vec<serde_json::Value> {
    let text = ["Hello", "What is prefill?", "A stream is", "The capital of France", "Who are you?", "Count to"];
    let mut prompts: Vec<_> = text.iter().map(|t| json!(t)).collect();
    for length in [1usize, 2, 31, 127, 128, 129, 200, 256, 257, 300, 5, 17, 64, 99] {
        prompts.push(json!((0..length).map(|i| 1 + (i * 31 + length * 7) % 900).collect::<Vec<_>>()));
    }
    prompts
}

#[test]
fn chat_streams_readable_words_through_every_process() {
    let path = Path::tiny(&[]);
    let body = json!({ "model": MODEL, "messages": [{ "role": "user", "content": "What is prefill?" }], "temperature": 0, "max_tokens": 100 });
    let mut stream = path.gateway.http.stream("/v1/chat/completions", &body).unwrap();
    let streamed = stream.text().unwrap();
    assert_eq!(stream.finish_reason(), Some("stop"), "{streamed}");
    let words = streamed
        .split_whitespace()
        .filter(|w| w.chars().all(|c| c.is_ascii_alphanumeric() || ".,!?'-:;()".contains(c)));
    assert!(words.count() >= 4, "not readable: {streamed}");
    let whole = path.gateway.http.post_json("/v1/chat/completions", &body).unwrap();
    assert_eq!(whole["choices"][0]["message"]["content"], streamed, "streamed and whole answers agree");
    assert!(whole["usage"]["completion_tokens"].as_u64().unwrap() > 4);
    // The operators really went through the daemon, and the hints reached it.
    let status = path.daemon.status().unwrap();
    assert!(status["device"]["label"].as_str().unwrap().contains("emulated"), "{status}");
    let operators = path.daemon.admin.metric("vnpu_operators_completed_total").unwrap();
    assert!(operators > 100.0, "{operators} operators");
    wait_for("hints at the daemon", || path.daemon.admin.metric("vnpu_hints_total").is_ok_and(|n| n >= 4.0));
}

#[test]
fn tokens_are_the_same_in_direct_mode_and_through_the_daemon() {
    let dir = stack::scratch().unwrap();
    let daemon = Daemon::start(dir.path(), FUNCTIONAL, "phase").unwrap();
    let through = tiny_engine(&Via::Daemon(&daemon), None, &[]);
    let direct = tiny_engine(&Via::Direct(FUNCTIONAL), None, &[]);
    for prompt in prompts() {
        let (a, b) = (greedy(&direct.http, &prompt, 24), greedy(&through.http, &prompt, 24));
        assert_eq!(a, b, "prompt {prompt}");
        assert!(!a.is_empty());
    }
}

#[test]
fn batching_chunking_and_preemption_change_no_token() {
    let dir = stack::scratch().unwrap();
    let daemon = Daemon::start(dir.path(), FUNCTIONAL, "phase").unwrap();
    let via = Via::Daemon(&daemon);
    let alone = tiny_engine(&via, None, &["--max-num-seqs", "1"]);
    let prompts: Vec<_> = prompts().into_iter().take(16).collect();
    let want: Vec<String> = prompts.iter().map(|p| greedy(&alone.http, p, 40)).collect();
    drop(alone);
    // Small blocks and few of them: sixteen sequences at once do not fit, so some lose theirs and start over.
    let tight = ["--max-num-seqs", "16", "--block-size", "16", "--num-kv-blocks", "22", "--max-model-len", "341"];
    let cases: [(&str, &[&str]); 4] = [
        ("batch of 16", &["--max-num-seqs", "16"]),
        ("chunked prefill", &["--max-num-seqs", "16", "--enable-chunked-prefill", "--max-num-batched-tokens", "32"]),
        ("mixed batches", &["--max-num-seqs", "16", "--mixed-batches", "--max-num-batched-tokens", "48"]),
        ("preemption", &tight),
    ];
    for (name, args) in cases {
        let engine = tiny_engine(&via, None, args);
        // Staggered, so that sequences join a batch that is already running; all at once where blocks are to run out.
        let stagger_ms = if name == "preemption" { 0 } else { 7 };
        let got: Vec<String> = std::thread::scope(|scope| {
            let tasks: Vec<_> = prompts
                .iter()
                .enumerate()
                .map(|(i, prompt)| {
                    let http = engine.http.clone();
                    scope.spawn(move || {
                        std::thread::sleep(std::time::Duration::from_millis(i as u64 * stagger_ms));
                        greedy(&http, prompt, 40)
                    })
                })
                .collect();
            tasks.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert_eq!(got, want, "{name}");
        if name == "preemption" {
            let preempted = engine.http.metric("vllm:num_preemptions_total").unwrap();
            assert!(preempted > 0.0, "nothing was preempted: the case does not test what it says");
        }
    }
}

#[test]
fn client_that_leaves_frees_its_blocks() {
    let path = Path::tiny(&[]);
    let used = || path.engine.http.metric("vllm:kv_cache_usage_perc").unwrap();
    assert_eq!(used(), 0.0);
    let body = json!({ "model": MODEL, "prompt": "Hello", "max_tokens": 1500, "ignore_eos": true });
    let mut stream = path.gateway.http.stream("/v1/completions", &body).unwrap();
    assert!(matches!(stream.next(), Some(Ok(StreamEvent::Text(..)))));
    assert!(used() > 0.0);
    drop(stream);
    wait_for("KV blocks freed", || used() == 0.0);
    assert_eq!(path.engine.http.metric("engine_requests_aborted_total").unwrap(), 1.0);
    assert!(!greedy(&path.gateway.http, &json!("Hello"), 8).is_empty(), "and it still serves");
}

#[test]
fn loadgen_measures_the_path() {
    let path = Path::tiny(&[]);
    let json = path.dir.path().join("figures.json");
    let out = std::process::Command::new(stack::program_path("loadgen").unwrap())
        .args(["--base-url", path.gateway.http.url(), "--num-prompts", "20", "--request-rate", "20", "--ignore-eos"])
        .args([
            "--random-input-len",
            "40",
            "--random-output-len",
            "12",
            "--goodput",
            "ttft:60000",
            "tpot:60000",
            "--json",
        ])
        .arg(&json)
        .output()
        .unwrap();
    // 3: the machine was too busy to measure exactly, which is not what this is about.
    assert!(matches!(out.status.code(), Some(0 | 3)), "{}", String::from_utf8_lossy(&out.stderr));
    let figures: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(json).unwrap()).unwrap();
    let number = |name: &str| figures[name].as_f64().unwrap_or_else(|| panic!("{name} in {figures}"));
    assert_eq!((number("completed"), number("failed")), (20.0, 0.0));
    assert_eq!(number("output_tokens"), 240.0);
    assert_eq!(number("prompt_tokens"), 800.0);
    assert_eq!(number("goodput_share"), 1.0);
    assert!(number("ttft_p50_ms") > 0.0 && number("ttft_p99_ms") >= number("ttft_p50_ms"));
    assert!(number("e2el_p50_ms") > number("ttft_p50_ms"));
}

#[test]
fn loadgen_fails_when_every_request_does() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let out = std::process::Command::new(stack::program_path("loadgen").unwrap())
        .args(["--base-url", &format!("http://{closed}"), "--model", "m", "--num-prompts", "2"])
        .output()
        .unwrap();
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stdout).contains("failed 2×: connecting to"), "{out:?}");
}

//! Load shapes and data: what the flags make of the schedule, and what the server sees of it.

mod common;

use std::path::PathBuf;

use common::{Mock, loadgen, number, run, text};
use serde_json::Value;

/// The schedule that `flags` make.
fn schedule(flags: &[&str]) -> Vec<Value> {
    let out = loadgen(&[&["--dry-run"], flags].concat());
    assert!(out.status.success(), "{flags:?}: {}", text(&out));
    String::from_utf8(out.stdout).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

fn at_s(plan: &[Value]) -> Vec<f64> {
    plan.iter().map(|p| p["at_ns"].as_f64().unwrap() / 1e9).collect()
}

fn data(file: &str) -> String {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("data").join(file).to_str().unwrap().to_owned()
}

#[test]
fn rates_stages_and_durations_make_the_schedule_they_say() {
    let constant = ["--arrival-pattern", "constant"];
    let with = |flags: &[&str]| at_s(&schedule(&[&constant[..], flags].concat()));
    assert_eq!(with(&["--request-rate", "4", "--num-prompts", "3"]), [0.0, 0.25, 0.5]);
    assert_eq!(with(&["--request-rate", "2", "--benchmark-duration", "2"]), [0.0, 0.5, 1.0, 1.5]);
    assert_eq!(with(&["--stages", "1s:2,1s:4"]), [0.0, 0.5, 1.0, 1.25, 1.5, 1.75]);
    let ramp =
        ["--ramp-up-strategy", "linear", "--ramp-up-start-rps", "1", "--ramp-up-end-rps", "9", "--num-prompts", "50"];
    let ramp = with(&ramp);
    assert_eq!(ramp.len(), 50);
    assert!(ramp[1] - ramp[0] > 5.0 * (ramp[49] - ramp[48]), "{ramp:?}");
}

#[test]
fn a_trace_is_replayed_as_fast_as_asked() {
    let path = data("mooncake_conversation_excerpt.jsonl");
    let trace = ["--dataset-name", "trace", "--dataset-path", &path, "--num-prompts", "50"];
    let (once, twice) = (schedule(&trace), schedule(&[&trace[..], &["--trace-speedup", "2"]].concat()));
    for (a, b) in at_s(&once).iter().zip(at_s(&twice)) {
        assert!((a / 2.0 - b).abs() < 1e-6, "{a} and {b}");
    }
    let other = schedule(&[&trace[..], &["--seed", "1"]].concat());
    assert_eq!(at_s(&once), at_s(&other));
    assert_ne!(once[0]["prompt"], other[0]["prompt"], "another seed asks other tokens");
}

#[test]
fn sessions_wait_for_answers_and_think() {
    let flags = ["--num-prompts", "2", "--session-turns", "3", "--think-time", "0.2", "--random-output-len", "5"];
    let plan = schedule(&[&flags[..], &["--random-input-len", "8"]].concat());
    let lengths: Vec<u64> = plan[..3].iter().map(|p| p["prompt_tokens"].as_u64().unwrap()).collect();
    assert_eq!(lengths, [8, 21, 34], "a turn carries the questions and answers before it");
    let mock = Mock::start(&["--ttft-ms", "50", "--itl-ms", "1"]);
    let (out, figures) = run(&mock, &flags);
    assert_eq!((number(&figures, "completed"), number(&figures, "prompt_tokens")), (6.0, 126.0), "{}", text(&out));
    assert_eq!(number(&figures, "prompts_off"), 0.0);
    // Three answers and two thoughts.
    assert!(number(&figures, "duration_s") >= 0.55, "{figures}");
}

#[test]
fn a_session_whose_turn_fails_ends() {
    let mock = Mock::start(&["--ttft-ms", "1", "--itl-ms", "1", "--refuse-every", "2"]);
    let (out, figures) =
        run(&mock, &["--num-prompts", "1", "--session-turns", "4", "--random-output-len", "2", "--model", "m"]);
    assert_eq!((number(&figures, "completed"), number(&figures, "failed")), (1.0, 3.0), "{}", text(&out));
    assert!(text(&out).contains("failed 2×: not sent: a turn before it failed"), "{}", text(&out));
}

#[test]
fn clients_that_leave_are_counted_apart() {
    let mock = Mock::start(&["--ttft-ms", "60000"]);
    let flags = ["--num-prompts", "10", "--request-cancellation-rate", "100", "--request-cancellation-delay", "0.1"];
    let (_, figures) = run(&mock, &flags);
    assert_eq!(
        (number(&figures, "cancelled"), number(&figures, "failed"), number(&figures, "completed")),
        (10.0, 0.0, 0.0)
    );
    let plan = schedule(&["--num-prompts", "1000", "--request-cancellation-rate", "30"]);
    let leaving = plan.iter().filter(|p| !p["cancel_after_ns"].is_null()).count();
    assert!((200..400).contains(&leaving), "{leaving} of 1000");
}

#[test]
fn conversations_and_lines_are_sent() {
    let dir = tempfile::tempdir().unwrap();
    let chats = dir.path().join("chats.json");
    let turns = r#"{"from": "human", "value": "one two"}, {"from": "gpt", "value": "a longer answer"}, {"from": "human", "value": "three"}, {"from": "gpt", "value": "yes"}"#;
    std::fs::write(&chats, format!(r#"[{{"conversations": [{turns}]}}, {{"conversations": [{turns}]}}]"#)).unwrap();
    let lines = dir.path().join("lines.jsonl");
    std::fs::write(&lines, "{\"prompt\": [1, 2, 3], \"output_tokens\": 2}\n{\"prompt\": \"four words of text\"}\n")
        .unwrap();
    let mock = Mock::start(&["--ttft-ms", "1", "--itl-ms", "1"]);
    let send = |flags: &[&str]| {
        let (out, figures) = run(&mock, flags);
        assert_eq!(number(&figures, "failed"), 0.0, "{}", text(&out));
        ["completed", "prompt_tokens"].map(|name| number(&figures, name))
    };
    let chats = chats.to_str().unwrap();
    let chat = ["--dataset-name", "sharegpt", "--dataset-path", chats, "--endpoint", "/v1/chat/completions"];
    assert_eq!(send(&chat), [2.0, 4.0], "the first question of each, two words");
    assert_eq!(send(&[&chat[..], &["--multi-turn"]].concat()), [4.0, 16.0], "then all six words that were said");
    let custom = ["--dataset-name", "custom", "--dataset-path", lines.to_str().unwrap(), "--random-output-len", "3"];
    assert_eq!(send(&custom), [2.0, 7.0]);
}

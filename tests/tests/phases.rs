//! What the daemon makes of the operators of an engine that writes down what its steps are.

use std::io::Write;
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};
use stack::Daemon;
use system_tests::phases::{Batching, DEVICE, engine, truth, watched_engine};

#[test]
fn the_phase_of_steps_is_right_in_99_of_100_with_hints() {
    right(true, 0.99);
}

#[test]
fn the_phase_of_steps_is_right_in_95_of_100_without_hints() {
    right(false, 0.95);
}

fn right(hints: bool, least: f64) {
    let dir = stack::scratch().unwrap();
    for batching in Batching::ALL {
        let accuracy = engine(dir.path(), batching, hints, 40).unwrap();
        assert!(accuracy.steps > 50, "{batching:?}: {accuracy:?}");
        assert!(accuracy.of_steps() >= least, "{batching:?}: {accuracy:?}");
        // Before the first attention of a step the phase is a guess: a few operators in three hundred.
        assert!(accuracy.of_operators() >= 0.95, "{batching:?}: {accuracy:?}");
    }
}

#[test]
fn the_number_of_operators_a_step_is_what_the_documents_say() {
    let dir = stack::scratch().unwrap();
    let daemon = Daemon::start(dir.path(), DEVICE, "phase").unwrap();
    let log = dir.path().join("steps.jsonl");
    let engine = watched_engine(&daemon, None, &log, &[]).unwrap();
    let body = json!({ "model": "m", "prompt": [1, 2, 3], "max_tokens": 4 });
    engine.http.post_json("/v1/completions", &body).unwrap();
    let steps = daemon.admin.get_json("/v1/steps").unwrap();
    let counts: Vec<_> =
        steps.as_array().unwrap().iter().map(|s| (&s["phase"], &s["operators"], &s["attention"])).collect();
    let decode = json!(["decode", 314, 28]);
    let want = [json!(["prefill", 315, 28]), decode.clone(), decode.clone(), decode];
    let mut found: Vec<Value> =
        counts.into_iter().map(|(phase, operators, layers)| json!([phase, operators, layers])).collect();
    found.sort_by_key(|step| step[0] == "decode");
    assert_eq!(found, want);
}

/// The truth of one step: prompt length of every sequence, in order.
fn prompts(line: &str) -> Vec<u64> {
    let step: Value = serde_json::from_str(line).unwrap();
    step["sequences"].as_array().unwrap().iter().map(|s| s["prompt"].as_u64().unwrap()).collect()
}

#[test]
fn the_requests_of_a_batch_are_found_by_their_lengths() {
    let dir = stack::scratch().unwrap();
    let (socket, log) = (dir.path().join("hints.sock"), dir.path().join("steps.jsonl"));
    for batching in [&["--mixed-batches", "--max-num-batched-tokens", "64"][..], &[]] {
        let _ = std::fs::remove_file(&log);
        let daemon = Daemon::start(dir.path(), DEVICE, "phase").unwrap();
        let engine = watched_engine(&daemon, Some(&socket), &log, batching).unwrap();
        // This test is the gateway: it numbers requests by the lengths of their prompts, so that a match can be checked.
        let mut hints = UnixStream::connect(&socket).unwrap();
        let lengths = [40u64, 90, 65, 130, 1, 71, 33, 200];
        let mut answers = Vec::new();
        for length in lengths {
            let admitted = json!({
                "hint": "admitted", "request": length, "prompt_tokens": length, "max_tokens": 400, "ttft_deadline_ms": 1000,
                "tpot_target_ms": 50, "priority": 0, "tenant": "t"
            });
            writeln!(hints, "{admitted}").unwrap();
            let prompt: Vec<u64> = (0..length).map(|i| 1 + i % 900).collect();
            let body = json!({ "model": "m", "prompt": prompt, "max_tokens": 400 });
            answers.push(engine.http.stream("/v1/completions", &body).unwrap());
        }
        answers.iter_mut().for_each(|answer| drop(answer.text().unwrap()));
        let steps = daemon.admin.get_json("/v1/steps").unwrap();
        let steps = steps.as_array().unwrap();
        let text = std::fs::read_to_string(&log).unwrap();
        let loops = truth(&log).unwrap();
        assert_eq!(steps.len(), loops.iter().map(Vec::len).sum::<usize>());
        // Loops write as they post, so each stream's steps come in the order of its loop's lines.
        let mut streams: Vec<u64> = steps.iter().map(|s| s["stream"].as_u64().unwrap()).collect();
        streams.sort_unstable();
        streams.dedup();
        let names = ["engine-prefill", "engine-decode"];
        let names = if streams.len() == 1 { &["engine-steps"][..] } else { &names[..] };
        let (mut sequences, mut right) = (0, 0);
        for (stream, name) in streams.iter().zip(names) {
            let lines = text.lines().filter(|l| l.contains(&format!("\"{name}\"")));
            let found = steps.iter().filter(|s| s["stream"] == *stream);
            for (line, step) in lines.zip(found) {
                let really = prompts(line);
                let matched: Vec<u64> =
                    step["requests"].as_array().unwrap().iter().map(|r| r.as_u64().unwrap()).collect();
                sequences += really.len();
                right += really.iter().filter(|p| matched.contains(p)).count();
            }
        }
        assert!(sequences > 200, "{sequences} sequences");
        // Two sequences of one length, on their way past one another, may be taken for each other.
        assert!(right * 100 >= sequences * 95, "{right} of {sequences} sequences have their request: {batching:?}");
    }
}

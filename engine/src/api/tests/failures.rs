//! What clients see when the engine fails under a request.

use serde_json::{Value, json};

use super::*;

fn body(stream: bool) -> Value {
    json!({"model": "tiny", "prompt": "hi", "stream": stream, "n": 2})
}

#[tokio::test]
async fn a_failure_in_mid_stream_is_one_error_event_and_the_end() {
    let cases = [
        (Some(FailKind::DeviceLost), "device_lost", "gone"),
        (Some(FailKind::OutOfMemory), "out_of_memory", "gone"),
        (Some(FailKind::Operator("aclnnMatmul".into())), "operator_failed", "gone"),
        (Some(FailKind::Runtime("aclrtMemcpy".into())), "runtime_failed", "gone"),
        (Some(FailKind::Shutdown), "shutting_down", "gone"),
        // The engine just drops the channel: a defect of ours that must not look like an end.
        (None, "internal_error", "without saying why"),
    ];
    for (kind, code, message) in cases {
        let mut bench = Bench::replying(move |request| {
            let mut events = vec![token(b'a'.into()), token(b'b'.into())];
            if request.id == 1 {
                events.extend(kind.clone().map(|kind| failed(kind, "gone")));
            }
            events
        });
        // Nobody keeps the requests, so their channels close after the last event.
        bench.submitted.close();
        let answer = bench.post("/v1/completions", body(true)).await;
        assert_eq!(answer.status, 200);
        let events = answer.events();
        let (last, others) = events.split_last().expect("events");
        let error: Value = serde_json::from_str(last).expect("JSON");
        assert_eq!(error["error"]["code"], code);
        assert!(error["error"]["message"].as_str().is_some_and(|text| text.contains(message)), "{last}");
        assert_eq!(error["error"].as_object().map(serde_json::Map::len), Some(4));
        assert!(!others.is_empty(), "what was said before the failure arrived");
        for event in others {
            let chunk: Value = serde_json::from_str(event).expect("JSON, not [DONE]");
            assert_eq!(chunk["choices"][0]["finish_reason"], Value::Null, "no made-up reason");
        }
    }
}

#[tokio::test]
async fn one_failed_alternative_aborts_the_others() {
    let mut bench = Bench::replying(|request| match request.id % 2 {
        1 => vec![failed(FailKind::OutOfMemory, "no blocks")],
        _ => vec![token(b'a'.into())],
    });
    for stream in [false, true] {
        bench.post("/v1/completions", body(stream)).await;
        let [_, second] = [bench.next_submitted().await.id, bench.next_submitted().await.id];
        assert_eq!(bench.aborted_now(), [second]);
    }
}

#[tokio::test]
async fn a_failure_of_a_whole_answer_has_a_status() {
    let cases = [
        (FailKind::DeviceLost, 503, "device_lost"),
        (FailKind::Shutdown, 503, "shutting_down"),
        (FailKind::OutOfMemory, 500, "out_of_memory"),
        (FailKind::Operator("aclnnMatmul".into()), 500, "operator_failed"),
        (FailKind::Runtime("aclrtMemcpy".into()), 500, "runtime_failed"),
    ];
    for (kind, status, code) in cases {
        let text = kind.to_string();
        let bench = Bench::replying(move |_| vec![token(b'a'.into()), failed(kind.clone(), "")]);
        let answer = bench.post("/v1/completions", body(false)).await;
        assert_eq!(answer.status.as_u16(), status);
        let error = &answer.json()["error"];
        assert_eq!((&error["code"], &error["message"]), (&json!(code), &json!(text)));
        let metrics = bench.get("/metrics").await.text;
        let line = format!("engine_errors_total{{model_name=\"tiny\",status=\"{status}\",code=\"{code}\"}} 1");
        assert!(metrics.lines().any(|got| got == line), "{metrics}");
    }
}

//! Every refusal: status, code, param, and the four fields of the error object.

use axum::body::Body;
use http::Request;
use serde_json::{Value, json};

use super::*;
use crate::api::body::BODY_BYTES_MAX;

/// All four fields are there, and `code`, `param` and a part of the message are as expected.
#[track_caller]
fn check(answer: &Answer, status: u16, code: Option<&str>, param: Option<&str>, message: &str) {
    assert_eq!(answer.status.as_u16(), status, "{}", answer.text);
    assert_eq!(answer.headers["content-type"], "application/json");
    let body = answer.json();
    let error = body["error"].as_object().expect("an error object");
    let fields: Vec<&str> = error.keys().map(String::as_str).collect();
    assert_eq!(fields, ["message", "type", "param", "code"]);
    assert_eq!(error["code"].as_str(), code, "{}", answer.text);
    assert_eq!(error["param"].as_str(), param, "{}", answer.text);
    assert!(error["message"].as_str().is_some_and(|text| text.contains(message)), "{} has no {message:?}", answer.text);
    assert!(error["type"].is_string());
}

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

/// A valid request with `changes` on top; null removes a field.
fn request(path: &str, changes: Value) -> Value {
    let mut body = match path {
        CHAT => json!({"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}),
        _ => json!({"model": "tiny", "prompt": "hi"}),
    };
    let fields = body.as_object_mut().expect("an object");
    for (name, value) in changes.as_object().expect("an object") {
        match value {
            Value::Null => fields.remove(name),
            value => fields.insert(name.clone(), value.clone()),
        };
    }
    body
}

#[tokio::test]
async fn every_invalid_field_is_named() {
    let bench = Bench::saying("ok");
    type Case = (&'static str, Value, &'static str, &'static str);
    let many_texts = vec!["x"; 257];
    let both: Vec<(Value, &str, &str)> = vec![
        (json!({"model": null}), "model", "must provide a model"),
        (json!({"temperature": 2.5}), "temperature", "between 0 and 2"),
        (json!({"temperature": -0.1}), "temperature", "between 0 and 2"),
        (json!({"top_p": 0}), "top_p", "above 0"),
        (json!({"top_p": 1.1}), "top_p", "between 0 and 1"),
        (json!({"top_k": -2}), "top_k", "between -1"),
        (json!({"n": 0}), "n", "between 1 and 8"),
        (json!({"n": 9}), "n", "between 1 and 8"),
        (json!({"max_tokens": 0}), "max_tokens", "between 1"),
        (json!({"max_tokens": -1}), "max_tokens", "between 1"),
        (json!({"min_tokens": 3, "max_tokens": 2}), "min_tokens", "must not exceed"),
        (json!({"stop": ["a", "b", "c", "d", "e"]}), "stop", "At most 4"),
        (json!({"stop": ""}), "stop", "must not be empty"),
        (json!({"stop": "x".repeat(1025)}), "stop", "1025 bytes"),
        (json!({"stop_token_ids": vec![1; 65]}), "stop_token_ids", "At most 64"),
        (json!({"stream_options": {"include_usage": true}}), "stream_options", "only allowed when stream"),
    ];
    let mut cases: Vec<Case> = Vec::new();
    for path in [CHAT, COMPLETIONS] {
        cases.extend(both.iter().map(|(changes, param, message)| (path, changes.clone(), *param, *message)));
    }
    let user = |content: Value| json!({"messages": [{"role": "user", "content": content}]});
    let chat: Vec<(Value, &str, &str)> = vec![
        (json!({"messages": null}), "messages", "non-empty list"),
        (json!({"messages": []}), "messages", "non-empty list"),
        (json!({"messages": [{"role": "user"}]}), "messages[0].content", "must be a string"),
        (json!({"messages": [{"content": "x"}]}), "messages[0].role", "needs a role"),
        (json!({"messages": [{"role": "tool", "content": "x"}]}), "messages[0].role", "Role `tool`"),
        (user(json!([{"type": "text"}])), "messages[0].content[0]", "needs a type and a text"),
        (user(json!(7)), "messages[0].content", "must be a string"),
        (json!({"max_completion_tokens": 0}), "max_completion_tokens", "between 1"),
        (json!({"logprobs": 3}), "logprobs", "must be a boolean"),
        (json!({"top_logprobs": 3}), "top_logprobs", "needs logprobs"),
        (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs", "between 0 and 20"),
    ];
    cases.extend(chat.into_iter().map(|(changes, param, message)| (CHAT, changes, param, message)));
    let completions: Vec<(Value, &str, &str)> = vec![
        (json!({"prompt": null}), "prompt", "must provide a prompt"),
        (json!({"prompt": []}), "prompt", "must provide a prompt"),
        (json!({"prompt": ""}), "prompt", "at least one token"),
        (json!({"prompt": [[]]}), "prompt", "at least one token"),
        (json!({"prompt": [1, 300]}), "prompt[1]", "Token id 300 is outside the vocabulary of 300 tokens"),
        (json!({"prompt": many_texts}), "prompt", "257 choices"),
        (json!({"logprobs": true}), "logprobs", "must be a number"),
        (json!({"logprobs": 21}), "logprobs", "between 0 and 20"),
    ];
    cases.extend(completions.into_iter().map(|(changes, param, message)| (COMPLETIONS, changes, param, message)));

    for (path, changes, param, message) in cases {
        check(&bench.post(path, request(path, changes)).await, 400, None, Some(param), message);
    }
}

#[tokio::test]
async fn what_is_not_implemented_is_refused_by_name() {
    let bench = Bench::saying("ok");
    let both = [
        (json!({"tools": [{"type": "function"}]}), "tools"),
        (json!({"functions": [{}]}), "functions"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"response_format": {"type": "json_object"}}), "response_format"),
        (json!({"response_format": {"type": "json_schema"}}), "response_format"),
        (json!({"logit_bias": {"5": 1}}), "logit_bias"),
        (json!({"presence_penalty": 0.5}), "presence_penalty"),
        (json!({"frequency_penalty": -0.5}), "frequency_penalty"),
        (json!({"repetition_penalty": 1.1}), "repetition_penalty"),
        (json!({"min_p": 0.1}), "min_p"),
        (json!({"modalities": ["text", "audio"]}), "modalities"),
        (json!({"audio": {"voice": "x"}}), "audio"),
        (json!({"guided_json": {}}), "guided_json"),
        (json!({"structured_outputs": {"regex": "a"}}), "structured_outputs"),
        (json!({"prompt_logprobs": 1}), "prompt_logprobs"),
        (json!({"use_beam_search": true}), "use_beam_search"),
    ];
    let mut cases: Vec<(&str, Value, &str)> = Vec::new();
    for path in [CHAT, COMPLETIONS] {
        cases.extend(both.iter().map(|(changes, param)| (path, changes.clone(), *param)));
    }
    let image = json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]});
    let calls = json!({"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]});
    cases.extend([
        (CHAT, image, "messages[0].content[0]"),
        (CHAT, calls, "messages[0].tool_calls"),
        (COMPLETIONS, json!({"echo": true}), "echo"),
        (COMPLETIONS, json!({"suffix": "end"}), "suffix"),
        (COMPLETIONS, json!({"best_of": 3}), "best_of"),
    ]);
    for (path, changes, param) in cases {
        let answer = bench.post(path, request(path, changes)).await;
        check(&answer, 400, Some("not_supported"), Some(param), "not supported");
    }
}

#[tokio::test]
async fn malformed_json_is_refused_with_its_position() {
    let bench = Bench::saying("ok");
    let cases: [(&str, Option<&str>, &str); 9] = [
        ("", None, "is empty"),
        ("{", None, "line 1 column 1"),
        ("{\"model\": \"tiny\",\n  \"prompt\": }", None, "line 2 column 13"),
        ("{\"model\": \"tiny\"} x", None, "trailing characters at line 1 column 19"),
        ("[]", None, "line 1 column"),
        ("{\"model\": 7}", Some("model"), "invalid type: integer `7`, expected a string at line 1 column 11"),
        ("{\"temperature\": \"hot\"}", Some("temperature"), "expected f64 at line 1 column"),
        ("{\"messages\": [{\"role\": 1}]}", Some("messages[0].role"), "expected a string"),
        ("{\"prompt\": {}}", Some("prompt"), "list of lists of token ids"),
    ];
    for (body, param, message) in cases {
        check(&bench.post(COMPLETIONS, body).await, 400, Some("invalid_json"), param, message);
    }
    let stop = "{\"stop\": 7}";
    check(&bench.post(CHAT, stop).await, 400, Some("invalid_json"), Some("stop"), "a string or a list of strings");
    let not_utf8 = Request::post(CHAT).body(Body::from(&b"{\"model\": \"\xff\"}"[..])).expect("a request");
    check(&bench.send(not_utf8).await, 400, Some("invalid_json"), None, "not valid JSON");
}

#[tokio::test]
async fn unknown_models_routes_and_methods_have_the_same_shape() {
    let bench = Bench::saying("ok");
    for path in [CHAT, COMPLETIONS] {
        let answer = bench.post(path, request(path, json!({"model": "gpt-4"}))).await;
        check(
            &answer,
            404,
            Some("model_not_found"),
            Some("model"),
            "`gpt-4` does not exist. This server serves `tiny`",
        );
    }
    check(&bench.get("/v1/models/gpt/4").await, 404, Some("model_not_found"), Some("model"), "`gpt/4`");
    check(&bench.post("/v1/embeddings", "{}").await, 404, Some("unknown_url"), None, "POST /v1/embeddings");
    check(&bench.get(CHAT).await, 405, Some("method_not_allowed"), None, "GET is not allowed");
}

#[tokio::test]
async fn too_long_requests_name_both_numbers() {
    let bench = Bench::saying("ok");
    let too_long = Some("context_length_exceeded");
    let tokens = vec![1; 90];
    let cases = [
        // 90 + 11 > 100
        (
            json!({"prompt": tokens, "max_tokens": 11}),
            vec!["maximum context length is 100", "101 tokens (90 in the prompt, 11"],
        ),
        (json!({"prompt": vec![1; 100], "max_tokens": 1}), vec!["length is 100", "100 tokens, which leaves no room"]),
        (json!({"prompt": "x".repeat(120)}), vec!["length is 100", "resulted in 120 tokens"]),
        // Refused before it is tokenized.
        (json!({"prompt": "x".repeat(1 << 20)}), vec!["length is 100", "at least 4096 tokens"]),
    ];
    for (changes, messages) in cases {
        let answer = bench.post(COMPLETIONS, request(COMPLETIONS, changes)).await;
        for message in messages {
            check(&answer, 400, too_long, Some("prompt"), message);
        }
    }
    let long = json!({"messages": [{"role": "user", "content": "x".repeat(200)}]});
    check(&bench.post(CHAT, request(CHAT, long)).await, 400, too_long, Some("messages"), "length is 100");
    // Exactly full is fine.
    let full = bench.post(COMPLETIONS, request(COMPLETIONS, json!({"prompt": vec![1; 90], "max_tokens": 10}))).await;
    assert_eq!(full.status, 200);
}

#[tokio::test]
async fn refusals_of_the_engine_keep_their_meaning() {
    let cases = [
        (SubmitError::QueueFull { limit: 5 }, 429, Some("queue_full"), None, "5 requests are waiting"),
        (SubmitError::EngineDead("device lost".into()), 503, Some("engine_stopped"), None, "device lost"),
        (SubmitError::Invalid("bad".into()), 400, None, Some("prompt"), "bad"),
        (
            SubmitError::ContextTooLong { prompt: 9, max_tokens: 8, max_model_len: 16 },
            400,
            Some("context_length_exceeded"),
            Some("prompt"),
            "length is 16 tokens. However, you requested 17 tokens (9 in the prompt, 8",
        ),
    ];
    for (error, status, code, param, message) in cases {
        let is_full = matches!(error, SubmitError::QueueFull { .. });
        let bench = Bench::saying("ok");
        *bench.engine.refuse.lock() = Some((0, error));
        for stream in [false, true] {
            let answer = bench.post(COMPLETIONS, request(COMPLETIONS, json!({"stream": stream}))).await;
            check(&answer, status, code, param, message);
            assert_eq!(answer.headers.get("retry-after").map(|value| value == "1"), is_full.then_some(true));
        }
    }
}

#[tokio::test]
async fn alternatives_accepted_before_a_refusal_are_aborted() {
    let mut bench = Bench::manual();
    *bench.engine.refuse.lock() = Some((2, SubmitError::QueueFull { limit: 2 }));
    let answer = bench.post(COMPLETIONS, request(COMPLETIONS, json!({"n": 3}))).await;
    assert_eq!(answer.status, 429);
    let (first, second) = (bench.next_submitted().await.id, bench.next_submitted().await.id);
    let mut aborted = bench.aborted_now();
    aborted.sort_unstable();
    assert_eq!(aborted, [first, second]);
}

#[tokio::test]
async fn large_bodies_are_taken_and_too_large_ones_get_a_413() {
    let bench = Bench::saying("ok");
    // Nearly the limit: parsed, and refused only for its length in tokens.
    let filler = "x".repeat(BODY_BYTES_MAX - 100);
    let answer = bench.post(COMPLETIONS, request(COMPLETIONS, json!({"prompt": filler}))).await;
    check(&answer, 400, Some("context_length_exceeded"), Some("prompt"), "length is 100");
    let tokens = vec![1; 2_000_000];
    let answer = bench.post(COMPLETIONS, request(COMPLETIONS, json!({"prompt": tokens}))).await;
    check(&answer, 400, Some("context_length_exceeded"), Some("prompt"), "2000000 tokens");

    let filler = "x".repeat(BODY_BYTES_MAX);
    let answer = bench.post(COMPLETIONS, request(COMPLETIONS, json!({"prompt": filler}))).await;
    check(&answer, 413, Some("request_too_large"), None, "larger than 33554432 bytes");
    // Announced and not yet sent: refused without asking for it.
    let waiting = Request::post(CHAT).header("expect", "100-continue").header("content-length", "99999999");
    let answer = bench
        .send(
            waiting
                .body(Body::from_stream(futures::stream::pending::<Result<bytes::Bytes, std::io::Error>>()))
                .expect("a request"),
        )
        .await;
    check(&answer, 413, Some("request_too_large"), None, "larger than 33554432 bytes");
}

#[tokio::test]
async fn a_base_model_has_no_chat() {
    let bench = Bench::with(None, KEEP_ALIVE, None);
    let answer = bench.post(CHAT, request(CHAT, json!({}))).await;
    check(&answer, 400, None, Some("messages"), "no chat template");
}

#[tokio::test]
async fn an_engine_that_stopped_answers_503_everywhere() {
    let cases = [
        (
            Health::Failed { kind: FailKind::DeviceLost, message: "the device is gone".into() },
            "device_lost",
            "the device is gone",
        ),
        (
            Health::Failed { kind: FailKind::Operator("aclnnMatmul".into()), message: "507015".into() },
            "engine_stopped",
            "operator aclnnMatmul failed: 507015",
        ),
        (Health::Stopped, "shutting_down", "shutting down"),
    ];
    for (health, code, message) in cases {
        let bench = Bench::saying("ok");
        assert_eq!(bench.get("/health").await.status, 200);
        bench.engine.health.send_replace(health);
        check(&bench.get("/health").await, 503, Some(code), None, message);
        for path in [CHAT, COMPLETIONS] {
            check(&bench.post(path, request(path, json!({}))).await, 503, Some(code), None, message);
        }
        // What needs no engine still answers.
        assert_eq!(bench.get("/v1/models").await.status, 200);
        assert_eq!(bench.get("/metrics").await.status, 200);
    }
}

//! Shapes of good answers: streaming and not, usage, choices, log-probabilities, models, metrics.

use serde_json::{Value, json};

use super::*;
use crate::core::{Logprobs, TokenLogprob};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

fn chat(changes: Value) -> Value {
    merge(json!({"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}), changes)
}

fn completion(changes: Value) -> Value {
    merge(json!({"model": "tiny", "prompt": "hi"}), changes)
}

fn merge(mut body: Value, changes: Value) -> Value {
    for (name, value) in changes.as_object().expect("an object") {
        body[name] = value.clone();
    }
    body
}

/// ChatML of `[{"role": "user", "content": "hi"}]`, one token a byte.
const HI_TOKENS: usize = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n".len();

#[tokio::test]
async fn a_chat_stream_is_role_then_text_then_reason_then_usage_then_done() {
    let bench = Bench::saying("hé!");
    let body = chat(json!({"stream": true, "stream_options": {"include_usage": true}}));
    let chunks = bench.post(CHAT, body).await.chunks();

    let deltas: Vec<&Value> = chunks[..chunks.len() - 1].iter().map(|chunk| &chunk["choices"][0]["delta"]).collect();
    let expected = [
        json!({"role": "assistant", "content": ""}),
        json!({"content": "h"}),
        json!({"content": "é"}),
        json!({"content": "!"}),
        json!({}),
    ];
    assert_eq!(deltas, expected.iter().collect::<Vec<_>>());

    let (last, others) = chunks.split_last().expect("chunks");
    let reasons: Vec<&Value> = others.iter().map(|chunk| &chunk["choices"][0]["finish_reason"]).collect();
    assert_eq!(reasons, [&Value::Null, &Value::Null, &Value::Null, &Value::Null, &json!("stop")]);
    for chunk in others {
        assert_eq!(chunk["usage"], Value::Null);
        assert!(chunk.as_object().expect("an object").contains_key("usage"), "null, not absent");
    }
    assert_eq!(last["choices"], json!([]));
    assert_eq!(
        last["usage"],
        json!({"prompt_tokens": HI_TOKENS, "completion_tokens": 5, "total_tokens": HI_TOKENS + 5})
    );
    for chunk in &chunks {
        assert_eq!((&chunk["object"], &chunk["model"]), (&json!("chat.completion.chunk"), &json!("tiny")));
        assert_eq!(chunk["id"], chunks[0]["id"]);
        assert!(chunk["id"].as_str().is_some_and(|id| id.starts_with("chatcmpl-") && id.len() > 20));
        assert!(chunk["created"].as_u64().is_some_and(|created| created > 1_700_000_000));
    }
}

#[tokio::test]
async fn without_include_usage_no_chunk_has_usage() {
    let bench = Bench::saying("ab");
    for (path, body) in [(CHAT, chat(json!({"stream": true}))), (COMPLETIONS, completion(json!({"stream": true})))] {
        for chunk in bench.post(path, body).await.chunks() {
            assert!(!chunk.as_object().expect("an object").contains_key("usage"));
            assert_eq!(chunk["choices"].as_array().map(Vec::len), Some(1));
        }
    }
}

#[tokio::test]
async fn a_completion_stream_has_a_chunk_per_token_and_one_for_the_reason() {
    let bench = Bench::saying("abcdef");
    let chunks = bench.post(COMPLETIONS, completion(json!({"stream": true, "max_tokens": 3}))).await.chunks();
    let got: Vec<(&Value, &Value)> =
        chunks.iter().map(|chunk| (&chunk["choices"][0]["text"], &chunk["choices"][0]["finish_reason"])).collect();
    let null = Value::Null;
    assert_eq!(got, [(&json!("a"), &null), (&json!("b"), &null), (&json!("c"), &null), (&json!(""), &json!("length"))]);
    assert!(chunks.iter().all(|chunk| chunk["object"] == "text_completion"));
    assert!(chunks[0]["id"].as_str().is_some_and(|id| id.starts_with("cmpl-")));
}

#[tokio::test]
async fn whole_answers_have_text_reason_and_usage() {
    let bench = Bench::saying("hello");
    let body = bench.post(CHAT, chat(json!({}))).await.json();
    let choice = json!({
        "index": 0, "message": {"role": "assistant", "content": "hello", "refusal": null}, "logprobs": null,
        "finish_reason": "stop",
    });
    assert_eq!((&body["object"], &body["choices"]), (&json!("chat.completion"), &json!([choice])));
    assert_eq!(body["usage"]["total_tokens"], HI_TOKENS + 6);

    let body = bench.post(COMPLETIONS, completion(json!({"max_tokens": 4}))).await.json();
    let choice = json!({"index": 0, "text": "hell", "logprobs": null, "finish_reason": "length"});
    assert_eq!((&body["object"], &body["choices"]), (&json!("text_completion"), &json!([choice])));
    assert_eq!(body["usage"], json!({"prompt_tokens": 2, "completion_tokens": 4, "total_tokens": 6}));
}

#[tokio::test]
async fn a_stop_string_ends_the_sequence_and_frees_the_engine() {
    for stream in [false, true] {
        let mut bench = Bench::manual();
        let router = bench.router();
        let body = completion(json!({"stop": ["END"], "stream": stream, "stream_options": null, "max_tokens": 50}));
        let request = Request::post(COMPLETIONS).body(Body::from(body.to_string())).expect("a request");
        let answer = tokio::spawn(async move {
            let response = router.oneshot(request).await.expect("infallible");
            response.into_body().collect().await.expect("reads").to_bytes()
        });
        let request = bench.next_submitted().await;
        for byte in *b"one EN" {
            request.events.send(token(byte.into())).expect("somebody listens");
        }
        assert!(bench.aborted.try_recv().is_err());
        for byte in *b"D more" {
            request.events.send(token(byte.into())).expect("somebody listens");
        }
        assert_eq!(bench.next_aborted().await, request.id, "at the stop string, not at max_tokens");
        let text = String::from_utf8(answer.await.expect("runs").to_vec()).expect("UTF-8");
        if stream {
            let chunks: Vec<Value> = text
                .split("\n\n")
                .filter_map(|event| event.strip_prefix("data: ").and_then(|data| serde_json::from_str(data).ok()))
                .collect();
            let said: String = chunks.iter().filter_map(|chunk| chunk["choices"][0]["text"].as_str()).collect();
            assert_eq!(said, "one ");
            assert_eq!(chunks.last().expect("chunks")["choices"][0]["finish_reason"], "stop");
            assert!(text.ends_with("data: [DONE]\n\n"));
        } else {
            let body: Value = serde_json::from_str(&text).expect("JSON");
            assert_eq!(
                (&body["choices"][0]["text"], &body["choices"][0]["finish_reason"]),
                (&json!("one "), &json!("stop"))
            );
            assert_eq!(body["usage"]["completion_tokens"], "one END".len());
        }
        assert!(bench.aborted_now().is_empty(), "aborted once");
    }
}

#[tokio::test]
async fn n_alternatives_are_n_sequences_with_their_own_seeds() {
    let mut bench = Bench::replying(|request| {
        let seed = request.params.seed.expect("a seed");
        say(["x", "yy", "zzz"][seed as usize - 40], 10, request.prompt.len())
    });
    let body = bench.post(COMPLETIONS, completion(json!({"n": 3, "seed": 40}))).await.json();
    let texts: Vec<(u64, &str)> = body["choices"]
        .as_array()
        .expect("choices")
        .iter()
        .map(|choice| (choice["index"].as_u64().expect("an index"), choice["text"].as_str().expect("text")))
        .collect();
    assert_eq!(texts, [(0, "x"), (1, "yy"), (2, "zzz")]);
    // The prompt counts once, the completions add up (each with its end token).
    assert_eq!(body["usage"], json!({"prompt_tokens": 2, "completion_tokens": 9, "total_tokens": 11}));
    let ids: Vec<u64> = [bench.next_submitted().await, bench.next_submitted().await].iter().map(|r| r.id).collect();
    assert_ne!(ids[0], ids[1]);

    let stream = json!({"n": 3, "seed": 40, "stream": true, "stream_options": {"include_usage": true}});
    let chunks = bench.post(CHAT, chat(stream)).await.chunks();
    for (index, expected) in ["x", "yy", "zzz"].into_iter().enumerate() {
        let own: Vec<&Value> = chunks
            .iter()
            .flat_map(|chunk| chunk["choices"].as_array().expect("choices"))
            .filter(|c| c["index"] == index)
            .collect();
        let text: String = own.iter().filter_map(|choice| choice["delta"]["content"].as_str()).collect();
        assert_eq!(text, expected);
        assert_eq!(own[0]["delta"]["role"], "assistant", "every choice begins with its role");
        assert_eq!(own.iter().filter(|choice| choice["finish_reason"] == "stop").count(), 1);
    }
    assert_eq!(chunks.last().expect("chunks")["usage"]["completion_tokens"], 9);
}

#[tokio::test]
async fn every_prompt_shape_reaches_the_engine_as_tokens() {
    let cases = [
        (json!("hi"), vec![vec![104, 105]]),
        (json!(["a", "bc"]), vec![vec![97], vec![98, 99]]),
        (json!([7, 299]), vec![vec![7, 299]]),
        (json!([[7], [8, 9]]), vec![vec![7], vec![8, 9]]),
    ];
    for (prompt, expected) in cases {
        let mut bench = Bench::saying("o");
        let body = bench.post(COMPLETIONS, completion(json!({"prompt": prompt, "n": 2}))).await.json();
        let choices = body["choices"].as_array().expect("choices");
        assert_eq!(choices.len(), expected.len() * 2);
        assert!(choices.iter().enumerate().all(|(at, choice)| choice["index"] == at && choice["text"] == "o"));
        let prompt_tokens: usize = expected.iter().map(Vec::len).sum();
        assert_eq!(body["usage"]["prompt_tokens"], prompt_tokens);
        for tokens in expected.iter().flat_map(|tokens| [tokens, tokens]) {
            assert_eq!(&bench.next_submitted().await.prompt, tokens);
        }
    }
}

#[tokio::test]
async fn sampling_parameters_reach_the_engine() {
    let mut bench = Bench::saying("o");
    let body = completion(json!({
        "temperature": 0, "top_k": 5, "top_p": 0.5, "seed": 9, "ignore_eos": true, "min_tokens": 2, "max_tokens": 7,
        "stop_token_ids": [4], "logprobs": 2,
    }));
    assert_eq!(bench.post(COMPLETIONS, body).await.status, 200);
    let got = bench.next_submitted().await.params;
    assert_eq!((got.temperature, got.top_k, got.top_p, got.seed), (0.0, 5, 0.5, Some(9)));
    assert_eq!((got.ignore_eos, got.min_tokens, got.max_tokens), (true, 2, 7));
    assert_eq!((got.stop_token_ids, got.logprobs), (vec![4], Some(2)));

    // A chat that does not say may use the whole context; the newer name wins over the older.
    bench.post(CHAT, chat(json!({}))).await;
    assert_eq!(bench.next_submitted().await.params.max_tokens, MAX_MODEL_LEN - HI_TOKENS);
    bench.post(CHAT, chat(json!({"max_tokens": 3, "max_completion_tokens": 4}))).await;
    assert_eq!(bench.next_submitted().await.params.max_tokens, 4);
}

#[tokio::test]
async fn content_parts_and_developer_messages_become_plain_messages() {
    let mut bench = Bench::saying("o");
    let messages = json!([
        {"role": "developer", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]);
    assert_eq!(bench.post(CHAT, chat(json!({"messages": messages, "max_tokens": 1}))).await.status, 200);
    let prompt: Vec<u8> = bench.next_submitted().await.prompt.iter().map(|&id| id as u8).collect();
    let expected = "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\na\nb<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(String::from_utf8(prompt).expect("UTF-8"), expected);
}

#[tokio::test]
async fn log_probabilities_come_in_the_shape_of_each_route() {
    let reply = |request: &EngineRequest| {
        let token = |id: u32, chosen: f32, other: u32| {
            let top = vec![TokenLogprob { id: other, logprob: -0.25 }, TokenLogprob { id, logprob: chosen }];
            TokenEvent::Token { id, logprobs: Some(Logprobs { chosen, top }) }
        };
        // "é" is two tokens.
        vec![
            token(97, -1.5, 98),
            token(0xc3, -0.5, 99),
            token(0xa9, -2.0, 100),
            finished(FinishReason::Length, request.prompt.len(), 3),
        ]
    };
    let bench = Bench::replying(reply);
    let body = bench.post(CHAT, chat(json!({"logprobs": true, "top_logprobs": 2}))).await.json();
    let content = &body["choices"][0]["logprobs"]["content"];
    assert_eq!(
        content[0],
        json!({"token": "a", "logprob": -1.5, "bytes": [97], "top_logprobs": [
            {"token": "b", "logprob": -0.25, "bytes": [98]}, {"token": "a", "logprob": -1.5, "bytes": [97]}]})
    );
    assert_eq!((&content[1]["token"], &content[1]["bytes"]), (&json!("bytes:\\xc3"), &json!([0xc3])));
    assert_eq!(content.as_array().map(Vec::len), Some(3));

    let chunks = bench.post(CHAT, chat(json!({"logprobs": true, "top_logprobs": 2, "stream": true}))).await.chunks();
    let per_chunk: Vec<(Option<&str>, Option<usize>)> = chunks
        .iter()
        .map(|chunk| &chunk["choices"][0])
        .map(|choice| (choice["delta"]["content"].as_str(), choice["logprobs"]["content"].as_array().map(Vec::len)))
        .collect();
    assert_eq!(per_chunk, [(Some(""), None), (Some("a"), Some(1)), (Some("é"), Some(2)), (None, None)]);

    let body = bench.post(COMPLETIONS, completion(json!({"logprobs": 1}))).await.json();
    let logprobs = &body["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"], json!(["a", "bytes:\\xc3", "bytes:\\xa9"]));
    assert_eq!(logprobs["token_logprobs"], json!([-1.5, -0.5, -2.0]));
    assert_eq!(logprobs["top_logprobs"][0], json!({"b": -0.25, "a": -1.5}));
    assert_eq!(logprobs["text_offset"], json!([0, 1, 2]));
}

#[tokio::test]
async fn models_and_health_describe_the_engine() {
    let bench = Bench::saying("o");
    let models = bench.get("/v1/models").await.json();
    assert_eq!(models["object"], "list");
    let model = &models["data"][0];
    assert_eq!(
        (&model["id"], &model["object"], &model["root"]),
        (&json!("tiny"), &json!("model"), &json!("models/tiny"))
    );
    assert_eq!(model["max_model_len"], MAX_MODEL_LEN);
    for id in ["tiny", "models/tiny"] {
        assert_eq!(&bench.get(&format!("/v1/models/{id}")).await.json(), model);
    }
    // Either name is served, and the answer repeats the one that was asked for.
    let body = bench.post(CHAT, chat(json!({"model": "models/tiny"}))).await.json();
    assert_eq!(body["model"], "models/tiny");

    let health = bench.get("/health").await.json();
    assert_eq!((&health["status"], &health["device"]), (&json!("ready"), &json!("Ascend910B3")));
}

#[tokio::test]
async fn the_request_id_follows_the_request() {
    let bench = Bench::saying("o");
    let send = |id: Option<&'static str>| {
        let mut request = Request::post(CHAT);
        if let Some(id) = id {
            request = request.header("x-request-id", id);
        }
        bench.send(request.body(Body::from(chat(json!({})).to_string())).expect("a request"))
    };
    let answer = send(Some("abc-1")).await;
    assert_eq!(
        (answer.headers["x-request-id"].as_bytes(), &answer.json()["id"]),
        (&b"abc-1"[..], &json!("chatcmpl-abc-1"))
    );
    let (one, two) = (send(None).await, send(None).await);
    assert_ne!(one.headers["x-request-id"], two.headers["x-request-id"]);
}

#[tokio::test]
async fn metrics_count_what_happened() {
    let bench = Bench::saying("hello");
    *bench.engine.stats.lock() = EngineStats {
        waiting: 3,
        prefilling: 1,
        running: 4,
        kv_blocks_total: 8,
        kv_blocks_free: 6,
        tokens_generated: 77,
        ..EngineStats::default()
    };
    assert_eq!(bench.post(COMPLETIONS, completion(json!({}))).await.status, 200);
    assert_eq!(bench.post(COMPLETIONS, completion(json!({"max_tokens": 3}))).await.status, 200);
    assert_eq!(bench.post(COMPLETIONS, "{").await.status, 400);
    let page = bench.get("/metrics").await;
    assert!(page.headers["content-type"].to_str().expect("text").starts_with("application/openmetrics-text"));
    for line in [
        "vllm:num_requests_running{model_name=\"tiny\"} 5.0",
        "vllm:num_requests_waiting{model_name=\"tiny\"} 3.0",
        "vllm:kv_cache_usage_perc{model_name=\"tiny\"} 0.25",
        "vllm:generation_tokens_total{model_name=\"tiny\"} 77.0",
        "vllm:prompt_tokens_total{model_name=\"tiny\"} 4",
        "vllm:request_success_total{model_name=\"tiny\",finished_reason=\"stop\"} 1",
        "vllm:request_success_total{model_name=\"tiny\",finished_reason=\"length\"} 1",
        "vllm:time_to_first_token_seconds_count{model_name=\"tiny\"} 2",
        "vllm:inter_token_latency_seconds_count{model_name=\"tiny\"} 6",
        "vllm:request_time_per_output_token_seconds_count{model_name=\"tiny\"} 2",
        "vllm:e2e_request_latency_seconds_count{model_name=\"tiny\"} 2",
        "vllm:request_generation_tokens_sum{model_name=\"tiny\"} 9.0",
        "engine_errors_total{model_name=\"tiny\",status=\"400\",code=\"invalid_json\"} 1",
        "# EOF",
    ] {
        assert!(page.text.lines().any(|got| got == line), "no {line:?} in\n{}", page.text);
    }
}

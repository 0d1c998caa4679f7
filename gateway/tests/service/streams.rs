//! Streams: usage metered and hidden, any chunking, keep-alives, late refusals.

use super::*;

#[test]
fn usage_is_metered_unasked_and_hidden_again() {
    let engine = upstream(|mut e| {
        assert_eq!(e.json()["stream_options"]["include_usage"], true);
        assert_eq!(e.json()["own"], json!({"deep": [1.5]}));
        e.start_stream();
        e.event(r#"{"choices":[{"text":"a"}],"usage":null}"#);
        e.event(r#"{"choices":[{"text":"b"}],"usage":null}"#);
        e.event(USAGE);
        e.end_stream();
    });
    let gateway = gateway(&engine);
    let body = r#"{"prompt":"x","stream":true,"own":{"deep":[1.5]}}"#;
    let seen = Raw::post(&gateway.http, "/v1/completions", &[], body).rest();
    assert_eq!(
        seen,
        "data: {\"choices\":[{\"text\":\"a\"}]}\n\ndata: {\"choices\":[{\"text\":\"b\"}]}\n\ndata: [DONE]\n\n"
    );
    for (kind, tokens) in [("input", 40.0), ("cached", 30.0), ("output", 2.0)] {
        let name = format!("gateway_tenant_tokens_total{{tenant=\"\",kind=\"{kind}\"}}");
        wait_for(&name, || scripted::try_metric(&gateway, &name) == Some(tokens));
    }
    // Who asks for it gets it.
    let body = r#"{"prompt":"x","stream":true,"own":{"deep":[1.5]},"stream_options":{"include_usage":true}}"#;
    assert!(Raw::post(&gateway.http, "/v1/completions", &[], body).rest().contains(USAGE));
}

#[test]
fn usage_is_metered_when_the_client_leaves_early() {
    let (engine, requests) = held();
    let gateway = gateway(&engine);
    let mut client = Raw::send(&gateway.http, "/v1/completions", &[], &completion(7, 100, true));
    let mut e = next(&requests);
    e.start_stream();
    (0..3).for_each(|_| e.token("a"));
    client = {
        let mut answer = Raw::head(client);
        let mut seen = String::new();
        while seen.matches("data:").count() < 3 {
            seen += &answer.chunk();
        }
        drop(answer);
        Raw::send(&gateway.http, "/v1/completions", &[], &completion(1, 1, false))
    };
    e.closed();
    finish(&mut next(&requests));
    drop(Raw::head(client));
    let tokens =
        |kind| scripted::try_metric(&gateway, &format!("gateway_tenant_tokens_total{{tenant=\"\",kind=\"{kind}\"}}"));
    // 7 and 3 of the one that left, 3 and 1 of the whole one.
    wait_for("both are metered", || tokens("input") == Some(10.0) && tokens("output") == Some(4.0));
}

#[test]
fn events_survive_any_chunking() {
    let stream = "data: {\"choices\":[{\"text\":\"ä\"}],\"usage\":null}\r\n\r\n: ping\n\n\
                  data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":1}}\n\ndata: [DONE]\n\n";
    for size in [1, 2, 3, 7, 1000] {
        let engine = upstream(move |mut e| {
            e.start_stream();
            for piece in stream.as_bytes().chunks(size) {
                e.stream.set_nodelay(true).unwrap();
                let mut chunk = format!("{:x}\r\n", piece.len()).into_bytes();
                chunk.extend_from_slice(piece);
                chunk.extend_from_slice(b"\r\n");
                std::io::Write::write_all(&mut e.stream, &chunk).unwrap();
            }
            e.say("0\r\n\r\n");
        });
        let gateway = gateway(&engine);
        let seen = Raw::post(&gateway.http, "/v1/completions", &[], r#"{"prompt":"x","stream":true}"#).rest();
        assert_eq!(
            seen, "data: {\"choices\":[{\"text\":\"ä\"}]}\r\n\r\n: ping\n\ndata: [DONE]\n\n",
            "pieces of {size}"
        );
    }
}

#[test]
fn silent_prefill_is_kept_alive_and_a_late_refusal_is_an_event() {
    let (engine, requests) = held();
    let gateway = configured(&[&engine], "", "[timeouts]\nkeep_alive_ms = 30");
    let client = Raw::send(&gateway.http, "/v1/completions", &[], &completion(3, 5, true));
    let mut e = next(&requests);
    let mut answer = Raw::head(client);
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("text/event-stream")));
    for _ in 0..2 {
        assert_eq!(answer.chunk(), ": keep-alive\n\n");
    }
    finish(&mut e);
    let rest = answer.rest();
    assert!(rest.ends_with("data: {\"choices\":[{\"text\":\"a\"}]}\n\ndata: [DONE]\n\n"), "{rest}");

    let client = Raw::send(&gateway.http, "/v1/completions", &[], &completion(3, 5, true));
    let mut e = next(&requests);
    let mut answer = Raw::head(client);
    e.answer(
        "400 Bad Request",
        r#"{"error":{"message":"too long","type":"t","param":null,"code":"context_length_exceeded"}}"#,
    );
    let rest = answer.rest();
    assert!(rest.contains("data: {\"error\":{") && rest.contains("context_length_exceeded"), "{rest}");
    assert!(!rest.contains("[DONE]"), "{rest}");
}

#[test]
fn members_that_nobody_knows_arrive_both_ways() {
    let event = r#"{"choices":[{"text":"a","own":1.50}],"x":{"y":[null]}}"#;
    let engine = upstream(move |mut e| {
        assert_eq!(e.json()["vendor"], json!({ "a": [1, { "b": null }] }));
        assert!(String::from_utf8_lossy(&e.body).contains("1.50e3"), "numbers keep their form");
        e.start_stream();
        e.event(event);
        e.end_stream();
    });
    let gateway = gateway(&engine);
    let body = r#"{"prompt":"x","stream":true,"vendor":{"a":[1,{"b":null}]},"form":1.50e3}"#;
    let seen = Raw::post(&gateway.http, "/v1/completions", &[], body).rest();
    assert_eq!(seen, format!("data: {event}\n\ndata: [DONE]\n\n"));
}

#[test]
fn error_of_the_engine_in_a_stream_is_its_end() {
    let error = r#"{"error":{"message":"out of memory","type":"server_error","param":null,"code":"oom"}}"#;
    let engine = upstream(move |mut e| {
        e.start_stream();
        e.token("a");
        e.event(error);
        e.say("0\r\n\r\n");
    });
    let gateway = gateway(&engine);
    let seen = Raw::post(&gateway.http, "/v1/completions", &[], &completion(3, 5, true)).rest();
    assert_eq!(seen, format!("data: {{\"choices\":[{{\"text\":\"a\"}}]}}\n\ndata: {error}\n\n"));
    wait_for("it failed", || metric(&gateway, "gateway_requests_ended_total{end=\"failed\"}") == 1.0);
}

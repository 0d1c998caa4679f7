//! The real gateway in front of a scripted upstream: a socket that plays an engine's good and bad days to the byte.

mod scripted;

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixListener;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::json;
use stack::{Gateway, StreamEvent};

use scripted::{Deaf, Exchange, PATIENCE, Raw, configured, gateway, metric, upstream, wait_for};

#[test]
fn tokens_stream_through_one_by_one() {
    let (go, step) = channel::<()>();
    let step = std::sync::Mutex::new(step);
    let engine = upstream(move |mut e| {
        e.start_stream();
        for word in ["one", " two", " three"] {
            e.token(word);
            // The next token waits until the test has seen this one: buffering would hang here.
            step.lock().unwrap().recv_timeout(PATIENCE).unwrap();
        }
        e.end_stream();
    });
    let gateway = gateway(&engine);
    let mut text = String::new();
    let mut done = false;
    for event in gateway.http.stream("/v1/completions", &json!({ "prompt": [1, 2] })).unwrap() {
        match event.unwrap() {
            StreamEvent::Text(t, _) => {
                text += &t;
                go.send(()).unwrap();
            }
            StreamEvent::Done => done = true,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((text.as_str(), done), ("one two three", true));
    wait_for("request is over", || metric(&gateway, "gateway_requests_ended_total") == 1.0);
    assert_eq!(metric(&gateway, "gateway_output_tokens_total"), 3.0);
}

#[test]
fn large_body_arrives_byte_for_byte() {
    let engine = upstream(|mut e| {
        let digest: u64 = e.body.iter().fold(0, |h, &b| h.wrapping_mul(31).wrapping_add(u64::from(b)));
        let answer = json!({ "bytes": e.body.len(), "digest": digest, "unknown_kept": e.head.contains("x-own: yes") })
            .to_string();
        e.say(&format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{answer}",
            answer.len()
        ));
    });
    let gateway = gateway(&engine);
    let body = json!({ "prompt": "x".repeat(3 << 20), "my_field": 1 }).to_string();
    let want: u64 = body.bytes().fold(0, |h, b| h.wrapping_mul(31).wrapping_add(u64::from(b)));
    let (status, answer) = gateway.http.send("POST", "/v1/completions", &body).unwrap();
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(
        (status, answer["bytes"].as_u64(), answer["digest"].as_u64()),
        (200, Some(body.len() as u64), Some(want))
    );
}

/// Starts a streamed or plain request on a raw socket and leaves while the engine is silent.
fn leave_during_silence(stream: bool) {
    let (seen, arrived): (_, Receiver<Duration>) = channel();
    let seen = std::sync::Mutex::new(seen);
    let (at_engine, reached) = channel();
    let at_engine = std::sync::Mutex::new(at_engine);
    let engine = upstream(move |mut e| {
        at_engine.lock().unwrap().send(()).unwrap();
        let waited = e.closed();
        seen.lock().unwrap().send(waited).unwrap();
    });
    let gateway = gateway(&engine);
    let mut client = TcpStream::connect(gateway.http.authority()).unwrap();
    let body = json!({ "prompt": [1], "stream": stream }).to_string();
    write!(client, "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len()).unwrap();
    reached.recv_timeout(PATIENCE).unwrap();
    drop(client);
    let waited = arrived.recv_timeout(PATIENCE).expect("the engine's connection stayed open");
    assert!(waited < PATIENCE, "closed only by the time-out");
    wait_for("counted", || metric(&gateway, "gateway_requests_ended_total{end=\"client_left\"}") == 1.0);
    assert_eq!(metric(&gateway, "gateway_requests{phase=\"prefill\"}"), 0.0);
}

#[test]
fn client_that_leaves_in_silent_prefill_cancels_the_engine() {
    leave_during_silence(true);
}

#[test]
fn client_that_leaves_a_plain_request_cancels_the_engine() {
    leave_during_silence(false);
}

#[test]
fn client_that_leaves_mid_stream_cancels_the_engine() {
    let (seen, arrived) = channel();
    let seen = std::sync::Mutex::new(seen);
    let engine = upstream(move |mut e| {
        e.start_stream();
        e.token("one");
        seen.lock().unwrap().send(e.closed()).unwrap();
    });
    let gateway = gateway(&engine);
    let mut answer = gateway.http.stream("/v1/completions", &json!({ "prompt": [1] })).unwrap();
    assert!(matches!(answer.next(), Some(Ok(StreamEvent::Text(..)))));
    drop(answer);
    let waited = arrived.recv_timeout(PATIENCE).expect("the engine's connection stayed open");
    assert!(waited < PATIENCE, "closed only by the time-out");
}

#[test]
fn a_hundred_clients_that_leave_together_cancel_all_their_work() {
    const CLIENTS: usize = 100;
    let (tell, told) = channel();
    let tell = std::sync::Mutex::new(tell);
    let engine = upstream(move |mut e| {
        let tell = tell.lock().unwrap().clone();
        if e.json()["stream"] == true {
            e.start_stream();
            e.token("one");
        }
        tell.send("arrived").unwrap();
        e.closed();
        tell.send("closed").unwrap();
    });
    let gateway = configured(&[&engine], "sequences = 60", "");
    let clients: Vec<_> = (0..CLIENTS)
        .map(|i| {
            let body = json!({ "prompt": [1], "max_tokens": 9, "stream": i % 2 == 0 }).to_string();
            Raw::send(&gateway.http, "/v1/completions", &[], &body)
        })
        .collect();
    // Sixty are in prefill or decode, the rest wait for them.
    wait_for("the rest waits", || metric(&gateway, "gateway_queue_requests") == (CLIENTS - 60) as f64);
    (0..60).for_each(|_| assert_eq!(told.recv_timeout(PATIENCE), Ok("arrived")));
    drop(clients);
    // Those that waited may still be let in before their end is seen; what arrives is closed as well.
    let name = "gateway_requests_ended_total{end=\"client_left\"}";
    wait_for("all have left", || metric(&gateway, name) == CLIENTS as f64);
    let (mut arrived, mut closed) = (60, 0);
    while closed < arrived {
        match told.recv_timeout(PATIENCE).expect("a connection to the engine stayed open") {
            "arrived" => arrived += 1,
            _ => closed += 1,
        }
    }
    for name in ["gateway_requests", "gateway_queue_requests", "gateway_admitted_requests", "gateway_engine_kv_tokens"]
    {
        assert_eq!(metric(&gateway, name), 0.0, "{name}");
    }
}

#[test]
fn engine_that_dies_mid_stream_ends_in_an_error_event() {
    for clean in [false, true] {
        let engine = upstream(move |mut e| {
            e.start_stream();
            e.token("one");
            if clean {
                // All framing in order, but no [DONE].
                e.say("0\r\n\r\n");
            }
        });
        let gateway = gateway(&engine);
        let events: Vec<_> = gateway.http.stream("/v1/completions", &json!({ "prompt": [1] })).unwrap().collect();
        let [Ok(StreamEvent::Text(..)), Ok(StreamEvent::Error(error))] = &events[..] else { panic!("{events:?}") };
        assert_eq!(error["code"], "engine_lost", "clean={clean}");
        wait_for("counted", || metric(&gateway, "gateway_requests_ended_total{end=\"failed\"}") == 1.0);
    }
}

#[test]
fn engine_that_is_down_is_a_503_that_says_so() {
    let deaf = Deaf::new();
    let gateway = gateway(&deaf.http());
    let (status, body) = gateway.http.send("POST", "/v1/completions", r#"{"prompt":[1]}"#).unwrap();
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, body["error"]["code"].as_str()), (503, Some("engine_unreachable")));
}

#[test]
fn stale_idle_connection_is_retried_once_on_a_fresh_one() {
    // Answers the first request of a connection and closes at the second, as a restarted or idle-limited engine does.
    let engine = upstream(|mut e| {
        let answer = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-type: application/json\r\n\r\n{}";
        e.say(answer);
        let again = Exchange::read(e.stream.try_clone().unwrap());
        drop(again);
    });
    let gateway = gateway(&engine);
    // Which connection a request gets is a matter of timing, and a look at the engine's health may take the idle one first.
    for path in ["/v1/completions", "/none/of/ours"] {
        let before = metric(&gateway, "gateway_retries_total");
        wait_for("a request that met a stale connection", || {
            let (status, _) = gateway.http.send("POST", path, r#"{"prompt":[1]}"#).unwrap();
            assert_eq!(status, 200, "{path}");
            metric(&gateway, "gateway_retries_total") > before
        });
    }
}

#[test]
fn engine_errors_pass_unchanged() {
    let engine = upstream(|mut e| {
        let body = r#"{"error":{"message":"m","type":"t","param":null,"code":"context_length_exceeded"}}"#;
        e.say(&format!(
            "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        ));
    });
    let gateway = gateway(&engine);
    let (status, body) = gateway.http.send("POST", "/v1/completions", r#"{"prompt":[1],"stream":true}"#).unwrap();
    assert_eq!(status, 400);
    assert!(body.contains("context_length_exceeded"), "{body}");
}

#[test]
fn hints_tell_the_phases_in_order() {
    let (go, step) = channel::<()>();
    let step = std::sync::Mutex::new(step);
    let engine = upstream(move |mut e| {
        e.start_stream();
        for i in 0..20 {
            e.token(&format!("t{i}"));
            // Tokens that arrive together are one piece of progress.
            step.lock().unwrap().recv_timeout(PATIENCE).unwrap();
        }
        e.end_stream();
    });
    let dir = stack::scratch().unwrap();
    let path = dir.path().join("hints.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let gateway = Gateway::start(&engine, Some(&path), &[]).unwrap();
    let answer = gateway.http.stream("/v1/completions", &json!({ "prompt": [1, 2, 3], "max_tokens": 20 })).unwrap();
    for event in answer {
        if matches!(event.unwrap(), StreamEvent::Text(..)) {
            go.send(()).unwrap();
        }
    }
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let names: Vec<String> = BufReader::new(stream)
        .lines()
        .map(|l| serde_json::from_str::<serde_json::Value>(&l.unwrap()).unwrap())
        .inspect(|hint| assert!(hint["request"].as_u64().is_some(), "{hint}"))
        .map(|hint| hint["hint"].as_str().unwrap().to_owned())
        .take(6)
        .collect();
    // The second token's progress tells that the request decodes, the next comes after sixteen.
    assert_eq!(names, ["admitted", "prefill_started", "first_token", "progress", "progress", "finished"]);
}

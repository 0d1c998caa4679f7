//! What a sidecar owes its users, each item something that users of other gateways complain about: the real gateway in front
//! of scripted engines.

mod scripted;

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use serde_json::{Value, json};
use stack::Http;

use scripted::{Deaf, Exchange, PATIENCE, Raw, configured, gateway, metric, upstream, wait_for};

const USAGE: &str =
    r#"{"choices":[],"usage":{"prompt_tokens":40,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":30}}}"#;

/// An engine that hands each request to the test, which decides what happens.
fn held() -> (Http, Receiver<Exchange>) {
    let (sender, requests) = channel();
    let sender: Mutex<Sender<Exchange>> = Mutex::new(sender);
    (upstream(move |e| sender.lock().unwrap().send(e).unwrap()), requests)
}

fn next(requests: &Receiver<Exchange>) -> Exchange {
    requests.recv_timeout(PATIENCE).expect("no request reached the engine")
}

fn none_comes(requests: &Receiver<Exchange>) {
    assert!(requests.recv_timeout(Duration::from_millis(100)).is_err(), "a request came through");
}

fn completion(prompt_tokens: usize, max_tokens: u32, stream: bool) -> String {
    json!({ "model": "m", "prompt": vec![1; prompt_tokens], "max_tokens": max_tokens, "stream": stream }).to_string()
}

fn finish(e: &mut Exchange) {
    if e.json()["stream"] == true {
        e.start_stream();
        e.token("a");
        e.end_stream();
    } else {
        e.answer("200 OK", r#"{"choices":[{"text":"a"}],"usage":{"prompt_tokens":3,"completion_tokens":1}}"#);
    }
    // The next request comes over a connection of its own.
    e.stream.shutdown(std::net::Shutdown::Write).unwrap();
}

fn sha256(text: &str) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(text.as_bytes()).iter().map(|b| format!("{b:02x}")).collect()
}

fn tenants(tier: &str, names: &[&str]) -> String {
    let each = names.iter().map(|name| {
        let hash = sha256(&format!("key-of-{name}"));
        format!("[[tenants]]\nname = \"{name}\"\ntier = \"t\"\nkey_sha256 = [\"{hash}\"]\n")
    });
    format!("[tiers.t]\n{tier}\n{}", each.collect::<String>())
}

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
fn bodies_of_any_size_and_framing_arrive_whole() {
    for size in [1usize, 100, 65_535, 65_536, 1 << 20, 40 << 20] {
        let engine = upstream(|mut e| {
            loop {
                let sum: u64 = e.body.iter().fold(0, |h, &b| h.wrapping_mul(31).wrapping_add(u64::from(b)));
                let answer = format!("{{\"len\":{},\"sum\":{sum}}}", e.body.len());
                e.answer("200 OK", &answer);
                // What is not known to be safe is not sent twice: a connection that closes between two requests is an error.
                let Some(next) = Exchange::read(e.stream).and_then(Exchange::unlooked) else { return };
                e = next;
            }
        });
        let gateway = gateway(&engine);
        let body: Vec<u8> = (0..size).map(|i| (i * 7 % 251) as u8).collect();
        let want: u64 = body.iter().fold(0, |h, &b| h.wrapping_mul(31).wrapping_add(u64::from(b)));
        for chunked in [false, true] {
            let mut stream = std::net::TcpStream::connect(gateway.http.authority()).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let framing =
                if chunked { "transfer-encoding: chunked".to_owned() } else { format!("content-length: {size}") };
            let mut request = format!("POST /any HTTP/1.1\r\nhost: x\r\n{framing}\r\n\r\n").into_bytes();
            if chunked {
                for piece in body.chunks(60_000) {
                    request.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
                    request.extend_from_slice(piece);
                    request.extend_from_slice(b"\r\n");
                }
                request.extend_from_slice(b"0\r\n\r\n");
            } else {
                request.extend_from_slice(&body);
            }
            std::io::Write::write_all(&mut stream, &request).unwrap();
            let answer = Raw::head(std::io::BufReader::new(stream)).json();
            assert_eq!(answer, json!({ "len": size, "sum": want }), "{size} bytes, chunked: {chunked}");
        }
    }
}

#[test]
fn body_above_the_limit_is_a_413_in_json() {
    let gateway = configured(&[&upstream(|_| ())], "", "body_bytes_max = 1000");
    let mut answer = Raw::post(&gateway.http, "/v1/completions", &[], &"x".repeat(3 << 20));
    assert_eq!((answer.status, answer.header("x-should-retry")), (413, Some("false")));
    assert_eq!(answer.json()["error"]["code"], "body_too_large");
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
fn silent_engine_runs_into_its_time() {
    let (engine, requests) = held();
    let first = configured(&[&engine], "", "[timeouts]\nfirst_token_ms = 50");
    let client = Raw::send(&first.http, "/v1/completions", &[], &completion(3, 5, false));
    let mut e = next(&requests);
    let mut answer = Raw::head(client);
    assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (504, Some("engine_timeout")));
    e.closed();
    // A gateway of its own: the token must not be late for the first limit.
    let gateway = configured(&[&engine], "", "[timeouts]\ninter_token_ms = 80");
    let client = Raw::send(&gateway.http, "/v1/completions", &[], &completion(3, 5, true));
    let mut e = next(&requests);
    e.start_stream();
    e.token("a");
    let rest = Raw::head(client).rest();
    assert!(rest.contains("engine_timeout") && !rest.contains("[DONE]"), "{rest}");
    e.closed();
}

#[test]
fn prefill_is_admitted_in_tokens_and_released_by_the_first_token() {
    let (engine, requests) = held();
    let gateway = configured(&[&engine], "prefill_tokens = 100", "");
    let told = &["x-vnpu-explain: 1"];
    let first = Raw::send(&gateway.http, "/v1/completions", told, &completion(80, 5, true));
    let mut one = next(&requests);
    let second = Raw::send(&gateway.http, "/v1/completions", told, &completion(80, 5, true));
    wait_for("it waits", || metric(&gateway, "gateway_queue_requests") == 1.0);
    none_comes(&requests);
    assert_eq!(metric(&gateway, "gateway_engine_prefill_tokens"), 80.0);
    // A small one does not overtake it.
    let third = Raw::send(&gateway.http, "/v1/completions", told, &completion(5, 5, true));
    wait_for("both wait", || metric(&gateway, "gateway_queue_requests") == 2.0);
    one.start_stream();
    none_comes(&requests);
    one.token("a");
    let mut two = next(&requests);
    let mut three = next(&requests);
    one.end_stream();
    finish(&mut two);
    finish(&mut three);
    let waits = [first, second, third].map(|client| {
        let mut answer = Raw::head(client);
        assert_eq!(answer.header("x-vnpu-engine"), Some("e0"));
        assert!(answer.rest().ends_with("[DONE]\n\n"));
        answer.header("x-vnpu-queue-ms").unwrap().parse::<u64>().unwrap()
    });
    // The second waited while nothing came twice, the third once.
    assert!(waits[1] >= 200 && waits[2] >= 100 && waits[0] < waits[1], "{waits:?} ms");
    wait_for("ledgers are empty", || {
        ["prefill_tokens", "sequences", "kv_tokens"]
            .iter()
            .all(|l| metric(&gateway, &format!("gateway_engine_{l}")) == 0.0)
    });
}

#[test]
fn client_that_leaves_the_queue_or_an_unanswered_connection_frees_its_place() {
    let (engine, requests) = held();
    let gateway = configured(&[&engine], "sequences = 1", "");
    let mut first = Raw::send(&gateway.http, "/v1/completions", &[], &completion(3, 5, false));
    let mut one = next(&requests);
    for stream in [false, true] {
        let queued = Raw::send(&gateway.http, "/v1/completions", &[], &completion(4, 5, stream));
        wait_for("it waits", || metric(&gateway, "gateway_queue_requests") == 1.0);
        drop(queued);
        wait_for("its place is free", || metric(&gateway, "gateway_queue_requests") == 0.0);
    }
    finish(&mut one);
    first = {
        drop(Raw::head(first));
        Raw::send(&gateway.http, "/v1/completions", &[], &completion(3, 5, false))
    };
    // None of those that left reached the engine.
    let mut last = next(&requests);
    assert_eq!(last.json()["prompt"].as_array().map(Vec::len), Some(3));
    finish(&mut last);
    drop(Raw::head(first));
    wait_for("both are counted", || metric(&gateway, "gateway_requests_ended_total{end=\"client_left\"}") == 2.0);
}

#[test]
fn client_that_leaves_while_the_engine_takes_no_connection_frees_its_place() {
    let deaf = Deaf::new();
    let _queue = deaf.stall();
    let gateway = configured(&[&deaf.http()], "sequences = 1", "[timeouts]\nconnect_ms = 600000");
    for stream in [false, true] {
        let connecting = Raw::send(&gateway.http, "/v1/completions", &[], &completion(4, 5, stream));
        wait_for("it connects", || metric(&gateway, "gateway_engine_sequences") == 1.0);
        drop(connecting);
        wait_for("its place is free", || metric(&gateway, "gateway_engine_sequences") == 0.0);
    }
    wait_for("both are counted", || metric(&gateway, "gateway_requests_ended_total{end=\"client_left\"}") == 2.0);
}

#[test]
fn queue_is_bounded_and_its_refusal_says_when_to_come_back() {
    let (engine, requests) = held();
    let gateway = configured(&[&engine], "sequences = 1", "[queue]\nrequests = 1");
    let first = Raw::send(&gateway.http, "/v1/completions", &[], &completion(3, 5, false));
    let mut one = next(&requests);
    let second = Raw::send(&gateway.http, "/v1/completions", &[], &completion(3, 5, false));
    wait_for("it waits", || metric(&gateway, "gateway_queue_requests") == 1.0);
    let mut third = Raw::post(&gateway.http, "/v1/completions", &[], &completion(3, 5, false));
    assert_eq!((third.status, third.header("x-should-retry")), (429, Some("true")));
    assert!(third.header("retry-after").is_some() && third.header("retry-after-ms").is_some(), "{}", third.head);
    assert_eq!(third.json()["error"]["code"], "queue_full");
    drop(second);
    wait_for("it has left", || metric(&gateway, "gateway_queue_requests") == 0.0);
    let mut late = Raw::post(&gateway.http, "/v1/completions", &["x-vnpu-wait-ms: 50"], &completion(3, 5, false));
    assert_eq!((late.status, late.json()["error"]["code"].as_str()), (429, Some("queue_timeout")));
    finish(&mut one);
    assert_eq!(Raw::head(first).status, 200);
}

#[test]
fn what_never_fits_is_a_400_and_explain_says_so_beforehand() {
    let (engine, requests) = held();
    let gateway = configured(&[&engine], "context_tokens = 50\nprefill_tokens = 100", "");
    let explain = |body: &str| Raw::post(&gateway.http, "/v1/explain", &[], body).json();
    let long = completion(51, 5, false);
    let told = explain(&long);
    assert_eq!((&told["decision"], &told["refusal"]["code"]), (&json!("refuse"), &json!("context_length_exceeded")));
    let mut answer = Raw::post(&gateway.http, "/v1/completions", &[], &long);
    assert_eq!((answer.status, answer.header("x-should-retry")), (400, Some("false")));
    assert_eq!(answer.json()["error"]["code"], "context_length_exceeded");
    let told = explain(&completion(50, 5, false));
    assert_eq!(
        (&told["decision"], &told["prompt_tokens"], &told["prompt_tokens_exact"]),
        (&json!("start"), &json!(50), &json!(true))
    );
    let _running: Vec<_> =
        (0..2).map(|_| Raw::send(&gateway.http, "/v1/completions", &[], &completion(50, 5, false))).collect();
    let _held = [next(&requests), next(&requests)];
    let told = explain(&completion(50, 5, false));
    assert_eq!((&told["decision"], &told["engines"][0]["prefill_tokens"]), (&json!("wait"), &json!(100)));
}

#[test]
fn keys_name_tenants_and_stay_here() {
    let (engine, requests) = held();
    let gateway = configured(&[&engine], "", &tenants("", &["blue"]));
    for headers in [&[][..], &["authorization: Bearer nonsense"], &["authorization: Basic key-of-blue"]] {
        let mut answer = Raw::post(&gateway.http, "/v1/completions", headers, &completion(3, 5, false));
        assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (401, Some("invalid_api_key")));
    }
    let headers = &["authorization: Bearer key-of-blue"];
    let client = Raw::send(&gateway.http, "/v1/completions", headers, &completion(3, 5, false));
    let mut e = next(&requests);
    assert_eq!(e.header("authorization"), None, "a tenant's key is none of the engine's business");
    finish(&mut e);
    assert_eq!(Raw::head(client).status, 200);
    let name = "gateway_tenant_tokens_total{tenant=\"blue\",kind=\"input\"}";
    wait_for("metered", || scripted::try_metric(&gateway, name) == Some(3.0));
    let mut large = Raw::post(&gateway.http, "/v1/completions", &[], &"x".repeat(4 << 20));
    assert_eq!((large.status, large.json()["error"]["code"].as_str()), (401, Some("invalid_api_key")));
    // Other paths of the engine are not open to holders of keys unless the file says so.
    let mut other = Raw::post(&gateway.http, "/admin/sleep", headers, "{}");
    assert_eq!((other.status, other.json()["error"]["code"].as_str()), (404, Some("not_found")));
}

#[test]
fn token_limits_hold_against_concurrency_and_return_what_is_not_used() {
    let (engine, requests) = held();
    let gateway = configured(&[&engine], "", &tenants("tokens_per_minute = 100\nrequests_per_minute = 50", &["blue"]));
    let headers = &["authorization: Bearer key-of-blue"];
    let start = std::time::Instant::now();
    let first = Raw::send(&gateway.http, "/v1/completions", headers, &completion(30, 40, false));
    let mut one = next(&requests);
    // 70 are reserved before the first has used any.
    let mut second = Raw::post(&gateway.http, "/v1/completions", headers, &completion(30, 40, false));
    assert_eq!((second.status, second.header("x-should-retry")), (429, Some("true")));
    let retry_ms: u64 = second.header("retry-after-ms").unwrap().parse().unwrap();
    // 40 tokens at 100 a minute, less what has come back since.
    let least = 23_999 - start.elapsed().as_millis().min(23_000) as u64;
    assert!((least..=24_000).contains(&retry_ms), "{least} ms to 24 s: {retry_ms} ms");
    assert_eq!(
        (second.header("x-ratelimit-limit-tokens"), second.header("x-ratelimit-limit-requests")),
        (Some("100"), Some("50"))
    );
    assert_eq!(second.json()["error"]["type"], "tokens");
    let mut large = Raw::post(&gateway.http, "/v1/completions", headers, &completion(30, 400, false));
    assert_eq!((large.status, large.json()["error"]["code"].as_str()), (400, Some("rate_limit_exceeded")));
    finish(&mut one);
    assert_eq!(Raw::head(first).status, 200);
    // 4 were used; 66 are back.
    let again = completion(30, 40, false);
    let fits = || Raw::post(&gateway.http, "/v1/explain", headers, &again).json()["decision"] == "start";
    wait_for("the rest is back", fits);
    let client = Raw::send(&gateway.http, "/v1/completions", headers, &again);
    finish(&mut next(&requests));
    assert_eq!(Raw::head(client).status, 200);
}

#[test]
fn tenants_that_both_wait_get_equal_tokens_however_many_requests_they_send() {
    let (engine, requests) = held();
    let gateway = configured(&[&engine], "sequences = 1", &tenants("", &["many", "few"]));
    let send = |name: &str| {
        let key = format!("authorization: Bearer key-of-{name}");
        Raw::send(&gateway.http, "/v1/completions", &[&key, &format!("x-who: {name}")], &completion(10, 5, false))
    };
    let _first = send("many");
    let mut running = next(&requests);
    let _clients: Vec<_> = (0..20).map(|_| send("many")).chain((0..6).map(|_| send("few"))).collect();
    wait_for("all wait", || metric(&gateway, "gateway_queue_requests") == 26.0);
    let mut order = String::new();
    for _ in 0..12 {
        finish(&mut running);
        running = next(&requests);
        order.push(if running.header("x-who") == Some("many") { 'm' } else { 'f' });
    }
    let few = order.matches('f').count();
    assert!((5..=6).contains(&few), "{few} of 12 in {order}");
}

#[test]
fn dead_engine_is_left_out_and_taken_back() {
    let deaf = Deaf::new();
    let alive = upstream(|mut e| finish(&mut e));
    let gateway = configured(&[&deaf.http(), &alive], "", "[timeouts]\nhealth_ms = 50");
    for _ in 0..20 {
        assert_eq!(Raw::post(&gateway.http, "/v1/completions", &[], &completion(3, 5, false)).status, 200);
    }
    let open = |engine: &str| metric(&gateway, &format!("gateway_engine_open{{engine=\"{engine}\"}}"));
    wait_for("the dead one is closed", || (open("e0"), open("e1")) == (0.0, 1.0));
    let listener = deaf.listen();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || Exchange::read(stream).and_then(Exchange::unlooked));
        }
    });
    wait_for("it is back", || (open("e0"), open("e1")) == (1.0, 1.0));
}

#[test]
fn request_is_tried_elsewhere_before_its_first_byte_and_never_after() {
    let dies = |after: bool| {
        upstream(move |mut e| {
            if after {
                e.start_stream();
                e.token("one");
            }
        })
    };
    for (after, words, not) in [(false, "[DONE]", "engine_lost"), (true, "engine_lost", "[DONE]")] {
        let (good, requests) = held();
        let dying = dies(after);
        let gateway = configured(&[&dying, &good], "", "");
        // The session decides the engine, so half of these meet the dying one first.
        let mut met = 0;
        for session in 0..8 {
            let header = format!("x-session-id: s{session}");
            let client = Raw::send(&gateway.http, "/v1/completions", &[&header], &completion(3, 5, true));
            let mut seen = String::new();
            std::thread::scope(|scope| {
                let reading = scope.spawn(|| Raw::head(client).rest());
                while !reading.is_finished() {
                    if let Ok(mut e) = requests.recv_timeout(Duration::from_millis(10)) {
                        finish(&mut e);
                    }
                }
                seen = reading.join().unwrap();
            });
            met += usize::from(seen.contains(words) && !seen.contains(not));
            let duplicated = seen.contains("\"a\"") && seen.contains("\"one\"");
            assert!(!duplicated, "{seen}");
            assert!(seen.contains("[DONE]") || after, "{seen}");
        }
        assert!(met > 0);
    }
}

#[test]
fn sessions_and_prefixes_stay_with_their_engine() {
    let engines: Vec<Http> =
        (0..3).map(|i| upstream(move |mut e| e.answer("200 OK", &format!("{{\"choices\":[],\"by\":{i}}}")))).collect();
    let gateway = configured(&[&engines[0], &engines[1], &engines[2]], "", "");
    let by = |headers: &[&str], prompt: &str| {
        let body = json!({ "prompt": prompt, "max_tokens": 1 }).to_string();
        Raw::post(&gateway.http, "/v1/completions", headers, &body).json()["by"].as_u64().unwrap()
    };
    let mut used = std::collections::HashSet::new();
    for session in 0..12 {
        let header = format!("x-session-id: {session}");
        let first = by(&[&header], "x");
        used.insert(first);
        for _ in 0..3 {
            assert_eq!(by(&[&header], "y"), first);
        }
    }
    assert_eq!(used.len(), 3, "all engines have sessions");
    for word in ["alpha ", "beta ", "gamma "] {
        let prefix = word.repeat(500);
        let first = by(&[], &format!("{prefix} 0"));
        for i in 1..6 {
            assert_eq!(by(&[], &format!("{prefix} {i}")), first, "{word}");
        }
    }
}

#[test]
fn drained_engine_finishes_what_it_has() {
    let (one, first) = held();
    let (two, second) = held();
    let gateway = configured(&[&one, &two], "", "");
    let admin = gateway.admin().unwrap();
    let drain = |name: &str, on: bool| {
        admin.send("PUT", &format!("/v1/engines/{name}"), &json!({ "draining": on }).to_string()).unwrap()
    };
    assert_eq!(drain("e1", true).0, 200);
    let running = Raw::send(&gateway.http, "/v1/completions", &[], &completion(3, 5, true));
    let mut e = next(&first);
    assert_eq!((drain("e0", true).0, drain("e1", false).0), (200, 200));
    let other = Raw::send(&gateway.http, "/v1/completions", &[], &completion(3, 5, false));
    finish(&mut next(&second));
    assert_eq!(Raw::head(other).status, 200);
    finish(&mut e);
    assert!(Raw::head(running).rest().ends_with("[DONE]\n\n"));
    assert_eq!(drain("e9", true).0, 404);
    assert_eq!(admin.send("PUT", "/v1/engines/e0", "{}").unwrap().0, 400);
}

#[test]
fn signal_to_stop_ends_the_gateway_with_its_last_stream() {
    let (engine, requests) = held();
    let mut gateway = gateway(&engine);
    let client = Raw::send(&gateway.http, "/v1/completions", &[], &completion(3, 5, true));
    let mut e = next(&requests);
    e.start_stream();
    e.token("a");
    let mut answer = Raw::head(client);
    assert!(answer.chunk().contains("\"a\""));
    let address = gateway.http.authority().to_owned();
    let ended = std::thread::spawn(move || gateway.program.stop());
    wait_for("no new connections", || std::net::TcpStream::connect(&address).is_err());
    e.token("b");
    e.end_stream();
    assert!(answer.rest().ends_with("[DONE]\n\n"));
    assert!(ended.join().unwrap().success());
}

#[test]
fn models_of_all_engines_are_one_list() {
    let with = |models: Value| {
        scripted::plain_upstream(move |mut e| {
            let body = if e.head.starts_with("GET /v1/models ") { json!({ "data": models }) } else { json!({}) };
            e.answer("200 OK", &body.to_string());
        })
    };
    let one = with(json!([{ "id": "a", "max_model_len": 100 }, { "id": "b" }]));
    let two = with(json!([{ "id": "b" }, { "id": "c" }]));
    let gateway = configured(&[&one, &two], "", "[timeouts]\nhealth_ms = 50");
    let ids = || {
        let list = gateway.http.get_json("/v1/models").unwrap();
        list["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    wait_for("all models", || ids() == ["a", "b", "c"]);
    let status = gateway.admin().unwrap().get_json("/v1/status").unwrap();
    assert_eq!(status["engines"][0]["context_tokens_max"], 100);
    let mut answer = Raw::post(&gateway.http, "/v1/completions", &[], r#"{"model":"zzz","prompt":[1]}"#);
    assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (404, Some("model_not_found")));
}

#[test]
fn each_request_leaves_one_line_and_keeps_its_name() {
    let engine = upstream(|mut e| {
        assert_eq!(e.header("x-request-id"), Some("mine-1"));
        finish(&mut e);
    });
    let dir = stack::scratch().unwrap();
    let path = dir.path().join("access.log");
    let gateway = stack::Gateway::start(&engine, None, &["--access-log", path.to_str().unwrap()]).unwrap();
    let answer = Raw::post(&gateway.http, "/v1/completions", &["x-request-id: mine-1"], &completion(3, 5, false));
    assert_eq!(answer.header("x-request-id"), Some("mine-1"));
    let log = || std::fs::read_to_string(&path).unwrap_or_default();
    wait_for("the line", || log().ends_with('\n'));
    let line: Value = serde_json::from_str(log().trim()).unwrap();
    assert_eq!(
        (&line["request"], &line["end"], &line["output_tokens"]),
        (&json!("mine-1"), &json!("finished"), &json!(1))
    );
    assert_eq!((&line["status"], &line["estimated"]), (&json!(200), &json!(false)));
}

/// Clients that leave at any time, engines that stall and die: whatever happens, everything returns.
#[test]
fn nothing_is_held_after_thousands_of_requests_with_random_ends() {
    // One step of a linear congruential generator: the same ends in the same order in every run.
    let draw = |seed: &mut u64| {
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *seed >> 33
    };
    let seed = Mutex::new(7);
    let engine = upstream(move |mut e| {
        let what = draw(&mut seed.lock().unwrap()) % 8;
        match what {
            0 => drop(e.closed()),
            1 => {}
            2 => {
                e.start_stream();
                e.token("a");
            }
            // The client may be gone: writing may fail, and that is one of the ends.
            _ => drop(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| finish(&mut e)))),
        }
    });
    let limits = "[timeouts]\nfirst_token_ms = 300\nkeep_alive_ms = 5\n[queue]\nrequests = 20\nwait_max_ms = 200";
    let gateway = configured(&[&engine, &engine.clone()], "prefill_tokens = 60\nsequences = 4", limits);
    std::thread::scope(|scope| {
        for client in 0..16u64 {
            let gateway = &gateway;
            scope.spawn(move || {
                let mut seed = client;
                for _ in 0..125 {
                    let (tokens, stream) = (1 + draw(&mut seed) as usize % 40, draw(&mut seed) % 2 == 0);
                    let answer = Raw::send(&gateway.http, "/v1/completions", &[], &completion(tokens, 9, stream));
                    match draw(&mut seed) % 3 {
                        0 => drop(answer),
                        1 => {
                            std::thread::sleep(Duration::from_millis(draw(&mut seed) % 20));
                            drop(answer);
                        }
                        _ => drop(Raw::head(answer)),
                    }
                }
            });
        }
    });
    let held = [
        "gateway_queue_requests",
        "gateway_queue_bytes",
        "gateway_admitted_requests",
        "gateway_engine_prefill_tokens",
        "gateway_engine_sequences",
        "gateway_engine_kv_tokens",
        "gateway_requests",
    ];
    wait_for("everything is back", || held.iter().all(|name| metric(&gateway, name) == 0.0));
    for end in ["finished", "client_left", "failed"] {
        let ended = metric(&gateway, &format!("gateway_requests_ended_total{{end=\"{end}\"}}"));
        assert!(ended > 20.0, "{ended} {end}: the test does not test what it says");
    }
}

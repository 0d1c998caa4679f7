//! Several engines: time-outs, breakers, retries, affinity, models.

use super::*;

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
fn engine_that_cannot_serve_is_no_business_of_the_client_while_another_is_there() {
    const LOST: &str = r#"{"error":{"message":"no device","type":"server_error","param":null,"code":"device_lost"}}"#;
    const FULL: &str = r#"{"error":{"message":"no memory","type":"server_error","param":null,"code":"out_of_memory"}}"#;
    /// What the first engine does, and whether a client ever hears of it.
    type Case = (&'static str, fn(&mut Exchange), bool, bool);
    let cases: [Case; 6] = [
        ("it refuses a stream", |e| e.answer("503 Service Unavailable", LOST), true, false),
        ("it refuses a plain request", |e| e.answer("503 Service Unavailable", LOST), false, false),
        (
            "its device goes while it prefills",
            |e| {
                e.start_stream();
                e.say("e\r\n: keep-alive\n\n\r\n");
                e.event(LOST);
            },
            true,
            false,
        ),
        ("it goes itself while it prefills", Exchange::start_stream, true, false),
        (
            "it fails at this request",
            |e| {
                e.start_stream();
                e.event(FULL);
                e.say("0\r\n\r\n");
            },
            true,
            true,
        ),
        (
            "its device goes after a token",
            |e| {
                e.start_stream();
                e.token("one");
                e.event(LOST);
                e.say("0\r\n\r\n");
            },
            true,
            true,
        ),
    ];
    for (what, plays, stream, told) in cases {
        let lost = upstream(move |mut e| plays(&mut e));
        let good = upstream(|mut e| finish(&mut e));
        let gateway = configured(&[&lost, &good], "", "[timeouts]\nhealth_ms = 1000000");
        // The session decides the engine, so about half of these meet the first one first.
        let mut heard = 0;
        for session in 0..16 {
            let header = format!("x-session-id: s{session}");
            let mut answer = Raw::post(&gateway.http, "/v1/completions", &[&header], &completion(3, 5, stream));
            let (status, text) = (answer.status, answer.rest());
            heard += usize::from(status != 200 || text.contains("error"));
            assert!(text.contains("\"a\"") != text.contains("error"), "{what}: {status} {text}");
        }
        assert_eq!(heard > 0, told, "{what}: {heard} of 16 clients heard of it");
        // Connections that these engines close are retried too, so nothing follows from a retry where it is told.
        let retried = metric(&gateway, "gateway_retries_total");
        assert!(told || retried > 0.0, "{what}: nobody met it");
        // Where there is no other, its own words are the answer.
        let alone = configured(&[&lost], "", "[timeouts]\nhealth_ms = 1000000");
        let mut answer = Raw::post(&alone.http, "/v1/completions", &[], &completion(3, 5, stream));
        let (status, text) = (answer.status, answer.rest());
        let expected = match what {
            "it goes itself while it prefills" => "engine_lost",
            "it fails at this request" => "out_of_memory",
            _ => "device_lost",
        };
        assert!(
            text.contains(expected) && (status == 503) == what.starts_with("it refuses"),
            "{what}: {status} {text}"
        );
    }
}

#[test]
fn each_scheduler_hears_of_its_own_requests_and_of_those_that_it_loses() {
    let (dying, good) = (upstream(|_| ()), upstream(|mut e| finish(&mut e)));
    let dir = stack::scratch().unwrap();
    let listeners =
        [0, 1].map(|i| std::os::unix::net::UnixListener::bind(dir.path().join(format!("{i}.sock"))).unwrap());
    let text = super::scripted::file_text(&[&dying, &good], "hints = \"HERE\"", "");
    // The first engine's, then the second's.
    let text = [0, 1]
        .iter()
        .fold(text, |text, i| text.replacen("HERE", dir.path().join(format!("{i}.sock")).to_str().unwrap(), 1));
    let filed = super::scripted::Filed::start(&text);
    // The session decides the engine: until one has met the dying one first.
    let moved = (0..64).any(|session| {
        let header = format!("x-session-id: {session}");
        let body = completion(3, 5, true);
        assert!(Raw::post(&filed.gateway.http, "/v1/completions", &[&header], &body).rest().contains("[DONE]"));
        metric(&filed.gateway, "gateway_retries_total") > 0.0
    });
    assert!(moved);
    let heard = listeners.map(|listener| {
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(std::time::Duration::from_millis(500))).unwrap();
        let lines = std::io::BufRead::lines(std::io::BufReader::new(stream)).map_while(Result::ok);
        let hint = |line: String| {
            let hint: Value = serde_json::from_str(&line).unwrap();
            (hint["request"].as_u64().unwrap(), hint["hint"].as_str().unwrap().to_owned())
        };
        lines.map(hint).collect::<Vec<_>>()
    });
    let request = heard[0][0].0;
    let of = |i: usize| heard[i].iter().filter(|h| h.0 == request).map(|h| h.1.as_str()).collect::<Vec<_>>();
    assert_eq!(heard[0].len(), 3, "{heard:?}");
    assert_eq!(of(0), ["admitted", "prefill_started", "aborted"]);
    assert_eq!(of(1), ["admitted", "prefill_started", "first_token", "finished"]);
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
fn engine_that_does_not_accept_costs_its_time_only() {
    let deaf = Deaf::new();
    let _queue = deaf.stall();
    let alive = upstream(|mut e| finish(&mut e));
    let gateway = configured(&[&deaf.http(), &alive], "", "[timeouts]\nconnect_ms = 100\nhealth_ms = 1000000");
    wait_for("it is closed", || {
        assert_eq!(Raw::post(&gateway.http, "/v1/completions", &[], &completion(3, 5, false)).status, 200);
        metric(&gateway, "gateway_engine_open{engine=\"e0\"}") == 0.0
    });
    assert!(metric(&gateway, "gateway_retries_total") >= 2.0);
}

//! Admission: prefill in tokens, a bounded queue, what never fits.

use super::*;

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
fn place_is_held_until_the_answer_has_ended() {
    let (engine, requests) = held();
    let gateway = configured(&[&engine], "sequences = 1", "");
    let first = Raw::send(&gateway.http, "/v1/completions", &[], &completion(3, 5, true));
    let mut one = next(&requests);
    let second = Raw::send(&gateway.http, "/v1/completions", &[], &completion(3, 5, true));
    one.start_stream();
    for word in ["a", "b", "c"] {
        one.token(word);
        none_comes(&requests);
    }
    one.end_stream();
    one.stream.shutdown(std::net::Shutdown::Write).unwrap();
    finish(&mut next(&requests));
    for client in [first, second] {
        assert!(Raw::head(client).rest().ends_with("[DONE]\n\n"));
    }
}

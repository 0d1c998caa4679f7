//! What a sidecar owes its users, each item something that users of other gateways complain about: the real gateway in front
//! of scripted engines.
//!
//! | users complain elsewhere | here |
//! |---|---|
//! | a disconnect goes unseen while the engine is silent in prefill | `proxy.rs`: `client_that_leaves_in_silent_prefill_cancels_the_engine` |
//! | … or while the engine does not accept the connection | `leaving`: `client_that_leaves_while_the_engine_takes_no_connection_frees_its_place` |
//! | … or in the queue | `leaving`: `client_that_leaves_the_queue_or_an_unanswered_connection_frees_its_place` |
//! | requests that are not streamed are never cancelled | `proxy.rs`: `client_that_leaves_a_plain_request_cancels_the_engine` |
//! | nothing keeps the connection alive before the first token | `streams`: `silent_prefill_is_kept_alive_and_a_late_refusal_is_an_event` |
//! | permits are released early | `admission`: `place_is_held_until_the_answer_has_ended` |
//! | queues are unbounded | `admission`: `queue_is_bounded_and_its_refusal_says_when_to_come_back` |
//! | big bodies give 413 or 500 | `bodies`: both |
//! | unknown JSON fields are dropped | `streams`: `members_that_nobody_knows_arrive_both_ways` |
//! | usage is missing | `streams`: `usage_is_metered_unasked_and_hidden_again` |
//! | usage is misshaped | `crates/openai/src/usage.rs`: `usage_of_every_shape_is_read` |
//! | usage is split across chunks | `streams`: `events_survive_any_chunking` |
//! | usage is lost when the client cancels | `streams`: `usage_is_metered_when_the_client_leaves_early` |
//! | concurrency bypasses token limits | `tenants`: `token_limits_hold_against_concurrency_and_return_what_is_not_used` |
//! | cached tokens are counted as cost | `tenants`: `cached_tokens_are_no_cost` |
//! | errors in the middle of a stream are swallowed | `proxy.rs`: `engine_that_dies_mid_stream_ends_in_an_error_event` |
//! | … or have a shape that strict clients crash on | `streams`: `error_of_the_engine_in_a_stream_is_its_end` |
//! | one dead engine hangs the router | `engines`: `dead_engine_is_left_out_and_taken_back`, `engine_that_does_not_accept_costs_its_time_only` |
//! | a retry after the first byte duplicates output | `engines`: `request_is_tried_elsewhere_before_its_first_byte_and_never_after` |
//! | keep-alive connections to the engine go stale | `proxy.rs`: `stale_idle_connection_is_retried_once_on_a_fresh_one` |

mod admission;
mod bodies;
mod engines;
mod leaving;
mod limits;
mod operations;
mod reload;
#[path = "../scripted/mod.rs"]
mod scripted;
mod streams;
mod telemetry;
mod tenants;
mod tls;
mod tokens;

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

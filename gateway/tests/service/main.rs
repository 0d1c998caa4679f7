//! What a sidecar owes its users, each item something that users of other gateways complain about: the real gateway in front
//! of scripted engines.

mod admission;
mod bodies;
mod engines;
mod leaving;
mod operations;
#[path = "../scripted/mod.rs"]
mod scripted;
mod streams;
mod tenants;

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

//! Real connections: a client that leaves frees the engine at once, whatever the request was doing.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::*;
use crate::api::serve;

/// A server on a loopback port.
struct Serving {
    address: std::net::SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<std::io::Result<()>>,
}

impl Serving {
    async fn start(bench: &Bench, grace: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (stop, stopped) = oneshot::channel::<()>();
        let stopped = async move { drop(stopped.await) };
        let task = tokio::spawn(serve(Arc::clone(&bench.server), listener, stopped, grace));
        Self { address, stop: Some(stop), task }
    }

    async fn post(&self, body: Value) -> TcpStream {
        let body = body.to_string();
        let mut stream = TcpStream::connect(self.address).await.expect("connects");
        let head = format!("POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).await.expect("writes");
        stream.write_all(body.as_bytes()).await.expect("writes");
        stream
    }

    /// Asks the server to stop and waits until it has.
    async fn stop(mut self) {
        drop(self.stop.take());
        tokio::time::timeout(PATIENCE, self.task).await.expect("in time").expect("runs").expect("serves");
    }
}

fn body(changes: Value) -> Value {
    let mut body = json!({"model": "tiny", "prompt": "hi", "max_tokens": 50});
    for (name, value) in changes.as_object().expect("an object") {
        body[name] = value.clone();
    }
    body
}

/// Reads until `text` has arrived.
async fn read_until(stream: &mut TcpStream, text: &str) -> String {
    let mut got = String::new();
    let mut buffer = [0; 4096];
    while !got.contains(text) {
        let len = tokio::time::timeout(PATIENCE, stream.read(&mut buffer)).await.expect("in time").expect("reads");
        assert!(len > 0, "closed after {got:?}");
        got.push_str(std::str::from_utf8(&buffer[..len]).expect("UTF-8"));
    }
    got
}

#[tokio::test]
async fn leaving_a_stream_aborts_the_request() {
    let mut bench = Bench::manual();
    let serving = Serving::start(&bench, Duration::ZERO).await;
    let mut client = serving.post(body(json!({"stream": true}))).await;
    let request = bench.next_submitted().await;
    request.events.send(token(b'a'.into())).expect("somebody listens");
    read_until(&mut client, "\"text\":\"a\"").await;
    assert!(bench.aborted_now().is_empty());
    drop(client);
    assert_eq!(bench.next_aborted().await, request.id);
    assert!(request.events.is_closed(), "nobody listens any more");
}

#[tokio::test]
async fn leaving_during_a_silent_prefill_aborts_the_request() {
    let mut bench = Bench::manual();
    let serving = Serving::start(&bench, Duration::ZERO).await;
    let mut client = serving.post(body(json!({"stream": true}))).await;
    let request = bench.next_submitted().await;
    // Headers are out before the first token.
    let head = read_until(&mut client, "\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    drop(client);
    assert_eq!(bench.next_aborted().await, request.id);
}

#[tokio::test]
async fn leaving_a_whole_answer_aborts_the_request() {
    let mut bench = Bench::manual();
    let serving = Serving::start(&bench, Duration::ZERO).await;
    for tokens_before in [0, 3] {
        let client = serving.post(body(json!({}))).await;
        let request = bench.next_submitted().await;
        for _ in 0..tokens_before {
            request.events.send(token(b'a'.into())).expect("somebody listens");
        }
        drop(client);
        assert_eq!(bench.next_aborted().await, request.id);
    }
}

#[tokio::test]
async fn leaving_aborts_every_alternative_that_is_not_finished() {
    let mut bench = Bench::manual();
    let serving = Serving::start(&bench, Duration::ZERO).await;
    let mut client = serving.post(body(json!({"stream": true, "n": 3}))).await;
    let requests = [bench.next_submitted().await, bench.next_submitted().await, bench.next_submitted().await];
    requests[1].events.send(token(b'a'.into())).expect("somebody listens");
    requests[1].events.send(finished(FinishReason::Length, 2, 1)).expect("somebody listens");
    read_until(&mut client, "\"length\"").await;
    drop(client);
    let mut aborted = [bench.next_aborted().await, bench.next_aborted().await];
    aborted.sort_unstable();
    assert_eq!(aborted, [requests[0].id, requests[2].id]);
    assert!(bench.aborted_now().is_empty());
}

#[tokio::test]
async fn a_finished_request_is_not_aborted_and_the_connection_is_kept() {
    let mut bench = Bench::saying("abc");
    let serving = Serving::start(&bench, Duration::ZERO).await;
    let mut client = serving.post(body(json!({"stream": true}))).await;
    read_until(&mut client, "[DONE]\n\n\r\n0\r\n\r\n").await;
    client.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("writes");
    read_until(&mut client, "\"ready\"").await;
    drop(client);
    serving.stop().await;
    assert!(bench.aborted_now().is_empty());
}

#[tokio::test]
async fn a_silent_stream_gets_comments() {
    let mut bench = Bench::with(None, Duration::from_millis(20), None);
    let serving = Serving::start(&bench, Duration::ZERO).await;
    let mut client = serving.post(body(json!({"stream": true}))).await;
    let request = bench.next_submitted().await;
    read_until(&mut client, ": keep-alive\n\n").await;
    request.events.send(token(b'a'.into())).expect("somebody listens");
    request.events.send(finished(FinishReason::Stop, 2, 2)).expect("somebody listens");
    read_until(&mut client, "[DONE]").await;
}

#[tokio::test]
async fn a_too_large_body_is_answered_although_the_client_writes_on() {
    let bench = Bench::manual();
    let serving = Serving::start(&bench, Duration::ZERO).await;
    let len = 48 << 20;
    let mut client = TcpStream::connect(serving.address).await.expect("connects");
    let head = format!("POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len}\r\n\r\n");
    client.write_all(head.as_bytes()).await.expect("writes");
    client.write_all(&vec![b' '; len]).await.expect("the server reads on");
    let answer = read_until(&mut client, "request_too_large").await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
}

#[tokio::test]
async fn stopping_lets_requests_finish_within_the_grace_period() {
    let mut bench = Bench::manual();
    let mut serving = Serving::start(&bench, Duration::from_secs(60)).await;
    let mut client = serving.post(body(json!({"stream": true}))).await;
    let request = bench.next_submitted().await;
    drop(serving.stop.take());
    request.events.send(token(b'a'.into())).expect("somebody listens");
    request.events.send(finished(FinishReason::Stop, 2, 2)).expect("somebody listens");
    read_until(&mut client, "[DONE]").await;
    serving.stop().await;
    assert!(bench.aborted_now().is_empty());
    assert_eq!(*bench.engine.health.borrow(), Health::Stopped, "the device is freed");
}

#[tokio::test]
async fn stopping_ends_silent_requests_after_the_grace_period() {
    let mut bench = Bench::manual();
    let mut serving = Serving::start(&bench, Duration::ZERO).await;
    let mut client = serving.post(body(json!({"stream": true}))).await;
    let request = bench.next_submitted().await;
    read_until(&mut client, "\r\n\r\n").await;
    let mut health = bench.engine.health.subscribe();
    drop(serving.stop.take());
    tokio::time::timeout(PATIENCE, health.wait_for(|health| *health == Health::Stopped))
        .await
        .expect("in time")
        .expect("an engine");
    request.events.send(failed(FailKind::Shutdown, "")).expect("somebody listens");
    let text = read_until(&mut client, "\"error\"").await;
    assert!(text.contains("\"code\":\"shutting_down\""), "{text}");
    serving.stop().await;
}

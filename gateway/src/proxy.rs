//! One request from client to engine and back, on pingora's HTTP session and connector.
//!
//! The response loop is ours: between two chunks it also watches the client, so a client that leaves, even while the
//! engine is silent in prefill, closes the engine's connection at once, and the engine aborts the request. A chunk is
//! passed on as it came; it is looked at only to follow the request's phase.
//!
//! A request is sent again only if nothing of an answer has come and the connection was an idle one from the pool,
//! which the engine may have closed meanwhile: the engine has not seen it then.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use pingora_core::apps::{HttpPersistentSettings, HttpServerApp, ReusedHttpStream};
use pingora_core::connectors::http::Connector;
use pingora_core::protocols::http::ServerSession;
use pingora_core::protocols::http::client::HttpSession;
use pingora_core::server::ShutdownWatch;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_http::{RequestHeader, ResponseHeader};

use crate::error::Failure;
use crate::hints::Hints;
use crate::metrics::Metrics;
use crate::phase::{End, Lifecycle, Objectives, Phase};
use crate::request::{Event, Summary, event_tokens};

/// Largest request body, bytes: a million token ids as JSON and room to spare.
const BODY_BYTES_MAX: usize = 32 << 20;
/// How long an idle connection to the engine is kept.
const IDLE_MAX: Duration = Duration::from_secs(30);
/// Headers that concern one connection only and are not passed on.
const HOP_HEADERS: [&str; 8] =
    ["connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "expect"];
/// Keep-alive offered to clients, seconds.
const KEEPALIVE_S: u64 = 60;

/// The gateway's request handler.
pub struct Proxy {
    engine: HttpPeer,
    engine_name: String,
    connector: Connector,
    objectives: Objectives,
    hints: Hints,
    metrics: Arc<Metrics>,
    next_request: AtomicU64,
    in_flight: AtomicI64,
}

/// A tracked request: counts itself in and out of its phases, whatever way it ends.
struct Tracked<'a> {
    proxy: &'a Proxy,
    life: Lifecycle,
    summary: Summary,
    parser: sse::Parser,
    done: bool,
    error_seen: bool,
    end: End,
}

impl<'a> Tracked<'a> {
    fn new(proxy: &'a Proxy, summary: Summary) -> Self {
        let life = Lifecycle::new(proxy.next_request.fetch_add(1, Ordering::Relaxed), Instant::now());
        proxy.metrics.in_phase(life.phase(), 1);
        // Ended in any way that sets nothing better, the request's client has left: its task was dropped.
        Self {
            proxy,
            life,
            summary,
            parser: sse::Parser::default(),
            done: false,
            error_seen: false,
            end: End::ClientLeft,
        }
    }

    fn sent(&mut self) {
        self.shift(|t| {
            for hint in t.life.sent(&t.summary, &t.proxy.objectives) {
                t.proxy.hints.send(hint);
            }
        });
        self.proxy.metrics.prompt_tokens.inc_by(u64::from(self.summary.prompt_tokens));
    }

    /// Follows the events in a chunk of a streamed answer.
    fn chunk(&mut self, chunk: &[u8]) {
        let now = Instant::now();
        let (mut tokens, mut done, mut error) = (0, false, false);
        let parsed = self.parser.feed(chunk, |event| match event_tokens(event) {
            Event::Text(n) => tokens += n,
            Event::Done => done = true,
            Event::Error => error = true,
            Event::Other => {}
        });
        if parsed.is_err() {
            self.parser = sse::Parser::default();
        }
        self.done |= done;
        self.error_seen |= error;
        if tokens > 0 {
            let first = self.life.tokens() == 0;
            self.shift(|t| t.life.tokens_came(tokens, now).into_iter().for_each(|hint| t.proxy.hints.send(hint)));
            self.proxy.metrics.output_tokens.inc_by(u64::from(tokens));
            if let Some(ttft_s) = self.life.ttft_s().filter(|_| first) {
                self.proxy.metrics.ttft_s.observe(ttft_s);
            }
        }
    }

    /// Runs a transition and moves the phase gauge along.
    fn shift(&mut self, transition: impl FnOnce(&mut Self)) {
        let before = self.life.phase();
        transition(self);
        let after = self.life.phase();
        if before != after {
            self.proxy.metrics.in_phase(before, -1);
            self.proxy.metrics.in_phase(after, 1);
        }
    }
}

impl Drop for Tracked<'_> {
    fn drop(&mut self) {
        if let Some(tpot_s) = self.life.tpot_s(Instant::now()).filter(|_| self.end == End::Finished) {
            self.proxy.metrics.tpot_s.observe(tpot_s);
        }
        let end = self.end;
        self.shift(|t| t.life.ended(end).into_iter().for_each(|hint| t.proxy.hints.send(hint)));
        self.proxy.metrics.ended(end);
    }
}

/// Why an exchange with the engine stopped before its end.
enum Stop {
    /// The client has left; nothing more can be said.
    ClientLeft,
    /// The engine failed; nothing was sent to the client yet.
    BeforeAnswer { stale: bool },
    /// The engine failed in mid-answer.
    MidAnswer,
}

impl Proxy {
    /// A proxy in front of `engine`, an address `host:port`.
    ///
    /// # Errors
    /// If the address does not resolve.
    pub fn new(engine: &str, objectives: Objectives, hints: Hints, metrics: Arc<Metrics>) -> anyhow::Result<Self> {
        use std::net::ToSocketAddrs;
        let address = engine.to_socket_addrs().ok().and_then(|mut a| a.next());
        let Some(address) = address else {
            anyhow::bail!("--upstream `{engine}` is not a reachable host:port, as in 127.0.0.1:8000")
        };
        let first =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |d| d.as_nanos() as u64);
        let mut peer = HttpPeer::new(address, false, String::new());
        peer.options.connection_timeout = Some(Duration::from_secs(5));
        peer.options.idle_timeout = Some(IDLE_MAX);
        Ok(Self {
            engine: peer,
            engine_name: engine.to_owned(),
            connector: Connector::new(None),
            objectives,
            hints,
            metrics,
            // Two gateways in a row must not use the same numbers towards one interposer.
            next_request: AtomicU64::new(first),
            in_flight: AtomicI64::new(0),
        })
    }

    /// Requests being served now.
    pub fn in_flight(&self) -> i64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    async fn serve(&self, client: &mut ServerSession) -> Result<(), pingora_core::BError> {
        let body = match read_body(client).await? {
            Ok(body) => body,
            Err(failure) => return respond(client, failure).await,
        };
        let request = client.req_header();
        let completion = request.method == http::Method::POST && request.uri.path().ends_with("/completions");
        let summary = completion.then(|| Summary::of(&body)).flatten();
        let mut tracked = summary.map(|s| Tracked::new(self, s));
        let mut outcome = self.exchange(client, &body, &mut tracked).await;
        if let Err(Stop::BeforeAnswer { stale: true }) = outcome {
            self.metrics.retries.inc();
            outcome = self.exchange(client, &body, &mut tracked).await;
        }
        let end = match outcome {
            Ok(true) => End::Finished,
            Ok(false) => End::Failed,
            Err(Stop::ClientLeft) => End::ClientLeft,
            Err(Stop::BeforeAnswer { .. }) => {
                let reached = tracked.as_ref().is_none_or(|t| t.life.phase() != Phase::Queued);
                let failure = if reached { Failure::EngineFailed } else { Failure::EngineUnreachable };
                respond(client, failure).await?;
                End::Failed
            }
            Err(Stop::MidAnswer) => {
                let stream = tracked.as_ref().is_some_and(|t| t.summary.stream);
                client.set_keepalive(None);
                if stream {
                    client.write_response_body(Failure::EngineLost.event(), true).await?;
                } else {
                    // The client sees a body shorter than announced: the only honest end of a plain answer.
                    client.shutdown().await;
                }
                End::Failed
            }
        };
        if let Some(tracked) = &mut tracked {
            tracked.end = end;
        }
        if end == End::ClientLeft {
            client.set_keepalive(None);
            client.shutdown().await;
        }
        Ok(())
    }

    /// Sends the request and passes the answer on. True if the answer was a success and whole.
    async fn exchange(
        &self,
        client: &mut ServerSession,
        body: &Bytes,
        tracked: &mut Option<Tracked<'_>>,
    ) -> Result<bool, Stop> {
        let connected = self.connector.get_http_session(&self.engine).await;
        let Ok((mut engine, reused)) = connected else { return Err(Stop::BeforeAnswer { stale: false }) };
        if let Some(t) = tracked.as_mut().filter(|t| t.life.phase() == Phase::Queued) {
            t.sent();
        }
        let result = self.converse(client, &mut engine, reused, body, tracked).await;
        match result {
            Ok(whole) => {
                self.connector.release_http_session(engine, &self.engine, Some(IDLE_MAX)).await;
                Ok(whole)
            }
            Err(stop) => {
                // Closing the connection is what tells the engine to abort the request.
                engine.shutdown().await;
                Err(stop)
            }
        }
    }

    async fn converse(
        &self,
        client: &mut ServerSession,
        engine: &mut HttpSession,
        reused: bool,
        body: &Bytes,
        tracked: &mut Option<Tracked<'_>>,
    ) -> Result<bool, Stop> {
        let failed = Stop::BeforeAnswer { stale: reused };
        let header = self.engine_request(client.req_header(), body.len());
        if engine.write_request_header(Box::new(header)).await.is_err() {
            return Err(failed);
        }
        let written = async {
            if !body.is_empty() {
                engine.write_request_body(body.clone(), true).await?;
            }
            engine.finish_request_body().await
        };
        if written.await.is_err() {
            return Err(failed);
        }
        tokio::select! {
            biased;
            read = engine.read_response_header() => if read.is_err() { return Err(failed) },
            _ = client.read_body_or_idle(true) => return Err(Stop::ClientLeft),
        }
        let Some(header) = engine.response_header() else { return Err(failed) };
        let success = header.status.is_success();
        let streamed =
            header.headers.get("content-type").is_some_and(|v| v.as_bytes().starts_with(b"text/event-stream"));
        let mut answer = header.clone();
        for name in HOP_HEADERS {
            answer.remove_header(name);
        }
        if client.write_response_header(Box::new(answer)).await.is_err() {
            return Err(Stop::ClientLeft);
        }
        loop {
            let chunk = tokio::select! {
                biased;
                chunk = engine.read_response_body() => chunk.map_err(|_| Stop::MidAnswer)?,
                _ = client.read_body_or_idle(true) => return Err(Stop::ClientLeft),
            };
            let Some(chunk) = chunk else { break };
            if let Some(tracked) = tracked.as_mut().filter(|_| streamed) {
                tracked.chunk(&chunk);
            }
            if client.write_response_body(chunk, false).await.is_err() {
                return Err(Stop::ClientLeft);
            }
        }
        if !engine.response_done() {
            return Err(Stop::MidAnswer);
        }
        // A stream may also end early with all its framing in order: only the engine's own error or [DONE] ends it well.
        let cut = tracked.as_ref().is_some_and(|t| streamed && success && !t.done && !t.error_seen);
        if cut {
            return Err(Stop::MidAnswer);
        }
        if client.write_response_body(Bytes::new(), true).await.is_err() {
            return Err(Stop::ClientLeft);
        }
        Ok(success && tracked.as_ref().is_none_or(|t| !t.error_seen))
    }

    /// The request as the engine gets it: the client's, with our framing.
    fn engine_request(&self, request: &RequestHeader, body_len: usize) -> RequestHeader {
        let mut header = request.clone();
        for name in HOP_HEADERS {
            header.remove_header(name);
        }
        header.set_version(http::Version::HTTP_11);
        // Names and values below are plain ASCII and always valid.
        let _ = header.insert_header("host", &self.engine_name);
        if body_len > 0 || request.headers.contains_key("content-length") {
            let _ = header.insert_header("content-length", body_len.to_string());
        }
        header
    }
}

async fn read_body(client: &mut ServerSession) -> Result<Result<Bytes, Failure>, pingora_core::BError> {
    let announced = client.get_header("content-length").and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|n| n > BODY_BYTES_MAX) {
        return Ok(Err(Failure::BodyTooLarge(BODY_BYTES_MAX)));
    }
    if client.get_header("expect").is_some() {
        client.write_continue_response().await?;
    }
    let mut body = BytesMut::with_capacity(announced.unwrap_or(0));
    while let Some(chunk) = client.read_request_body().await? {
        if body.len() + chunk.len() > BODY_BYTES_MAX {
            return Ok(Err(Failure::BodyTooLarge(BODY_BYTES_MAX)));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Ok(body.freeze()))
}

async fn respond(client: &mut ServerSession, failure: Failure) -> Result<(), pingora_core::BError> {
    let body = failure.body();
    let mut header = ResponseHeader::build(failure.status(), Some(3))?;
    header.insert_header("content-type", "application/json")?;
    header.insert_header("content-length", body.len().to_string())?;
    client.set_keepalive(None);
    client.write_response_header(Box::new(header)).await?;
    client.write_response_body(body, true).await
}

#[async_trait]
impl HttpServerApp for Proxy {
    async fn process_new_http(
        self: &Arc<Self>,
        mut client: ServerSession,
        shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        match client.read_request().await {
            Ok(true) => {}
            Ok(false) | Err(_) => return None,
        }
        client.set_keepalive(if *shutdown.borrow() { None } else { Some(KEEPALIVE_S) });
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        let served = self.serve(&mut client).await;
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        if let Err(error) = served {
            tracing::debug!(%error, "client connection ended");
            return None;
        }
        let settings = HttpPersistentSettings::for_session(&client);
        let stream = client.finish().await.ok().flatten()?;
        Some(ReusedHttpStream::from_reusable_stream(stream, settings))
    }
}

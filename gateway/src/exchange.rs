//! One attempt at an engine: connect, send, pass the answer on.
//!
//! An engine that says that it cannot serve, or goes, before anything of an answer has come is a matter between it and the gateway:
//! while another engine is there, the client hears nothing of it.
//!
//! Between any two steps the client is watched too, so that a client that leaves, even while the engine is silent in
//! prefill or does not yet accept the connection, closes the engine's connection at once, and the engine aborts the request.

use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use openai::usage_of_answer;
use pingora_core::protocols::http::client::HttpSession;
use pingora_http::{RequestHeader, ResponseHeader};

use crate::engines::Engine;
use crate::error::Failure;
use crate::events::Events;
use crate::gateway::Gateway;
use crate::reply::{Interrupted, Reply};
use crate::timers::Timers;
use crate::tracked::Tracked;

/// Headers that concern one connection only and are not passed on.
static HOP_HEADERS: [HeaderName; 9] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::EXPECT,
];
/// Answers up to here are read for the usage they carry. Embeddings of a large batch are below it.
const ANSWER_READ_MAX: usize = 16 << 20;
/// Most of an engine's error that is shown inside a stream.
const ERROR_READ_MAX: usize = 64 << 10;
/// Status of an engine that cannot serve, whatever is asked of it.
pub const UNAVAILABLE: u16 = 503;
/// Codes that say the same in a stream that has begun: our engine's, and those of a gateway behind this one.
const UNAVAILABLE_CODES: [&str; 6] =
    ["device_lost", "engine_stopped", "shutting_down", "engine_unreachable", "engine_failed", "engine_lost"];

/// Why an exchange stopped before its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The client has left; nothing more can be said.
    ClientLeft,
    /// No connection to the engine.
    NotReached,
    /// The engine broke off before anything of an answer came; `stale` if over a connection that had been idle.
    BeforeAnswer {
        /// The connection came from the pool, and the engine may have closed it before it saw the request.
        stale: bool,
    },
    /// The engine said that it cannot serve, before anything of an answer came; another one may.
    Unavailable,
    /// The answer cannot be completed.
    Failed(Failure),
}

impl From<Interrupted> for Stop {
    fn from(why: Interrupted) -> Self {
        match why {
            Interrupted::ClientLeft => Self::ClientLeft,
            Interrupted::Silent(what) => Self::Failed(Failure::EngineSilent(what)),
        }
    }
}

/// A request as it goes to engines.
pub struct Outgoing<'a> {
    /// The client's head.
    pub head: &'a RequestHeader,
    /// The body, in pieces.
    pub body: Vec<Bytes>,
    /// Usage was asked for by us and is none of the client's business.
    pub hide_usage: bool,
    /// The client's `Authorization` is a key of ours and none of the engine's business.
    pub keyed: bool,
    /// Headers of ours that say whose part the engine's work is.
    pub trace: HeaderMap,
    /// Another engine would take it, if this one cannot serve.
    pub elsewhere: bool,
}

impl Gateway {
    /// Sends a request to `engine`, over an idle connection if there is one and no `fresh` one is wanted, and passes the answer
    /// on. True if the answer was a success and whole.
    ///
    /// # Errors
    /// Why it stopped.
    pub async fn exchange(
        &self,
        engine: &Engine,
        request: &Outgoing<'_>,
        reply: &mut Reply<'_>,
        timers: &mut Timers,
        mut tracked: Option<&mut Tracked<'_>>,
        fresh: bool,
    ) -> Result<bool, Stop> {
        let peer = engine.place.peer().ok_or(Stop::NotReached)?;
        let idle = if fresh { None } else { self.connections.idle(&peer) };
        let (mut session, reused) = match idle {
            Some(session) => (session, true),
            None => {
                // Seldom, and large: on the heap, so that not every request carries room for it.
                let opened = reply.attend(Box::pin(self.connections.open(&peer)), timers).await?;
                (opened.map_err(|_| Stop::NotReached)?, false)
            }
        };
        if let Some(tracked) = &mut tracked {
            tracked.sent();
        }
        let sent = reply.attend(send(&mut session, engine, request, tracked.is_some()), timers).await;
        let result = match sent {
            Ok(Ok(())) => relay(&mut session, request, reply, timers, tracked).await,
            Ok(Err(_)) => Err(Stop::BeforeAnswer { stale: reused }),
            Err(why) => Err(why.into()),
        };
        match result {
            Ok(whole) => {
                self.connections.keep(session, &peer).await;
                Ok(whole)
            }
            Err(stop) => {
                // Closing the connection is what tells the engine to abort the request.
                session.shutdown().await;
                Err(stop)
            }
        }
    }
}

/// Sends head and body, and waits for the head of the answer.
async fn send(
    session: &mut HttpSession,
    engine: &Engine,
    request: &Outgoing<'_>,
    tracked: bool,
) -> Result<(), pingora_core::BError> {
    let head = engine_head(engine, request, tracked);
    session.write_request_header(Box::new(head)).await?;
    let mut written = Ok(());
    for (i, piece) in request.body.iter().enumerate() {
        let last = i + 1 == request.body.len();
        written = session.write_request_body(piece.clone(), last).await;
        if written.is_err() {
            break;
        }
    }
    if written.is_ok() {
        session.finish_request_body().await?;
    }
    // An engine may refuse a body that it does not read to the end: its answer counts, if it sent one.
    session.read_response_header().await?;
    Ok(())
}

/// The head as the engine gets it: the client's, with our framing and, where it has one, the engine's own key.
fn engine_head(engine: &Engine, request: &Outgoing<'_>, tracked: bool) -> RequestHeader {
    let mut head = request.head.clone();
    for name in &HOP_HEADERS {
        head.remove_header(name);
    }
    head.set_version(http::Version::HTTP_11);
    // Names and values below are plain ASCII and always valid.
    let _ = head.insert_header("host", engine.host.clone());
    let body_len: usize = request.body.iter().map(Bytes::len).sum();
    let given = &request.head.headers;
    let announced = given.contains_key(header::CONTENT_LENGTH);
    if body_len > 0 || announced || given.contains_key(header::TRANSFER_ENCODING) {
        let _ = head.insert_header("content-length", HeaderValue::from(body_len));
    }
    if request.keyed {
        head.remove_header(&header::AUTHORIZATION);
    }
    if let Some(authorization) = &engine.authorization {
        let _ = head.insert_header("authorization", authorization.clone());
    }
    for (name, value) in &request.trace {
        let _ = head.insert_header(name.clone(), value.clone());
    }
    if tracked {
        // Compressed events could not be followed.
        let _ = head.insert_header("accept-encoding", HeaderValue::from_static("identity"));
    }
    head
}

/// Passes the answer on. True if it was a success and whole.
async fn relay(
    session: &mut HttpSession,
    request: &Outgoing<'_>,
    reply: &mut Reply<'_>,
    timers: &mut Timers,
    mut tracked: Option<&mut Tracked<'_>>,
) -> Result<bool, Stop> {
    let Some(head) = session.response_header() else { return Err(Stop::BeforeAnswer { stale: false }) };
    let success = head.status.is_success();
    if request.elsewhere && head.status.as_u16() == UNAVAILABLE {
        return Err(Stop::Unavailable);
    }
    let events = head.headers.get(header::CONTENT_TYPE).is_some_and(|v| v.as_bytes().starts_with(b"text/event-stream"));
    let head = answer_head(head, events);
    if let Some(tracked) = &mut tracked {
        tracked.status = head.status.as_u16();
    }
    if reply.begun() && !events {
        let words = read_error(session, reply, timers).await?;
        return Err(Stop::Failed(Failure::EngineRefused(words)));
    }
    if !reply.begun() {
        reply.begin(head).await.map_err(|_| Stop::ClientLeft)?;
    }
    timers.spoke(Instant::now());
    match tracked {
        Some(tracked) if events => relay_events(session, request, reply, timers, tracked, success).await,
        _ => relay_plain(session, reply, timers, tracked, success).await,
    }
}

/// A head as the client gets it.
fn answer_head(head: &ResponseHeader, events: bool) -> ResponseHeader {
    let mut answer = head.clone();
    for name in &HOP_HEADERS {
        answer.remove_header(name);
    }
    if events {
        // What is hidden or added changes the length.
        answer.remove_header(&header::CONTENT_LENGTH);
        let _ = answer.insert_header("x-accel-buffering", HeaderValue::from_static("no"));
    }
    answer
}

async fn relay_events(
    session: &mut HttpSession,
    request: &Outgoing<'_>,
    reply: &mut Reply<'_>,
    timers: &mut Timers,
    tracked: &mut Tracked<'_>,
    success: bool,
) -> Result<bool, Stop> {
    let mut events = Events::new(request.hide_usage);
    let (mut done, mut error, mut spoken) = (false, false, false);
    loop {
        let piece = reply.attend(session.read_response_body(), timers).await;
        tracked.usage = events.usage().or(tracked.usage);
        let Some(piece) = piece?.map_err(|_| lost(request, spoken))? else { break };
        let mut out = Vec::with_capacity(piece.len());
        let seen = events.feed(&piece, &mut out).map_err(|_| Stop::Failed(Failure::EngineFailed))?;
        if seen.error && seen.events == 1 && !spoken && request.elsewhere && says_unavailable(&out) {
            return Err(Stop::Unavailable);
        }
        spoken |= seen.events > 0;
        tracked.usage = events.usage().or(tracked.usage);
        done |= seen.done;
        error |= seen.error;
        tracked.tokens(seen.tokens);
        if done {
            tracked.settle();
        }
        let now = Instant::now();
        if seen.tokens > 0 {
            timers.heard(now);
        }
        if !out.is_empty() {
            reply.write(out.into()).await.map_err(|_| Stop::ClientLeft)?;
            timers.spoke(now);
        }
    }
    // A stream may end early with all its framing in order: only the engine's own error or [DONE] ends it well.
    if !session.response_done() || (success && !done && !error) {
        return Err(lost(request, spoken));
    }
    reply.finish().await.map_err(|_| Stop::ClientLeft)?;
    Ok(success && !error)
}

/// A stream broke off. While the client has got no event of it, comments at most, another engine may begin it anew.
fn lost(request: &Outgoing<'_>, spoken: bool) -> Stop {
    if request.elsewhere && !spoken { Stop::BeforeAnswer { stale: false } } else { Stop::Failed(Failure::EngineLost) }
}

/// Whether the only event of `piece`, an error, says that the engine cannot serve, rather than that it failed at this request.
fn says_unavailable(piece: &[u8]) -> bool {
    let data = piece.split(|&b| b == b'\n').find_map(|line| line.strip_prefix(b"data:"));
    let error: Option<serde_json::Value> = data.and_then(|data| serde_json::from_slice(data.trim_ascii()).ok());
    let code = error.as_ref().and_then(|error| error["error"]["code"].as_str());
    code.is_some_and(|code| UNAVAILABLE_CODES.contains(&code))
}

async fn relay_plain(
    session: &mut HttpSession,
    reply: &mut Reply<'_>,
    timers: &mut Timers,
    tracked: Option<&mut Tracked<'_>>,
    success: bool,
) -> Result<bool, Stop> {
    let mut read = Vec::new();
    let mut readable = tracked.is_some() && success;
    let mut tracked = tracked;
    let mut through = |read: &[u8], readable: bool| match tracked.take() {
        Some(tracked) if success => tracked.whole_answer(if readable { usage_of_answer(read) } else { None }),
        Some(tracked) => tracked.give_back(),
        None => {}
    };
    loop {
        let piece = reply.attend(session.read_response_body(), timers).await?;
        let Some(piece) = piece.map_err(|_| Stop::Failed(Failure::EngineLost))? else { break };
        timers.heard(Instant::now());
        readable &= read.len() + piece.len() <= ANSWER_READ_MAX;
        if readable {
            read.extend_from_slice(&piece);
        }
        if session.response_done() {
            through(&read, readable);
        }
        reply.write(piece).await.map_err(|_| Stop::ClientLeft)?;
    }
    if !session.response_done() {
        return Err(Stop::Failed(Failure::EngineLost));
    }
    through(&read, readable);
    reply.finish().await.map_err(|_| Stop::ClientLeft)?;
    Ok(success)
}

/// The beginning of an error that came too late for its status.
async fn read_error(session: &mut HttpSession, reply: &mut Reply<'_>, timers: &mut Timers) -> Result<Bytes, Stop> {
    let mut words = Vec::new();
    while words.len() < ERROR_READ_MAX {
        match reply.attend(session.read_response_body(), timers).await? {
            Ok(Some(piece)) => words.extend_from_slice(&piece),
            _ => break,
        }
    }
    words.truncate(ERROR_READ_MAX);
    Ok(words.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_that_cannot_serve_is_told_from_one_that_failed_at_a_request() {
        for (piece, unavailable) in [
            ("data: {\"error\":{\"message\":\"m\",\"code\":\"device_lost\"}}\n\n", true),
            (": keep-alive\n\ndata:{\"error\":{\"code\":\"engine_lost\"}}\r\n\r\n", true),
            ("data: {\"error\":{\"code\":\"out_of_memory\"}}\n\n", false),
            ("data: {\"error\":\"device_lost\"}\n\n", false),
            ("data: device_lost\n\n", false),
            ("", false),
        ] {
            assert_eq!(says_unavailable(piece.as_bytes()), unavailable, "{piece}");
        }
    }
}

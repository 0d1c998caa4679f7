//! The client's side of a request: waiting with it, keeping its connection alive, answering it.
//!
//! A streaming client that hears nothing for a while gets the head of its answer and a comment, so that no balancer between
//! us closes the connection. From then on errors are events in the stream: the status has been sent.

use std::future::Future;
use std::pin::{Pin, pin};
use std::time::Instant;

use bytes::Bytes;
use http::header;
use pingora_core::protocols::http::ServerSession;
use pingora_http::ResponseHeader;
use tokio::time::{Sleep, sleep_until};

use crate::error::Failure;
use crate::metrics::{CodeLabel, Metrics};
use crate::timers::{Due, Timers};

/// A comment: clients skip it, connections live by it.
const KEEP_ALIVE: Bytes = Bytes::from_static(b": keep-alive\n\n");

/// Why waiting ended without what was waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupted {
    /// The client has left.
    ClientLeft,
    /// Time is over; what was missing.
    Silent(&'static str),
}

/// The client of one request.
pub struct Reply<'a> {
    client: &'a mut ServerSession,
    metrics: &'a Metrics,
    /// Headers of ours on every answer.
    headers: Vec<(&'static str, String)>,
    begun: bool,
    /// What has begun is a stream of events.
    events: bool,
    /// One timer for the whole request, set to the time that is due or an earlier one: what comes in time does not touch it.
    timer: Option<Pin<Box<Sleep>>>,
}

impl<'a> Reply<'a> {
    /// To a client whose request has been read whole.
    pub fn new(client: &'a mut ServerSession, metrics: &'a Metrics) -> Self {
        Self { client, metrics, headers: Vec::new(), begun: false, events: false, timer: None }
    }

    /// Whether a status has been sent.
    pub fn begun(&self) -> bool {
        self.begun
    }

    /// Adds a header to the answer.
    pub fn header(&mut self, name: &'static str, value: impl ToString) {
        self.headers.push((name, value.to_string()));
    }

    /// Waits for `work`, watching the client and the clock.
    ///
    /// # Errors
    /// If the client leaves or time is over first. `work` is dropped then.
    pub async fn attend<T>(&mut self, work: impl Future<Output = T>, timers: &mut Timers) -> Result<T, Interrupted> {
        let mut work = pin!(work);
        loop {
            let due = timers.due().into();
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
            if due < timer.deadline() || timer.is_elapsed() {
                timer.as_mut().reset(due);
            }
            tokio::select! {
                biased;
                done = &mut work => return Ok(done),
                // Anything but silence from a client whose request is whole is its end.
                _ = self.client.read_body_or_idle(true) => return Err(Interrupted::ClientLeft),
                () = timer => {}
            }
            let now = Instant::now();
            match timers.at(now) {
                Due::Nothing => {}
                Due::KeepAlive => {
                    self.keep_alive().await.map_err(|_| Interrupted::ClientLeft)?;
                    timers.spoke(now);
                }
                Due::Silent(what) => return Err(Interrupted::Silent(what)),
            }
        }
    }

    async fn keep_alive(&mut self) -> Result<(), pingora_core::BError> {
        self.metrics.keep_alives.inc();
        if !self.begun {
            let mut head = ResponseHeader::build(200, Some(8))?;
            head.insert_header("content-type", "text/event-stream")?;
            head.insert_header("cache-control", "no-cache")?;
            head.insert_header("x-accel-buffering", "no")?;
            self.begin(head).await?;
        }
        self.write(KEEP_ALIVE).await
    }

    /// Sends the head of the answer, with our headers.
    ///
    /// # Errors
    /// If the client has left.
    pub async fn begin(&mut self, mut head: ResponseHeader) -> Result<(), pingora_core::BError> {
        for (name, value) in self.headers.drain(..) {
            head.insert_header(name, value)?;
        }
        // Without a length or chunks, only a closed connection would end the answer, and a broken one would look the same.
        let bodyless = head.status.is_informational() || matches!(head.status.as_u16(), 204 | 304);
        let http1 = self.client.req_header().version == http::Version::HTTP_11;
        if http1 && !bodyless && !head.headers.contains_key(header::CONTENT_LENGTH) {
            head.insert_header("transfer-encoding", "chunked")?;
        }
        self.begun = true;
        let kind = head.headers.get(header::CONTENT_TYPE);
        self.events = kind.is_some_and(|v| v.as_bytes().starts_with(b"text/event-stream"));
        self.client.write_response_header(Box::new(head)).await
    }

    /// Sends a piece of the body.
    ///
    /// # Errors
    /// If the client has left.
    pub async fn write(&mut self, piece: Bytes) -> Result<(), pingora_core::BError> {
        self.client.write_response_body(piece, false).await
    }

    /// Ends the body.
    ///
    /// # Errors
    /// If the client has left.
    pub async fn finish(&mut self) -> Result<(), pingora_core::BError> {
        self.client.write_response_body(Bytes::new(), true).await
    }

    /// Sends a whole JSON answer.
    ///
    /// # Errors
    /// If the client has left.
    pub async fn json(&mut self, status: u16, body: Bytes) -> Result<(), pingora_core::BError> {
        let mut head = ResponseHeader::build(status, Some(8))?;
        head.insert_header("content-type", "application/json")?;
        head.insert_header("content-length", body.len().to_string())?;
        self.begin(head).await?;
        self.client.write_response_body(body, true).await
    }

    /// Answers with an error: a status and a body, an event in a stream that has begun, or, in the middle of any other
    /// answer, its visible end.
    ///
    /// # Errors
    /// If the client has left.
    pub async fn fail(&mut self, failure: &Failure) -> Result<(), pingora_core::BError> {
        self.metrics.failures.get_or_create(&CodeLabel { code: failure.code() }).inc();
        // Whatever the client has sent or will send is not a next request.
        self.client.set_keepalive(None);
        if !self.begun {
            if let Some(after) = failure.retry_after() {
                self.header("retry-after", after.as_millis().div_ceil(1000).max(1));
                self.header("retry-after-ms", after.as_millis().max(1));
            }
            if let Some(retry) = failure.should_retry() {
                self.header("x-should-retry", retry);
            }
            if let Failure::MethodNotAllowed(wanted) = failure {
                self.header("allow", wanted);
            }
            if *failure == Failure::Unauthorized {
                self.header("www-authenticate", "Bearer");
            }
            return self.json(failure.status(), failure.body()).await;
        }
        if self.events {
            self.client.write_response_body(failure.event(), true).await
        } else {
            // The client sees a body shorter than announced: the only honest end of a plain answer.
            self.client.shutdown().await;
            Ok(())
        }
    }

    /// The client has left: closes what is left of its connection.
    pub async fn leave(&mut self) {
        self.client.set_keepalive(None);
        self.client.shutdown().await;
    }
}

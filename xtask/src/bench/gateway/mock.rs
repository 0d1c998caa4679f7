//! A mock engine: no inference, answers of the OpenAI API at once or token by token at a fixed rate.
//!
//! One thread, on hyper, so that it costs the machine as little as it can. It runs as a process of its own
//! (`cargo xtask mock-engine`): the benchmark pins it, and the soak kills it. A token's text says which one it is and when
//! it was due, `17@81234567`: its number and microseconds of the monotonic clock, which all processes share. So whoever
//! reads the stream sees lost, doubled and late tokens.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use http_body_util::{BodyExt, Either, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::time::{Instant, Interval, interval_at};

/// How it behaves.
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct MockEngine {
    /// Port on 127.0.0.1; 0 picks a free one.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Time to the first token, or to the answer, milliseconds.
    #[arg(long, default_value_t = 0)]
    first_token_ms: u64,
    /// Tokens a second of each stream.
    #[arg(long, default_value_t = 20.0)]
    tokens_per_s: f64,
}

/// Where in a large body the members that matter are looked for: its first and last bytes.
const LOOKED_AT_BYTES: usize = 1024;

/// Microseconds of the clock that all processes share.
pub fn now_us() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1000
}

/// Serves until it is killed.
///
/// # Errors
/// If the port is taken.
pub fn run(mock: MockEngine) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], mock.port))).await?;
        println!("ready http://{}", listener.local_addr()?);
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let service = service_fn(move |request| answer(mock, request));
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    })
}

type Answer = Either<Full<Bytes>, Tokens>;

async fn answer(mock: MockEngine, request: Request<Incoming>) -> Result<Response<Answer>, hyper::Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    if head.method == Method::GET {
        return Ok(match head.uri.path() {
            "/v1/models" => json(r#"{"object":"list","data":[{"id":"m","object":"model"}]}"#),
            "/health" => json("{}"),
            _ => status(StatusCode::NOT_FOUND),
        });
    }
    let body = Members::of(&body);
    if !body.has(b"\"stream\":true") {
        if mock.first_token_ms > 0 {
            tokio::time::sleep(Duration::from_millis(mock.first_token_ms)).await;
        }
        return Ok(json(concat!(
            r#"{"id":"mock-1","object":"chat.completion","created":1700000000,"model":"m","choices":[{"index":0,"#,
            r#""message":{"role":"assistant","content":"It is a mock engine that answers."},"finish_reason":"stop"}],"#,
            r#""usage":{"prompt_tokens":64,"completion_tokens":8,"total_tokens":72}}"#
        )));
    }
    let every = Duration::from_secs_f64(1.0 / mock.tokens_per_s);
    let tokens = Tokens {
        due: interval_at(Instant::now() + Duration::from_millis(mock.first_token_ms), every),
        next: 0,
        count: body.number(b"\"max_tokens\":").unwrap_or(16),
        usage: body.has(b"\"include_usage\":true"),
        over: false,
    };
    let response = Response::builder().header("content-type", "text/event-stream").body(Either::Right(tokens));
    Ok(response.unwrap_or_else(|_| status(StatusCode::INTERNAL_SERVER_ERROR)))
}

fn status(status: StatusCode) -> Response<Answer> {
    let mut response = Response::new(Either::Left(Full::default()));
    *response.status_mut() = status;
    response
}

fn json(body: &'static str) -> Response<Answer> {
    let mut response = Response::new(Either::Left(Full::from(body)));
    response.headers_mut().insert("content-type", hyper::header::HeaderValue::from_static("application/json"));
    response
}

/// The beginning and the end of a body, in which its short members stand.
struct Members<'a>([&'a [u8]; 2]);

impl<'a> Members<'a> {
    fn of(body: &'a [u8]) -> Self {
        let (first, rest) = body.split_at(body.len().min(LOOKED_AT_BYTES));
        Self([first, &rest[rest.len().saturating_sub(LOOKED_AT_BYTES)..]])
    }

    fn after(&self, name: &[u8]) -> Option<&'a [u8]> {
        self.0.iter().find_map(|part| Some(&part[part.windows(name.len()).position(|w| w == name)? + name.len()..]))
    }

    fn has(&self, text: &[u8]) -> bool {
        self.after(text).is_some()
    }

    fn number(&self, name: &[u8]) -> Option<u64> {
        let digits = self.after(name)?.trim_ascii_start();
        let end = digits.iter().position(|b| !b.is_ascii_digit()).unwrap_or(digits.len());
        std::str::from_utf8(&digits[..end]).ok()?.parse().ok()
    }
}

/// A stream of tokens, each when it is due.
struct Tokens {
    due: Interval,
    next: u64,
    count: u64,
    usage: bool,
    over: bool,
}

impl Body for Tokens {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.over {
            return Poll::Ready(None);
        }
        ready!(self.due.poll_tick(cx));
        let i = self.next;
        self.next += 1;
        let chunk = |choices: &str, usage: &str| {
            format!(
                "data: {{\"id\":\"mock-1\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"m\",\
                 \"choices\":[{choices}]{usage}}}\n\n"
            )
        };
        let end = i + 1 >= self.count;
        let reason = if end { "\"stop\"" } else { "null" };
        let now = now_us();
        let delta = format!(
            "{{\"index\":0,\"delta\":{{\"role\":\"assistant\",\"content\":\"{i}@{now} \"}},\"finish_reason\":{reason}}}"
        );
        let mut text = chunk(&delta, if self.usage { ",\"usage\":null" } else { "" });
        if end {
            if self.usage {
                let (prompt, total) = (64, 64 + self.count);
                let usage = format!(
                    ",\"usage\":{{\"prompt_tokens\":{prompt},\"completion_tokens\":{},\"total_tokens\":{total}}}",
                    self.count
                );
                text += &chunk("", &usage);
            }
            text += "data: [DONE]\n\n";
            self.over = true;
        }
        Poll::Ready(Some(Ok(Frame::data(text.into()))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_members_are_found_at_both_ends() {
        let long = format!("{{\"stream\":true,\"x\":\"{}\",\"max_tokens\": 17}}", "y".repeat(5000));
        let members = Members::of(long.as_bytes());
        assert!(members.has(b"\"stream\":true"));
        assert_eq!(members.number(b"\"max_tokens\":"), Some(17));
        assert!(!Members::of(b"{}").has(b"\"stream\":true"));
    }
}

//! `loadgen mock`: an OpenAI-compatible server whose every token has a moment known beforehand. The ground truth that
//! load generators, this one and others, are measured against.
//!
//! Token *k* of a request is due `ttft + k·itl` after its bytes were read off the socket, or at the next tick of one clock
//! for all streams (`--in-step`, as an engine's decode steps are). When each stream's first and last token really left stands
//! in `GET /truth`, so that the mock's own lateness is known and not blamed on the client. Nothing is computed: it is a
//! clock, not a model.

pub mod body;
mod tls;
pub mod truth;

use std::cell::Cell;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use anyhow::{Context, ensure};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Either, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::Semaphore;

use crate::clock::Alarms;
use crate::engine::connect::{OnThisThread, Stamp, Stamped};
use body::{Script, Tokens};
use truth::Truth;

/// Connections that wait to be accepted.
const BACKLOG: u32 = 16_384;
/// Largest request read, bytes.
const REQUEST_BYTES_MAX: usize = 64 << 20;
/// Tokens of an answer where the request names no number.
const TOKENS_DEFAULT: u32 = 16;
/// The model it says it serves.
const MODEL: &str = "mock";

/// How the mock behaves.
#[derive(Clone, Debug, clap::Args)]
pub struct MockArgs {
    /// Address to listen on; port 0 takes a free one, which the line `ready` names.
    #[arg(long, default_value = "127.0.0.1:8000")]
    pub listen: SocketAddr,
    /// Time from a request to its first token, milliseconds.
    #[arg(long, default_value_t = 50.0)]
    pub ttft_ms: f64,
    /// Time between tokens, milliseconds.
    #[arg(long, default_value_t = 20.0)]
    pub itl_ms: f64,
    /// Tokens that leave together as one chunk, at the moment of their last.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub tokens_per_chunk: u32,
    /// All streams' tokens leave at ticks of one clock, as from an engine's decode steps.
    #[arg(long)]
    pub in_step: bool,
    /// Cut every chunk into writes of this many bytes, wherever that falls.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub split_bytes: Option<u32>,
    /// Send usage with every chunk.
    #[arg(long)]
    pub continuous_usage: bool,
    /// Requests served at once; others wait for a place before their first token's time begins.
    #[arg(long)]
    pub slots: Option<usize>,
    /// Answer every so-manieth request with status 500.
    #[arg(long, default_value_t = 0)]
    pub refuse_every: u64,
    /// End every so-manieth stream in the middle, without `[DONE]`.
    #[arg(long, default_value_t = 0)]
    pub truncate_every: u64,
    /// Put an error into every so-manieth stream.
    #[arg(long, default_value_t = 0)]
    pub error_every: u64,
    /// End every so-manieth stream without content.
    #[arg(long, default_value_t = 0)]
    pub empty_every: u64,
    /// Speak HTTP/2 only.
    #[arg(long)]
    pub http2: bool,
    /// Certificate chain, PEM; with --tls-key, speaks TLS.
    #[arg(long, requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Private key, PEM.
    #[arg(long, requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Threads; connections spread over them.
    #[arg(long, default_value_t = 1)]
    pub threads: usize,
}

/// Serves until the process ends.
///
/// # Errors
/// A bad argument, or an address that cannot be listened on.
pub fn serve(args: &MockArgs) -> anyhow::Result<()> {
    for (name, ms) in [("--ttft-ms", args.ttft_ms), ("--itl-ms", args.itl_ms)] {
        ensure!(ms.is_finite() && ms >= 0.0, "{name} must be 0 or more, not {ms}");
    }
    ensure!(args.slots.is_none() || args.threads == 1, "--slots are those of one engine: they need --threads 1");
    crate::engine::raise_descriptors();
    let tls = match (&args.tls_cert, &args.tls_key) {
        (Some(cert), Some(key)) => Some(tls::acceptor(cert, key, args.http2)?),
        _ => None,
    };
    let truth = Arc::new(Mutex::new(Vec::new()));
    // The first thread takes the port, the others share it.
    let first = listen(args.listen)?;
    let address = first.local_addr()?;
    println!("ready http{}://{address}", if tls.is_some() { "s" } else { "" });
    std::thread::scope(|scope| {
        let mut listeners = vec![first];
        for _ in 1..args.threads {
            listeners.push(listen(address)?);
        }
        for listener in listeners {
            let (tls, truth) = (tls.clone(), Arc::clone(&truth));
            scope.spawn(move || {
                crate::engine::block_on(async {
                    let server = Rc::new(Server {
                        args: args.clone(),
                        alarms: Alarms::start().context("no descriptor for a timer")?,
                        seen: Cell::new(0),
                        chunks: [false, true].map(|chat| body::content(chat, args.tokens_per_chunk, None)),
                        slots: args.slots.map(|n| Arc::new(Semaphore::new(n.max(1)))),
                        truth,
                    });
                    accept(&server, TcpListener::from_std(listener)?, tls).await
                })?
            });
        }
        Ok(())
    })
}

fn listen(address: SocketAddr) -> anyhow::Result<std::net::TcpListener> {
    // tokio's socket type sets what the standard one cannot; the runtime is only there to make it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let _inside = runtime.enter();
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    socket.bind(address).with_context(|| format!("listening on {address}"))?;
    Ok(socket.listen(BACKLOG)?.into_std()?)
}

async fn accept(
    server: &Rc<Server>,
    listener: TcpListener,
    tls: Option<tokio_rustls::TlsAcceptor>,
) -> anyhow::Result<()> {
    loop {
        let Ok((socket, _)) = listener.accept().await else {
            // Out of descriptors, or the peer has gone: the next may do.
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            continue;
        };
        socket.set_nodelay(true)?;
        let (server, tls) = (Rc::clone(server), tls.clone());
        tokio::task::spawn_local(async move {
            let stamp = Stamp::default();
            let io = Stamped::new(socket, Rc::clone(&stamp));
            match tls {
                None => serve_connection(server, io, stamp).await,
                Some(tls) => {
                    if let Ok(io) = tls.accept(io).await {
                        serve_connection(server, io, stamp).await;
                    }
                }
            }
        });
    }
}

async fn serve_connection<T>(server: Rc<Server>, io: T, stamp: Stamp)
where
    T: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let http2 = server.args.http2;
    let service = service_fn(move |request| {
        let (server, stamp) = (Rc::clone(&server), Rc::clone(&stamp));
        async move { Ok::<_, Infallible>(server.answer(request, &stamp).await) }
    });
    // A connection that breaks is the client's business.
    let io = TokioIo::new(io);
    let _ = match http2 {
        true => hyper::server::conn::http2::Builder::new(OnThisThread).serve_connection(io, service).await,
        false => hyper::server::conn::http1::Builder::new().serve_connection(io, service).await,
    };
}

/// One thread's server.
struct Server {
    args: MockArgs,
    alarms: Rc<Alarms>,
    seen: Cell<u64>,
    /// The event of a whole chunk, of completions and of chat.
    chunks: [Bytes; 2],
    slots: Option<Arc<Semaphore>>,
    truth: Arc<Mutex<Vec<Truth>>>,
}

/// What is read of a request; everything else is accepted and ignored.
#[derive(Deserialize)]
struct Asked {
    #[serde(default)]
    prompt: Prompt,
    #[serde(default)]
    messages: Vec<Message>,
    #[serde(alias = "max_completion_tokens")]
    max_tokens: Option<u32>,
    #[serde(default)]
    stream: bool,
}

#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    content: Prompt,
}

/// Token ids, or text of which a word is a token.
#[derive(Deserialize)]
#[serde(untagged)]
enum Prompt {
    Ids(Vec<u32>),
    Text(String),
    Other(serde::de::IgnoredAny),
}

impl Default for Prompt {
    fn default() -> Self {
        Self::Ids(Vec::new())
    }
}

impl Prompt {
    fn tokens(&self) -> usize {
        match self {
            Self::Ids(ids) => ids.len(),
            Self::Text(text) => text.split_whitespace().count(),
            Self::Other(_) => 0,
        }
    }
}

type Answer = Response<Either<Full<Bytes>, Tokens>>;

impl Server {
    async fn answer(&self, request: Request<Incoming>, stamp: &Stamp) -> Answer {
        let path = request.uri().path();
        match (request.method(), path) {
            (&Method::GET, "/v1/models") => {
                plain(StatusCode::OK, &json!({ "object": "list", "data": [{ "id": MODEL, "object": "model" }] }))
            }
            (&Method::GET, "/truth") => {
                let taken = std::mem::take(&mut *self.truth.lock().unwrap_or_else(|e| e.into_inner()));
                plain(StatusCode::OK, &json!(taken))
            }
            (&Method::GET, "/health") => plain(StatusCode::OK, &json!({})),
            (&Method::POST, "/v1/completions") => self.complete(request, stamp, false).await,
            (&Method::POST, "/v1/chat/completions") => self.complete(request, stamp, true).await,
            _ => plain(StatusCode::NOT_FOUND, &json!({ "error": { "message": format!("no {path} here") } })),
        }
    }

    async fn complete(&self, request: Request<Incoming>, stamp: &Stamp, chat: bool) -> Answer {
        let id = request
            .headers()
            .get("x-request-id")
            .and_then(|v| v.to_str().ok()?.rsplit('-').next()?.parse().ok())
            .unwrap_or(u64::MAX);
        let bad = |what: String| plain(StatusCode::BAD_REQUEST, &json!({ "error": { "message": what } }));
        let body = match http_body_util::Limited::new(request.into_body(), REQUEST_BYTES_MAX).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => return bad(error.to_string()),
        };
        let mut read_ns = stamp.get();
        let asked: Asked = match serde_json::from_slice(&body) {
            Ok(asked) => asked,
            Err(error) => return bad(error.to_string()),
        };
        let seen = self.seen.get() + 1;
        self.seen.set(seen);
        let due = |every: u64| every > 0 && seen.is_multiple_of(every);
        if due(self.args.refuse_every) {
            let error = json!({ "error": { "message": "refused, as --refuse-every asks" } });
            return plain(StatusCode::INTERNAL_SERVER_ERROR, &error);
        }
        let place = match &self.slots {
            Some(slots) => {
                let place = Arc::clone(slots).acquire_owned().await.ok();
                read_ns = read_ns.max(crate::clock::now_ns());
                place
            }
            None => None,
        };
        let prompt_tokens = asked.prompt.tokens() + asked.messages.iter().map(|m| m.content.tokens()).sum::<usize>();
        let script = Script {
            id,
            chat,
            read_ns,
            prompt_tokens: prompt_tokens as u32,
            tokens: asked.max_tokens.unwrap_or(TOKENS_DEFAULT).max(1),
            truncated: due(self.args.truncate_every),
            broken: due(self.args.error_every),
            empty: due(self.args.empty_every),
        };
        let chunk = &self.chunks[usize::from(chat)];
        let tokens = Tokens::new(&self.args, script, chunk, Rc::clone(&self.alarms), Arc::clone(&self.truth), place);
        if !asked.stream {
            return plain(StatusCode::OK, &tokens.whole().await);
        }
        let mut response = Response::new(Either::Right(tokens));
        response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/event-stream"));
        response
    }
}

fn plain(status: StatusCode, value: &serde_json::Value) -> Answer {
    let mut response = Response::new(Either::Left(Full::from(value.to_string())));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

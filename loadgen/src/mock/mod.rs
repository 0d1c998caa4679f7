//! `loadgen mock`: an OpenAI-compatible server whose every token has a moment known beforehand. The ground truth that
//! load generators, this one and others, are measured against.
//!
//! Token *k* of a request is due `ttft + k·itl` after its bytes were read off the socket, or at the next tick of one clock
//! for all streams (`--in-step`, as an engine's decode steps are). When each stream's first and last token really left stands
//! in `GET /truth`, so that the mock's own lateness is known and not blamed on the client. Nothing is computed: it is a
//! clock, not a model.

mod answer;
pub mod body;
mod http1;
mod tls;
pub mod truth;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use anyhow::{Context, ensure};
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Either, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpSocket};

use crate::clock::Alarms;
use crate::cores;
use crate::engine::connect::{OnThisThread, Stamp, Stamped};
use crate::engine::http1::{Buffer, Io};
use crate::engine::target::REQUEST_ID;
use crate::out::say;
use answer::{Answer, Ask, Server};
use body::Tokens;

/// Connections that wait to be accepted.
const BACKLOG: u32 = 16_384;
/// Largest request read, bytes.
const REQUEST_BYTES_MAX: usize = 64 << 20;
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
    /// Cores that threads keep to, one each.
    #[arg(long, value_delimiter = ',')]
    pub cores: Vec<usize>,
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
    say!("ready http{}://{address}\n", if tls.is_some() { "s" } else { "" });
    std::thread::scope(|scope| {
        let mut listeners = vec![first];
        for _ in 1..args.threads {
            listeners.push(listen(address)?);
        }
        let serving = listeners.into_iter().enumerate().map(|(i, listener)| {
            let (tls, truth, core) = (tls.clone(), Arc::clone(&truth), cores::of(&args.cores, i));
            scope.spawn(move || -> anyhow::Result<()> {
                core.map_or(Ok(()), cores::keep_to)?;
                crate::engine::block_on(async {
                    let alarms = Alarms::start().context("no descriptor for a timer")?;
                    let server = Rc::new(Server::new(args, alarms, truth));
                    accept(&server, TcpListener::from_std(listener)?, tls).await
                })?
            })
        });
        let serving: Vec<_> = serving.collect();
        serving.into_iter().try_for_each(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
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
    let buffer = Buffer::default();
    loop {
        let Ok((socket, _)) = listener.accept().await else {
            // Out of descriptors, or the peer has gone: the next may do.
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            continue;
        };
        socket.set_nodelay(true)?;
        let (server, tls, buffer) = (Rc::clone(server), tls.clone(), buffer.clone());
        tokio::task::spawn_local(async move {
            let stamp = Stamp::default();
            let io = Stamped::new(socket, Rc::clone(&stamp));
            match tls {
                None => serve_connection(server, io, stamp, buffer).await,
                Some(tls) => {
                    if let Ok(io) = tls.accept(io).await {
                        serve_connection(server, io, stamp, buffer).await;
                    }
                }
            }
        });
    }
}

/// A connection that breaks is the client's business.
async fn serve_connection<T: Io + 'static>(server: Rc<Server>, io: T, stamp: Stamp, buffer: Buffer) {
    if !server.args.http2 {
        let _ = http1::Connection::new(io, stamp, buffer).serve(&server).await;
        return;
    }
    let service = service_fn(move |request| {
        let (server, stamp) = (Rc::clone(&server), Rc::clone(&stamp));
        async move { Ok::<_, Infallible>(answer_http2(&server, request, &stamp).await) }
    });
    let connection = hyper::server::conn::http2::Builder::new(OnThisThread);
    let _ = connection.serve_connection(TokioIo::new(io), service).await;
}

async fn answer_http2(
    server: &Server,
    request: Request<Incoming>,
    stamp: &Stamp,
) -> Response<Either<Full<Bytes>, Tokens>> {
    let (head, body) = request.into_parts();
    let answer = match http_body_util::Limited::new(body, REQUEST_BYTES_MAX).collect().await {
        Err(error) => Answer::Whole(413, error.to_string()),
        Ok(body) => {
            let ask = Ask {
                method: head.method.as_str(),
                path: head.uri.path(),
                id: head.headers.get(REQUEST_ID).and_then(|id| id.to_str().ok()),
                body: &body.to_bytes(),
                read_ns: stamp.get(),
            };
            server.answer(ask).await
        }
    };
    let (status, kind, body) = match answer {
        Answer::Whole(status, text) => (status, "application/json", Either::Left(Full::from(text))),
        Answer::Stream(tokens) => (200, "text/event-stream", Either::Right(*tokens)),
    };
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or_default();
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

//! `gateway`: the OpenAI-compatible sidecar beside one engine or a few.
//!
//! Requests are peeked at, admitted in tokens, and sent on byte for byte; answers stream through, their phases become
//! hints for the scheduler, and a client that leaves cancels its work at the engine. Which request goes where and when is
//! decided by the crate `admission`, which knows no socket; what is read and changed of a body by the crate `openai`.
//!
//! The accept loop is ours, on pingora's sessions: the ready line needs the real port, and a shutdown should end when
//! the last answer has, not after a fixed grace period.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand};
use pingora_core::listeners::tls::Acceptor;
use pingora_core::protocols::Stream;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};

use gateway::access_log::AccessLog;
use gateway::config::Timeouts;
use gateway::gateway::Gateway;
use gateway::joined::Joined;
use gateway::metrics::Metrics;
use gateway::setup::Setup;
use gateway::wants::Wants;
use gateway::{admin, config, hints, identity, monitor, proxy, telemetry};

/// A request is some sixty small allocations.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// For a client's TLS handshake.
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(10);

/// OpenAI-compatible sidecar: admits in tokens, streams through, follows request phases, sends hints, cancels upstream.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// Where clients connect; port 0 picks a free one.
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// An engine, `host:port`; may be given several times. Every path is passed through. For more, use --config.
    #[arg(long)]
    upstream: Vec<String>,
    /// Configuration file, TOML: engines, queue, timeouts, tenants. docs/gateway.md has every field.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Read the configuration, say what is wrong with it, and end.
    #[arg(long)]
    check_config: bool,
    /// The interposer's hint listener (`vnpu run --hints PATH`).
    #[arg(long)]
    hints: Option<PathBuf>,
    /// Where operators look and Prometheus scrapes; port 0 picks a free one.
    #[arg(long, alias = "metrics", default_value = "127.0.0.1:0")]
    admin: SocketAddr,
    /// A line of JSON for each request; `-` is standard error.
    #[arg(long, value_name = "FILE")]
    access_log: Option<PathBuf>,
    /// Threads that serve connections.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: u16,
    /// Objective for the time to first token, milliseconds; told to the scheduler.
    #[arg(long, default_value_t = 1000)]
    ttft_slo_ms: u32,
    /// Objective for the time per output token, milliseconds; told to the scheduler.
    #[arg(long, default_value_t = 50)]
    tpot_slo_ms: u32,
    /// Let clients set priority, tenant and objectives of their requests (headers `x-vnpu-priority`, `x-vnpu-tenant`,
    /// `x-vnpu-ttft-ms`, `x-vnpu-tpot-ms`).
    #[arg(long)]
    trust_client_hints: bool,
}

#[derive(Clone, Copy, Debug, Subcommand)]
enum Command {
    /// Prints a new API key and the hash of it for the configuration file.
    Key,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if let Some(Command::Key) = args.command {
        let (key, hash) = identity::new_key()?;
        println!("key         {key}\nkey_sha256  {hash}");
        return Ok(());
    }
    let config = config::load(args.config.as_ref(), &args.upstream)?;
    if args.check_config {
        let said = format!("fine: {} engines, {} tenants", config.engines.len(), config.tenants.len());
        let what = || args.config.as_ref().map_or("--upstream".to_owned(), |file| file.display().to_string());
        Setup::check(config).with_context(|| format!("{}: not a valid configuration", what()))?;
        println!("{said}");
        return Ok(());
    }
    let filter = tracing_subscriber::EnvFilter::try_from_env("GATEWAY_LOG").unwrap_or_else(|_| "warn".into());
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours).init();
    raise_descriptors();
    let threads = usize::from(args.threads);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()?
        .block_on(run(args, config))
}

async fn run(args: Args, config: config::Config) -> anyhow::Result<()> {
    let metrics = Arc::new(Metrics::default());
    let hints = hints::Hints::start(args.hints, Arc::clone(&metrics));
    let objectives = Wants::objectives(args.ttft_slo_ms, args.tpot_slo_ms);
    let access_log = args.access_log.as_deref().map(AccessLog::open).transpose()?;
    let gateway =
        Gateway::new((config, args.config), (objectives, args.trust_client_hints), hints, metrics, access_log)?;
    let gateway = Arc::new(gateway);
    let listener = listen(args.listen, "--listen").await?;
    let operators = listen(args.admin, "--admin").await?;
    // Before the ready line: whoever reads it may end the gateway at once.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let admin = operators.local_addr()?;
    let scheme = if gateway.setup().acceptor.is_some() { "https" } else { "http" };
    println!("ready {scheme}://{} metrics=http://{admin}/metrics admin=http://{admin}", listener.local_addr()?);
    let operators = tokio::spawn(axum::serve(operators, admin::router(Arc::clone(&gateway))).into_future());
    monitor::start(&gateway);

    let (stop, stopping) = tokio::sync::watch::channel(false);
    let connections = Arc::new(());
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let (gateway, stopping, alive) = (Arc::clone(&gateway), stopping.clone(), Arc::clone(&connections));
                    let acceptor = gateway.setup().acceptor.clone();
                    tokio::spawn(async move {
                        let _ = stream.set_nodelay(true);
                        // Of the handshake nothing stays with the connection.
                        if let Some(stream) = Box::pin(pingora_stream(stream, acceptor)).await {
                            proxy::connection(gateway, stream, stopping).await;
                        }
                        drop(alive);
                    });
                }
                // Out of descriptors, or the client was faster: neither ends the gateway.
                Err(error) => {
                    tracing::warn!(%error, "accept failed");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            },
            _ = hangup.recv() => {
                let gateway = Arc::clone(&gateway);
                tokio::task::spawn_blocking(move || match monitor::reload(&gateway) {
                    Ok(reloaded) => tracing::info!(?reloaded, "the configuration was read again"),
                    Err(e) => tracing::error!("the configuration stays as it was: {e:#}"),
                });
            }
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    drop(listener);
    gateway.stop();
    let _ = stop.send(true);
    let deadline = tokio::time::Instant::now() + Timeouts::of(gateway.setup().config.timeouts.drain_ms);
    while Arc::strong_count(&connections) > 1 && gateway.in_flight() > 0 && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    operators.abort();
    if gateway.telemetry.is_some() {
        let stopped =
            tokio::task::spawn_blocking(move || gateway.telemetry.iter().for_each(telemetry::Telemetry::stop));
        stopped.await?;
    }
    Ok(())
}

/// A stream takes two descriptors, and the usual limit of 1024 is soft: raises it as far as the system allows.
fn raise_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        Ok(()) => tracing::info!(from = ?limit.current, to = ?limit.maximum, "limit on open files raised"),
        Err(error) => tracing::warn!(%error, limit = ?limit.current, "cannot raise the limit on open files"),
    }
}

async fn listen(address: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("{flag} {address}: cannot listen there; choose a free port"))
}

/// A client's connection, after its TLS handshake if there is to be one; `None` if that fails.
async fn pingora_stream(stream: TcpStream, acceptor: Option<Arc<Acceptor>>) -> Option<Stream> {
    let stream = pingora_core::protocols::l4::stream::Stream::from(stream);
    let Some(acceptor) = acceptor else { return Some(Box::new(Joined::to_client(Box::new(stream)))) };
    match tokio::time::timeout(HANDSHAKE_TIME_MAX, acceptor.tls_handshake(stream)).await.ok()? {
        Ok(stream) => Some(Box::new(Joined::to_client(Box::new(stream)))),
        Err(error) => {
            tracing::debug!(%error, "a client's TLS handshake failed");
            None
        }
    }
}

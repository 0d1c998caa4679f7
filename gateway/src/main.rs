//! `gateway`: the OpenAI-compatible sidecar beside an engine.
//!
//! First version: streams through, follows each request's phase (queued, prefill, decode, done), tells the interposer's
//! hint listener about every transition, and cancels upstream when the client leaves. It deliberately keeps no queue and
//! admits everything.
//!
//! The accept loop is ours, on pingora's sessions: the ready line needs the real port, and a shutdown should end when
//! the last answer has, not after a fixed grace period.

mod error;
mod hints;
mod metrics;
mod phase;
mod proxy;
mod request;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use pingora_core::protocols::Stream;
use pingora_core::services::listening::Service;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};

use metrics::Metrics;
use phase::Objectives;
use proxy::Proxy;

/// How long answers may still run after a signal to stop.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(30);

/// OpenAI-compatible sidecar: streams through, follows request phases, sends hints, cancels upstream.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Where clients connect; port 0 picks a free one.
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// The engine, `host:port`.
    #[arg(long)]
    upstream: String,
    /// The interposer's hint listener (`vnpu run --hints PATH`).
    #[arg(long)]
    hints: Option<PathBuf>,
    /// Where Prometheus scrapes; port 0 picks a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    metrics: SocketAddr,
    /// Objective for the time to first token, milliseconds; told to the scheduler.
    #[arg(long, default_value_t = 1000)]
    ttft_slo_ms: u32,
    /// Objective for the time per output token, milliseconds; told to the scheduler.
    #[arg(long, default_value_t = 50)]
    tpot_slo_ms: u32,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_env("GATEWAY_LOG").unwrap_or_else(|_| "warn".into());
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours).init();
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(run(args))
}

async fn run(args: Args) -> anyhow::Result<()> {
    let metrics = Arc::new(Metrics::default());
    let hints = hints::Hints::start(args.hints, Arc::clone(&metrics));
    let objectives = Objectives { ttft_ms: args.ttft_slo_ms, tpot_ms: args.tpot_slo_ms };
    let proxy = Arc::new(Proxy::new(&args.upstream, objectives, hints, Arc::clone(&metrics))?);
    let listener = listen(args.listen, "--listen").await?;
    let scrape = listen(args.metrics, "--metrics").await?;
    // Before the ready line: whoever reads it may end the gateway at once.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    println!("ready http://{} metrics=http://{}/metrics", listener.local_addr()?, scrape.local_addr()?);
    let scraper = tokio::spawn(serve_metrics(scrape, metrics));

    let (stop, stopping) = tokio::sync::watch::channel(false);
    let connections = Arc::new(());
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let (proxy, stopping, alive) = (Arc::clone(&proxy), stopping.clone(), Arc::clone(&connections));
                    tokio::spawn(async move {
                        let _ = stream.set_nodelay(true);
                        Service::<Proxy>::handle_event(pingora_stream(stream), proxy, stopping).await;
                        drop(alive);
                    });
                }
                // Out of descriptors, or the client was faster: neither ends the gateway.
                Err(error) => {
                    tracing::warn!(%error, "accept failed");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            },
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    drop(listener);
    let _ = stop.send(true);
    let deadline = tokio::time::Instant::now() + DRAIN_TIME_MAX;
    while Arc::strong_count(&connections) > 1 && proxy.in_flight() > 0 && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    scraper.abort();
    Ok(())
}

async fn listen(address: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("{flag} {address}: cannot listen there; choose a free port"))
}

fn pingora_stream(stream: TcpStream) -> Stream {
    Box::new(pingora_core::protocols::l4::stream::Stream::from(stream))
}

/// Answers every request with the metrics page: scrapers ask nothing else.
async fn serve_metrics(listener: TcpListener, metrics: Arc<Metrics>) {
    loop {
        let Ok((mut stream, _)) = listener.accept().await else { continue };
        let metrics = Arc::clone(&metrics);
        tokio::spawn(async move {
            let mut request = [0; 4096];
            if !matches!(tokio::time::timeout(Duration::from_secs(5), stream.read(&mut request)).await, Ok(Ok(1..))) {
                return;
            }
            let page = metrics.page();
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n\
                 content-length: {}\r\nconnection: close\r\n\r\n",
                page.len()
            );
            let _ = stream.write_all(head.as_bytes()).await;
            let _ = stream.write_all(page.as_bytes()).await;
            let _ = stream.shutdown().await;
        });
    }
}

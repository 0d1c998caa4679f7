//! The listening socket: how many connections, and when a silent one is dead.
//!
//! A connection may hold a body of 32 MiB and an open file each, so their number is bounded; the ones above the bound wait
//! in the kernel's backlog. A client that vanishes without a word (power, cable) sends no end of stream; TCP keep-alive
//! finds it within [`KEEP_ALIVE_IDLE`] plus a few probes, and then its requests are aborted like any other's.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use prometheus_client::metrics::gauge::Gauge;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Most open connections. Twice the default bound on waiting requests, so that refusals can still be heard.
pub(crate) const CONNECTIONS_MAX: usize = 8192;

const KEEP_ALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEP_ALIVE_PROBES: u32 = 3;
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// Accepts while there is room.
#[derive(Debug)]
pub(crate) struct Connections {
    listener: TcpListener,
    room: Arc<Semaphore>,
    open: Gauge,
}

impl Connections {
    /// At most `max` at a time, counted in `open`.
    pub(crate) fn new(listener: TcpListener, max: usize, open: Gauge) -> Self {
        Self { listener, room: Arc::new(Semaphore::new(max)), open }
    }
}

impl Listener for Connections {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let room = Arc::clone(&self.room).acquire_owned().await.expect("the semaphore is never closed");
        let (stream, address) = Listener::accept(&mut self.listener).await;
        if let Err(error) = configure(&stream) {
            tracing::debug!(%error, "cannot set socket options");
        }
        self.open.inc();
        (Connection { stream, open: self.open.clone(), _room: room }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

fn configure(stream: &TcpStream) -> io::Result<()> {
    // One small write per token: waiting to fill a segment would delay each by a round trip.
    stream.set_nodelay(true)?;
    rustix::net::sockopt::set_socket_keepalive(stream, true)?;
    rustix::net::sockopt::set_tcp_keepidle(stream, KEEP_ALIVE_IDLE)?;
    rustix::net::sockopt::set_tcp_keepintvl(stream, KEEP_ALIVE_INTERVAL)?;
    rustix::net::sockopt::set_tcp_keepcnt(stream, KEEP_ALIVE_PROBES)?;
    Ok(())
}

/// A stream and its place among the open ones.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    open: Gauge,
    _room: OwnedSemaphorePermit,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.open.dec();
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn connections_above_the_bound_wait_for_a_place() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let open = Gauge::default();
        let mut connections = Connections::new(listener, 1, open.clone());
        let _clients = [
            TcpStream::connect(address).await.expect("connects"),
            TcpStream::connect(address).await.expect("connects"),
        ];
        let (first, _) = connections.accept().await;
        assert_eq!(open.get(), 1);
        let full = tokio::time::timeout(Duration::from_millis(50), connections.accept()).await;
        assert!(full.is_err(), "accepted above the bound");
        drop(first);
        assert_eq!(open.get(), 0);
        let (_second, _) = tokio::time::timeout(Duration::from_secs(10), connections.accept()).await.expect("a place");
    }
}

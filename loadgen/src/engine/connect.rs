//! Connections of one thread: opened when a request finds none idle, kept for the next.
//!
//! The time of arrival is taken where bytes leave the socket ([`Stamped`]), below TLS and HTTP, so that no parsing, no queue
//! and no other stream of this program is measured as the server's. One task reads a stream's chunks before its connection
//! reads on, so with HTTP/1.1 the stamp is that chunk's own; with HTTP/2 it is the connection's latest read.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::Failure;
use crate::clock::now_ns;

/// Streams that share an HTTP/2 connection: what servers commonly allow at least.
const STREAMS_PER_CONNECTION: usize = 100;

/// Where connections go and how.
#[derive(Clone)]
pub struct Endpoint {
    /// Resolved once, before the run.
    pub address: SocketAddr,
    /// TLS, and the name that the server must prove.
    pub tls: Option<(Arc<rustls::ClientConfig>, ServerName<'static>)>,
    /// HTTP/2: agreed on by TLS, or known beforehand.
    pub http2: bool,
}

/// The moment of a connection's latest read, [`now_ns`].
pub type Stamp = Rc<Cell<u64>>;

/// A socket that notes when bytes come.
pub struct Stamped<T> {
    io: T,
    stamp: Stamp,
}

impl<T> Stamped<T> {
    /// Wraps `io`; each read that brings bytes sets `stamp`.
    pub fn new(io: T, stamp: Stamp) -> Self {
        Self { io, stamp }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Stamped<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.io).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.stamp.set(now_ns());
        }
        result
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Stamped<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

/// Runs what HTTP/2 spawns on this thread.
#[derive(Clone, Copy)]
pub struct OnThisThread;

impl<F: Future + 'static> hyper::rt::Executor<F> for OnThisThread {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async move {
            future.await;
        });
    }
}

type Body = Full<Bytes>;

enum Sender {
    One(http1::SendRequest<Body>),
    Two(http2::SendRequest<Body>),
}

/// A connection that a request has to itself, or one stream of one.
pub struct Connection {
    sender: Sender,
    stamp: Stamp,
    /// Streams of an HTTP/2 connection in use, this one included.
    streams: Rc<Cell<usize>>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.streams.set(self.streams.get() - 1);
    }
}

impl Connection {
    /// When bytes came last, [`now_ns`].
    pub fn read_ns(&self) -> u64 {
        self.stamp.get()
    }

    /// Sends a request; gives it back if it has not left because the connection was closed meanwhile.
    pub async fn send(
        &mut self,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, (Failure, Option<Request<Body>>)> {
        let sent = match &mut self.sender {
            Sender::One(sender) => sender.try_send_request(request).await,
            Sender::Two(sender) => sender.try_send_request(request).await,
        };
        sent.map_err(|mut error| {
            let request = error.take_message();
            (Failure::new(&error.into_error()), request)
        })
    }

    fn is_open(&self) -> bool {
        match &self.sender {
            Sender::One(sender) => !sender.is_closed(),
            Sender::Two(sender) => !sender.is_closed(),
        }
    }
}

/// The connections of one thread.
pub struct Pool {
    endpoint: Endpoint,
    idle: RefCell<Vec<Connection>>,
    /// One handle for each HTTP/2 connection; its streams are counted in the handle.
    shared: RefCell<Vec<Connection>>,
    opening: tokio::sync::Mutex<()>,
    /// Connections opened so far.
    pub opened: Cell<usize>,
    /// Connections that failed for want of a descriptor.
    pub descriptors_missed: Cell<usize>,
}

impl Pool {
    /// No connection yet.
    pub fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            idle: RefCell::default(),
            shared: RefCell::default(),
            opening: tokio::sync::Mutex::default(),
            opened: Cell::new(0),
            descriptors_missed: Cell::new(0),
        }
    }

    /// An idle connection, or a new one.
    pub async fn take(&self) -> Result<Connection, Failure> {
        if self.endpoint.http2 {
            return self.stream().await;
        }
        loop {
            let found = self.idle.borrow_mut().pop();
            match found {
                Some(connection) if connection.is_open() => return Ok(connection),
                Some(_) => {}
                None => return self.open().await,
            }
        }
    }

    /// Gives a connection back once it can take another request.
    pub async fn give_back(&self, mut connection: Connection) {
        if let Sender::One(sender) = &mut connection.sender
            && sender.ready().await.is_ok()
        {
            self.idle.borrow_mut().push(connection);
        }
    }

    async fn stream(&self) -> Result<Connection, Failure> {
        self.shared.borrow_mut().retain(Connection::is_open);
        if let Some(stream) = self.stream_of_open() {
            return Ok(stream);
        }
        // Who comes while a connection is being opened waits for that one.
        let _one = self.opening.lock().await;
        if let Some(stream) = self.stream_of_open() {
            return Ok(stream);
        }
        let opened = self.open().await?;
        self.shared.borrow_mut().push(opened);
        self.stream_of_open().ok_or_else(|| Failure("HTTP/2 connection closed at once".into()))
    }

    fn stream_of_open(&self) -> Option<Connection> {
        let shared = self.shared.borrow();
        let least = shared.iter().min_by_key(|c| c.streams.get())?;
        let Sender::Two(sender) = &least.sender else { return None };
        // The handle itself counts for one.
        (least.streams.get() <= STREAMS_PER_CONNECTION).then(|| {
            least.streams.set(least.streams.get() + 1);
            Connection {
                sender: Sender::Two(sender.clone()),
                stamp: Rc::clone(&least.stamp),
                streams: Rc::clone(&least.streams),
            }
        })
    }

    async fn open(&self) -> Result<Connection, Failure> {
        let stamp = Stamp::default();
        let socket = TcpStream::connect(self.endpoint.address).await.map_err(|error| {
            if matches!(
                rustix::io::Errno::from_io_error(&error),
                Some(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE)
            ) {
                self.descriptors_missed.set(self.descriptors_missed.get() + 1);
            }
            Failure(format!("connecting to {}: {error}", self.endpoint.address))
        })?;
        socket.set_nodelay(true).map_err(|e| Failure(e.to_string()))?;
        self.opened.set(self.opened.get() + 1);
        let io = Stamped::new(socket, Rc::clone(&stamp));
        let sender = match &self.endpoint.tls {
            None => self.handshake(io).await?,
            Some((config, name)) => {
                let connector = tokio_rustls::TlsConnector::from(Arc::clone(config));
                let tls = connector.connect(name.clone(), io).await.map_err(|e| Failure(format!("TLS: {e}")))?;
                self.handshake(tls).await?
            }
        };
        Ok(Connection { sender, stamp, streams: Rc::new(Cell::new(1)) })
    }

    async fn handshake<T>(&self, io: T) -> Result<Sender, Failure>
    where
        T: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        // A connection's end shows in the request that it ends.
        let failed = |e: hyper::Error| Failure::new(&e);
        if self.endpoint.http2 {
            let (sender, connection) = http2::handshake(OnThisThread, TokioIo::new(io)).await.map_err(failed)?;
            tokio::task::spawn_local(connection);
            Ok(Sender::Two(sender))
        } else {
            let (sender, connection) = http1::handshake(TokioIo::new(io)).await.map_err(failed)?;
            tokio::task::spawn_local(connection);
            Ok(Sender::One(sender))
        }
    }
}

//! Connections of one thread: opened when a request finds none idle, kept for the next.
//!
//! The time of arrival is taken where bytes leave the socket ([`Stamped`]), below TLS and HTTP, so that no parsing, no queue
//! and no other stream of this program is measured as the server's. With HTTP/1.1 ([`Http1`]) the stamp is that chunk's own;
//! with HTTP/2, which is hyper's, it is the connection's latest read.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderValue;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::Failure;
use super::http1::{Buffer, Http1, Unanswered};
use super::target::{Head, REQUEST_ID};
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
    One(Http1),
    /// With the body of the answer that is being read.
    Two(http2::SendRequest<Body>, Option<Incoming>),
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

    /// The same, for who is told of bytes while the connection reads.
    pub fn stamp(&self) -> Stamp {
        Rc::clone(&self.stamp)
    }

    /// Sends a request and waits for the head of its answer; its status.
    ///
    /// # Errors
    /// Why there is no answer, and whether to ask again.
    pub async fn send(&mut self, head: &Head, id: Option<&str>, body: &Bytes) -> Result<u16, Unanswered> {
        match &mut self.sender {
            Sender::One(one) => one.send(head, id, body).await,
            Sender::Two(sender, answer) => {
                let mut request = head.request.clone().map(|()| Full::new(body.clone()));
                if let Some(id) = id.and_then(|id| HeaderValue::from_str(id).ok()) {
                    request.headers_mut().insert(REQUEST_ID, id);
                }
                let sent = sender.try_send_request(request).await.map_err(|mut error| {
                    let again = error.take_message().is_some();
                    Unanswered { failure: Failure::new(&error.into_error()), again }
                })?;
                let (head, body) = sent.into_parts();
                *answer = Some(body);
                Ok(head.status.as_u16())
            }
        }
    }

    /// Waits for the next bytes of the answer's body and gives them to `part`; false at the body's end.
    ///
    /// # Errors
    /// A connection that broke or ended too early.
    pub async fn read(&mut self, mut part: impl FnMut(&[u8])) -> Result<bool, Failure> {
        match &mut self.sender {
            Sender::One(one) => one.read(part).await,
            Sender::Two(_, None) => Ok(false),
            Sender::Two(_, Some(answer)) => match answer.frame().await {
                None => Ok(false),
                Some(Err(error)) => Err(Failure::new(&error)),
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        part(data);
                    }
                    Ok(true)
                }
            },
        }
    }

    /// Whether another request can go out.
    fn is_free(&mut self) -> bool {
        match &mut self.sender {
            Sender::One(one) => one.is_free(),
            Sender::Two(sender, _) => !sender.is_closed(),
        }
    }
}

/// The connections of one thread.
pub struct Pool {
    endpoint: Endpoint,
    buffer: Buffer,
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
            buffer: Buffer::default(),
            idle: RefCell::default(),
            shared: RefCell::default(),
            opening: tokio::sync::Mutex::default(),
            opened: Cell::new(0),
            descriptors_missed: Cell::new(0),
        }
    }

    /// An idle connection if it may be one, or a new one.
    pub async fn take(&self, idle: bool) -> Result<Connection, Failure> {
        if self.endpoint.http2 {
            return self.stream().await;
        }
        while idle && let Some(mut connection) = self.pop_idle() {
            if connection.is_free() {
                return Ok(connection);
            }
        }
        self.open().await
    }

    fn pop_idle(&self) -> Option<Connection> {
        self.idle.borrow_mut().pop()
    }

    /// Gives a connection back after its answer; one that can take no other request is closed.
    pub fn give_back(&self, connection: Connection) {
        if matches!(&connection.sender, Sender::One(one) if one.keeps()) {
            self.idle.borrow_mut().push(connection);
        }
    }

    async fn stream(&self) -> Result<Connection, Failure> {
        self.shared.borrow_mut().retain_mut(Connection::is_free);
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
        let Sender::Two(sender, _) = &least.sender else { return None };
        // The handle itself counts for one.
        (least.streams.get() <= STREAMS_PER_CONNECTION).then(|| {
            least.streams.set(least.streams.get() + 1);
            Connection {
                sender: Sender::Two(sender.clone(), None),
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
        if !self.endpoint.http2 {
            return Ok(Sender::One(Http1::new(io, self.buffer.clone())));
        }
        // A connection's end shows in the requests that it ends.
        let opened = http2::handshake(OnThisThread, TokioIo::new(io)).await;
        let (sender, connection) = opened.map_err(|e| Failure::new(&e))?;
        tokio::task::spawn_local(connection);
        Ok(Sender::Two(sender, None))
    }
}

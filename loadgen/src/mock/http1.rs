//! The mock's side of HTTP/1.1: one task a connection, one write a chunk, so that the clock is kept for thousands of streams
//! on one core.

use std::future::poll_fn;
use std::io::{self, Write};
use std::pin::Pin;
use std::task::Poll;

use http::StatusCode;
use http_body::Body as _;
use loadgen::http1::{self, Asked};
use tokio::io::AsyncWriteExt;

use super::REQUEST_BYTES_MAX;
use super::answer::{Answer, Ask, Server};
use super::body::Tokens;
use crate::engine::connect::Stamp;
use crate::engine::http1::{Buffer, Io};

/// Bytes that are written at once where more is due than that.
const WRITE_BYTES_MAX: usize = 16 << 10;

/// A connection.
pub struct Connection<T> {
    io: T,
    stamp: Stamp,
    buffer: Buffer,
    /// What was read and not used yet.
    held: Vec<u8>,
    /// What is to be written.
    out: Vec<u8>,
}

impl<T: Io> Connection<T> {
    /// A connection that has carried nothing; each read sets `stamp`.
    pub fn new(io: T, stamp: Stamp, buffer: Buffer) -> Self {
        Self { io, stamp, buffer, held: Vec::new(), out: Vec::new() }
    }

    /// Answers requests until the client leaves.
    ///
    /// # Errors
    /// What ended the connection, if not the client's wish.
    pub async fn serve(mut self, server: &Server) -> io::Result<()> {
        let mut body = Vec::new();
        while let Some(asked) = self.request(&mut body).await? {
            let (method, path, id) = (&*asked.method, &*asked.path, asked.id.as_deref());
            let ask = Ask { method, path, id, body: &body, read_ns: self.stamp.get() };
            match server.answer(ask).await {
                Answer::Whole(status, text) => {
                    let reason = StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason());
                    write!(
                        self.out,
                        "HTTP/1.1 {status} {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{text}",
                        reason.unwrap_or_default(),
                        text.len()
                    )?;
                    self.flush().await?;
                }
                Answer::Stream(tokens) => self.stream(tokens, server.args.split_bytes.is_some()).await?,
            }
            if !asked.keeps {
                break;
            }
        }
        self.io.shutdown().await
    }

    /// The next request and its `body`; `None` when the client has none.
    async fn request(&mut self, body: &mut Vec<u8>) -> io::Result<Option<Asked>> {
        let nonsense = |e: http1::Malformed| io::Error::new(io::ErrorKind::InvalidData, e);
        body.clear();
        let mut asked: Option<Asked> = None;
        loop {
            if asked.is_none()
                && let Some((head, length)) = http1::request(&self.held).map_err(nonsense)?
            {
                self.held.drain(..length);
                if head.waits {
                    self.io.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
                }
                asked = Some(head);
            }
            if let Some(asked) = &mut asked {
                let used = asked.body.feed(&self.held, |part| body.extend_from_slice(part)).map_err(nonsense)?;
                self.held.drain(..used);
            }
            if let Some(asked) = asked.take_if(|asked| asked.body.has_ended()) {
                return Ok(Some(asked));
            }
            if body.len() > REQUEST_BYTES_MAX {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
            if self.fill().await? == 0 {
                return Ok(None);
            }
        }
    }

    async fn fill(&mut self) -> io::Result<usize> {
        let (io, buffer, held) = (&mut self.io, &self.buffer, &mut self.held);
        let read = poll_fn(|cx| {
            buffer.poll(io, cx, |bytes| {
                held.extend_from_slice(bytes);
                bytes.len()
            })
        });
        read.await
    }

    async fn flush(&mut self) -> io::Result<()> {
        self.io.write_all(&self.out).await?;
        self.out.clear();
        self.io.flush().await
    }

    /// What is due goes out in one write, or `apart`: a write for each piece.
    async fn stream(&mut self, mut tokens: Box<Tokens>, apart: bool) -> io::Result<()> {
        self.out.extend_from_slice(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n",
        );
        loop {
            let (io, buffer, held) = (&mut self.io, &self.buffer, &mut self.held);
            let nothing_to_write = self.out.is_empty();
            let next = poll_fn(|cx| match Pin::new(&mut *tokens).poll_frame(cx) {
                Poll::Ready(frame) => Poll::Ready(Ok(Some(frame))),
                Poll::Pending if !nothing_to_write => Poll::Ready(Ok(None)),
                Poll::Pending => match buffer.poll(io, cx, |bytes| {
                    held.extend_from_slice(bytes);
                    bytes.len()
                }) {
                    Poll::Ready(Ok(0)) => Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into())),
                    Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                    // A request that comes before the answer to the one before it has ended waits for that.
                    Poll::Ready(Ok(_)) | Poll::Pending => Poll::Pending,
                },
            });
            match next.await? {
                None => self.flush().await?,
                Some(Some(Ok(frame))) => {
                    let data = frame.data_ref().map_or(&[][..], |data| data);
                    write!(self.out, "{:x}\r\n", data.len())?;
                    self.out.extend_from_slice(data);
                    self.out.extend_from_slice(b"\r\n");
                    if apart || self.out.len() > WRITE_BYTES_MAX {
                        self.flush().await?;
                    }
                }
                Some(None) => {
                    self.out.extend_from_slice(b"0\r\n\r\n");
                    return self.flush().await;
                }
            }
        }
    }
}

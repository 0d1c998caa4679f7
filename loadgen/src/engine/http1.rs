//! One HTTP/1.1 connection, read where its bytes come in.
//!
//! A request is one write (two where its body is long), a chunk of its answer one read into a buffer that all connections of
//! the thread share: it is empty again before anybody else runs. No task of its own: who waits for the answer reads.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use loadgen::http1::{self, Body};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::Failure;
use super::target::{Head, REQUEST_ID};

/// Bytes of one read at most.
const READ_BYTES_MAX: usize = 64 << 10;
/// A body up to this size is written together with its head.
const TOGETHER_BYTES_MAX: usize = 16 << 10;

/// What a connection runs over.
pub trait Io: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Io for T {}

/// Where reads of a thread's connections go.
#[derive(Clone)]
pub struct Buffer(Rc<RefCell<Vec<u8>>>);

impl Default for Buffer {
    fn default() -> Self {
        Self(Rc::new(RefCell::new(vec![0; READ_BYTES_MAX])))
    }
}

impl Buffer {
    /// Reads once; gives what came to `read`, nothing at the connection's end.
    ///
    /// # Errors
    /// The connection's.
    pub fn poll<T>(
        &self,
        io: &mut (impl AsyncRead + Unpin + ?Sized),
        cx: &mut Context<'_>,
        read: impl FnOnce(&[u8]) -> T,
    ) -> Poll<io::Result<T>> {
        let mut room = self.0.borrow_mut();
        let mut room = ReadBuf::new(&mut room);
        ready!(Pin::new(io).poll_read(cx, &mut room))?;
        Poll::Ready(Ok(read(room.filled())))
    }
}

/// A request without an answer.
pub struct Unanswered {
    /// Why.
    pub failure: Failure,
    /// The server did not take it: nothing has left, or the connection was one that it was about to close. It may be sent
    /// on another.
    pub again: bool,
}

/// A connection between two requests, or in one.
pub struct Http1 {
    io: Box<dyn Io>,
    buffer: Buffer,
    /// What came with the head of an answer, or the beginning of one.
    held: Vec<u8>,
    body: Body,
    keeps: bool,
    /// It has carried an answer before: the server may close it at any moment.
    reused: bool,
}

impl Http1 {
    /// A connection that has carried nothing.
    pub fn new(io: impl Io + 'static, buffer: Buffer) -> Self {
        Self { io: Box::new(io), buffer, held: Vec::new(), body: Body::Ended, keeps: true, reused: false }
    }

    /// Whether the answer was read to its end and the server has not said that it will close.
    pub fn keeps(&self) -> bool {
        self.keeps && self.body.has_ended() && self.held.is_empty()
    }

    /// Whether another request can go out: it [`keeps`](Self::keeps), and the server has neither said nor done anything
    /// since.
    pub fn is_free(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        self.keeps() && self.buffer.poll(&mut *self.io, &mut cx, |_| ()).is_pending()
    }

    /// Sends a request and reads the head of its answer; its status.
    ///
    /// # Errors
    /// A connection that broke, or an answer that is not HTTP.
    pub async fn send(&mut self, head: &Head, id: Option<&str>, body: &[u8]) -> Result<u16, Unanswered> {
        let mut first = Vec::with_capacity(head.lines.len() + 128 + body.len().min(TOGETHER_BYTES_MAX));
        first.extend_from_slice(&head.lines);
        if let Some(id) = id {
            first.extend_from_slice(format!("{REQUEST_ID}: {id}\r\n").as_bytes());
        }
        if !body.is_empty() {
            first.extend_from_slice(format!("content-length: {}\r\n", body.len()).as_bytes());
        }
        first.extend_from_slice(b"\r\n");
        let rest = match body.len() <= TOGETHER_BYTES_MAX {
            true => {
                first.extend_from_slice(body);
                &[]
            }
            false => body,
        };
        let broke = |e: io::Error| Failure(format!("sending the request: {e}"));
        let begun = match self.io.write(&first).await {
            Ok(begun) => begun,
            Err(e) => return Err(Unanswered { failure: broke(e), again: true }),
        };
        let sent = async {
            self.io.write_all(&first[begun..]).await?;
            self.io.write_all(rest).await?;
            self.io.flush().await
        };
        // A server may refuse a request before it has read all of it, and say why.
        let sent = sent.await.map_err(broke);
        let answered = self.head().await;
        match (sent, answered) {
            (_, Ok(status)) => {
                self.reused = true;
                Ok(status)
            }
            (Err(failure), Err(_)) | (Ok(()), Err(failure)) => {
                Err(Unanswered { failure, again: self.reused && self.held.is_empty() })
            }
        }
    }

    async fn head(&mut self) -> Result<u16, Failure> {
        loop {
            let read = poll_fn(|cx| {
                self.buffer.poll(&mut *self.io, cx, |bytes| {
                    self.held.extend_from_slice(bytes);
                    bytes.len()
                })
            });
            match read.await {
                Ok(0) => return Err(Failure("connection closed before the answer".into())),
                Ok(_) => {}
                Err(e) => return Err(Failure(format!("waiting for the answer: {e}"))),
            }
            if let Some((answer, length)) = http1::answer(&self.held).map_err(|e| Failure::new(&e))? {
                self.held.drain(..length);
                self.body = answer.body;
                self.keeps = answer.keeps;
                return Ok(answer.status);
            }
        }
    }

    /// Waits for the next bytes of the answer's body and gives them to `part`; false at the body's end.
    ///
    /// # Errors
    /// A connection that broke or ended too early, or chunks that are none.
    pub async fn read(&mut self, mut part: impl FnMut(&[u8])) -> Result<bool, Failure> {
        if !self.held.is_empty() && !self.body.has_ended() {
            let held = std::mem::take(&mut self.held);
            return self.fed(&held, &mut part).map(|()| true);
        }
        if self.body.has_ended() {
            return Ok(false);
        }
        let (body, keeps) = (&mut self.body, &mut self.keeps);
        let read = poll_fn(|cx| {
            self.buffer.poll(&mut *self.io, cx, |bytes| match bytes.is_empty() {
                true if *body == Body::UntilClose => {
                    *body = Body::Ended;
                    Ok(false)
                }
                true => Err(Failure("connection closed in the middle of the answer".into())),
                false => feed(body, keeps, bytes, &mut part).map(|()| true),
            })
        });
        read.await.map_err(|e| Failure(e.to_string()))?
    }

    fn fed(&mut self, bytes: &[u8], part: &mut impl FnMut(&[u8])) -> Result<(), Failure> {
        feed(&mut self.body, &mut self.keeps, bytes, part)
    }
}

/// Bytes behind the end of a body make the connection useless: they answer nothing.
fn feed(body: &mut Body, keeps: &mut bool, bytes: &[u8], part: &mut impl FnMut(&[u8])) -> Result<(), Failure> {
    let used = body.feed(bytes, part).map_err(|e| Failure::new(&e))?;
    *keeps &= used == bytes.len();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    fn head() -> Head {
        Head { request: http::Request::new(()), lines: b"POST / HTTP/1.1\r\n".to_vec() }
    }

    /// What a server that says `says` and closes, or stays, makes of a request: the status, the body, and whether the
    /// connection is free.
    fn asked(says: &'static str, stays: bool) -> Result<(u16, String, bool), String> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (near, mut far) = tokio::io::duplex(1 << 20);
            let server = async move {
                let mut request = vec![0; 1024];
                let n = far.read(&mut request).await.unwrap();
                assert!(request[..n].ends_with(b"x-request-id: 7\r\ncontent-length: 2\r\n\r\n{}"));
                far.write_all(says.as_bytes()).await.unwrap();
                stays.then_some(far)
            };
            let client = async {
                let mut connection = Http1::new(near, Buffer::default());
                let status = connection.send(&head(), Some("7"), b"{}").await.map_err(|u| u.failure.0)?;
                let mut out = Vec::new();
                while connection.read(|part| out.extend_from_slice(part)).await.map_err(|f| f.0)? {}
                Ok::<_, String>((status, String::from_utf8(out).unwrap(), connection))
            };
            let (far, answer) = tokio::join!(server, client);
            let (status, body, mut connection) = answer?;
            let free = connection.is_free();
            drop(far);
            assert!(!connection.is_free(), "the server has closed it");
            Ok((status, body, free))
        })
    }

    #[test]
    fn answers_of_every_framing() {
        let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n";
        for (says, want) in [
            (chunked, (200, "abc", true)),
            ("HTTP/1.1 404 No\r\ncontent-length: 3\r\n\r\nabc", (404, "abc", true)),
            ("HTTP/1.1 200 OK\r\ncontent-length: 3\r\nconnection: close\r\n\r\nabc", (200, "abc", false)),
            ("HTTP/1.1 204 OK\r\n\r\n", (204, "", true)),
            ("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabcd", (200, "abc", false)),
        ] {
            assert_eq!(asked(says, true), Ok((want.0, want.1.into(), want.2)), "{says}");
        }
        assert_eq!(asked("HTTP/1.1 200 OK\r\n\r\nabc", false), Ok((200, "abc".into(), false)));
    }

    #[test]
    fn a_connection_that_ends_too_early_is_told() {
        for (says, want) in [
            ("", "connection closed before the answer"),
            ("HTTP/1.1 200", "connection closed before the answer"),
            ("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nab", "connection closed in the middle"),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n", "connection closed in the middle"),
            ("SSH-2.0\r\n\r\n", "not HTTP/1.1"),
        ] {
            let error = asked(says, false).unwrap_err();
            assert!(error.starts_with(want), "{says}: {error}");
        }
    }
}

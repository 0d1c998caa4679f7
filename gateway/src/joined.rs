//! A connection that sends what belongs together in one system call and one packet: a head with its body, a chunk with its
//! size.
//!
//! pingora writes through to the socket piece by piece. It flushes after the head of a request, and again at the end of the
//! body, even of an empty one: the first of these flushes is put off to the second.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use async_trait::async_trait;
use bytes::{Buf, BytesMut};
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_core::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream, TimingDigest,
    UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What is kept back at most; a larger piece goes out at once, together with what was kept.
const KEPT_BYTES_MAX: usize = 4096;

/// The connection.
#[derive(Debug)]
pub struct Joined {
    stream: Stream,
    kept: BytesMut,
    flush: Flush,
}

/// What the next flush does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flush {
    /// Nothing: it follows the head of a request.
    PutOff,
    /// It sends what is kept.
    Send,
}

impl Joined {
    /// To an engine: the first flush of each request is put off.
    pub fn to_engine(stream: Stream) -> Self {
        Self { stream, kept: BytesMut::new(), flush: Flush::PutOff }
    }

    /// To a client: every flush counts.
    pub fn to_client(stream: Stream) -> Self {
        Self { stream, kept: BytesMut::new(), flush: Flush::Send }
    }

    /// The next thing written to the engine is the head of a request.
    pub fn next_request(&mut self) {
        self.flush = Flush::PutOff;
    }

    fn poll_kept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.kept.is_empty() {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, &self.kept))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.kept.advance(written),
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Joined {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Joined {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.kept.len() + buf.len() <= KEPT_BYTES_MAX {
            this.kept.extend_from_slice(buf);
            return Poll::Ready(Ok(buf.len()));
        }
        while !this.kept.is_empty() {
            let both = [IoSlice::new(&this.kept), IoSlice::new(buf)];
            let written = ready!(Pin::new(&mut this.stream).poll_write_vectored(cx, &both))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let of_buf = written.saturating_sub(this.kept.len());
            this.kept.advance(written - of_buf);
            if of_buf > 0 {
                return Poll::Ready(Ok(of_buf));
            }
        }
        Pin::new(&mut this.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.flush == Flush::PutOff {
            self.flush = Flush::Send;
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_kept(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Who is in the middle of something when it ends does not wait for the other side to take the rest.
        let _ = self.poll_kept(cx);
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[async_trait]
impl Shutdown for Joined {
    async fn shutdown(&mut self) {
        self.stream.shutdown().await;
    }
}

impl UniqueID for Joined {
    fn id(&self) -> UniqueIDType {
        self.stream.id()
    }
}

impl Ssl for Joined {}

impl Peek for Joined {}

// Times and addresses that pingora's own log lines would show; nobody asks for them here.

impl GetTimingDigest for Joined {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for Joined {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        None
    }
}

impl GetSocketDigest for Joined {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        None
    }
}

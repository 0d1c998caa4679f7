//! Connections to engines: made by pingora, kept here between requests.
//!
//! pingora's own pool watches each idle connection with a task and a timer, made anew for every request. Here an idle
//! connection costs nothing: whether it is still open is seen when it is taken, and a sweep closes those that their engine
//! has closed or that are too old.

use std::collections::HashMap;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pingora_core::connectors::TransportConnector;
use pingora_core::protocols::Stream;
use pingora_core::protocols::http::client::HttpSession;
use pingora_core::protocols::http::v1::client::HttpSession as Http1;
use pingora_core::upstreams::peer::{HttpPeer, Peer};

use crate::joined::Joined;

/// How long an idle connection is kept.
const IDLE_MAX: Duration = Duration::from_secs(30);
/// Idle connections kept to one engine; what is more is closed.
const IDLE_CONNECTIONS_MAX: usize = 1024;

/// Connections to engines.
pub struct Connections {
    transport: TransportConnector,
    /// By [`Peer::reuse_hash`]; the one used last is taken first.
    idle: Mutex<HashMap<u64, Vec<Idle>>>,
}

struct Idle {
    stream: Stream,
    since: Instant,
}

impl Default for Connections {
    fn default() -> Self {
        Self { transport: TransportConnector::new(None), idle: Mutex::default() }
    }
}

impl Connections {
    /// A connection to `peer` that has been used before and is still open.
    pub fn idle(&self, peer: &HttpPeer) -> Option<HttpSession> {
        let key = peer.reuse_hash();
        loop {
            let mut idle = self.idle.lock().get_mut(&key)?.pop()?;
            if is_open(&mut idle.stream) {
                return Some(session(idle.stream, peer));
            }
        }
    }

    /// A new connection to `peer`.
    ///
    /// # Errors
    /// If the engine does not accept one.
    pub async fn open(&self, peer: &HttpPeer) -> Result<HttpSession, pingora_core::BError> {
        let stream = self.transport.new_stream(peer).await?;
        Ok(session(Box::new(Joined::to_engine(stream)), peer))
    }

    /// Keeps a connection whose answer is over, if both sides want that.
    pub async fn keep(&self, session: HttpSession, peer: &HttpPeer) {
        let HttpSession::H1(mut session) = session else { return };
        session.respect_keepalive();
        let Some(stream) = session.reuse().await else { return };
        let Ok(mut joined) = stream.into_any().downcast::<Joined>() else { return };
        joined.next_request();
        let mut idle = self.idle.lock();
        let idle = idle.entry(peer.reuse_hash()).or_default();
        if idle.len() < IDLE_CONNECTIONS_MAX {
            idle.push(Idle { stream: joined, since: Instant::now() });
        }
    }

    /// Closes what its engine has closed and what has been idle for too long.
    pub fn sweep(&self) {
        self.idle.lock().retain(|_, idle| {
            idle.retain_mut(|idle| idle.since.elapsed() < IDLE_MAX && is_open(&mut idle.stream));
            !idle.is_empty()
        });
    }
}

fn session(stream: Stream, peer: &HttpPeer) -> HttpSession {
    HttpSession::H1(Http1::new_with_options(stream, peer))
}

/// Whether an idle connection is silent, as it should be: neither closed nor talking out of turn.
fn is_open(stream: &mut Stream) -> bool {
    let mut byte = [0];
    let read = std::pin::pin!(tokio::task::coop::unconstrained(tokio::io::AsyncReadExt::read(stream, &mut byte)));
    read.poll(&mut Context::from_waker(Waker::noop())).is_pending()
}

#[cfg(test)]
mod tests {
    use super::*;
    use pingora_http::RequestHeader;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    async fn exchange(session: &mut HttpSession, engine: &mut TcpStream) {
        let mut head = RequestHeader::build("POST", b"/", None).unwrap();
        head.insert_header("content-length", "2").unwrap();
        session.write_request_header(Box::new(head)).await.unwrap();
        session.write_request_body("{}".into(), true).await.unwrap();
        session.finish_request_body().await.unwrap();
        let mut request = vec![0; 1000];
        let read = engine.read(&mut request).await.unwrap();
        assert!(request[..read].ends_with(b"\r\n\r\n{}"), "head and body are one packet");
        engine.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        session.read_response_header().await.unwrap();
        assert!(session.read_response_body().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn connection_is_used_again_until_its_engine_closes_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = HttpPeer::new(listener.local_addr().unwrap(), false, String::new());
        let connections = Connections::default();
        assert!(connections.idle(&peer).is_none());
        let mut session = connections.open(&peer).await.unwrap();
        let (mut engine, _) = listener.accept().await.unwrap();
        for _ in 0..3 {
            exchange(&mut session, &mut engine).await;
            connections.keep(session, &peer).await;
            session = connections.idle(&peer).unwrap();
        }
        exchange(&mut session, &mut engine).await;
        connections.keep(session, &peer).await;
        drop(engine);
        while !connections.idle.lock().is_empty() {
            connections.sweep();
            tokio::task::yield_now().await;
        }
        assert!(connections.idle(&peer).is_none());
    }
}

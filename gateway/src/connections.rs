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
    /// A connection to `peer`, and whether it has been used before.
    ///
    /// # Errors
    /// If the engine does not accept one.
    pub async fn get(&self, peer: &HttpPeer) -> Result<(HttpSession, bool), pingora_core::BError> {
        let key = peer.reuse_hash();
        let session = |stream| HttpSession::H1(Http1::new_with_options(stream, peer));
        loop {
            let idle = self.idle.lock().get_mut(&key).and_then(Vec::pop);
            let Some(mut idle) = idle else { break };
            if is_open(&mut idle.stream) {
                return Ok((session(idle.stream), true));
            }
        }
        let stream = self.transport.new_stream(peer).await?;
        Ok((session(Box::new(Joined::to_engine(stream))), false))
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
        let (mut session, reused) = connections.get(&peer).await.unwrap();
        let (mut engine, _) = listener.accept().await.unwrap();
        assert!(!reused);
        for _ in 0..3 {
            exchange(&mut session, &mut engine).await;
            connections.keep(session, &peer).await;
            let (again, reused) = connections.get(&peer).await.unwrap();
            assert!(reused);
            session = again;
        }
        exchange(&mut session, &mut engine).await;
        connections.keep(session, &peer).await;
        drop(engine);
        while !connections.idle.lock().is_empty() {
            connections.sweep();
            tokio::task::yield_now().await;
        }
        assert!(!connections.get(&peer).await.unwrap().1);
    }
}

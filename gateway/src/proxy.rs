//! From a client's connection to what its request asks for, on pingora's HTTP sessions.

use std::sync::Arc;

use bytes::Bytes;
use http::Method;
use pingora_core::apps::{HttpPersistentSettings, ReusedHttpStream};
use pingora_core::protocols::Stream;
use pingora_core::protocols::http::ServerSession;
use pingora_core::server::ShutdownWatch;
use pingora_http::RequestHeader;

use crate::body;
use crate::error::Failure;
use crate::gateway::Gateway;
use crate::models;
use crate::reply::Reply;
use crate::request::Incoming;
use crate::route::Route;

/// Keep-alive offered to clients, seconds.
const KEEPALIVE_S: u64 = 60;
/// Longest request name taken over from a client, bytes.
const REQUEST_NAME_BYTES_MAX: usize = 128;

impl Gateway {
    /// Reads and serves the next request of a connection. False if it was the last.
    async fn next(&self, client: &mut ServerSession, stopping: &ShutdownWatch) -> bool {
        if !matches!(client.read_request().await, Ok(true)) {
            return false;
        }
        // CONNECT would make a tunnel of a proxy.
        if client.req_header().method == Method::CONNECT {
            let _ = client.respond_error(405).await;
            return false;
        }
        client.set_keepalive(if *stopping.borrow() { None } else { Some(KEEPALIVE_S) });
        let _in_flight = self.enter();
        let served = self.serve(client).await;
        if let Err(error) = &served {
            tracing::debug!(%error, "client connection ended");
        }
        served.is_ok()
    }

    async fn serve(&self, client: &mut ServerSession) -> Result<(), pingora_core::BError> {
        let head = client.req_header().clone();
        let name = given_name(&head).unwrap_or_else(|| self.request_name());
        let route = Route::of(&head.method, head.uri.path());
        let setup = self.setup();
        let allowed = setup.config.passes(head.uri.path());
        let tenant = setup.tenants.of(&head.headers);
        let refusal = match route {
            Route::WrongMethod(wanted) if !allowed => Some(Failure::MethodNotAllowed(wanted)),
            Route::Other if !allowed => Some(Failure::NotFound),
            _ if tenant.is_none() => Some(Failure::Unauthorized),
            _ => None,
        };
        let body = match &refusal {
            // Kept before it is known whose it is, a body would be memory for anyone.
            Some(_) => {
                if client.get_header("expect").is_none() {
                    body::discard(client, 0).await;
                }
                Ok(Bytes::new())
            }
            None => body::read(client, setup.config.body_bytes_max).await?,
        };
        let mut reply = Reply::new(client, &self.metrics);
        reply.header("x-request-id", &name);
        let (tenant, body) = match (refusal, tenant, body) {
            (None, Some(tenant), Ok(body)) => (tenant, body),
            (Some(failure), ..) | (None, _, Err(failure)) => return reply.fail(&failure).await,
            (None, None, _) => return reply.fail(&Failure::Unauthorized).await,
        };
        let incoming = Incoming { setup: &setup, tenant, name: &name, head: &head, body };
        match route {
            Route::Inference { generates } => self.inference(&incoming, generates, &mut reply).await,
            Route::Explain => Box::pin(self.explain(&incoming, &mut reply)).await,
            Route::Models => Box::pin(models::list(self, &incoming, &mut reply)).await,
            Route::Aside | Route::Other | Route::WrongMethod(_) => self.pass(&incoming, &mut reply).await,
        }
    }
}

/// The client's own name for its request, if it is fit to be repeated.
fn given_name(head: &RequestHeader) -> Option<String> {
    let name = head.headers.get("x-request-id")?.to_str().ok()?;
    (!name.is_empty() && name.len() <= REQUEST_NAME_BYTES_MAX).then(|| name.to_owned())
}

/// Serves a client's connection, request after request, until either side ends it.
///
/// The loop is ours and not pingora's `HttpServerApp`, which puts the whole state of a request on the heap anew each time.
pub async fn connection(gateway: Arc<Gateway>, stream: Stream, stopping: ShutdownWatch) {
    let mut client = ServerSession::new_http1(stream);
    // Also how long a new connection may be silent.
    client.set_keepalive(Some(KEEPALIVE_S));
    while gateway.next(&mut client, &stopping).await {
        let settings = HttpPersistentSettings::for_session(&client);
        let Ok(Some(stream)) = client.finish().await else { return };
        let (stream, settings) = ReusedHttpStream::from_reusable_stream(stream, settings).consume();
        client = ServerSession::new_http1(stream);
        if let Some(settings) = settings {
            settings.apply_to_session(&mut client);
        }
    }
}

//! The console's figures as server-sent events.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio::sync::watch;

use crate::gateway::Gateway;

/// Pages that look at once.
pub const LOOKING_MAX: usize = 32;

static LOOKING: AtomicUsize = AtomicUsize::new(0);

/// One page that looks, counted.
struct Looking;

impl Looking {
    fn begin() -> Option<Self> {
        let room = |n| (n < LOOKING_MAX).then_some(n + 1);
        LOOKING.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).ok().map(|_| Self)
    }
}

impl Drop for Looking {
    fn drop(&mut self) {
        LOOKING.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The stream, without an end.
pub async fn events(State(gateway): State<Arc<Gateway>>) -> Response {
    let Some(looking) = Looking::begin() else {
        let message = format!("{LOOKING_MAX} pages look already; close one");
        return super::error(StatusCode::SERVICE_UNAVAILABLE, &message);
    };
    let feed = gateway.console.look(&gateway);
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, Body::from_stream(futures::stream::unfold((feed, looking), next))).into_response()
}

async fn next(
    (mut feed, looking): (watch::Receiver<Arc<str>>, Looking),
) -> Option<(Result<Bytes, Infallible>, (watch::Receiver<Arc<str>>, Looking))> {
    feed.changed().await.ok()?;
    let event = Arc::clone(&feed.borrow_and_update());
    // JSON has no line breaks of its own.
    Some((Ok(Bytes::from(format!("data: {event}\n\n"))), (feed, looking)))
}

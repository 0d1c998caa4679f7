//! Serving until told to stop.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;

use super::connections::{CONNECTIONS_MAX, Connections};
use super::{Server, router};

/// After the grace period every request has been failed; this long for their last bytes to go out.
const LAST_BYTES: Duration = Duration::from_secs(2);

/// Serves on `listener`. When `stop` resolves, no connection is accepted any more, running requests get `grace` to finish,
/// then the engine is shut down, which fails the rest with an error that says so.
///
/// # Errors
/// Those of the listener.
pub async fn serve(
    server: Arc<Server>,
    listener: TcpListener,
    stop: impl Future<Output = ()> + Send + 'static,
    grace: Duration,
) -> std::io::Result<()> {
    let engine = server.engine.clone();
    let (stopping, stopped) = tokio::sync::oneshot::channel();
    let listener = Connections::new(listener, CONNECTIONS_MAX, server.metrics.connections());
    let serving = axum::serve(listener, router(server)).with_graceful_shutdown(async move {
        stop.await;
        // The receiver is gone only when serving is over.
        let _ = stopping.send(());
    });
    let mut serving = tokio::spawn(serving.into_future());
    let limit = async {
        if stopped.await.is_err() {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(grace).await;
    };
    tokio::select! {
        result = &mut serving => { shut_down(engine).await; result.map_err(std::io::Error::other)? }
        () = limit => {
            tracing::warn!(grace_s = grace.as_secs(), "requests still running after the grace period are failed");
            shut_down(engine).await;
            match tokio::time::timeout(LAST_BYTES, serving).await {
                Ok(result) => result.map_err(std::io::Error::other)?,
                Err(_) => Ok(()),
            }
        }
    }
}

/// Frees the device; waits for the engine's loops.
async fn shut_down(engine: crate::core::EngineHandle) {
    if let Err(error) = tokio::task::spawn_blocking(move || engine.shutdown()).await {
        tracing::error!(%error, "shutting down the engine failed");
    }
}

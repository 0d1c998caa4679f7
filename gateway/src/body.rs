//! Reading a client's body: bounded, and with an answer that the client gets to see.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use pingora_core::protocols::http::ServerSession;

use crate::error::Failure;

/// Most of a too large body that is read and thrown away: a client that is still writing when the connection closes would
/// see a reset instead of the 413.
const DISCARD_BYTES_MAX: usize = 256 << 20;
/// And for how long.
const DISCARD_TIME_MAX: Duration = Duration::from_secs(10);
/// Memory set aside on the word of a client alone.
const ANNOUNCED_BYTES_TRUSTED: usize = 1 << 20;

/// Reads the whole body.
///
/// # Errors
/// Outside if the client has left, inside if the body is too large.
pub async fn read(client: &mut ServerSession, max: usize) -> Result<Result<Bytes, Failure>, pingora_core::BError> {
    let announced = client.get_header("content-length").and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
    let waits = client.get_header("expect").is_some();
    if announced.is_some_and(|n| n > max) {
        // A client that asks first has sent nothing yet.
        if !waits {
            discard(client, 0).await;
        }
        return Ok(Err(Failure::BodyTooLarge(max)));
    }
    if waits {
        client.write_continue_response().await?;
    }
    let mut body = BytesMut::with_capacity(announced.unwrap_or(0).min(ANNOUNCED_BYTES_TRUSTED));
    while let Some(piece) = client.read_request_body().await? {
        if body.len() + piece.len() > max {
            let read = body.len() + piece.len();
            drop(body);
            discard(client, read).await;
            return Ok(Err(Failure::BodyTooLarge(max)));
        }
        body.extend_from_slice(&piece);
    }
    Ok(Ok(body.freeze()))
}

/// Reads what a client still sends and throws it away, up to a limit.
pub async fn discard(client: &mut ServerSession, mut read: usize) {
    let rest = async {
        while let Ok(Some(piece)) = client.read_request_body().await {
            read += piece.len();
            if read > DISCARD_BYTES_MAX {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(DISCARD_TIME_MAX, rest).await;
}

//! Reading a request body: bounded, and with errors that say where.

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Request, header};
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;

use super::ApiError;

/// Largest body. Generous: a full-context prompt as a token array is a few MiB, and proxies in front have their own limits.
pub(crate) const BODY_BYTES_MAX: usize = 32 << 20;

/// How much of a too large body is read and thrown away so that the client gets to see the 413. A client still writing
/// when the server closes gets a connection reset instead of the answer.
const DISCARD_BYTES_MAX: usize = 256 << 20;

/// From here on parsing takes long enough (some milliseconds) to be kept off the threads that serve the connections.
const PARSE_INLINE_BYTES_MAX: usize = 256 << 10;

/// Reads and parses the whole body as JSON of `T`.
///
/// # Errors
/// 413, or 400 with line and column, and the path of the field where there is one.
pub(crate) async fn read_json<T>(request: Request<Body>) -> Result<T, ApiError>
where
    T: DeserializeOwned + Send + 'static,
{
    let bytes = read(request).await?;
    if bytes.len() <= PARSE_INLINE_BYTES_MAX {
        return parse(&bytes);
    }
    tokio::task::spawn_blocking(move || parse(&bytes))
        .await
        .map_err(|error| ApiError::internal(format!("parsing the request failed: {error}")))?
}

async fn read(request: Request<Body>) -> Result<Bytes, ApiError> {
    let too_large = || ApiError::body_too_large(BODY_BYTES_MAX);
    let announced = content_length(request.headers());
    if announced.is_some_and(|len| len > DISCARD_BYTES_MAX) || announced_too_large_and_waiting(request.headers()) {
        return Err(too_large());
    }
    let mut body = request.into_body();
    let mut bytes = BytesMut::with_capacity(announced.unwrap_or(0).min(BODY_BYTES_MAX));
    let mut len = 0;
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|error| ApiError::unreadable_body(format!("The request body cannot be read: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        len += data.len();
        if len > DISCARD_BYTES_MAX {
            return Err(too_large());
        }
        if len > BODY_BYTES_MAX {
            bytes = BytesMut::new();
        } else {
            bytes.extend_from_slice(&data);
        }
    }
    if len > BODY_BYTES_MAX { Err(too_large()) } else { Ok(bytes.freeze()) }
}

fn content_length(headers: &HeaderMap) -> Option<usize> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// A client that asks first (`Expect: 100-continue`) has sent nothing yet: nothing to discard.
fn announced_too_large_and_waiting(headers: &HeaderMap) -> bool {
    headers.contains_key(header::EXPECT) && content_length(headers).is_some_and(|len| len > BODY_BYTES_MAX)
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    if bytes.is_empty() {
        return Err(ApiError::malformed(None, "The request body is empty; a JSON object is expected."));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let parsed = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        let is_syntax = inner.is_syntax() || inner.is_eof();
        let param = (!is_syntax && path != ".").then_some(path);
        let what = if is_syntax { "is not valid JSON" } else { "has a wrong field" };
        // serde_json's message ends in "at line L column C".
        ApiError::malformed(param, format!("The request body {what}: {inner}"))
    })?;
    deserializer
        .end()
        .map_err(|error| ApiError::malformed(None, format!("The request body is not valid JSON: {error}")))?;
    Ok(parsed)
}

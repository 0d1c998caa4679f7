//! Errors that the gateway itself answers with, in OpenAI's shape: all four members, always.

use bytes::Bytes;
use serde_json::json;

/// An error to show a client: whose fault it is decides the status, and the message says what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No connection to the engine.
    EngineUnreachable,
    /// The engine's connection broke before the answer began.
    EngineFailed,
    /// The engine's connection broke in the middle of the answer.
    EngineLost,
    /// The body is larger than the limit, bytes.
    BodyTooLarge(usize),
}

impl Failure {
    /// HTTP status.
    pub const fn status(self) -> u16 {
        match self {
            Self::EngineUnreachable => 503,
            Self::EngineFailed | Self::EngineLost => 502,
            Self::BodyTooLarge(_) => 413,
        }
    }

    /// The JSON error object.
    pub fn body(self) -> Bytes {
        let (kind, code, message) = match self {
            Self::EngineUnreachable => (
                "server_error",
                "engine_unreachable",
                "the engine does not accept connections; retry when it is back".to_owned(),
            ),
            Self::EngineFailed => (
                "server_error",
                "engine_failed",
                "the engine closed the connection before it answered; retry".to_owned(),
            ),
            Self::EngineLost => (
                "server_error",
                "engine_lost",
                "the engine went away in the middle of this answer; send the request again".to_owned(),
            ),
            Self::BodyTooLarge(max) => {
                ("invalid_request_error", "body_too_large", format!("the request body is larger than {max} bytes"))
            }
        };
        Bytes::from(json!({ "error": { "message": message, "type": kind, "param": null, "code": code } }).to_string())
    }

    /// The error as one server-sent event.
    pub fn event(self) -> Bytes {
        let body = self.body();
        Bytes::from([b"data: ", &body[..], b"\n\n"].concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_all_four_members() {
        for failure in
            [Failure::EngineUnreachable, Failure::EngineFailed, Failure::EngineLost, Failure::BodyTooLarge(10)]
        {
            let value: serde_json::Value = serde_json::from_slice(&failure.body()).unwrap();
            let error = value["error"].as_object().unwrap();
            assert!(["message", "type", "param", "code"].iter().all(|k| error.contains_key(*k)), "{error:?}");
            assert!(failure.event().ends_with(b"\n\n"));
        }
    }
}

//! The one error shape of the API: `{"error": {"message", "type", "param", "code"}}`, all four always present.
//!
//! Strict clients read all four; `param` names the field of the request at fault (a path such as `messages[2].content`),
//! `code` is for programs, `message` says what to do.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;

use crate::core::{FailKind, SubmitError};

/// An error as a client sees it, before or in the middle of a stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{status}: {message}")]
pub struct ApiError {
    status: StatusCode,
    kind: &'static str,
    message: String,
    param: Option<String>,
    code: Option<&'static str>,
    retry_after_s: Option<u64>,
}

const INVALID: &str = "invalid_request_error";
const SERVER: &str = "server_error";

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, message: message.into(), param: None, code: None, retry_after_s: None }
    }

    /// 400 about one field.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..Self::new(StatusCode::BAD_REQUEST, INVALID, message) }
    }

    /// 400 about a field that the OpenAI API has and this engine does not implement.
    pub fn not_supported(param: &str, what: &str) -> Self {
        Self { code: Some("not_supported"), ..Self::invalid(param, format!("{what} not supported by this engine.")) }
    }

    /// 400: the body is not the JSON of a request; `message` has the position.
    pub fn malformed(param: Option<String>, message: impl Into<String>) -> Self {
        Self { param, code: Some("invalid_json"), ..Self::new(StatusCode::BAD_REQUEST, INVALID, message) }
    }

    /// 400: the connection broke or misbehaved while the body was read.
    pub fn unreadable_body(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, INVALID, message)
    }

    /// 413.
    pub fn body_too_large(limit_bytes: usize) -> Self {
        let message = format!("The request body is larger than {limit_bytes} bytes, the most this server accepts.");
        Self { code: Some("request_too_large"), ..Self::new(StatusCode::PAYLOAD_TOO_LARGE, INVALID, message) }
    }

    /// 404: another model.
    pub fn model_not_found(asked: &str, served: &str) -> Self {
        let message = format!("The model `{asked}` does not exist. This server serves `{served}`.");
        Self {
            param: Some("model".to_owned()),
            code: Some("model_not_found"),
            ..Self::new(StatusCode::NOT_FOUND, INVALID, message)
        }
    }

    /// 404: no such route.
    pub fn unknown_route(method: &http::Method, path: &str) -> Self {
        let message = format!("Unknown request URL: {method} {path}.");
        Self { code: Some("unknown_url"), ..Self::new(StatusCode::NOT_FOUND, INVALID, message) }
    }

    /// 405.
    pub fn method_not_allowed(method: &http::Method, path: &str) -> Self {
        let message = format!("{method} is not allowed for {path}.");
        Self { code: Some("method_not_allowed"), ..Self::new(StatusCode::METHOD_NOT_ALLOWED, INVALID, message) }
    }

    /// 400: prompt and completion do not fit. `completion` is `None` when the prompt alone is too long. `at_least`: the
    /// prompt was refused by its size before it was tokenized.
    pub fn context_too_long(
        param: &str,
        max_model_len: usize,
        prompt: usize,
        completion: Option<usize>,
        at_least: bool,
    ) -> Self {
        let at_least = if at_least { "at least " } else { "" };
        let asked = match completion {
            Some(completion) => format!(
                "you requested {} tokens ({prompt} in the {param}, {completion} in the completion)",
                prompt.saturating_add(completion)
            ),
            None => {
                format!("your {param} resulted in {at_least}{prompt} tokens, which leaves no room for a completion")
            }
        };
        let message = format!(
            "This model's maximum context length is {max_model_len} tokens. However, {asked}. Please reduce the length of \
             the {param} or the completion."
        );
        Self { code: Some("context_length_exceeded"), ..Self::invalid(param, message) }
    }

    /// 503: the engine has stopped or is stopping.
    pub fn unavailable(code: &'static str, message: impl Into<String>) -> Self {
        Self { code: Some(code), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER, message) }
    }

    /// 500: our own fault.
    pub fn internal(message: impl Into<String>) -> Self {
        Self { code: Some("internal_error"), ..Self::new(StatusCode::INTERNAL_SERVER_ERROR, SERVER, message) }
    }

    /// A refusal by the engine. `param` is where the prompt came from; `retry_after_s` is when the queue may have room.
    pub fn from_submit(error: &SubmitError, param: &str, retry_after_s: u64) -> Self {
        match error {
            SubmitError::ContextTooLong { prompt, max_tokens, max_model_len } => {
                Self::context_too_long(param, *max_model_len, *prompt, Some(*max_tokens), false)
            }
            SubmitError::Invalid(message) => Self::invalid(param, message),
            SubmitError::QueueFull { limit } => Self {
                code: Some("queue_full"),
                retry_after_s: Some(retry_after_s),
                ..Self::new(
                    StatusCode::TOO_MANY_REQUESTS,
                    "rate_limit_error",
                    format!("{limit} requests are waiting already. Please retry after {retry_after_s} s."),
                )
            },
            SubmitError::EngineDead(why) => {
                Self::unavailable("engine_stopped", format!("The engine has stopped: {why}"))
            }
        }
    }

    /// A failure while the request ran.
    pub fn from_failure(kind: &FailKind, message: &str) -> Self {
        let text = if message.is_empty() { kind.to_string() } else { message.to_owned() };
        match kind {
            FailKind::DeviceLost => Self::unavailable("device_lost", text),
            FailKind::Shutdown => Self::unavailable("shutting_down", text),
            FailKind::OutOfMemory => Self { code: Some("out_of_memory"), ..Self::internal(text) },
            FailKind::Operator(_) => Self { code: Some("operator_failed"), ..Self::internal(text) },
            FailKind::Runtime(_) => Self { code: Some("runtime_failed"), ..Self::internal(text) },
        }
    }

    /// HTTP status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The `code` field.
    pub fn code(&self) -> Option<&'static str> {
        self.code
    }

    /// The JSON object, as body or as the data of a stream event.
    pub fn to_json(&self) -> String {
        #[derive(Serialize)]
        struct Outer<'a> {
            error: Inner<'a>,
        }
        #[derive(Serialize)]
        struct Inner<'a> {
            message: &'a str,
            r#type: &'a str,
            param: Option<&'a str>,
            code: Option<&'a str>,
        }
        let inner = Inner { message: &self.message, r#type: self.kind, param: self.param.as_deref(), code: self.code };
        serde_json::to_string(&Outer { error: inner }).expect("strings serialise")
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.to_json()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

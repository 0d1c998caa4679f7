//! Errors that the gateway itself answers with, in OpenAI's shape: all four members, always.
//!
//! Clients' libraries retry on their own, twice by default, so an answer also says whether that is any use
//! (`x-should-retry`) and when (`retry-after`, `retry-after-ms`).

use std::time::Duration;

use admission::{Exceeded, Misfit, Refusal, Resource};
use bytes::Bytes;
use serde_json::json;

/// An error to show a client: whose fault it is decides the status, and the message says what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No connection to the engine.
    EngineUnreachable,
    /// The engine's connection broke before the answer began.
    EngineFailed,
    /// The engine's connection broke in the middle of the answer.
    EngineLost,
    /// The engine was silent for too long; what was waited for.
    EngineSilent(&'static str),
    /// The engine refused after the answer to the client had begun; its words.
    EngineRefused(Bytes),
    /// The body is larger than the limit, bytes.
    BodyTooLarge(usize),
    /// The body is no JSON object; where.
    Malformed(String),
    /// A header of ours has a value that makes no sense.
    BadHeader(&'static str),
    /// No key, or one that nobody has.
    Unauthorized,
    /// No such path.
    NotFound,
    /// The path exists, with this method.
    MethodNotAllowed(&'static str),
    /// Several engines, none with this model.
    UnknownModel(String),
    /// Admission says no.
    Refused(Refusal),
    /// It waited until its deadline.
    WaitedTooLong {
        /// How long, milliseconds.
        waited_ms: u64,
    },
    /// The tenant has used up a limit.
    QuotaExceeded(Exceeded),
}

impl Failure {
    /// HTTP status.
    pub const fn status(&self) -> u16 {
        match self {
            Self::EngineUnreachable | Self::Refused(Refusal::NoEngine) => 503,
            Self::EngineFailed | Self::EngineLost | Self::EngineRefused(_) => 502,
            Self::EngineSilent(_) => 504,
            Self::BodyTooLarge(_) => 413,
            Self::Malformed(_) | Self::BadHeader(_) | Self::Refused(Refusal::NeverFits(_)) => 400,
            Self::Unauthorized => 401,
            Self::NotFound | Self::UnknownModel(_) => 404,
            Self::MethodNotAllowed(_) => 405,
            Self::Refused(_) | Self::WaitedTooLong { .. } => 429,
            Self::QuotaExceeded(exceeded) => {
                if exceeded.retry_after_us.is_some() {
                    429
                } else {
                    400
                }
            }
        }
    }

    /// When to come back, where that is known.
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::EngineUnreachable | Self::Refused(Refusal::NoEngine) => Some(Duration::from_secs(1)),
            Self::Refused(Refusal::QueueFull { retry_after_us } | Refusal::TooLate { retry_after_us, .. })
            | Self::QuotaExceeded(Exceeded { retry_after_us: Some(retry_after_us), .. }) => {
                Some(Duration::from_micros(*retry_after_us))
            }
            Self::WaitedTooLong { waited_ms } => Some(Duration::from_millis(*waited_ms)),
            _ => None,
        }
    }

    /// Whether sending the same again can help; `None` leaves it to the client's own rules.
    pub const fn should_retry(&self) -> Option<bool> {
        match self.status() {
            429 | 503 => Some(true),
            400 | 401 | 404 | 405 | 413 => Some(false),
            _ => None,
        }
    }

    /// Short name for logs and programs.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::EngineUnreachable | Self::Refused(Refusal::NoEngine) => "engine_unreachable",
            Self::EngineFailed => "engine_failed",
            Self::EngineLost => "engine_lost",
            Self::EngineSilent(_) => "engine_timeout",
            Self::EngineRefused(_) => "engine_refused",
            Self::BodyTooLarge(_) => "body_too_large",
            Self::Malformed(_) => "invalid_json",
            Self::BadHeader(_) => "bad_header",
            Self::Unauthorized => "invalid_api_key",
            Self::NotFound => "not_found",
            Self::MethodNotAllowed(_) => "method_not_allowed",
            Self::UnknownModel(_) => "model_not_found",
            Self::Refused(Refusal::NeverFits(Misfit::Context { .. })) => "context_length_exceeded",
            Self::Refused(Refusal::NeverFits(_)) => "request_too_large",
            Self::Refused(Refusal::QueueFull { .. }) => "queue_full",
            Self::Refused(Refusal::TooLate { .. }) => "deadline_not_met",
            Self::WaitedTooLong { .. } => "queue_timeout",
            Self::QuotaExceeded(_) => "rate_limit_exceeded",
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Unauthorized => "authentication_error",
            Self::QuotaExceeded(e) if e.retry_after_us.is_some() => match e.resource {
                Resource::RequestsPerMinute => "requests",
                Resource::TokensPerMinute | Resource::TokensPerDay => "tokens",
            },
            _ if self.status() == 429 => "rate_limit_error",
            _ if self.status() < 500 => "invalid_request_error",
            _ => "server_error",
        }
    }

    fn message(&self) -> String {
        match self {
            Self::EngineUnreachable | Self::Refused(Refusal::NoEngine) => {
                "the engine does not accept connections; retry when it is back".to_owned()
            }
            Self::EngineFailed => "the engine closed the connection before it answered; retry".to_owned(),
            Self::EngineLost => "the engine went away in the middle of this answer; send the request again".to_owned(),
            Self::EngineSilent(what) => format!("the engine did not send {what} in time; retry, or ask for less"),
            Self::EngineRefused(words) => String::from_utf8_lossy(words).into_owned(),
            Self::BodyTooLarge(max) => format!("the request body is larger than {max} bytes"),
            Self::Malformed(at) => format!("the request body is not a JSON object: {at}"),
            Self::BadHeader(header) => {
                format!("{header}: want a whole number (priority 0 to 255), or a tenant of at most 64 bytes")
            }
            Self::Unauthorized => {
                "no valid API key: send one of this gateway as `Authorization: Bearer KEY`".to_owned()
            }
            Self::NotFound => "no such path; see /v1/models for what is served".to_owned(),
            Self::MethodNotAllowed(_) => "this path takes another method".to_owned(),
            Self::UnknownModel(model) => format!("no engine serves the model `{model}`; see /v1/models"),
            Self::Refused(Refusal::NeverFits(misfit)) => match misfit {
                Misfit::Context { prompt_tokens, max } => format!(
                    "the prompt has {prompt_tokens} tokens or more; this model's context is {max} tokens: shorten it"
                ),
                Misfit::Sequences { sequences, max } => {
                    format!(
                        "{sequences} sequences asked for; at most {max} run at a time: lower `n` or send fewer prompts"
                    )
                }
                Misfit::KvTokens { prompt_tokens, max } => format!(
                    "the prompts have {prompt_tokens} tokens or more; the engine holds {max}: send them one by one"
                ),
            },
            Self::Refused(Refusal::QueueFull { .. }) => {
                "too many requests are waiting; retry after the time in `retry-after-ms`".to_owned()
            }
            Self::Refused(Refusal::TooLate { wait_us, .. }) => format!(
                "this request would wait about {} ms, longer than its deadline; retry after the time in \
                 `retry-after-ms`, or allow a longer wait",
                wait_us / 1000
            ),
            Self::WaitedTooLong { waited_ms } => format!("no engine was free within {waited_ms} ms; retry later"),
            Self::QuotaExceeded(Exceeded { resource, limit, retry_after_us }) => {
                let what = match resource {
                    Resource::RequestsPerMinute => "requests a minute",
                    Resource::TokensPerMinute => "tokens a minute",
                    Resource::TokensPerDay => "tokens a day",
                };
                match retry_after_us {
                    Some(_) => format!("limit of {limit} {what} reached; retry after the time in `retry-after-ms`"),
                    None => format!("this request alone is above the limit of {limit} {what}: ask for fewer tokens"),
                }
            }
        }
    }

    /// The JSON error object.
    pub fn body(&self) -> Bytes {
        if let Self::EngineRefused(words) = self {
            let given: Option<serde_json::Value> = serde_json::from_slice(words).ok();
            if let Some(error) = given.as_ref().and_then(|v| v.get("error")).filter(|e| e.is_object()) {
                return json!({ "error": error }).to_string().into();
            }
        }
        let (message, kind, code) = (self.message(), self.kind(), self.code());
        json!({ "error": { "message": message, "type": kind, "param": null, "code": code } }).to_string().into()
    }

    /// The error as one server-sent event.
    pub fn event(&self) -> Bytes {
        let body = self.body();
        Bytes::from([b"data: ", &body[..], b"\n\n"].concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_all_four_members() {
        let later = Exceeded { resource: Resource::TokensPerMinute, limit: 5, retry_after_us: Some(1_500_000) };
        let context = Refusal::NeverFits(Misfit::Context { prompt_tokens: 9, max: 5 });
        for (failure, status, retry) in [
            (Failure::EngineUnreachable, 503, Some(true)),
            (Failure::EngineFailed, 502, None),
            (Failure::EngineLost, 502, None),
            (Failure::EngineSilent("a token"), 504, None),
            (Failure::EngineRefused("oops".into()), 502, None),
            (Failure::BodyTooLarge(10), 413, Some(false)),
            (Failure::Malformed("at line 1".into()), 400, Some(false)),
            (Failure::BadHeader("x-vnpu-priority"), 400, Some(false)),
            (Failure::Unauthorized, 401, Some(false)),
            (Failure::NotFound, 404, Some(false)),
            (Failure::MethodNotAllowed("POST"), 405, Some(false)),
            (Failure::UnknownModel("m".into()), 404, Some(false)),
            (Failure::Refused(context), 400, Some(false)),
            (Failure::Refused(Refusal::QueueFull { retry_after_us: 5 }), 429, Some(true)),
            (Failure::Refused(Refusal::TooLate { wait_us: 5, retry_after_us: 5 }), 429, Some(true)),
            (Failure::WaitedTooLong { waited_ms: 5 }, 429, Some(true)),
            (Failure::QuotaExceeded(later), 429, Some(true)),
            (Failure::QuotaExceeded(Exceeded { retry_after_us: None, ..later }), 400, Some(false)),
        ] {
            let value: serde_json::Value = serde_json::from_slice(&failure.body()).unwrap();
            let error = value["error"].as_object().unwrap();
            assert!(["message", "type", "param", "code"].iter().all(|k| error.contains_key(*k)), "{error:?}");
            assert_eq!((failure.status(), failure.should_retry()), (status, retry), "{failure:?}");
            assert_eq!(failure.retry_after().is_some(), retry == Some(true), "{failure:?}");
            assert!(failure.event().ends_with(b"\n\n"));
        }
    }

    #[test]
    fn engine_keeps_its_own_words() {
        let failure = Failure::EngineRefused(r#"{"error":{"message":"m","code":"context_length_exceeded"}}"#.into());
        assert!(std::str::from_utf8(&failure.body()).unwrap().contains("context_length_exceeded"));
    }
}

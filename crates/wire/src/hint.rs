//! Phase hints: what the gateway knows about requests, on its way to the scheduler.
//!
//! The gateway sends one JSON object a line over a Unix socket; the interposer posts it into the command ring in binary,
//! so that a hint keeps its place among the operators. Hints are advice: a lost one costs quality, never correctness.

use crate::cursor::{Put, Reader, put_text};
use crate::{DecodeError, EncodeError, HINT_JSON_BYTES_MAX, TENANT_BYTES_MAX};
use serde::{Deserialize, Serialize};

/// One transition of one request. `request` is the gateway's number, unique as long as the gateway lives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "hint", rename_all = "snake_case")]
pub enum Hint {
    /// The gateway let the request through to the engine.
    Admitted {
        /// Request.
        request: u64,
        /// Tokens of the prompt.
        prompt_tokens: u32,
        /// Most tokens it may generate.
        max_tokens: u32,
        /// Time left for the first token, milliseconds.
        ttft_deadline_ms: u32,
        /// Target for the time between tokens, milliseconds.
        tpot_target_ms: u32,
        /// Larger is more urgent.
        priority: u8,
        /// Who pays, at most [`TENANT_BYTES_MAX`] bytes.
        tenant: String,
    },
    /// The engine is believed to work on the prompt.
    PrefillStarted {
        /// Request.
        request: u64,
    },
    /// The first token came out.
    FirstToken {
        /// Request.
        request: u64,
    },
    /// Tokens came out.
    Progress {
        /// Request.
        request: u64,
        /// Tokens generated so far.
        tokens: u32,
    },
    /// The last token came out.
    Finished {
        /// Request.
        request: u64,
    },
    /// The client went away or the request failed.
    Aborted {
        /// Request.
        request: u64,
    },
}

impl Hint {
    /// The request it is about.
    pub fn request(&self) -> u64 {
        match *self {
            Hint::Admitted { request, .. }
            | Hint::PrefillStarted { request }
            | Hint::FirstToken { request }
            | Hint::Progress { request, .. }
            | Hint::Finished { request }
            | Hint::Aborted { request } => request,
        }
    }

    /// One line of JSON, without the newline.
    ///
    /// # Errors
    /// If the tenant's name is too long.
    pub fn to_json(&self) -> Result<String, EncodeError> {
        self.check()?;
        Ok(serde_json::to_string(self).expect("a hint has string keys only"))
    }

    /// Reads one line; a trailing newline is fine, unknown fields are ignored (gateways may be newer).
    ///
    /// # Errors
    /// If it is longer than [`HINT_JSON_BYTES_MAX`], is no hint, or breaks a limit.
    pub fn from_json(line: &[u8]) -> Result<Self, DecodeError> {
        if line.len() > HINT_JSON_BYTES_MAX {
            let what = "bytes of a hint";
            return Err(DecodeError::TooMany { what, count: line.len(), max: HINT_JSON_BYTES_MAX });
        }
        let hint: Self = serde_json::from_slice(line).map_err(|e| DecodeError::Json { column: e.column() })?;
        match hint.check() {
            Err(EncodeError::TooMany { what, count, max }) => Err(DecodeError::TooMany { what, count, max }),
            _ => Ok(hint),
        }
    }

    fn check(&self) -> Result<(), EncodeError> {
        match self {
            Hint::Admitted { tenant, .. } if tenant.len() > TENANT_BYTES_MAX => {
                let what = "bytes of a tenant's name";
                Err(EncodeError::TooMany { what, count: tenant.len(), max: TENANT_BYTES_MAX })
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        self.check()?;
        let tag = match self {
            Hint::Admitted { .. } => 0,
            Hint::PrefillStarted { .. } => 1,
            Hint::FirstToken { .. } => 2,
            Hint::Progress { .. } => 3,
            Hint::Finished { .. } => 4,
            Hint::Aborted { .. } => 5,
        };
        out.u8(tag);
        out.u64(self.request());
        match self {
            Hint::Admitted {
                prompt_tokens, max_tokens, ttft_deadline_ms, tpot_target_ms, priority, tenant, ..
            } => {
                out.u32(*prompt_tokens);
                out.u32(*max_tokens);
                out.u32(*ttft_deadline_ms);
                out.u32(*tpot_target_ms);
                out.u8(*priority);
                put_text(tenant, out);
            }
            Hint::Progress { tokens, .. } => out.u32(*tokens),
            _ => {}
        }
        Ok(())
    }

    pub(crate) fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let tag = r.u8()?;
        let request = r.u64()?;
        Ok(match tag {
            0 => Hint::Admitted {
                request,
                prompt_tokens: r.u32()?,
                max_tokens: r.u32()?,
                ttft_deadline_ms: r.u32()?,
                tpot_target_ms: r.u32()?,
                priority: r.u8()?,
                tenant: r.text("bytes of a tenant's name", TENANT_BYTES_MAX)?.to_owned(),
            },
            1 => Hint::PrefillStarted { request },
            2 => Hint::FirstToken { request },
            3 => Hint::Progress { request, tokens: r.u32()? },
            4 => Hint::Finished { request },
            5 => Hint::Aborted { request },
            _ => return Err(DecodeError::Unknown { what: "hint", value: u64::from(tag) }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_one_flat_line() {
        let hint = Hint::Progress { request: 7, tokens: 3 };
        assert_eq!(hint.to_json().unwrap(), r#"{"hint":"progress","request":7,"tokens":3}"#);
        assert_eq!(Hint::from_json(b"{\"hint\":\"first_token\",\"request\":9,\"new\":1}\n").unwrap().request(), 9);
    }

    #[test]
    fn bad_lines_are_refused() {
        let long = format!(
            r#"{{"hint":"admitted","request":1,"prompt_tokens":1,"max_tokens":1,"ttft_deadline_ms":1,"tpot_target_ms":1,"priority":0,"tenant":"{}"}}"#,
            "t".repeat(TENANT_BYTES_MAX + 1)
        );
        for line in ["", "{}", r#"{"hint":"nap","request":1}"#, r#"{"hint":"aborted","request":-1}"#, &long] {
            assert!(Hint::from_json(line.as_bytes()).is_err(), "{line}");
        }
        assert!(Hint::from_json(&vec![b' '; HINT_JSON_BYTES_MAX + 1]).is_err());
    }
}

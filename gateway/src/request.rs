//! What the gateway reads of a completion request. The body itself travels on byte for byte.
//!
//! Pure. Counts are exact for token-array prompts; text is estimated at [`BYTES_PER_TOKEN`], and the estimate is only
//! advice to the scheduler.

use serde_json::Value;

/// Bytes of text taken as one token: the usual figure for English and byte-pair vocabularies of 100 k and more.
const BYTES_PER_TOKEN: usize = 4;
/// Tokens assumed to be generated where the request sets no limit: what OpenAI's completions endpoint defaults to.
const MAX_TOKENS_DEFAULT: u32 = 16;

/// What matters of a request before it is sent on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Tokens of all prompts together.
    pub prompt_tokens: u32,
    /// Most tokens to generate, over all choices.
    pub max_tokens: u32,
    /// True if the answer is to be streamed.
    pub stream: bool,
}

impl Summary {
    /// Reads a JSON body; `None` if it is no JSON object (the engine says what is wrong with it).
    pub fn of(body: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(body).ok()?;
        let object = value.as_object()?;
        let prompt_tokens = match (object.get("messages"), object.get("prompt")) {
            (Some(messages), _) => text_tokens(messages),
            (None, Some(prompt)) => prompt_tokens(prompt),
            (None, None) => 0,
        };
        let limit = ["max_completion_tokens", "max_tokens"].iter().find_map(|k| object.get(*k)?.as_u64());
        let choices = object.get("n").and_then(Value::as_u64).unwrap_or(1).max(1);
        let max_tokens = limit.unwrap_or(u64::from(MAX_TOKENS_DEFAULT)).saturating_mul(choices);
        Some(Self {
            prompt_tokens: u32::try_from(prompt_tokens).unwrap_or(u32::MAX),
            max_tokens: u32::try_from(max_tokens).unwrap_or(u32::MAX),
            stream: object.get("stream").and_then(Value::as_bool).unwrap_or(false),
        })
    }
}

/// A prompt is a string, a list of strings, a token array or a list of token arrays.
fn prompt_tokens(prompt: &Value) -> usize {
    match prompt {
        Value::Array(items) if items.iter().all(Value::is_number) => items.len(),
        Value::Array(items) => items.iter().map(prompt_tokens).sum(),
        other => text_tokens(other),
    }
}

/// Estimate from the bytes of every string in `value`.
fn text_tokens(value: &Value) -> usize {
    fn bytes(value: &Value) -> usize {
        match value {
            Value::String(s) => s.len(),
            Value::Array(items) => items.iter().map(bytes).sum(),
            Value::Object(map) => map.values().map(bytes).sum(),
            _ => 0,
        }
    }
    bytes(value).div_ceil(BYTES_PER_TOKEN)
}

/// Counts tokens in an event of a streamed answer: one for each choice that carries text.
pub fn event_tokens(event: &[u8]) -> Event {
    if event == b"[DONE]" {
        return Event::Done;
    }
    let Ok(value) = serde_json::from_slice::<Value>(event) else { return Event::Other };
    if value.get("error").is_some_and(|e| !e.is_null()) {
        return Event::Error;
    }
    let text = |c: &Value| {
        let delta = &c["delta"];
        let found = c["text"].as_str().or(delta["content"].as_str()).or(delta["reasoning_content"].as_str());
        found.is_some_and(|t| !t.is_empty())
    };
    let tokens = value["choices"].as_array().map_or(0, |choices| choices.iter().filter(|c| text(c)).count());
    if tokens == 0 { Event::Other } else { Event::Text(tokens as u32) }
}

/// What an event of a streamed answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Text for so many choices.
    Text(u32),
    /// `[DONE]`.
    Done,
    /// An error object.
    Error,
    /// Roles, usage, anything else.
    Other,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_of_every_shape_are_counted() {
        for (body, prompt, max, stream) in [
            (r#"{"prompt":[1,2,3],"max_tokens":5}"#, 3, 5, false),
            (r#"{"prompt":[[1,2],[3]],"n":2,"max_tokens":5,"stream":true}"#, 3, 10, true),
            (r#"{"prompt":"12345678"}"#, 2, 16, false),
            (r#"{"prompt":["1234","5678"]}"#, 2, 16, false),
            (
                r#"{"messages":[{"role":"user","content":"1234"}],"max_tokens":9,"max_completion_tokens":7}"#,
                2,
                7,
                false,
            ),
            (r#"{}"#, 0, 16, false),
        ] {
            let want = Summary { prompt_tokens: prompt, max_tokens: max, stream };
            assert_eq!(Summary::of(body.as_bytes()), Some(want), "{body}");
        }
        assert_eq!(Summary::of(b"{oops"), None);
        assert_eq!(Summary::of(b"[1]"), None);
    }

    #[test]
    fn events_are_told_apart() {
        for (event, want) in [
            (r#"{"choices":[{"text":"a"},{"text":""},{"delta":{"content":"b"}}]}"#, Event::Text(2)),
            (r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#, Event::Other),
            (r#"{"choices":[],"usage":{}}"#, Event::Other),
            (r#"{"error":{"message":"x"}}"#, Event::Error),
            ("[DONE]", Event::Done),
            ("garbage", Event::Other),
        ] {
            assert_eq!(event_tokens(event.as_bytes()), want, "{event}");
        }
    }
}

//! What one server-sent event says, found by scanning instead of parsing: this runs for every token while the clock runs.
//!
//! A JSON key is known by the quote and colon behind it. Inside a JSON string every quote is escaped, so `"content":`
//! cannot occur in a string's text, whatever the model says. Pure.

use memchr::memchr_iter;

/// Longest excerpt of a server's words that an error carries, bytes.
const EXCERPT_BYTES_MAX: usize = 300;

/// What an event of a completion stream says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Event {
    /// It carries text (or a tool call's arguments, or reasoning) that is not empty. A role alone is no content.
    pub content: bool,
    /// It is `[DONE]`.
    pub done: bool,
    /// Usage: tokens of the prompt.
    pub prompt_tokens: Option<u32>,
    /// Usage: tokens of the answer, so far if the server tells them with every chunk.
    pub completion_tokens: Option<u32>,
    /// It reports an error, or is not JSON.
    pub error: Option<String>,
}

/// Reads the data of one event.
pub fn event(data: &[u8]) -> Event {
    let data = data.trim_ascii();
    if data == b"[DONE]" {
        return Event { done: true, ..Event::default() };
    }
    if !(data.starts_with(b"{") && data.ends_with(b"}")) {
        return Event { error: Some(format!("event is not JSON: {}", excerpt(data))), ..Event::default() };
    }
    let mut event = Event::default();
    for colon in memchr_iter(b':', data) {
        let Some(key) = data[..colon].strip_suffix(b"\"") else { continue };
        let value = || data[colon + 1..].trim_ascii_start();
        if is(key, b"content")
            || is(key, b"text")
            || is(key, b"reasoning_content")
            || is(key, b"reasoning")
            || is(key, b"arguments")
        {
            event.content |= matches!(value(), [b'"', next, ..] if *next != b'"');
        } else if is(key, b"completion_tokens") {
            event.completion_tokens = number(value()).or(event.completion_tokens);
        } else if is(key, b"prompt_tokens") {
            event.prompt_tokens = number(value()).or(event.prompt_tokens);
        } else if (is(key, b"error") && !value().starts_with(b"null"))
            || (is(key, b"object") && value().starts_with(b"\"error\""))
        {
            event.error.get_or_insert_with(|| format!("server error in the stream: {}", excerpt(data)));
        }
    }
    event
}

/// Whether the text before a key's closing quote ends in that key.
fn is(before: &[u8], key: &[u8]) -> bool {
    before.strip_suffix(key).is_some_and(|rest| rest.ends_with(b"\""))
}

fn number(value: &[u8]) -> Option<u32> {
    let digits = value.iter().take_while(|b| b.is_ascii_digit()).count();
    std::str::from_utf8(&value[..digits]).ok()?.parse().ok()
}

fn excerpt(data: &[u8]) -> String {
    String::from_utf8_lossy(&data[..data.len().min(EXCERPT_BYTES_MAX)]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    #[test]
    fn chunks_of_every_kind() {
        let content = Event { content: true, ..Event::default() };
        for (text, want) in [
            (r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#, Event::default()),
            (r#"{"choices":[{"delta":{"content":null}}],"error":null}"#, Event::default()),
            (r#"{"choices":[{"delta":{"content":"Hel"}}],"usage":null}"#, content.clone()),
            (r#"{"choices":[{"text": " "}]}"#, content.clone()),
            (r#"{"choices":[{"delta":{"reasoning_content":"hm"}}]}"#, content.clone()),
            (r#"{"choices":[{"delta":{"tool_calls":[{"function":{"arguments":"{"}}]}}]}"#, content.clone()),
            (r#"{"choices":[{"delta":{"content":""},"logprobs":{"content":[{"token":"a"}]}}]}"#, Event::default()),
            (r#"{"choices":[{"text":""}],"note":"\"text\":\"x\" content: y"}"#, Event::default()),
            (
                r#"{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":4,"completion_tokens_details":{"x":1}}}"#,
                Event { prompt_tokens: Some(9), completion_tokens: Some(4), ..Event::default() },
            ),
            ("[DONE]", Event { done: true, ..Event::default() }),
        ] {
            assert_eq!(event(text.as_bytes()), want, "{text}");
        }
    }

    #[test]
    fn errors_are_told() {
        for (text, want) in [
            (r#"{"error":{"message":"device lost"}}"#, "server error in the stream: {\"error\":{\"message\":\"device"),
            (r#"{"object":"error","message":"no"}"#, "server error in the stream"),
            ("{oops", "event is not JSON: {oops"),
            ("", "event is not JSON"),
        ] {
            let error = event(text.as_bytes()).error.unwrap();
            assert!(error.starts_with(want), "{error}");
        }
    }

    /// The slow way: parse and look.
    fn parsed(value: &Value) -> Event {
        let delta = &value["choices"][0]["delta"];
        let content =
            [&delta["content"], &delta["reasoning_content"]].iter().any(|v| v.as_str().is_some_and(|s| !s.is_empty()));
        let usage = |key: &str| value["usage"][key].as_u64().map(|n| n as u32);
        Event {
            content,
            prompt_tokens: usage("prompt_tokens"),
            completion_tokens: usage("completion_tokens"),
            ..Event::default()
        }
    }

    proptest! {
        #[test]
        fn scanning_finds_what_parsing_finds(
            text in prop_oneof![".*", Just("\"content\":\"x\",\"error\":1".to_owned()), Just(String::new())],
            thought in prop_oneof![Just(Value::Null), ".*".prop_map(Value::from)],
            usage in prop::option::of((any::<u32>(), any::<u32>())),
        ) {
            let value = json!({
                "id": text, "model": "error",
                "choices": [{ "index": 0, "delta": { "content": text, "reasoning_content": thought } }],
                "usage": usage.map(|(p, c)| json!({ "prompt_tokens": p, "completion_tokens": c })),
            });
            prop_assert_eq!(event(value.to_string().as_bytes()), parsed(&value));
        }
    }
}

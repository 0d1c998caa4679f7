//! Token counts as engines report them.

use serde::Deserialize;
use serde_json::value::RawValue;

/// What a request cost, by the engine's count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Of these, taken from the prefix cache.
    pub cached_tokens: u64,
    /// Tokens generated.
    pub output_tokens: u64,
}

#[derive(Deserialize)]
struct Given<'a> {
    #[serde(borrow, alias = "input_tokens")]
    prompt_tokens: Option<&'a RawValue>,
    #[serde(borrow, alias = "output_tokens")]
    completion_tokens: Option<&'a RawValue>,
    #[serde(borrow, alias = "input_tokens_details")]
    prompt_tokens_details: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Details<'a> {
    #[serde(borrow)]
    cached_tokens: Option<&'a RawValue>,
}

impl Usage {
    /// Reads a `usage` object; `None` if it says nothing about tokens.
    pub fn of(json: &str) -> Option<Self> {
        // As every chunk of a stream has it but the last.
        if json == "null" {
            return None;
        }
        let given: Given<'_> = serde_json::from_str(json).ok()?;
        let number = crate::request::number;
        let (prompt, output) = (number(given.prompt_tokens), number(given.completion_tokens));
        prompt.or(output)?;
        let details = given.prompt_tokens_details.and_then(|d| serde_json::from_str::<Details<'_>>(d.get()).ok());
        let prompt_tokens = prompt.unwrap_or(0);
        let cached_tokens = details.and_then(|d| number(d.cached_tokens)).unwrap_or(0).min(prompt_tokens);
        Some(Self { prompt_tokens, cached_tokens, output_tokens: output.unwrap_or(0) })
    }
}

/// The usage in a whole (not streamed) answer.
pub fn usage_of_answer(body: &[u8]) -> Option<Usage> {
    #[derive(Deserialize)]
    struct Answer<'a> {
        #[serde(borrow)]
        usage: Option<&'a RawValue>,
    }
    Usage::of(crate::object::read::<Answer<'_>>(body).ok()?.usage?.get())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_of_every_shape_is_read() {
        let usage =
            |prompt_tokens, cached_tokens, output_tokens| Some(Usage { prompt_tokens, cached_tokens, output_tokens });
        for (json, want) in [
            (r#"{"prompt_tokens":5,"completion_tokens":7,"total_tokens":12}"#, usage(5, 0, 7)),
            (r#"{"prompt_tokens":5,"total_tokens":5}"#, usage(5, 0, 0)),
            (
                r#"{"prompt_tokens":5.0,"completion_tokens":"7","prompt_tokens_details":{"cached_tokens":3}}"#,
                usage(5, 3, 7),
            ),
            (r#"{"prompt_tokens":5,"prompt_tokens_details":null}"#, usage(5, 0, 0)),
            (r#"{"prompt_tokens":5,"prompt_tokens_details":{"cached_tokens":9}}"#, usage(5, 5, 0)),
            (r#"{"input_tokens":5,"output_tokens":7,"input_tokens_details":{"cached_tokens":1}}"#, usage(5, 1, 7)),
            (r#"{"cost":1}"#, None),
            ("null", None),
            ("3", None),
        ] {
            assert_eq!(Usage::of(json), want, "{json}");
        }
        assert_eq!(
            usage_of_answer(br#"{"choices":[1],"usage":{"prompt_tokens":1,"completion_tokens":2}}"#),
            usage(1, 0, 2)
        );
        assert_eq!(usage_of_answer(b"oops"), None);
    }
}

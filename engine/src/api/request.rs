//! The JSON of a request, as it arrives: every field optional, `null` like absent, unknown fields ignored.
//!
//! What the values mean and which are acceptable is decided in [`super::params`]; only shapes are decided here.

use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde_json::Value;

/// Body of `/v1/chat/completions` and of `/v1/completions`. One struct for both, because a flattened common part would
/// lose the position and the path of an error.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Body {
    pub model: Option<String>,
    /// Chat only.
    pub messages: Option<Vec<MessageBody>>,
    /// Completions only.
    pub prompt: Option<Prompts>,
    pub max_tokens: Option<i64>,
    /// Chat only; wins over `max_tokens`.
    pub max_completion_tokens: Option<i64>,
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    pub seed: Option<i64>,
    pub stop: Option<Stops>,
    pub stream: Option<bool>,
    pub stream_options: Option<StreamOptions>,
    pub n: Option<i64>,
    /// A boolean in chat, a number in completions.
    pub logprobs: Option<Value>,
    /// Chat only.
    pub top_logprobs: Option<i64>,
    // Extensions that other engines share.
    pub top_k: Option<i64>,
    pub ignore_eos: Option<bool>,
    pub min_tokens: Option<i64>,
    pub stop_token_ids: Option<Vec<u32>>,
    // Understood well enough to be refused instead of silently ignored.
    pub echo: Option<bool>,
    pub suffix: Option<String>,
    pub best_of: Option<i64>,
    pub tools: Option<Vec<Value>>,
    pub functions: Option<Vec<Value>>,
    pub tool_choice: Option<Value>,
    pub function_call: Option<Value>,
    pub response_format: Option<Value>,
    pub modalities: Option<Vec<String>>,
    pub audio: Option<Value>,
    pub logit_bias: Option<serde_json::Map<String, Value>>,
    pub presence_penalty: Option<f64>,
    pub frequency_penalty: Option<f64>,
    pub repetition_penalty: Option<f64>,
    pub min_p: Option<f64>,
    pub guided_json: Option<Value>,
    pub guided_regex: Option<Value>,
    pub guided_choice: Option<Value>,
    pub guided_grammar: Option<Value>,
    pub structured_outputs: Option<Value>,
    pub prompt_logprobs: Option<Value>,
    pub use_beam_search: Option<bool>,
}

/// One message of a conversation.
#[derive(Debug, Deserialize)]
pub(crate) struct MessageBody {
    pub role: Option<String>,
    /// A string or a list of parts.
    pub content: Option<Value>,
    pub tool_calls: Option<Vec<Value>>,
}

/// `stream_options`.
#[derive(Debug, Deserialize)]
pub(crate) struct StreamOptions {
    pub include_usage: Option<bool>,
}

/// `stop`: one string or a list.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a string or a list of strings")]
pub(crate) enum Stops {
    One(String),
    Many(Vec<String>),
}

/// One prompt of `/v1/completions`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

/// `prompt`: a string, a list of strings, a list of tokens, a list of lists of tokens. Parsed by hand so that a token
/// array of a million entries goes straight into a `Vec<u32>`, and so that the error names the shapes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Prompts(pub Vec<Prompt>);

const PROMPT_SHAPES: &str = "a string, a list of strings, a list of token ids, or a list of lists of token ids";

impl<'de> Deserialize<'de> for Prompts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Outer;
        impl<'de> Visitor<'de> for Outer {
            type Value = Prompts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(PROMPT_SHAPES)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Prompts, E> {
                Ok(Prompts(vec![Prompt::Text(text.to_owned())]))
            }

            fn visit_string<E: de::Error>(self, text: String) -> Result<Prompts, E> {
                Ok(Prompts(vec![Prompt::Text(text)]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Prompts, A::Error> {
                let mixed = || de::Error::custom(format!("prompt mixes shapes; expected {PROMPT_SHAPES}"));
                match seq.next_element::<Item>()? {
                    None => Ok(Prompts(Vec::new())),
                    Some(Item::Token(first)) => {
                        let mut tokens = vec![first];
                        while let Some(item) = seq.next_element::<Item>()? {
                            let Item::Token(token) = item else { return Err(mixed()) };
                            tokens.push(token);
                        }
                        Ok(Prompts(vec![Prompt::Tokens(tokens)]))
                    }
                    Some(Item::Prompt(first)) => {
                        let is_text = matches!(first, Prompt::Text(_));
                        let mut prompts = vec![first];
                        while let Some(item) = seq.next_element::<Item>()? {
                            match item {
                                Item::Prompt(prompt) if matches!(prompt, Prompt::Text(_)) == is_text => {
                                    prompts.push(prompt)
                                }
                                _ => return Err(mixed()),
                            }
                        }
                        Ok(Prompts(prompts))
                    }
                }
            }
        }
        deserializer.deserialize_any(Outer)
    }
}

/// One entry of a prompt list.
enum Item {
    Token(u32),
    Prompt(Prompt),
}

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entry;
        impl<'de> Visitor<'de> for Entry {
            type Value = Item;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, a token id, or a list of token ids")
            }

            fn visit_u64<E: de::Error>(self, id: u64) -> Result<Item, E> {
                u32::try_from(id).map(Item::Token).map_err(|_| E::custom(format!("{id} is not a token id")))
            }

            fn visit_i64<E: de::Error>(self, id: i64) -> Result<Item, E> {
                Err(E::custom(format!("{id} is not a token id")))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Item, E> {
                Ok(Item::Prompt(Prompt::Text(text.to_owned())))
            }

            fn visit_string<E: de::Error>(self, text: String) -> Result<Item, E> {
                Ok(Item::Prompt(Prompt::Text(text)))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Item, A::Error> {
                let mut tokens = Vec::new();
                while let Some(token) = seq.next_element::<u32>()? {
                    tokens.push(token);
                }
                Ok(Item::Prompt(Prompt::Tokens(tokens)))
            }
        }
        deserializer.deserialize_any(Entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompts(json: &str) -> Result<Vec<Prompt>, String> {
        serde_json::from_str::<Prompts>(json).map(|prompts| prompts.0).map_err(|error| error.to_string())
    }

    #[test]
    fn all_four_prompt_shapes_are_understood() {
        let text = |text: &str| Prompt::Text(text.to_owned());
        let cases = [
            (r#""hi""#, vec![text("hi")]),
            (r#"["a", "b\n"]"#, vec![text("a"), text("b\n")]),
            ("[1, 2, 3]", vec![Prompt::Tokens(vec![1, 2, 3])]),
            ("[[1], [2, 3]]", vec![Prompt::Tokens(vec![1]), Prompt::Tokens(vec![2, 3])]),
            ("[]", vec![]),
            ("[[]]", vec![Prompt::Tokens(vec![])]),
        ];
        for (json, expected) in cases {
            assert_eq!(prompts(json), Ok(expected), "{json}");
        }
    }

    #[test]
    fn other_prompt_shapes_are_refused_with_the_shapes_that_exist() {
        for json in ["7", "{}", "true", r#"[1, "a"]"#, r#"["a", 1]"#, "[[1], 2]", r#"["a", [1]]"#] {
            let error = prompts(json).expect_err(json);
            assert!(error.contains("list of lists of token ids"), "{json}: {error}");
        }
        for json in ["[-1]", "[4294967296]"] {
            assert!(prompts(json).expect_err(json).contains("is not a token id"), "{json}");
        }
        for json in ["[1.5]", "[[1.5]]", "[[\"a\"]]", "[null]"] {
            assert!(prompts(json).is_err(), "{json}");
        }
    }
}

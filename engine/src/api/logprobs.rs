//! Log-probabilities in the two shapes of the API.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::core::Logprobs;
use crate::text::Tokenizer;

/// A token as a string: its text if that is whole characters, else its bytes spelled out, as the OpenAI API does.
fn token_text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("bytes:".to_owned(), |text, byte| format!("{text}\\x{byte:02x}")),
    }
}

/// `logprobs` of a chat choice.
#[derive(Debug, Serialize)]
pub(crate) struct ChatLogprobs {
    content: Vec<ChatToken>,
}

#[derive(Debug, Serialize)]
struct ChatToken {
    #[serde(flatten)]
    token: ScoredToken,
    top_logprobs: Vec<ScoredToken>,
}

#[derive(Debug, Serialize)]
struct ScoredToken {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

impl ScoredToken {
    fn new(tokenizer: &Tokenizer, id: u32, logprob: f32) -> Self {
        let bytes = tokenizer.spelled(id);
        Self { token: token_text(bytes), logprob, bytes: bytes.to_vec() }
    }
}

impl ChatLogprobs {
    /// `None` if there are none.
    pub(crate) fn new(tokenizer: &Tokenizer, tokens: &[(u32, Logprobs)]) -> Option<Self> {
        let token = |(id, logprobs): &(u32, Logprobs)| ChatToken {
            token: ScoredToken::new(tokenizer, *id, logprobs.chosen),
            top_logprobs: logprobs.top.iter().map(|top| ScoredToken::new(tokenizer, top.id, top.logprob)).collect(),
        };
        (!tokens.is_empty()).then(|| Self { content: tokens.iter().map(token).collect() })
    }
}

/// `logprobs` of a completion choice.
#[derive(Debug, Serialize)]
pub(crate) struct CompletionLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<f32>,
    top_logprobs: Vec<Map<String, Value>>,
    text_offset: Vec<usize>,
}

impl CompletionLogprobs {
    /// `None` if there are none. `offset` is the position, in characters, of the first token in the completion, and is
    /// moved past the last.
    pub(crate) fn new(tokenizer: &Tokenizer, tokens: &[(u32, Logprobs)], offset: &mut usize) -> Option<Self> {
        if tokens.is_empty() {
            return None;
        }
        let mut out =
            Self { tokens: Vec::new(), token_logprobs: Vec::new(), top_logprobs: Vec::new(), text_offset: Vec::new() };
        for (id, logprobs) in tokens {
            let bytes = tokenizer.spelled(*id);
            let text = token_text(bytes);
            out.text_offset.push(*offset);
            // Characters that begin in this token: all bytes but continuation bytes.
            *offset += bytes.iter().filter(|&byte| byte & 0xC0 != 0x80).count();
            // The chosen token is always there, also when it is not among the most likely.
            let mut top: Map<String, Value> = logprobs
                .top
                .iter()
                .map(|top| (token_text(tokenizer.spelled(top.id)), Value::from(top.logprob)))
                .collect();
            top.entry(text.clone()).or_insert_with(|| Value::from(logprobs.chosen));
            out.tokens.push(text);
            out.token_logprobs.push(logprobs.chosen);
            out.top_logprobs.push(top);
        }
        Some(out)
    }
}

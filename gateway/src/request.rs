//! What the gateway makes of a request before it goes anywhere: its demand on an engine.

use std::sync::Arc;

use admission::{Demand, Estimate};
use bytes::Bytes;
use openai::Peek;
use pingora_http::RequestHeader;

use crate::identity::Tenant;
use crate::setup::Setup;

/// A request, read whole, from someone who may ask.
pub struct Incoming<'a> {
    /// The configuration that it came under.
    pub setup: &'a Arc<Setup>,
    /// Who asks.
    pub tenant: &'a Tenant,
    /// Its name in logs and towards the engine.
    pub name: &'a str,
    /// Its head.
    pub head: &'a RequestHeader,
    /// Its body.
    pub body: Bytes,
}

/// What phases and hints need of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Tokens of all prompts together.
    pub prompt_tokens: u32,
    /// Most tokens to generate, over all choices.
    pub max_tokens: u32,
    /// True if the answer is to be streamed.
    pub stream: bool,
}

/// What a request takes; `counted` are the tokens of its texts if a tokenizer has counted them, `generates` is false for
/// embeddings, `output_default` stands for a limit that is not given.
pub fn demand(
    peek: &Peek<'_>,
    estimate: &Estimate,
    counted: Option<u64>,
    generates: bool,
    output_default: u64,
) -> Demand {
    let prompt = &peek.prompt;
    let prompt_tokens = match counted {
        Some(counted) => estimate.tokens(prompt.tokens.saturating_add(counted), 0, prompt.media),
        None => estimate.tokens(prompt.tokens, prompt.text_bytes, prompt.media),
    };
    let (output_tokens, sequences) = if generates {
        (peek.max_tokens.unwrap_or(output_default), prompt.prompts.saturating_mul(peek.choices))
    } else {
        (0, 0)
    };
    let exact = prompt.is_exact() || (counted.is_some() && peek.is_plain(generates));
    Demand { prompt_tokens, exact, output_tokens, sequences, prompts: prompt.prompts }
}

impl Summary {
    /// Of a demand.
    pub fn of(demand: &Demand, stream: bool) -> Self {
        let narrow = |tokens: u64| u32::try_from(tokens).unwrap_or(u32::MAX);
        let max_tokens = narrow(demand.output_tokens.saturating_mul(demand.sequences));
        Self { prompt_tokens: narrow(demand.prompt_tokens), max_tokens, stream }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn demand_counts_prompts_times_choices() {
        for (body, generates, want) in [
            (r#"{"prompt":[1,2,3],"max_tokens":5}"#, true, (3, true, 5, 1)),
            (r#"{"prompt":[[1,2],[3]],"n":2,"max_tokens":5}"#, true, (3, true, 5, 4)),
            (r#"{"prompt":"12345678"}"#, true, (2, false, 256, 1)),
            (r#"{"input":["1234","5678"]}"#, false, (2, false, 0, 0)),
        ] {
            let peek = Peek::of(body.as_bytes()).unwrap();
            let d = demand(&peek, &Estimate::default(), None, generates, 256);
            assert_eq!((d.prompt_tokens, d.exact, d.output_tokens, d.sequences), want, "{body}");
        }
        for (body, want) in [
            (r#"{"prompt":"one two"}"#, (2, true)),
            (r#"{"prompt":["one two",[1,2,3]]}"#, (5, true)),
            (r#"{"messages":[{"content":"one two"}]}"#, (2, false)),
        ] {
            let d = demand(&Peek::of(body.as_bytes()).unwrap(), &Estimate::default(), Some(2), true, 256);
            assert_eq!((d.prompt_tokens, d.exact), want, "{body}");
        }
        let large = Demand { prompt_tokens: 7, exact: true, output_tokens: u64::MAX, sequences: 9, prompts: 1 };
        assert_eq!(Summary::of(&large, true), Summary { prompt_tokens: 7, max_tokens: u32::MAX, stream: true });
    }
}

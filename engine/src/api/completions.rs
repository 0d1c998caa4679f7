//! `/v1/completions`: the shapes of a completion choice.

use std::sync::Arc;

use serde::Serialize;

use super::logprobs::CompletionLogprobs;
use super::running::{Finish, Step};
use super::sse::Format;
use crate::core::Logprobs;
use crate::text::Tokenizer;

/// Shapes of completion choices.
pub(crate) struct CompletionFormat {
    pub tokenizer: Arc<Tokenizer>,
    /// Characters streamed so far, per choice: for `text_offset` of the log-probabilities.
    pub offsets: Vec<usize>,
}

/// A choice, in a chunk (`finish_reason` null until the last) and in a body.
#[derive(Debug, Serialize)]
pub(crate) struct CompletionChoice {
    index: usize,
    text: String,
    logprobs: Option<CompletionLogprobs>,
    finish_reason: Option<&'static str>,
}

impl CompletionFormat {
    fn chunk(
        &mut self,
        index: usize,
        text: String,
        logprobs: &[(u32, Logprobs)],
        finish: Option<Finish>,
    ) -> CompletionChoice {
        let logprobs = CompletionLogprobs::new(&self.tokenizer, logprobs, &mut self.offsets[index]);
        CompletionChoice { index, text, logprobs, finish_reason: finish.map(Finish::as_str) }
    }
}

impl Format for CompletionFormat {
    const OBJECT: &'static str = "text_completion";
    const CHUNK_OBJECT: &'static str = "text_completion";
    type Delta = CompletionChoice;
    type Choice = CompletionChoice;

    fn deltas(&mut self, step: Step) -> Vec<CompletionChoice> {
        let mut out = Vec::with_capacity(1);
        if !step.text.is_empty() || !step.logprobs.is_empty() {
            out.push(self.chunk(step.choice, step.text, &step.logprobs, None));
        }
        if step.finish.is_some() {
            out.push(self.chunk(step.choice, String::new(), &[], step.finish));
        }
        out
    }

    fn choice(
        &mut self,
        index: usize,
        text: String,
        logprobs: Vec<(u32, Logprobs)>,
        finish: Finish,
    ) -> CompletionChoice {
        self.chunk(index, text, &logprobs, Some(finish))
    }
}

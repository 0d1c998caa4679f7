//! One generated sequence on its way from ids to final text: detokenizer and stop strings in one step.

use std::sync::Arc;

use super::{Detokenizer, StopMatcher, Tokenizer};

/// What one token adds to the visible text.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct TextDelta {
    /// Final text; may be empty.
    pub text: String,
    /// A stop string is complete: the sequence is over and `text` is its last piece.
    pub stopped: bool,
}

/// The text state of one sequence.
#[derive(Debug)]
pub struct TextStream {
    tokenizer: Arc<Tokenizer>,
    detokenizer: Detokenizer,
    stops: StopMatcher,
    min_tokens: usize,
    tokens: usize,
}

impl TextStream {
    /// `stops` are not looked for before `min_tokens` tokens were generated.
    pub fn new(tokenizer: Arc<Tokenizer>, stops: &[String], min_tokens: usize) -> Self {
        Self { tokenizer, detokenizer: Detokenizer::default(), stops: StopMatcher::new(stops), min_tokens, tokens: 0 }
    }

    /// Takes the next generated token.
    pub fn push(&mut self, id: u32) -> TextDelta {
        self.tokens += 1;
        let mut characters = String::new();
        self.detokenizer.push(self.tokenizer.piece(id), &mut characters);
        let mut delta = TextDelta::default();
        delta.stopped = self.stops.push(&characters, self.tokens >= self.min_tokens, &mut delta.text);
        delta
    }

    /// The sequence ended without a stop string: text that was held back for one.
    pub fn finish(&mut self) -> String {
        let mut text = String::new();
        self.stops.finish(&mut text);
        text
    }

    /// Tokens taken so far.
    pub fn tokens(&self) -> usize {
        self.tokens
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_of(text: &str) -> Vec<u32> {
        text.bytes().map(u32::from).collect()
    }

    #[test]
    fn a_stop_string_split_inside_a_character_is_still_found() {
        let tokenizer = Arc::new(Tokenizer::bytes());
        let mut stream = TextStream::new(tokenizer, &["你好".to_string()], 0);
        let mut text = String::new();
        let mut stopped_after = None;
        for (index, id) in bytes_of("ab你们你好tail").into_iter().enumerate() {
            let delta = stream.push(id);
            text.push_str(&delta.text);
            if delta.stopped {
                stopped_after = Some(index + 1);
                break;
            }
        }
        assert_eq!(text, "ab你们");
        assert_eq!(stopped_after, Some("ab你们你好".len()));
        assert_eq!(stream.tokens(), "ab你们你好".len());
    }

    #[test]
    fn min_tokens_disarms_the_stop_string() {
        let tokenizer = Arc::new(Tokenizer::bytes());
        for (min_tokens, expected) in [(0, "x"), (2, "x"), (3, "x.y"), (4, "x.y")] {
            let mut stream = TextStream::new(Arc::clone(&tokenizer), &[".".to_string()], min_tokens);
            let mut text = String::new();
            for id in bytes_of("x.y.z") {
                let delta = stream.push(id);
                text.push_str(&delta.text);
                if delta.stopped {
                    break;
                }
            }
            assert_eq!(text, expected, "min_tokens {min_tokens}");
        }
    }

    #[test]
    fn held_text_is_released_and_half_characters_are_dropped_at_the_end() {
        let mut stream = TextStream::new(Arc::new(Tokenizer::bytes()), &["END".to_string()], 0);
        let texts: Vec<String> = bytes_of("aEN").into_iter().map(|id| stream.push(id).text).collect();
        assert_eq!(texts, ["a", "", ""]);
        assert_eq!(stream.push(0xe4).text, "");
        assert_eq!(stream.finish(), "EN");
    }
}

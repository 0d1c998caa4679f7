//! Text in and out of token ids: tokenizer, chat template, and the way back to text one token at a time.
//!
//! The core of the engine knows only token ids. Everything that knows about characters is here, and nothing here knows
//! about HTTP, the scheduler or the device; all of it is synchronous and owns no thread.
//!
//! The way back, per generated sequence:
//!
//! ```text
//! id ──Tokenizer::piece──▶ bytes ──Detokenizer──▶ whole characters ──StopMatcher──▶ text that can never be taken back
//! ```
//!
//! Invariants:
//! - text handed out is whole UTF-8 characters, and the concatenation of all deltas equals the text of the whole sequence;
//! - no character that belongs to (or may still turn out to begin) a stop string is ever handed out;
//! - cost per token does not depend on how long the sequence already is.

mod chat;
mod detokenizer;
mod pieces;
mod stop;
mod stream;
mod tokenizer;

pub use chat::{ChatTemplate, TemplateError};
pub use detokenizer::Detokenizer;
pub use stop::StopMatcher;
pub use stream::{TextDelta, TextStream};
pub use tokenizer::{Tokenizer, TokenizerError};

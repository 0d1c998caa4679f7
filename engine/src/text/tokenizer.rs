//! Text to token ids, and which bytes an id stands for.
//!
//! Encoding is the `tokenizers` crate on the checkpoint's own `tokenizer.json`; the way back is [`super::pieces`].
//! Two departures for models without weights (`--load-format dummy`), whose ids mean nothing:
//! - there may be no `tokenizer.json` at all; then every byte is a token;
//! - any id of the model's vocabulary is mapped, modulo, onto the tokens that are whole printable text by themselves. So
//!   every generated id shows up as text, whatever the model's vocabulary and whatever id it is, and what clients see
//!   (one chunk a token) has the shape of real output.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use super::pieces::{Pieces, Spelling};

/// Why a tokenizer cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The file is missing or unreadable.
    #[error("cannot read {path}, which a checkpoint with weights must have", path = path.display())]
    Unreadable {
        /// File.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not a tokenizer.
    #[error("{path} is not a valid tokenizer.json: {message}", path = path.display())]
    Invalid {
        /// File.
        path: PathBuf,
        /// What the parser said.
        message: String,
    },
    /// The file is fine but its family is not served.
    #[error("{path} uses the decoder {decoder}; supported are byte-level BPE (Qwen, Llama 3) and SentencePiece BPE (Llama 2, Mistral)", path = path.display())]
    UnsupportedDecoder {
        /// File.
        path: PathBuf,
        /// Decoder section's type.
        decoder: String,
    },
    /// Tokenizer and model do not belong together.
    #[error("the tokenizer has token ids up to {max_id}, but the model's vocabulary has {vocab_size} rows")]
    VocabularyMismatch {
        /// Greatest id of the tokenizer.
        max_id: usize,
        /// Rows of the model's output layer.
        vocab_size: usize,
    },
    /// Encoding failed.
    #[error("cannot tokenize the text: {0}")]
    Encode(String),
}

/// Encodes text, spells ids. Immutable and shared by all requests.
pub struct Tokenizer {
    /// `None`: every byte is a token.
    encoder: Option<Box<tokenizers::Tokenizer>>,
    pieces: Pieces,
    /// Tokens that structure a conversation and are not text.
    special: HashSet<u32>,
    /// `Some`: see the module doc about models without weights.
    wrap: Option<Wrap>,
}

struct Wrap {
    /// Ids whose piece is whole printable text; never empty.
    printable: Vec<u32>,
    vocab_size: u32,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("len", &self.len())
            .field("wraps", &self.wrap.is_some())
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads `tokenizer.json` of a checkpoint directory.
    ///
    /// # Errors
    /// [`TokenizerError`], naming the file.
    pub fn load(dir: &Path) -> Result<Self, TokenizerError> {
        let path = dir.join("tokenizer.json");
        let bytes = std::fs::read(&path).map_err(|source| TokenizerError::Unreadable { path: path.clone(), source })?;
        Self::from_json(&bytes, &path)
    }

    /// From the contents of a `tokenizer.json`; `path` is for error messages.
    ///
    /// # Errors
    /// As [`Tokenizer::load`].
    pub fn from_json(bytes: &[u8], path: &Path) -> Result<Self, TokenizerError> {
        let invalid = |message: String| TokenizerError::Invalid { path: path.to_path_buf(), message };
        let mut encoder = tokenizers::Tokenizer::from_bytes(bytes).map_err(|error| invalid(error.to_string()))?;
        // A tokenizer.json may carry training-time truncation; a prompt is never cut silently.
        encoder.with_truncation(None).map_err(|error| invalid(error.to_string()))?;
        encoder.with_padding(None);

        let decoder = serde_json::to_value(encoder.get_decoder()).map_err(|error| invalid(error.to_string()))?;
        let spelling = Spelling::of_decoder(&decoder)
            .map_err(|decoder| TokenizerError::UnsupportedDecoder { path: path.to_path_buf(), decoder })?;
        let added = encoder.get_added_tokens_decoder();
        let special = added.iter().filter(|(_, token)| token.special).map(|(&id, _)| id).collect();
        let added: HashMap<u32, String> = added.into_iter().map(|(id, token)| (id, token.content)).collect();
        let pieces = Pieces::new(spelling, &encoder.get_vocab(false), &added);
        Ok(Self { encoder: Some(Box::new(encoder)), pieces, special, wrap: None })
    }

    /// Every byte is a token: what a model without weights falls back to when there is no `tokenizer.json`.
    pub fn bytes() -> Self {
        Self { encoder: None, pieces: Pieces::single_bytes(), special: HashSet::new(), wrap: None }
    }

    /// Binds the tokenizer to a model with weights.
    ///
    /// # Errors
    /// [`TokenizerError::VocabularyMismatch`] if it could produce ids that the model does not have.
    pub fn for_model(self, vocab_size: usize) -> Result<Self, TokenizerError> {
        if self.len() > vocab_size {
            return Err(TokenizerError::VocabularyMismatch { max_id: self.len() - 1, vocab_size });
        }
        Ok(self)
    }

    /// Binds the tokenizer to a model without weights and `vocab_size` ids (at least 1).
    ///
    /// # Errors
    /// [`TokenizerError::VocabularyMismatch`] if there is no vocabulary, or no printable token to map onto.
    pub fn for_dummy_model(mut self, vocab_size: usize) -> Result<Self, TokenizerError> {
        let printable: Vec<u32> = (0..u32::try_from(self.len()).unwrap_or(u32::MAX))
            .filter(|id| !self.special.contains(id))
            .filter(|&id| {
                std::str::from_utf8(self.pieces.get(id))
                    .is_ok_and(|text| !text.is_empty() && !text.chars().any(char::is_control))
            })
            .collect();
        let mismatch = TokenizerError::VocabularyMismatch { max_id: self.len().saturating_sub(1), vocab_size };
        match u32::try_from(vocab_size) {
            Ok(vocab_size) if vocab_size > 0 && !printable.is_empty() => {
                self.wrap = Some(Wrap { printable, vocab_size });
                Ok(self)
            }
            _ => Err(mismatch),
        }
    }

    /// One more than the greatest id.
    pub fn len(&self) -> usize {
        self.pieces.len()
    }

    /// True if there is no token at all.
    pub fn is_empty(&self) -> bool {
        self.pieces.len() == 0
    }

    /// Token ids of `text`. `add_special_tokens` adds what the checkpoint's post-processor puts around a plain text
    /// (Llama's begin-of-text); a rendered chat template already contains it. Special tokens written out in `text` become
    /// those tokens, as in other serving engines.
    ///
    /// Time grows with the text (some 5 MB/s); long texts belong on a blocking thread.
    ///
    /// # Errors
    /// [`TokenizerError::Encode`].
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = match &self.encoder {
            Some(encoder) => encoder
                .encode_fast(text, add_special_tokens)
                .map_err(|error| TokenizerError::Encode(error.to_string()))?
                .get_ids()
                .to_vec(),
            None => text.bytes().map(u32::from).collect(),
        };
        if let Some(wrap) = &self.wrap {
            ids.iter_mut().for_each(|id| *id %= wrap.vocab_size);
        }
        Ok(ids)
    }

    /// The bytes that a generated `id` adds to the text. None for special tokens and for ids without a token.
    pub fn piece(&self, id: u32) -> &[u8] {
        match &self.wrap {
            Some(wrap) => self.pieces.get(wrap.printable[id as usize % wrap.printable.len()]),
            None if self.special.contains(&id) => &[],
            None => self.pieces.get(id),
        }
    }

    /// The bytes of `id` as a token, special tokens spelled out: for log-probabilities.
    pub fn spelled(&self, id: u32) -> &[u8] {
        match &self.wrap {
            Some(_) => self.piece(id),
            None => self.pieces.get(id),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::json;

    /// A byte-level tokenizer: 256 bytes, the merges of " hello", one added special and one added plain token.
    pub(crate) fn byte_level() -> Tokenizer {
        let mut vocabulary = serde_json::Map::new();
        let mut next = 256u32;
        for byte in 0..=255u32 {
            let printable = matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
            let point = if printable { byte } else { (next, next += 1).0 };
            vocabulary.insert(char::from_u32(point).expect("a character").to_string(), byte.into());
        }
        let merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "hello")];
        for (index, (left, right)) in merges.iter().enumerate() {
            vocabulary.insert(format!("{left}{right}"), (256 + index).into());
        }
        let merges: Vec<String> = merges.iter().map(|(left, right)| format!("{left} {right}")).collect();
        let added = |id: u32, content: &str, special: bool| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": special})
        };
        let file = json!({
            "version": "1.0",
            "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
            "padding": null,
            "added_tokens": [added(261, "<|im_start|>", true), added(262, "<|im_end|>", true), added(263, "<tool>", false)],
            "normalizer": null,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "post_processor": null,
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "vocab": vocabulary, "merges": merges},
        });
        Tokenizer::from_json(file.to_string().as_bytes(), Path::new("tokenizer.json")).expect("a valid tokenizer")
    }

    fn decode(tokenizer: &Tokenizer, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| tokenizer.piece(id).to_vec()).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    #[test]
    fn text_survives_the_round_trip_and_is_never_truncated() {
        let tokenizer = byte_level();
        for text in ["", "hello hello", "a longer text than the truncation in the file", "你好 😀\n\ttab", "<tool>x"]
        {
            let ids = tokenizer.encode(text, true).expect("encodes");
            assert_eq!(decode(&tokenizer, &ids), text);
        }
        assert_eq!(tokenizer.encode("hello hello", true).expect("encodes"), [259, 260]);
    }

    #[test]
    fn special_tokens_are_encoded_but_are_not_text() {
        let tokenizer = byte_level();
        let ids = tokenizer.encode("<|im_start|>a<|im_end|>", false).expect("encodes");
        assert_eq!(ids, [261, u32::from(b'a'), 262]);
        assert_eq!(decode(&tokenizer, &ids), "a");
        assert_eq!(tokenizer.spelled(262), b"<|im_end|>");
    }

    #[test]
    fn a_dummy_model_spells_every_id_and_stays_inside_its_vocabulary() {
        for vocab_size in [10, 300, 152_064] {
            let tokenizer = byte_level().for_dummy_model(vocab_size).expect("binds");
            for id in (0..vocab_size as u32).step_by(7) {
                let text = std::str::from_utf8(tokenizer.piece(id)).expect("whole characters");
                assert!(!text.is_empty(), "id {id}");
            }
            let ids = tokenizer.encode("<|im_start|> hello 你", true).expect("encodes");
            assert!(ids.iter().all(|&id| (id as usize) < vocab_size));
        }
        let bytes = Tokenizer::bytes().for_dummy_model(152_064).expect("binds");
        assert_eq!(bytes.encode("hé", true).expect("encodes"), [104, 195, 169]);
        assert!((0..1000).all(|id| bytes.piece(id).len() == 1));
    }

    #[test]
    fn a_tokenizer_that_does_not_fit_is_refused_with_the_numbers() {
        let error = byte_level().for_model(200).expect_err("too small");
        assert_eq!(error.to_string(), "the tokenizer has token ids up to 263, but the model's vocabulary has 200 rows");
        assert!(byte_level().for_model(264).is_ok());
        assert!(byte_level().for_dummy_model(0).is_err());
    }

    #[test]
    fn missing_and_broken_files_are_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let missing = Tokenizer::load(dir.path()).expect_err("nothing there").to_string();
        assert!(missing.contains("tokenizer.json") && missing.contains("checkpoint"), "{missing}");
        std::fs::write(dir.path().join("tokenizer.json"), "{").expect("writes");
        let broken = Tokenizer::load(dir.path()).expect_err("not JSON").to_string();
        assert!(broken.contains("is not a valid tokenizer.json"), "{broken}");
    }
}

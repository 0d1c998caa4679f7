//! Exact token counts where a model's tokenizer is configured.
//!
//! A prompt that a template makes of messages has some tokens more than its texts: what is counted there is still the better
//! estimate, and is not called exact. Counting takes time, so long texts are left to the estimate.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use openai::Peek;
use tokenizers::Tokenizer;

use crate::config::Config;
use crate::mistakes::Mistake;

/// From here on counting is kept from those that share the thread.
pub const INLINE_BYTES_MAX: usize = 4 << 10;

/// Tokenizers by model.
#[derive(Default)]
pub struct Tokenizers {
    by_model: HashMap<String, Loaded>,
}

#[derive(Clone)]
struct Loaded {
    tokenizer: Arc<Tokenizer>,
    text_bytes_max: u64,
    file: (PathBuf, Option<SystemTime>),
}

impl Tokenizers {
    /// Those of a configuration; files that have not changed since `before` are not read again.
    ///
    /// # Errors
    /// Which file is none.
    pub fn of(config: &Config, before: &Self) -> Result<Self, Mistake> {
        let mut by_model = HashMap::new();
        for (i, model) in config.models.iter().enumerate() {
            let wrong = |what: String| Mistake::new(&[&"models", &i, &"tokenizer"], what);
            let path = &model.tokenizer;
            let changed = std::fs::metadata(path).and_then(|m| m.modified()).ok();
            let file = (path.clone(), changed);
            let known = before.by_model.values().find(|l| l.file == file && changed.is_some());
            let tokenizer = match known {
                Some(known) => Arc::clone(&known.tokenizer),
                None => Arc::new(Tokenizer::from_file(path).map_err(|e| wrong(format!("{}: {e}", path.display())))?),
            };
            let loaded = Loaded { tokenizer, text_bytes_max: model.tokenizer_bytes_max, file };
            by_model.insert(model.name.clone(), loaded);
        }
        Ok(Self { by_model })
    }

    /// Whether any model has one.
    pub fn are_some(&self) -> bool {
        !self.by_model.is_empty()
    }

    /// Tokens of a request's texts; `None` without a tokenizer for its model, or if they are too long for it.
    pub fn count(&self, peek: &Peek<'_>, generates: bool) -> Option<u64> {
        let loaded = self.by_model.get(peek.model.as_deref()?)?;
        if peek.prompt.text_bytes > loaded.text_bytes_max {
            return None;
        }
        let (mut tokens, special) = (Some(0), peek.is_plain(generates));
        peek.each_text(|text| {
            let counted = loaded.tokenizer.encode_fast(text, special).ok();
            tokens = tokens.zip(counted).map(|(sum, counted)| sum + counted.len() as u64);
        });
        tokens
    }
}

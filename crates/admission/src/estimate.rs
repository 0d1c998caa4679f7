//! Tokens of a text before anyone has counted them: bytes a token, learned for each model from what engines report.

use std::collections::HashMap;

/// Before anything is learned: the usual figure for English and byte-pair vocabularies of 100 k and more.
const BYTES_PER_TOKEN: f64 = 4.0;
/// Tokens taken for a picture, sound or file: the order of what common vision encoders make of one.
const MEDIA_TOKENS: u64 = 1024;
/// Part of the new in the learned: some tens of answers.
const LEARN: f64 = 0.05;
/// Texts below this teach nothing: the chat template outweighs them.
const TEXT_BYTES_MIN: u64 = 64;
/// Models remembered.
const MODELS_MAX: usize = 256;

/// What is known of a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// Bytes of text a token.
    pub bytes_per_token: f64,
    /// Mean relative error of recent estimates, 0.1 being 10 %.
    pub error: f64,
    /// Answers learned from.
    pub samples: u64,
}

impl Default for Estimate {
    fn default() -> Self {
        Self { bytes_per_token: BYTES_PER_TOKEN, error: 0.0, samples: 0 }
    }
}

impl Estimate {
    /// Tokens of `text_bytes` and `media` beside `tokens` that are known.
    pub fn tokens(&self, tokens: u64, text_bytes: u64, media: u64) -> u64 {
        let text = (text_bytes as f64 / self.bytes_per_token).ceil() as u64;
        tokens.saturating_add(text).saturating_add(media.saturating_mul(MEDIA_TOKENS))
    }
}

/// Estimates of all models.
#[derive(Debug, Default)]
pub struct Estimator {
    models: HashMap<String, Estimate>,
}

impl Estimator {
    /// What is known of `model`.
    pub fn of(&self, model: &str) -> Estimate {
        self.models.get(model).copied().unwrap_or_default()
    }

    /// An engine counted `tokens` for `text_bytes` of text alone.
    pub fn learn(&mut self, model: &str, text_bytes: u64, tokens: u64) {
        if text_bytes < TEXT_BYTES_MIN || tokens == 0 {
            return;
        }
        if !self.models.contains_key(model) && self.models.len() >= MODELS_MAX {
            return;
        }
        let known = self.models.entry(model.to_owned()).or_default();
        let guess = text_bytes as f64 / known.bytes_per_token;
        let error = (guess - tokens as f64).abs() / tokens as f64;
        // The first answers count for more: what was assumed before them is no knowledge.
        let part = LEARN.max(1.0 / (known.samples + 1) as f64);
        known.bytes_per_token += (text_bytes as f64 / tokens as f64 - known.bytes_per_token) * part;
        // One absurd count must not make everything free or endless.
        known.bytes_per_token = known.bytes_per_token.clamp(0.25, 64.0);
        known.error += (error - known.error) * part;
        known.samples += 1;
    }

    /// All models with what is known of them.
    pub fn all(&self) -> impl Iterator<Item = (&str, Estimate)> {
        self.models.iter().map(|(name, e)| (name.as_str(), *e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn learns_each_model_and_says_how_wrong_it_is() {
        let mut estimator = Estimator::default();
        assert_eq!(estimator.of("m").tokens(3, 401, 1), 3 + 101 + 1024);
        for _ in 0..200 {
            estimator.learn("m", 3000, 1000);
            estimator.learn("tiny", 10, 10);
        }
        let known = estimator.of("m");
        assert!((known.bytes_per_token - 3.0).abs() < 0.01 && known.error < 0.01, "{known:?}");
        assert_eq!(estimator.of("tiny"), Estimate::default());
        estimator.learn("m", 3000, 500);
        assert!(estimator.of("m").error > 0.04, "{:?}", estimator.of("m"));
        for i in 0..1000 {
            estimator.learn(&format!("m{i}"), 1000, 100);
        }
        assert!(estimator.all().count() <= MODELS_MAX);
    }
}

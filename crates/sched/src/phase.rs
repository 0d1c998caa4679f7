//! Which phase of serving an operator belongs to.
//!
//! The attention operator says it outright: its host-side lengths tell how many query tokens each sequence contributes
//! (see [`crate::cost::AttentionBatch`]). Everything else on the stream inherits the phase of the last attention
//! operator. At the seam, between the first operator of a step and its first attention, the token count is weak evidence:
//! a lookup or product over as many rows as the last attention had tokens continues its phase; a row count that no decode
//! batch reaches means a prompt.

use crate::cost::{attention_batch, lookup_tokens, product_rows};
use acl_abi::OpCall;

/// Rows from which a product counts as prompt processing before any attention was seen. Engines decode at most a few
/// hundred sequences at once (vLLM's default limit is 256).
const PREFILL_ROWS_MIN: u64 = 512;
/// Rows up to which a lookup counts as decode before any attention was seen. Prompts are rarely as short.
const DECODE_ROWS_MAX: u64 = 8;

/// Phase of serving.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// No evidence yet. Never held back.
    #[default]
    Unknown,
    /// Prompt processing: some sequence contributes more than one query token, none is decoding.
    Prefill,
    /// Every sequence contributes one query token.
    Decode,
    /// Both kinds of sequence in one batch (chunked prefill).
    Mixed,
}

impl Phase {
    /// Every phase, in the order of [`Phase::index`].
    pub const ALL: [Self; 4] = [Self::Unknown, Self::Prefill, Self::Decode, Self::Mixed];

    /// Index into per-phase tables of four.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Lower-case name, as metrics show it.
    pub const fn name(self) -> &'static str {
        ["unknown", "prefill", "decode", "mixed"][self as usize]
    }
}

/// Phase that an attention operator shows; `None` for other operators and for batches without a sequence.
pub fn attention_phase(call: &OpCall) -> Option<Phase> {
    let batch = attention_batch(call)?;
    match (batch.prefilling, batch.decoding) {
        (0, 0) => None,
        (0, _) => Some(Phase::Decode),
        (_, 0) => Some(Phase::Prefill),
        _ => Some(Phase::Mixed),
    }
}

/// Phase of one stream, remembered between attention operators.
#[derive(Clone, Debug, Default)]
pub struct Classifier {
    current: Phase,
    /// Query tokens and sequences of the last attention operator, 0 before the first.
    tokens: u64,
    sequences: u64,
}

impl Classifier {
    /// Phase of `call`, given what the stream ran before it.
    pub fn observe(&mut self, call: &OpCall) -> Phase {
        if let Some(batch) = attention_batch(call) {
            if let Some(phase) = attention_phase(call) {
                self.current = phase;
                self.tokens = batch.query_tokens;
                self.sequences = batch.prefilling + batch.decoding;
            }
        } else if let Some(rows) = lookup_tokens(call) {
            self.current = self.guess(rows, true);
        } else if let Some(rows) = product_rows(call) {
            self.current = self.guess(rows, false);
        }
        self.current
    }

    /// Phase of the last operator; what a copy on this stream is counted under.
    pub fn current(&self) -> Phase {
        self.current
    }

    /// Weak evidence: `rows` tokens enter a product, or a lookup that begins a step.
    fn guess(&self, rows: u64, begins_step: bool) -> Phase {
        // The body of the step has `tokens` rows, its output layer one a sequence.
        if self.tokens > 0 && (rows == self.tokens || (!begins_step && rows == self.sequences)) {
            return self.current;
        }
        if rows >= PREFILL_ROWS_MIN {
            return Phase::Prefill;
        }
        match self.current {
            // A decode batch changes by a few sequences between steps; one that more than doubles is a prompt.
            Phase::Decode if begins_step && rows > 2 * self.sequences + DECODE_ROWS_MAX => Phase::Prefill,
            // A step that begins with hardly any tokens after a prompt is decode.
            Phase::Unknown | Phase::Prefill | Phase::Mixed if begins_step && rows <= DECODE_ROWS_MAX => Phase::Decode,
            current => current,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calls::{Batch, Build, attention, mm, step};
    use crate::model::Model;
    use acl_abi::DataType;

    const MODEL: Model = Model { layers: 2, ..Model::QWEN2_5_7B };

    #[test]
    fn attention_shapes_tell_the_phase() {
        let paged = |queries: &[u64], contexts: &[u64]| {
            attention(&MODEL, &Batch { queries: queries.to_vec(), contexts: contexts.to_vec(), paged: true })
        };
        let dense = |name, layout, query: &[i64], key: &[i64]| {
            Build::new(name)
                .tensor("query", DataType::BF16, query)
                .tensor("key", DataType::BF16, key)
                .tensor("value", DataType::BF16, key)
                .int("headNum", 8)
                .str("inputLayout", layout)
                .call()
        };
        for (name, call, want) in [
            ("first prefill", attention(&MODEL, &Batch::prefill(17)), Some(Phase::Prefill)),
            ("two prompts", paged(&[5, 9], &[5, 9]), Some(Phase::Prefill)),
            ("prefix hit", paged(&[5], &[133]), Some(Phase::Prefill)),
            ("decode of one", paged(&[1], &[40]), Some(Phase::Decode)),
            ("decode of many", paged(&[1; 32], &[2048; 32]), Some(Phase::Decode)),
            ("padded graph", paged(&[1; 4], &[9, 7, 0, 0]), Some(Phase::Decode)),
            ("empty graph", paged(&[1; 4], &[0; 4]), None),
            ("chunked prefill with decode", paged(&[1, 1, 64], &[80, 90, 64]), Some(Phase::Mixed)),
            (
                "sdpa prompt",
                dense("aclnnFlashAttentionScore", "BNSD", &[1, 8, 30, 64], &[1, 2, 30, 64]),
                Some(Phase::Prefill),
            ),
            (
                "sdpa token",
                dense("aclnnFlashAttentionScore", "BNSD", &[1, 8, 1, 64], &[1, 2, 31, 64]),
                Some(Phase::Decode),
            ),
            ("bsh token", dense("aclnnFlashAttentionScore", "BSH", &[3, 1, 512], &[3, 31, 128]), Some(Phase::Decode)),
            ("not attention", mm(4, 8, 8), None),
        ] {
            assert_eq!(attention_phase(&call), want, "{name}");
        }
    }

    #[test]
    fn every_operator_of_a_known_step_has_its_phase() {
        let mut classifier = Classifier::default();
        // One step each of different phases on one stream, as an engine without chunked prefill alternates them.
        for (batch, want) in [
            (Batch::prefill(1024), Phase::Prefill),
            (Batch::decode(1, 1025), Phase::Decode),
            (Batch::decode(2, 1025), Phase::Decode),
            (Batch::prefill(300), Phase::Prefill),
            (Batch::decode(3, 900), Phase::Decode),
            (Batch::decode(5, 900), Phase::Decode),
        ] {
            for call in step(&MODEL, &batch, batch.queries.len() as u64) {
                assert_eq!(classifier.observe(&call), want, "{} of {:?}", call.op.name(), batch.queries);
            }
        }
    }

    #[test]
    fn rows_are_weak_evidence_before_the_first_attention() {
        for (rows, want) in [(1, Phase::Unknown), (64, Phase::Unknown), (511, Phase::Unknown), (512, Phase::Prefill)] {
            assert_eq!(Classifier::default().observe(&mm(rows, 8, 8)), want, "{rows} rows");
        }
    }

    #[test]
    fn attention_overrules_a_wrong_guess() {
        let mut classifier = Classifier::default();
        assert_eq!(classifier.observe(&mm(600, 8, 8)), Phase::Prefill);
        assert_eq!(classifier.observe(&attention(&MODEL, &Batch::decode(600, 10))), Phase::Decode);
        assert_eq!(classifier.observe(&mm(600, 8, 8)), Phase::Decode, "the batch has 600 rows now");
    }
}

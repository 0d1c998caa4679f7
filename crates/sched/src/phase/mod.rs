//! Which phase of serving an operator belongs to, which step, and which requests.
//!
//! The attention operator says it outright: its host-side lengths tell how many query tokens each sequence contributes
//! (see [`crate::cost::AttentionBatch`]); attention that is spelt out as product, softmax and product tells it by the shape of
//! its scores. Everything else on the stream inherits the phase of the last attention. [`Classifier`] keeps that for a
//! stream and cuts what runs there into steps; [`Requests`] keeps what the gateway said, as long as it keeps saying
//! something, and tells which of the requests a step works on.
//!
//! What shapes cannot tell: the last token of a prompt that is processed in pieces looks like a token of decode. With hints it
//! is told by the prompt's length.

mod classifier;
mod requests;

pub use classifier::{Classifier, Step};
pub use requests::{Request, Requests, Sequence};

use crate::cost::{self, AttentionBatch, Evidence};
use acl_abi::OpCall;

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

impl Phase {
    /// Of a step with so many sequences that decode and that do not; `None` for one without any.
    pub const fn of(decoding: u64, prefilling: u64) -> Option<Self> {
        match (prefilling, decoding) {
            (0, 0) => None,
            (0, _) => Some(Self::Decode),
            (_, 0) => Some(Self::Prefill),
            _ => Some(Self::Mixed),
        }
    }
}

/// Phase that an attention operator shows; `None` for other operators and for batches without a sequence.
pub fn attention_phase(call: &OpCall) -> Option<Phase> {
    attention_batch(call).and_then(|batch| Phase::of(batch.decoding, batch.prefilling))
}

/// What an attention operator works on; `None` for other operators and for batches without a sequence.
pub fn attention_batch(call: &OpCall) -> Option<AttentionBatch> {
    match cost::evidence(call) {
        Evidence::Attention(batch) => Some(batch).filter(|b| Phase::of(b.decoding, b.prefilling).is_some()),
        _ => None,
    }
}

/// Every sequence that an attention operator works on, appended to `into`.
pub fn sequences(call: &OpCall, into: &mut Vec<Sequence>) {
    cost::sequences(call, |new, context| into.push(Sequence { new, context }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calls::{Batch, Build, attention, mm};
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
            ("prompt of one token", paged(&[1], &[1]), Some(Phase::Prefill)),
            ("decode of one", paged(&[1], &[40]), Some(Phase::Decode)),
            ("decode beside padding of one key", paged(&[1, 1], &[40, 1]), Some(Phase::Decode)),
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
}

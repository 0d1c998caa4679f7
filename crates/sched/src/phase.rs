//! Which phase of serving an operator belongs to.

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

/// Phase of one stream, remembered between attention operators.
#[derive(Clone, Debug, Default)]
pub struct Classifier {
    current: Phase,
}

impl Classifier {
    /// Phase of `call`, given what the stream ran before it.
    pub fn observe(&mut self, _call: &OpCall) -> Phase {
        self.current
    }

    /// Phase of the last operator; what a copy on this stream is counted under.
    pub fn current(&self) -> Phase {
        self.current
    }
}

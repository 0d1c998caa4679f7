//! Phase of one stream's operators, and where its steps begin and end.
//!
//! A step is a pass through the model. It begins with a look-up of embeddings that follows attention; on a stream that
//! never looks any up, where the host waits for what ran so far. A stretch without attention is no step.
//!
//! Between the first operator of a step and its first attention the phase is a guess. A look-up whose indices have a row a
//! sequence tells it; else the number of tokens is weak evidence: as many as the last attention had continue its phase, and
//! more than any decode batch has mean a prompt.

use super::Phase;
use crate::Nanos;
use crate::cost::{AttentionBatch, Evidence, evidence};
use acl_abi::OpCall;

/// Rows from which a product counts as prompt processing before any attention was seen. Engines decode at most a few
/// hundred sequences at once (vLLM's default limit is 256).
const PREFILL_ROWS_MIN: u64 = 512;
/// Rows up to which a lookup counts as decode before any attention was seen. Prompts are rarely as short.
const DECODE_ROWS_MAX: u64 = 8;

/// A pass through the model, as far as it has been posted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Phase that its attention shows, or that hints told.
    pub phase: Phase,
    /// Its operators, by the phase ([`Phase::index`]) that each was queued under: those before the first attention by a
    /// guess.
    pub operators: [u32; 4],
    /// Of them, attention.
    pub attention: u32,
    /// Sequences that decode.
    pub decoding: u64,
    /// Sequences whose prompt is processed.
    pub prefilling: u64,
    /// New tokens of all sequences.
    pub query_tokens: u64,
    /// Tokens that these look at.
    pub key_tokens: u64,
    /// When its first operator was posted.
    pub began: Nanos,
    /// When its last operator so far was.
    pub last: Nanos,
    looked_up: bool,
    /// Query tokens of its first attention as it was posted.
    posted_tokens: u64,
}

impl Step {
    /// Its attention turned out to work on `batch`, of which so many sequences decode and so many do not: a captured graph's gets
    /// its lengths when the step has been posted. Phases that operators were queued under stay.
    pub fn amend(&mut self, batch: &AttentionBatch, (decoding, prefilling): (u64, u64)) {
        self.phase = Phase::of(decoding, prefilling).unwrap_or(self.phase);
        (self.decoding, self.prefilling) = (decoding, prefilling);
        (self.query_tokens, self.key_tokens) = (batch.query_tokens, batch.key_tokens);
    }
}

/// Phase of one stream, remembered between attention operators.
#[derive(Clone, Debug, Default)]
pub struct Classifier {
    current: Phase,
    /// Query tokens and sequences of the last attention operator, 0 before the first.
    tokens: u64,
    sequences: u64,
    /// Shape of the last products that may be attention scores.
    scores: Option<(u64, u64)>,
    /// Steps begin with a look-up.
    looks_up: bool,
    step: Step,
    /// The open step's first attention was the last operator.
    attended: bool,
    finished: Option<Step>,
    /// Steps that have ended.
    serial: u64,
}

impl Classifier {
    /// Phase of `call`, posted at `now`, given what the stream ran before it.
    pub fn observe(&mut self, now: Nanos, call: &OpCall) -> Phase {
        self.attended = false;
        match evidence(call) {
            Evidence::LookUp { tokens, each } => {
                if self.step.attention > 0 {
                    self.finish();
                }
                (self.looks_up, self.step.looked_up) = (true, true);
                self.current = match each {
                    Some(1) => Phase::Decode,
                    Some(_) => Phase::Prefill,
                    None => self.guess(tokens, true),
                };
            }
            Evidence::Attention(batch) => self.attend(&batch),
            Evidence::Scores { queries, keys } => self.scores = Some((queries, keys)),
            Evidence::Softmax { sequences, queries, keys } if self.scores == Some((queries, keys)) => {
                let decodes = queries == 1 && keys > 1;
                let (decoding, prefilling) = if decodes { (sequences, 0) } else { (0, sequences) };
                let (query_tokens, key_tokens) = (sequences * queries, sequences * keys);
                let batch = AttentionBatch { decoding, prefilling, query_tokens, key_tokens, ..Default::default() };
                self.attend(&batch);
            }
            // Later products of a step have as many rows as experts or heads make of its tokens.
            Evidence::Rows(rows) if self.step.attention == 0 && !self.step.looked_up => {
                self.current = self.guess(rows, false);
            }
            Evidence::Rows(_) | Evidence::Softmax { .. } | Evidence::None => {}
        }
        let step = &mut self.step;
        if step.operators == [0; 4] {
            step.began = now;
        }
        step.last = now;
        step.operators[self.current.index()] += 1;
        self.current
    }

    /// Phase of the last operator; what a copy on this stream is counted under.
    pub fn current(&self) -> Phase {
        self.current
    }

    /// The last operator was the first attention of a step: whoever knows its requests may say so now
    /// ([`Self::correct`]).
    pub fn attended(&self) -> bool {
        self.attended
    }

    /// Hints say that so many of the open step's sequences decode, and so many do not; its phase.
    pub fn correct(&mut self, decoding: u64, prefilling: u64) -> Phase {
        if let Some(phase) = Phase::of(decoding, prefilling) {
            let count = &mut self.step.operators;
            count[self.current.index()] = count[self.current.index()].saturating_sub(1);
            count[phase.index()] += 1;
            (self.step.phase, self.current) = (phase, phase);
            (self.step.decoding, self.step.prefilling) = (decoding, prefilling);
        }
        self.current
    }

    /// Number of the open step, among those of its stream.
    pub fn serial(&self) -> u64 {
        self.serial
    }

    /// As [`Step::amend`], of the open step.
    pub fn amend(&mut self, batch: &AttentionBatch, sequences: (u64, u64)) {
        let before = self.step.phase;
        self.step.amend(batch, sequences);
        if self.current == before {
            self.current = self.step.phase;
        }
    }

    /// The host waits for what was posted so far.
    pub fn boundary(&mut self) {
        if !self.looks_up && self.step.attention > 0 {
            self.finish();
        }
    }

    /// The open step, once it has seen attention.
    pub fn step(&self) -> Option<&Step> {
        Some(&self.step).filter(|s| s.attention > 0)
    }

    /// The step that the last operator or boundary has ended.
    pub fn take_finished(&mut self) -> Option<Step> {
        self.finished.take()
    }

    fn finish(&mut self) {
        self.finished = Some(std::mem::take(&mut self.step));
        self.serial += 1;
    }

    fn attend(&mut self, batch: &AttentionBatch) {
        let Some(phase) = Phase::of(batch.decoding, batch.prefilling) else { return };
        if self.step.attention > 0 && !self.step.looked_up && batch.query_tokens != self.step.posted_tokens {
            self.finish();
        }
        let step = &mut self.step;
        if step.attention == 0 {
            step.phase = phase;
            (step.decoding, step.prefilling) = (batch.decoding, batch.prefilling);
            (step.query_tokens, step.key_tokens) = (batch.query_tokens, batch.key_tokens);
            step.posted_tokens = batch.query_tokens;
            self.attended = true;
        }
        step.attention += 1;
        // The layers of a step work on the same tokens, though some look at fewer keys.
        self.current = if batch.query_tokens == step.posted_tokens { step.phase } else { phase };
        self.tokens = batch.query_tokens;
        self.sequences = batch.prefilling + batch.decoding;
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

    fn run(classifier: &mut Classifier, calls: &[OpCall]) -> Vec<Step> {
        let mut steps = Vec::new();
        for call in calls {
            classifier.observe(7, call);
            steps.extend(classifier.take_finished());
        }
        steps
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
                assert_eq!(classifier.observe(0, &call), want, "{} of {:?}", call.op.name(), batch.queries);
            }
        }
    }

    #[test]
    fn rows_are_weak_evidence_before_the_first_attention() {
        for (rows, want) in [(1, Phase::Unknown), (64, Phase::Unknown), (511, Phase::Unknown), (512, Phase::Prefill)] {
            assert_eq!(Classifier::default().observe(0, &mm(rows, 8, 8)), want, "{rows} rows");
        }
    }

    #[test]
    fn attention_overrules_a_wrong_guess() {
        let mut classifier = Classifier::default();
        assert_eq!(classifier.observe(0, &mm(600, 8, 8)), Phase::Prefill);
        assert_eq!(classifier.observe(0, &attention(&MODEL, &Batch::decode(600, 10))), Phase::Decode);
        assert_eq!(classifier.observe(0, &mm(600, 8, 8)), Phase::Decode, "the batch has 600 rows now");
    }

    #[test]
    fn a_look_up_after_attention_begins_the_next_step() {
        let mut classifier = Classifier::default();
        let batches = [Batch::prefill(1024), Batch::decode(4, 900), Batch::prefill(200), Batch::decode(5, 900)];
        let calls: Vec<OpCall> = batches.iter().flat_map(|b| step(&MODEL, b, b.queries.len() as u64)).collect();
        let mut steps = run(&mut classifier, &calls);
        steps.extend(classifier.step().copied());
        let phases: Vec<Phase> = steps.iter().map(|s| s.phase).collect();
        assert_eq!(phases, [Phase::Prefill, Phase::Decode, Phase::Prefill, Phase::Decode]);
        for (found, batch) in steps.iter().zip(&batches) {
            let posted = step(&MODEL, batch, batch.queries.len() as u64).len() as u32;
            assert_eq!((found.operators.iter().sum::<u32>(), found.attention), (posted, 2));
            assert_eq!(found.operators[found.phase.index()], posted, "every operator had the step's phase");
            assert_eq!((found.query_tokens, found.began), (batch.tokens(), 7));
        }
    }

    #[test]
    fn without_look_ups_a_step_ends_where_the_host_waits() {
        let mut classifier = Classifier::default();
        let calls: Vec<OpCall> = step(&MODEL, &Batch::decode(4, 900), 4).drain(3..).collect();
        for i in 0..3 {
            assert!(run(&mut classifier, &calls).is_empty(), "{i}");
            classifier.boundary();
            assert_eq!(classifier.take_finished().map(|s| (s.phase, s.attention)), Some((Phase::Decode, 2)));
            classifier.boundary();
            assert_eq!(classifier.take_finished(), None, "nothing ran since");
        }
    }

    #[test]
    fn rows_that_experts_and_heads_make_are_no_prompt() {
        let mut classifier = Classifier::default();
        classifier.observe(0, &attention(&MODEL, &Batch::decode(64, 900)));
        assert_eq!(classifier.observe(0, &mm(64 * 8, 8, 8)), Phase::Decode, "eight experts a token");
    }

    #[test]
    fn attention_in_single_operators_tells_by_its_scores() {
        let eager = |batch: i64, queries: i64, keys: i64| {
            let tensor = |b: Build, name, dims: &[i64]| b.tensor(name, DataType::F32, dims);
            let product = |left: &[i64], right: &[i64], out: &[i64]| {
                let b = tensor(Build::new("aclnnMatmul"), "self", left);
                tensor(tensor(b, "mat2", right), "out", out).call()
            };
            let softmax = tensor(Build::new("aclnnSoftmax"), "self", &[batch, 8, queries, keys]).int("dim", -1);
            [
                product(&[batch, 8, queries, 64], &[batch, 8, 64, keys], &[batch, 8, queries, keys]),
                tensor(softmax, "out", &[batch, 8, queries, keys]).call(),
                product(&[batch, 8, queries, keys], &[batch, 8, keys, 64], &[batch, 8, queries, 64]),
            ]
        };
        for (batch, queries, keys, want) in [
            (2, 30, 30, Phase::Prefill),
            (128, 1, 31, Phase::Decode),
            (1, 1, 1, Phase::Prefill),
            (3, 4, 40, Phase::Prefill),
        ] {
            let mut classifier = Classifier::default();
            let phases: Vec<Phase> = eager(batch, queries, keys).iter().map(|c| classifier.observe(0, c)).collect();
            assert_eq!(phases[1..], [want, want], "{batch} of {queries} queries and {keys} keys");
            assert_eq!(classifier.step().map(|s| s.query_tokens), Some((batch * queries) as u64));
        }
        // A router's, or a sampler's.
        let mut classifier = Classifier::default();
        let gate =
            Build::new("aclnnSoftmax").tensor("self", DataType::F32, &[30, 8]).tensor("out", DataType::F32, &[30, 8]);
        assert_eq!(classifier.observe(0, &gate.call()), Phase::Unknown);
    }

    #[test]
    fn indices_with_a_row_a_sequence_tell_before_attention() {
        let look_up = |dims: &[i64]| Build::new("aclnnEmbedding").tensor("indices", DataType::I64, dims).call();
        for (dims, want) in [(&[4i64, 1][..], Phase::Decode), (&[1, 9], Phase::Prefill), (&[64], Phase::Unknown)] {
            assert_eq!(Classifier::default().observe(0, &look_up(dims)), want, "{dims:?}");
        }
    }

    #[test]
    fn what_hints_say_holds_for_the_whole_step() {
        let mut classifier = Classifier::default();
        let piece = Batch::decode(1, 33);
        let mut phases = Vec::new();
        for call in step(&MODEL, &piece, 1) {
            let mut phase = classifier.observe(0, &call);
            if classifier.attended() {
                assert_eq!(phase, Phase::Decode, "by its shape");
                phase = classifier.correct(0, 1);
            }
            phases.push(phase);
        }
        let before = phases.iter().position(|&p| p == Phase::Prefill).expect("corrected");
        assert!(phases[before..].iter().all(|&p| p == Phase::Prefill), "{phases:?}");
        let step = classifier.step().expect("open");
        assert_eq!((step.phase, step.prefilling, step.decoding), (Phase::Prefill, 1, 0));
        assert_eq!(step.operators[Phase::Prefill.index()] as usize, phases.len() - before);
    }
}

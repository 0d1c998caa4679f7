//! Which sequences run in the next step, and which KV blocks they hold: a pure state machine.
//!
//! Two loops drive it, one for prefill steps and one for decode steps, each with at most one step in flight; both call
//! it under one lock. Or one loop does, whose steps hold both ([`Scheduler::next_mixed`]). A sequence moves
//!
//! ```text
//!  waiting ──admitted──▶ prefilling ──last prompt token──▶ ready ──slot free──▶ running ──▶ finished
//!     ▲                      │                               │                     │
//!     └───────────────────── preempted: blocks given back, tokens kept ────────────┘
//! ```
//!
//! Order is arrival order everywhere: admission, decode slots, blocks. When blocks run out, the youngest sequence that
//! holds any loses them and waits again; later its prompt *and* what it generated are prefilled in one go, so its output
//! does not change. An older sequence never loses blocks to a younger one, so the oldest always advances.
//!
//! **Invariants.**
//! - A block is held by at most one sequence. Blocks of a sequence that is part of a step in flight are not given back
//!   before that step is over: an abort or a preemption in between takes effect then.
//! - No clock, no channel, no device; what a request is beyond its tokens is the payload `P`.

use std::collections::{BTreeSet, HashMap};

use crate::kv::{BlockPool, blocks_for};

use super::plan::StepPlan;
use super::request::{FinishReason, Usage};

/// Names a sequence; grows with arrival.
pub type SeqId = u64;

/// Bounds of the scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most sequences that decode.
    pub max_num_seqs: usize,
    /// Sequences beyond those that may be prefilled and parked.
    pub prefill_ahead: usize,
    /// Tokens of a block.
    pub block_size: usize,
    /// Most tokens of a prefill step; without chunking, a longer prompt runs alone.
    pub max_num_batched_tokens: usize,
    /// Whether a prompt may be split over steps.
    pub chunked: bool,
    /// Most sequences of a prefill step.
    pub max_prefill_seqs: usize,
}

/// One block in this many stays free at admission, so that running sequences can grow a little before anyone is preempted.
/// vLLM keeps the same share.
const ADMISSION_RESERVE: usize = 100;

/// What a request brings besides its tokens.
pub trait Payload: Clone {
    /// True if the token after `generated` others is chosen on the host.
    fn wants_logits(&self, generated: usize) -> bool;
}

/// When a sequence ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopRule {
    /// After this many generated tokens.
    pub max_tokens: usize,
    /// At any of these.
    pub end_tokens: Vec<u32>,
}

/// A sequence's part in a step.
#[derive(Clone, Debug)]
pub struct StepSequence<P> {
    /// Sequence.
    pub id: SeqId,
    /// Its payload.
    pub payload: P,
    /// New tokens it runs.
    pub new: usize,
    /// Tokens it generated so far: the position of the next in its output.
    pub generated: usize,
    /// True if its next token comes out of this step.
    pub output: bool,
    /// Tokens of its prompt.
    pub prompt: usize,
    /// Tokens in the cache after the step.
    pub context: usize,
    /// The step works on its prompt, or on all it had before it lost its blocks.
    pub prefilling: bool,
}

/// A step: arrays for the device, and whose they are.
#[derive(Clone, Debug)]
pub struct Step<P> {
    /// Arrays.
    pub plan: StepPlan,
    /// Sequences in the order of the plan.
    pub sequences: Vec<StepSequence<P>>,
}

impl<P> Default for Step<P> {
    fn default() -> Self {
        Self { plan: StepPlan::default(), sequences: Vec::new() }
    }
}

impl<P> Step<P> {
    /// Sequences whose next token comes out of this step, in the order of `plan.rows`.
    pub fn outputs(&self) -> impl Iterator<Item = &StepSequence<P>> {
        self.sequences.iter().filter(|s| s.output)
    }
}

/// What a new token means for its sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The sequence was aborted or preempted meanwhile; the token does not exist.
    Dropped,
    /// The sequence goes on.
    Continue,
    /// The sequence is over. An end token itself is not part of the output.
    Finish {
        /// Why.
        reason: FinishReason,
        /// Token counts.
        usage: Usage,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Waiting,
    Prefilling,
    Ready,
    Running,
}

/// What happens to a sequence when its step in flight is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doom {
    Abort,
    Preempt,
}

#[derive(Debug)]
struct Sequence<P> {
    payload: P,
    tokens: Vec<u32>,
    prompt: usize,
    computed: usize,
    blocks: Vec<u32>,
    stop: StopRule,
    place: Place,
    in_flight: bool,
    doom: Option<Doom>,
}

impl<P> Sequence<P> {
    fn usage(&self) -> Usage {
        Usage { prompt_tokens: self.prompt, completion_tokens: self.tokens.len() - self.prompt }
    }
}

/// Totals since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Tokens generated.
    pub tokens_generated: u64,
    /// Tokens run through prefill.
    pub tokens_prefilled: u64,
    /// Preemptions.
    pub preemptions: u64,
    /// Sequences finished.
    pub finished: u64,
    /// Sequences aborted.
    pub aborted: u64,
    /// Sequences failed.
    pub failed: u64,
}

/// The state machine.
#[derive(Debug)]
pub struct Scheduler<P> {
    limits: Limits,
    pool: BlockPool,
    sequences: HashMap<SeqId, Sequence<P>>,
    waiting: BTreeSet<SeqId>,
    prefilling: BTreeSet<SeqId>,
    ready: BTreeSet<SeqId>,
    running: BTreeSet<SeqId>,
    next_id: SeqId,
    /// A running sequence waits for blocks of a preempted one that is in flight: nobody else is admitted until it has them.
    starved: bool,
    counters: Counters,
}

impl<P: Payload> Scheduler<P> {
    /// No sequences, `blocks` free blocks.
    pub fn new(limits: Limits, blocks: usize) -> Self {
        Self {
            limits,
            pool: BlockPool::new(blocks),
            sequences: HashMap::new(),
            waiting: BTreeSet::new(),
            prefilling: BTreeSet::new(),
            ready: BTreeSet::new(),
            running: BTreeSet::new(),
            next_id: 0,
            starved: false,
            counters: Counters::default(),
        }
    }

    /// Queues a sequence.
    ///
    /// # Panics
    /// If it could never run: an empty prompt, no token to generate, or more blocks than there are. Callers check first.
    pub fn submit(&mut self, payload: P, prompt: Vec<u32>, stop: StopRule) -> SeqId {
        assert!(!prompt.is_empty() && stop.max_tokens > 0, "a prompt of {} tokens", prompt.len());
        // The last token is never an input, so it needs no room.
        let blocks = blocks_for(prompt.len() + stop.max_tokens - 1, self.limits.block_size);
        assert!(blocks <= self.pool.total(), "{blocks} blocks of {}", self.pool.total());
        let id = self.next_id;
        self.next_id += 1;
        let sequence = Sequence {
            payload,
            prompt: prompt.len(),
            tokens: prompt,
            computed: 0,
            blocks: Vec::new(),
            stop,
            place: Place::Waiting,
            in_flight: false,
            doom: None,
        };
        self.sequences.insert(id, sequence);
        self.waiting.insert(id);
        id
    }

    /// Ends a sequence; its blocks are free at once, or when its step in flight is over. `None` if it is over already.
    pub fn abort(&mut self, id: SeqId) -> Option<(P, Usage)> {
        let sequence = self.sequences.get_mut(&id)?;
        if sequence.doom == Some(Doom::Abort) {
            return None;
        }
        let result = (sequence.payload.clone(), sequence.usage());
        self.counters.aborted += 1;
        if sequence.in_flight {
            sequence.doom = Some(Doom::Abort);
        } else {
            self.remove(id);
        }
        Some(result)
    }

    /// Fills `step` with the next prefill step; false if there is nothing to prefill now.
    pub fn next_prefill(&mut self, step: &mut Step<P>) -> bool {
        clear(step);
        self.add_prompts(step, self.limits.max_num_batched_tokens);
        self.finish_plan(step)
    }

    /// Fills `step` with the next decode step; false if no sequence can decode now.
    pub fn next_decode(&mut self, step: &mut Step<P>) -> bool {
        clear(step);
        self.add_decoding(step);
        self.finish_plan(step)
    }

    /// Fills `step` with every sequence that decodes and, as far as the token budget goes, pieces of prompts; false if there
    /// is neither. For one loop that runs all steps, with prompts split ([`Limits::chunked`]).
    pub fn next_mixed(&mut self, step: &mut Step<P>) -> bool {
        clear(step);
        self.add_decoding(step);
        self.add_prompts(step, self.limits.max_num_batched_tokens.saturating_sub(step.sequences.len()));
        self.finish_plan(step)
    }

    fn add_prompts(&mut self, step: &mut Step<P>, mut budget: usize) {
        let most = step.sequences.len() + self.limits.max_prefill_seqs;
        let started: Vec<SeqId> = self.prefilling.iter().copied().collect();
        for id in started {
            if budget == 0 || step.sequences.len() == most {
                break;
            }
            let new = self.remaining(id).min(budget);
            budget -= new;
            self.add(step, id, new);
        }
        while let Some(&id) = self.waiting.first() {
            let remaining = self.remaining(id);
            let alone = step.sequences.is_empty() && !self.limits.chunked;
            if step.sequences.len() == most
                || budget == 0
                || (remaining > budget && !self.limits.chunked && !alone)
                || !self.admit(id)
            {
                break;
            }
            let new = if self.limits.chunked { remaining.min(budget) } else { remaining };
            budget = budget.saturating_sub(new);
            self.add(step, id, new);
        }
    }

    fn add_decoding(&mut self, step: &mut Step<P>) {
        while self.running.len() < self.limits.max_num_seqs {
            let Some(id) = self.ready.pop_first() else { break };
            self.running.insert(id);
            self.sequence(id).place = Place::Running;
        }
        self.starved = false;
        let candidates: Vec<SeqId> = self.running.iter().copied().collect();
        for id in candidates {
            if self.running.contains(&id) && self.make_room(id) {
                self.add(step, id, 1);
            }
        }
    }

    /// Takes the results of a step: one token for each of [`Step::outputs`]. Appends one verdict for each.
    ///
    /// # Panics
    /// If the number of tokens differs.
    pub fn complete(&mut self, step: &Step<P>, tokens: &[u32], verdicts: &mut Vec<Verdict>) {
        let mut tokens = tokens.iter().copied();
        for part in &step.sequences {
            let token = if part.output { Some(tokens.next().expect("a token for each output")) } else { None };
            let verdict = self.complete_one(part, token);
            if part.output {
                verdicts.push(verdict);
            }
        }
        assert_eq!(tokens.next(), None, "more tokens than outputs");
    }

    /// Ends every sequence of a step that failed; returns those that were not aborted already.
    pub fn fail(&mut self, step: &Step<P>) -> Vec<P> {
        let mut failed = Vec::new();
        for part in &step.sequences {
            let Some(sequence) = self.sequences.get(&part.id) else { continue };
            if sequence.doom != Some(Doom::Abort) {
                failed.push(sequence.payload.clone());
                self.counters.failed += 1;
            }
            self.remove(part.id);
        }
        failed
    }

    /// Ends every sequence, in flight or not: for an engine that stops. Returns those that were not aborted already.
    pub fn drain(&mut self) -> Vec<P> {
        let mut ids: Vec<SeqId> = self.sequences.keys().copied().collect();
        ids.sort_unstable();
        let mut live = Vec::new();
        for id in ids {
            if self.sequence(id).doom != Some(Doom::Abort) {
                live.push(self.sequence(id).payload.clone());
                self.counters.failed += 1;
            }
            self.remove(id);
        }
        live
    }

    /// Sequences without blocks.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Sequences admitted that do not decode yet.
    pub fn prefilling(&self) -> usize {
        self.prefilling.len() + self.ready.len()
    }

    /// Sequences that decode.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Blocks: in all, free.
    pub fn blocks(&self) -> (usize, usize) {
        (self.pool.total(), self.pool.free())
    }

    /// Totals.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    fn sequence(&mut self, id: SeqId) -> &mut Sequence<P> {
        self.sequences.get_mut(&id).expect("sets name live sequences only")
    }

    fn remaining(&mut self, id: SeqId) -> usize {
        let sequence = self.sequence(id);
        sequence.tokens.len() - sequence.computed
    }

    /// Moves a waiting sequence to prefilling if a slot and blocks for all its tokens are free.
    fn admit(&mut self, id: SeqId) -> bool {
        let admitted = self.prefilling.len() + self.ready.len() + self.running.len();
        if self.starved || admitted >= self.limits.max_num_seqs + self.limits.prefill_ahead {
            return false;
        }
        let need = blocks_for(self.sequence(id).tokens.len(), self.limits.block_size);
        let idle = self.pool.free() == self.pool.total();
        let reserve = if idle { 0 } else { self.pool.total() / ADMISSION_RESERVE };
        if need + reserve > self.pool.free() {
            return false;
        }
        let mut blocks = Vec::with_capacity(need);
        let taken = self.pool.take(need, &mut blocks);
        debug_assert!(taken);
        self.waiting.remove(&id);
        self.prefilling.insert(id);
        let sequence = self.sequence(id);
        sequence.blocks = blocks;
        sequence.place = Place::Prefilling;
        true
    }

    /// Gives a running sequence the blocks for its next token, preempting younger ones. False if it must sit this step out.
    fn make_room(&mut self, id: SeqId) -> bool {
        loop {
            let block_size = self.limits.block_size;
            let sequence = self.sequences.get_mut(&id).expect("a running sequence");
            let need = blocks_for(sequence.tokens.len(), block_size) - sequence.blocks.len();
            if self.pool.take(need, &mut sequence.blocks) {
                return true;
            }
            let is_doomed = |s: &Sequence<P>| s.doom.is_some() && !s.blocks.is_empty();
            if self.sequences.values().any(is_doomed) {
                self.starved = true; // blocks are on their way back
                return false;
            }
            let holds = |set: &BTreeSet<SeqId>| set.last().copied();
            let victim =
                [holds(&self.prefilling), holds(&self.ready), holds(&self.running)].into_iter().flatten().max();
            let victim = victim.expect("the sequence itself holds blocks");
            if self.sequence(victim).in_flight {
                self.sequence(victim).doom = Some(Doom::Preempt);
                self.starved = true;
                return false;
            }
            self.preempt(victim);
            if victim == id {
                return false;
            }
        }
    }

    fn preempt(&mut self, id: SeqId) {
        self.counters.preemptions += 1;
        self.leave_place(id);
        self.waiting.insert(id);
        let sequence = self.sequences.get_mut(&id).expect("sets name live sequences only");
        self.pool.give_back(&mut sequence.blocks);
        sequence.place = Place::Waiting;
        sequence.computed = 0;
        sequence.doom = None;
    }

    fn leave_place(&mut self, id: SeqId) {
        let set = match self.sequence(id).place {
            Place::Waiting => &mut self.waiting,
            Place::Prefilling => &mut self.prefilling,
            Place::Ready => &mut self.ready,
            Place::Running => &mut self.running,
        };
        let was_there = set.remove(&id);
        debug_assert!(was_there, "sequence {id} is in the set of its place");
    }

    fn remove(&mut self, id: SeqId) {
        self.leave_place(id);
        if let Some(mut sequence) = self.sequences.remove(&id) {
            self.pool.give_back(&mut sequence.blocks);
            // The starved sequence may be this one. If it is not, the next decode step finds out.
            self.starved &= sequence.place != Place::Running;
        }
    }

    fn add(&mut self, step: &mut Step<P>, id: SeqId, new: usize) {
        let block_size = self.limits.block_size;
        let sequence = self.sequence(id);
        let end = sequence.computed + new;
        let output = end == sequence.tokens.len();
        let generated = sequence.tokens.len() - sequence.prompt;
        sequence.in_flight = true;
        step.plan.push(
            &sequence.tokens[sequence.computed..end],
            sequence.computed,
            &sequence.blocks,
            block_size,
            output,
        );
        if output && sequence.payload.wants_logits(generated) {
            step.plan.logits_rows.push(step.plan.rows.len() as u32 - 1);
        }
        let (payload, prompt) = (sequence.payload.clone(), sequence.prompt);
        let prefilling = sequence.place == Place::Prefilling;
        step.sequences.push(StepSequence { id, payload, new, generated, output, prompt, context: end, prefilling });
    }

    /// Adds the block tables; false for an empty step.
    fn finish_plan(&self, step: &mut Step<P>) -> bool {
        for part in &step.sequences {
            step.plan.push_table(&self.sequences[&part.id].blocks);
        }
        !step.sequences.is_empty()
    }

    fn complete_one(&mut self, part: &StepSequence<P>, token: Option<u32>) -> Verdict {
        let Some(sequence) = self.sequences.get_mut(&part.id) else { return Verdict::Dropped };
        sequence.in_flight = false;
        match sequence.doom {
            Some(Doom::Abort) => {
                self.remove(part.id);
                return Verdict::Dropped;
            }
            Some(Doom::Preempt) => {
                self.preempt(part.id);
                return Verdict::Dropped;
            }
            None => {}
        }
        sequence.computed += part.new;
        if sequence.place == Place::Prefilling {
            self.counters.tokens_prefilled += part.new as u64;
        }
        let Some(token) = token else { return Verdict::Continue };
        sequence.tokens.push(token);
        self.counters.tokens_generated += 1;
        let usage = sequence.usage();
        let reason = if sequence.stop.end_tokens.contains(&token) {
            Some(FinishReason::Stop)
        } else {
            (usage.completion_tokens >= sequence.stop.max_tokens).then_some(FinishReason::Length)
        };
        if let Some(reason) = reason {
            self.counters.finished += 1;
            self.remove(part.id);
            return Verdict::Finish { reason, usage };
        }
        if sequence.place == Place::Prefilling {
            sequence.place = Place::Ready;
            self.prefilling.remove(&part.id);
            self.ready.insert(part.id);
        }
        Verdict::Continue
    }
}

fn clear<P>(step: &mut Step<P>) {
    step.plan.clear();
    step.sequences.clear();
}

#[cfg(test)]
#[path = "scheduler_tests.rs"]
mod tests;

//! A serving engine, as far as its scheduling goes: which sequences run in the next step.
//!
//! Three ways of batching, which are three baselines:
//!
//! - [`Mode::Split`]: the reference engine. Prefill steps and decode steps on two streams, each with at most one in flight.
//! - [`Mode::Colocated`]: one stream. A prefill step if a slot and a prompt are there, else a decode step: static
//!   co-location, where a prompt waits for a decode slot and every slot waits for the prompt.
//! - [`Mode::Mixed`]: one stream. Each step decodes every running sequence and fills a token budget with pieces of
//!   prompts: chunked prefill.
//!
//! Admission, order and KV blocks follow the reference engine (`engine/src/core/scheduler.rs`): arrival order everywhere,
//! blocks for the tokens there are, one block in a hundred kept back, and when blocks run out the youngest sequence loses
//! its own and is prefilled again, what it generated included.

use std::collections::BTreeSet;

use sched::calls::Batch;
use sched::model::Model;
use sched::{Nanos, Phase, Profile};

use crate::{Outcome, Request};

/// How steps are batched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Prefill and decode steps on streams of their own.
    Split,
    /// Prefill and decode steps in turn on one stream.
    Colocated,
    /// Decode and pieces of prompts in the same step, so many tokens in all.
    Mixed {
        /// Most tokens of a step.
        budget: u32,
    },
}

/// An engine's settings; names as its flags have them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineConfig {
    /// How steps are batched.
    pub mode: Mode,
    /// Most sequences in a decode step.
    pub max_num_seqs: usize,
    /// Sequences that may be prefilled and parked beyond those; 0: a prefill needs a free decode slot.
    pub prefill_ahead: usize,
    /// Most tokens of a prefill step; a longer prompt runs alone.
    pub max_num_batched_tokens: u32,
    /// KV blocks of [`BLOCK`] tokens.
    pub kv_blocks: u32,
}

/// Tokens of a KV block.
pub const BLOCK: u32 = 128;
/// Most sequences of a prefill step.
const PREFILL_SEQS_MAX: usize = 64;
/// One block in so many is kept back at admission.
const ADMISSION_RESERVE: u32 = 100;

impl EngineConfig {
    /// The reference engine's defaults for a model on a device: 64 slots, steps of 8192 tokens, 90 % of memory.
    pub fn new(mode: Mode, model: &Model, profile: &Profile) -> Self {
        let cache = 0.9 * profile.hbm_capacity_bytes as f64 - model.weight_bytes() as f64 - EMBEDDING;
        let kv_blocks = cache / (model.kv_bytes_per_token() * u64::from(BLOCK)) as f64;
        Self { mode, max_num_seqs: 64, prefill_ahead: 0, max_num_batched_tokens: 8192, kv_blocks: kv_blocks as u32 }
    }
}

/// Bytes of the input embedding, which a step looks rows up in and [`Model::weight_bytes`] leaves out: 152,064 × 3584.
const EMBEDDING: f64 = 1.09e9;

/// A sequence's part in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    sequence: usize,
    new: u32,
    /// Tokens in the cache afterwards.
    context: u32,
    /// Its next token comes out of the step.
    output: bool,
}

/// A step that an engine has chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    parts: Vec<Part>,
}

impl Plan {
    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// What it works on.
    pub fn batch(&self) -> Batch {
        Batch {
            queries: self.parts.iter().map(|p| u64::from(p.new)).collect(),
            contexts: self.parts.iter().map(|p| u64::from(p.context)).collect(),
            paged: self.parts.iter().any(|p| p.new < p.context),
        }
    }

    /// Tokens that go through the output layer.
    pub fn rows(&self) -> u64 {
        self.parts.iter().filter(|p| p.output).count() as u64
    }

    /// Its phase.
    pub fn phase(&self) -> Phase {
        // A prompt's last token alone looks like decode, here and to the classifier.
        let decoding = self.parts.iter().filter(|p| p.new == 1 && p.context > 1).count();
        match decoding {
            0 => Phase::Prefill,
            n if n == self.parts.len() => Phase::Decode,
            _ => Phase::Mixed,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Sequence {
    prompt: u32,
    output: u32,
    generated: u32,
    computed: u32,
    blocks: u32,
    seen: Option<Nanos>,
    slot: Option<Nanos>,
    outcome: Outcome,
}

impl Sequence {
    fn tokens(&self) -> u32 {
        self.prompt + self.generated
    }
}

/// What a token was to its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Emitted {
    /// Number of the request, in the order of arrival at this engine.
    pub request: usize,
    /// Tokens so far.
    pub tokens: u32,
    /// It was the last.
    pub last: bool,
}

/// One engine's scheduler.
#[derive(Debug)]
pub struct Engine {
    config: EngineConfig,
    sequences: Vec<Sequence>,
    waiting: BTreeSet<usize>,
    prefilling: BTreeSet<usize>,
    ready: BTreeSet<usize>,
    running: BTreeSet<usize>,
    free_blocks: u32,
    finished: usize,
}

impl Engine {
    /// No sequences.
    pub fn new(config: EngineConfig) -> Self {
        Self {
            config,
            sequences: Vec::new(),
            waiting: BTreeSet::new(),
            prefilling: BTreeSet::new(),
            ready: BTreeSet::new(),
            running: BTreeSet::new(),
            free_blocks: config.kv_blocks,
            finished: 0,
        }
    }

    /// Its settings.
    pub fn config(&self) -> &EngineConfig {
        &self.config
    }

    /// Queues a request.
    ///
    /// # Panics
    /// If it could never run: no prompt, no output, or more tokens than the cache holds.
    pub fn submit(&mut self, request: &Request) -> usize {
        let tokens = request.prompt + request.output - 1;
        assert!(request.prompt > 0 && request.output > 0 && tokens.div_ceil(BLOCK) <= self.config.kv_blocks);
        let id = self.sequences.len();
        let outcome = Outcome {
            arrival: request.arrival,
            prompt: request.prompt,
            output: request.output,
            engine: request.engine,
            ..Outcome::default()
        };
        self.sequences.push(Sequence {
            prompt: request.prompt,
            output: request.output,
            generated: 0,
            computed: 0,
            blocks: 0,
            seen: None,
            slot: None,
            outcome,
        });
        self.waiting.insert(id);
        id
    }

    /// True while a request queues that no prefill step took: later ones stand behind it.
    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// True if a prefill step, or a step with a piece of a prompt, could be had now.
    pub fn can_prefill(&self) -> bool {
        let started = matches!(self.config.mode, Mode::Mixed { .. }) && !self.prefilling.is_empty();
        started || self.waiting.first().is_some_and(|&id| self.fits(id))
    }

    /// True if a sequence holds a decode slot.
    pub fn can_decode(&self) -> bool {
        !self.running.is_empty()
    }

    /// Requests that are complete.
    pub fn finished(&self) -> usize {
        self.finished
    }

    /// What became of every request.
    pub fn outcomes(&self) -> impl Iterator<Item = &Outcome> {
        self.sequences.iter().map(|s| &s.outcome)
    }

    /// The next prefill step of [`Mode::Split`] and [`Mode::Colocated`].
    pub fn next_prefill(&mut self) -> Plan {
        let mut plan = Plan::default();
        let mut budget = self.config.max_num_batched_tokens;
        while let Some(&id) = self.waiting.first() {
            let tokens = self.sequences[id].tokens();
            let full = plan.parts.len() == PREFILL_SEQS_MAX || (tokens > budget && !plan.is_empty());
            if full || !self.admit(id) {
                break;
            }
            budget = budget.saturating_sub(tokens);
            self.add_prompt(&mut plan, id, tokens);
        }
        plan
    }

    /// The next decode step of [`Mode::Split`] and [`Mode::Colocated`].
    pub fn next_decode(&mut self) -> Plan {
        let mut plan = Plan::default();
        for id in self.running.clone() {
            if self.running.contains(&id) && self.make_room(id) {
                let sequence = &self.sequences[id];
                plan.parts.push(Part { sequence: id, new: 1, context: sequence.tokens(), output: true });
            }
        }
        plan
    }

    /// The next step on the only stream of [`Mode::Colocated`] and [`Mode::Mixed`].
    pub fn next_step(&mut self) -> Plan {
        let Mode::Mixed { budget } = self.config.mode else {
            let plan = self.next_prefill();
            return if plan.is_empty() { self.next_decode() } else { plan };
        };
        let mut plan = self.next_decode();
        let mut budget = budget.saturating_sub(plan.parts.len() as u32);
        let started: Vec<usize> = self.prefilling.iter().copied().collect();
        for id in started {
            let new = (self.sequences[id].tokens() - self.sequences[id].computed).min(budget);
            if new == 0 {
                break;
            }
            budget -= new;
            self.add_prompt(&mut plan, id, new);
        }
        while budget > 0
            && let Some(&id) = self.waiting.first()
            && self.admit(id)
        {
            let new = self.sequences[id].tokens().min(budget);
            budget -= new;
            self.add_prompt(&mut plan, id, new);
        }
        plan
    }

    /// Takes the results of a step whose tokens came out at `now`.
    pub fn complete(&mut self, plan: &Plan, now: Nanos, emitted: &mut Vec<Emitted>) {
        for part in &plan.parts {
            let id = part.sequence;
            let sequence = &mut self.sequences[id];
            sequence.computed = part.context;
            if !part.output {
                continue;
            }
            sequence.generated += 1;
            let last = sequence.generated == sequence.output;
            emitted.push(Emitted { request: id, tokens: sequence.generated, last });
            sequence.token(now);
            if last {
                self.free_blocks += sequence.blocks;
                sequence.blocks = 0;
                self.finished += 1;
                self.prefilling.remove(&id);
                self.running.remove(&id);
            } else if self.prefilling.remove(&id) {
                self.ready.insert(id);
            }
        }
        while self.running.len() < self.config.max_num_seqs
            && let Some(id) = self.ready.pop_first()
        {
            self.running.insert(id);
            let sequence = &mut self.sequences[id];
            sequence.outcome.slot = *sequence.slot.get_or_insert(now);
        }
    }

    fn add_prompt(&mut self, plan: &mut Plan, id: usize, new: u32) {
        let sequence = &self.sequences[id];
        let context = sequence.computed + new;
        plan.parts.push(Part { sequence: id, new, context, output: context == sequence.tokens() });
    }

    /// A slot and blocks for all tokens of a waiting sequence are free.
    fn fits(&self, id: usize) -> bool {
        let admitted = self.prefilling.len() + self.ready.len() + self.running.len();
        let need = self.sequences[id].tokens().div_ceil(BLOCK);
        let idle = self.free_blocks == self.config.kv_blocks;
        let reserve = if idle { 0 } else { self.config.kv_blocks / ADMISSION_RESERVE };
        admitted < self.config.max_num_seqs + self.config.prefill_ahead && need + reserve <= self.free_blocks
    }

    fn admit(&mut self, id: usize) -> bool {
        if !self.fits(id) {
            return false;
        }
        let need = self.sequences[id].tokens().div_ceil(BLOCK);
        self.free_blocks -= need;
        self.sequences[id].blocks = need;
        self.waiting.remove(&id);
        self.prefilling.insert(id);
        true
    }

    /// Blocks for a running sequence's next token; the youngest that decodes gives its own up if need be.
    fn make_room(&mut self, id: usize) -> bool {
        let need = self.sequences[id].tokens().div_ceil(BLOCK) - self.sequences[id].blocks;
        while self.free_blocks < need {
            let last = |set: &BTreeSet<usize>| set.last().copied();
            let victim = last(&self.ready).max(last(&self.running)).unwrap_or(id);
            self.preempt(victim);
            if victim == id {
                return false;
            }
        }
        self.free_blocks -= need;
        self.sequences[id].blocks += need;
        true
    }

    fn preempt(&mut self, id: usize) {
        self.ready.remove(&id);
        self.running.remove(&id);
        self.waiting.insert(id);
        let sequence = &mut self.sequences[id];
        self.free_blocks += sequence.blocks;
        (sequence.blocks, sequence.computed) = (0, 0);
        sequence.outcome.preemptions += 1;
    }
}

impl Sequence {
    fn token(&mut self, now: Nanos) {
        let outcome = &mut self.outcome;
        match self.seen {
            None => {
                outcome.first = now;
                outcome.slot = now;
            }
            Some(before) => {
                outcome.stall = outcome.stall.max(now - before);
                let since = before.max(self.slot.unwrap_or(before));
                outcome.stall_in_slot = outcome.stall_in_slot.max(now.saturating_sub(since));
            }
        }
        self.seen = Some(now);
        outcome.last = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engine(mode: Mode, max_num_seqs: usize, prefill_ahead: usize, kv_blocks: u32, prompts: &[(u32, u32)]) -> Engine {
        let config = EngineConfig { mode, max_num_seqs, prefill_ahead, max_num_batched_tokens: 512, kv_blocks };
        let mut engine = Engine::new(config);
        for &(prompt, output) in prompts {
            engine.submit(&Request { arrival: 0, prompt, output, engine: 0 });
        }
        engine
    }

    fn sizes(plan: &Plan) -> Vec<(usize, u32)> {
        plan.parts.iter().map(|p| (p.sequence, p.new)).collect()
    }

    #[test]
    fn a_prompt_waits_for_a_slot_unless_prefill_runs_ahead() {
        for (ahead, want) in [(0, vec![(0, 100), (1, 100)]), (1, vec![(0, 100), (1, 100), (2, 100)])] {
            let mut engine = engine(Mode::Split, 2, ahead, 1000, &[(100, 9); 4]);
            let plan = engine.next_prefill();
            assert_eq!(sizes(&plan), want);
            let mut emitted = Vec::new();
            engine.complete(&plan, 5, &mut emitted);
            assert_eq!(emitted.len(), want.len());
            assert_eq!(sizes(&engine.next_decode()), [(0, 1), (1, 1)], "two slots, whatever is parked");
        }
    }

    #[test]
    fn a_parked_request_counts_its_slot_from_when_it_is_free() {
        let mut engine = engine(Mode::Split, 1, 1, 1000, &[(100, 2); 2]);
        let mut emitted = Vec::new();
        let plan = engine.next_prefill();
        engine.complete(&plan, 10, &mut emitted);
        let plan = engine.next_decode();
        engine.complete(&plan, 30, &mut emitted);
        let plan = engine.next_decode();
        assert_eq!(sizes(&plan), [(1, 1)]);
        engine.complete(&plan, 55, &mut emitted);
        let second = engine.outcomes().nth(1).unwrap();
        assert_eq!((second.first, second.slot, second.last), (10, 30, 55));
        assert_eq!((second.stall, second.stall_in_slot), (45, 25));
        assert_eq!(engine.finished(), 2);
    }

    #[test]
    fn colocation_stops_decode_for_a_prompt() {
        let mut engine = engine(Mode::Colocated, 2, 0, 1000, &[(100, 9), (600, 9)]);
        let first = engine.next_step();
        assert_eq!((sizes(&first), first.phase()), (vec![(0, 100)], Phase::Prefill));
        engine.complete(&first, 1, &mut Vec::new());
        assert_eq!(sizes(&engine.next_step()), [(1, 600)], "alone: it exceeds the budget");
    }

    #[test]
    fn mixed_steps_fill_the_budget_with_pieces() {
        let mut engine = engine(Mode::Mixed { budget: 128 }, 8, 0, 1000, &[(100, 9), (300, 9)]);
        let mut phases = Vec::new();
        for want in [vec![(0, 100), (1, 28)], vec![(0, 1), (1, 127)], vec![(0, 1), (1, 127)], vec![(0, 1), (1, 18)]] {
            let plan = engine.next_step();
            assert_eq!(sizes(&plan), want);
            phases.push(plan.phase());
            engine.complete(&plan, 1, &mut Vec::new());
        }
        assert_eq!(phases, [Phase::Prefill, Phase::Mixed, Phase::Mixed, Phase::Mixed]);
        assert_eq!(engine.next_step().phase(), Phase::Decode);
    }

    #[test]
    fn the_youngest_gives_its_blocks_up_and_comes_back_with_what_it_generated() {
        let mut engine = engine(Mode::Split, 2, 0, 4, &[(250, 20), (250, 20)]);
        let mut emitted = Vec::new();
        let mut plan = engine.next_prefill();
        assert_eq!(plan.parts.len(), 2);
        let mut steps = 0;
        while engine.finished() < 2 {
            assert!(!plan.is_empty() && steps < 100);
            engine.complete(&plan, steps, &mut emitted);
            steps += 1;
            plan = engine.next_prefill();
            if plan.is_empty() {
                plan = engine.next_decode();
            }
        }
        let preemptions: Vec<u32> = engine.outcomes().map(|o| o.preemptions).collect();
        assert_eq!(preemptions, [0, 1]);
        assert_eq!(emitted.iter().filter(|e| e.last).count(), 2);
        assert_eq!(emitted.len(), 40, "no token twice");
        assert_eq!(engine.free_blocks, 4);
    }
}

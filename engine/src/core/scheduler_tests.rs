//! Tables for the ordinary cases; random interleavings of both loops against the invariants.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Tag(u32);

impl Payload for Tag {
    fn wants_logits(&self, generated: usize) -> bool {
        self.0 % 2 == 1 && generated > 0
    }
}

fn limits() -> Limits {
    Limits {
        max_num_seqs: 2,
        prefill_ahead: 0,
        block_size: 4,
        max_num_batched_tokens: 16,
        chunked: false,
        max_prefill_seqs: 8,
    }
}

fn stop(max_tokens: usize) -> StopRule {
    StopRule { max_tokens, end_tokens: vec![999] }
}

fn ids<P>(step: &Step<P>) -> Vec<SeqId> {
    step.sequences.iter().map(|s| s.id).collect()
}

/// The token that a sequence generates at a position: what a correct device would, whatever the batch.
fn next_token(tag: &Tag, generated: usize) -> u32 {
    tag.0 * 1000 + generated as u32
}

fn complete(scheduler: &mut Scheduler<Tag>, step: &Step<Tag>) -> Vec<(Tag, u32, Verdict)> {
    let tokens: Vec<u32> = step.outputs().map(|s| next_token(&s.payload, s.generated)).collect();
    let mut verdicts = Vec::new();
    scheduler.complete(step, &tokens, &mut verdicts);
    step.outputs().zip(tokens).zip(verdicts).map(|((s, t), v)| (s.payload.clone(), t, v)).collect()
}

#[test]
fn prompts_batch_up_to_the_token_budget_in_arrival_order() {
    let mut s = Scheduler::new(Limits { max_num_seqs: 8, ..limits() }, 100);
    let mut step = Step::default();
    for len in [6, 6, 6, 3] {
        s.submit(Tag(0), vec![1; len], stop(4));
    }
    assert!(s.next_prefill(&mut step));
    assert_eq!(ids(&step), [0, 1], "the third does not fit and the fourth must not overtake it");
    assert_eq!(step.plan.rows, [5, 11]);
    complete(&mut s, &step);
    assert!(s.next_prefill(&mut step));
    assert_eq!(ids(&step), [2, 3]);
}

#[test]
fn mixed_steps_decode_everybody_and_fill_the_budget_with_pieces_of_prompts() {
    let limits = Limits { max_num_seqs: 3, chunked: true, max_num_batched_tokens: 8, ..limits() };
    let mut s = Scheduler::new(limits, 100);
    let mut step = Step::default();
    for len in [5, 13, 4] {
        s.submit(Tag(0), vec![1; len], stop(6));
    }
    let mut steps = Vec::new();
    while s.next_mixed(&mut step) {
        steps.push(step.sequences.iter().map(|p| (p.id, p.new, p.prefilling)).collect::<Vec<_>>());
        assert!(step.plan.tokens.len() <= 8);
        complete(&mut s, &step);
    }
    assert_eq!(
        steps[..4],
        [
            vec![(0, 5, true), (1, 3, true)],
            vec![(0, 1, false), (1, 7, true)],
            vec![(0, 1, false), (1, 3, true), (2, 4, true)],
            vec![(0, 1, false), (1, 1, false), (2, 1, false)],
        ]
    );
    assert_eq!(s.counters().finished, 3);
}

#[test]
fn a_long_prompt_runs_alone_without_chunking_and_in_pieces_with() {
    for (chunked, want) in [(false, vec![40]), (true, vec![16, 16, 8])] {
        let mut s = Scheduler::new(Limits { chunked, ..limits() }, 100);
        let mut step = Step::default();
        s.submit(Tag(0), vec![1; 40], stop(1));
        let mut pieces = Vec::new();
        while s.next_prefill(&mut step) {
            pieces.push(step.plan.tokens.len());
            assert_eq!(step.plan.rows.len(), usize::from(pieces.iter().sum::<usize>() == 40));
            complete(&mut s, &step);
        }
        assert_eq!(pieces, want);
    }
}

#[test]
fn prefill_waits_for_a_decode_slot_unless_it_may_run_ahead() {
    for (prefill_ahead, admitted) in [(0, 2), (1, 3)] {
        let mut s = Scheduler::new(Limits { prefill_ahead, ..limits() }, 100);
        let mut step = Step::default();
        for _ in 0..4 {
            s.submit(Tag(0), vec![1; 4], stop(8));
        }
        while s.next_prefill(&mut step) {
            complete(&mut s, &step);
        }
        assert_eq!(s.prefilling(), admitted);
        assert!(s.next_decode(&mut step));
        assert_eq!((s.running(), s.prefilling(), s.waiting()), (2, admitted - 2, 4 - admitted));
    }
}

#[test]
fn the_youngest_loses_its_blocks_and_keeps_its_tokens() {
    let mut s = Scheduler::new(limits(), 4);
    let mut step = Step::default();
    s.submit(Tag(1), vec![1; 7], stop(6)); // two blocks now, three from the second decode step on
    s.submit(Tag(2), vec![1; 7], stop(6));
    assert!(s.next_prefill(&mut step));
    complete(&mut s, &step);
    assert!(s.next_decode(&mut step));
    assert_eq!(ids(&step), [0, 1]);
    complete(&mut s, &step);
    assert!(s.next_decode(&mut step));
    assert_eq!(ids(&step), [0], "sequence 1 was preempted");
    assert_eq!((s.counters().preemptions, s.waiting(), s.blocks()), (1, 1, (4, 1)));
    complete(&mut s, &step);
    assert!(!s.next_prefill(&mut step), "nine tokens need three blocks");
    let mut outputs = Vec::new();
    while s.next_decode(&mut step) || s.next_prefill(&mut step) {
        outputs.extend(complete(&mut s, &step));
    }
    let of = |tag: u32| outputs.iter().filter(|o| o.0 == Tag(tag)).map(|o| o.1).collect::<Vec<_>>();
    assert_eq!(of(1), [1003, 1004, 1005]);
    assert_eq!(of(2), [2002, 2003, 2004, 2005], "it goes on where it was");
    assert_eq!(s.blocks(), (4, 4));
}

#[test]
fn a_sequence_in_flight_is_preempted_when_its_step_is_over() {
    let mut s = Scheduler::new(limits(), 4);
    let (mut prefill, mut decode) = (Step::default(), Step::default());
    s.submit(Tag(1), vec![1; 7], stop(6));
    assert!(s.next_prefill(&mut prefill));
    complete(&mut s, &prefill);
    s.submit(Tag(2), vec![1; 8], stop(1));
    assert!(s.next_prefill(&mut prefill));
    assert!(s.next_decode(&mut decode));
    complete(&mut s, &decode);
    assert!(!s.next_decode(&mut decode), "sequence 0 waits for the blocks of sequence 1");
    assert_eq!(s.blocks().1, 0);
    assert_eq!(complete(&mut s, &prefill)[0].2, Verdict::Dropped);
    assert_eq!(s.blocks().1, 2);
    assert!(!s.next_prefill(&mut prefill), "the starved sequence comes first");
    assert!(s.next_decode(&mut decode));
    assert_eq!(ids(&decode), [0]);
}

#[test]
fn abort_frees_blocks_at_once_or_after_the_step_in_flight() {
    let mut s = Scheduler::new(limits(), 10);
    let mut step = Step::default();
    let (a, b) = (s.submit(Tag(1), vec![1; 4], stop(9)), s.submit(Tag(2), vec![1; 4], stop(9)));
    assert!(s.next_prefill(&mut step));
    assert_eq!(s.abort(b), Some((Tag(2), Usage { prompt_tokens: 4, completion_tokens: 0 })));
    assert_eq!(s.abort(b), None);
    assert_eq!(s.blocks().1, 8);
    let verdicts: Vec<Verdict> = complete(&mut s, &step).into_iter().map(|o| o.2).collect();
    assert_eq!(verdicts, [Verdict::Continue, Verdict::Dropped]);
    assert_eq!(s.blocks().1, 9);
    assert!(s.abort(a).is_some());
    assert_eq!(s.blocks().1, 10);
    assert!(!s.next_decode(&mut step));
}

#[test]
fn end_tokens_and_length_end_a_sequence() {
    for (end, want, generated) in
        [(7000, FinishReason::Stop, 1), (7002, FinishReason::Stop, 3), (9, FinishReason::Length, 4)]
    {
        let mut s = Scheduler::new(limits(), 10);
        let mut step = Step::default();
        s.submit(Tag(7), vec![1], StopRule { max_tokens: 4, end_tokens: vec![end] });
        let mut last = None;
        while s.next_prefill(&mut step) || s.next_decode(&mut step) {
            last = complete(&mut s, &step).pop();
        }
        let usage = Usage { prompt_tokens: 1, completion_tokens: generated };
        assert_eq!(last.map(|l| l.2), Some(Verdict::Finish { reason: want, usage }));
    }
}

#[test]
fn logits_are_asked_for_where_the_payload_wants_them() {
    let mut s = Scheduler::new(limits(), 10);
    let mut step = Step::default();
    s.submit(Tag(2), vec![1], stop(3));
    s.submit(Tag(1), vec![1], stop(3));
    assert!(s.next_prefill(&mut step));
    assert_eq!(step.plan.logits_rows, Vec::<u32>::new());
    complete(&mut s, &step);
    assert!(s.next_decode(&mut step));
    assert_eq!(step.plan.logits_rows, [1]);
}

#[test]
fn a_failed_step_ends_its_sequences_only() {
    let mut s = Scheduler::new(limits(), 10);
    let mut step = Step::default();
    s.submit(Tag(1), vec![1; 20], stop(3));
    s.submit(Tag(2), vec![1; 4], stop(3));
    assert!(s.next_prefill(&mut step));
    assert_eq!(s.fail(&step), [Tag(1)]);
    assert_eq!(s.blocks(), (10, 10));
    assert_eq!(s.drain(), [Tag(2)]);
    assert_eq!(s.waiting(), 0);
}

/// One thing that can happen next.
#[derive(Clone, Debug)]
enum Event {
    Submit { prompt: usize, max_tokens: usize },
    Abort { pick: usize },
    Prefill,
    Decode,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        3 => (1usize..20, 1usize..12).prop_map(|(prompt, max_tokens)| Event::Submit { prompt, max_tokens }),
        1 => (0usize..64).prop_map(|pick| Event::Abort { pick }),
        6 => Just(Event::Prefill),
        8 => Just(Event::Decode),
    ];
    proptest::collection::vec(event, 1..200)
}

/// Both loops: a `Prefill` or `Decode` event starts that loop's step, or ends the one it has in flight.
struct Simulation {
    scheduler: Scheduler<Tag>,
    prefill: Option<Step<Tag>>,
    decode: Option<Step<Tag>>,
    /// Tokens generated and asked for, by tag; `None` once aborted.
    outputs: HashMap<u32, (Vec<u32>, Option<usize>)>,
    finished: usize,
    /// Sequences in the order in which they first got blocks.
    admitted: Vec<SeqId>,
    blocks: usize,
}

impl Simulation {
    fn new(limits: Limits, blocks: usize) -> Self {
        Self {
            scheduler: Scheduler::new(limits, blocks),
            prefill: None,
            decode: None,
            outputs: HashMap::new(),
            finished: 0,
            admitted: Vec::new(),
            blocks,
        }
    }

    fn apply(&mut self, event: &Event) {
        match *event {
            Event::Submit { prompt, max_tokens } => {
                let tag = self.outputs.len() as u32;
                let id =
                    self.scheduler.submit(Tag(tag), vec![tag; prompt], StopRule { max_tokens, end_tokens: vec![] });
                assert_eq!(id, u64::from(tag));
                self.outputs.insert(tag, (Vec::new(), Some(max_tokens)));
            }
            Event::Abort { pick } => {
                let id = (pick % self.outputs.len().max(1)) as u64;
                if let Some((Tag(tag), usage)) = self.scheduler.abort(id) {
                    let (tokens, wanted) = self.outputs.get_mut(&tag).unwrap();
                    assert_eq!(tokens.len(), usage.completion_tokens);
                    assert!(wanted.take().is_some(), "aborted once");
                    self.finished += 1;
                }
            }
            Event::Prefill => self.turn(true),
            Event::Decode => self.turn(false),
        }
        self.check();
    }

    fn turn(&mut self, prefill: bool) {
        let slot = if prefill { &mut self.prefill } else { &mut self.decode };
        if let Some(step) = slot.take() {
            for (Tag(tag), token, verdict) in complete(&mut self.scheduler, &step) {
                if verdict == Verdict::Dropped {
                    continue;
                }
                let (tokens, wanted) = self.outputs.get_mut(&tag).unwrap();
                tokens.push(token);
                self.finished += usize::from(matches!(verdict, Verdict::Finish { .. }));
                assert!(tokens.len() <= wanted.expect("no token after an abort"));
            }
            return;
        }
        let mut step = Step::default();
        let some = if prefill { self.scheduler.next_prefill(&mut step) } else { self.scheduler.next_decode(&mut step) };
        if !some {
            return;
        }
        if prefill {
            let new = step.sequences.iter().map(|s| s.id).filter(|id| !self.admitted.contains(id)).collect::<Vec<_>>();
            self.admitted.extend(new);
            self.prefill = Some(step);
        } else {
            self.decode = Some(step);
        }
    }

    fn check(&self) {
        let s = &self.scheduler;
        let mut held: Vec<u32> = s.sequences.values().flat_map(|q| q.blocks.iter().copied()).collect();
        held.sort_unstable();
        let count = held.len();
        held.dedup();
        assert_eq!(held.len(), count, "a block has two holders");
        assert_eq!(count + s.pool.free(), self.blocks);
        assert!(s.running.len() <= s.limits.max_num_seqs);
        assert!(s.prefilling.len() + s.ready.len() + s.running.len() <= s.limits.max_num_seqs + s.limits.prefill_ahead);
        for (id, q) in &s.sequences {
            let set = match q.place {
                Place::Waiting => &s.waiting,
                Place::Prefilling => &s.prefilling,
                Place::Ready => &s.ready,
                Place::Running => &s.running,
            };
            assert!(set.contains(id));
            assert!(q.place != Place::Waiting || (q.blocks.is_empty() && q.computed == 0));
            assert!(q.computed <= q.blocks.len() * s.limits.block_size);
        }
        for step in self.prefill.iter().chain(&self.decode) {
            for part in &step.sequences {
                assert!(s.sequences[&part.id].in_flight, "a step in flight keeps its sequences");
            }
        }
    }

    /// Runs both loops, in the order that `coin` says, until every sequence is over.
    fn settle(&mut self, mut coin: u64) {
        let bound = 200_000;
        for _ in 0..bound {
            if self.finished == self.outputs.len() && self.prefill.is_none() && self.decode.is_none() {
                return;
            }
            coin = coin.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            self.apply(if coin >> 33 & 1 == 0 { &Event::Prefill } else { &Event::Decode });
        }
        panic!("no progress: {:?}", self.scheduler);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_interleaving_keeps_blocks_order_and_outputs(
        events in events(),
        max_num_seqs in 1usize..5,
        prefill_ahead in 0usize..3,
        blocks in 8usize..24,
        chunked in any::<bool>(),
        budget in 3usize..30,
        coin in any::<u64>(),
    ) {
        let limits = Limits {
            max_num_seqs, prefill_ahead, block_size: 4, max_num_batched_tokens: budget, chunked, max_prefill_seqs: 3,
        };
        let mut simulation = Simulation::new(limits, blocks);
        for event in &events {
            simulation.apply(event);
        }
        simulation.settle(coin);
        prop_assert!(simulation.admitted.is_sorted(), "first admission in arrival order: {:?}", simulation.admitted);
        prop_assert_eq!(simulation.scheduler.blocks(), (blocks, blocks));
        for (tag, (tokens, wanted)) in &simulation.outputs {
            if let Some(wanted) = wanted {
                let want: Vec<u32> = (0..*wanted).map(|i| next_token(&Tag(*tag), i)).collect();
                prop_assert_eq!(tokens, &want);
            }
        }
    }
}

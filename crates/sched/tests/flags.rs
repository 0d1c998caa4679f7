//! Flags against a naive model: operators take no time, and everything goes as far as it can after each step.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;
use sched::policy::PolicyName;
use sched::{Action, Demand, Dispatcher, FlagKey, Item, Label, Limits, Phase, PolicyConfig, SessionParams, StreamKey};

const SESSION: u64 = 7;

#[derive(Clone, Copy, Debug)]
enum Step {
    Op(u32),
    Await(u32, u32),
    Set(u32, u32),
}

/// What streams and flags would do if nothing took time.
#[derive(Default)]
struct Model {
    queues: BTreeMap<u32, VecDeque<(Step, u64)>>,
    /// Flags that are set.
    set: BTreeSet<u32>,
    done: Vec<u64>,
}

impl Model {
    fn settle(&mut self) {
        loop {
            let mut moved = false;
            for queue in self.queues.values_mut() {
                while let Some(&(step, number)) = queue.front() {
                    match step {
                        Step::Op(_) => self.done.push(number),
                        Step::Await(_, flag) if self.set.contains(&flag) => {}
                        Step::Await(..) => break,
                        Step::Set(_, flag) => drop(self.set.insert(flag)),
                    }
                    queue.pop_front();
                    moved = true;
                }
            }
            if !moved {
                return;
            }
        }
    }
}

fn dispatcher() -> Dispatcher {
    let mut d = Dispatcher::new(PolicyConfig::named(PolicyName::Passthrough), Limits::default());
    d.open_session(SESSION, SessionParams::default()).unwrap();
    for stream in 1..=3 {
        d.open_stream(StreamKey { session: SESSION, stream }, 0).unwrap();
    }
    d
}

/// Runs everything that can run; operators complete at once.
fn run(d: &mut Dispatcher, done: &mut Vec<u64>) {
    let mut actions = Vec::new();
    loop {
        actions.clear();
        d.step(0, &mut actions);
        if actions.is_empty() {
            return;
        }
        for action in &actions {
            let Action::Submit { token, .. } = *action else { continue };
            done.push(token);
            d.complete(0, token);
        }
    }
}

fn op(token: u64) -> Item {
    Item::Op { token, solo: 1, demand: Demand::default(), phase: Phase::Unknown, label: Label::default() }
}

fn step() -> impl Strategy<Value = Step> {
    let (stream, flag) = (1..=3u32, 1..=2u32);
    prop_oneof![
        4 => stream.clone().prop_map(Step::Op),
        2 => (stream.clone(), flag.clone()).prop_map(|(s, f)| Step::Await(s, f)),
        2 => (stream, flag).prop_map(|(s, f)| Step::Set(s, f)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn streams_wait_for_flags_and_for_nothing_else(steps in proptest::collection::vec(step(), 1..60)) {
        let (mut d, mut model, mut done) = (dispatcher(), Model::default(), Vec::new());
        for (number, &step) in (1..).zip(&steps) {
            let key = |flag| FlagKey { session: SESSION, flag };
            let (stream, item) = match step {
                Step::Op(s) => (s, op(number)),
                Step::Await(s, f) => (s, Item::AwaitFlag(key(f))),
                Step::Set(s, f) => (s, Item::SetFlag(key(f))),
            };
            d.push(0, StreamKey { session: SESSION, stream }, item).unwrap();
            model.queues.entry(stream).or_default().push_back((step, number));
            run(&mut d, &mut done);
            model.settle();
            let (mut have, mut want) = (done.clone(), model.done.clone());
            have.sort_unstable();
            want.sort_unstable();
            prop_assert_eq!(have, want, "after step {}", number);
        }
        // Releasing every flag ends every wait.
        for flag in 1..=2 {
            d.release_flag(0, FlagKey { session: SESSION, flag });
        }
        run(&mut d, &mut done);
        prop_assert_eq!(done.len(), steps.iter().filter(|s| matches!(s, Step::Op(_))).count());
        prop_assert_eq!(d.queued(), 0);
    }
}

#[test]
fn a_release_reaches_waits_that_streams_have_not_come_to() {
    let (mut d, mut done) = (dispatcher(), Vec::new());
    let (stream, flag) = (StreamKey { session: SESSION, stream: 1 }, FlagKey { session: SESSION, flag: 1 });
    let gate = FlagKey { session: SESSION, flag: 2 };
    for item in [Item::AwaitFlag(gate), op(1), Item::AwaitFlag(flag), op(2)] {
        d.push(0, stream, item).unwrap();
    }
    d.release_flag(0, flag);
    run(&mut d, &mut done);
    assert!(done.is_empty());
    d.release_flag(0, gate);
    run(&mut d, &mut done);
    assert_eq!(done, [1, 2]);
    d.push(0, stream, Item::AwaitFlag(flag)).unwrap();
    d.push(0, stream, op(3)).unwrap();
    run(&mut d, &mut done);
    assert_eq!(done, [1, 2], "a released flag is gone: its next mention is a new one");
    let mut dropped = Vec::new();
    d.close_session(0, SESSION, &mut dropped);
    assert_eq!((dropped, d.queued()), (vec![3], 0));
}

#[test]
fn a_set_that_is_cleared_at_once_lets_those_go_that_stood_there() {
    let (mut d, mut done) = (dispatcher(), Vec::new());
    let key = |stream| StreamKey { session: SESSION, stream };
    let flag = FlagKey { session: SESSION, flag: 1 };
    d.push(0, key(1), Item::AwaitFlag(flag)).unwrap();
    d.push(0, key(1), op(1)).unwrap();
    // One operator holds both back, so that they retire together.
    d.push(0, key(2), op(2)).unwrap();
    d.push(0, key(2), Item::SetFlag(flag)).unwrap();
    d.push(0, key(2), Item::ClearFlag(flag)).unwrap();
    run(&mut d, &mut done);
    assert_eq!(done, [2, 1]);
    d.push(0, key(3), Item::AwaitFlag(flag)).unwrap();
    d.push(0, key(3), op(3)).unwrap();
    run(&mut d, &mut done);
    assert_eq!(done, [2, 1], "it is clear again");
    d.push(0, key(1), Item::SetFlag(flag)).unwrap();
    run(&mut d, &mut done);
    assert_eq!(done, [2, 1, 3]);
}

#[test]
fn flags_are_bounded() {
    let limits = Limits { flags_per_session_max: 2, ..Limits::default() };
    let mut d = Dispatcher::new(PolicyConfig::named(PolicyName::Passthrough), limits);
    d.open_session(SESSION, SessionParams::default()).unwrap();
    let stream = StreamKey { session: SESSION, stream: 0 };
    let wait = |flag| Item::AwaitFlag(FlagKey { session: SESSION, flag });
    d.push(0, stream, wait(1)).unwrap();
    d.push(0, stream, wait(2)).unwrap();
    assert!(d.push(0, stream, wait(3)).unwrap_err().to_string().contains('2'));
    d.release_flag(0, FlagKey { session: SESSION, flag: 1 });
    d.push(0, stream, wait(3)).unwrap();
}

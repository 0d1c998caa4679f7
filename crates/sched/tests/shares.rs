//! Who gets how much, in virtual time: the policies whose promise is a share of the device, with backlogs everywhere.

mod virtual_time;

use proptest::prelude::*;
use sched::policy::{First, PolicyName};
use sched::{CoRun, Limits, Nanos, Phase, PolicyConfig, SessionParams, StreamKey, Token};
use std::collections::HashMap;
use virtual_time::{Act, MS, Trace, US, Work, World, property};

fn world(config: PolicyConfig) -> World {
    World::new(config, Limits::default(), CoRun { omega: 0.0, ..CoRun::default() })
}

fn backlog(stream: u32, phase: Phase, operators: u32, solo: Nanos) -> Vec<Act> {
    let op = Act::Op { stream, work: Work::cube(solo), phase };
    (0..operators).map(|_| op).chain([Act::Sync { stream }]).collect()
}

/// Operators submitted by each group (as `of` names it), in order, until the first group has none left.
fn submissions<K: Eq + std::hash::Hash + Copy>(w: &World, of: impl Fn(Token, StreamKey) -> K) -> Vec<K> {
    let all = w.trace.iter().filter_map(|t| match *t {
        Trace::Submitted(_, token, stream) => Some(of(token, stream)),
        _ => None,
    });
    let all: Vec<K> = all.collect();
    let mut left = HashMap::new();
    for k in &all {
        *left.entry(*k).or_insert(0u32) += 1;
    }
    let mut out = Vec::new();
    for k in all {
        out.push(k);
        let n = left.get_mut(&k).expect("counted");
        *n -= 1;
        if *n == 0 {
            break;
        }
    }
    out
}

proptest! {
    #![proptest_config(property(4, 13.0))]

    /// `quota`: at every moment each session has had its weight's part of the dispatches, within one round and an
    /// operator a session that is not divided.
    #[test]
    fn quota_shares_dispatches_by_weight(
        weights in proptest::collection::vec(1..9u32, 2..5),
        quota in 1..=16u32,
        us in 10..400u64,
    ) {
        let mut w = world(PolicyConfig { quota, ..PolicyConfig::named(PolicyName::Quota) });
        for (session, &weight) in weights.iter().enumerate() {
            w.session(session as u64, 0, SessionParams { weight, priority: 0, ..SessionParams::default() });
            w.host(session as u64, 0, backlog(0, Phase::Unknown, 60 * weight, us * US));
        }
        w.run();
        let total: u32 = weights.iter().sum();
        let mut had = vec![0.0; weights.len()];
        for (n, of) in (1..).zip(submissions(&w, |_, stream| stream.session)) {
            had[of as usize] += 1.0;
            for (session, (&weight, had)) in weights.iter().zip(&had).enumerate() {
                let want = f64::from(n) * f64::from(weight) / f64::from(total);
                let round = f64::from(quota) + weights.len() as f64;
                prop_assert!((had - want).abs() <= round, "session {session} had {had} of {n}, {want} are its part");
            }
        }
    }

    /// `quota` as a rate limit: no session dispatches more than its part of each round and the operator that is not divided.
    #[test]
    fn quota_limits_rates(weights in proptest::collection::vec(1..9u32, 2..5), quota in 1..=16u32, round_us in 50..2_000u64) {
        let config = PolicyConfig { quota, share_in_idle: false, round_us: round_us as f64, ..PolicyConfig::default() };
        let mut w = world(PolicyConfig { name: PolicyName::Quota, ..config });
        for (session, &weight) in weights.iter().enumerate() {
            w.session(session as u64, 0, SessionParams { weight, priority: 0, ..SessionParams::default() });
            w.host(session as u64, 0, backlog(0, Phase::Unknown, 40, 10 * US));
        }
        w.run();
        let total: f64 = weights.iter().copied().map(f64::from).sum();
        let mut had = vec![0.0; weights.len()];
        for t in &w.trace {
            if let Trace::Submitted(at, _, stream) = *t {
                let session = stream.session as usize;
                had[session] += 1.0;
                let rounds = (at / (round_us * US) + 1) as f64;
                let part = f64::from(quota) * f64::from(weights[session]) / total;
                prop_assert!(had[session] <= rounds * part + 1.0 + 1e-6, "{} in {rounds} rounds of {part}", had[session]);
            }
        }
    }

    /// `static-ratio`: each phase has its part of the time, within what one operator of either phase takes.
    #[test]
    fn static_ratio_shares_time(prefill_part in 0.05..0.95f64, prefill_us in 50..2_000u64, decode_us in 10..500u64) {
        let mut w = world(PolicyConfig { prefill_part, ..PolicyConfig::named(PolicyName::StaticRatio) });
        w.session(0, 2, SessionParams::default());
        w.host(0, 0, backlog(1, Phase::Decode, 300, decode_us * US));
        w.host(0, 0, backlog(2, Phase::Prefill, 300, prefill_us * US));
        w.run();
        let (mut prefill, mut decode) = (0.0, 0.0);
        for stream in submissions(&w, |_, stream| stream.stream) {
            if stream == 2 { prefill += prefill_us as f64 } else { decode += decode_us as f64 }
            let ahead = prefill / prefill_part - decode / (1.0 - prefill_part);
            let operator = f64::max(prefill_us as f64 / prefill_part, decode_us as f64 / (1.0 - prefill_part));
            prop_assert!(ahead.abs() <= operator * (1.0 + 1e-9), "{ahead} µs ahead, an operator is {operator}");
        }
    }
}

/// An idle session's part of a round goes to the others, or to nobody.
#[test]
fn quota_keeps_or_shares_what_an_idle_session_leaves() {
    let run = |share_in_idle| {
        let mut w = world(PolicyConfig { quota: 4, share_in_idle, ..PolicyConfig::named(PolicyName::Quota) });
        w.session(0, 0, SessionParams { weight: 1, priority: 0, ..SessionParams::default() });
        w.session(1, 0, SessionParams { weight: 3, priority: 0, ..SessionParams::default() });
        w.host(0, 0, backlog(0, Phase::Unknown, 100, 100 * US));
        w.run();
        w.now
    };
    assert_eq!(run(true), 100 * 100 * US);
    // One operator of 100 µs a round of a millisecond.
    assert_eq!(run(false), 99 * MS + 100 * US);
}

/// A stretch alone earns nobody more than a quantum of the other phase's time later.
#[test]
fn static_ratio_does_not_pay_for_absence() {
    let mut w = world(PolicyConfig { fair_quantum_ms: 10.0, ..PolicyConfig::named(PolicyName::StaticRatio) });
    w.session(0, 2, SessionParams::default());
    w.host(0, 0, backlog(2, Phase::Prefill, 400, MS));
    w.host(0, 200 * MS, backlog(1, Phase::Decode, 100, MS));
    w.run();
    // 10 ms of credit over its half are 5 ms; then turns. Without credit it would end at 399 ms, unbounded at 300 ms.
    let ended = w.trace.iter().filter_map(|t| match *t {
        Trace::Completed(at, token) if w.phase_of(token) == Some(Phase::Decode) => Some(at),
        _ => None,
    });
    let ended = ended.max().expect("it ran");
    assert!(ended.abs_diff(395 * MS) <= 2 * MS, "{ended} ns");
}

/// What is more important never waits for more than what the device held.
#[test]
fn priority_lets_nothing_less_important_in_between() {
    for (first, streams) in [(First::None, [1, 2]), (First::Decode, [1, 1])] {
        let mut w = world(PolicyConfig { first, ..PolicyConfig::named(PolicyName::Priority) });
        w.session(0, 0, SessionParams::default());
        w.session(1, 0, SessionParams::default());
        for (session, priority) in [(0u64, streams[1] - 1), (1, streams[0] - 1)] {
            w.dispatcher.open_stream(StreamKey { session, stream: 1 }, priority).expect("opens");
        }
        w.host(0, 0, backlog(1, Phase::Prefill, 50, 3 * MS));
        w.host(1, 10 * MS, backlog(1, Phase::Decode, 20, MS));
        w.run();
        // The prefill operator in flight at 10 ms ends at 12.
        assert_eq!(w.last_completion_of(1), 32 * MS, "{first:?}");
        assert_eq!(w.last_completion_of(0), 170 * MS, "{first:?}");
    }
}

/// And what is less important is let through when it has waited for the age bound.
#[test]
fn priority_does_not_starve_beyond_the_age_bound() {
    let mut w = world(PolicyConfig { age_max_ms: 20.0, ..PolicyConfig::named(PolicyName::Priority) });
    w.session(0, 0, SessionParams::default());
    w.session(1, 0, SessionParams { weight: 1, priority: 9, ..SessionParams::default() });
    w.host(0, 0, backlog(0, Phase::Unknown, 5, MS));
    w.host(1, 0, backlog(0, Phase::Unknown, 500, MS));
    w.run();
    assert!(w.last_completion_of(0) < 120 * MS, "{} ns", w.last_completion_of(0));
    let expired = w.dispatcher.stats().holds[sched::dispatch::HoldReason::LowerPriority.index()].expired;
    assert_eq!(expired, 5);
}

/// Two halves of the cores: compute takes twice as long, memory-bound work as long as alone, both at once.
#[test]
fn core_split_runs_both_phases_on_their_parts() {
    let run = |decode: u32| {
        let config = PolicyConfig::named(PolicyName::CoreSplit);
        let mut w = World::new(config, Limits::default(), CoRun { omega: 1.0, kappa_prefill: 0.0, kappa_decode: 0.0 });
        w.session(0, 2, SessionParams::default());
        let prefill = Work { solo: MS, usage: [1.0, 0.0, 0.1], error: 1.0 };
        let memory = Work { solo: MS, usage: [0.1, 0.0, 0.9], error: 1.0 };
        w.host(0, 0, (0..10).map(|_| Act::Op { stream: 1, work: prefill, phase: Phase::Prefill }));
        w.host(0, 0, (0..decode).map(|_| Act::Op { stream: 2, work: memory, phase: Phase::Decode }));
        w.run();
        w.now
    };
    assert_eq!(run(0), 20 * MS, "static: the other half stays idle");
    assert_eq!(run(20), 20 * MS);
    assert_eq!(run(40), 40 * MS);
}

/// Each property, with dispatchers that do not have it.
#[test]
fn broken_dispatchers_are_noticed() {
    use virtual_time::faulty::{Fault, all_noticed};
    all_noticed(&[
        (quota_shares_dispatches_by_weight, &[(Fault::IgnoresWeights, "are its part")]),
        (quota_limits_rates, &[(Fault::IgnoresWeights, "rounds of"), (Fault::IgnoresPolicy, "rounds of")]),
        (static_ratio_shares_time, &[(Fault::IgnoresPart, "µs ahead")]),
        (priority_does_not_starve_beyond_the_age_bound, &[(Fault::HoldsForLong, "look at")]),
    ]);
}

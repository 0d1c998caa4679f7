//! Properties of the dispatcher under every policy, in virtual time, on random programs.
//!
//! [`virtual_time::World::run`] checks each run: order of launch and completion per stream, event waits against the
//! record that precedes them in submission order (re-recorded, reset, across sessions), answers exactly when work has
//! completed, no idle device beside a ready operator except for the bounded gap of a due decode step, a bound on every
//! hold-back, no deadlock, and that nothing of a dead session stays while its neighbours go on.

mod virtual_time;

use proptest::prelude::*;
use sched::dispatch::{Record, Window};
use sched::policy::{First, PolicyName};
use sched::{CoRun, EventKey, Limits, Phase, PolicyConfig, SessionParams, StreamKey, TenantParams};
use virtual_time::{Act, Trace, US, Work, World, property};

#[derive(Clone, Debug)]
struct Program {
    /// Session, start, what to do.
    hosts: Vec<(u64, u64, Vec<Act>)>,
    window: Window,
    omega: f64,
}

const SESSIONS: u64 = 3;
const STREAMS: u32 = 2;

fn work(error: std::ops::RangeInclusive<f64>) -> impl Strategy<Value = Work> {
    let part = || prop_oneof![Just(0.0), 0.01..1.0f64];
    let usage = (part(), part(), part());
    (1..2_000u64, usage, error).prop_map(|(us, (c, v, m), error)| Work { solo: us * US, usage: [c, v, m], error })
}

fn act(session: u64, deadly: bool, error: std::ops::RangeInclusive<f64>) -> impl Strategy<Value = Act> {
    let stream = 0..=STREAMS;
    let event = move || {
        // Mostly one's own events, sometimes a neighbour's.
        (0..4u32, prop_oneof![4 => Just(session), 1 => 0..SESSIONS])
            .prop_map(|(event, session)| EventKey { session, event })
    };
    let own = move || (0..4u32).prop_map(move |event| EventKey { session, event });
    let op = (stream.clone(), work(error), 0..4usize).prop_map(|(stream, work, p)| Act::Op {
        stream,
        work,
        phase: Phase::ALL[p],
    });
    prop_oneof![
        12 => op,
        3 => (stream.clone(), own()).prop_map(|(stream, event)| Act::Record { stream, event }),
        3 => (stream.clone(), event()).prop_map(|(stream, event)| Act::Wait { stream, event }),
        1 => (stream.clone(), own()).prop_map(|(stream, event)| Act::Reset { stream, event }),
        2 => stream.prop_map(|stream| Act::Sync { stream }),
        1 => own().prop_map(|event| Act::SyncEvent { event }),
        1 => Just(Act::SyncDevice),
        2 => (1..3_000u64).prop_map(|us| Act::Think(us * US)),
        u32::from(deadly) => Just(if deadly { Act::Die } else { Act::Think(1) }),
    ]
}

fn program(deadly: bool, error: std::ops::RangeInclusive<f64>) -> impl Strategy<Value = Program> {
    let host = move |session: u64| {
        let script = proptest::collection::vec(act(session, deadly, error.clone()), 1..50);
        (Just(session), 0..5_000u64, script).prop_map(|(s, us, script)| (s, us * US, script))
    };
    // Two threads in session 0, one in each of the others.
    let hosts = (host(0), host(0), host(1), host(2)).prop_map(|(a, b, c, d)| vec![a, b, c, d]);
    let window = prop_oneof![
        Just(Window::Adaptive { handoff: 0, max: 16 }),
        (0..200u64).prop_map(|us| Window::Adaptive { handoff: us * US, max: 16 }),
        (1..17u32).prop_map(Window::Fixed),
    ];
    (hosts, window, prop_oneof![Just(0.0), Just(0.5), Just(1.0)]).prop_map(|(hosts, window, omega)| Program {
        hosts,
        window,
        omega,
    })
}

fn world(program: &Program, config: PolicyConfig) -> World {
    let limits = Limits { window: program.window, ..Limits::default() };
    let mut world = World::new(config, limits, CoRun { omega: program.omega, ..CoRun::default() });
    for session in 0..SESSIONS {
        world.session(
            session,
            STREAMS,
            SessionParams { weight: 1 + session as u32, priority: (session % 2) as u8, ..SessionParams::default() },
        );
    }
    for (session, starts, script) in &program.hosts {
        world.host(*session, *starts, script.iter().copied());
    }
    world
}

fn run(program: &Program, config: PolicyConfig) -> World {
    let mut world = world(program, config);
    world.run();
    world
}

const POLICIES: usize = PolicyName::ALL.len() + 6;

fn policies() -> [PolicyConfig; POLICIES] {
    let phase = PolicyConfig::named(PolicyName::Phase);
    // Small targets, so that programs of milliseconds meet every rule of `phase`.
    let tight = PolicyConfig { tpot_ms: 2.0, ttft_ms: 5.0, age_max_ms: 4.0, fair_quantum_ms: 1.0, ..phase };
    let mut all: Vec<_> = PolicyName::ALL.map(PolicyConfig::named).into();
    // The other rules of the others, with bounds that programs of milliseconds meet.
    let named = |name| PolicyConfig { age_max_ms: 4.0, fair_quantum_ms: 1.0, ..PolicyConfig::named(name) };
    all.push(PolicyConfig { quota: 3, share_in_idle: false, round_us: 500.0, ..named(PolicyName::Quota) });
    all.push(PolicyConfig { first: First::Decode, ..named(PolicyName::Priority) });
    all.push(PolicyConfig { prefill_part: 0.2, ..named(PolicyName::StaticRatio) });
    all.push(PolicyConfig { prefill_part: 0.7, ..named(PolicyName::CoreSplit) });
    for omega in [0.0, 1.0] {
        all.push(PolicyConfig { corun: CoRun { omega, ..CoRun::default() }, ..tight });
    }
    all.try_into().expect("as many as POLICIES says")
}

proptest! {
    #![proptest_config(property(1, 1.0))]

    #[test]
    fn semantics_hold_under_every_policy(program in program(false, 1.0..=1.0)) {
        for config in policies() {
            let world = run(&program, config);
            let stats = world.dispatcher.stats();
            prop_assert_eq!(stats.submitted_total(), world.ops.len() as u64);
            let held = stats.holds.iter().any(|h| h.count > 0);
            prop_assert!(config.name != PolicyName::Passthrough || !held, "passthrough holds nothing back");
        }
    }

    #[test]
    fn estimates_wrong_by_a_factor_of_two_break_nothing(program in program(false, 0.5..=2.0)) {
        for config in policies() {
            run(&program, config);
        }
    }

    #[test]
    fn a_death_frees_everything_and_leaves_neighbours_going(program in program(true, 1.0..=1.0)) {
        for config in policies() {
            let world = run(&program, config);
            let stats = world.dispatcher.stats();
            prop_assert_eq!(stats.submitted_total(), stats.completed_total());
        }
    }

    #[test]
    fn same_inputs_give_the_same_decisions(program in program(true, 0.5..=2.0)) {
        for config in policies() {
            let plain = run(&program, config);
            let mut recorded = world(&program, config).recording(1 << 20);
            recorded.run();
            prop_assert_eq!(&plain.trace, &recorded.trace, "recording changes nothing");
            let record = recorded.dispatcher.take_record().expect("was on").to_bytes("");
            let record = Record::from_bytes(record).expect("a record");
            let replayed = record.replay().expect("the same decisions");
            let decided = plain.trace.iter().filter(|t| !matches!(t, Trace::Completed(..))).count() as u64;
            prop_assert_eq!((replayed.decisions, record.forgotten()), (decided, 0));
        }
    }

    /// `fifo` never has two streams on the device, `core-split` never two on one part, and `static-ratio` never has both
    /// phases there.
    #[test]
    fn what_must_not_run_side_by_side_does_not(program in program(true, 0.5..=2.0)) {
        for config in policies() {
            let world = run(&program, config);
            let mut flying: Vec<(u64, StreamKey, Phase)> = Vec::new();
            for event in &world.trace {
                match *event {
                    Trace::Submitted(_, token, stream) => {
                        let phase = world.phase_of(token).expect("known");
                        let alone = flying.iter().all(|&(_, other, running)| match config.name {
                            PolicyName::Fifo => other == stream,
                            PolicyName::CoreSplit => {
                                other == stream || (running == Phase::Prefill) != (phase == Phase::Prefill)
                            }
                            PolicyName::StaticRatio => !matches!(
                                (running, phase),
                                (Phase::Prefill, Phase::Decode) | (Phase::Decode, Phase::Prefill)
                            ),
                            _ => true,
                        });
                        // What has waited for too long goes whatever runs.
                        let expired = world.dispatcher.stats().holds.iter().map(|h| h.expired).sum::<u64>() > 0;
                        prop_assert!(alone || expired, "{token} beside {flying:?} under {config:?}");
                        flying.push((token, stream, phase));
                    }
                    Trace::Completed(_, token) => flying.retain(|(t, ..)| *t != token),
                    Trace::Done(..) => {}
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(property(6, POLICIES as f64))]

    /// Policies that are changed in mid-air keep every promise.
    #[test]
    fn policies_may_change_at_any_time(
        program in program(true, 1.0..=1.0),
        first in 0..POLICIES,
        changes in proptest::collection::vec((0..8_000u64, 0..POLICIES), 1..5),
    ) {
        let mut world = world(&program, policies()[first]);
        let mut at = 0;
        for (us, policy) in changes {
            at += us * US;
            world.change_policy(at, policies()[policy]);
        }
        world.run();
    }
}

/// The random programs above reach every rule of `phase`; otherwise they would prove little.
#[test]
fn random_programs_reach_every_rule() {
    use proptest::strategy::ValueTree;
    use sched::dispatch::HoldReason;
    let mut runner = proptest::test_runner::TestRunner::new(property(2, 1.0));
    let (mut holds, mut overloaded, mut coruns, mut steps, mut expired) = ([0; HoldReason::ALL.len()], 0, 0, 0, 0);
    for _ in 0..200 {
        let program = program(false, 1.0..=1.0).new_tree(&mut runner).expect("generates").current();
        for config in policies() {
            let world = run(&program, config);
            let stats = world.dispatcher.stats();
            for (sum, h) in holds.iter_mut().zip(&stats.holds) {
                *sum += h.count;
                expired += h.expired;
            }
            overloaded += stats.overloaded_turns;
            coruns += stats.coruns;
            steps += stats.decode_steps;
        }
        // And the rules of tenants, a session each.
        let limits = Limits { window: program.window, ..Limits::default() };
        let mut world = World::new(PolicyConfig::named(PolicyName::Quota), limits, CoRun::default());
        world.tenants = true;
        for session in 0..SESSIONS {
            let tenant = session as u32;
            world.dispatcher.set_tenant(tenant, TenantParams { weight: 1 + 9 * tenant, priority: 0, window: tenant });
            world.session(session, STREAMS, SessionParams { tenant, ..SessionParams::default() });
        }
        for (session, starts, script) in &program.hosts {
            world.host(*session, *starts, script.iter().copied());
        }
        world.run();
        for (sum, h) in holds.iter_mut().zip(&world.dispatcher.stats().holds) {
            *sum += h.count;
        }
    }
    for reason in HoldReason::ALL {
        assert!(holds[reason.index()] > 20, "{} only {} times", reason.name(), holds[reason.index()]);
    }
    for (what, count) in [("overloads", overloaded), ("co-runs", coruns), ("steps", steps), ("expired holds", expired)]
    {
        assert!(count > 5, "{what} only {count} times");
    }
}

/// Each property, with dispatchers that do not have it.
#[test]
fn broken_dispatchers_are_noticed() {
    use virtual_time::faulty::{Fault, all_noticed};
    all_noticed(&[
        (
            semantics_hold_under_every_policy,
            &[
                (Fault::SwapsOperators, "out of order"),
                (Fault::ForgetsWaits, "passed a wait"),
                (Fault::ForgetsResets, ""),
                (Fault::ForgetsSecondRecords, "passed a wait"),
                (Fault::AnswersAtOnce, "is answered when its work has completed"),
                (Fault::LooksAtOneStream, "is answered when its work has completed"),
                (Fault::LosesAnswers, "never went on"),
                (Fault::LosesCompletions, ""),
                (Fault::StartsTwice, "submitted twice"),
                (Fault::SleepsIn, "the device idles beside"),
                (Fault::IdlesForLong, "idles until"),
                (Fault::HoldsForLong, "look at"),
            ],
        ),
        (
            estimates_wrong_by_a_factor_of_two_break_nothing,
            &[(Fault::TrustsEstimates, "is answered when its work has completed"), (Fault::HoldsForLong, "look at")],
        ),
        (
            a_death_frees_everything_and_leaves_neighbours_going,
            &[(Fault::IgnoresDeaths, ""), (Fault::KillsNeighbours, "")],
        ),
        (same_inputs_give_the_same_decisions, &[(Fault::Moody, "recording changes nothing")]),
        (what_must_not_run_side_by_side_does_not, &[(Fault::IgnoresPolicy, "beside")]),
        (
            policies_may_change_at_any_time,
            &[
                (Fault::SwapsOperators, "out of order"),
                (Fault::HoldsForLong, "look at"),
                (Fault::SleepsIn, "the device idles beside"),
            ],
        ),
    ]);
}

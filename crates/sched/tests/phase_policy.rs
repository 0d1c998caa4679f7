//! What `phase` is for, in virtual time: first tokens early while decode keeps its interval.
//!
//! Loads are shaped like Qwen2.5-7B on a 910B3 (closed form of [`sched::model`]): a decode step takes 15–30 ms, a prompt of
//! 256 tokens 17 ms, of 1024 tokens 66 ms; an operator tens to hundreds of microseconds. Every run also passes the checks
//! of [`virtual_time::World::run`].

mod virtual_time;

use proptest::prelude::*;
use sched::dispatch::{HintInput, HintKind, HoldReason};
use sched::policy::PolicyName;
use sched::{CoRun, EventKey, Limits, Nanos, Phase, PolicyConfig, SessionParams};
use virtual_time::{Act, MS, US, Work, World, property};

const TAU: Nanos = 50 * MS;
/// What the host takes between two decode steps.
const TURN: Nanos = 200 * US;
const TOKENS: u32 = 1;
const ASKED: u32 = 2;
const ANSWERED: u32 = 3;

fn op(phase: Phase, stream: u32, solo: Nanos) -> Act {
    let work = if phase == Phase::Prefill { Work::cube(solo) } else { Work::memory(solo) };
    Act::Op { stream, work, phase }
}

/// `steps` decode steps of `operators` each, the host looking after every one.
fn decode(steps: u32, operators: u64, step: Nanos, think: Nanos) -> Vec<Act> {
    let mut script = Vec::new();
    for _ in 0..steps {
        script.extend((0..operators).map(|_| op(Phase::Decode, 1, step / operators)));
        script.extend([Act::Sync { stream: 1 }, Act::Stamp(TOKENS), Act::Think(think)]);
    }
    script
}

/// The same with the host one step ahead of the device, as engines with asynchronous scheduling are.
fn decode_ahead(session: u64, steps: u32, operators: u64, step: Nanos) -> Vec<Act> {
    let event = |i: u32| EventKey { session, event: i % 2 };
    let mut script = Vec::new();
    for i in 0..steps {
        script.extend((0..operators).map(|_| op(Phase::Decode, 1, step / operators)));
        script.push(Act::Record { stream: 1, event: event(i) });
        if i > 0 {
            script.extend([Act::SyncEvent { event: event(i - 1) }, Act::Stamp(TOKENS)]);
        }
    }
    script.extend([Act::Sync { stream: 1 }, Act::Stamp(TOKENS)]);
    script
}

/// One prompt of `operators` operators.
fn prompt(operators: u64, solo: Nanos) -> Vec<Act> {
    let mut script = vec![Act::Stamp(ASKED)];
    script.extend((0..operators).map(|_| op(Phase::Prefill, 2, solo / operators)));
    script.extend([Act::Sync { stream: 2 }, Act::Stamp(ANSWERED)]);
    script
}

fn config(name: PolicyName, omega: f64) -> PolicyConfig {
    PolicyConfig { corun: CoRun { omega, ..CoRun::default() }, ..PolicyConfig::named(name) }
}

fn world(config: PolicyConfig, omega: f64) -> World {
    World::new(config, Limits::default(), CoRun { omega, ..CoRun::default() })
}

fn stamps(world: &World, name: u32) -> &[Nanos] {
    world.stamps.get(&name).map_or(&[], Vec::as_slice)
}

/// Mean time between tokens.
fn tpot(world: &World) -> f64 {
    let tokens = stamps(world, TOKENS);
    (tokens[tokens.len() - 1] - tokens[0]) as f64 / (tokens.len() - 1) as f64
}

/// Mean time to first token.
fn ttft(world: &World) -> f64 {
    let (asked, answered) = (stamps(world, ASKED), stamps(world, ANSWERED));
    let total: u64 = asked.iter().zip(answered).map(|(a, b)| b - a).sum();
    total as f64 / asked.len() as f64
}

/// Two decode steps are always queued, and a prompt of 256 tokens arrives every 100 ms. First come first served makes
/// each prompt wait for the steps queued before it; decode does not need them done so early.
#[test]
fn phase_beats_fifo_on_ttft_with_decode_within_tau() {
    let run = |name, omega| {
        let mut w = world(config(name, omega), omega);
        w.session(0, 2, SessionParams::default());
        w.host(0, 0, decode_ahead(0, 100, 100, 20 * MS));
        for i in 0..15u64 {
            w.host(0, 200 * MS + i * 97 * MS, prompt(100, 17 * MS));
        }
        w.run();
        w
    };
    for omega in [0.0, 0.5, 1.0] {
        let (fifo, phase) = (run(PolicyName::Fifo, omega), run(PolicyName::Phase, omega));
        assert!(ttft(&phase) < 0.6 * ttft(&fifo), "ω={omega}: TTFT {} against {} ns", ttft(&phase), ttft(&fifo));
        assert!(tpot(&phase) <= TAU as f64, "ω={omega}: TPOT {} ns", tpot(&phase));
        // Where nothing overlaps, running everything at once makes the prompt share the device with decode.
        let passthrough = run(PolicyName::Passthrough, omega);
        let part = if omega == 0.0 { 0.7 } else { 1.05 };
        assert!(
            ttft(&phase) < part * ttft(&passthrough),
            "ω={omega}: {} against {} ns",
            ttft(&phase),
            ttft(&passthrough)
        );
    }
}

/// Prompts of 1024 tokens one after the other: first come first served alternates whole prompts with decode steps, which
/// breaks the interval; by slack it holds, and prefill still gets most of the device.
#[test]
fn a_backlog_of_prompts_does_not_break_the_interval() {
    let run = |name| {
        let mut w = world(config(name, 0.0), 0.0);
        w.session(0, 2, SessionParams::default());
        w.host(0, 0, decode(60, 100, 15 * MS, 200 * US));
        w.host(0, 0, (0..20).flat_map(|_| prompt(200, 66 * MS)));
        w.run();
        w
    };
    let (fifo, phase) = (run(PolicyName::Fifo), run(PolicyName::Phase));
    // While the backlog lasts (20·66 ms of prefill, at least 1.3 s), tokens come as often as τ allows.
    let during = |w: &World| {
        let end = *stamps(w, ANSWERED).last().expect("answered");
        let tokens: Vec<_> = stamps(w, TOKENS).iter().copied().filter(|t| *t <= end).collect();
        (tokens[tokens.len() - 1] - tokens[0]) as f64 / (tokens.len() - 1) as f64
    };
    assert!(during(&fifo) > 1.3 * TAU as f64, "fifo: {} ns", during(&fifo));
    assert!(during(&phase) <= 1.02 * TAU as f64, "phase: {} ns", during(&phase));
    let last = |w: &World| *stamps(w, ANSWERED).last().expect("answered") as f64;
    assert!(last(&phase) < 1.35 * last(&fifo), "the backlog takes {} against {} ns", last(&phase), last(&fifo));
}

/// Decode alone cannot keep τ: an urgent prompt still gets its floor.
#[test]
fn an_overloaded_decode_does_not_starve_prefill() {
    let mut w = world(config(PolicyName::Phase, 0.0), 0.0);
    w.session(0, 2, SessionParams::default());
    w.host(0, 0, decode(60, 100, 60 * MS, 0));
    w.host(0, 500 * MS, prompt(200, 66 * MS));
    w.run();
    let stats = w.dispatcher.stats();
    assert!(stats.overloaded_turns > 0);
    // Urgent after 0.7 s, then a quarter of the time: 66·4 ms, and the steps that straddle.
    assert!(ttft(&w) < (700 + 66 * 4 + 130) as f64 * 1e6, "TTFT {} ns", ttft(&w));
    // The floor costs decode a third more, plus what little prefill ran before.
    assert!(tpot(&w) < 1.1 * 60e6, "TPOT {} ns", tpot(&w));
}

#[test]
fn side_by_side_where_it_pays() {
    let run = |believed, real, learn| {
        let mut w = world(PolicyConfig { learn, ..config(PolicyName::Phase, believed) }, real);
        w.session(0, 2, SessionParams::default());
        w.host(0, 0, decode(60, 100, 15 * MS, 200 * US));
        w.host(0, 0, (0..20).flat_map(|_| prompt(200, 66 * MS)));
        w.run();
        w
    };
    let last = |w: &World| *stamps(w, ANSWERED).last().expect("answered") as f64;
    let (together, turns) = (run(1.0, 1.0, false), run(0.0, 1.0, false));
    assert!(together.dispatcher.stats().coruns > 0);
    assert_eq!(turns.dispatcher.stats().coruns, 0, "nothing to gain is believed");
    assert!(last(&together) < 0.85 * last(&turns), "{} against {} ns", last(&together), last(&turns));
    // A device that overlaps nothing although the policy believes so: decode notices by its token clock.
    let fooled = run(1.0, 0.0, false);
    assert!(tpot(&fooled) <= 1.1 * TAU as f64, "TPOT {} ns", tpot(&fooled));
    // Measured, a wrong belief does not last, in either direction: operators overlap at every change of turn.
    let (pessimist, optimist) = (run(0.0, 1.0, true), run(1.0, 0.0, true));
    assert!(pessimist.dispatcher.stats().coruns > 0);
    assert!(last(&pessimist) < 0.92 * last(&turns), "{} against {} ns", last(&pessimist), last(&turns));
    assert!(optimist.dispatcher.stats().coruns <= 2, "{} times", optimist.dispatcher.stats().coruns);
    assert!(fooled.dispatcher.stats().coruns > 10, "{} times", fooled.dispatcher.stats().coruns);
    let [prefill, decode] = optimist.dispatcher.stats().corun_rates_permille;
    assert!(prefill + decode <= 1_050, "learnt {prefill} and {decode}");
}

/// A step that is due keeps the device through the host's launch gaps, but not for longer than the bound.
#[test]
fn a_due_step_is_not_broken_up_by_launch_gaps() {
    const TIGHT: Nanos = 20 * MS;
    let run = |launch: Nanos, gap_us: f64| {
        let config = PolicyConfig { tpot_ms: 20.0, gap_us, ..config(PolicyName::Phase, 0.0) };
        let mut w = world(config, 0.0);
        w.session(0, 2, SessionParams::default());
        let mut script = Vec::new();
        for _ in 0..30 {
            for _ in 0..100 {
                script.extend([op(Phase::Decode, 1, 60 * US), Act::Think(launch)]);
            }
            script.extend([Act::Sync { stream: 1 }, Act::Stamp(TOKENS)]);
        }
        w.host(0, 0, script);
        w.host(0, 100 * MS, (0..20).flat_map(|_| prompt(50, 66 * MS)));
        w.run();
        w
    };
    // The host launches an operator every 150 µs, the device takes 60: a step takes 15 ms, most of it launch gaps.
    let (bridged, broken) = (run(150 * US, 300.0), run(150 * US, 0.0));
    let [few, many] = [&bridged, &broken].map(interruptions);
    assert!(few * 2 < many, "{few} prefill operators within 30 steps, {many} without bridging");
    assert!(tpot(&bridged) <= 1.1 * TIGHT as f64, "TPOT {} ns", tpot(&bridged));
    assert!(bridged.dispatcher.stats().holds[HoldReason::DecodeDue.index()].count > 0);
    // 2 ms between operators: the host is the bottleneck, and the device is not kept idle for it.
    let slow = run(2 * MS, 300.0);
    let ended = *stamps(&slow, ANSWERED).last().expect("answered");
    assert!(ended < 2 * 20 * 66 * MS, "the backlog took {ended} ns");
}

/// Prefill operators submitted between the operators of one decode step.
fn interruptions(world: &World) -> usize {
    let (mut steps, mut between, mut open) = (0, 0, 0);
    for event in &world.trace {
        if let virtual_time::Trace::Submitted(_, token, _) = event {
            match world.phase_of(*token) {
                Some(Phase::Decode) => {
                    steps += 1;
                    between += std::mem::take(&mut open);
                }
                // Steps have a hundred operators: between the last of one and the first of the next nobody is interrupted.
                Some(Phase::Prefill) if steps % 100 != 0 => open += 1,
                _ => {}
            }
        }
    }
    between
}

/// A dead gateway: its hints hold prefill back (an interval that decode can just keep), until their lease runs out.
#[test]
fn hints_act_until_their_lease_runs_out() {
    let hint = |request, kind| HintInput { request, kind };
    let admitted = |tpot| HintKind::Admitted { prompt_tokens: 8, max_tokens: 8, ttft: 0, tpot, priority: 0 };
    let run = |lease_ms, tpot| {
        let config = PolicyConfig { lease_ms, ..config(PolicyName::Phase, 0.0) };
        let mut w = world(config, 0.0);
        w.session(0, 2, SessionParams::default());
        w.dispatcher.hint(0, 0, &hint(1, admitted(tpot)));
        w.dispatcher.hint(0, 0, &hint(1, HintKind::FirstToken));
        w.host(0, 0, decode(80, 100, 15 * MS, 200 * US));
        w.host(0, 10 * MS, (0..8).flat_map(|_| prompt(200, 66 * MS)));
        w.run();
        w
    };
    // τ = 20 ms while the lease lasts: five milliseconds a step are left for prefill.
    let (alive, dies, none) = (run(60_000.0, 20 * MS), run(300.0, 20 * MS), run(60_000.0, 0));
    let last = |w: &World| *stamps(w, ANSWERED).last().expect("answered");
    assert!(last(&alive) > last(&dies) + 100 * MS, "{} and {} ns", last(&alive), last(&dies));
    assert!(last(&dies) <= last(&none) + 350 * MS, "{} and {} ns", last(&dies), last(&none));
    assert_eq!((alive.dispatcher.stats().hints_expired, dies.dispatcher.stats().hints_expired), (0, 1));
}

/// A request that says how many tokens it wants has its interval on average: decode stands still while prompts wait, as long
/// as that can be caught up, and never for longer than `credit` intervals at a stretch.
#[test]
fn a_hinted_limit_lets_decode_wait_and_catch_up() {
    const STEPS: u32 = 99;
    let run = |max_tokens: u32, prompts: u64| {
        let mut w = world(PolicyConfig { credit: 10.0, ..config(PolicyName::Phase, 0.0) }, 0.0);
        w.session(0, 2, SessionParams::default());
        let admitted = HintKind::Admitted { prompt_tokens: 8, max_tokens, ttft: 0, tpot: 0, priority: 0 };
        for kind in [admitted, HintKind::FirstToken, HintKind::Progress { tokens: 1 }] {
            w.dispatcher.hint(0, 0, &HintInput { request: 1, kind });
        }
        w.host(0, 0, decode(STEPS, 100, 15 * MS, 200 * US));
        w.host(0, MS, (0..prompts).flat_map(|_| prompt(200, 66 * MS)));
        w.run();
        w
    };
    // Two seconds of prompts, and three and a half to spare.
    let (hinted, unhinted) = (run(STEPS + 1, 30), run(0, 30));
    assert!(ttft(&hinted) < 0.85 * ttft(&unhinted), "{} and {} ns", ttft(&hinted), ttft(&unhinted));
    let longest = |w: &World| stamps(w, TOKENS).windows(2).map(|t| t[1] - t[0]).max().expect("tokens");
    assert!((400 * MS..=520 * MS).contains(&longest(&hinted)), "{} ns between two tokens", longest(&hinted));
    // More prompts than it has time for: the interval holds all the same, with a little to spare for the prompts.
    let crowded = run(STEPS + 1, 120);
    let last = *stamps(&crowded, TOKENS).last().expect("tokens");
    let want = Nanos::from(STEPS) * TAU;
    assert!((want - 300 * MS..=want).contains(&last), "{last} ns, wanted by {want}");
}

/// A deadline makes a prompt urgent that would otherwise wait behind an overloaded decode.
#[test]
fn a_hinted_deadline_makes_a_prompt_urgent_earlier() {
    let run = |deadline| {
        let mut w = world(config(PolicyName::Phase, 0.0), 0.0);
        w.session(0, 2, SessionParams::default());
        if let Some(ttft) = deadline {
            let kind = HintKind::Admitted { prompt_tokens: 8, max_tokens: 8, ttft, tpot: 0, priority: 0 };
            w.dispatcher.hint(0, 0, &HintInput { request: 1, kind });
        }
        w.host(0, 0, decode(60, 100, 60 * MS, 0));
        w.host(0, 0, prompt(200, 66 * MS));
        w.run();
        ttft(&w)
    };
    let (hinted, default) = (run(Some(200 * MS)), run(None));
    assert!(hinted + 300e6 < default, "{hinted} and {default} ns");
}

/// Of two prompts at once, the one that a hint calls more important goes first, or else the one with less time.
#[test]
fn hints_order_prompts_by_priority_then_by_deadline() {
    let run = |hints: [(u64, u8); 2]| {
        let mut w = world(config(PolicyName::Phase, 0.0), 0.0);
        for (session, (ttft_ms, priority)) in (0u64..).zip(hints) {
            w.session(session, 2, SessionParams::default());
            let kind = HintKind::Admitted { prompt_tokens: 8, max_tokens: 8, ttft: ttft_ms * MS, tpot: 0, priority };
            w.dispatcher.hint(0, session, &HintInput { request: 1, kind });
            w.host(session, 0, prompt(100, 50 * MS));
        }
        w.run();
        u64::from(w.last_completion_of(1) < w.last_completion_of(0))
    };
    for (hints, first) in
        [([(800, 0), (800, 0)], 0), ([(800, 0), (700, 0)], 1), ([(700, 0), (800, 1)], 1), ([(800, 2), (100, 1)], 0)]
    {
        assert_eq!(run(hints), first, "{hints:?}");
    }
}

/// A long prompt is urgent before its patience ends, if it would miss its deadline otherwise.
#[test]
fn a_prompt_that_needs_all_the_time_it_has_is_urgent_at_once() {
    let run = |prompt_ms: u64| {
        let mut w = world(config(PolicyName::Phase, 0.0), 0.0);
        w.session(0, 2, SessionParams::default());
        w.host(0, 0, decode(40, 100, 60 * MS, 0));
        w.host(0, 100 * MS, prompt(200, prompt_ms * MS));
        w.run();
        // When decode was first made to wait for a prompt that was overdue.
        w.dispatcher.stats().holds[HoldReason::PrefillOverdue.index()].count
    };
    // Both have 700 ms of patience; within it a quarter of the time is prefill's only if 950 ms are needed.
    assert!(run(950) > run(66) + 8, "{} and {}", run(950), run(66));
}

/// Overload is a state: entered and left, counted once however many turns it takes, and timed.
#[test]
fn an_overload_is_counted_once_and_timed() {
    let mut w = world(config(PolicyName::Phase, 0.0), 0.0);
    w.session(0, 2, SessionParams::default());
    w.host(0, 0, decode(60, 100, 60 * MS, 0));
    w.host(0, 500 * MS, prompt(200, 200 * MS));
    w.run();
    let stats = w.dispatcher.stats();
    assert_eq!(stats.overloads, 1);
    assert!(stats.overloaded_turns > 5, "{} turns", stats.overloaded_turns);
    // Urgent at 1.2 s, then a quarter of the time.
    let ended = stamps(&w, ANSWERED)[0];
    let lasted = stats.overloaded_ns;
    assert!(lasted <= ended - 1_100 * MS && lasted >= ended - 1_400 * MS, "{lasted} ns, until {ended}");
}

/// Predictions that are wrong by a factor are put right by what is measured, and the error that is left is known.
#[test]
fn wrong_predictions_are_corrected_by_measurement() {
    for error in [0.5, 0.7, 1.4, 2.0] {
        let mut w = world(config(PolicyName::Phase, 0.5), 0.5);
        w.session(0, 1, SessionParams::default());
        let work = Work { error, ..Work::memory(200 * US) };
        let step = (0..50).map(|_| Act::Op { stream: 1, work, phase: Phase::Decode });
        w.host(0, 0, (0..20).flat_map(|_| step.clone().chain([Act::Sync { stream: 1 }])));
        w.run();
        let p = w.dispatcher.stats().predicted(Phase::Decode);
        assert_eq!((p.samples, p.measured_ns), (1_000, 1_000 * 200 * US));
        let [before, after] = [p.error_ns, p.corrected_error_ns].map(|e| e as f64 / p.measured_ns as f64);
        assert!((before - (1.0f64 - error).abs()).abs() < 1e-3, "×{error}: {before}");
        assert!(after < 0.01, "×{error}: {after}");
    }
}

/// Sessions with a backlog of prompts share by weight, within a quantum.
#[test]
fn prefill_backlogs_share_by_weight() {
    let mut w = world(config(PolicyName::Phase, 0.0), 0.0);
    for session in 0..2 {
        w.session(
            session,
            2,
            SessionParams { weight: 1 + 2 * session as u32, priority: 0, ..SessionParams::default() },
        );
        w.host(session, 0, (0..40).flat_map(|_| prompt(100, 50 * MS)));
    }
    w.run();
    // 40 prompts a session; the heavier one has three quarters of the device until it is through, so its share is known
    // when it has finished: a third of its own 2 s has gone to the other.
    let served_of = |session: u64, until: Nanos| -> u64 {
        let completed = w.trace.iter().filter_map(|t| match t {
            virtual_time::Trace::Completed(at, token) if *at <= until => Some(token),
            _ => None,
        });
        let of = |token: &u64| w.submitted_by(*token) == Some(session);
        completed.filter(|t| of(t)).count() as u64 * 500 * US
    };
    let heavy_done = w.last_completion_of(1);
    let light = served_of(0, heavy_done);
    let want = 2_000 * MS / 3;
    // Within a quantum of 200 ms a unit of weight on either side.
    assert!(light.abs_diff(want) <= 400 * MS, "the lighter one got {light} ns of {want}");
}

#[test]
fn a_higher_priority_prompt_goes_first() {
    let mut w = world(config(PolicyName::Phase, 0.0), 0.0);
    for session in 0..2 {
        w.session(session, 2, SessionParams { weight: 1, priority: session as u8, ..SessionParams::default() });
    }
    w.host(0, 0, prompt(100, 50 * MS));
    w.host(1, 10 * MS, prompt(100, 50 * MS));
    w.run();
    let [first, second] = [w.last_completion_of(1), w.last_completion_of(0)];
    assert!(first <= 61 * MS && second >= 100 * MS - 1, "{first} and {second} ns");
}

proptest! {
    // Under seven policies each.
    #![proptest_config(property(3, 2.0))]

    /// Decode alone runs exactly as without a scheduler, whatever the policy; a static core split is what it says.
    #[test]
    fn no_prefill_no_inflation(steps in 1..20u32, operators in 1..40u64, ms in 1..60u64, think in 0..2_000u64) {
        let run = |name| {
            let mut w = world(config(name, 0.5), 0.5);
            w.session(0, 1, SessionParams::default());
            w.host(0, 0, decode(steps, operators, ms * MS, think * US));
            w.run();
            w.stamps.remove(&TOKENS)
        };
        let alone = run(PolicyName::Passthrough);
        for policy in PolicyName::ALL.into_iter().filter(|&p| p != PolicyName::CoreSplit) {
            prop_assert_eq!(&run(policy), &alone, "{}", policy.name());
        }
    }
}

proptest! {
    #![proptest_config(property(3, 13.0))]

    /// Where decode can keep τ beside prefill's floor, every token is out on schedule: the n-th within n·τ of the first
    /// step's begin, plus the host's pause before a step and one prefill operator that began in it.
    #[test]
    fn decode_keeps_its_schedule_beside_any_prefill(
        step_ms in 2..28u64,
        operators in 4..24u64,
        prompts in proptest::collection::vec((0..400u64, 10..40u64, 5..150u64), 1..8),
        omega in prop_oneof![Just(0.0), Just(0.5), Just(1.0)],
        error in prop_oneof![Just(1.0), 0.7..1.4f64],
    ) {
        let mut w = world(config(PolicyName::Phase, omega), omega);
        w.session(0, 1 + prompts.len() as u32, SessionParams::default());
        w.host(0, 0, decode(40, operators, step_ms * MS, TURN));
        let mut longest = 0;
        for (i, &(at, operators, solo_ms)) in prompts.iter().enumerate() {
            let solo = solo_ms * MS / operators;
            longest = longest.max(solo);
            let work = Work { error, ..Work::cube(solo) };
            let stream = 2 + i as u32;
            let ops = (0..operators).map(|_| Act::Op { stream, work, phase: Phase::Prefill });
            w.host(0, at * MS, ops.chain([Act::Sync { stream }]));
        }
        w.run();
        for (n, &at) in stamps(&w, TOKENS).iter().enumerate() {
            let due = (n as u64 + 1) * TAU;
            prop_assert!(at <= due + TURN + longest, "token {} is out at {} ns, {} after it was due", n, at, at.saturating_sub(due));
        }
    }
}

/// Each property, with dispatchers that do not have it.
#[test]
fn broken_dispatchers_are_noticed() {
    use virtual_time::faulty::{Fault, all_noticed};
    all_noticed(&[
        (no_prefill_no_inflation, &[(Fault::SleepsIn, "")]),
        (
            decode_keeps_its_schedule_beside_any_prefill,
            &[(Fault::IgnoresInterval, "after it was due"), (Fault::IgnoresPolicy, "after it was due")],
        ),
        (an_overloaded_decode_does_not_starve_prefill, &[(Fault::IgnoresInterval, "")]),
        (prefill_backlogs_share_by_weight, &[(Fault::IgnoresWeights, "the lighter one got")]),
    ]);
}

//! Runs in virtual time: repeatable, close to single operators whatever is merged, and never faster than the device.

use sched::model::Model;
use sched::policy::PolicyName;
use sched::{CoRun, PolicyConfig, Profile};
use sim::engine::{EngineConfig, Mode};
use sim::report::{Objectives, Report};
use sim::{Host, Request, Run, Setup};

const MS: u64 = 1_000_000;

/// A burst, a lull with single prompts, and another burst: prompts of several sizes beside decode.
fn requests() -> Vec<Request> {
    let request = |i: u64| Request {
        arrival: (i / 6) * 900 * MS + (i % 6) * 35 * MS,
        prompt: 120 + (i * 397 % 1500) as u32,
        output: 4 + (i * 31 % 60) as u32,
        engine: 0,
    };
    (0..30).map(request).collect()
}

fn setup(policy: PolicyName, omega: f64) -> Setup {
    let profile = Profile::A910B3;
    let engine = EngineConfig::new(Mode::Split, &Model::QWEN2_5_7B, &profile);
    let corun = CoRun { omega, ..CoRun::default() };
    let policy = PolicyConfig { corun, ..PolicyConfig::named(policy) };
    Setup::single(profile, corun, policy, engine)
}

fn report(run: &Run) -> Report {
    Report::new(&run.outcomes, &Objectives::default(), |_| 100 * MS)
}

#[test]
fn equal_inputs_give_equal_runs() {
    for policy in PolicyName::ALL {
        let setup = setup(policy, 0.5);
        let run = sim::run(&setup, &requests());
        assert_eq!(run, sim::run(&setup, &requests()), "{}", policy.name());
        assert!(run.outcomes.iter().all(|o| o.first > o.arrival && o.last >= o.first), "{}", policy.name());
    }
}

/// Steps handed over as one while they are alone, against single operators throughout: every figure within 1 %.
#[test]
fn merging_changes_no_figure_by_more_than_one_percent() {
    for policy in PolicyName::ALL {
        for omega in [0.0, 1.0] {
            let setup = setup(policy, omega);
            let merged = sim::run(&setup, &requests());
            let exact = sim::run(&Setup { merge_alone: false, ..setup }, &requests());
            if policy == PolicyName::CoreSplit {
                assert_eq!(merged, exact, "with part of the cores no step is merged");
                continue;
            }
            let fewer = merged.submitted as f64 / exact.submitted as f64;
            // Slower policies leave fewer steps alone.
            assert!(fewer < 0.8, "{}: {fewer} of the operators", policy.name());
            let (a, b) = (report(&exact), report(&merged));
            for (name, a, b) in [
                ("TTFT", a.ttft_s.mean, b.ttft_s.mean),
                ("TPOT", a.tpot_s.mean, b.tpot_s.mean),
                ("E2E", a.e2e_s.mean, b.e2e_s.mean),
                ("tokens/s", a.tokens_per_s, b.tokens_per_s),
            ] {
                assert!((b / a - 1.0).abs() <= 0.01, "{} at ω = {omega}: {name} is {b}, not {a}", policy.name());
            }
        }
    }
}

#[test]
fn one_request_alone_takes_what_its_steps_take() {
    let mut setup = setup(PolicyName::Fifo, 0.5);
    setup.host = Host { launch: 0, turn: 0, wake: 0 };
    let request = Request { arrival: 7 * MS, prompt: 1024, output: 3, engine: 0 };
    let mut weigher = sim::step::Weigher::new(setup.model, setup.profile);
    let prefill = weigher.prefill_alone(1024);
    let mut decode = |context| weigher.step(&sched::calls::Batch::decode(1, context), 1).whole().solo;
    let want = 7 * MS + prefill + decode(1025) + decode(1026);
    let slow = Host { launch: 200_000, ..setup.host };
    for merge_alone in [true, false] {
        setup.merge_alone = merge_alone;
        let last = sim::run(&setup, &[request]).outcomes[0].last;
        assert!(last.abs_diff(want) < 10, "{last}, not {want}");
        // A slow host shows: 316 launches of 200 µs are longer than any step here.
        let slow = sim::run(&Setup { host: slow, ..setup.clone() }, &[request]).outcomes[0].last;
        assert!(slow > want + 2 * (63 - 16) * MS, "{slow}");
    }
}

#[test]
fn a_device_is_never_busier_than_its_time() {
    for policy in PolicyName::ALL {
        let run = sim::run(&setup(policy, 0.0), &requests());
        let busy: u64 = run.stats[0].completed_solo_ns.iter().sum();
        let end = run.outcomes.iter().map(|o| o.last).max().unwrap();
        assert!(busy <= end, "{}: {busy} ns of work in {end} ns without overlap", policy.name());
    }
}

#[test]
fn disaggregation_runs_each_phase_on_its_own_device() {
    let mut setup = setup(PolicyName::Fifo, 1.0);
    setup.devices = 2;
    setup.engines[0].decode = 1;
    let run = sim::run(&setup, &requests());
    let phases = |device: usize| run.stats[device].completed;
    let [_, prefill, decode, _] = phases(0);
    assert!(prefill > 0 && decode == 0);
    let [_, prefill, decode, _] = phases(1);
    assert!(prefill == 0 && decode > 0);
}

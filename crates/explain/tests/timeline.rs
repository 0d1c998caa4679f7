//! Timelines of simulated serving: they add up to the dispatcher's counters, and the files keep the format's rules.

use explain::about::SessionName;
use explain::check::{Summary, check};
use explain::{About, Timeline, chrome, decision};
use sched::dispatch::{HoldReason, Record, RecordLimits};
use sched::model::Model;
use sched::policy::PolicyName;
use sched::{CoRun, Nanos, Phase, PolicyConfig, Profile};
use sim::engine::{EngineConfig, Mode};
use sim::{Request, Setup};

const MS: Nanos = 1_000_000;

/// Prompts arrive while others decode.
fn requests() -> Vec<Request> {
    (0..10).map(|i| Request { arrival: i * 120 * MS, prompt: 900, output: 24, engine: 0 }).collect()
}

fn record(policy: PolicyName, omega: f64, bytes_max: usize) -> (Record, sim::Run) {
    let corun = CoRun { omega, ..CoRun::default() };
    let model = Model { layers: 3, ..Model::QWEN2_5_7B };
    let engine = EngineConfig::new(Mode::Split, &model, &Profile::A910B3);
    let policy = PolicyConfig { corun, tpot_ms: 4.0, credit: 2.0, ..PolicyConfig::named(policy) };
    let mut setup = Setup::single(Profile::A910B3, corun, policy, engine);
    setup.model = model;
    setup.merge_alone = false;
    setup.record = Some(RecordLimits { bytes_max, span: Nanos::MAX });
    // Engines of three layers are fast: bring the prompts closer together.
    let requests: Vec<Request> = requests().iter().map(|r| Request { arrival: r.arrival / 20, ..*r }).collect();
    let run = sim::run(&setup, &requests);
    let sessions = vec![SessionName { session: 1, pid: 0, process: "engine \"a\"".into() }];
    let about = About { device: "emulated, virtual time".into(), sessions };
    let record = Record::from_bytes(run.recordings[0].to_bytes(&about.to_json())).unwrap();
    (record, run)
}

fn file(timeline: &Timeline, bytes_max: u64) -> (String, chrome::Written) {
    let mut out = Vec::new();
    let written = chrome::write(timeline, &mut out, bytes_max).unwrap();
    assert_eq!(written.bytes, out.len() as u64);
    (String::from_utf8(out).unwrap(), written)
}

fn checked(timeline: &Timeline) -> Summary {
    let (text, written) = file(timeline, u64::MAX);
    let summary = check(&text).unwrap();
    assert_eq!((summary.events as u64, written.left_out), (written.events, 0));
    summary
}

#[test]
fn a_timeline_adds_up_to_the_counters() {
    let mut held = 0;
    for name in PolicyName::ALL {
        let (record, run) = record(name, 0.5, 1 << 26);
        let timeline = Timeline::of(&record).unwrap();
        let (stats, summary) = (&run.stats[0], checked(&timeline));
        assert_eq!(&timeline.stats_after, stats, "{}", name.name());
        for phase in Phase::ALL {
            let own = || timeline.operators.iter().filter(move |op| op.phase == phase);
            assert_eq!(own().count() as u64, stats.completed[phase.index()]);
            assert_eq!(own().map(|op| op.solo).sum::<Nanos>(), stats.completed_solo_ns[phase.index()]);
            let busy: Nanos = own().map(|op| op.ended - op.began).sum();
            assert_eq!(
                summary.by_category.get(phase.name()).copied().unwrap_or_default(),
                (busy, own().count() as u64)
            );
            // Nothing is faster than alone but by rounding; alone is what everything is where streams take turns.
            let solo = stats.completed_solo_ns[phase.index()];
            assert!(busy + own().count() as u64 >= solo, "{}: {busy} < {solo}", name.name());
            if name == PolicyName::Fifo {
                assert!(busy.abs_diff(solo) <= solo / 1000, "{busy} alone {solo}");
            }
        }
        for reason in HoldReason::ALL {
            let counted = stats.holds[reason.index()];
            let (total, count, _) = summary.holds.get(reason.name()).copied().unwrap_or_default();
            assert_eq!((total, count), (counted.total_ns, counted.count), "{} {}", name.name(), reason.name());
            held += count;
        }
        let spans = |name: &str| summary.spans.get(name).copied().unwrap_or(0);
        assert_eq!((spans("request"), spans("decode")), (10, 10));
        assert!(summary.processes.contains("session 1 (engine \"a\")"), "{:?}", summary.processes);
        assert!(summary.threads.contains("stream 1 operators") && summary.counters.len() == 2);
    }
    assert!(held > 100, "{held} hold-backs in all");
}

#[test]
fn time_side_by_side_is_no_more_than_the_busy_time_and_none_where_streams_take_turns() {
    for (name, together) in [(PolicyName::Fifo, false), (PolicyName::Passthrough, true)] {
        let timeline = Timeline::of(&record(name, 1.0, 1 << 26).0).unwrap();
        let cells = timeline.occupancy(MS);
        let both: Nanos = cells.iter().map(|c| c.both).sum();
        let busy: Nanos = cells.iter().map(|c| c.busy).sum();
        assert!(cells.iter().all(|c| c.both <= c.busy && c.busy <= MS));
        assert!(busy <= timeline.ended - timeline.began);
        assert_eq!(both > 0, together, "{}", name.name());
        let all: Nanos = timeline.operators.iter().map(|op| op.ended - op.began).sum();
        // With two streams, what ran side by side counts twice in the sum.
        assert_eq!(all, busy + both, "{}", name.name());
    }
}

#[test]
fn a_record_that_begins_in_the_middle_is_shown_from_there() {
    let (record, _) = record(PolicyName::Phase, 0.5, 1 << 17);
    assert!(record.forgotten() > 0);
    let mut timeline = Timeline::of(&record).unwrap();
    let whole = checked(&timeline);
    assert!(timeline.operators.iter().all(|op| op.began >= timeline.began));
    assert_eq!(timeline.operators.len() as u64, {
        let completed = |stats: &sched::dispatch::Stats| stats.completed_total();
        completed(&timeline.stats_after) - completed(&timeline.stats_before)
    });
    // The end of it is a timeline as well.
    timeline.keep_last((timeline.ended - timeline.began) / 4);
    let part = checked(&timeline);
    assert!(part.events < whole.events / 2 && part.events > whole.events / 16, "{} of {}", part.events, whole.events);
}

#[test]
fn a_file_that_would_be_too_large_ends_early_and_says_so() {
    let timeline = Timeline::of(&record(PolicyName::Phase, 0.5, 1 << 26).0).unwrap();
    let (text, written) = file(&timeline, 100_000);
    assert!(written.left_out > 0 && text.len() <= 100_000);
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["traceEvents"].as_array().unwrap().len() as u64, written.events);
}

#[test]
fn a_decision_is_told_with_who_waited_why_and_until_when() {
    let (record, _) = record(PolicyName::Phase, 0.5, 1 << 26);
    let timeline = Timeline::of(&record).unwrap();
    let hold = timeline.holds.iter().filter(|h| !h.open).max_by_key(|h| h.ended - h.since).unwrap();
    // In the middle of the longest hold-back somebody else was chosen and this one was not.
    let at = (hold.since + hold.ended) / 2;
    let (found, replayed) = decision::find(&record, at, hold.ended, 3).unwrap();
    assert_eq!(replayed, timeline.replayed);
    let first = &found.decisions[0];
    let held = first.held.iter().find(|h| h.op.stream == hold.stream.stream).unwrap();
    assert_eq!((held.reason, held.held_for_ns), (hold.reason.name(), first.at_ns - hold.since));
    assert_eq!(held.ended_in_ns, Some(hold.ended - first.at_ns));
    assert!(first.ready.iter().any(|op| op.stream == hold.stream.stream), "{first:?}");
    assert!(first.chosen.iter().all(|op| op.stream != hold.stream.stream), "{first:?}");
    let text = first.text(&timeline.about, timeline.began);
    for part in ["policy phase", "held back", hold.reason.words(), "ready", "looked at again", "later"] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    // The one in force at a moment in which nothing was decided.
    let (in_force, _) = decision::find(&record, first.at_ns + 1, first.at_ns, 1).unwrap();
    assert_eq!(in_force.decisions.first(), Some(first));
}

//! The dispatcher's promises, one by one.

use sched::dispatch::{EventStatus, Label, Refused, Window};
use sched::policy::PolicyName;
use sched::{
    Action, Demand, Dispatcher, EventKey, Item, Limits, Nanos, Phase, PolicyConfig, SessionParams, StreamKey, Token,
};

const A: StreamKey = StreamKey { session: 1, stream: 1 };
const B: StreamKey = StreamKey { session: 1, stream: 2 };
const E: EventKey = EventKey { session: 1, event: 7 };

fn op(token: Token, solo: Nanos) -> Item {
    Item::Op {
        token,
        solo,
        demand: Demand { solo_s: solo as f64 * 1e-9, ..Demand::default() },
        phase: Phase::Unknown,
        label: Label::default(),
    }
}

/// Session 1 with streams 1 and 2, session 2 with stream 1, everything passed through.
fn dispatcher(limits: Limits) -> Dispatcher {
    let mut d = Dispatcher::new(PolicyConfig::named(PolicyName::Passthrough), limits);
    d.open_session(1, SessionParams::default()).unwrap();
    d.open_session(2, SessionParams::default()).unwrap();
    for key in [A, B, StreamKey { session: 2, stream: 1 }] {
        d.open_stream(key, 0).unwrap();
    }
    d
}

/// Submitted tokens as they are, answered ones negative.
fn step(d: &mut Dispatcher, now: Nanos) -> Vec<i64> {
    let mut out = Vec::new();
    d.step(now, &mut out);
    out.into_iter()
        .map(|a| match a {
            Action::Submit { token, .. } => token as i64,
            Action::Done { token } => -(token as i64),
        })
        .collect()
}

#[test]
fn a_wait_binds_to_the_record_before_it() {
    use Item::{RecordEvent as Record, ResetEvent as Reset, WaitEvent as Wait};
    // What is pushed to A, to B, to A again, and then B's operator 9; how many completions of A's operators let 9 go.
    type Case<'a> = (&'a str, &'a [Item], &'a [Item], &'a [Item], usize);
    let cases: [Case<'_>; 6] = [
        ("no record", &[op(1, 5)], &[Wait(E)], &[], 0),
        ("a record", &[op(1, 5), Record(E), op(2, 5)], &[Wait(E)], &[], 1),
        ("re-recorded before the wait", &[op(1, 5), Record(E), op(2, 5), Record(E)], &[Wait(E)], &[], 2),
        ("re-recorded after the wait", &[op(1, 5), Record(E)], &[Wait(E)], &[op(2, 5), Record(E)], 1),
        ("reset before the wait", &[op(1, 5), Record(E), Reset(E)], &[Wait(E)], &[], 0),
        ("reset after the wait", &[op(1, 5), Record(E), op(2, 5)], &[Wait(E)], &[Reset(E)], 1),
    ];
    for (name, before, wait, after, needs) in cases {
        let mut d = dispatcher(Limits::default());
        for (key, items) in [(A, before), (B, wait), (A, after)] {
            for item in items {
                d.push(0, key, *item).unwrap();
            }
        }
        d.push(0, B, op(9, 5)).unwrap();
        let mut gone = step(&mut d, 0).contains(&9).then_some(0);
        for (completed, token) in [(1, 1), (2, 2)] {
            d.complete(completed, token);
            if step(&mut d, completed).contains(&9) {
                gone = Some(completed);
            }
        }
        assert_eq!(gone, Some(needs as u64), "{name}");
    }
}

#[test]
fn records_and_waiters_do_not_hold_their_own_stream_back() {
    let mut d = dispatcher(Limits::default());
    for item in [op(1, 5), Item::RecordEvent(E), Item::Notify { token: 50 }, op(2, 5)] {
        d.push(0, A, item).unwrap();
    }
    assert_eq!(step(&mut d, 0), [1, 2], "both operators are with the device");
    d.complete(10, 1);
    assert_eq!(step(&mut d, 10), [-50], "the waiter looks at the first one only");
    assert_eq!(d.event_status(E), EventStatus { recorded: true, complete: true, time: Some(10) });
}

#[test]
fn host_waits_are_answered_at_once_where_there_is_nothing_to_wait_for() {
    let mut d = dispatcher(Limits::default());
    assert_eq!(d.event_status(E), EventStatus::default());
    d.notify_event(0, E, 1);
    d.notify_device(0, 1, 2);
    d.push(0, A, Item::Notify { token: 3 }).unwrap();
    assert_eq!(d.earliest_release(5), Some(5));
    assert_eq!(step(&mut d, 5), [-1, -2, -3]);
    assert_eq!(d.earliest_release(5), None);
}

#[test]
fn a_device_wait_covers_what_was_pushed_before_it_on_every_stream() {
    let mut d = dispatcher(Limits::default());
    d.push(0, A, op(1, 5)).unwrap();
    d.push(0, B, op(2, 5)).unwrap();
    d.push(0, StreamKey { session: 2, stream: 1 }, op(3, 5)).unwrap();
    d.notify_device(0, 1, 50);
    d.push(0, A, op(4, 5)).unwrap();
    step(&mut d, 0);
    d.complete(1, 1);
    assert_eq!(step(&mut d, 1), [0i64; 0]);
    d.complete(2, 2);
    assert_eq!(step(&mut d, 2), [-50], "neither the later operator nor the neighbour's");
}

#[test]
fn an_event_remembers_when_its_last_record_completed() {
    let mut d = dispatcher(Limits::default());
    d.push(3, A, Item::RecordEvent(E)).unwrap();
    assert_eq!(d.event_status(E).time, Some(3), "nothing was before it");
    d.push(4, A, op(1, 5)).unwrap();
    d.push(4, A, Item::RecordEvent(E)).unwrap();
    assert_eq!(d.event_status(E), EventStatus { recorded: true, complete: false, time: None });
    d.notify_event(4, E, 60);
    step(&mut d, 4);
    d.complete(9, 1);
    assert_eq!(step(&mut d, 9), [-60]);
    assert_eq!(d.event_status(E).time, Some(9));
    d.destroy_event(E);
    assert_eq!(d.event_status(E), EventStatus::default());
}

#[test]
fn a_destroyed_stream_drains_and_takes_nothing_new() {
    let mut d = dispatcher(Limits::default());
    d.push(0, A, op(1, 5)).unwrap();
    d.push(0, A, op(2, 5)).unwrap();
    d.close_stream(0, A);
    assert_eq!(d.push(0, A, op(3, 5)), Err(Refused::NoStream(A)));
    assert_eq!(step(&mut d, 0), [1, 2]);
    d.complete(1, 1);
    d.complete(2, 2);
    assert_eq!((d.queued(), d.in_flight()), (0, 0));
    d.open_stream(A, 0).unwrap();
    d.push(3, A, op(4, 5)).unwrap();
    assert_eq!(step(&mut d, 3), [4], "the name may come back");
}

#[test]
fn a_dead_session_gives_back_what_never_ran_and_releases_its_neighbours() {
    let fixed = Limits { window: Window::Fixed(1), ..Limits::default() };
    let mut d = Dispatcher::new(PolicyConfig::named(PolicyName::Fifo), fixed);
    let other = StreamKey { session: 2, stream: 0 };
    d.open_session(1, SessionParams::default()).unwrap();
    d.open_session(2, SessionParams::default()).unwrap();
    d.open_stream(A, 0).unwrap();
    for item in [op(1, 5), op(2, 5), Item::RecordEvent(E), Item::Notify { token: 50 }] {
        d.push(0, A, item).unwrap();
    }
    d.notify_event(0, E, 51);
    d.notify_device(0, 1, 52);
    d.push(0, other, Item::WaitEvent(E)).unwrap();
    d.push(0, other, op(3, 5)).unwrap();
    assert_eq!(step(&mut d, 0), [1]);
    let mut dropped = Vec::new();
    d.close_session(1, 1, &mut dropped);
    dropped.sort_unstable();
    assert_eq!(dropped, [2, 50, 51, 52]);
    assert_eq!(step(&mut d, 1), [0i64; 0], "the device still runs the dead one's operator");
    d.complete(5, 1);
    assert_eq!(step(&mut d, 5), [3], "the neighbour goes on");
    d.complete(9, 3);
    assert_eq!((d.queued(), d.in_flight(), d.stats().dropped, d.stats().unknown_completions), (0, 0, 4, 0));
    assert_eq!(d.push(9, A, op(4, 5)), Err(Refused::NoStream(A)));
}

#[test]
fn limits_refuse_with_their_number_and_change_nothing() {
    let limits = Limits {
        sessions_max: 2,
        streams_per_session_max: 3,
        items_per_session_max: 2,
        events_per_session_max: 1,
        ..Limits::default()
    };
    let mut d = dispatcher(limits);
    assert_eq!(d.open_session(3, SessionParams::default()), Err(Refused::TooManySessions(2)));
    assert_eq!(d.open_session(1, SessionParams::default()), Err(Refused::SessionExists(1)));
    assert_eq!(d.open_stream(StreamKey { session: 1, stream: 9 }, 0), Err(Refused::TooManyStreams(3)));
    assert_eq!(d.open_stream(StreamKey { session: 9, stream: 0 }, 0), Err(Refused::NoSession(9)));
    d.push(0, A, Item::RecordEvent(E)).unwrap();
    let second = Item::RecordEvent(EventKey { session: 1, event: 8 });
    assert_eq!(d.push(0, A, second), Err(Refused::TooManyEvents(1)));
    d.push(0, A, Item::RecordEvent(E)).expect("recording the same event again is no second one");
    d.push(0, A, op(1, 5)).unwrap();
    d.push(0, B, op(2, 5)).unwrap();
    assert!(!d.has_room(1) && d.has_room(2));
    assert_eq!(d.push(0, A, op(3, 5)), Err(Refused::TooManyItems(2)));
    step(&mut d, 0);
    d.complete(5, 1);
    assert!(d.has_room(1));
    d.push(5, A, op(3, 5)).unwrap();
}

#[test]
fn windows_hide_the_hand_over_and_no_more() {
    for (window, solo, want) in [
        (Window::Fixed(4), 100, 4),
        (Window::Adaptive { handoff: 0, max: 16 }, 100, 1),
        (Window::Adaptive { handoff: 50, max: 16 }, 100, 2),
        (Window::Adaptive { handoff: 250, max: 16 }, 100, 4),
        (Window::Adaptive { handoff: 1_000_000, max: 16 }, 100, 16),
        (Window::Adaptive { handoff: 100, max: 16 }, 0, 16),
    ] {
        let mut d = Dispatcher::new(PolicyConfig::named(PolicyName::Fifo), Limits { window, ..Limits::default() });
        d.open_session(1, SessionParams::default()).unwrap();
        for token in 0..20 {
            d.push(0, StreamKey { session: 1, stream: 0 }, op(token, solo)).unwrap();
        }
        assert_eq!(step(&mut d, 0).len(), want, "{window:?}, operators of {solo} ns");
    }
}

#[test]
fn a_sleeper_learns_when_the_next_answer_can_come() {
    let mut d = dispatcher(Limits::default());
    // A decode step on A, read back on B, which waits for it: the host waits for B.
    for token in 1..=3 {
        d.push(0, A, op(token, 100)).unwrap();
    }
    d.push(0, A, Item::RecordEvent(E)).unwrap();
    d.push(0, B, Item::WaitEvent(E)).unwrap();
    d.push(0, B, op(4, 10)).unwrap();
    assert_eq!(d.earliest_release(0), None, "nobody waits");
    d.push(0, B, Item::Notify { token: 50 }).unwrap();
    step(&mut d, 0);
    assert_eq!(d.earliest_release(0), Some(310));
    d.complete(120, 1);
    assert_eq!(d.earliest_release(150), Some(330), "the first operator took 20 longer");
    d.notify_event(150, E, 51);
    assert_eq!(d.earliest_release(150), Some(320), "the event comes before its copy");
}

#[test]
fn time_never_goes_back() {
    let mut d = dispatcher(Limits::default());
    d.push(100, A, op(1, 5)).unwrap();
    d.push(100, A, Item::RecordEvent(E)).unwrap();
    step(&mut d, 100);
    d.complete(90, 1);
    assert_eq!(d.event_status(E).time, Some(100));
}

#[test]
fn unknown_completions_are_counted_and_ignored() {
    let mut d = dispatcher(Limits::default());
    d.push(0, A, op(1, 5)).unwrap();
    d.complete(0, 1);
    step(&mut d, 0);
    d.complete(1, 1);
    d.complete(1, 1);
    assert_eq!(d.stats().unknown_completions, 2, "before its submission and after its completion");
    assert_eq!(d.stats().completed_total(), 1);
}

/// Shapes come from clients: whatever time they are predicted to take, nothing overflows.
#[test]
fn absurd_predictions_do_no_harm() {
    for name in PolicyName::ALL {
        let mut d = Dispatcher::new(PolicyConfig::named(name), Limits::default());
        d.open_session(1, SessionParams::default()).unwrap();
        let huge = Demand { cube: f64::INFINITY, hbm: f64::INFINITY, solo_s: f64::INFINITY, ..Demand::default() };
        for (stream, phase) in [(1, Phase::Prefill), (2, Phase::Decode), (3, Phase::Unknown)] {
            let key = StreamKey { session: 1, stream };
            d.open_stream(key, 0).unwrap();
            for i in 0..4 {
                let token = u64::from(stream) * 10 + i;
                d.push(0, key, Item::Op { token, solo: Nanos::MAX, demand: huge, phase, label: Label::default() })
                    .unwrap();
            }
            d.push(0, key, Item::Notify { token: 100 + u64::from(stream) }).unwrap();
        }
        let (mut now, mut answered, mut running) = (0, 0, std::collections::VecDeque::new());
        while answered < 3 {
            let gone = step(&mut d, now);
            answered += gone.iter().filter(|t| **t < 0).count();
            running.extend(gone.into_iter().filter(|t| *t > 0));
            d.earliest_release(now);
            now += 1_000_000_000;
            if let Some(token) = running.pop_front() {
                d.complete(now, token as Token);
            }
            assert!(now < 1_000 * 1_000_000_000, "{}: no end in sight", name.name());
        }
        assert_eq!(d.queued(), 0, "{}", name.name());
    }
}

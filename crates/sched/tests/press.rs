//! Streams that other devices wait for: no policy holds their operators back, and only theirs, and only while they are waited for.

use sched::policy::PolicyName;
use sched::{
    Action, Demand, Dispatcher, EventKey, Item, Label, Limits, Nanos, Phase, PolicyConfig, SessionParams, StreamKey,
    Token,
};

const MS: Nanos = 1_000_000;
/// The session whose work the policy prefers.
const FIRST: u64 = 1;
const SECOND: u64 = 2;

fn key(session: u64, stream: u32) -> StreamKey {
    StreamKey { session, stream }
}

fn op(token: Token) -> Item {
    let demand = Demand { hbm: 1e-3, solo_s: 1e-3, ..Demand::default() };
    Item::Op { token, solo: MS, demand, phase: Phase::Unknown, label: Label::default() }
}

/// Strict priority: while the first session has work, the second waits.
fn dispatcher() -> Dispatcher {
    let mut d = Dispatcher::new(PolicyConfig::named(PolicyName::Priority), Limits::default());
    for (session, priority) in [(FIRST, 9), (SECOND, 0)] {
        d.open_session(session, SessionParams { priority, ..SessionParams::default() }).unwrap();
        d.open_stream(key(session, 1), 0).unwrap();
        d.open_stream(key(session, 2), 0).unwrap();
    }
    d.push(0, key(FIRST, 1), op(100)).unwrap();
    d.push(0, key(FIRST, 1), op(101)).unwrap();
    d
}

fn submitted(d: &mut Dispatcher, now: Nanos) -> Vec<Token> {
    let mut out = Vec::new();
    d.step(now, &mut out);
    let submit = |a: &Action| if let Action::Submit { token, .. } = *a { Some(token) } else { None };
    out.iter().filter_map(submit).collect()
}

#[test]
fn a_pressed_stream_goes_although_the_policy_holds_it_back() {
    let mut d = dispatcher();
    d.push(0, key(SECOND, 1), op(1)).unwrap();
    d.push(0, key(SECOND, 2), op(2)).unwrap();
    assert_eq!(submitted(&mut d, 0), [100], "the other session waits");
    d.press(1, key(SECOND, 1), true);
    assert_eq!(submitted(&mut d, 1), [1], "what is waited for goes, its neighbour does not");
    d.press(2, key(SECOND, 1), false);
    d.push(2, key(SECOND, 1), op(3)).unwrap();
    d.complete(2, 1);
    assert!(submitted(&mut d, 2).is_empty(), "nobody waits any more");
}

#[test]
fn what_a_pressed_stream_waits_for_goes_too_and_no_further() {
    let event = EventKey { session: SECOND, event: 5 };
    let mut d = dispatcher();
    // The collective's stream waits for the second of three operators of the stream that computes.
    for item in [op(1), op(2), Item::RecordEvent(event), op(3)] {
        d.push(0, key(SECOND, 1), item).unwrap();
    }
    d.push(0, key(SECOND, 2), Item::WaitEvent(event)).unwrap();
    d.push(0, key(SECOND, 2), Item::Notify { token: 77 }).unwrap();
    assert_eq!(submitted(&mut d, 0), [100]);
    d.press(1, key(SECOND, 2), true);
    let mut gone = submitted(&mut d, 1);
    d.complete(2, 1);
    gone.extend(submitted(&mut d, 2));
    assert_eq!(gone, [1, 2]);
    let mut out = Vec::new();
    d.complete(3, 2);
    d.step(3, &mut out);
    assert_eq!(out, [Action::Done { token: 77 }], "the stream has got there; operator 3 is held back");
}

#[test]
fn a_stream_that_is_gone_is_pressed_no_more() {
    let mut d = dispatcher();
    d.press(0, key(SECOND, 9), true);
    d.press(0, key(SECOND, 1), true);
    d.close_session(0, SECOND, &mut Vec::new());
    d.open_session(3, SessionParams::default()).unwrap();
    d.open_stream(key(3, 1), 0).unwrap();
    d.push(0, key(3, 1), op(1)).unwrap();
    assert_eq!(submitted(&mut d, 1), [100], "its number is another stream's now");
}

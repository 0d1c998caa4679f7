//! Decision records: what they hold, when they end, and that a dispatcher which decides otherwise is found out. That every
//! record of a random program replays is a property in `properties.rs`.

use sched::dispatch::{FlagKey, HintInput, HintKind, Record, RecordEntry, ReplayError};
use sched::policy::PolicyName;
use sched::{
    Action, Demand, Dispatcher, EventKey, Item, Limits, Nanos, Phase, PolicyConfig, SessionParams, StreamKey, Token,
};

const MS: Nanos = 1_000_000;
const ROOM: usize = 1 << 16;

fn key(stream: u32) -> StreamKey {
    StreamKey { session: 7, stream }
}

fn event(event: u32) -> EventKey {
    EventKey { session: 7, event }
}

fn op(token: Token, phase: Phase, ms: u64) -> Item {
    let solo_s = ms as f64 / 3e3;
    Item::Op { token, solo: ms * MS, demand: Demand { hbm: solo_s / 7.0, solo_s, ..Demand::default() }, phase }
}

fn step(d: &mut Dispatcher, now: Nanos) -> Vec<Action> {
    let mut out = Vec::new();
    d.step(now, &mut out);
    out
}

/// Every kind of input; answers the dispatcher, its recording still on.
fn busy_run(config: PolicyConfig, bytes_max: usize) -> Dispatcher {
    let mut d = Dispatcher::new(config, Limits::default());
    d.start_record(bytes_max).unwrap();
    d.open_session(7, SessionParams { weight: 3, priority: 1 }).unwrap();
    d.open_stream(key(1), 2).unwrap();
    d.open_stream(key(2), 0).unwrap();
    let kind = HintKind::Admitted { prompt_tokens: 9, max_tokens: 300, ttft: 900 * MS, tpot: 40 * MS, priority: 2 };
    for kind in [kind, HintKind::PrefillStarted, HintKind::FirstToken, HintKind::Progress { tokens: 4 }] {
        d.hint(MS, 7, &HintInput { request: u64::MAX, kind });
    }
    for (i, phase) in [Phase::Decode, Phase::Prefill, Phase::Decode, Phase::Prefill].into_iter().enumerate() {
        d.push(MS, key(1 + i as u32 % 2), op(i as u64, phase, 2)).unwrap();
    }
    d.push(MS, key(1), Item::RecordEvent(event(1))).unwrap();
    d.push(MS, key(2), Item::WaitEvent(event(1))).unwrap();
    d.push(MS, key(2), Item::Notify { token: 50 }).unwrap();
    d.notify_event(MS, event(1), 51);
    d.notify_device(MS, 7, 52);
    let (mut now, mut done) = (MS, 0);
    while done < 7 {
        let actions = step(&mut d, now);
        done += actions.len();
        for action in actions {
            if let Action::Submit { token, .. } = action {
                now += 2 * MS;
                d.complete(now, token);
            }
        }
        now = d.wake_at(now).unwrap_or(now);
    }
    d.push(now, key(2), Item::ResetEvent(event(1))).unwrap();
    let flag = FlagKey { session: 7, flag: 3 };
    for item in [Item::SetFlag(flag), Item::AwaitFlag(flag), Item::ClearFlag(flag)] {
        d.push(now, key(2), item).unwrap();
    }
    d.release_flag(now, flag);
    d.destroy_event(event(2));
    d.close_stream(now, key(1));
    d.set_policy(PolicyConfig::named(PolicyName::Fifo));
    d.push(now, key(2), op(99, Phase::Unknown, 1)).unwrap();
    d.close_session(now, 7, &mut Vec::new());
    for kind in [HintKind::Finished, HintKind::Aborted] {
        d.hint(now, 7, &HintInput { request: 3, kind });
    }
    step(&mut d, now);
    d
}

#[test]
fn a_record_survives_its_file_and_replays() {
    for name in PolicyName::ALL {
        let record = busy_run(PolicyConfig::named(name), ROOM).take_record().unwrap();
        let read = Record::from_bytes(record.bytes().to_vec()).unwrap();
        assert_eq!(read.head().unwrap(), (PolicyConfig::named(name), Limits::default()));
        let entries: Vec<RecordEntry> = read.entries().unwrap().collect::<Result<_, _>>().unwrap();
        let kinds: std::collections::HashSet<_> = entries.iter().map(std::mem::discriminant).collect();
        assert_eq!(kinds.len(), 14, "every kind of entry but none twice: {kinds:?}");
        let replayed = read.replay().unwrap();
        assert_eq!((replayed.decisions, replayed.inputs + 7), (7, entries.len() as u64), "{}", name.name());
        assert_eq!(record.bytes(), busy_run(PolicyConfig::named(name), ROOM).take_record().unwrap().bytes());
    }
}

#[test]
fn a_dispatcher_that_decides_otherwise_is_found_out() {
    let record = busy_run(PolicyConfig::named(PolicyName::Phase), ROOM).take_record().unwrap();
    let mut other = Dispatcher::new(PolicyConfig::named(PolicyName::Fifo), Limits::default());
    match record.replay_on(&mut other) {
        Err(ReplayError::Differs { at, recorded, decided, .. }) => {
            assert_eq!(at, MS);
            assert_ne!(recorded, decided);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_full_buffer_ends_the_record_and_the_rest_is_counted() {
    let whole = busy_run(PolicyConfig::named(PolicyName::Phase), ROOM).take_record().unwrap();
    let entries = whole.entries().unwrap().count();
    for bytes_max in [0, whole.bytes().len() / 2, whole.bytes().len() * 3 / 4, whole.bytes().len() - 1] {
        let part = busy_run(PolicyConfig::named(PolicyName::Phase), bytes_max).take_record().unwrap();
        let kept = part.entries().unwrap().count();
        assert_eq!(kept as u64 + part.missing(), entries as u64);
        assert!(part.missing() > 0 && part.replay().is_ok(), "{bytes_max} bytes");
    }
}

#[test]
fn a_recording_starts_on_an_idle_dispatcher_only_and_keeps_what_is_open() {
    let mut d = Dispatcher::new(PolicyConfig::named(PolicyName::Phase), Limits::default());
    d.open_session(7, SessionParams { weight: 2, priority: 5 }).unwrap();
    d.open_session(3, SessionParams::default()).unwrap();
    d.open_stream(key(4), 3).unwrap();
    d.push(MS, key(4), op(1, Phase::Decode, 2)).unwrap();
    d.push(MS, key(4), Item::RecordEvent(event(9))).unwrap();
    assert_eq!(d.start_record(ROOM).unwrap_err().items, 2);
    assert!(d.take_record().is_none());
    assert_eq!(step(&mut d, MS).len(), 1);
    d.complete(4 * MS, 1);
    let (status, stats) = (d.event_status(event(9)), d.stats().clone());
    assert_eq!(status.time, Some(4 * MS));
    d.start_record(ROOM).unwrap();
    assert_eq!((d.event_status(event(9)), d.stats()), (status, &stats));
    // A wait for what was recorded before passes; work goes on where it was.
    d.push(5 * MS, key(4), Item::WaitEvent(event(9))).unwrap();
    d.push(5 * MS, key(4), op(2, Phase::Prefill, 2)).unwrap();
    assert_eq!(step(&mut d, 5 * MS), [Action::Submit { token: 2, stream: key(4) }]);
    d.complete(7 * MS, 2);
    step(&mut d, 7 * MS);
    let replayed = d.take_record().unwrap().replay().unwrap();
    assert_eq!(replayed.decisions, 1);
}

#[test]
fn bytes_that_are_no_record_are_refused() {
    let record = busy_run(PolicyConfig::named(PolicyName::Phase), ROOM).take_record().unwrap();
    let bytes = record.bytes();
    for cut in [0, 5, 9, 20] {
        assert!(Record::from_bytes(bytes[..cut].to_vec()).is_err(), "{cut} bytes");
    }
    let mut other = bytes.to_vec();
    other[7] = b'9';
    assert!(Record::from_bytes(other).unwrap_err().to_string().contains("version"));
    // Whatever a byte is changed to: an error or another record, never a panic or a run without end.
    for at in 0..bytes.len() {
        for value in [0, 0x7f, 0xff] {
            let mut broken = bytes.to_vec();
            broken[at] = value;
            if let Ok(record) = Record::from_bytes(broken) {
                assert!(record.entries().unwrap().count() <= bytes.len());
            }
        }
    }
    let cut = Record::from_bytes(bytes[..bytes.len() - 1].to_vec()).unwrap();
    assert!(matches!(cut.replay(), Err(ReplayError::Malformed(_))));
}

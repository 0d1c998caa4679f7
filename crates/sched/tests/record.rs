//! Decision records: what they hold, when they end, and that a dispatcher which decides otherwise is found out. That every
//! record of a random program replays is a property in `properties.rs`.

use sched::dispatch::{
    Aside, FlagKey, HintInput, HintKind, HoldReason, HoldSpan, Label, Record, RecordEntry, RecordError, RecordLimits,
    ReplayError, Spectator,
};
use sched::policy::PolicyName;
use sched::{
    Action, Demand, Dispatcher, EventKey, Item, Limits, Nanos, Phase, PolicyConfig, SessionParams, StreamKey, Token,
};
use std::collections::VecDeque;

const MS: Nanos = 1_000_000;
const ROOM: RecordLimits = RecordLimits { bytes_max: 1 << 16, span: Nanos::MAX };

/// The finished recording, through a file.
fn recorded(d: &mut Dispatcher) -> Record {
    Record::from_bytes(d.take_record().expect("was on").to_bytes("{}")).expect("a record")
}

fn key(stream: u32) -> StreamKey {
    StreamKey { session: 7, stream }
}

fn event(event: u32) -> EventKey {
    EventKey { session: 7, event }
}

fn op(token: Token, phase: Phase, ms: u64) -> Item {
    let solo_s = ms as f64 / 3e3;
    Item::Op {
        token,
        solo: ms * MS,
        demand: Demand { hbm: solo_s / 7.0, solo_s, ..Demand::default() },
        phase,
        label: Label::default(),
    }
}

fn step(d: &mut Dispatcher, now: Nanos) -> Vec<Action> {
    let mut out = Vec::new();
    d.step(now, &mut out);
    out
}

/// Every kind of input; answers the dispatcher, its recording still on.
fn busy_run(config: PolicyConfig, limits: RecordLimits) -> Dispatcher {
    let mut d = Dispatcher::new(config, Limits::default());
    d.start_record(limits);
    d.open_session(7, SessionParams { weight: 3, priority: 1, ..SessionParams::default() }).unwrap();
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
    let (label, phase) = (Label::COPY_IN, Phase::Prefill);
    d.note_aside(|| Aside { session: 7, label, phase, solo: 5, began: now - 9, ended: now });
    d.close_session(now, 7, &mut Vec::new());
    for kind in [HintKind::Finished, HintKind::Aborted] {
        d.hint(now, 7, &HintInput { request: 3, kind });
    }
    d.press(now, key(1), true);
    d.press(now, key(1), false);
    step(&mut d, now);
    d
}

#[test]
fn a_record_survives_its_file_and_replays() {
    for name in PolicyName::ALL {
        let read = recorded(&mut busy_run(PolicyConfig::named(name), ROOM));
        assert_eq!((read.about(), read.forgotten()), ("{}", 0));
        assert_eq!(*read.dispatcher().unwrap().policy(), PolicyConfig::named(name));
        let entries: Vec<RecordEntry> = read.entries().unwrap().collect::<Result<_, _>>().unwrap();
        let kinds: std::collections::HashSet<_> = entries.iter().map(std::mem::discriminant).collect();
        assert_eq!(kinds.len(), 16, "every kind of entry: {kinds:?}");
        let replayed = read.replay().unwrap();
        // One entry is no input.
        assert_eq!((replayed.decisions, replayed.inputs + 8), (7, entries.len() as u64), "{}", name.name());
        assert_eq!(read.bytes(), recorded(&mut busy_run(PolicyConfig::named(name), ROOM)).bytes());
    }
}

#[test]
fn a_dispatcher_that_decides_otherwise_is_found_out() {
    let record = recorded(&mut busy_run(PolicyConfig::named(PolicyName::Phase), ROOM));
    let mut other = record.dispatcher().unwrap();
    other.set_policy(PolicyConfig::named(PolicyName::Fifo));
    match record.replay_on(&mut other, &mut ()) {
        Err(ReplayError::Differs { at, recorded, decided, .. }) => {
            assert_eq!(at, MS);
            assert_ne!(recorded, decided);
        }
        other => panic!("{other:?}"),
    }
}

/// Two streams of endless work on a device that completes an operator a millisecond.
struct Load {
    d: Dispatcher,
    now: Nanos,
    token: Token,
    running: VecDeque<Token>,
}

impl Load {
    fn new(name: PolicyName) -> Self {
        let mut d = Dispatcher::new(PolicyConfig::named(name), Limits::default());
        d.open_session(7, SessionParams { weight: 2, priority: 5, ..SessionParams::default() }).unwrap();
        d.open_stream(key(1), 2).unwrap();
        d.open_stream(key(2), 0).unwrap();
        Self { d, now: MS, token: 0, running: VecDeque::new() }
    }

    fn run(&mut self, steps: u64) {
        for _ in 0..steps {
            if let Some(token) = self.running.pop_front() {
                self.d.complete(self.now, token);
            }
            for (stream, phase) in [(1, Phase::Decode), (2, Phase::Prefill)] {
                if self.d.queued() < 40 {
                    self.token += 1;
                    self.d.push(self.now, key(stream), op(self.token, phase, 1)).unwrap();
                    self.d.push(self.now, key(stream), Item::RecordEvent(event(stream))).unwrap();
                }
            }
            self.running.extend(step(&mut self.d, self.now).into_iter().filter_map(|a| match a {
                Action::Submit { token, .. } => Some(token),
                Action::Done { .. } => None,
            }));
            self.now += MS;
        }
    }
}

#[test]
fn a_recording_begins_under_load_and_changes_nothing() {
    for name in PolicyName::ALL {
        let mut load = Load::new(name);
        load.run(150);
        assert!(load.d.queued() > 20 && load.d.in_flight() > 0, "{}: under load", name.name());
        load.d.start_record(ROOM);
        load.run(75);
        let half = load.d.copy_record().unwrap();
        load.run(75);
        let whole = recorded(&mut load.d);
        assert_eq!(whole.forgotten(), 0);
        let replayed = whole.replay().unwrap();
        let half = Record::from_bytes(half.to_bytes("{}")).unwrap().replay().unwrap();
        assert!(half.decisions > 20 && replayed.decisions > half.decisions, "{half:?} {replayed:?}");
        // The replaying dispatcher ends where the recorded one does, counters and all.
        let mut again = whole.dispatcher().unwrap();
        whole.replay_on(&mut again, &mut ()).unwrap();
        assert_eq!((again.stats(), again.queued()), (load.d.stats(), load.d.queued()));
        // And the recorded one where one without a recording does.
        let mut unrecorded = Load::new(name);
        unrecorded.run(300);
        assert_eq!(unrecorded.d.stats(), load.d.stats());
    }
}

#[test]
fn a_full_ring_forgets_the_oldest_and_still_replays() {
    for bytes_max in [0, 2_000, 50_000] {
        let mut load = Load::new(PolicyName::Phase);
        load.d.start_record(RecordLimits { bytes_max, span: Nanos::MAX });
        for _ in 0..40 {
            load.run(50);
            let (_, held, since) = load.d.recording().unwrap();
            // A state under load is some kilobytes, and a piece is at least as large.
            assert!(held <= bytes_max.max(30_000), "{held} bytes");
            assert!(since <= load.now);
        }
        let record = recorded(&mut load.d);
        assert!(record.forgotten() > 0);
        let mut end = record.dispatcher().unwrap();
        assert!(record.replay_on(&mut end, &mut ()).unwrap().decisions > 0);
        assert_eq!(end.stats(), load.d.stats());
    }
}

#[test]
fn a_ring_of_seconds_keeps_the_last_ones() {
    let span = 200 * MS;
    let mut load = Load::new(PolicyName::Fifo);
    load.d.start_record(RecordLimits { bytes_max: 1 << 24, span });
    load.run(1000);
    let (_, _, since) = load.d.recording().unwrap();
    // At least the span, at most an eighth more.
    let kept = load.now - since;
    assert!((span..=span + span / 8 + MS).contains(&kept), "{} ms kept", kept / MS);
    recorded(&mut load.d).replay().unwrap();
}

#[test]
fn bytes_that_are_no_record_are_refused() {
    let bytes = recorded(&mut busy_run(PolicyConfig::named(PolicyName::Phase), ROOM)).bytes().to_vec();
    for cut in [0, 5, 7, 8, 9, 20, bytes.len() - 1] {
        let error = Record::from_bytes(bytes[..cut].to_vec()).unwrap_err();
        assert!(matches!(error, RecordError::Foreign | RecordError::Damaged), "{cut} bytes: {error}");
    }
    let with = |at: usize, value: u8| {
        let mut other = bytes.clone();
        other[at] = value;
        Record::from_bytes(other).unwrap_err()
    };
    assert_eq!(with(7, b'9'), RecordError::Version('9'));
    assert!(with(7, b'9').to_string().contains("version"));
    // Any changed byte is noticed.
    for (at, &byte) in bytes.iter().enumerate().skip(8) {
        assert_eq!(with(at, byte ^ 0x10), RecordError::Damaged, "byte {at}");
    }
    // Another build, checksum and all.
    let mut other = bytes.clone();
    other[9] = if other[9] == b'0' { b'1' } else { b'0' };
    let body = other.len() - 4;
    let sum = crc32fast::hash(&other[..body]);
    other[body..].copy_from_slice(&sum.to_le_bytes());
    let error = Record::from_bytes(other).unwrap_err();
    assert!(matches!(error, RecordError::Build(_)) && error.to_string().contains("another build"), "{error}");
}

#[test]
fn a_spectator_sees_every_hold_back_that_was_counted() {
    struct Holds(Vec<HoldSpan>);
    impl Spectator for Holds {
        fn after(&mut self, _: &RecordEntry, _: &[Action], dispatcher: &mut Dispatcher) {
            self.0.extend(dispatcher.take_holds());
        }
    }
    for name in [PolicyName::Fifo, PolicyName::StaticRatio, PolicyName::Phase] {
        let mut load = Load::new(name);
        load.d.start_record(RecordLimits { bytes_max: 1 << 20, span: Nanos::MAX });
        load.run(400);
        let record = recorded(&mut load.d);
        let mut again = record.dispatcher().unwrap();
        again.watch_holds();
        let mut holds = Holds(Vec::new());
        record.replay_on(&mut again, &mut holds).unwrap();
        let (open, stats) = (again.held().count(), load.d.stats());
        let counted: u64 = stats.holds.iter().map(|h| h.count).sum();
        assert!(counted > 0 && (counted > 10 || name == PolicyName::Phase), "{counted} under {}", name.name());
        assert_eq!(holds.0.len() + open, counted as usize);
        for reason in HoldReason::ALL {
            let total: Nanos = holds.0.iter().filter(|h| h.reason == reason).map(|h| h.ended - h.since).sum();
            assert_eq!(total, stats.holds[reason.index()].total_ns, "{}", reason.name());
        }
    }
}

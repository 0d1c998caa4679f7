//! One table for every policy: which operators each submits, in which order, for the same program.

use sched::policy::PolicyName;
use sched::{Action, Demand, Dispatcher, Item, Label, Limits, Nanos, Phase, PolicyConfig, SessionParams, StreamKey};

const MS: Nanos = 1_000_000;

/// One operator of a program: stream, phase, milliseconds. Streams from 10 on belong to a second session, of three times
/// the weight and a higher priority. Streams 2 and 12 are the less urgent ones of their session.
type Op = (u32, Phase, u64);

const P: Phase = Phase::Prefill;
const D: Phase = Phase::Decode;
const U: Phase = Phase::Unknown;

/// Runs a program whose operators all arrive at once, on a device that takes exactly the predicted time and runs streams
/// side by side without slowing them. Groups of operators submitted at one moment are separated by spaces.
fn order(name: PolicyName, program: &[Op]) -> String {
    let corun = sched::CoRun { omega: 0.0, ..Default::default() };
    let config = PolicyConfig { corun, quota: 4, ..PolicyConfig::named(name) };
    let mut d = Dispatcher::new(config, Limits::default());
    d.open_session(0, SessionParams::default()).unwrap();
    d.open_session(1, SessionParams { weight: 3, priority: 1, ..SessionParams::default() }).unwrap();
    for (i, &(stream, phase, ms)) in program.iter().enumerate() {
        let key = StreamKey { session: u64::from(stream / 10), stream };
        d.open_stream(key, u32::from(stream % 10 == 2)).unwrap();
        let solo_s = (ms * MS) as f64 * 1e-9;
        let demand = Demand { hbm: solo_s, solo_s, ..Demand::default() };
        d.push(0, key, Item::Op { token: i as u64, solo: ms * MS, demand, phase, label: Label::default() }).unwrap();
    }
    let (mut now, mut text) = (0, String::new());
    let mut running: Vec<(StreamKey, Nanos, u64)> = Vec::new();
    loop {
        let mut out = Vec::new();
        d.step(now, &mut out);
        if !out.is_empty() && !text.is_empty() {
            text.push(' ');
        }
        for action in out {
            let Action::Submit { token, stream } = action else { panic!("nobody waits") };
            let begins = running.iter().filter(|r| r.0 == stream).map(|r| r.1).max().unwrap_or(now);
            running.push((stream, begins + program[token as usize].2 * MS, token));
            text.push((b'a' + token as u8) as char);
        }
        let next = running.iter().map(|r| r.1).chain(d.wake_at(now)).min();
        let Some(next) = next else { return text };
        now = next;
        running.sort_by_key(|r| r.1);
        while running.first().is_some_and(|r| r.1 <= now) {
            d.complete(now, running.remove(0).2);
        }
    }
}

#[test]
fn every_policy_on_the_same_programs() {
    type Case = (&'static str, &'static [Op], [&'static str; PolicyName::ALL.len()]);
    // In the order of `PolicyName::ALL`: passthrough, fifo, quota, priority, static-ratio, core-split, phase.
    let cases: [Case; 8] = [
        (
            "one stream runs in order",
            &[(1, D, 1), (1, D, 1), (1, D, 1)],
            ["abc", "a b c", "a b c", "a b c", "a b c", "a b c", "a b c"],
        ),
        (
            "streams of unknown phase run side by side unless order forbids it",
            &[(1, U, 2), (2, U, 2), (1, U, 2), (2, U, 2)],
            ["abcd", "a b c d", "ab cd", "a c b d", "ab cd", "a b c d", "ab cd"],
        ),
        (
            "decode has slack: prefill goes first",
            &[(1, D, 2), (1, D, 2), (2, P, 10), (2, P, 10)],
            ["abcd", "a b c d", "ac b d", "a b c d", "c a b d", "ca b d", "c d a b"],
        ),
        (
            "slack runs out after 50 − 5 − 2·2 ms, less the prefill operator that stands between",
            &[(1, D, 2), (1, D, 2), (2, P, 15), (2, P, 15), (2, P, 15), (2, P, 15)],
            ["abcdef", "a b c d e f", "ac b d e f", "a b c d e f", "c a b d e f", "ca b d e f", "c d a b e f"],
        ),
        (
            "the older prompt first",
            &[(1, P, 10), (2, P, 10), (1, P, 10), (2, P, 10)],
            ["abcd", "a b c d", "ab cd", "a c b d", "ab cd", "a b c d", "a c b d"],
        ),
        (
            "mixed steps are never held back",
            &[(1, sched::Phase::Mixed, 5), (3, P, 10)],
            ["ab", "a b", "ab", "ab", "ab", "ba", "ab"],
        ),
        (
            "two sessions of weights 1 and 3",
            &[
                (1, U, 1),
                (1, U, 1),
                (1, U, 1),
                (1, U, 1),
                (11, U, 1),
                (11, U, 1),
                (11, U, 1),
                (11, U, 1),
                (11, U, 1),
                (11, U, 1),
            ],
            [
                "abcdefghij",
                "a b c d e f g h i j",
                "ea f g bh i j c d",
                "e f g h i j a b c d",
                "ae bf cg dh i j",
                "a b c d e f g h i j",
                "ae bf cg dh i j",
            ],
        ),
        (
            "both phases in turns of equal time",
            &[(1, P, 4), (1, P, 4), (1, P, 4), (3, D, 2), (3, D, 2), (3, D, 2), (3, D, 2)],
            ["abcdefg", "a b c d e f g", "ad e b cf g", "ad e bf g c", "a d e b f g c", "ad e bf g c", "a b c d e f g"],
        ),
    ];
    for (name, program, wants) in cases {
        for (policy, want) in PolicyName::ALL.into_iter().zip(wants) {
            assert_eq!(order(policy, program), want, "{name}, {}", policy.name());
        }
    }
}

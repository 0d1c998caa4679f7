//! One table for every policy: which operators each submits, in which order, for the same program.

use sched::policy::PolicyName;
use sched::{Action, Demand, Dispatcher, Item, Limits, Nanos, Phase, PolicyConfig, SessionParams, StreamKey};

const MS: Nanos = 1_000_000;

/// One operator of a program: stream, phase, milliseconds.
type Op = (u32, Phase, u64);

const P: Phase = Phase::Prefill;
const D: Phase = Phase::Decode;
const U: Phase = Phase::Unknown;

/// Runs a program whose operators all arrive at once, on a device that takes exactly the predicted time and runs streams
/// side by side without slowing them. Groups of operators submitted at one moment are separated by spaces.
fn order(name: PolicyName, program: &[Op]) -> String {
    let config = PolicyConfig { corun: sched::CoRun { omega: 0.0, ..Default::default() }, ..PolicyConfig::named(name) };
    let mut d = Dispatcher::new(config, Limits::default());
    d.open_session(0, SessionParams::default()).unwrap();
    for (i, &(stream, phase, ms)) in program.iter().enumerate() {
        let key = StreamKey { session: 0, stream };
        d.open_stream(key, 0).unwrap();
        let solo_s = (ms * MS) as f64 * 1e-9;
        let demand = Demand { hbm: solo_s, solo_s, ..Demand::default() };
        d.push(0, key, Item::Op { token: i as u64, solo: ms * MS, demand, phase }).unwrap();
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
    use PolicyName::{Fifo, Passthrough, Phase};
    type Case = (&'static str, &'static [Op], [(PolicyName, &'static str); 3]);
    let cases: [Case; 6] = [
        (
            "one stream runs in order",
            &[(1, D, 1), (1, D, 1), (1, D, 1)],
            [(Passthrough, "abc"), (Fifo, "a b c"), (Phase, "a b c")],
        ),
        (
            "streams of unknown phase run side by side unless order forbids it",
            &[(1, U, 2), (2, U, 2), (1, U, 2), (2, U, 2)],
            [(Passthrough, "abcd"), (Fifo, "a b c d"), (Phase, "ab cd")],
        ),
        (
            "decode has slack: prefill goes first",
            &[(1, D, 2), (1, D, 2), (2, P, 10), (2, P, 10)],
            [(Passthrough, "abcd"), (Fifo, "a b c d"), (Phase, "c d a b")],
        ),
        (
            "slack runs out after 50 − 5 − 2·2 ms, less the prefill operator that stands between",
            &[(1, D, 2), (1, D, 2), (2, P, 15), (2, P, 15), (2, P, 15), (2, P, 15)],
            [(Passthrough, "abcdef"), (Fifo, "a b c d e f"), (Phase, "c d a b e f")],
        ),
        (
            "the older prompt first",
            &[(1, P, 10), (2, P, 10), (1, P, 10), (2, P, 10)],
            [(Passthrough, "abcd"), (Fifo, "a b c d"), (Phase, "a c b d")],
        ),
        (
            "mixed steps are never held back",
            &[(1, sched::Phase::Mixed, 5), (2, P, 10)],
            [(Passthrough, "ab"), (Fifo, "a b"), (Phase, "ab")],
        ),
    ];
    for (name, program, wants) in cases {
        for (policy, want) in wants {
            assert_eq!(order(policy, program), want, "{name}, {}", policy.name());
        }
    }
}

//! Host time that the pure part of the data path takes per operator: weighing it, classifying it, queueing it, submitting
//! it and taking its completion. `cargo run --release -p sched --example policy_cost [operators]`
//!
//! The crate reads no clock; this program does.

use acl_abi::{Arg, DataType, OpCall, TensorDesc, ops};
use sched::{Action, Classifier, Dispatcher, Item, Label, Limits, PolicyConfig, Profile, SessionParams, StreamKey};
use std::time::Instant;

fn main() {
    let operators: u64 = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(1_000_000);
    let profile = Profile::A910B3;
    let tensor = |dims: &[i64]| Some(TensorDesc::contiguous(0, DataType::BF16, dims));
    let mut mm = OpCall::new(ops::aclnnMm);
    mm.push_tensor(tensor(&[32, 3584])).push_tensor(tensor(&[3584, 4608])).push_tensor(tensor(&[32, 4608]));
    mm.push(Arg::Int(0));
    let mut classifier = Classifier::default();
    let begun = Instant::now();
    let mut solo = 0;
    for _ in 0..operators {
        solo += profile.solo(&sched::work(std::hint::black_box(&mm)));
        std::hint::black_box(classifier.observe(0, &mm));
    }
    println!("weigh and classify: {:.0} ns an operator", begun.elapsed().as_nanos() as f64 / operators as f64);

    let solo = solo / operators;
    let demand = profile.demand(&sched::work(&mm));
    for name in sched::policy::PolicyName::ALL {
        let config = PolicyConfig::named(name);
        let mut d = Dispatcher::new(config, Limits::default());
        d.open_session(0, SessionParams::default()).expect("opens");
        let keys = [0, 1].map(|stream| StreamKey { session: 0, stream });
        d.open_stream(keys[1], 0).expect("opens");
        let (mut out, mut now, mut token) = (Vec::new(), 0, 0u64);
        let begun = Instant::now();
        // Two streams, a decode step of 400 operators and a prompt of 400, again and again.
        while token < operators {
            for (key, phase) in keys.into_iter().zip([sched::Phase::Decode, sched::Phase::Prefill]) {
                for _ in 0..400 {
                    token += 1;
                    d.push(now, key, Item::Op { token, solo, demand, phase, label: Label::default() }).expect("room");
                }
                d.push(now, key, Item::Notify { token: u64::MAX }).expect("room");
            }
            let mut running = std::collections::VecDeque::new();
            loop {
                out.clear();
                d.step(now, &mut out);
                running.extend(out.iter().filter_map(|a| match a {
                    Action::Submit { token, .. } => Some(*token),
                    Action::Done { .. } => None,
                }));
                now += solo;
                match running.pop_front() {
                    Some(token) => d.complete(now, token),
                    None if d.queued() == 0 => break,
                    None => {}
                }
            }
        }
        println!("{}: {:.0} ns an operator", name.name(), begun.elapsed().as_nanos() as f64 / token as f64);
    }
}

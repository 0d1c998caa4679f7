//! What the dispatch thread costs: nanoseconds an operator from a full ring to the device and back, and the time of a call.
//!
//! `cargo run --release -p runtime --example dispatch_cost [policy]`

mod unpaced;

use std::time::Instant;

use unpaced::Unpaced;

const OPERATORS: u32 = 200_000;
const CALLS: usize = 20_000;

fn main() {
    let policy = std::env::args().nth(1).unwrap_or_else(|| "phase".into()).parse().expect("a policy");
    let unpaced = Unpaced::start(policy);
    for round in 0..5 {
        let each = unpaced.operators(OPERATORS);
        println!("round {round}: {each:.0} ns an operator, posted, dispatched and completed");
    }
    let mut times: Vec<u128> = (0..CALLS)
        .map(|_| {
            let start = Instant::now();
            unpaced.sync();
            start.elapsed().as_nanos()
        })
        .collect();
    times.sort_unstable();
    println!("synchronise an idle stream: p50 {} ns, p99 {} ns", times[CALLS / 2], times[CALLS * 99 / 100]);
    unpaced.handle.shutdown();
}

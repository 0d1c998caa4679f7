//! What keeping a decision record costs: nanoseconds an operator, posted, dispatched and completed, with and without.
//!
//! `cargo run --release -p runtime --example record_cost [policy] [pairs]`
//!
//! Pairs of runs, interleaved, so that a drift of the machine favours neither; the ratio is the median of the pairs' ratios.

mod unpaced;

use sched::Nanos;
use sched::dispatch::RecordLimits;
use unpaced::Unpaced;

const OPERATORS: u32 = 100_000;
const LIMITS: RecordLimits = RecordLimits { bytes_max: 64 << 20, span: Nanos::MAX };

fn main() {
    let policy = std::env::args().nth(1).unwrap_or_else(|| "phase".into()).parse().expect("a policy");
    let pairs: usize = std::env::args().nth(2).and_then(|n| n.parse().ok()).unwrap_or(15);
    let unpaced = Unpaced::start(policy);
    let handle = &unpaced.handle;
    let (mut off, mut on, mut ratios, mut bytes) = (Vec::new(), Vec::new(), Vec::new(), 0);
    unpaced.operators(OPERATORS);
    for pair in 0..pairs {
        let mut times = [0.0; 2];
        for recorded in if pair % 2 == 0 { [false, true] } else { [true, false] } {
            if recorded {
                handle.start_record(LIMITS).expect("a live thread");
            }
            times[usize::from(recorded)] = unpaced.operators(OPERATORS);
            if recorded {
                bytes = handle.snapshot().expect("a live thread").recording.map_or(0, |r| r.bytes);
                handle.stop_record().expect("a live thread");
            }
        }
        off.push(times[0]);
        on.push(times[1]);
        ratios.push(times[1] / times[0]);
    }
    let each = bytes as f64 / f64::from(OPERATORS);
    println!(
        "{:.0} ns an operator without a record, {:.0} ns with one; {each:.0} bytes an operator",
        median(&mut off),
        median(&mut on)
    );
    let middle = median(&mut ratios);
    println!("ratio {middle:.3} [{:.3}, {:.3}], median of {pairs} interleaved pairs", ratios[0], ratios[pairs - 1]);
    unpaced.handle.shutdown();
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

//! What keeping a decision record costs: nanoseconds an operator, posted, dispatched and completed, with and without.
//!
//! `cargo run --release -p runtime --example record_cost [policy] [pairs]`
//!
//! Pairs of runs, interleaved, so that a drift of the machine favours neither; the ratio is the median of the pairs' ratios. The
//! device is a timing one without pace, so that operators take no time of their own. Client and dispatch thread run on two
//! cores; on fewer the figures mean nothing.

use std::sync::Arc;
use std::time::Instant;

use acl_abi::{Arg, DataType, OpCall, Scalar, TensorDesc, ops};
use device::{DeviceSpec, Emulated};
use runtime::{DeviceLoop, Limits};
use sched::dispatch::RecordLimits;
use sched::{Nanos, SessionParams};
use session::{Client, DeviceFacts, Doorbell, Layout, local};
use wire::Record;

const OPERATORS: u32 = 100_000;
const LIMITS: RecordLimits = RecordLimits { bytes_max: 64 << 20, span: Nanos::MAX };

fn main() {
    let doorbell = Doorbell::new().expect("a doorbell");
    let bell = doorbell.clone();
    let spec: DeviceSpec = "Ascend910B3:timing".parse().expect("a device spec");
    let device = Emulated::new(spec.emulated(Arc::new(move || bell.ring()))).expect("a device");
    let policy = std::env::args().nth(1).unwrap_or_else(|| "phase".into()).parse().expect("a policy");
    let pairs: usize = std::env::args().nth(2).and_then(|n| n.parse().ok()).unwrap_or(15);
    let handle = DeviceLoop::spawn(Box::new(device), policy, Limits::default(), doorbell.clone()).expect("a thread");
    let facts = DeviceFacts { soc_name: "Ascend910B3".into(), hbm_bytes: 0, device_index: 0, epoch: 0 };
    let (client, server) = local(Layout::default(), doorbell, facts).expect("a session");
    handle.attach(server, SessionParams::default()).expect("attached");

    let [a, b, out] = [0; 3]
        .map(|_| client.call(|reply| Record::Malloc { size: 1 << 20, reply }).expect("a live session").payload[0]);
    let mut call = OpCall::new(ops::aclnnAdd);
    let tensor = |addr| Some(TensorDesc::contiguous(addr, DataType::F32, &[4, 8, 64]));
    call.push_tensor(tensor(a)).push_tensor(tensor(b));
    call.push(Arg::Scalar(Scalar { dtype: DataType::F32, bits: u64::from(1f32.to_bits()) })).push_tensor(tensor(out));

    let (mut off, mut on, mut ratios, mut bytes) = (Vec::new(), Vec::new(), Vec::new(), 0);
    run(&client, &call);
    for pair in 0..pairs {
        let mut times = [0.0; 2];
        for recorded in if pair % 2 == 0 { [false, true] } else { [true, false] } {
            if recorded {
                handle.start_record(LIMITS).expect("a live thread");
            }
            times[usize::from(recorded)] = run(&client, &call);
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
    handle.shutdown();
}

/// Nanoseconds an operator.
fn run(client: &Client, call: &OpCall) -> f64 {
    let start = Instant::now();
    for _ in 0..OPERATORS {
        client.post(&Record::Op { stream: 0 }, Some(call)).expect("a live session");
    }
    let reply = client.call(|reply| Record::StreamSync { stream: 0, reply }).expect("a live session");
    assert_eq!(reply.status, 0, "{}", reply.text);
    start.elapsed().as_nanos() as f64 / f64::from(OPERATORS)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

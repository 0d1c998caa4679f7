//! What the dispatch thread costs: nanoseconds an operator from a full ring to the device and back, and the time of a call.
//!
//! `cargo run --release -p runtime --example dispatch_cost`
//!
//! The device is a timing one without pace, so that operators take no time of their own. Client and dispatch thread run on
//! two cores; on fewer the figures mean nothing.

use std::sync::Arc;
use std::time::Instant;

use acl_abi::{Arg, DataType, OpCall, Scalar, TensorDesc, ops};
use device::{DeviceSpec, Emulated};
use runtime::{DeviceLoop, Limits};
use sched::SessionParams;
use session::{Client, DeviceFacts, Doorbell, Layout, local};
use wire::Record;

const OPERATORS: u32 = 200_000;
const CALLS: usize = 20_000;

fn main() {
    let doorbell = Doorbell::new().expect("a doorbell");
    let bell = doorbell.clone();
    let spec: DeviceSpec = "Ascend910B3:timing".parse().expect("a device spec");
    let device = Emulated::new(spec.emulated(Arc::new(move || bell.ring()))).expect("a device");
    let policy = std::env::args().nth(1).unwrap_or_else(|| "phase".into()).parse().expect("a policy");
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

    for round in 0..5 {
        let start = Instant::now();
        for _ in 0..OPERATORS {
            client.post(&Record::Op { stream: 0 }, Some(&call)).expect("a live session");
        }
        sync(&client);
        let each = start.elapsed().as_nanos() as f64 / f64::from(OPERATORS);
        println!("round {round}: {each:.0} ns an operator, posted, dispatched and completed");
    }
    let mut times: Vec<u128> = (0..CALLS)
        .map(|_| {
            let start = Instant::now();
            sync(&client);
            start.elapsed().as_nanos()
        })
        .collect();
    times.sort_unstable();
    println!("synchronise an idle stream: p50 {} ns, p99 {} ns", times[CALLS / 2], times[CALLS * 99 / 100]);
    handle.shutdown();
}

fn sync(client: &Client) {
    let reply = client.call(|reply| Record::StreamSync { stream: 0, reply }).expect("a live session");
    assert_eq!(reply.status, 0, "{}", reply.text);
}

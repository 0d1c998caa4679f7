//! How busy one dispatch thread keeps paced devices: `busy_devices DEVICES SECONDS`.
//!
//! Each device decodes without end for a client of its own, which posts Qwen2.5-7B's operators one step ahead: what a
//! device is idle for then is the dispatch thread's doing. Prints a line a device: the part of the time in which it was busy, and
//! its steps a second.

use std::sync::Arc;
use std::time::{Duration, Instant};

use device::{Device, DeviceSpec, Emulated};
use runtime::{DeviceHandle, DeviceLoop, Limits};
use sched::PolicyConfig;
use sched::calls::{Batch, step};
use sched::model::Model;
use session::{Client, DeviceFacts, Doorbell, Layout, Lost, local};
use wire::Record;

const BATCH: usize = 16;
const CONTEXT: u64 = 1024;
const BYTES: u64 = 4 << 30;

fn main() {
    let numbers: Vec<f64> = std::env::args().skip(1).map(|n| n.parse().expect("a number")).collect();
    let [devices, seconds] = numbers[..] else { panic!("want DEVICES SECONDS") };
    let doorbell = Doorbell::new().expect("a doorbell");
    let spec: DeviceSpec = "Ascend910B3:timing:paced".parse().expect("a device");
    let make = |_| -> (Box<dyn Device>, PolicyConfig) {
        let bell = doorbell.clone();
        let device = Emulated::new(spec.clone().emulated(Arc::new(move || bell.ring()))).expect("a device");
        (Box::new(device), "phase".parse().expect("a policy"))
    };
    let devices = (0..devices as usize).map(make).collect();
    let handles = DeviceLoop::spawn_all(devices, Limits::default(), doorbell.clone()).expect("a thread");
    let mut clients = Vec::new();
    for handle in &handles {
        let facts = DeviceFacts { soc_name: "Ascend910B3".into(), hbm_bytes: 0, device_index: 0, epoch: 0 };
        let (client, server) = local(Layout::default(), doorbell.clone(), facts).expect("a session");
        handle.attach(server).expect("attached");
        clients.push(std::thread::spawn(move || decode(&client)));
    }
    std::thread::sleep(Duration::from_millis(500));
    let (start, before) = (Instant::now(), handles.iter().map(busy_ns).collect::<Vec<_>>());
    std::thread::sleep(Duration::from_secs_f64(seconds));
    let (elapsed_s, after) = (start.elapsed().as_secs_f64(), handles.iter().map(busy_ns).collect::<Vec<_>>());
    for ((busy, steps), (busy_before, steps_before)) in after.into_iter().zip(before) {
        let (busy_s, steps) = ((busy - busy_before) as f64 * 1e-9, (steps - steps_before) as f64);
        println!("{} {}", busy_s / elapsed_s, steps / elapsed_s);
    }
    // Ends the thread, and with it the clients' sessions.
    handles[0].shutdown();
    clients.into_iter().for_each(|client| client.join().expect("no panic"));
}

/// Time that the device's operators have taken one after the other, and steps that it has completed.
fn busy_ns(handle: &DeviceHandle) -> (u64, u64) {
    let snapshot = handle.snapshot().expect("the thread answers");
    let ns = snapshot.phases.iter().map(|p| p.measured_ns).sum();
    (ns, snapshot.scheduling.decode_steps)
}

/// Posts one step ahead until the session is lost.
fn decode(client: &Client) {
    let run = || -> Result<(), Lost> {
        let memory = client.call(|reply| Record::Malloc { size: BYTES, reply })?;
        let mut calls = step(&Model::QWEN2_5_7B, &Batch::decode(BATCH, CONTEXT), BATCH as u64);
        calls.iter_mut().flat_map(|c| c.tensors.iter_mut()).for_each(|t| t.addr = memory.payload[0]);
        for event in [0, 1] {
            client.post(&Record::EventCreate { event, flags: 0 }, None)?;
        }
        for number in 0.. {
            let event = number % 2;
            if number >= 2 {
                client.call(|reply| Record::EventSync { event, reply })?;
            }
            for call in &calls {
                client.post(&Record::Op { stream: 0 }, Some(call))?;
            }
            client.post(&Record::EventRecord { event, stream: 0 }, None)?;
        }
        Ok(())
    };
    // The end of the dispatch thread is the end of this.
    let _lost = run();
}

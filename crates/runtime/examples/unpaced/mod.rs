//! A client, a dispatch thread and a device that takes no time: what is measured is the path between them.
//!
//! Client and dispatch thread run on two cores; on fewer the figures mean nothing.

use std::sync::Arc;
use std::time::Instant;

use acl_abi::{Arg, DataType, OpCall, Scalar, TensorDesc, ops};
use device::{DeviceSpec, Emulated};
use runtime::{DeviceHandle, DeviceLoop, Limits};
use sched::PolicyConfig;
use session::{Client, DeviceFacts, Doorbell, Layout, local};
use wire::Record;

/// A session on an emulated device without pace, and an operator to post.
pub struct Unpaced {
    /// The dispatch thread.
    pub handle: DeviceHandle,
    client: Client,
    call: OpCall,
}

impl Unpaced {
    /// Starts the thread under a policy.
    ///
    /// # Panics
    /// If the system refuses a thread or memory.
    pub fn start(policy: PolicyConfig) -> Self {
        let doorbell = Doorbell::new().expect("a doorbell");
        let bell = doorbell.clone();
        let spec: DeviceSpec = "Ascend910B3:timing".parse().expect("a device spec");
        let device = Emulated::new(spec.emulated(Arc::new(move || bell.ring()))).expect("a device");
        let handle =
            DeviceLoop::spawn(Box::new(device), policy, Limits::default(), doorbell.clone()).expect("a thread");
        let facts = DeviceFacts { soc_name: "Ascend910B3".into(), hbm_bytes: 0, device_index: 0, epoch: 0 };
        let (client, server) = local(Layout::default(), doorbell, facts).expect("a session");
        handle.attach(server).expect("attached");

        let [a, b, out] = [0; 3]
            .map(|_| client.call(|reply| Record::Malloc { size: 1 << 20, reply }).expect("a live session").payload[0]);
        let mut call = OpCall::new(ops::aclnnAdd);
        let tensor = |addr| Some(TensorDesc::contiguous(addr, DataType::F32, &[4, 8, 64]));
        call.push_tensor(tensor(a)).push_tensor(tensor(b));
        let one = Scalar { dtype: DataType::F32, bits: u64::from(1f32.to_bits()) };
        call.push(Arg::Scalar(one)).push_tensor(tensor(out));
        Self { handle, client, call }
    }

    /// Nanoseconds an operator, of so many posted, dispatched and completed.
    pub fn operators(&self, count: u32) -> f64 {
        let start = Instant::now();
        for _ in 0..count {
            self.client.post(&Record::Op { stream: 0 }, Some(&self.call)).expect("a live session");
        }
        self.sync();
        start.elapsed().as_nanos() as f64 / f64::from(count)
    }

    /// Waits for everything posted.
    pub fn sync(&self) {
        let reply = self.client.call(|reply| Record::StreamSync { stream: 0, reply }).expect("a live session");
        assert_eq!(reply.status, 0, "{}", reply.text);
    }
}

//! A device, its state machine and a few clients in one thread, with time that moves only when told.
//!
//! A call waits for its answer, so it runs on a thread of its own while this one works as the dispatch thread would. Time
//! stands still until the record has arrived, then jumps to whatever the state machine waits for: modelled times come out
//! the same on every run.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use acl_abi::{Arg, DataType, OpCall, Scalar, TensorDesc, ops};
use device::{DeviceSpec, Emulated};
use runtime::{Core, Limits, Wake};
use sched::{Nanos, PolicyConfig, SessionParams};
use session::{Client, DeviceFacts, Doorbell, Layout, ServerSession, local};
use wire::{HostSource, Record, Reply, ReplyTo};

pub const FUNCTIONAL: &str = "Ascend910B3:functional:hbm=0.0625";
pub const PACED: &str = "Ascend910B3:timing:paced:omega=0:kappa_prefill=0:kappa_decode=0";

/// Longest that a call may take, in real time.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(60);

/// A small session: tests make many.
pub fn layout() -> Layout {
    Layout {
        ring_bytes: 1 << 20,
        arena_bytes: 4 << 20,
        staging_block_bytes: 64 << 10,
        staging_blocks: 8,
        reply_slots: 64,
    }
}

pub fn facts() -> DeviceFacts {
    DeviceFacts { soc_name: "Ascend910B3".into(), hbm_bytes: 0, device_index: 0, epoch: 1 }
}

pub fn emulated(spec: &str, doorbell: &Doorbell) -> Emulated {
    let bell = doorbell.clone();
    let spec: DeviceSpec = spec.parse().unwrap();
    Emulated::new(spec.emulated(Arc::new(move || bell.ring()))).unwrap()
}

pub fn policy(text: &str) -> PolicyConfig {
    text.parse().unwrap()
}

pub struct Bench {
    pub core: Core,
    pub now: Nanos,
    pub doorbell: Doorbell,
    pub ends: Vec<(Client, ServerSession)>,
}

impl Bench {
    pub fn new(spec: &str, policy_text: &str) -> Self {
        Self::with_limits(spec, policy_text, Limits::default())
    }

    pub fn with_limits(spec: &str, policy_text: &str, limits: Limits) -> Self {
        let doorbell = Doorbell::new().unwrap();
        let core = Core::new(Box::new(emulated(spec, &doorbell)), policy(policy_text), limits).unwrap();
        Self { core, now: 1000, doorbell, ends: Vec::new() }
    }

    /// A new session; its index.
    pub fn open(&mut self) -> usize {
        let (client, server) = local(layout(), self.doorbell.clone(), facts()).unwrap();
        self.core.attach(&server, runtime::DEFAULT_TENANT, SessionParams::default()).unwrap();
        self.ends.push((client, server));
        self.ends.len() - 1
    }

    pub fn id(&self, session: usize) -> u64 {
        self.ends[session].1.id()
    }

    pub fn client(&self, session: usize) -> &Client {
        &self.ends[session].0
    }

    /// One turn of the loop at the present time; how many records came.
    pub fn turn(&mut self) -> usize {
        let Self { core, now, ends, .. } = self;
        turn(core, *now, ends)
    }

    /// Lets time pass.
    pub fn pass(&mut self, ns: Nanos) {
        self.now += ns;
        self.turn();
    }

    pub fn post(&mut self, session: usize, record: &Record<'_>) {
        self.ends[session].0.post(record, None).unwrap();
        self.turn();
    }

    pub fn op(&mut self, session: usize, stream: u32, call: &OpCall) {
        self.ends[session].0.post(&Record::Op { stream }, Some(call)).unwrap();
        self.turn();
    }

    /// A call and its answer.
    pub fn call<'a>(&mut self, session: usize, make: impl FnOnce(ReplyTo) -> Record<'a> + Send) -> Reply {
        let Self { core, now, ends, doorbell } = self;
        // The clients stay with the caller's thread by reference; the servers are used here.
        let (clients, mut servers): (Vec<&Client>, Vec<&mut ServerSession>) =
            ends.iter_mut().map(|(c, s)| (&*c, s)).unzip();
        let client = clients[session];
        std::thread::scope(|scope| {
            let caller = scope.spawn(move || client.call(make).unwrap());
            let (started, mut arrived) = (Instant::now(), 0);
            while !caller.is_finished() {
                if started.elapsed() > ANSWER_TIME_MAX {
                    // A panic would wait for the caller, who waits for the answer.
                    eprintln!("a call has no answer after {ANSWER_TIME_MAX:?}");
                    std::process::abort();
                }
                core.advance(*now);
                for server in &mut servers {
                    let id = server.id();
                    let room = core.room(id);
                    if room > 0 {
                        arrived += server.drain(room, &mut |_, r, c| core.record(*now, id, r, c)).unwrap();
                    }
                }
                core.advance(*now);
                if arrived > 0 && core.calls_waiting() > 0 {
                    match core.next_wake(*now) {
                        Wake::At(at) | Wake::By(at) => *now = at.max(*now),
                        Wake::Doorbell => {
                            doorbell.wait(Some(Duration::from_micros(200)));
                        }
                    }
                }
            }
            caller.join().unwrap()
        })
    }

    pub fn malloc(&mut self, session: usize, size: u64) -> u64 {
        let reply = self.call(session, |reply| Record::Malloc { size, reply });
        assert_eq!(reply.status, 0, "{}", reply.text);
        reply.payload[0]
    }

    pub fn free(&mut self, session: usize, addr: u64) -> Reply {
        self.call(session, |reply| Record::Free { addr, reply })
    }

    pub fn sync(&mut self, session: usize, stream: u32) -> Reply {
        self.call(session, |reply| Record::StreamSync { stream, reply })
    }

    pub fn device_sync(&mut self, session: usize) -> Reply {
        self.call(session, |reply| Record::DeviceSync { reply })
    }

    /// Bytes into device memory, synchronously.
    pub fn write(&mut self, session: usize, dst: u64, bytes: &[u8]) -> Reply {
        let source = HostSource::Inline(bytes);
        self.call(session, move |reply| Record::CopyIn { dst, source, stream: None, reply: Some(reply) })
    }

    /// Bytes out of device memory, synchronously.
    pub fn read(&mut self, session: usize, src: u64, len: u64) -> Result<Vec<u8>, Reply> {
        let client = self.client(session);
        let pinned = client.pinned_alloc(len).unwrap();
        let dst = client.pinned_range(pinned, len).unwrap();
        let reply = self.call(session, move |reply| Record::CopyOut { dst, src, stream: None, reply: Some(reply) });
        let mut out = vec![0; len as usize];
        // SAFETY: `pinned` has `len` bytes, and the copy into them is over.
        unsafe { std::ptr::copy_nonoverlapping(pinned, out.as_mut_ptr(), out.len()) };
        assert!(self.client(session).pinned_free(pinned));
        if reply.status == 0 { Ok(out) } else { Err(reply) }
    }

    pub fn elapsed_ms(&mut self, session: usize, start: u32, end: u32) -> Result<f64, Reply> {
        let reply = self.call(session, |reply| Record::EventElapsed { start, end, reply });
        if reply.status == 0 { Ok(f64::from(f32::from_bits(reply.payload[0] as u32))) } else { Err(reply) }
    }

    pub fn free_bytes(&self) -> u64 {
        self.core.device().memory().free
    }
}

pub fn turn(core: &mut Core, now: Nanos, ends: &mut [(Client, ServerSession)]) -> usize {
    core.advance(now);
    let mut taken = 0;
    for (_, server) in ends {
        let id = server.id();
        let room = core.room(id);
        if room > 0 {
            taken += server.drain(room, &mut |_, record, call| core.record(now, id, record, call)).unwrap();
        }
    }
    core.advance(now);
    taken
}

pub fn tensor(addr: u64, dims: &[i64]) -> TensorDesc {
    TensorDesc::contiguous(addr, DataType::F32, dims)
}

/// `out = a + b`, all of `dims`: bound by memory bandwidth.
pub fn add(a: u64, b: u64, out: u64, dims: &[i64]) -> OpCall {
    let mut call = OpCall::new(ops::aclnnAdd);
    call.push_tensor(Some(tensor(a, dims))).push_tensor(Some(tensor(b, dims)));
    call.push(Arg::Scalar(Scalar { dtype: DataType::F32, bits: u64::from(1f32.to_bits()) }));
    call.push_tensor(Some(tensor(out, dims)));
    call
}

/// `out = a · b`, square bfloat16 matrices: bound by the cube cores when large.
pub fn matmul(a: u64, b: u64, out: u64, n: i64) -> OpCall {
    let mut call = OpCall::new(ops::aclnnMatmul);
    for addr in [a, b, out] {
        call.push_tensor(Some(TensorDesc::contiguous(addr, DataType::BF16, &[n, n])));
    }
    call.push(Arg::Int(0));
    call
}

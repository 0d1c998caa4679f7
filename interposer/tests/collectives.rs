//! HCCL through the exported symbols, three ranks in one process: each on a thread and a device of its own, behind three
//! daemons that are a few threads of this program. Ranks in processes of their own are in the Python suites.

mod common;

use std::ffi::{CStr, c_char};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use common::{Acl, NULL, Ptr, load};
use device::{DeviceSpec, Emulated};
use runtime::{DeviceLoop, Limits};
use session::peers::Peers;
use session::{DeviceFacts, Doorbell, Layout, Listener};

const RANKS: usize = 3;
const F32: i32 = 4;
const I64: i32 = 5;
const BF16: i32 = 11;
const SUM: i32 = 0;
const MAX: i32 = 2;
const E_PARA: i32 = 1;
const E_NOT_SUPPORT: i32 = 5;
const E_CONNECT: i32 = 11;
const E_REMOTE: i32 = 21;

#[repr(C)]
#[derive(Clone, Copy)]
struct Item {
    kind: i32,
    buf: Ptr,
    count: u64,
    element: i32,
    remote: u32,
}

more_functions! {
    Hccl {
        HcclGetRootInfo(*mut [u8; 4108]) -> i32;
        HcclCommInitRootInfo(u32, *const [u8; 4108], u32, *mut Ptr) -> i32;
        HcclCommInitRootInfoConfig(u32, *const [u8; 4108], u32, *const [u8; 288], *mut Ptr) -> i32;
        HcclCommInitAll(u32, *const i32, *mut Ptr) -> i32;
        HcclCommDestroy(Ptr) -> i32;
        HcclGetRankSize(Ptr, *mut u32) -> i32;
        HcclGetRankId(Ptr, *mut u32) -> i32;
        HcclGetCommName(Ptr, *mut c_char) -> i32;
        HcclGetCommAsyncError(Ptr, *mut i32) -> i32;
        HcclGetCommConfigCapability() -> u32;
        HcclSetConfig(i32, i32) -> i32;
        HcclGetErrorString(i32) -> *const c_char;
        HcclAllReduce(Ptr, Ptr, u64, i32, i32, Ptr, Ptr) -> i32;
        HcclReduce(Ptr, Ptr, u64, i32, i32, u32, Ptr, Ptr) -> i32;
        HcclBroadcast(Ptr, u64, i32, u32, Ptr, Ptr) -> i32;
        HcclScatter(Ptr, Ptr, u64, i32, u32, Ptr, Ptr) -> i32;
        HcclAllGather(Ptr, Ptr, u64, i32, Ptr, Ptr) -> i32;
        HcclAllGatherV(Ptr, u64, Ptr, *const u64, *const u64, i32, Ptr, Ptr) -> i32;
        HcclReduceScatter(Ptr, Ptr, u64, i32, i32, Ptr, Ptr) -> i32;
        HcclReduceScatterV(Ptr, *const u64, *const u64, Ptr, u64, i32, i32, Ptr, Ptr) -> i32;
        HcclAlltoAll(Ptr, u64, i32, Ptr, u64, i32, Ptr, Ptr) -> i32;
        HcclAlltoAllV(Ptr, *const u64, *const u64, i32, Ptr, *const u64, *const u64, i32, Ptr, Ptr) -> i32;
        HcclAlltoAllVC(Ptr, *const u64, i32, Ptr, i32, Ptr, Ptr) -> i32;
        HcclSend(Ptr, u64, i32, u32, Ptr, Ptr) -> i32;
        HcclRecv(Ptr, u64, i32, u32, Ptr, Ptr) -> i32;
        HcclBatchSendRecv(*const Item, u32, Ptr, Ptr) -> i32;
        HcclBarrier(Ptr, Ptr) -> i32;
        HcclGroupStart() -> i32;
        HcclGroupEnd() -> i32;
    }
}

/// A daemon without a program around it.
fn daemon(socket: &std::path::Path) {
    let bell = Doorbell::new().unwrap();
    let (worker, spec) = (bell.clone(), "Ascend910B3:functional:hbm=0.25".parse::<DeviceSpec>().unwrap());
    let device = Emulated::new(spec.emulated(Arc::new(move || worker.ring()))).unwrap();
    let policy = "fifo".parse().unwrap();
    let handle = DeviceLoop::spawn(Box::new(device), policy, Limits::default(), bell.clone()).unwrap();
    handle.set_peers(Peers::listen(socket, bell.clone()).unwrap()).unwrap();
    let facts = DeviceFacts { soc_name: "Ascend910B3".into(), hbm_bytes: 1 << 28, device_index: 0, epoch: 1 };
    let listener = Listener::bind(socket, Layout::default(), bell, facts).unwrap();
    thread::spawn(move || {
        let mut connections = Vec::new();
        while let Ok((session, connection)) = listener.accept() {
            handle.attach(session).unwrap();
            connections.push(connection);
        }
    });
}

fn library() -> &'static Acl {
    static START: std::sync::Once = std::sync::Once::new();
    static DIR: std::sync::OnceLock<tempfile::TempDir> = std::sync::OnceLock::new();
    let dir = DIR.get_or_init(|| tempfile::tempdir().unwrap()).path();
    let sockets: Vec<_> = (0..RANKS).map(|i| dir.join(format!("{i}.sock"))).collect();
    START.call_once(|| sockets.iter().for_each(|s| daemon(s)));
    let list: Vec<_> = sockets.iter().map(|s| s.display().to_string()).collect();
    load(&[("VNPU_SOCKET", &list.join(","))])
}

/// One test at a time: they share the devices' default streams, and a late error is told to whoever synchronises next.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A rank on its thread.
struct Rank {
    acl: &'static Acl,
    hccl: Hccl,
    me: usize,
    comm: Ptr,
}

/// Does something on every rank at once, in a communicator of their own.
fn on_all(body: impl Fn(&Rank) + Sync) {
    let (acl, _alone) = (library(), turn());
    let hccl = Hccl::of(acl);
    acl.ok((acl.aclrtSetDevice)(0));
    let mut root = [0; 4108];
    acl.ok((hccl.HcclGetRootInfo)(&raw mut root));
    let (root, body) = (&root, &body);
    thread::scope(|scope| {
        for me in 0..RANKS {
            scope.spawn(move || {
                let hccl = Hccl::of(acl);
                acl.ok((acl.aclrtSetDevice)(me as i32));
                let mut comm = NULL;
                acl.ok((hccl.HcclCommInitRootInfo)(RANKS as u32, root, me as u32, &raw mut comm));
                body(&Rank { acl, hccl, me, comm });
            });
        }
    });
}

impl Rank {
    fn done<T: Copy + Default>(&self, at: Ptr, count: usize) -> Vec<T> {
        self.acl.ok((self.acl.aclrtSynchronizeStream)(NULL));
        self.acl.download(at, count)
    }

    /// `count` floats: 100 × rank + 0, 1, 2 …
    fn floats(&self, count: usize) -> Ptr {
        self.acl.upload(&(0..count).map(|i| (100 * self.me + i) as f32).collect::<Vec<_>>())
    }

    fn room(&self, count: usize) -> Ptr {
        self.acl.upload(&vec![-1f32; count])
    }
}

#[test]
fn every_collective_on_three_ranks() {
    on_all(|r| {
        let (h, acl, comm, me) = (&r.hccl, r.acl, r.comm, r.me);
        let own = |i: usize| (100 * me + i) as f32;
        let of = |rank: usize, i: usize| (100 * rank + i) as f32;
        let sum = |i: usize| (300 + 3 * i) as f32;
        let (send, recv) = (r.floats(6), r.room(18));

        acl.ok((h.HcclAllReduce)(send, recv, 6, F32, SUM, comm, NULL));
        assert_eq!(r.done::<f32>(recv, 6), (0..6).map(sum).collect::<Vec<_>>());
        acl.ok((h.HcclAllReduce)(send, recv, 6, F32, MAX, comm, NULL));
        assert_eq!(r.done::<f32>(recv, 6), (0..6).map(|i| of(2, i)).collect::<Vec<_>>());
        acl.ok((h.HcclReduce)(send, if me == 1 { recv } else { NULL }, 2, F32, SUM, 1, comm, NULL));
        if me == 1 {
            assert_eq!(r.done::<f32>(recv, 2), [300.0, 303.0]);
        }
        let buf = r.floats(4);
        acl.ok((h.HcclBroadcast)(buf, 4, F32, 2, comm, NULL));
        assert_eq!(r.done::<f32>(buf, 4), [200.0, 201.0, 202.0, 203.0]);
        acl.ok((h.HcclScatter)(if me == 0 { send } else { NULL }, recv, 2, F32, 0, comm, NULL));
        assert_eq!(r.done::<f32>(recv, 2), [2.0 * me as f32, 2.0 * me as f32 + 1.0]);
        acl.ok((h.HcclAllGather)(send, recv, 2, F32, comm, NULL));
        assert_eq!(r.done::<f32>(recv, 6), [0.0, 1.0, 100.0, 101.0, 200.0, 201.0]);
        // In place.
        let gathered = r.floats(6);
        acl.ok((h.HcclAllGather)(gathered.wrapping_byte_add(8 * me), gathered, 2, F32, comm, NULL));
        let all: Vec<f32> = (0..3).flat_map(|p| [of(p, 2 * p), of(p, 2 * p + 1)]).collect();
        assert_eq!(r.done::<f32>(gathered, 6), all);
        acl.ok((h.HcclReduceScatter)(send, recv, 2, F32, SUM, comm, NULL));
        assert_eq!(r.done::<f32>(recv, 2), [sum(2 * me), sum(2 * me + 1)]);
        acl.ok((h.HcclAlltoAll)(send, 2, F32, recv, 2, F32, comm, NULL));
        assert_eq!(r.done::<f32>(recv, 6), (0..3).flat_map(|p| [of(p, 2 * me), of(p, 2 * me + 1)]).collect::<Vec<_>>());

        // Rank r has r + 1 elements for everyone, or from everyone.
        let (counts, places) = ([1u64, 2, 3], [0u64, 1, 3]);
        acl.ok((h.HcclAllGatherV)(send, me as u64 + 1, recv, counts.as_ptr(), places.as_ptr(), F32, comm, NULL));
        assert_eq!(r.done::<f32>(recv, 6), [0.0, 100.0, 101.0, 200.0, 201.0, 202.0]);
        let scattered =
            (h.HcclReduceScatterV)(send, counts.as_ptr(), places.as_ptr(), recv, me as u64 + 1, F32, SUM, comm, NULL);
        acl.ok(scattered);
        assert_eq!(r.done::<f32>(recv, me + 1), (0..me + 1).map(|i| sum(places[me] as usize + i)).collect::<Vec<_>>());
        // From r to s: r + s elements, so none from 0 to 0.
        let (out, back) = ([0, 1, 2].map(|s| (me + s) as u64), [0u64, 6, 12]);
        let many = r.floats(18);
        let sent = [0u64, 4, 8];
        let moved = (h.HcclAlltoAllV)(
            many,
            out.as_ptr(),
            sent.as_ptr(),
            F32,
            recv,
            out.as_ptr(),
            back.as_ptr(),
            F32,
            comm,
            NULL,
        );
        acl.ok(moved);
        let got = r.done::<f32>(recv, 18);
        for p in 0..RANKS {
            let want: Vec<f32> = (0..p + me).map(|i| of(p, 4 * me + i)).collect();
            assert_eq!(got[6 * p..6 * p + p + me], want, "from {p} to {me}");
        }
        let matrix: Vec<u64> = (0..9).map(|i| (i / 3 + i % 3) as u64).collect();
        acl.ok((h.HcclAlltoAllVC)(many, matrix.as_ptr(), F32, recv, F32, comm, NULL));
        let start = |row: usize, to: usize| (0..to).map(|s| row + s).sum::<usize>();
        let want: Vec<f32> = (0..3).flat_map(|p| (0..p + me).map(move |i| of(p, start(p, me) + i))).collect();
        assert_eq!(r.done::<f32>(recv, want.len()), want);

        // A ring of messages, and all of them at once.
        let (next, before) = ((me + 1) as u32 % 3, (me + 2) as u32 % 3);
        if me == 0 {
            acl.ok((h.HcclSend)(send, 3, F32, next, comm, NULL));
        }
        acl.ok((h.HcclRecv)(recv, 3, F32, before, comm, NULL));
        if me != 0 {
            acl.ok((h.HcclSend)(send, 3, F32, next, comm, NULL));
        }
        assert_eq!(r.done::<f32>(recv, 3), (0..3).map(|i| of(before as usize, i)).collect::<Vec<_>>());
        let item = |kind, buf, remote| Item { kind, buf, count: 2, element: I64, remote };
        let items = [
            item(1, recv, next),
            item(1, recv.wrapping_byte_add(16), before),
            item(0, send, next),
            item(0, send, before),
        ];
        acl.ok((h.HcclBatchSendRecv)(items.as_ptr(), 4, comm, NULL));
        let got = r.done::<f32>(recv, 8);
        assert_eq!(got[..4], [0, 1, 2, 3].map(|i| of(next as usize, i)));
        assert_eq!(got[4..], [0, 1, 2, 3].map(|i| of(before as usize, i)));
        // More than fits between ranks, and everyone sends first: only together can they go on.
        let (large, there) = (r.floats(1 << 20), r.room(1 << 20));
        acl.ok((h.HcclGroupStart)());
        acl.ok((h.HcclSend)(large, 1 << 20, F32, next, comm, NULL));
        acl.ok((h.HcclRecv)(there, 1 << 20, F32, before, comm, NULL));
        acl.ok((h.HcclGroupEnd)());
        assert_eq!(r.done::<f32>(there, 1 << 20)[1 << 19], of(before as usize, 1 << 19));
        acl.fails((h.HcclGroupEnd)(), E_PARA, "HcclGroupStart");
        acl.ok((h.HcclBarrier)(comm, NULL));
        assert_eq!(r.done::<f32>(send, 1), [own(0)], "nobody's own elements have changed");

        assert_eq!(
            (out!(acl, |n: u32| (h.HcclGetRankSize)(comm, n)), out!(acl, |n: u32| (h.HcclGetRankId)(comm, n))),
            (3, me as u32)
        );
        assert_eq!(out!(acl, |e: i32| (h.HcclGetCommAsyncError)(comm, e)), 0);
        acl.ok((h.HcclCommDestroy)(comm));
        acl.fails((h.HcclBarrier)(comm, NULL), E_PARA, "comm");
    });
}

#[test]
fn what_is_wrong_is_said_at_the_call() {
    on_all(|r| {
        let (h, acl, comm) = (&r.hccl, r.acl, r.comm);
        let (a, b) = (r.floats(4), r.room(4));
        acl.fails((h.HcclAllReduce)(a, b, 5000, F32, SUM, comm, NULL), E_PARA, "sendBuf");
        acl.fails((h.HcclAllReduce)(a, NULL, 4, F32, SUM, comm, NULL), E_PARA, "recvBuf: null pointer");
        acl.fails((h.HcclAllReduce)(a, b, 4, 99, SUM, comm, NULL), E_NOT_SUPPORT, "dataType");
        acl.fails((h.HcclAllReduce)(a, b, 4, 12, SUM, comm, NULL), E_NOT_SUPPORT, "is not reduced");
        acl.fails((h.HcclAllReduce)(a, b, 4, F32, 4, comm, NULL), E_PARA, "HcclReduceOp");
        acl.fails((h.HcclAllReduce)(a, b, u64::MAX, F32, SUM, comm, NULL), E_PARA, "more than any memory");
        acl.fails((h.HcclBroadcast)(a, 4, F32, 3, comm, NULL), E_PARA, "rank 3 of 3");
        acl.fails((h.HcclSend)(a, 4, F32, r.me as u32, comm, NULL), E_PARA, "this rank itself");
        acl.fails((h.HcclAlltoAll)(a, 1, F32, b, 1, BF16, comm, NULL), E_PARA, "are sent");
        acl.fails((h.HcclAllReduce)(a, b, 4, F32, SUM, NULL, NULL), E_PARA, "comm");
        acl.fails((h.HcclSetConfig)(7, 0), E_NOT_SUPPORT, "config");
        acl.ok((h.HcclSetConfig)(0, 1));
        assert!((h.HcclGetCommConfigCapability)() > 2, "communicators have names");
        // SAFETY: the texts are constants.
        let text = unsafe { CStr::from_ptr((h.HcclGetErrorString)(E_REMOTE)) };
        assert!(text.to_str().unwrap().contains("another rank"));
        // None of it has harmed the communicator.
        acl.ok((h.HcclAllReduce)(a, b, 4, F32, SUM, comm, NULL));
        assert_eq!(r.done::<f32>(b, 1), [300.0]);
        acl.ok((h.HcclCommDestroy)(comm));
    });
}

#[test]
fn ranks_that_disagree_and_ranks_that_leave() {
    on_all(|r| {
        let (h, acl, comm) = (&r.hccl, r.acl, r.comm);
        let a = r.floats(4);
        let op = if r.me == 2 { MAX } else { SUM };
        acl.ok((h.HcclAllReduce)(a, a, 4, F32, op, comm, NULL));
        let status = (acl.aclrtSynchronizeStream)(NULL);
        assert_eq!(status, 507_057, "{}", acl.message());
        assert_eq!(out!(acl, |e: i32| (h.HcclGetCommAsyncError)(comm, e)), E_REMOTE);
        acl.ok((h.HcclCommDestroy)(comm));
    });
    on_all(|r| {
        let (h, acl, comm) = (&r.hccl, r.acl, r.comm);
        let a = r.floats(4);
        if r.me == 1 {
            // In order, and the others need it nevertheless.
            return acl.ok((h.HcclCommDestroy)(comm));
        }
        acl.ok((h.HcclAllReduce)(a, a, 4, F32, SUM, comm, NULL));
        // A communicator may be destroyed with work under way; nothing hangs.
        acl.ok((h.HcclCommDestroy)(comm));
        acl.fails((acl.aclrtSynchronizeStream)(NULL), 507_057, "is gone");
    });
}

#[test]
fn communicators_are_made_of_what_fits_together() {
    let (acl, _alone) = (library(), turn());
    let h = Hccl::of(acl);
    acl.ok((acl.aclrtSetDevice)(0));
    let mut root = [0; 4108];
    let mut comm = NULL;
    acl.fails((h.HcclCommInitRootInfo)(2, &raw const root, 0, &raw mut comm), E_PARA, "not from HcclGetRootInfo");
    acl.ok((h.HcclGetRootInfo)(&raw mut root));
    acl.fails((h.HcclCommInitRootInfo)(2, &raw const root, 2, &raw mut comm), E_PARA, "2 of 2");
    acl.fails((h.HcclCommInitRootInfo)(99, &raw const root, 0, &raw mut comm), E_PARA, "at most 16");
    root[20] ^= 1;
    acl.fails((h.HcclCommInitRootInfo)(2, &raw const root, 0, &raw mut comm), E_CONNECT, "root info");
    root[20] ^= 1;
    // Alone.
    let mut config = [0u8; 288];
    config[0..4].copy_from_slice(&288u32.to_le_bytes());
    acl.fails(
        (h.HcclCommInitRootInfoConfig)(1, &raw const root, 0, &raw const config, &raw mut comm),
        E_PARA,
        "config",
    );
    config[8..12].copy_from_slice(&0xf0f0_f0f0u32.to_le_bytes());
    config[32..36].copy_from_slice(b"mine");
    acl.ok((h.HcclCommInitRootInfoConfig)(1, &raw const root, 0, &raw const config, &raw mut comm));
    let mut name = [1 as c_char; 128];
    acl.ok((h.HcclGetCommName)(comm, name.as_mut_ptr()));
    // SAFETY: NUL-terminated, as `HcclGetCommName` leaves it.
    assert_eq!(unsafe { CStr::from_ptr(name.as_ptr()) }.to_bytes(), b"mine");
    let (a, b) = (acl.upload(&[5f32, 6.0]), acl.upload(&[0f32, 0.0]));
    acl.ok((h.HcclAllReduce)(a, b, 2, F32, SUM, comm, NULL));
    acl.ok((h.HcclBarrier)(comm, NULL));
    acl.ok((acl.aclrtSynchronizeStream)(NULL));
    assert_eq!(acl.download::<f32>(b, 2), [5.0, 6.0]);
    acl.ok((h.HcclCommDestroy)(comm));
    // Every device of this process at once.
    let mut comms = [NULL; RANKS];
    acl.ok((h.HcclCommInitAll)(3, [0, 1, 2].as_ptr(), comms.as_mut_ptr()));
    for (rank, &comm) in comms.iter().enumerate() {
        assert_eq!(out!(acl, |n: u32| (h.HcclGetRankId)(comm, n)), rank as u32);
    }
    // A stream of another device.
    acl.fails(
        (h.HcclAllReduce)(a, b, 2, F32, SUM, comms[1], NULL),
        E_PARA,
        "of device 0, the communicator of device 1",
    );
    comms.iter().for_each(|&comm| acl.ok((h.HcclCommDestroy)(comm)));
}

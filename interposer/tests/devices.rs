//! Two devices in one process: selection by thread, default streams, copies from one to the other, events across.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use common::{Acl, D2D, D2H, F32, H2D, NULL, Ptr, load};

const PARAM: i32 = 107_000;
const INVALID_DEVICE: i32 = 107_001;
const NOT_SUPPORTED: i32 = 207_000;
const MIB: usize = 1 << 20;

/// One test at a time: an operator's late error is reported by the next call of the process that waits for the device.
fn two() -> (&'static Acl, MutexGuard<'static, ()>) {
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let spec = "Ascend910B3:functional:hbm=0.25,Ascend910B4:functional:hbm=0.25";
    (load(&[("VNPU_MODE", "direct"), ("VNPU_DEVICE", spec)]), alone)
}

fn select(acl: &Acl, device: i32) {
    acl.ok((acl.aclrtSetDevice)(device));
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| ((i + seed) * 31 % 251) as u8).collect()
}

#[test]
fn each_thread_has_its_device_and_each_device_its_default_stream() {
    let (acl, _alone) = two();
    assert_eq!(out!(acl, |count: u32| (acl.aclrtGetDeviceCount)(count)), 2);
    std::thread::scope(|scope| {
        for device in [0, 1] {
            scope.spawn(move || {
                select(acl, device);
                let memory = acl.upload(&[1f32; 1000]);
                let (tensor, factor) = (acl.tensor(memory, F32, &[1000]), acl.scalar(device as f32 + 2.0));
                for _ in 0..5 {
                    acl.run(|w, e| (acl.aclnnMulsGetWorkspaceSize)(tensor, factor, tensor, w, e), acl.aclnnMuls);
                }
                acl.ok((acl.aclrtSynchronizeDevice)());
                assert_eq!(acl.download::<f32>(memory, 1000), [(device as f32 + 2.0).powi(5); 1000]);
                assert_eq!(out!(acl, |id: i32| (acl.aclrtGetDevice)(id)), device);
                acl.ok((acl.aclrtFree)(memory));
            });
        }
    });
    // A context carries its device from thread to thread.
    select(acl, 1);
    let context = handle!(acl, |out| (acl.aclrtGetCurrentContext)(out));
    select(acl, 0);
    acl.ok((acl.aclrtSetCurrentContext)(context));
    assert_eq!(out!(acl, |id: i32| (acl.aclrtGetDevice)(id)), 1);
    acl.fails((acl.aclrtSetDevice)(2), INVALID_DEVICE, "there are 2 devices");
    acl.fails((acl.aclrtSetDevice)(-1), INVALID_DEVICE, "there are 2 devices");
}

#[test]
fn peers_are_allowed_and_forbidden() {
    let (acl, _alone) = two();
    select(acl, 0);
    let can: extern "C" fn(*mut i32, i32, i32) -> i32 = acl.function("aclrtDeviceCanAccessPeer");
    let enable: extern "C" fn(i32, u32) -> i32 = acl.function("aclrtDeviceEnablePeerAccess");
    let disable: extern "C" fn(i32) -> i32 = acl.function("aclrtDeviceDisablePeerAccess");
    let peer_status: extern "C" fn(i32, i32, *mut i32) -> i32 = acl.function("aclrtDevicePeerAccessStatus");
    assert_eq!(out!(acl, |answer: i32| can(answer, 0, 1)), 1);
    assert_eq!(out!(acl, |answer: i32| can(answer, 1, 1)), 0);
    acl.fails(can(&mut 0, 0, 2), INVALID_DEVICE, "2 devices");
    acl.fails(enable(0, 0), PARAM, "own device");
    acl.fails(enable(1, 1), PARAM, "flags");
    acl.fails(disable(1), PARAM, "was not allowed");
    acl.ok(enable(1, 0));
    assert_eq!(out!(acl, |answer: i32| peer_status(0, 1, answer)), 1);
    assert_eq!(out!(acl, |answer: i32| peer_status(1, 0, answer)), 0);
    acl.ok(disable(1));
    assert_eq!(out!(acl, |answer: i32| peer_status(0, 1, answer)), 0);
}

#[test]
fn copies_between_devices_are_whole_and_bounded() {
    let (acl, _alone) = two();
    for len in [1, 4096, 300_000, 9 * MIB + 5] {
        let bytes = pattern(len, len);
        select(acl, 0);
        let a = acl.upload(&bytes);
        select(acl, 1);
        let b = acl.malloc(len);
        acl.ok((acl.aclrtMemcpy)(b, len, a, len, D2D));
        assert!(acl.download::<u8>(b, len) == bytes, "{len}");
        select(acl, 0);
        acl.ok((acl.aclrtMemset)(a, len, 0, len));
        acl.ok((acl.aclrtMemcpy)(a, len, b, len, 4));
        assert!(acl.download::<u8>(a, len) == bytes, "{len}, back");
        let past = b.wrapping_byte_add(len.next_multiple_of(512) - 511);
        acl.fails((acl.aclrtMemcpy)(a, len, past, 512.min(len) + 511, D2D), PARAM, "");
        acl.fails(
            (acl.aclrtMemcpy)(a, len, b.wrapping_byte_add(1 << 30), 1, D2D),
            PARAM,
            "in no live device allocation",
        );
        for memory in [a, b] {
            acl.ok((acl.aclrtFree)(memory));
        }
    }
}

#[test]
fn a_copy_in_a_stream_comes_after_what_is_before_it_and_before_what_is_behind() {
    let (acl, _alone) = two();
    let n = 200_000usize;
    let memory: [(Ptr, Ptr, Ptr); 2] = [0, 1].map(|device| {
        select(acl, device);
        let memory = acl.upload(&vec![1f32; n]);
        (memory, acl.tensor(memory, F32, &[n as i64]), acl.stream())
    });
    let two = acl.scalar(2.0);
    let double = |device: usize| {
        let (_, tensor, stream) = memory[device];
        acl.run_on(|w, e| (acl.aclnnMulsGetWorkspaceSize)(tensor, two, tensor, w, e), acl.aclnnMuls, stream);
    };
    let mut want = 1f32;
    for round in 0..20 {
        // Both devices have work queued; the copy is in the source's stream, then in the target's.
        let (from, to) = (round % 2, (round + 1) % 2);
        double(from);
        want *= 2.0;
        select(acl, from as i32);
        let (event, other) = (acl.event(), memory[to].2);
        acl.ok((acl.aclrtRecordEvent)(event, memory[from].2));
        acl.ok((acl.aclrtStreamWaitEvent)(other, event));
        let stream = if round % 4 < 2 { memory[from].2 } else { other };
        acl.ok((acl.aclrtMemcpyAsync)(memory[to].0, n * 4, memory[from].0, n * 4, D2D, stream));
        acl.ok((acl.aclrtDestroyEvent)(event));
    }
    select(acl, 0);
    let last = memory[0];
    acl.ok((acl.aclrtSynchronizeStream)(last.2));
    assert!(acl.download::<f32>(last.0, n).iter().all(|&v| v == want), "{want}");
    let third = acl.fails_stream_of_other_device(memory[1].2, last.0);
    assert!(third.contains("it is of device 1, the memory of device 0"), "{third}");
}

#[test]
fn an_event_of_one_device_makes_a_stream_of_the_other_wait_and_is_recorded_at_home_only() {
    let (acl, _alone) = two();
    let wait: extern "C" fn(Ptr, u64, u32, Ptr) -> i32 = acl.function("aclrtValueWait");
    let streams = [0, 1].map(|device| {
        select(acl, device);
        acl.stream()
    });
    select(acl, 0);
    let (event, later, word) = (acl.event(), acl.event(), acl.upload(&[0u64]));
    acl.ok(wait(word, 1, 1, streams[0]));
    acl.ok((acl.aclrtRecordEvent)(event, streams[0]));
    let released = AtomicBool::new(false);
    let (at, stream) = (word.addr(), streams[0].addr());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            select(acl, 0);
            let word: Ptr = std::ptr::without_provenance_mut(at);
            let limit = (acl.aclrtSynchronizeStreamWithTimeout)(std::ptr::without_provenance_mut(stream), 20);
            released.store(true, Ordering::SeqCst);
            acl.ok((acl.aclrtMemcpy)(word, 8, [1u64].as_ptr().cast(), 8, H2D));
            assert_eq!(limit, 507_046, "the stream was held");
        });
        acl.ok((acl.aclrtStreamWaitEvent)(streams[1], event));
        assert!(released.load(Ordering::SeqCst), "the call waits for another device's event");
    });
    for call in [acl.aclrtRecordEvent, acl.aclrtResetEvent] {
        acl.fails(call(event, streams[1]), NOT_SUPPORTED, "the event belongs to device 0, the stream to device 1");
    }
    select(acl, 1);
    acl.ok((acl.aclrtRecordEvent)(acl.event(), streams[1]));
    let other = acl.event();
    acl.ok((acl.aclrtRecordEvent)(other, streams[1]));
    acl.ok((acl.aclrtRecordEvent)(later, streams[0]));
    acl.fails((acl.aclrtEventElapsedTime)(&mut 0.0, later, other), NOT_SUPPORTED, "different devices");
    for stream in streams {
        acl.ok((acl.aclrtSynchronizeStream)(stream));
        acl.ok((acl.aclrtDestroyStream)(stream));
    }
    acl.ok((acl.aclrtFree)(word));
}

trait Misuse {
    fn fails_stream_of_other_device(&self, stream: Ptr, memory: Ptr) -> String;
}

impl Misuse for Acl {
    fn fails_stream_of_other_device(&self, stream: Ptr, memory: Ptr) -> String {
        let mut host = [0u8; 8];
        let host: Ptr = host.as_mut_ptr().cast();
        for kind in [H2D, D2H] {
            let (dst, src) = if kind == H2D { (memory, host) } else { (host, memory) };
            assert_eq!((self.aclrtMemcpyAsync)(dst, 8, src, 8, kind, stream), PARAM);
        }
        self.message()
    }
}

#[test]
fn an_operator_on_another_devices_tensor_is_refused() {
    let (acl, _alone) = two();
    select(acl, 1);
    let memory = acl.malloc(64);
    select(acl, 0);
    let (tensor, one) = (acl.tensor(memory, F32, &[4]), acl.scalar(1.0));
    acl.run(|w, e| (acl.aclnnMulsGetWorkspaceSize)(tensor, one, tensor, w, e), acl.aclnnMuls);
    let status = (acl.aclrtSynchronizeStream)(NULL);
    acl.fails(status, PARAM, "aclnnMuls: parameter `self`: address 0x");
    select(acl, 1);
    acl.ok((acl.aclrtFree)(memory));
}

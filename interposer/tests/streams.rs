//! Streams, events, contexts and their handles through the exported symbols.

mod common;

use common::{Acl, F32, H2D, NULL, Ptr, direct};

const PARAM: i32 = 107_000;
const NO_CONTEXT: i32 = 107_002;
const BAD_HANDLE: i32 = 107_017;

fn is_complete(acl: &Acl, event: Ptr) -> bool {
    out!(acl, |status: i32| (acl.aclrtQueryEventStatus)(event, status)) == 1
}

fn is_idle(acl: &Acl, stream: Ptr) -> bool {
    out!(acl, |status: i32| (acl.aclrtStreamQuery)(stream, status)) == 0
}

/// Posts `count` operators to `stream` that leave 2^count in the memory.
fn double(acl: &Acl, memory: Ptr, count: usize, stream: Ptr) {
    let (t, two) = (acl.tensor(memory, F32, &[1]), acl.scalar(2.0));
    for _ in 0..count {
        acl.run_on(|w, e| (acl.aclnnMulsGetWorkspaceSize)(t, two, t, w, e), acl.aclnnMuls, stream);
    }
    acl.ok((acl.aclDestroyTensor)(t));
    acl.ok((acl.aclDestroyScalar)(two));
}

#[test]
fn an_event_orders_two_streams() {
    let acl = direct();
    let (first, second) = (acl.stream(), acl.stream());
    let (memory, copy) = (acl.upload(&[1.0f32]), acl.malloc(4));
    let (ready, done) = (acl.event(), acl.event());
    double(acl, memory, 20, first);
    acl.ok((acl.aclrtRecordEvent)(ready, first));
    acl.ok((acl.aclrtStreamWaitEvent)(second, ready));
    acl.ok((acl.aclrtMemcpyAsync)(copy, 4, memory, 4, common::D2D, second));
    acl.ok((acl.aclrtRecordEvent)(done, second));
    acl.ok((acl.aclrtSynchronizeEvent)(done));
    assert_eq!(acl.download::<f32>(copy, 1), [2f32.powi(20)]);
    assert!(is_complete(acl, ready) && is_complete(acl, done));
    let ms = out!(acl, |ms: f32| (acl.aclrtEventElapsedTime)(ms, ready, done));
    assert!((0.0..10_000.0).contains(&ms), "{ms} ms");
    for event in [ready, done] {
        acl.ok((acl.aclrtDestroyEvent)(event));
    }
    for stream in [first, second] {
        acl.ok((acl.aclrtDestroyStream)(stream));
    }
}

#[test]
fn events_are_recorded_again_and_again() {
    let acl = direct();
    let (stream, event) = (acl.stream(), acl.event());
    assert!(!is_complete(acl, event), "never recorded");
    acl.ok((acl.aclrtSynchronizeEvent)(event));
    let memory = acl.upload(&[1.0f32]);
    for _ in 0..50 {
        double(acl, memory, 1, stream);
        acl.ok((acl.aclrtRecordEvent)(event, stream));
        acl.ok((acl.aclrtSynchronizeEvent)(event));
        assert!(is_complete(acl, event));
    }
    assert_eq!(acl.download::<f32>(memory, 1), [2f32.powi(50)]);
}

#[test]
fn synchronising_waits_and_an_idle_stream_stays_idle() {
    let acl = direct();
    let stream = handle!(acl, |out| (acl.aclrtCreateStreamWithConfig)(out, 0, 3));
    assert!(is_idle(acl, stream));
    let memory = acl.upload(&[1.0f32]);
    double(acl, memory, 100, stream);
    acl.ok((acl.aclrtSynchronizeStreamWithTimeout)(stream, -1));
    assert!(is_idle(acl, stream));
    double(acl, memory, 10, stream);
    acl.ok((acl.aclrtSynchronizeStreamWithTimeout)(stream, 60_000));
    assert_eq!(acl.download::<f32>(memory, 1), [2f32.powi(110)]);
    double(acl, memory, 5, stream);
    acl.ok((acl.aclrtSynchronizeDeviceWithTimeout)(60_000));
    assert_eq!(acl.download::<f32>(memory, 1), [2f32.powi(115)]);
    acl.ok((acl.aclrtSynchronizeDevice)());
    acl.ok((acl.aclrtDestroyStreamForce)(stream));
}

#[test]
fn the_default_stream_is_a_stream_like_others() {
    let acl = direct();
    let (memory, event) = (acl.upload(&[1.0f32]), acl.event());
    double(acl, memory, 8, NULL);
    acl.ok((acl.aclrtRecordEvent)(event, NULL));
    acl.ok((acl.aclrtSynchronizeEvent)(event));
    assert_eq!(acl.download::<f32>(memory, 1), [256.0]);
    acl.fails((acl.aclrtDestroyStream)(NULL), PARAM, "default stream");
}

#[test]
fn wrong_handles_are_errors() {
    let acl = direct();
    let (stream, event) = (acl.stream(), acl.event());
    let (gone_stream, gone_event) = (acl.stream(), acl.event());
    acl.ok((acl.aclrtDestroyStream)(gone_stream));
    acl.ok((acl.aclrtDestroyEvent)(gone_event));
    let own = [0u64; 8];
    let wild: Ptr = own.as_ptr().cast_mut().cast();
    for (handle, part) in
        [(gone_stream, "was destroyed"), (wild, "is not an aclrtStream"), (event, "an aclrtEvent where")]
    {
        acl.fails((acl.aclrtSynchronizeStream)(handle), BAD_HANDLE, part);
        acl.fails((acl.aclrtDestroyStream)(handle), BAD_HANDLE, part);
        acl.fails((acl.aclrtRecordEvent)(event, handle), BAD_HANDLE, part);
        acl.fails((acl.aclrtMemcpyAsync)(wild, 8, wild, 8, H2D, handle), BAD_HANDLE, part);
    }
    for (handle, part) in
        [(gone_event, "was destroyed"), (wild, "is not an aclrtEvent"), (stream, "an aclrtStream where")]
    {
        acl.fails((acl.aclrtSynchronizeEvent)(handle), BAD_HANDLE, part);
        acl.fails((acl.aclrtDestroyEvent)(handle), BAD_HANDLE, part);
        acl.fails((acl.aclrtStreamWaitEvent)(stream, handle), BAD_HANDLE, part);
    }
    acl.fails((acl.aclrtSynchronizeEvent)(NULL), PARAM, "parameter event: null");
    acl.fails((acl.aclrtCreateStream)(std::ptr::null_mut()), PARAM, "parameter stream: null");
    let mut out = NULL;
    acl.fails((acl.aclrtCreateStreamWithConfig)(&raw mut out, 9, 0), PARAM, "priority: 9");
    acl.fails((acl.aclrtCreateEventExWithFlag)(&raw mut out, 0x41), PARAM, "ACL_EVENT_IPC goes with no other flag");
    let mut ms = 0f32;
    let unrecorded = acl.event();
    assert_ne!((acl.aclrtEventElapsedTime)(&raw mut ms, unrecorded, unrecorded), 0);
    acl.ok((acl.aclrtDestroyStream)(stream));
    acl.ok((acl.aclrtDestroyEvent)(event));
}

#[test]
fn each_thread_selects_its_device() {
    let acl = direct();
    std::thread::spawn(move || {
        let mut device = 7;
        acl.fails((acl.aclrtGetDevice)(&raw mut device), NO_CONTEXT, "call aclrtSetDevice first");
        let mut memory = NULL;
        acl.fails((acl.aclrtMalloc)(&raw mut memory, 64, 0), NO_CONTEXT, "aclrtSetDevice");
        acl.fails((acl.aclrtSynchronizeStream)(NULL), NO_CONTEXT, "aclrtSetDevice");
        acl.fails((acl.aclrtSetDevice)(1), 107_001, "there are 1 devices");
        acl.fails((acl.aclrtSetDevice)(-1), 107_001, "deviceId: -1");
        acl.ok((acl.aclrtSetDevice)(0));
        assert_eq!(out!(acl, |d: i32| (acl.aclrtGetDevice)(d)), 0);
        acl.ok((acl.aclrtResetDevice)(0));
        acl.fails((acl.aclrtGetDevice)(&raw mut device), NO_CONTEXT, "aclrtSetDevice");
    })
    .join()
    .unwrap();
}

#[test]
fn contexts_carry_the_device_between_threads() {
    let acl = direct();
    let primary = handle!(acl, |out| (acl.aclrtGetCurrentContext)(out));
    let again = handle!(acl, |out| (acl.aclrtGetCurrentContext)(out));
    assert_eq!(primary, again);
    acl.fails((acl.aclrtDestroyContext)(primary), PARAM, "default context");
    let (primary, made) = (primary.addr(), handle!(acl, |out| (acl.aclrtCreateContext)(out, 0)).addr());
    std::thread::spawn(move || {
        for context in [primary, made].map(std::ptr::without_provenance_mut) {
            acl.ok((acl.aclrtSetCurrentContext)(context));
            assert_eq!(handle!(acl, |out| (acl.aclrtGetCurrentContext)(out)), context);
            assert_eq!(out!(acl, |d: i32| (acl.aclrtGetDevice)(d)), 0);
        }
    })
    .join()
    .unwrap();
    let made: Ptr = std::ptr::without_provenance_mut(made);
    acl.ok((acl.aclrtDestroyContext)(made));
    acl.fails((acl.aclrtSetCurrentContext)(made), BAD_HANDLE, "was destroyed");
    acl.ok((acl.aclrtSetDevice)(0));
}

#[test]
fn the_device_describes_itself() {
    let acl = direct();
    // SAFETY: the library answers a NUL-terminated string that it keeps.
    let name = unsafe { std::ffi::CStr::from_ptr((acl.aclrtGetSocName)()) };
    assert_eq!(name, c"Ascend910B3");
    let capability = |info| out!(acl, |v: i64| (acl.aclGetDeviceCapability)(0, info, v));
    assert_eq!([0, 1, 2].map(capability), [20, 40, 192 << 20]);
    let uuid = || out!(acl, |u: [u8; 16]| (acl.aclrtDeviceGetUuid)(0, u));
    assert_eq!(uuid(), uuid());
    let mut text = [0i8; 16];
    acl.ok((acl.aclGetCompileopt)(10, text.as_mut_ptr(), 16));
    assert_eq!(&text[..8], b"disable\0".map(|b| b as i8).as_slice());
}

/// Reads one float as `tensor.item()` does.
fn item(acl: &Acl, memory: Ptr, stream: Ptr) -> f32 {
    let mut value = f32::NAN;
    acl.ok((acl.aclrtSynchronizeStreamWithTimeout)(stream, -1));
    acl.ok((acl.aclrtMemcpy)((&raw mut value).cast(), 4, memory, 4, common::D2H));
    value
}

#[test]
fn a_number_read_after_each_step_is_that_of_the_step() {
    let acl = direct();
    let (stream, other) = (acl.stream(), acl.stream());
    let memory = acl.upload(&[1.0f32]);
    for step in 1..=30 {
        double(acl, memory, 1, stream);
        assert_eq!(item(acl, memory, stream), 2f32.powi(step), "step {step}");
        if step % 3 == 0 {
            // Whatever changes the bytes after the synchronisation is seen by the next copy.
            let half = 2f32.powi(step) / 2.0;
            double(acl, memory, 1, stream);
            acl.ok((acl.aclrtSynchronizeStream)(stream));
            acl.ok((acl.aclrtMemcpy)(memory, 4, (&raw const half).cast(), 4, H2D));
            assert_eq!(acl.download::<f32>(memory, 1), [half]);
            double(acl, memory, 1, other);
            acl.ok((acl.aclrtSynchronizeStream)(other));
            assert_eq!(acl.download::<f32>(memory, 1), [2.0 * half]);
        }
    }
    acl.ok((acl.aclrtFree)(memory));
    let mut value = 0f32;
    acl.fails(
        (acl.aclrtMemcpy)((&raw mut value).cast(), 4, memory, 4, common::D2H),
        PARAM,
        "no live device allocation",
    );
}

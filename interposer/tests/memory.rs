//! Device memory, pinned memory and copies through the exported symbols.

mod common;

use std::ffi::c_void;

use common::{Acl, D2D, D2H, H2D, NULL, Ptr, direct};

const PARAM: i32 = 107_000;
const OUT_OF_MEMORY: i32 = 207_001;
const MIB: usize = 1 << 20;

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| ((i + seed) * 31 % 251) as u8).collect()
}

fn pinned(acl: &Acl, len: usize) -> Ptr {
    handle!(acl, |out| (acl.aclrtMallocHost)(out, len))
}

fn fill(at: Ptr, bytes: &[u8]) {
    // SAFETY: `at` is a live host block of at least that many bytes that nothing else uses now.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at.cast(), bytes.len()) };
}

fn read(at: Ptr, len: usize) -> Vec<u8> {
    // SAFETY: `at` is a live host block of at least that many bytes that nothing else uses now.
    unsafe { std::slice::from_raw_parts(at.cast::<u8>(), len) }.to_vec()
}

/// Inline, one staging block, several, and the edges between them.
const SIZES: [usize; 8] = [1, 1024, 1025, 4096, 256 << 10, (256 << 10) + 1, 3 * MIB + 7, 24 * MIB];

#[test]
fn pageable_copies_come_back_whole() {
    let acl = direct();
    let stream = acl.stream();
    for len in SIZES {
        let source = pattern(len, 1);
        let device = acl.malloc(len);
        acl.ok((acl.aclrtMemcpy)(device, len, source.as_ptr().cast(), len, H2D));
        let mut back = vec![0; len];
        acl.ok((acl.aclrtMemcpy)(back.as_mut_ptr().cast(), len, device, len, D2H));
        assert!(back == source, "{len} bytes, synchronous");

        let mut source = pattern(len, 2);
        acl.ok((acl.aclrtMemcpyAsync)(device, len, source.as_ptr().cast(), len, H2D, stream));
        // The bytes were taken at the call: what happens to the source now does not matter.
        source.fill(0);
        acl.ok((acl.aclrtMemcpyAsync)(back.as_mut_ptr().cast(), len, device, len, D2H, stream));
        assert!(back == pattern(len, 2), "{len} bytes, asynchronous: there on return");
        acl.ok((acl.aclrtFree)(device));
    }
    acl.ok((acl.aclrtDestroyStream)(stream));
}

#[test]
fn pinned_copies_come_back_whole() {
    let acl = direct();
    let stream = acl.stream();
    for len in SIZES {
        let (to, from) = (pinned(acl, len), pinned(acl, len));
        let device = acl.malloc(len);
        fill(to, &pattern(len, 3));
        acl.ok((acl.aclrtMemcpyAsync)(device, len, to, len, H2D, stream));
        acl.ok((acl.aclrtMemcpyAsync)(from, len, device, len, D2H, stream));
        acl.ok((acl.aclrtSynchronizeStream)(stream));
        assert!(read(from, len) == pattern(len, 3), "{len} bytes, asynchronous");
        fill(to, &pattern(len, 4));
        acl.ok((acl.aclrtMemcpy)(device, len, to, len, H2D));
        acl.ok((acl.aclrtMemcpy)(from, len, device, len, D2H));
        assert!(read(from, len) == pattern(len, 4), "{len} bytes, synchronous");
        for block in [to, from] {
            acl.ok((acl.aclrtFreeHost)(block));
        }
        acl.ok((acl.aclrtFree)(device));
    }
}

#[test]
fn pinned_memory_goes_on_when_the_arena_is_full() {
    let acl = direct();
    let blocks: Vec<Ptr> = (0..6).map(|_| pinned(acl, 64 * MIB)).collect();
    let device = acl.malloc(64 * MIB);
    for (i, &block) in blocks.iter().enumerate() {
        let bytes = pattern(MIB, i);
        fill(block, &bytes);
        acl.ok((acl.aclrtMemcpyAsync)(device, MIB, block, MIB, H2D, NULL));
        fill(block, &[0; 64]);
        acl.ok((acl.aclrtMemcpyAsync)(block, MIB, device, MIB, D2H, NULL));
        acl.ok((acl.aclrtSynchronizeStream)(NULL));
        let mut attributes = [0u32; 7];
        acl.ok((acl.aclrtPointerGetAttributes)(block, &raw mut attributes));
        assert_eq!(attributes[1], 0, "pinned host memory");
    }
    for block in blocks {
        acl.ok((acl.aclrtFreeHost)(block));
        acl.fails((acl.aclrtFreeHost)(block), PARAM, "hostPtr");
    }
    acl.ok((acl.aclrtFree)(device));
}

#[test]
fn device_copies_and_memset_work_in_and_out_of_streams() {
    let acl = direct();
    let stream = acl.stream();
    let (a, b) = (acl.upload(&pattern(8192, 5)), acl.malloc(8192));
    acl.ok((acl.aclrtMemset)(b, 8192, 0x1ff, 8192));
    assert!(acl.download::<u8>(b, 8192).iter().all(|&v| v == 0xff), "the low byte counts");
    acl.ok((acl.aclrtMemsetAsync)(b, 8192, 7, 100, stream));
    acl.ok((acl.aclrtMemcpyAsync)(b.wrapping_byte_add(100), 8092, a.wrapping_byte_add(100), 1000, D2D, stream));
    acl.ok((acl.aclrtSynchronizeStream)(stream));
    let got = acl.download::<u8>(b, 8192);
    assert!(got[..100].iter().all(|&v| v == 7) && got[100..1100] == pattern(8192, 5)[100..1100]);
    assert!(got[1100..].iter().all(|&v| v == 0xff));
    acl.ok((acl.aclrtMemcpy)(b, 8192, a, 8192, D2D));
    assert!(acl.download::<u8>(b, 8192) == pattern(8192, 5));
}

more_functions!(Others {
    aclrtMallocAlign32(*mut Ptr, usize, i32) -> i32;
    aclrtMallocCached(*mut Ptr, usize, i32) -> i32;
    aclrtFreeWithDevSync(Ptr) -> i32;
    aclrtFreeHostWithDevSync(Ptr) -> i32;
    aclrtMemcpyAsyncWithCondition(Ptr, usize, *const c_void, usize, i32, Ptr) -> i32;
    aclrtMemGetAddressRange(Ptr, *mut Ptr, *mut usize) -> i32;
});

#[test]
fn every_way_to_have_and_to_copy_memory_is_the_same() {
    let acl = direct();
    let (f, stream) = (Others::of(acl), acl.stream());
    for (malloc, free) in [
        (acl.aclrtMalloc, f.aclrtFreeWithDevSync),
        (f.aclrtMallocAlign32, acl.aclrtFree),
        (f.aclrtMallocCached, f.aclrtFreeWithDevSync),
    ] {
        let len = 1000;
        let device = handle!(acl, |out| malloc(out, len, 0));
        assert_eq!(device.addr() % 512, 0);
        let (mut base, mut size) = (NULL, 0);
        for inside in [0, 1, len - 1] {
            let at = device.wrapping_byte_add(inside);
            acl.ok((f.aclrtMemGetAddressRange)(at, &raw mut base, &raw mut size));
            assert_eq!((base, size), (device, len));
        }
        let (source, mut back) = (pattern(len, 3), vec![0u8; len]);
        let copy = f.aclrtMemcpyAsyncWithCondition;
        acl.ok(copy(device, len, source.as_ptr().cast(), len, H2D, stream));
        acl.ok(copy(back.as_mut_ptr().cast(), len, device, len, D2H, stream));
        assert_eq!(back, source, "there on return");
        acl.fails(copy(device, 10, source.as_ptr().cast(), len, H2D, stream), PARAM, "into a destination of 10");
        acl.ok(free(device));
        acl.fails(free(device), PARAM, "freed twice");
        acl.fails(
            (f.aclrtMemGetAddressRange)(device, &raw mut base, &raw mut size),
            PARAM,
            "in no live device allocation",
        );
    }
    let block = pinned(acl, 64);
    acl.ok((f.aclrtFreeHostWithDevSync)(block));
    acl.fails((f.aclrtFreeHostWithDevSync)(block), PARAM, "not the start of a live block");
    acl.ok((acl.aclrtDestroyStream)(stream));
}

#[test]
fn out_of_memory_has_the_code_that_clients_look_for() {
    let acl = direct();
    let (mut free, mut total) = (0, 0);
    acl.ok((acl.aclrtGetMemInfo)(1, &raw mut free, &raw mut total));
    assert!(free <= total && total == 1 << 30, "{free} of {total}");
    let mut memory = NULL;
    acl.fails((acl.aclrtMalloc)(&raw mut memory, 2 << 30, 0), OUT_OF_MEMORY, "out of device memory");
    assert!(memory.is_null());
    acl.fails((acl.aclrtMalloc)(std::ptr::null_mut(), 64, 0), PARAM, "devPtr");
    acl.fails((acl.aclrtMalloc)(&raw mut memory, 0, 0), PARAM, "size");
}

#[test]
fn memory_information_is_live() {
    let acl = direct();
    let info = || {
        let (mut free, mut total) = (0usize, 0);
        acl.ok((acl.aclrtGetMemInfo)(1, &raw mut free, &raw mut total));
        free
    };
    // Other tests of this process allocate too: ask for more than all of them together.
    let block = acl.malloc(256 * MIB);
    let with = info();
    acl.ok((acl.aclrtFree)(block));
    assert!(info() > with + 128 * MIB, "{with} bytes free, then {}", info());
}

#[test]
fn wrong_addresses_are_errors_and_never_accesses() {
    let acl = direct();
    let device = acl.malloc(4096);
    let mut host = [0u8; 64];
    let h: Ptr = host.as_mut_ptr().cast();
    let copy = |dst: Ptr, room, src: Ptr, len, kind| (acl.aclrtMemcpy)(dst, room, src, len, kind);
    acl.fails(copy(device, 32, h, 64, H2D), PARAM, "64 bytes into a destination of 32");
    acl.fails(copy(NULL, 64, h, 64, H2D), PARAM, "parameter dst: null");
    acl.fails(copy(h, 64, h, 64, H2D), PARAM, "parameter dst: a host address");
    acl.fails(copy(device, 64, device, 64, H2D), PARAM, "parameter src: a device address");
    acl.fails(copy(device, 64, h, 64, 77), PARAM, "kind");
    acl.fails(copy(h, 64, device.wrapping_byte_add(4090), 64, D2H), PARAM, "run past");
    acl.fails(copy(h, 64, device.wrapping_byte_add(1 << 30), 64, D2H), PARAM, "in no live device allocation");
    acl.ok(copy(h, 64, device, 0, D2H));
    acl.fails((acl.aclrtMemset)(device, 64, 0, 65), PARAM, "count");
    acl.fails((acl.aclrtMemset)(h, 64, 0, 64), PARAM, "not a device address");

    acl.fails((acl.aclrtFree)(device.wrapping_byte_add(512)), PARAM, "inside the 4096-byte allocation");
    acl.fails((acl.aclrtFree)(h), PARAM, "not a device address");
    acl.ok((acl.aclrtFree)(device));
    acl.fails((acl.aclrtFree)(device), PARAM, "freed twice");
    acl.fails(copy(h, 64, device, 64, D2H), PARAM, "in no live device allocation");
    acl.fails((acl.aclrtFreeHost)(h), PARAM, "hostPtr");
}

#[test]
fn device_pointers_answer_for_themselves() {
    let acl = direct();
    let device = acl.malloc(64);
    let location = |p: Ptr| {
        let mut attributes = [0u32; 7];
        acl.ok((acl.aclrtPointerGetAttributes)(p, &raw mut attributes));
        attributes[1]
    };
    let block = pinned(acl, 100);
    let own = Box::new(0u8);
    assert_eq!(location(device), 1);
    assert_eq!(location(block.wrapping_byte_add(99)), 0);
    assert_eq!(location((&raw const *own).cast_mut().cast()), 2);
    acl.ok((acl.aclrtFreeHost)(block));
    acl.ok((acl.aclrtFree)(device));
}

//! Wrong use of memory and of copies in lists: the code, the reason, and that nothing else is touched.

mod common;

use common::{Acl, D2D, D2H, F32, H2D, NULL, Ptr, alone};

const PARAM: i32 = 107_000;
const INVALID_HANDLE: i32 = 107_017;
const NOT_SUPPORTED: i32 = 207_000;

fn host(bytes: &mut [u8]) -> Ptr {
    bytes.as_mut_ptr().cast()
}

/// Three allocations in a row, filled with 1, 2 and 3.
fn neighbours(acl: &Acl, len: usize) -> [Ptr; 3] {
    [1u8, 2, 3].map(|value| acl.upload(&vec![value; len]))
}

fn untouched(acl: &Acl, memory: [Ptr; 3], len: usize) {
    for (at, value) in memory.into_iter().zip([1u8, 2, 3]) {
        assert!(acl.download::<u8>(at, len).iter().all(|&b| b == value), "neighbour {value} was touched");
    }
}

#[test]
fn a_copy_past_the_end_is_refused_and_its_neighbours_are_untouched() {
    let (acl, _alone) = alone();
    let len = 512;
    let memory = neighbours(acl, len);
    let mut big = vec![9u8; 1 << 20];
    let h = host(&mut big);
    let middle = memory[1];
    for (offset, count) in [(0, len + 1), (len - 1, 2), (1, len), (0, 1 << 20), (256, 4096)] {
        let at = middle.wrapping_byte_add(offset);
        acl.fails((acl.aclrtMemcpy)(at, count, h, count, H2D), PARAM, "run past the 512-byte allocation");
        acl.fails((acl.aclrtMemcpyAsync)(at, count, h, count, H2D, NULL), PARAM, "run past the 512-byte allocation");
        acl.fails((acl.aclrtMemcpy)(h, count, at, count, D2H), PARAM, "run past");
        acl.fails((acl.aclrtMemset)(at, count, 9, count), PARAM, "run past");
        acl.fails((acl.aclrtMemsetAsync)(at, count, 9, count, NULL), PARAM, "run past");
        acl.fails((acl.aclrtMemcpy)(at, count, memory[0], count, D2D), PARAM, "run past");
        acl.fails((acl.aclrtMemcpy)(memory[2], count, at, count, D2D), PARAM, "run past");
    }
    acl.fails((acl.aclrtMemcpy)(middle, usize::MAX, h, usize::MAX, H2D), PARAM, "run past");
    untouched(acl, memory, len);
    // An operator over the end: refused by the device, at the next synchronisation.
    let (over, inside, one) =
        (acl.tensor(middle, F32, &[len as i64 / 4 + 1]), acl.tensor(middle, F32, &[4]), acl.scalar(0.0));
    acl.run(|w, e| (acl.aclnnMulsGetWorkspaceSize)(over, one, over, w, e), acl.aclnnMuls);
    acl.fails((acl.aclrtSynchronizeStream)(NULL), PARAM, "run 4 bytes past the end of the 512-byte allocation");
    untouched(acl, memory, len);
    // On a freed tensor, the same; the allocation beside it is not what is meant.
    acl.ok((acl.aclrtFree)(middle));
    acl.run(|w, e| (acl.aclnnMulsGetWorkspaceSize)(inside, one, inside, w, e), acl.aclnnMuls);
    acl.fails(
        (acl.aclrtSynchronizeStream)(NULL),
        PARAM,
        "is in no live allocation of this process (never allocated, or freed)",
    );
    acl.fails((acl.aclrtFree)(middle), PARAM, "freed twice");
    acl.fails((acl.aclrtMemset)(middle, 4, 0, 4), PARAM, "in no live device allocation");
    for (at, value) in [(memory[0], 1u8), (memory[2], 3)] {
        assert!(acl.download::<u8>(at, len).iter().all(|&b| b == value));
        acl.ok((acl.aclrtFree)(at));
    }
}

#[test]
fn host_and_device_pointers_are_told_apart() {
    let (acl, _alone) = alone();
    let mut bytes = vec![5u8; 64];
    let (h, device) = (host(&mut bytes), acl.malloc(64));
    // A tensor over a host pointer is refused when it is used, not read.
    let (tensor, one) = (acl.tensor(h, F32, &[4]), acl.scalar(1.0));
    acl.run(|w, e| (acl.aclnnMulsGetWorkspaceSize)(tensor, one, tensor, w, e), acl.aclnnMuls);
    acl.fails((acl.aclrtSynchronizeStream)(NULL), PARAM, "is in no live allocation");
    acl.fails((acl.aclrtMemcpy)(h, 64, device, 64, H2D), PARAM, "parameter dst: a host address");
    acl.fails((acl.aclrtMemcpy)(device, 64, h, 64, D2D), PARAM, "parameter src: a host address");
    acl.fails((acl.aclrtMemcpy)(device, 64, h, 64, D2H), PARAM, "parameter dst: a device address");
    acl.fails((acl.aclrtFree)(h), PARAM, "not a device address");
    acl.fails((acl.aclrtFreeHost)(device), PARAM, "hostPtr");
    acl.fails((acl.aclrtFree)(device.wrapping_byte_add(32)), PARAM, "inside the 64-byte allocation");
    let pinned = handle!(acl, |out| (acl.aclrtMallocHost)(out, 100));
    acl.fails((acl.aclrtFree)(pinned), PARAM, "not a device address");
    acl.fails((acl.aclrtFreeHost)(pinned.wrapping_byte_add(8)), PARAM, "hostPtr");
    acl.ok((acl.aclrtFreeHost)(pinned));
    acl.fails((acl.aclrtFreeHost)(pinned), PARAM, "hostPtr");
    for bad in [NULL.wrapping_byte_add(8), device, h] {
        acl.fails((acl.aclrtSynchronizeStream)(bad), INVALID_HANDLE, "stream");
        acl.fails((acl.aclrtMemcpyAsync)(device, 64, h, 64, H2D, bad), INVALID_HANDLE, "stream");
        acl.fails((acl.aclrtSynchronizeEvent)(bad), INVALID_HANDLE, "event");
        acl.fails((acl.aclrtSetCurrentContext)(bad), INVALID_HANDLE, "context");
    }
    acl.ok((acl.aclrtFree)(device));
}

#[test]
fn rows_are_copied_with_their_pitch() {
    let (acl, _alone) = alone();
    type Sync2d = extern "C" fn(Ptr, usize, Ptr, usize, usize, usize, i32) -> i32;
    type Async2d = extern "C" fn(Ptr, usize, Ptr, usize, usize, usize, i32, Ptr) -> i32;
    let (copy, copy_async): (Sync2d, Async2d) = (acl.function("aclrtMemcpy2d"), acl.function("aclrtMemcpy2dAsync"));
    let mut matrix: Vec<u8> = (0..100).collect();
    let device = acl.upload(&[0xffu8; 160]);
    // Five rows of 7 of a 10-wide matrix into a 16-wide one.
    acl.ok(copy(device, 16, host(&mut matrix), 10, 7, 5, H2D));
    let got = acl.download::<u8>(device, 160);
    for (row, line) in got.chunks(16).enumerate() {
        for (column, &byte) in line.iter().enumerate() {
            let want = if row < 5 && column < 7 { (row * 10 + column) as u8 } else { 0xff };
            assert_eq!(byte, want, "row {row} column {column}");
        }
    }
    let mut back = vec![0u8; 35];
    acl.ok(copy_async(host(&mut back), 7, device, 16, 7, 5, D2H, NULL));
    acl.ok((acl.aclrtSynchronizeStream)(NULL));
    assert!(back.chunks(7).enumerate().all(|(r, line)| line == &matrix[r * 10..r * 10 + 7]));
    acl.ok(copy(device, 20, host(&mut matrix), 20, 20, 5, H2D));
    assert_eq!(acl.download::<u8>(device, 100), matrix);
    acl.ok(copy(device, 16, host(&mut matrix), 10, 7, 0, H2D));
    acl.fails(copy(device, 6, host(&mut matrix), 10, 7, 5, H2D), PARAM, "dpitch");
    acl.fails(copy(device, 16, host(&mut matrix), 6, 7, 5, H2D), PARAM, "spitch");
    acl.fails(copy(device, usize::MAX / 2, host(&mut matrix), 10, 7, 5, H2D), PARAM, "height");
    acl.fails(copy(device, 512, host(&mut matrix), 10, 10, 5, H2D), PARAM, "in no live device allocation");
    acl.ok((acl.aclrtFree)(device));
}

type Attrs = *const [u32; 8];
more_functions!(Lists {
    aclrtMemcpyBatch(*mut Ptr, *mut usize, *mut Ptr, *mut usize, usize, Attrs, *const usize, usize, *mut usize) -> i32;
    aclrtMemcpyBatchAsync(*mut Ptr, *mut usize, *mut Ptr, *mut usize, usize, Attrs, *const usize, usize, *mut usize, Ptr) -> i32;
});

#[test]
fn a_list_of_copies_says_which_one_failed() {
    let (acl, _alone) = alone();
    let lists = Lists::of(acl);
    let stream = acl.stream();
    for in_stream in [false, true] {
        a_list_of_copies(acl, |d, r, s, n, a, i, failed| match in_stream {
            false => (lists.aclrtMemcpyBatch)(d, r, s, n, 3, a, i, 2, failed),
            true => (lists.aclrtMemcpyBatchAsync)(d, r, s, n, 3, a, i, 2, failed, stream),
        });
        acl.ok((acl.aclrtSynchronizeStream)(stream));
    }
    acl.ok((acl.aclrtDestroyStream)(stream));
}

/// Three copies with two attributes; `batch` takes the lists and where to say which one failed.
fn a_list_of_copies(
    acl: &Acl,
    batch: impl Fn(*mut Ptr, *mut usize, *mut Ptr, *mut usize, Attrs, *const usize, *mut usize) -> i32,
) {
    let (mut one, mut two, mut three) = (vec![1u8; 100], vec![2u8; 200], vec![0u8; 100]);
    let (a, b) = (acl.malloc(100), acl.malloc(200));
    let mut dsts = [a, b, host(&mut three)];
    let mut srcs = [host(&mut one), host(&mut two), a];
    let mut rooms = [100, 200, 100];
    let mut sizes = [100, 200, 100];
    let attrs = [[0, 1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0, 0, 0]];
    let mut failed = 77;
    let mut run = |dsts: &mut [Ptr; 3], sizes: &mut [usize; 3], indexes: [usize; 2], failed: &mut usize| {
        let (d, r, s, n) = (dsts.as_mut_ptr(), rooms.as_mut_ptr(), srcs.as_mut_ptr(), sizes.as_mut_ptr());
        batch(d, r, s, n, attrs.as_ptr(), indexes.as_ptr(), failed)
    };
    acl.ok(run(&mut dsts, &mut sizes, [0, 2], &mut failed));
    assert_eq!((failed, three.clone()), (77, one.clone()));
    assert_eq!(acl.download::<u8>(b, 200), two);
    sizes[1] = 201;
    acl.fails(run(&mut dsts, &mut sizes, [0, 2], &mut failed), PARAM, "201 bytes into a destination of 200");
    assert_eq!(failed, 1);
    sizes[1] = 200;
    acl.fails(run(&mut dsts, &mut sizes, [0, 1], &mut failed), PARAM, "dsts[1]");
    assert_eq!(failed, 1, "not where the attribute says");
    acl.fails(run(&mut dsts, &mut sizes, [1, 2], &mut failed), PARAM, "attrsIndexes");
    assert_eq!(failed, usize::MAX);
    dsts[2] = NULL;
    acl.fails(run(&mut dsts, &mut sizes, [0, 2], &mut failed), PARAM, "dst");
    assert_eq!(failed, 2);
    for memory in [a, b] {
        acl.ok((acl.aclrtFree)(memory));
    }
}

#[test]
fn what_a_process_holds_and_how_it_may_allocate() {
    let (acl, _alone) = alone();
    #[repr(C)]
    struct Usage {
        name: [u8; 32],
        current: u64,
        peak: u64,
        reserved: [usize; 8],
    }
    let usage: extern "C" fn(i32, *mut Usage, usize, *mut usize) -> i32 = acl.function("aclrtGetMemUsageInfo");
    let read = || {
        let mut info = Usage { name: [0; 32], current: 0, peak: 0, reserved: [1; 8] };
        let mut count = 0;
        acl.ok(usage(0, &raw mut info, 4, &raw mut count));
        assert_eq!((count, &info.name[..4]), (1, &b"this"[..]));
        (info.current, info.peak)
    };
    let memory = acl.malloc(100 << 20);
    let (with, peak) = read();
    assert!(with >= 100 << 20 && peak >= with);
    acl.ok((acl.aclrtFree)(memory));
    // Other tests of this process allocate little.
    assert!(read().0 + (50 << 20) < with && read().1 >= peak);
    acl.fails(usage(0, std::ptr::null_mut(), 4, &mut 0), PARAM, "memUsageInfo");

    let with_cfg: extern "C" fn(*mut Ptr, usize, i32, *const (*const [u32; 3], usize)) -> i32 =
        acl.function("aclrtMallocWithCfg");
    // Attribute and value: a module, the thread's device, another device, an unknown one.
    for (attribute, works) in [([1, 33, 0], true), ([2, 0, 0], true), ([2, 1, 0], false), ([9, 0, 0], false)] {
        let cfg = (&raw const attribute, 1);
        let mut memory = NULL;
        let status = with_cfg(&raw mut memory, 64, 0, &raw const cfg);
        if works {
            acl.ok(status);
            acl.ok((acl.aclrtFree)(memory));
        } else {
            acl.fails(status, NOT_SUPPORTED, "attribute");
        }
    }
    acl.ok((acl.aclrtFree)(handle!(acl, |out| with_cfg(out, 64, 0, std::ptr::null()))));
    // Memory of the host cannot be shown to the device: the functions are absent, so that clients do not count on them.
    for name in ["aclrtHostRegister", "aclrtHostRegisterV2", "aclrtHostUnregister", "aclrtMallocHostWithCfg"] {
        assert!(!acl.exports(name), "{name}");
    }
}

//! Memory that the application maps itself, through the exported symbols: expandable segments.

mod common;

use std::sync::MutexGuard;

use common::{Acl, D2H, F32, H2D, NULL, Ptr, alone};

const PARAM: i32 = 107_000;
const INVALID_HANDLE: i32 = 107_017;
const NOT_SUPPORTED: i32 = 207_000;
const OUT_OF_MEMORY: i32 = 207_001;
const MIB: usize = 1 << 20;
const PAGE: usize = 2 * MIB;

/// `aclrtPhysicalMemProp` for HBM of a device.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Prop {
    handle_type: i32,
    allocation_type: i32,
    attribute: i32,
    id: u32,
    location: i32,
    reserve: u64,
}

static HBM: Prop = Prop { handle_type: 0, allocation_type: 0, attribute: 4, id: 0, location: 1, reserve: 0 };

more_functions!(Functions {
    aclrtReserveMemAddress(*mut Ptr, usize, usize, Ptr, u64) -> i32;
    aclrtReleaseMemAddress(Ptr) -> i32;
    aclrtMallocPhysical(*mut Ptr, usize, *const Prop, u64) -> i32;
    aclrtFreePhysical(Ptr) -> i32;
    aclrtMapMem(Ptr, usize, usize, Ptr, u64) -> i32;
    aclrtUnmapMem(Ptr) -> i32;
});

struct Pages {
    acl: &'static Acl,
    _alone: MutexGuard<'static, ()>,
    functions: Functions,
}

impl std::ops::Deref for Pages {
    type Target = Functions;

    fn deref(&self) -> &Functions {
        &self.functions
    }
}

fn pages() -> Pages {
    let (acl, alone) = alone();
    Pages { functions: Functions::of(acl), acl, _alone: alone }
}

impl Pages {
    fn reserve(&self, size: usize) -> Ptr {
        handle!(self.acl, |out| (self.aclrtReserveMemAddress)(out, size, 0, NULL, 1))
    }

    fn physical(&self, size: usize) -> Ptr {
        handle!(self.acl, |out| (self.aclrtMallocPhysical)(out, size, &HBM, 0))
    }
}

fn at(base: Ptr, bytes: usize) -> Ptr {
    base.wrapping_byte_add(bytes)
}

#[test]
fn a_segment_expands_as_an_allocator_does_it() {
    let p = pages();
    let acl = p.acl;
    // The probe by which a client sees that it works.
    let probe = p.reserve(512);
    acl.ok((p.aclrtReleaseMemAddress)(probe));
    let segment = p.reserve(MIB * 1024 / 8 * 9);
    let mut handles = Vec::new();
    for i in 0..3 {
        let handle = p.physical(PAGE);
        acl.ok((p.aclrtMapMem)(at(segment, i * PAGE), PAGE, 0, handle, 0));
        handles.push(handle);
        // A tensor over everything that is there by now, computed with, copied both ways.
        let n = (i + 1) * PAGE / 4;
        let values: Vec<f32> = (0..n).map(|k| (k % 1000) as f32).collect();
        acl.ok((acl.aclrtMemcpy)(segment, n * 4, values.as_ptr().cast(), n * 4, H2D));
        let (tensor, two) = (acl.tensor(segment, F32, &[n as i64]), acl.scalar(2.0));
        acl.run(|w, e| (acl.aclnnMulsGetWorkspaceSize)(tensor, two, tensor, w, e), acl.aclnnMuls);
        acl.ok((acl.aclrtSynchronizeStream)(NULL));
        let got = acl.download::<f32>(segment, n);
        assert!(got.iter().zip(&values).all(|(g, v)| *g == 2.0 * v), "{i}");
    }
    let mut attributes = [0u32; 7];
    acl.ok((acl.aclrtPointerGetAttributes)(at(segment, PAGE), &raw mut attributes));
    assert_eq!(attributes[1], 1, "a device address");
    for (i, handle) in handles.into_iter().enumerate().rev() {
        acl.ok((p.aclrtUnmapMem)(at(segment, i * PAGE)));
        acl.ok((p.aclrtFreePhysical)(handle));
    }
    acl.ok((p.aclrtReleaseMemAddress)(segment));
}

#[test]
fn wrong_use_of_mapped_memory_is_an_error_with_its_reason() {
    let p = pages();
    let acl = p.acl;
    let mut host = vec![7u8; PAGE];
    let h: Ptr = host.as_mut_ptr().cast();
    let (segment, handle) = (p.reserve(4 * PAGE), p.physical(2 * PAGE));
    let map = |addr, size, offset, handle| (p.aclrtMapMem)(addr, size, offset, handle, 0);
    acl.fails((acl.aclrtMemcpy)(segment, 8, h, 8, H2D), PARAM, "where nothing is mapped");
    acl.fails(map(segment, PAGE, 0, NULL), PARAM, "null");
    acl.fails(map(segment, PAGE, 0, segment), INVALID_HANDLE, "handle");
    acl.fails(map(h, PAGE, 0, handle), PARAM, "not a device address");
    acl.fails(map(NULL, PAGE, 0, handle), PARAM, "virPtr");
    acl.fails(map(at(segment, 512), PAGE, 0, handle), PARAM, "multiple of 2097152");
    acl.fails(map(segment, PAGE, 2 * PAGE, handle), PARAM, "more than the 4194304 bytes");
    acl.fails(map(at(segment, 3 * PAGE), 2 * PAGE, 0, handle), PARAM, "not inside one reserved range");
    acl.ok(map(segment, PAGE, PAGE, handle));
    acl.fails(map(segment, PAGE, 0, handle), PARAM, "overlap");
    acl.ok((acl.aclrtMemcpy)(segment, PAGE, h, PAGE, H2D));
    acl.fails((acl.aclrtMemcpy)(at(segment, PAGE - 4), 8, h, 8, H2D), PARAM, "run past");
    acl.fails((acl.aclrtMemset)(at(segment, PAGE), 8, 0, 8), PARAM, "where nothing is mapped");
    acl.fails((acl.aclrtFree)(segment), PARAM, "aclrtReleaseMemAddress");
    acl.fails((p.aclrtUnmapMem)(at(segment, PAGE)), PARAM, "not the start of a mapping");
    acl.fails((p.aclrtReleaseMemAddress)(segment), PARAM, "still has 1 mappings");
    acl.fails((p.aclrtReleaseMemAddress)(at(segment, PAGE)), PARAM, "not the start of a reserved range");
    let plain = acl.malloc(64);
    acl.fails((p.aclrtReleaseMemAddress)(plain), PARAM, "not the start of a reserved range");
    acl.fails((p.aclrtUnmapMem)(plain), PARAM, "not the start of a mapping");

    // The memory lives on for its mapping after its handle is gone, and for no other use.
    acl.ok((p.aclrtFreePhysical)(handle));
    acl.fails((p.aclrtFreePhysical)(handle), INVALID_HANDLE, "handle");
    acl.fails(map(at(segment, PAGE), PAGE, 0, handle), INVALID_HANDLE, "handle");
    assert!(acl.download::<u8>(segment, PAGE) == host);
    // A tensor over more than is mapped, and one over memory that is unmapped meanwhile.
    let (over, inside, one) =
        (acl.tensor(segment, F32, &[PAGE as i64 / 4 + 1]), acl.tensor(segment, F32, &[64]), acl.scalar(1.0));
    acl.run(|w, e| (acl.aclnnMulsGetWorkspaceSize)(over, one, over, w, e), acl.aclnnMuls);
    let status = (acl.aclrtSynchronizeStream)(NULL);
    acl.fails(status, PARAM, "run 4 bytes past the end");
    acl.run(|w, e| (acl.aclnnMulsGetWorkspaceSize)(inside, one, inside, w, e), acl.aclnnMuls);
    acl.ok((p.aclrtUnmapMem)(segment));
    acl.ok((acl.aclrtSynchronizeStream)(NULL));
    acl.run(|w, e| (acl.aclnnMulsGetWorkspaceSize)(inside, one, inside, w, e), acl.aclnnMuls);
    let status = (acl.aclrtSynchronizeStream)(NULL);
    acl.fails(status, PARAM, "aclnnMuls: parameter `self`: nothing is mapped at");
    acl.fails((acl.aclrtMemcpy)(h, 8, segment, 8, D2H), PARAM, "where nothing is mapped");
    acl.ok((p.aclrtReleaseMemAddress)(segment));
    acl.fails((p.aclrtReleaseMemAddress)(segment), PARAM, "not the start of a reserved range");
    acl.fails((acl.aclrtMemcpy)(h, 8, segment, 8, D2H), PARAM, "in no live device allocation");
    acl.ok((acl.aclrtFree)(plain));
}

#[test]
fn parameters_are_checked() {
    let p = pages();
    let acl = p.acl;
    let mut out = NULL;
    let reserve = |size, alignment, expect| (p.aclrtReserveMemAddress)(&mut { NULL }, size, alignment, expect, 1);
    acl.fails(reserve(0, 0, NULL), PARAM, "size");
    acl.fails(reserve(PAGE, 3, NULL), PARAM, "alignment");
    acl.fails(reserve(PAGE, 0, std::ptr::dangling_mut::<u64>().cast()), PARAM, "expectPtr");
    acl.fails(reserve(1 << 50, 0, NULL), OUT_OF_MEMORY, "no 11");
    acl.fails((p.aclrtReserveMemAddress)(std::ptr::null_mut(), PAGE, 0, NULL, 1), PARAM, "virPtr");
    let malloc = |size, prop: Prop| (p.aclrtMallocPhysical)(&mut { NULL }, size, &prop, 0);
    acl.fails(malloc(PAGE + 1, HBM), PARAM, "granularity");
    acl.fails(malloc(4 << 30, HBM), OUT_OF_MEMORY, "out of device memory");
    acl.fails(malloc(PAGE, Prop { location: 0, ..HBM }), NOT_SUPPORTED, "only of a device");
    acl.fails(malloc(PAGE, Prop { id: 7, ..HBM }), 107_001, "there are 1 devices");
    acl.fails(malloc(PAGE, Prop { handle_type: 2, ..HBM }), NOT_SUPPORTED, "handle type");
    acl.fails((p.aclrtMallocPhysical)(&raw mut out, PAGE, std::ptr::null(), 0), PARAM, "prop");

    let granularity: extern "C" fn(*const Prop, i32, *mut usize) -> i32 =
        acl.function("aclrtMemGetAllocationGranularity");
    for option in [0, 1] {
        assert_eq!(out!(acl, |value: usize| granularity(&HBM, option, value)), PAGE);
    }
    acl.fails(granularity(&HBM, 2, &mut { 0 }), PARAM, "option");

    let (segment, handle) = (p.reserve(2 * PAGE), p.physical(PAGE));
    let properties: extern "C" fn(Ptr, *mut Prop) -> i32 = acl.function("aclrtMemGetAllocationPropertiesFromHandle");
    assert_eq!(out!(acl, |value: Prop| properties(handle, value)), HBM);
    acl.ok((p.aclrtMapMem)(segment, PAGE, 0, handle, 0));
    let set_access: extern "C" fn(Ptr, usize, *const [i32; 6], usize) -> i32 = acl.function("aclrtMemSetAccess");
    let access = |flags, id, location| [flags, id, location, 0, 0, 0];
    acl.ok(set_access(segment, PAGE, &{ access(3, 0, 1) }, 1));
    acl.fails(set_access(segment, 2 * PAGE, &{ access(3, 0, 1) }, 1), PARAM, "run past");
    acl.fails(set_access(segment, PAGE, &{ access(1, 0, 1) }, 1), NOT_SUPPORTED, "access 1");
    acl.fails(set_access(segment, PAGE, &{ access(3, 1, 1) }, 1), NOT_SUPPORTED, "location 1");
    acl.fails(set_access(segment, PAGE, &{ access(3, 0, 1) }, 0), PARAM, "count");
    acl.ok((p.aclrtUnmapMem)(segment));
    acl.ok((p.aclrtFreePhysical)(handle));
    acl.ok((p.aclrtReleaseMemAddress)(segment));
    let nouc: extern "C" fn(*mut Ptr, usize, usize, Ptr, u64) -> i32 = acl.function("aclrtReserveMemAddressNoUCMemory");
    acl.ok((p.aclrtReleaseMemAddress)(handle!(acl, |out| nouc(out, PAGE, 4096, NULL, 0))));
}

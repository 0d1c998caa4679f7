//! Operators through the exported symbols, on a hosted device that computes.

mod common;

use common::{F32, NULL, Ptr, direct};

const PARAM_NULL: i32 = 161_001;
const PARAM_INVALID: i32 = 161_002;

fn values(n: usize, f: impl Fn(usize) -> f32) -> Vec<f32> {
    (0..n).map(f).collect()
}

#[test]
fn add_computes_what_it_should() {
    let acl = direct();
    let (a, b) = (values(1000, |i| i as f32), values(1000, |i| 0.5 * i as f32));
    let (da, db, dout) = (acl.upload(&a), acl.upload(&b), acl.malloc(4000));
    let (x, y, out) =
        (acl.tensor(da, F32, &[10, 100]), acl.tensor(db, F32, &[10, 100]), acl.tensor(dout, F32, &[10, 100]));
    let alpha = acl.scalar(2.0);
    acl.run(|w, e| (acl.aclnnAddGetWorkspaceSize)(x, y, alpha, out, w, e), acl.aclnnAdd);
    acl.ok((acl.aclrtSynchronizeStream)(NULL));
    let want: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + 2.0 * b).collect();
    assert_eq!(acl.download::<f32>(dout, 1000), want);
    for tensor in [x, y, out] {
        acl.ok((acl.aclDestroyTensor)(tensor));
    }
    acl.ok((acl.aclDestroyScalar)(alpha));
    for memory in [da, db, dout] {
        acl.ok((acl.aclrtFree)(memory));
    }
}

#[test]
fn matmul_computes_what_it_should_in_its_own_stream() {
    let acl = direct();
    let stream = acl.stream();
    let (a, b) = (values(6, |i| i as f32), values(12, |i| (i as f32) - 5.0));
    let (da, db, dout) = (acl.upload(&a), acl.upload(&b), acl.malloc(32));
    let (x, y, out) = (acl.tensor(da, F32, &[2, 3]), acl.tensor(db, F32, &[3, 4]), acl.tensor(dout, F32, &[2, 4]));
    acl.run_on(|w, e| (acl.aclnnMatmulGetWorkspaceSize)(x, y, out, 0, w, e), acl.aclnnMatmul, stream);
    acl.ok((acl.aclrtSynchronizeStream)(stream));
    let want: Vec<f32> = (0..8).map(|i| (0..3).map(|k| a[i / 4 * 3 + k] * b[k * 4 + i % 4]).sum::<f32>()).collect();
    assert_eq!(acl.download::<f32>(dout, 8), want);
    acl.ok((acl.aclrtDestroyStream)(stream));
}

#[test]
fn transposed_and_offset_views_are_read_as_described() {
    let acl = direct();
    let base = acl.upload(&values(8, |i| i as f32));
    let dout = acl.malloc(24);
    // Rows 3 and 2 of a view of elements 1..7 whose strides run the other way.
    let (dims, strides, storage) = ([3i64, 2], [1i64, 3], [8i64]);
    let view = (acl.aclCreateTensor)(dims.as_ptr(), 2, F32, strides.as_ptr(), 1, 2, storage.as_ptr(), 1, base);
    let out = acl.tensor(dout, F32, &[3, 2]);
    let two = acl.scalar(2.0);
    acl.run(|w, e| (acl.aclnnMulsGetWorkspaceSize)(view, two, out, w, e), acl.aclnnMuls);
    acl.ok((acl.aclrtSynchronizeStream)(NULL));
    assert_eq!(acl.download::<f32>(dout, 6), [2.0, 8.0, 4.0, 10.0, 6.0, 12.0]);
}

#[test]
fn floating_point_arguments_arrive() {
    let acl = direct();
    let x = [3.0f32, 4.0, 0.0, 0.0];
    let (dx, dg, dy, dr) = (acl.upload(&x), acl.upload(&[1.0f32; 4]), acl.malloc(16), acl.malloc(4));
    let (tx, tg) = (acl.tensor(dx, F32, &[1, 4]), acl.tensor(dg, F32, &[4]));
    let (ty, tr) = (acl.tensor(dy, F32, &[1, 4]), acl.tensor(dr, F32, &[1, 1]));
    // Mean square 25/4; an epsilon this large shows in the result.
    let epsilon = 2.75f64;
    acl.run(|w, e| (acl.aclnnRmsNormGetWorkspaceSize)(tx, tg, epsilon, ty, tr, w, e), acl.aclnnRmsNorm);
    acl.ok((acl.aclrtSynchronizeStream)(NULL));
    for (got, want) in acl.download::<f32>(dy, 4).iter().zip(x.map(|v| v / 3.0)) {
        assert!((got - want).abs() < 1e-6, "{got} {want}");
    }
    let normal = acl.tensor(dy, F32, &[4]);
    acl.run(|w, e| (acl.aclnnInplaceNormalGetWorkspaceSize)(normal, 1.25, 0.0, 7, 0, w, e), acl.aclnnInplaceNormal);
    acl.ok((acl.aclrtSynchronizeStream)(NULL));
    assert_eq!(acl.download::<f32>(dy, 4), [1.25; 4], "mean 1.25, deviation 0");
}

#[test]
fn arguments_are_taken_in_phase_one() {
    let acl = direct();
    let (a, b) = (acl.upload(&[1.0f32, 2.0]), acl.upload(&[3.0f32]));
    let dout = acl.malloc(12);
    let parts = [acl.tensor(a, F32, &[2]), acl.tensor(b, F32, &[1])];
    let list = (acl.aclCreateTensorList)(parts.as_ptr(), 2);
    let out = acl.tensor(dout, F32, &[3]);
    let (mut workspace, mut executor) = (0, NULL);
    acl.ok((acl.aclnnCatGetWorkspaceSize)(list, 0, out, &raw mut workspace, &raw mut executor));
    // As torch_npu does, on another thread: everything that described the arguments goes before phase two.
    acl.ok((acl.aclDestroyTensorList)(list));
    acl.ok((acl.aclDestroyTensor)(out));
    acl.fails((acl.aclDestroyTensor)(parts[0]), PARAM_INVALID, "was destroyed");
    acl.ok((acl.aclnnCat)(NULL, workspace, executor, NULL));
    acl.ok((acl.aclrtSynchronizeStream)(NULL));
    assert_eq!(acl.download::<f32>(dout, 3), [1.0, 2.0, 3.0]);
}

#[test]
fn wrong_arguments_fail_in_phase_one_and_name_the_parameter() {
    let acl = direct();
    let memory = acl.malloc(64);
    let t = acl.tensor(memory, F32, &[4]);
    let gone = acl.tensor(memory, F32, &[4]);
    acl.ok((acl.aclDestroyTensor)(gone));
    let alpha = acl.scalar(1.0);
    let mut workspace = 0;
    let mut executor = NULL;
    let mut add = |x: Ptr, y: Ptr, a: Ptr, out: Ptr| {
        (acl.aclnnAddGetWorkspaceSize)(x, y, a, out, &raw mut workspace, &raw mut executor)
    };
    acl.fails(add(t, t, alpha, NULL), PARAM_NULL, "aclnnAddGetWorkspaceSize: parameter out: null output");
    acl.fails(add(gone, t, alpha, t), PARAM_INVALID, "parameter self: this aclTensor was destroyed");
    acl.fails(add(t, alpha, alpha, t), PARAM_INVALID, "parameter other: an aclScalar where an aclTensor");
    acl.fails(add(t, t, (&raw const memory).cast_mut().cast(), t), PARAM_INVALID, "parameter alpha");
    let null_out = (acl.aclnnAddGetWorkspaceSize)(t, t, alpha, t, std::ptr::null_mut(), &raw mut executor);
    acl.fails(null_out, PARAM_NULL, "workspaceSize");
    let null_out = (acl.aclnnAddGetWorkspaceSize)(t, t, alpha, t, &raw mut workspace, std::ptr::null_mut());
    acl.fails(null_out, PARAM_NULL, "executor");

    let dims = [1i64; 9];
    let nine = (acl.aclCreateTensor)(dims.as_ptr(), 9, F32, dims.as_ptr(), 0, 2, dims.as_ptr(), 1, memory);
    assert!(nine.is_null());
    assert!(acl.message().contains("viewDims: 9 dimensions, at most 8"));
    let odd = (acl.aclCreateTensor)(dims.as_ptr(), 1, 99, dims.as_ptr(), 0, 2, dims.as_ptr(), 1, memory);
    assert!(odd.is_null());
    assert!(acl.message().contains("aclDataType 99"));
}

#[test]
fn executors_live_for_one_second_phase_or_until_destroyed() {
    let acl = direct();
    let memory = acl.upload(&[1.0f32, 2.0]);
    let (t, two) = (acl.tensor(memory, F32, &[2]), acl.scalar(2.0));
    let (mut workspace, mut executor) = (0, NULL);
    let mut muls = || {
        acl.ok((acl.aclnnMulsGetWorkspaceSize)(t, two, t, &raw mut workspace, &raw mut executor));
        executor
    };
    let once = muls();
    acl.fails((acl.aclnnAdd)(NULL, 0, once, NULL), PARAM_INVALID, "made by aclnnMulsGetWorkspaceSize");
    acl.ok((acl.aclnnMuls)(NULL, 0, once, NULL));
    acl.fails((acl.aclnnMuls)(NULL, 0, once, NULL), PARAM_INVALID, "executor: this aclOpExecutor was destroyed");
    acl.fails((acl.aclnnMuls)(NULL, 0, NULL, NULL), PARAM_NULL, "parameter executor: null");

    let often = muls();
    acl.ok((acl.aclSetAclOpExecutorRepeatable)(often));
    for _ in 0..3 {
        acl.ok((acl.aclnnMuls)(NULL, 0, often, NULL));
    }
    acl.ok((acl.aclDestroyAclOpExecutor)(often));
    acl.fails((acl.aclDestroyAclOpExecutor)(often), PARAM_INVALID, "was destroyed");
    acl.ok((acl.aclrtSynchronizeStream)(NULL));
    assert_eq!(acl.download::<f32>(memory, 2), [16.0, 32.0]);
}

#[test]
fn only_what_the_device_computes_is_exported() {
    let acl = direct();
    for signature in acl_abi::SIGNATURES {
        for name in [signature.name.to_owned(), format!("{}GetWorkspaceSize", signature.name)] {
            assert_eq!(acl.exports(&name), signature.emulated, "{name}");
        }
    }
    for name in ["PTAGetExecCache", "InitPTACacheThreadLocal", "SetPTAHashKey", "aclrtHostRegister"] {
        assert!(!acl.exports(name), "{name} would steer clients wrong");
    }
    let mut id = 0;
    acl.fails((acl.aclmdlLoadFromFile)(c"x".as_ptr(), &raw mut id), 207_000, "aclmdlLoadFromFile: not supported");
}

#[test]
fn a_private_format_has_room_for_whole_blocks() {
    let acl = direct();
    let (at, half) = (acl.malloc(1 << 16), 1);
    let sizes = |tensor, format| {
        let (mut dims, mut count, mut actual) = (std::ptr::null_mut(), 0, 0);
        let calculate = acl.aclnnNpuFormatCastCalculateSizeAndFormat;
        let code = calculate(tensor, format, half, &raw mut dims, &raw mut count, &raw mut actual);
        if code != 0 {
            return (code, vec![], actual);
        }
        // SAFETY: the library says that so many integers are there, and that the caller releases them.
        let sizes = unsafe { std::slice::from_raw_parts(dims, count as usize) }.to_vec();
        // SAFETY: the block is malloc's.
        unsafe { libc::free(dims.cast()) };
        (code, sizes, actual)
    };
    let matrix = acl.tensor(at, F32, &[2, 20, 33]);
    assert_eq!(sizes(matrix, 29), (0, vec![2, 3, 2, 16, 16], 29));
    assert_eq!(sizes(matrix, 2), (0, vec![2, 20, 33], 2));
    assert_eq!(sizes(matrix, 3).0, PARAM_INVALID);
    assert_eq!(sizes(acl.tensor(at, F32, &[5]), 29).0, PARAM_INVALID);
}

#[test]
fn operators_from_many_threads_keep_their_own_streams_in_order() {
    let acl = direct();
    std::thread::scope(|scope| {
        for n in 0..4 {
            scope.spawn(move || {
                let acl = direct();
                let stream = acl.stream();
                let memory = acl.upload(&[0f32; 16]);
                let (t, one) = (acl.tensor(memory, F32, &[16]), acl.scalar(1.0));
                let start = [n as f32; 16];
                for _ in 0..200 {
                    acl.ok((acl.aclrtMemcpyAsync)(memory, 64, start.as_ptr().cast(), 64, common::H2D, stream));
                    acl.run_on(|w, e| (acl.aclnnAddGetWorkspaceSize)(t, t, one, t, w, e), acl.aclnnAdd, stream);
                }
                acl.ok((acl.aclrtSynchronizeStream)(stream));
                assert_eq!(acl.download::<f32>(memory, 16), [2.0 * n as f32; 16]);
            });
        }
    });
    acl.ok((acl.aclrtSynchronizeDevice)());
}

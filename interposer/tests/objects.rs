//! Objects that describe arguments: they say what they were made from, operators take what is in them, and wrong handles are
//! errors.

mod common;

use std::ffi::c_char;

use common::{F32, I32, ND, NULL, Ptr, direct};

const INVALID: i32 = 161_002;
const DESC_INVALID: i32 = 100_000;

type Destroy = extern "C" fn(Ptr) -> i32;
type Size = extern "C" fn(Ptr, *mut u64) -> i32;

more_functions!(Lists {
    aclCreateFloatArray(*const f32, u64) -> Ptr;
    aclDestroyFloatArray(Ptr) -> i32;
    aclGetFloatArraySize(Ptr, *mut u64) -> i32;
    aclCreateBoolArray(*const u8, u64) -> Ptr;
    aclDestroyBoolArray(Ptr) -> i32;
    aclGetBoolArraySize(Ptr, *mut u64) -> i32;
    aclCreateScalarList(*const Ptr, u64) -> Ptr;
    aclDestroyScalarList(Ptr) -> i32;
    aclGetScalarListSize(Ptr, *mut u64) -> i32;
    aclGetTensorListSize(Ptr, *mut u64) -> i32;
    aclnnForeachAddScalarListGetWorkspaceSize(Ptr, Ptr, Ptr, *mut u64, *mut Ptr) -> i32;
    aclnnForeachAddScalarList(Ptr, u64, Ptr, Ptr) -> i32;
});

#[test]
fn arrays_and_lists_have_a_size_until_they_are_destroyed() {
    let acl = direct();
    let f = Lists::of(acl);
    let scalars = [1.0, 2.0].map(|value| acl.scalar(value));
    let tensors = [1, 2, 3].map(|n| acl.tensor(NULL, F32, &[n]));
    let other = acl.scalar(0.0);
    let ints = (acl.aclCreateIntArray)([4i64, 5].as_ptr(), 2);
    let floats = (f.aclCreateFloatArray)([0.5f32].as_ptr(), 1);
    let bools = (f.aclCreateBoolArray)([1u8, 0, 7].as_ptr(), 3);
    let numbers = (f.aclCreateScalarList)(scalars.as_ptr(), 2);
    let list = (acl.aclCreateTensorList)(tensors.as_ptr(), 3);
    let table: [(Ptr, u64, Size, Destroy, &str); 5] = [
        (ints, 2, acl.aclGetIntArraySize, acl.aclDestroyIntArray, "aclIntArray"),
        (floats, 1, f.aclGetFloatArraySize, f.aclDestroyFloatArray, "aclFloatArray"),
        (bools, 3, f.aclGetBoolArraySize, f.aclDestroyBoolArray, "aclBoolArray"),
        (numbers, 2, f.aclGetScalarListSize, f.aclDestroyScalarList, "aclScalarList"),
        (list, 3, f.aclGetTensorListSize, acl.aclDestroyTensorList, "aclTensorList"),
    ];
    for (object, want, size, destroy, kind) in table {
        assert_eq!(out!(acl, |count: u64| size(object, count)), want, "{kind}");
        let wrong = format!("an aclScalar where an {kind}");
        acl.fails(size(other, &mut 0), INVALID, &wrong);
        acl.fails(destroy(other), INVALID, &wrong);
        acl.ok(destroy(object));
        acl.fails(destroy(object), INVALID, "was destroyed");
        acl.fails(size(object, &mut 0), INVALID, "was destroyed");
    }
    // What a list has goes with it.
    for scalar in scalars {
        acl.fails((acl.aclDestroyScalar)(scalar), INVALID, "was destroyed");
    }
    for tensor in tensors {
        acl.fails((acl.aclDestroyTensor)(tensor), INVALID, "was destroyed");
    }
    assert!((f.aclCreateScalarList)([NULL].as_ptr(), 1).is_null());
    assert!((f.aclCreateFloatArray)(std::ptr::null(), 1).is_null());
    assert!((f.aclCreateBoolArray)(std::ptr::null(), 1).is_null());
    acl.ok((acl.aclDestroyScalar)(other));
}

#[test]
fn an_operator_over_a_list_takes_a_scalar_for_each_tensor() {
    let acl = direct();
    let f = Lists::of(acl);
    let memory = [acl.upload(&[1f32, 2.0]), acl.upload(&[3f32])];
    let tensors = || [acl.tensor(memory[0], F32, &[2]), acl.tensor(memory[1], F32, &[1])];
    let list = || (acl.aclCreateTensorList)(tensors().as_ptr(), 2);
    let (x, out) = (list(), list());
    let scalars = (f.aclCreateScalarList)([10.0, 20.0].map(|value| acl.scalar(value)).as_ptr(), 2);
    acl.run(|w, e| (f.aclnnForeachAddScalarListGetWorkspaceSize)(x, scalars, out, w, e), f.aclnnForeachAddScalarList);
    acl.ok((acl.aclrtSynchronizeStream)(NULL));
    assert_eq!(acl.download::<f32>(memory[0], 2), [11.0, 12.0]);
    assert_eq!(acl.download::<f32>(memory[1], 1), [23.0]);
    for list in [x, out] {
        acl.ok((acl.aclDestroyTensorList)(list));
    }
    acl.ok((f.aclDestroyScalarList)(scalars));
}

more_functions!(Norm {
    aclnnLayerNormBackwardGetWorkspaceSize(Ptr, Ptr, Ptr, Ptr, Ptr, Ptr, Ptr, Ptr, Ptr, Ptr, Ptr, *mut u64, *mut Ptr) -> i32;
    aclnnLayerNormBackward(Ptr, u64, Ptr, Ptr) -> i32;
});

#[test]
fn a_mask_of_bools_says_which_outputs_are_wanted() {
    let acl = direct();
    let (f, lists) = (Norm::of(acl), Lists::of(acl));
    let tensor = |values: &[f32], dims: &[i64]| acl.tensor(acl.upload(values), F32, dims);
    let shape = (acl.aclCreateIntArray)([2i64].as_ptr(), 1);
    // One row, 1 and 3: mean 2, and a reciprocal deviation of 1.
    let (grad, input) = (tensor(&[1.0, 2.0], &[1, 2]), tensor(&[1.0, 3.0], &[1, 2]));
    let (mean, rstd) = (tensor(&[2.0], &[1, 1]), tensor(&[1.0], &[1, 1]));
    let ones = tensor(&[1.0, 1.0], &[2]);
    let out = [0; 3].map(|_| acl.upload(&[9f32; 2]));
    let [grad_input, grad_weight, grad_bias] =
        [(out[0], &[1, 2][..]), (out[1], &[2]), (out[2], &[2])].map(|(at, dims)| acl.tensor(at, F32, dims));
    let mask = (lists.aclCreateBoolArray)([0u8, 1, 1].as_ptr(), 3);
    let backward = f.aclnnLayerNormBackwardGetWorkspaceSize;
    acl.run(
        |w, e| backward(grad, input, shape, mean, rstd, ones, ones, mask, grad_input, grad_weight, grad_bias, w, e),
        f.aclnnLayerNormBackward,
    );
    acl.ok((acl.aclrtSynchronizeStream)(NULL));
    assert_eq!(out.map(|at| acl.download::<f32>(at, 2)), [[9.0, 9.0], [-1.0, 2.0], [1.0, 2.0]]);
}

more_functions!(Tensors {
    aclInitTensor(Ptr, *const i64, u64, i32, *const i64, i64, i32, *const i64, u64, Ptr) -> i32;
    aclGetRawTensorAddr(Ptr, *mut Ptr) -> i32;
    aclSetRawTensorAddr(Ptr, Ptr) -> i32;
});

#[test]
fn a_tensor_can_be_moved_and_made_anew() {
    let acl = direct();
    let f = Tensors::of(acl);
    let memory = [1f32, 3.0, 5.0].map(|value| acl.upload(&[value; 4]));
    let (tensor, two) = (acl.tensor(memory[0], F32, &[4]), acl.scalar(2.0));
    let double = || acl.run(|w, e| (acl.aclnnMulsGetWorkspaceSize)(tensor, two, tensor, w, e), acl.aclnnMuls);
    let at = || handle!(acl, |out| (f.aclGetRawTensorAddr)(tensor, out));
    assert_eq!(at(), memory[0]);
    acl.ok((f.aclSetRawTensorAddr)(tensor, memory[1]));
    assert_eq!(at(), memory[1]);
    double();
    // From the second element on, every other one.
    let (dims, strides, storage) = ([2i64], [2i64], [4i64]);
    let again = |dtype, data| {
        let (d, s, t) = (dims.as_ptr(), strides.as_ptr(), storage.as_ptr());
        (f.aclInitTensor)(tensor, d, 1, dtype, s, 1, ND, t, 1, data)
    };
    acl.fails(again(99, memory[2]), INVALID, "dataType");
    acl.ok(again(F32, memory[2]));
    double();
    acl.ok((acl.aclrtSynchronizeStream)(NULL));
    let values = memory.map(|at| acl.download::<f32>(at, 4));
    assert_eq!(values, [[1.0; 4], [6.0; 4], [5.0, 10.0, 5.0, 10.0]]);
    acl.ok(again(I32, NULL));
    assert_eq!(out!(acl, |dtype: i32| (acl.aclGetDataType)(tensor, dtype)), I32);
    acl.ok((acl.aclDestroyTensor)(tensor));
    acl.fails(again(F32, NULL), INVALID, "was destroyed");
    acl.fails((f.aclSetRawTensorAddr)(tensor, NULL), INVALID, "was destroyed");
    acl.fails((f.aclGetRawTensorAddr)(tensor, &mut NULL.clone()), INVALID, "was destroyed");
}

more_functions!(Descriptions {
    aclCreateTensorDesc(i32, i32, *const i64, i32) -> Ptr;
    aclDestroyTensorDesc(Ptr);
    aclGetTensorDescType(Ptr) -> i32;
    aclGetTensorDescFormat(Ptr) -> i32;
    aclGetTensorDescSize(Ptr) -> usize;
    aclGetTensorDescElementCount(Ptr) -> usize;
    aclGetTensorDescNumDims(Ptr) -> usize;
    aclGetTensorDescDim(Ptr, usize) -> i64;
    aclGetTensorDescDimV2(Ptr, usize, *mut i64) -> i32;
    aclSetTensorDescName(Ptr, *const c_char);
    aclSetTensorFormat(Ptr, i32) -> i32;
    aclSetTensorPlaceMent(Ptr, i32) -> i32;
    aclSetTensorShape(Ptr, i32, *const i64) -> i32;
    aclCreateDataBuffer(Ptr, usize) -> Ptr;
    aclDestroyDataBuffer(Ptr) -> i32;
    aclUpdateDataBuffer(Ptr, Ptr, usize) -> i32;
    aclGetDataBufferAddr(Ptr) -> Ptr;
    aclGetDataBufferSize(Ptr) -> u32;
    aclGetDataBufferSizeV2(Ptr) -> usize;
});

#[test]
fn descriptions_of_the_older_interface_say_what_they_were_given() {
    let acl = direct();
    let f = Descriptions::of(acl);
    let desc = (f.aclCreateTensorDesc)(F32, 3, [2i64, 3, 4].as_ptr(), ND);
    let numbers =
        || [f.aclGetTensorDescSize, f.aclGetTensorDescElementCount, f.aclGetTensorDescNumDims].map(|get| get(desc));
    assert_eq!(((f.aclGetTensorDescType)(desc), (f.aclGetTensorDescFormat)(desc)), (F32, ND));
    assert_eq!(numbers(), [96, 24, 3]);
    assert_eq!([0, 1, 2, 3].map(|i| (f.aclGetTensorDescDim)(desc, i)), [2, 3, 4, -1]);
    assert_eq!(out!(acl, |size: i64| (f.aclGetTensorDescDimV2)(desc, 2, size)), 4);
    acl.fails((f.aclGetTensorDescDimV2)(desc, 3, &mut 0), DESC_INVALID, "3 of 3 dimensions");
    (f.aclSetTensorDescName)(desc, c"x".as_ptr());
    acl.ok((f.aclSetTensorPlaceMent)(desc, 1));
    acl.ok((f.aclSetTensorFormat)(desc, 0));
    acl.ok((f.aclSetTensorShape)(desc, 1, [5i64].as_ptr()));
    assert_eq!(((f.aclGetTensorDescFormat)(desc), numbers()), (0, [20, 5, 1]));
    acl.fails((f.aclSetTensorShape)(desc, -1, std::ptr::null()), DESC_INVALID, "numDims: -1");
    assert!((f.aclCreateTensorDesc)(F32, 99, [1i64; 99].as_ptr(), ND).is_null());
    (f.aclDestroyTensorDesc)(desc);
    assert_eq!(((f.aclGetTensorDescType)(desc), (f.aclGetTensorDescFormat)(desc), numbers()), (-1, -1, [0; 3]));
    acl.fails((f.aclSetTensorFormat)(desc, 0), DESC_INVALID, "was destroyed");
}

#[test]
fn buffers_are_an_address_and_a_size() {
    let acl = direct();
    let f = Descriptions::of(acl);
    let at = |address: usize| -> Ptr { std::ptr::without_provenance_mut(address) };
    let buffer = (f.aclCreateDataBuffer)(at(0x1000), 7);
    let read =
        || ((f.aclGetDataBufferAddr)(buffer), (f.aclGetDataBufferSize)(buffer), (f.aclGetDataBufferSizeV2)(buffer));
    assert_eq!(read(), (at(0x1000), 7, 7));
    acl.ok((f.aclUpdateDataBuffer)(buffer, at(0x2000), (1 << 32) + 5));
    assert_eq!(read(), (at(0x2000), 5, (1 << 32) + 5), "the first getter has 32 bits");
    acl.ok((f.aclDestroyDataBuffer)(buffer));
    assert_eq!(read(), (NULL, 0, 0));
    acl.fails((f.aclDestroyDataBuffer)(buffer), DESC_INVALID, "was destroyed");
    acl.fails((f.aclUpdateDataBuffer)(buffer, NULL, 0), DESC_INVALID, "was destroyed");
}

more_functions!(Halves {
    aclFloat16ToFloat(u16) -> f32;
    aclFloatToFloat16(f32) -> u16;
});

#[test]
fn halves_are_widened_and_rounded() {
    let acl = direct();
    let f = Halves::of(acl);
    for (half, wide) in
        [(0x3c00, 1.0), (0xc000, -2.0), (0x7bff, 65504.0), (0x0001, 2f32.powi(-24)), (0x7c00, f32::INFINITY)]
    {
        assert_eq!(((f.aclFloat16ToFloat)(half), (f.aclFloatToFloat16)(wide)), (wide, half));
    }
    // A tie goes to the even neighbour; what is too large, to infinity.
    for (wide, half) in [(1.0 + 2f32.powi(-11), 0x3c00), (1.0 + 3.0 * 2f32.powi(-11), 0x3c02), (1e9, 0x7c00)] {
        assert_eq!((f.aclFloatToFloat16)(wide), half);
    }
    assert!((f.aclFloat16ToFloat)((f.aclFloatToFloat16)(f32::NAN)).is_nan());
}

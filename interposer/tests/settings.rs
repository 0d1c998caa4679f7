//! Options, versions and numbers: what was set comes back, and streams, contexts and devices say what they are.

mod common;

use std::ffi::{CStr, c_char};

use common::{Acl, NULL, Ptr, alone};

const PARAM: i32 = 107_000;
const NO_DEVICE: i32 = 107_001;
const NO_CONTEXT: i32 = 107_002;
const BAD_HANDLE: i32 = 107_017;
const NOT_SET: i32 = 107_021;
const NOT_SUPPORTED: i32 = 207_000;

more_functions!(Options {
    aclrtSetDeviceSatMode(i32) -> i32;
    aclrtGetDeviceSatMode(*mut i32) -> i32;
    aclrtSetSysParamOpt(i32, i64) -> i32;
    aclrtGetSysParamOpt(i32, *mut i64) -> i32;
    aclrtCtxSetSysParamOpt(i32, i64) -> i32;
    aclrtCtxGetSysParamOpt(i32, *mut i64) -> i32;
    aclrtSetOpExecuteTimeOut(u32) -> i32;
    aclrtSetOpExecuteTimeOutWithMs(u32) -> i32;
    aclrtSetOpExecuteTimeOutV2(u64, *mut u64) -> i32;
    aclrtGetOpExecuteTimeout(*mut u32) -> i32;
    aclSetCompileopt(i32, *const c_char) -> i32;
    aclGetCompileoptSize(i32) -> usize;
    aclGetCannAttribute(i32, *mut i32) -> i32;
});

#[test]
fn options_come_back() {
    let (acl, _alone) = alone();
    let f = Options::of(acl);
    for mode in [0, 1] {
        acl.ok((f.aclrtSetDeviceSatMode)(mode));
        assert_eq!(out!(acl, |mode: i32| (f.aclrtGetDeviceSatMode)(mode)), mode);
    }
    acl.fails((f.aclrtSetDeviceSatMode)(2), PARAM, "mode: 2");

    let system = |option| out!(acl, |value: i64| (f.aclrtGetSysParamOpt)(option, value));
    let context = |option| out!(acl, |value: i64| (f.aclrtCtxGetSysParamOpt)(option, value));
    acl.fails((f.aclrtCtxGetSysParamOpt)(3, &mut 0), NOT_SET, "3 was not set");
    assert_eq!(system(3), 0);
    acl.ok((f.aclrtSetSysParamOpt)(3, 1));
    acl.ok((f.aclrtCtxSetSysParamOpt)(4, -7));
    assert_eq!([system(3), context(3), system(4), context(4)], [1, 1, -7, -7]);

    let limit_ms = || out!(acl, |ms: u32| (f.aclrtGetOpExecuteTimeout)(ms));
    acl.ok((f.aclrtSetOpExecuteTimeOut)(3));
    assert_eq!(limit_ms(), 3000);
    acl.ok((f.aclrtSetOpExecuteTimeOutWithMs)(250));
    assert_eq!(limit_ms(), 250);
    assert_eq!(out!(acl, |us: u64| (f.aclrtSetOpExecuteTimeOutV2)(1_500_000, us)), 1_500_000);
    assert_eq!(limit_ms(), 1500);

    const PRECISION: i32 = 0;
    const JIT: i32 = 10;
    let compile = |option| {
        let mut text = [1 as c_char; 32];
        acl.ok((acl.aclGetCompileopt)(option, text.as_mut_ptr(), text.len()));
        // SAFETY: the library wrote a string and its NUL into the buffer.
        unsafe { CStr::from_ptr(text.as_ptr()) }.to_str().unwrap().to_owned()
    };
    assert_eq!(((f.aclGetCompileoptSize)(PRECISION), (f.aclGetCompileoptSize)(JIT)), (0, 8));
    acl.fails((acl.aclGetCompileopt)(PRECISION, [0; 8].as_mut_ptr(), 8), PARAM, "0 was not set");
    for (option, value) in [(PRECISION, c"high_precision"), (JIT, c"enable")] {
        acl.ok((f.aclSetCompileopt)(option, value.as_ptr()));
        assert_eq!(compile(option), value.to_str().unwrap());
        assert_eq!((f.aclGetCompileoptSize)(option), value.count_bytes() + 1);
    }
    acl.fails((f.aclSetCompileopt)(JIT, std::ptr::null()), PARAM, "value");

    for (attribute, want) in [(0, 1), (1, 1), (2, 0)] {
        assert_eq!(out!(acl, |value: i32| (f.aclGetCannAttribute)(attribute, value)), want);
    }
    acl.fails((f.aclGetCannAttribute)(9, &mut 0), PARAM, "cannAttr: 9");
}

more_functions!(Streams {
    aclrtStreamGetId(Ptr, *mut i32) -> i32;
    aclrtStreamGetPriority(Ptr, *mut u32) -> i32;
    aclrtStreamGetFlags(Ptr, *mut u32) -> i32;
    aclrtSetStreamFailureMode(Ptr, u64) -> i32;
    aclrtSetStreamOverflowSwitch(Ptr, u32) -> i32;
    aclrtGetStreamOverflowSwitch(Ptr, *mut u32) -> i32;
    aclrtSetStreamAttribute(Ptr, i32, Ptr) -> i32;
    aclrtCtxGetCurrentDefaultStream(*mut Ptr) -> i32;
});

#[test]
fn streams_say_how_they_were_made() {
    let (acl, _alone) = alone();
    let f = Streams::of(acl);
    let made = handle!(acl, |out| (acl.aclrtCreateStreamWithConfig)(out, 3, 5));
    let mut default = made;
    acl.ok((f.aclrtCtxGetCurrentDefaultStream)(&raw mut default));
    assert!(default.is_null());
    let id = |stream| out!(acl, |id: i32| (f.aclrtStreamGetId)(stream, id));
    let numbers = |stream| {
        let priority = out!(acl, |value: u32| (f.aclrtStreamGetPriority)(stream, value));
        (priority, out!(acl, |value: u32| (f.aclrtStreamGetFlags)(stream, value)))
    };
    assert_eq!((numbers(made), numbers(default)), ((3, 5), (0, 0)));
    assert_ne!(id(made), id(default));

    let mut word = 1u64;
    let value: Ptr = (&raw mut word).cast();
    for stream in [made, default] {
        acl.ok((f.aclrtSetStreamFailureMode)(stream, 1));
        acl.fails((f.aclrtSetStreamFailureMode)(stream, 2), PARAM, "mode: 2");
        acl.ok((f.aclrtSetStreamOverflowSwitch)(stream, 1));
        assert_eq!(out!(acl, |flag: u32| (f.aclrtGetStreamOverflowSwitch)(stream, flag)), 0, "nothing is detected");
        for attribute in 1..=4 {
            acl.ok((f.aclrtSetStreamAttribute)(stream, attribute, value));
        }
        acl.fails((f.aclrtSetStreamAttribute)(stream, 5, value), NOT_SUPPORTED, "priority of a stream is fixed");
        acl.fails((f.aclrtSetStreamAttribute)(stream, 9, value), PARAM, "stmAttrType: 9");
        acl.fails((f.aclrtSetStreamAttribute)(stream, 1, NULL), PARAM, "value");
    }
    acl.ok((acl.aclrtDestroyStream)(made));
    let refused = |status| acl.fails(status, BAD_HANDLE, "was destroyed");
    refused((f.aclrtStreamGetId)(made, &mut 0));
    refused((f.aclrtStreamGetPriority)(made, &mut 0));
    refused((f.aclrtStreamGetFlags)(made, &mut 0));
    refused((f.aclrtSetStreamFailureMode)(made, 0));
    refused((f.aclrtSetStreamOverflowSwitch)(made, 0));
    refused((f.aclrtGetStreamOverflowSwitch)(made, &mut 0));
    refused((f.aclrtSetStreamAttribute)(made, 1, value));
}

type Number = extern "C" fn(i32, *mut i32) -> i32;

more_functions!(Device {
    aclrtGetDeviceInfo(u32, i32, *mut i64) -> i32;
    aclrtGetDeviceCapability(i32, i32, *mut i32) -> i32;
    aclrtQueryDeviceStatus(i32, *mut i32) -> i32;
    aclrtDeviceGetStreamPriorityRange(*mut i32, *mut i32) -> i32;
    aclrtDeviceGetBareTgid(*mut i32) -> i32;
    aclrtGetLogicDevIdByUserDevId(i32, *mut i32) -> i32;
    aclrtGetUserDevIdByLogicDevId(i32, *mut i32) -> i32;
    aclrtGetLogicDevIdByPhyDevId(i32, *mut i32) -> i32;
    aclrtGetPhyDevIdByLogicDevId(i32, *mut i32) -> i32;
    aclrtGetPrimaryCtxState(i32, *mut u32, *mut i32) -> i32;
    aclrtResetDeviceForce(i32) -> i32;
});

#[test]
fn a_device_says_what_it_is() {
    let (acl, _alone) = alone();
    let f = Device::of(acl);
    // Cores (AI, cube, vector), bytes of memory and cache, the chip's number, and that it is virtual.
    for (attribute, want) in [(101, 20), (102, 20), (201, 40), (301, 1 << 30), (302, 192 << 20), (402, 0), (501, 1)] {
        assert_eq!(out!(acl, |value: i64| (f.aclrtGetDeviceInfo)(0, attribute, value)), want, "{attribute}");
    }
    acl.fails((f.aclrtGetDeviceInfo)(0, 202, &mut 0), NOT_SUPPORTED, "attr: 202");
    acl.fails((f.aclrtGetDeviceInfo)(1, 101, &mut 0), NO_DEVICE, "there are 1 devices");
    assert_eq!(out!(acl, |value: i32| (f.aclrtGetDeviceCapability)(0, 0, value)), 0);
    let (mut least, mut greatest) = (-1, -1);
    acl.ok((f.aclrtDeviceGetStreamPriorityRange)(&raw mut least, &raw mut greatest));
    assert_eq!((least, greatest), (7, 0));
    let pid = out!(acl, |pid: i32| (f.aclrtDeviceGetBareTgid)(pid));
    assert_eq!(u32::try_from(pid).unwrap(), std::process::id());
    let numbers: [Number; 5] = [
        f.aclrtQueryDeviceStatus,
        f.aclrtGetLogicDevIdByUserDevId,
        f.aclrtGetUserDevIdByLogicDevId,
        f.aclrtGetLogicDevIdByPhyDevId,
        f.aclrtGetPhyDevIdByLogicDevId,
    ];
    for function in numbers {
        let mut number = -1;
        acl.ok(function(0, &raw mut number));
        assert_eq!(number, 0);
        acl.fails(function(1, &raw mut number), NO_DEVICE, "there are 1 devices");
    }
    let (mut flags, mut active) = (9, 9);
    acl.ok((f.aclrtGetPrimaryCtxState)(0, &raw mut flags, &raw mut active));
    assert_eq!((flags, active), (0, 1));
    acl.fails((f.aclrtGetPrimaryCtxState)(1, &raw mut flags, &raw mut active), NO_DEVICE, "there are 1 devices");
    let stream = acl.stream();
    acl.ok((f.aclrtResetDeviceForce)(0));
    acl.fails((acl.aclrtGetDevice)(&mut 0), NO_CONTEXT, "aclrtSetDevice");
    acl.ok((acl.aclrtSetDevice)(0));
    acl.ok((acl.aclrtDestroyStream)(stream));
}

more_functions!(Library {
    aclsysGetVersionNum(*const c_char, *mut i32) -> i32;
    aclnnInit(*const c_char) -> i32;
    aclnnFinalize() -> i32;
});

#[test]
fn the_library_says_which_it_is() {
    let (acl, _alone) = alone();
    let f = Library::of(acl);
    let number = out!(acl, |number: i32| (f.aclsysGetVersionNum)(c"runtime".as_ptr(), number));
    let mut text = [0 as c_char; 128];
    acl.ok((acl.aclsysGetVersionStr)(c"runtime".as_ptr(), text.as_mut_ptr()));
    // SAFETY: the library wrote a string and its NUL into the buffer.
    let text = unsafe { CStr::from_ptr(text.as_ptr()) }.to_str().unwrap();
    assert_eq!(text, format!("{}.{}.{}", number / 10_000_000, number / 100_000 % 100, number / 1000 % 100));
    acl.fails((f.aclsysGetVersionNum)(c"driver".as_ptr(), &mut 0), NOT_SUPPORTED, "no package driver");
    let (mut major, mut minor, mut patch) = (0, 0, -1);
    acl.ok((acl.aclrtGetVersion)(&raw mut major, &raw mut minor, &raw mut patch));
    assert_eq!((major, minor, patch), (1, 17, 0), "of the headers that the table of functions was made from");
    acl.ok((f.aclnnInit)(std::ptr::null()));
    acl.ok((f.aclnnFinalize)());
    assert_eq!(computes(acl), [4.0], "nothing was to be given back");
}

fn computes(acl: &Acl) -> Vec<f32> {
    let memory = acl.upload(&[2f32]);
    let (tensor, two) = (acl.tensor(memory, common::F32, &[1]), acl.scalar(2.0));
    acl.run(|w, e| (acl.aclnnMulsGetWorkspaceSize)(tensor, two, tensor, w, e), acl.aclnnMuls);
    acl.ok((acl.aclrtSynchronizeStream)(NULL));
    acl.download(memory, 1)
}

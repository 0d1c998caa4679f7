//! The built library, loaded as an application loads it, with typed functions.
#![allow(dead_code, missing_docs, non_snake_case)]

use std::ffi::{CStr, c_char, c_void};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

pub type Ptr = *mut c_void;
pub const NULL: Ptr = std::ptr::null_mut();

pub const F32: i32 = 0;
pub const I32: i32 = 3;
pub const I64: i32 = 9;
pub const ND: i32 = 2;
pub const H2D: i32 = 1;
pub const D2H: i32 = 2;
pub const D2D: i32 = 3;

macro_rules! functions {
    ($($name:ident($($arg:ty),*) -> $result:ty;)*) => {
        /// Functions of the library. Safe to call, as far as the tests go: that is what they test.
        pub struct Acl {
            library: libloading::Library,
            $(pub $name: extern "C" fn($($arg),*) -> $result,)*
        }

        impl Acl {
            /// Loads the library that was built with this test.
            fn load() -> Self {
                let path = library();
                // SAFETY: the library runs no initialiser; it is never unloaded.
                let library = unsafe { libloading::Library::new(&path) }.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
                $(
                    // SAFETY: the C parameters of the function are the ones declared above.
                    let $name = *unsafe { library.get::<extern "C" fn($($arg),*) -> $result>(stringify!($name).as_bytes()) }
                        .expect(stringify!($name));
                )*
                Self { library, $($name,)* }
            }
        }
    };
}

functions! {
    aclInit(*const c_char) -> i32;
    aclFinalize() -> i32;
    aclGetRecentErrMsg() -> *const c_char;
    aclrtGetLastError(i32) -> i32;
    aclrtPeekAtLastError(i32) -> i32;
    aclsysGetCANNVersion(i32, *mut u8) -> i32;
    aclsysGetVersionStr(*const c_char, *mut c_char) -> i32;
    aclrtGetVersion(*mut i32, *mut i32, *mut i32) -> i32;
    aclrtSetDevice(i32) -> i32;
    aclrtGetDevice(*mut i32) -> i32;
    aclrtResetDevice(i32) -> i32;
    aclrtGetDeviceCount(*mut u32) -> i32;
    aclrtGetSocName() -> *const c_char;
    aclrtGetRunMode(*mut i32) -> i32;
    aclrtGetMemInfo(i32, *mut usize, *mut usize) -> i32;
    aclGetDeviceCapability(u32, i32, *mut i64) -> i32;
    aclrtDeviceGetUuid(i32, *mut [u8; 16]) -> i32;
    aclGetCompileopt(i32, *mut c_char, usize) -> i32;
    aclrtGetCurrentContext(*mut Ptr) -> i32;
    aclrtSetCurrentContext(Ptr) -> i32;
    aclrtCreateContext(*mut Ptr, i32) -> i32;
    aclrtDestroyContext(Ptr) -> i32;
    aclrtMalloc(*mut Ptr, usize, i32) -> i32;
    aclrtFree(Ptr) -> i32;
    aclrtMallocHost(*mut Ptr, usize) -> i32;
    aclrtFreeHost(Ptr) -> i32;
    aclrtMemcpy(Ptr, usize, *const c_void, usize, i32) -> i32;
    aclrtMemcpyAsync(Ptr, usize, *const c_void, usize, i32, Ptr) -> i32;
    aclrtMemset(Ptr, usize, i32, usize) -> i32;
    aclrtMemsetAsync(Ptr, usize, i32, usize, Ptr) -> i32;
    aclrtPointerGetAttributes(*const c_void, *mut [u32; 7]) -> i32;
    aclrtCreateStream(*mut Ptr) -> i32;
    aclrtCreateStreamWithConfig(*mut Ptr, u32, u32) -> i32;
    aclrtDestroyStream(Ptr) -> i32;
    aclrtDestroyStreamForce(Ptr) -> i32;
    aclrtSynchronizeStream(Ptr) -> i32;
    aclrtSynchronizeStreamWithTimeout(Ptr, i32) -> i32;
    aclrtStreamQuery(Ptr, *mut i32) -> i32;
    aclrtStreamWaitEvent(Ptr, Ptr) -> i32;
    aclrtSynchronizeDevice() -> i32;
    aclrtSynchronizeDeviceWithTimeout(i32) -> i32;
    aclrtCreateEvent(*mut Ptr) -> i32;
    aclrtCreateEventExWithFlag(*mut Ptr, u32) -> i32;
    aclrtDestroyEvent(Ptr) -> i32;
    aclrtRecordEvent(Ptr, Ptr) -> i32;
    aclrtSynchronizeEvent(Ptr) -> i32;
    aclrtQueryEventStatus(Ptr, *mut i32) -> i32;
    aclmdlRICaptureBegin(Ptr, i32) -> i32;
    aclmdlRICaptureEnd(Ptr, *mut Ptr) -> i32;
    aclmdlRICaptureGetInfo(Ptr, *mut i32, *mut Ptr) -> i32;
    aclmdlRICaptureThreadExchangeMode(*mut i32) -> i32;
    aclmdlRIExecuteAsync(Ptr, Ptr) -> i32;
    aclmdlRIDestroy(Ptr) -> i32;
    aclmdlRIDebugJsonPrint(Ptr, *const c_char, u32) -> i32;
    aclmdlRICaptureTaskGrpBegin(Ptr) -> i32;
    aclmdlRICaptureTaskGrpEnd(Ptr, *mut Ptr) -> i32;
    aclmdlRICaptureTaskUpdateBegin(Ptr, Ptr) -> i32;
    aclmdlRICaptureTaskUpdateEnd(Ptr) -> i32;
    aclrtResetEvent(Ptr, Ptr) -> i32;
    aclrtQueryEventWaitStatus(Ptr, *mut i32) -> i32;
    aclrtEventGetTimestamp(Ptr, *mut u64) -> i32;
    aclrtLaunchCallback(Option<extern "C" fn(Ptr)>, Ptr, i32, Ptr) -> i32;
    aclrtSubscribeReport(u64, Ptr) -> i32;
    aclrtUnSubscribeReport(u64, Ptr) -> i32;
    aclrtProcessReport(i32) -> i32;
    aclrtLaunchHostFunc(Ptr, Option<extern "C" fn(Ptr)>, Ptr) -> i32;
    aclrtEventElapsedTime(*mut f32, Ptr, Ptr) -> i32;
    aclCreateTensor(*const i64, u64, i32, *const i64, i64, i32, *const i64, u64, Ptr) -> Ptr;
    aclDestroyTensor(Ptr) -> i32;
    aclnnNpuFormatCastCalculateSizeAndFormat(Ptr, i32, i32, *mut *mut i64, *mut u64, *mut i32) -> i32;
    aclCreateTensorList(*const Ptr, u64) -> Ptr;
    aclDestroyTensorList(Ptr) -> i32;
    aclCreateScalar(*const c_void, i32) -> Ptr;
    aclDestroyScalar(Ptr) -> i32;
    aclCreateIntArray(*const i64, u64) -> Ptr;
    aclDestroyIntArray(Ptr) -> i32;
    aclGetIntArraySize(Ptr, *mut u64) -> i32;
    aclGetViewShape(Ptr, *mut *mut i64, *mut u64) -> i32;
    aclGetViewStrides(Ptr, *mut *mut i64, *mut u64) -> i32;
    aclGetStorageShape(Ptr, *mut *mut i64, *mut u64) -> i32;
    aclGetViewOffset(Ptr, *mut i64) -> i32;
    aclGetFormat(Ptr, *mut i32) -> i32;
    aclGetDataType(Ptr, *mut i32) -> i32;
    aclDataTypeSize(i32) -> usize;
    aclSetAclOpExecutorRepeatable(Ptr) -> i32;
    aclDestroyAclOpExecutor(Ptr) -> i32;
    aclnnAddGetWorkspaceSize(Ptr, Ptr, Ptr, Ptr, *mut u64, *mut Ptr) -> i32;
    aclnnAdd(Ptr, u64, Ptr, Ptr) -> i32;
    aclnnMatmulGetWorkspaceSize(Ptr, Ptr, Ptr, i8, *mut u64, *mut Ptr) -> i32;
    aclnnMatmul(Ptr, u64, Ptr, Ptr) -> i32;
    aclnnMulsGetWorkspaceSize(Ptr, Ptr, Ptr, *mut u64, *mut Ptr) -> i32;
    aclnnMuls(Ptr, u64, Ptr, Ptr) -> i32;
    aclnnRmsNormGetWorkspaceSize(Ptr, Ptr, f64, Ptr, Ptr, *mut u64, *mut Ptr) -> i32;
    aclnnRmsNorm(Ptr, u64, Ptr, Ptr) -> i32;
    aclnnInplaceNormalGetWorkspaceSize(Ptr, f32, f32, i64, i64, *mut u64, *mut Ptr) -> i32;
    aclnnInplaceNormal(Ptr, u64, Ptr, Ptr) -> i32;
    aclnnCatGetWorkspaceSize(Ptr, i64, Ptr, *mut u64, *mut Ptr) -> i32;
    aclnnCat(Ptr, u64, Ptr, Ptr) -> i32;
    aclmdlLoadFromFile(*const c_char, *mut u32) -> i32;
}

/// A set of functions that only one file uses, with `of` that finds them.
#[macro_export]
macro_rules! more_functions {
    ($set:ident { $($name:ident($($arg:ty),*) $(-> $result:ty)?;)* }) => {
        #[allow(non_snake_case)]
        struct $set { $($name: extern "C" fn($($arg),*) $(-> $result)?,)* }

        impl $set {
            fn of(acl: &$crate::common::Acl) -> Self {
                Self { $($name: acl.function(stringify!($name)),)* }
            }
        }
    };
}

/// The library that cargo built with this program: beside a test, next door to an example.
pub fn library() -> PathBuf {
    let exe = std::env::current_exe().expect("a program knows its path");
    let beside = exe.parent().expect("in a directory");
    let places = [beside.join("libvnpu_interposer.so"), beside.join("../deps/libvnpu_interposer.so")];
    places
        .into_iter()
        .find(|p| p.exists())
        .unwrap_or_else(|| panic!("no libvnpu_interposer.so at {}", beside.display()))
}

static ACL: OnceLock<Acl> = OnceLock::new();

/// The library with the environment as it is.
pub fn load_as_is() -> &'static Acl {
    ACL.get_or_init(Acl::load)
}

/// The library with this environment, loaded once a process; the first caller's environment counts.
pub fn load(environment: &[(&str, &str)]) -> &'static Acl {
    ACL.get_or_init(|| {
        for name in ["VNPU_MODE", "VNPU_SOCKET", "VNPU_DEVICE", "VNPU_POLICY", "VNPU_HINTS"] {
            // SAFETY: before the library is loaded, and no other thread of a test reads the environment.
            unsafe { std::env::remove_var(name) };
        }
        for (name, value) in environment {
            // SAFETY: as above.
            unsafe { std::env::set_var(name, value) };
        }
        Acl::load()
    })
}

/// A hosted device that computes, selected on this thread.
pub fn direct() -> &'static Acl {
    let acl = load(&[("VNPU_MODE", "direct"), ("VNPU_DEVICE", "Ascend910B3:functional:hbm=1")]);
    acl.ok((acl.aclrtSetDevice)(0));
    acl
}

/// [`direct`], for tests that take turns: an operator's error may be reported to any thread that synchronises.
pub fn alone() -> (&'static Acl, MutexGuard<'static, ()>) {
    static TURN: Mutex<()> = Mutex::new(());
    (direct(), TURN.lock().unwrap_or_else(PoisonError::into_inner))
}

/// `call!(out: T => (acl.function)(out, …))`: the value of an output parameter of a call that must work.
#[macro_export]
macro_rules! out {
    ($acl:expr, |$name:ident: $type:ty| $call:expr) => {{
        let mut value: $type = Default::default();
        let $name = &raw mut value;
        $acl.ok($call);
        value
    }};
}

/// A handle from an output parameter.
#[macro_export]
macro_rules! handle {
    ($acl:expr, |$name:ident| $call:expr) => {{
        let mut value: $crate::common::Ptr = $crate::common::NULL;
        let $name = &raw mut value;
        $acl.ok($call);
        assert!(!value.is_null());
        value
    }};
}

impl Acl {
    /// True if the library has the symbol.
    pub fn exports(&self, name: &str) -> bool {
        // SAFETY: the symbol is only looked for.
        unsafe { self.library.get::<*const c_void>(name.as_bytes()) }.is_ok()
    }

    /// A function that only some tests use; `F` is its type.
    pub fn function<F: Copy>(&self, name: &str) -> F {
        assert_eq!(size_of::<F>(), size_of::<Ptr>());
        // SAFETY: the library is never unloaded; the caller declares the C parameters.
        *unsafe { self.library.get::<F>(name.as_bytes()) }.unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// Text of the last failure.
    pub fn message(&self) -> String {
        // SAFETY: `aclGetRecentErrMsg` answers a NUL-terminated string that lives until this thread asks again.
        unsafe { CStr::from_ptr((self.aclGetRecentErrMsg)()) }.to_string_lossy().into_owned()
    }

    /// Fails the test unless `status` is success.
    #[track_caller]
    pub fn ok(&self, status: i32) {
        assert_eq!(status, 0, "{}", self.message());
    }

    /// Fails the test unless `status` is `code` and the message has `part`.
    #[track_caller]
    pub fn fails(&self, status: i32, code: i32, part: &str) {
        let message = self.message();
        assert_eq!(status, code, "{message}");
        assert!(message.contains(part), "`{message}` does not say `{part}`");
    }

    pub fn stream(&self) -> Ptr {
        handle!(self, |out| (self.aclrtCreateStream)(out))
    }

    pub fn event(&self) -> Ptr {
        handle!(self, |out| (self.aclrtCreateEvent)(out))
    }

    pub fn malloc(&self, bytes: usize) -> Ptr {
        handle!(self, |out| (self.aclrtMalloc)(out, bytes, 0))
    }

    /// Device memory with these values.
    pub fn upload<T: Copy>(&self, values: &[T]) -> Ptr {
        let bytes = size_of_val(values);
        let at = self.malloc(bytes);
        self.ok((self.aclrtMemcpy)(at, bytes, values.as_ptr().cast(), bytes, H2D));
        at
    }

    /// Values in device memory.
    pub fn download<T: Copy + Default>(&self, at: Ptr, count: usize) -> Vec<T> {
        let mut out = vec![T::default(); count];
        let bytes = size_of_val(&out[..]);
        self.ok((self.aclrtMemcpy)(out.as_mut_ptr().cast(), bytes, at, bytes, D2H));
        out
    }

    /// A contiguous tensor.
    pub fn tensor(&self, at: Ptr, dtype: i32, dims: &[i64]) -> Ptr {
        let n = dims.len() as u64;
        let tensor = (self.aclCreateTensor)(dims.as_ptr(), n, dtype, std::ptr::null(), 0, ND, dims.as_ptr(), n, at);
        assert!(!tensor.is_null(), "{}", self.message());
        tensor
    }

    pub fn scalar(&self, value: f32) -> Ptr {
        let scalar = (self.aclCreateScalar)((&raw const value).cast(), F32);
        assert!(!scalar.is_null(), "{}", self.message());
        scalar
    }

    /// Both phases of an operator, on the default stream.
    pub fn run(&self, first: impl FnOnce(*mut u64, *mut Ptr) -> i32, second: extern "C" fn(Ptr, u64, Ptr, Ptr) -> i32) {
        self.run_on(first, second, NULL);
    }

    /// Both phases of an operator.
    pub fn run_on(
        &self,
        first: impl FnOnce(*mut u64, *mut Ptr) -> i32,
        second: extern "C" fn(Ptr, u64, Ptr, Ptr) -> i32,
        stream: Ptr,
    ) {
        let (mut workspace, mut executor) = (u64::MAX, NULL);
        self.ok(first(&raw mut workspace, &raw mut executor));
        assert_eq!(workspace, 0);
        self.ok(second(NULL, workspace, executor, stream));
    }
}

//! Opening the platform's libraries and resolving every function that the engine calls.
//!
//! Resolution happens once, at start, so a missing function is one clear error there and never a failure in a step.

use std::ffi::{CStr, c_char, c_void};

use super::AclError;
use super::operators::Operators;

/// A handle of the platform: a stream, a tensor, ….
pub(super) type Raw = *mut c_void;

/// Why the platform cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// `dlopen` failed.
    #[error("cannot load {library}: {cause}; put its directory into LD_LIBRARY_PATH")]
    Library {
        /// Library as asked for.
        library: String,
        /// What the loader says.
        cause: String,
    },
    /// A function is missing.
    #[error("{library} has no {symbol}: this platform lacks what the engine needs")]
    Symbol {
        /// Library.
        library: String,
        /// Function.
        symbol: String,
    },
}

/// An opened library. Never closed.
pub(super) struct Lib {
    name: String,
    handle: &'static libloading::Library,
}

impl Lib {
    pub(super) fn open(name: &str) -> Result<Self, LoadError> {
        // SAFETY: loading runs the library's constructors. The operator names the library; that it is the platform's is
        // the premise of this program, as it is for every AscendCL application.
        let library = unsafe { libloading::Library::new(name) }
            .map_err(|e| LoadError::Library { library: name.to_owned(), cause: e.to_string() })?;
        Ok(Self { name: name.to_owned(), handle: Box::leak(Box::new(library)) })
    }

    /// Address of `symbol` as a function of type `F`.
    ///
    /// # Safety
    /// `F` must be the function's C type.
    pub(super) unsafe fn symbol<F: Copy>(&self, symbol: &CStr) -> Result<F, LoadError> {
        // SAFETY: the caller vouches for the type; the library is never closed, so the address stays valid.
        let found = unsafe { self.handle.get::<F>(symbol.to_bytes_with_nul()) };
        found.map(|f| *f).map_err(|_| LoadError::Symbol {
            library: self.name.clone(),
            symbol: symbol.to_string_lossy().into_owned(),
        })
    }
}

macro_rules! functions {
    ($(#[$doc:meta])* $table:ident { $($name:ident: fn($($ty:ty),*) -> $ret:ty;)* }) => {
        $(#[$doc])*
        #[allow(non_snake_case)]
        pub(super) struct $table {
            $(pub(super) $name: unsafe extern "C" fn($($ty),*) -> $ret,)*
        }

        #[allow(non_snake_case)]
        impl $table {
            fn load(library: &Lib) -> Result<Self, LoadError> {
                $(
                    let symbol = const {
                        match CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                            Ok(s) => s,
                            Err(_) => panic!("a Rust identifier holds no NUL"),
                        }
                    };
                    // SAFETY: the types above are those of the platform's headers (`crates/acl-abi/data/acl.tsv`).
                    let $name = unsafe { library.symbol(symbol)? };
                )*
                Ok(Self { $($name),* })
            }
        }
    };
}

functions! {
    /// Functions of `libascendcl.so`.
    Runtime {
        aclInit: fn(*const c_char) -> i32;
        aclFinalize: fn() -> i32;
        aclGetRecentErrMsg: fn() -> *const c_char;
        aclrtGetDeviceCount: fn(*mut u32) -> i32;
        aclrtSetDevice: fn(i32) -> i32;
        aclrtResetDevice: fn(i32) -> i32;
        aclrtGetCurrentContext: fn(*mut Raw) -> i32;
        aclrtSetCurrentContext: fn(Raw) -> i32;
        aclrtGetSocName: fn() -> *const c_char;
        aclrtGetMemInfo: fn(i32, *mut usize, *mut usize) -> i32;
        aclrtMalloc: fn(*mut Raw, usize, i32) -> i32;
        aclrtFree: fn(Raw) -> i32;
        aclrtMallocHost: fn(*mut Raw, usize) -> i32;
        aclrtFreeHost: fn(Raw) -> i32;
        aclrtMemcpy: fn(Raw, usize, *const c_void, usize, i32) -> i32;
        aclrtMemcpyAsync: fn(Raw, usize, *const c_void, usize, i32, Raw) -> i32;
        aclrtMemset: fn(Raw, usize, i32, usize) -> i32;
        aclrtCreateStreamWithConfig: fn(*mut Raw, u32, u32) -> i32;
        aclrtDestroyStream: fn(Raw) -> i32;
        aclrtSynchronizeStream: fn(Raw) -> i32;
    }
}

functions! {
    /// Functions of `libopapi.so` that make and destroy operator arguments.
    Meta {
        aclCreateTensor: fn(*const i64, u64, i32, *const i64, i64, i32, *const i64, u64, Raw) -> Raw;
        aclDestroyTensor: fn(*const c_void) -> i32;
        aclCreateTensorList: fn(*const *const c_void, u64) -> Raw;
        aclDestroyTensorList: fn(*const c_void) -> i32;
        aclCreateIntArray: fn(*const i64, u64) -> Raw;
        aclDestroyIntArray: fn(*const c_void) -> i32;
        aclCreateScalar: fn(Raw, i32) -> Raw;
        aclDestroyScalar: fn(*const c_void) -> i32;
    }
}

/// Everything resolved.
pub(super) struct Api {
    pub(super) rt: Runtime,
    pub(super) meta: Meta,
    pub(super) ops: Operators,
}

impl Api {
    /// Opens both libraries and resolves every function.
    pub(super) fn load(acl_library: &str, op_library: &str) -> Result<Self, LoadError> {
        let acl = Lib::open(acl_library)?;
        let op = Lib::open(op_library)?;
        Ok(Self { rt: Runtime::load(&acl)?, meta: Meta::load(&op)?, ops: Operators::load(&op)? })
    }

    /// `Ok` for `ACL_SUCCESS`, else the error with the platform's text.
    #[inline]
    pub(super) fn check(&self, call: &'static str, code: i32) -> Result<(), AclError> {
        if code == 0 { Ok(()) } else { Err(self.error(call, code)) }
    }

    /// The error of a call that failed just now on this thread.
    #[cold]
    pub(super) fn error(&self, call: &'static str, code: i32) -> AclError {
        // SAFETY: takes nothing; returns null or a string that lives until this thread's next call.
        let text = unsafe { (self.rt.aclGetRecentErrMsg)() };
        let detail = if text.is_null() {
            String::new()
        } else {
            // SAFETY: not null, NUL-terminated, alive until this thread's next call.
            unsafe { CStr::from_ptr(text) }.to_string_lossy().trim().to_owned()
        };
        // Some platforms begin their text with the function's name, which the error says already.
        let mut own = detail.as_str();
        while let Some(rest) = own.strip_prefix(call).and_then(|rest| rest.strip_prefix(':')) {
            own = rest.trim_start();
        }
        AclError { call, code, detail: own.to_owned() }
    }
}

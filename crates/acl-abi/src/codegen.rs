//! Rust source for operator entry points, made from the signature table: used by build scripts.
//!
//! Both sides of the C ABI are generated from one table: the interposer's exported functions and the engine's typed
//! function pointers. Floats travel in other registers than integers, so every function has its exact C types.

use crate::op::{Kind, Signature};

impl Kind {
    /// The Rust type with the C ABI of this parameter. Opaque pointers are `*const c_void`/`*mut c_void`.
    pub const fn rust_type(self) -> &'static str {
        match self {
            Kind::Tensor | Kind::TensorList | Kind::Scalar | Kind::ScalarList => "*const ::core::ffi::c_void",
            Kind::IntArray | Kind::BoolArray | Kind::FloatArray => "*const ::core::ffi::c_void",
            Kind::TensorOut | Kind::TensorListOut => "*mut ::core::ffi::c_void",
            Kind::Str => "*const ::core::ffi::c_char",
            Kind::DType | Kind::I32 => "i32",
            Kind::Bool => "bool",
            Kind::I8 => "i8",
            Kind::I64 => "i64",
            Kind::U64 => "u64",
            Kind::F32 => "f32",
            Kind::F64 => "f64",
        }
    }
}

/// `name: type, …` of the first phase, with the two closing output parameters.
pub fn first_phase_params(signature: &Signature) -> String {
    let own = signature.params.iter().enumerate().map(|(i, p)| format!("a{i}: {}, ", p.kind.rust_type()));
    own.collect::<String>() + "workspace_size: *mut u64, executor: *mut *mut ::core::ffi::c_void"
}

/// The Rust function-pointer type of the first phase.
pub fn first_phase_type(signature: &Signature) -> String {
    let own = signature.params.iter().map(|p| format!("{}, ", p.kind.rust_type()));
    format!("unsafe extern \"C\" fn({}*mut u64, *mut *mut ::core::ffi::c_void) -> i32", own.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops;

    #[test]
    fn first_phase_has_exact_types() {
        assert_eq!(
            first_phase_type(ops::aclnnArgMax.signature()),
            "unsafe extern \"C\" fn(*const ::core::ffi::c_void, i64, bool, *mut ::core::ffi::c_void, \
             *mut u64, *mut *mut ::core::ffi::c_void) -> i32"
        );
        assert!(first_phase_params(ops::aclnnRmsNorm.signature()).contains("a2: f64, "));
    }
}

//! The Ascend Transformer Boost library (`libatb.so`), as far as torch_npu's ATB plugin links it.
//!
//! vllm_ascend rotates positions and fills the paged cache through ATB, a C++ library beside `libopapi.so`. Its operators are
//! objects with a virtual table, its arguments C++ structures; both are a binary interface like any other, so they are laid
//! out here in Rust ([`layout`], [`object`]) and no C++ compiler is needed. An operation computes nothing itself: it becomes one
//! aclnn operator ([`translate`]), posted to the context's stream.
//!
//! What is asked of an operation is checked when it is made and again at `Setup`, because torch_npu drops what `Execute`
//! answers. Operations and parameters that are not supported are refused by name.

pub mod layout;
pub mod object;
pub mod translate;

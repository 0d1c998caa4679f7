//! A serving engine for causal language models on AscendCL.
//!
//! An ordinary AscendCL application: it loads `libascendcl.so` and `libopapi.so` by name at run time and needs nothing
//! else of the platform.

pub mod acl;
pub mod api;
pub mod core;
pub mod kv;
pub mod model;
pub mod sample;
pub mod text;

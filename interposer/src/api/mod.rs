//! The functions that are written by hand, by theme. Each decodes, calls safe code, and goes through [`crate::entry`];
//! `build.rs` finds them here by `pub extern "C" fn` and checks their parameters against the header table.
//!
//! What a parameter means is said once, in the AscendCL reference; the comments here say what is particular to a virtual NPU.
#![allow(non_snake_case)]

pub mod atb;
pub mod batch;
pub mod callback;
pub mod context;
pub mod descriptors;
pub mod device;
pub mod event;
pub mod format;
pub mod ge;
pub mod graph;
pub mod hccl;
pub mod hccl_collectives;
pub mod hccl_messages;
pub mod host;
pub mod init;
pub mod ipc;
pub mod kernel;
pub mod memory;
pub mod pages;
pub mod refusals;
pub mod settings;
pub mod stream;
pub mod tensor;
pub mod value;

//! The C functions of the AscendCL headers: what an application may link against or look up.

/// How torch_npu 2.14 binds a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding {
    /// Needed for the library to load at all.
    Link,
    /// Looked up by name at run time; may be absent.
    Dlsym,
    /// Not named by torch_npu.
    Unused,
}

/// One C function.
#[derive(Clone, Copy, Debug)]
pub struct Function {
    /// Exported symbol.
    pub name: &'static str,
    /// Header that declares it.
    pub header: &'static str,
    /// How torch_npu binds it.
    pub torch: Binding,
    /// C return type.
    pub result: &'static str,
    /// C parameter list.
    pub params: &'static str,
}

include!(concat!(env!("OUT_DIR"), "/functions.rs"));

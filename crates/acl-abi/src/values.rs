//! Every named AscendCL value (`ACL_…`), as published; error codes are the `ACL_ERROR_…` and `ACL_SUCCESS` ones.

include!(concat!(env!("OUT_DIR"), "/values.rs"));

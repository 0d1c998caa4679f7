//! (first shape)

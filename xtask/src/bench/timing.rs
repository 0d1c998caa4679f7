//! `cargo xtask bench timing`: the paced device against the cost model that paces it.

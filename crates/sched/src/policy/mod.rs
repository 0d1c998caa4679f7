//! Which ready operator goes next.

mod config;

pub use config::{ConfigError, PolicyConfig, PolicyName};

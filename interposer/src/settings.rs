//! Options that applications set and read back, and that change nothing on this device.
//!
//! Accepting them is honest: each asks for a way of working (saturation, deterministic operators, time-outs of a hung
//! core, compile options of a compiler that never runs) that the emulated device has anyway or cannot be in need of.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::handle::lock;

/// Options kept, at most: more are accepted and forgotten.
const OPTIONS_MAX: usize = 256;

/// Kept options.
#[derive(Default)]
pub struct Settings {
    system: Mutex<BTreeMap<i32, i64>>,
    compile: Mutex<BTreeMap<i32, String>>,
    /// Operator time-out in microseconds.
    timeout_us: AtomicU64,
    saturation: AtomicU64,
}

impl Settings {
    /// Keeps a system parameter.
    pub fn set_system(&self, option: i32, value: i64) {
        let mut kept = lock(&self.system);
        if kept.len() < OPTIONS_MAX || kept.contains_key(&option) {
            kept.insert(option, value);
        }
    }

    /// A system parameter that was set.
    pub fn system(&self, option: i32) -> Option<i64> {
        lock(&self.system).get(&option).copied()
    }

    /// Keeps a compile option.
    pub fn set_compile(&self, option: i32, value: &str) {
        let mut kept = lock(&self.compile);
        if kept.len() < OPTIONS_MAX || kept.contains_key(&option) {
            kept.insert(option, value.to_owned());
        }
    }

    /// A compile option; just-in-time compilation is off unless set, because there is no compiler.
    pub fn compile(&self, option: i32) -> Option<String> {
        let default = (option == acl_abi::values::ACL_OP_JIT_COMPILE).then(|| "disable".to_owned());
        lock(&self.compile).get(&option).cloned().or(default)
    }

    /// Keeps the operator time-out.
    pub fn set_timeout_us(&self, timeout_us: u64) {
        self.timeout_us.store(timeout_us, Ordering::Relaxed);
    }

    /// The operator time-out in microseconds.
    pub fn timeout_us(&self) -> u64 {
        self.timeout_us.load(Ordering::Relaxed)
    }

    /// Keeps the overflow mode, an `aclrtFloatOverflowMode`.
    pub fn set_saturation(&self, mode: i32) {
        self.saturation.store(mode as u64, Ordering::Relaxed);
    }

    /// The overflow mode.
    pub fn saturation(&self) -> i32 {
        self.saturation.load(Ordering::Relaxed) as i32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_come_back_and_are_bounded() {
        let settings = Settings::default();
        assert_eq!(settings.compile(acl_abi::values::ACL_OP_JIT_COMPILE).as_deref(), Some("disable"));
        settings.set_compile(3, "high_precision");
        assert_eq!((settings.compile(3).as_deref(), settings.compile(4)), (Some("high_precision"), None));
        for option in 0..2 * OPTIONS_MAX as i32 {
            settings.set_system(option, 1);
        }
        settings.set_system(0, 2);
        assert_eq!((settings.system(0), settings.system(OPTIONS_MAX as i32)), (Some(2), None));
    }
}

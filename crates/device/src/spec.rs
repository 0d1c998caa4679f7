//! The device spec string that every program takes: `<soc>[:option]…`.
//!
//! | option | meaning | without it |
//! |---|---|---|
//! | `functional`, `timing` | right results, or no arithmetic at all | `functional` |
//! | `paced`, `unpaced` | complete when the modelled device would, or as soon as possible | `unpaced` |
//! | `omega=F` | how far operators overlap, 0 (they serialise) to 1 (fluid sharing) | [`CoRun::default`] |
//! | `kappa_prefill=F`, `kappa_decode=F` | slow-down beside the other phase, ≥ 0 | [`CoRun::default`] |
//! | `hbm=GiB` | bytes of device memory | the profile's |

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use sched::CoRun;

use crate::emulated::EmulatedConfig;
use crate::interface::Compute;

/// Largest emulated memory, in GiB: what a process can reserve without trouble on a 47-bit address space.
pub const HBM_GIB_MAX: f64 = 4096.0;

/// A parsed device spec.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceSpec {
    /// SoC name; whether a profile exists is checked when the device is made.
    pub soc_name: String,
    /// Whether operators are computed.
    pub compute: Compute,
    /// Whether completions follow the model.
    pub pace: bool,
    /// Contention.
    pub corun: CoRun,
    /// Bytes of device memory; the profile's where `None`.
    pub hbm_bytes: Option<u64>,
}

impl DeviceSpec {
    /// Configuration of the emulated device; `doorbell` is called from a worker thread when a completion waits.
    pub fn emulated(self, doorbell: Arc<dyn Fn() + Send + Sync>) -> EmulatedConfig {
        let Self { soc_name, compute, pace, corun, hbm_bytes } = self;
        EmulatedConfig { soc_name, compute, pace, corun, hbm_bytes, doorbell }
    }
}

/// Why a device spec does not parse.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Nothing before the first colon.
    #[error("a device spec begins with a SoC name, as in \"Ascend910B3:timing:paced\"")]
    NoSoc,
    /// No such option.
    #[error(
        "unknown device option {option:?}; known: functional, timing, paced, unpaced, omega=F, kappa_prefill=F, \
         kappa_decode=F, hbm=GiB"
    )]
    UnknownOption {
        /// As written.
        option: String,
    },
    /// Not a number, or out of range.
    #[error("device option {name}={value}: want {want}")]
    Value {
        /// Option.
        name: &'static str,
        /// As written.
        value: String,
        /// What is accepted.
        want: &'static str,
    },
}

impl FromStr for DeviceSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let mut parts = text.trim().split(':');
        let soc_name = parts.next().unwrap_or_default().trim();
        if soc_name.is_empty() || soc_name.contains('=') {
            return Err(SpecError::NoSoc);
        }
        let mut spec = Self {
            soc_name: soc_name.to_owned(),
            compute: Compute::Functional,
            pace: false,
            corun: CoRun::default(),
            hbm_bytes: None,
        };
        for option in parts {
            let unknown = || SpecError::UnknownOption { option: option.to_owned() };
            match option.split_once('=') {
                None => match option {
                    "functional" => spec.compute = Compute::Functional,
                    "timing" => spec.compute = Compute::Timing,
                    "paced" => spec.pace = true,
                    "unpaced" => spec.pace = false,
                    _ => return Err(unknown()),
                },
                Some((name, value)) => match name {
                    "omega" => spec.corun.omega = number("omega", value, 0.0, 1.0, "a number from 0 to 1")?,
                    "kappa_prefill" => {
                        spec.corun.kappa_prefill = number("kappa_prefill", value, 0.0, 10.0, "a number from 0 to 10")?;
                    }
                    "kappa_decode" => {
                        spec.corun.kappa_decode = number("kappa_decode", value, 0.0, 10.0, "a number from 0 to 10")?;
                    }
                    "hbm" => {
                        let want = "GiB of device memory, from 0.001 to 4096";
                        let gib = number("hbm", value, 0.001, HBM_GIB_MAX, want)?;
                        spec.hbm_bytes = Some((gib * (1u64 << 30) as f64) as u64);
                    }
                    _ => return Err(unknown()),
                },
            }
        }
        Ok(spec)
    }
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let compute = match self.compute {
            Compute::Functional => "functional",
            Compute::Timing => "timing",
        };
        let CoRun { omega, kappa_prefill, kappa_decode, .. } = self.corun;
        write!(f, "{}:{compute}:{}", self.soc_name, if self.pace { "paced" } else { "unpaced" })?;
        write!(f, ":omega={omega}:kappa_prefill={kappa_prefill}:kappa_decode={kappa_decode}")?;
        match self.hbm_bytes {
            Some(bytes) => write!(f, ":hbm={}", bytes as f64 / (1u64 << 30) as f64),
            None => Ok(()),
        }
    }
}

fn number(name: &'static str, value: &str, low: f64, high: f64, want: &'static str) -> Result<f64, SpecError> {
    match value.parse::<f64>() {
        Ok(number) if (low..=high).contains(&number) => Ok(number),
        _ => Err(SpecError::Value { name, value: value.to_owned(), want }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs_parse_and_print_back() {
        let plain: DeviceSpec = "Ascend910B3".parse().unwrap();
        assert_eq!((plain.compute, plain.pace, plain.hbm_bytes), (Compute::Functional, false, None));
        let full: DeviceSpec =
            "Ascend910B3:timing:paced:omega=0.25:kappa_prefill=0.07:kappa_decode=0.2:hbm=0.5".parse().unwrap();
        assert_eq!((full.compute, full.pace, full.hbm_bytes), (Compute::Timing, true, Some(1 << 29)));
        assert_eq!((full.corun.omega, full.corun.kappa_prefill, full.corun.kappa_decode), (0.25, 0.07, 0.2));
        for spec in [plain, full] {
            assert_eq!(spec.to_string().parse::<DeviceSpec>().unwrap(), spec);
        }
    }

    #[test]
    fn bad_specs_say_what_is_wrong() {
        for (text, part) in [
            ("", "begins with a SoC name"),
            ("omega=1", "begins with a SoC name"),
            (":timing", "begins with a SoC name"),
            ("Ascend910B3:fast", "unknown device option \"fast\""),
            ("Ascend910B3:timing:", "unknown device option \"\""),
            ("Ascend910B3:speed=2", "known: functional, timing"),
            ("Ascend910B3:omega=2", "omega=2: want a number from 0 to 1"),
            ("Ascend910B3:omega=NaN", "omega=NaN"),
            ("Ascend910B3:kappa_decode=-1", "kappa_decode=-1"),
            ("Ascend910B3:hbm=0", "hbm=0"),
            ("Ascend910B3:hbm=1e9", "hbm=1e9"),
        ] {
            let error = text.parse::<DeviceSpec>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}

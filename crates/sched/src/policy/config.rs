//! Policy configuration: from a name, `name:key=value:…`, or JSON.

use crate::CoRun;
use serde::{Deserialize, Serialize};

/// The policies there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PolicyName {
    /// Submit everything as soon as it is ready.
    Passthrough,
    /// Global arrival order, one stream on the device at a time.
    #[default]
    Fifo,
    /// Prefill and decode by slack.
    Phase,
}

/// A policy and its parameters. Every field has a default, so `{"name": "phase"}` is complete.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PolicyConfig {
    /// Which policy.
    pub name: PolicyName,
    /// TPOT target τ, milliseconds: a token is due every τ on a decoding stream.
    pub tpot_ms: f64,
    /// TTFT target, milliseconds, where no hint says otherwise.
    pub ttft_ms: f64,
    /// What the policy believes about contention on this device.
    pub corun: CoRun,
}

impl Default for PolicyConfig {
    fn default() -> Self {
        Self { name: PolicyName::default(), tpot_ms: 50.0, ttft_ms: 1000.0, corun: CoRun::default() }
    }
}

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not a policy.
    #[error("no policy called {name:?}; there are: passthrough, fifo, phase")]
    UnknownName {
        /// What was asked for.
        name: String,
    },
}

impl std::str::FromStr for PolicyConfig {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let name = match text {
            "passthrough" => PolicyName::Passthrough,
            "fifo" => PolicyName::Fifo,
            "phase" => PolicyName::Phase,
            _ => return Err(ConfigError::UnknownName { name: text.to_owned() }),
        };
        Ok(Self { name, ..Self::default() })
    }
}

//! Policy configuration: from a name, `name:key=value:…`, or JSON.
//!
//! One definition serves the daemon's command line, its admin API and the simulator. What is out of range is refused
//! with the range, what is misspelt with the list of what there is; nothing is clamped silently.

use crate::{CoRun, Nanos, nanos};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

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

impl PolicyName {
    /// Every policy.
    pub const ALL: [Self; 3] = [Self::Passthrough, Self::Fifo, Self::Phase];

    /// Name as it is configured.
    pub const fn name(self) -> &'static str {
        ["passthrough", "fifo", "phase"][self as usize]
    }
}

/// A policy and its parameters. Every parameter has a default, so `phase` and `{"name": "phase"}` are complete.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PolicyConfig {
    /// Which policy. The rest matters to `phase` only.
    pub name: PolicyName,
    /// TPOT target τ, milliseconds: a token is due every τ on a decoding stream.
    pub tpot_ms: f64,
    /// TTFT target, milliseconds, where no hint says otherwise. A prefill older than [`PolicyConfig::urgent`] of it is
    /// urgent.
    pub ttft_ms: f64,
    /// Part of the TTFT target after which a prefill is urgent.
    pub urgent: f64,
    /// Safety margin of decode, as a part of τ: covers predictions that are off and the time to change over.
    pub theta: f64,
    /// Most time that a decoding stream may be ahead of schedule, in τ. Credit lets prefill run at length
    /// after a stretch of fast decoding, so this bounds the gap between two tokens.
    pub credit: f64,
    /// Throughput that running side by side must gain before it is preferred to taking turns: `Σ rates ≥ 1 + γ`.
    pub gamma: f64,
    /// No ready operator is held back for longer, milliseconds.
    pub age_max_ms: f64,
    /// How long a decode step that is due keeps prefill away while its host launches the next operator, microseconds.
    pub gap_us: f64,
    /// Compute time by which one session's prefills may get ahead of another's (per unit of weight), milliseconds.
    pub fair_quantum_ms: f64,
    /// A request that the gateway has not mentioned for so long is forgotten, milliseconds.
    pub lease_ms: f64,
    /// What the policy believes about contention on this device.
    pub corun: CoRun,
}

impl Default for PolicyConfig {
    fn default() -> Self {
        Self {
            name: PolicyName::default(),
            tpot_ms: 50.0,
            ttft_ms: 1000.0,
            urgent: 0.7,
            theta: 0.1,
            // Enough to let a prompt of eight thousand tokens through in one piece on a 910B3: 0.8 s at 50 ms a token.
            credit: 16.0,
            gamma: 0.1,
            age_max_ms: 2000.0,
            // Eager hosts launch an operator every 12–25 µs; a small synchronous copy within a step takes 100–200.
            gap_us: 300.0,
            fair_quantum_ms: 200.0,
            lease_ms: 10_000.0,
            corun: CoRun::default(),
        }
    }
}

/// Why a configuration was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Not a policy.
    #[error("no policy is called {name:?}; there are: passthrough, fifo, phase")]
    UnknownName {
        /// What was asked for.
        name: String,
    },
    /// Neither `key=value` nor a number.
    #[error("{part:?} is not key=number (as in phase:tpot_ms=40:omega=0.5)")]
    NotAParameter {
        /// The part between two colons.
        part: String,
    },
    /// JSON that does not describe a policy.
    #[error("not a policy configuration: {reason}")]
    Malformed {
        /// What the parser says, with the names it knows.
        reason: String,
    },
    /// A parameter that makes no sense.
    #[error("{parameter} = {value} is outside {range}")]
    OutOfRange {
        /// Name.
        parameter: &'static str,
        /// What was asked for.
        value: String,
        /// What is allowed.
        range: &'static str,
    },
}

impl PolicyConfig {
    /// The policy called `name` with default parameters.
    pub fn named(name: PolicyName) -> Self {
        Self { name, ..Self::default() }
    }

    /// The configuration as JSON that [`std::str::FromStr`] reads back.
    pub fn to_json(&self) -> String {
        // Plain numbers and names: this cannot fail, and "null" would be refused when read back.
        serde_json::to_string(self).unwrap_or_else(|_| "null".to_owned())
    }

    /// Checks every parameter against its range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        const MS: (f64, f64, &str) = (0.001, 86_400_000.0, "0.001 to 86400000 ms");
        let checks = [
            ("tpot_ms", self.tpot_ms, MS),
            ("ttft_ms", self.ttft_ms, MS),
            ("urgent", self.urgent, (0.0, 1.0, "0 to 1")),
            ("theta", self.theta, (0.0, 1.0, "0 to 1")),
            ("credit", self.credit, (1.0, 1000.0, "1 to 1000 τ")),
            ("gamma", self.gamma, (0.0, 10.0, "0 to 10")),
            ("age_max_ms", self.age_max_ms, MS),
            ("gap_us", self.gap_us, (0.0, 1e6, "0 to 1000000 µs")),
            ("fair_quantum_ms", self.fair_quantum_ms, MS),
            ("lease_ms", self.lease_ms, MS),
            ("omega", self.corun.omega, (0.0, 1.0, "0 to 1")),
            ("kappa_prefill", self.corun.kappa_prefill, (0.0, 10.0, "0 to 10")),
            ("kappa_decode", self.corun.kappa_decode, (0.0, 10.0, "0 to 10")),
        ];
        for (parameter, value, (low, high, range)) in checks {
            if !(low..=high).contains(&value) {
                return Err(ConfigError::OutOfRange { parameter, value: value.to_string(), range });
            }
        }
        Ok(())
    }

    pub(crate) fn tpot(&self) -> Nanos {
        nanos(self.tpot_ms * 1e-3)
    }
}

impl std::str::FromStr for PolicyConfig {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let text = text.trim();
        let malformed = |e: serde_json::Error| ConfigError::Malformed { reason: e.to_string() };
        let config: Self = if text.starts_with('{') {
            let value: Value = serde_json::from_str(text).map_err(malformed)?;
            if value.get("name").is_none() {
                return Err(ConfigError::Malformed { reason: "\"name\" is missing".to_owned() });
            }
            serde_json::from_value(value).map_err(malformed)?
        } else {
            let mut parts = text.split(':');
            let name = parts.next().unwrap_or_default();
            if !PolicyName::ALL.iter().any(|p| p.name() == name) {
                return Err(ConfigError::UnknownName { name: name.to_owned() });
            }
            let (mut object, mut corun) = (Map::new(), Map::new());
            object.insert("name".to_owned(), name.into());
            for part in parts {
                let parsed = part.split_once('=').and_then(|(k, v)| Some((k.trim(), v.trim().parse::<f64>().ok()?)));
                let (key, value) = parsed.ok_or_else(|| ConfigError::NotAParameter { part: part.to_owned() })?;
                let into =
                    if matches!(key, "omega" | "kappa_prefill" | "kappa_decode") { &mut corun } else { &mut object };
                into.insert(key.to_owned(), value.into());
            }
            object.insert("corun".to_owned(), Value::Object(corun));
            serde_json::from_value(Value::Object(object)).map_err(malformed)?
        };
        config.validate()?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parameters_and_json_parse() {
        let phase = PolicyConfig::named(PolicyName::Phase);
        let corun = CoRun { omega: 0.25, ..CoRun::default() };
        for (text, want) in [
            ("passthrough", PolicyConfig::named(PolicyName::Passthrough)),
            (" fifo ", PolicyConfig::named(PolicyName::Fifo)),
            ("phase", phase),
            ("phase:tpot_ms=40:omega=0.25", PolicyConfig { tpot_ms: 40.0, corun, ..phase }),
            (
                r#"{"name": "phase", "tpot_ms": 40, "corun": {"omega": 0.25}}"#,
                PolicyConfig { tpot_ms: 40.0, corun, ..phase },
            ),
        ] {
            assert_eq!(text.parse(), Ok(want), "{text}");
            assert_eq!(want.to_json().parse(), Ok(want), "{text} as JSON");
        }
    }

    #[test]
    fn refusals_say_what_there_is() {
        for (text, says) in [
            ("", "passthrough, fifo, phase"),
            ("fair", "passthrough, fifo, phase"),
            ("phase:tpot=40", "expected one of `name`, `tpot_ms`"),
            ("phase:tpot_ms", "key=number"),
            ("phase:tpot_ms=fast", "key=number"),
            ("phase:tpot_ms=0", "0.001 to 86400000 ms"),
            ("phase:tpot_ms=NaN", "expected f64"),
            ("phase:omega=1.5", "0 to 1"),
            (r#"{"tpot_ms": 40}"#, "\"name\" is missing"),
            (r#"{"name": "fair"}"#, "expected one of `passthrough`, `fifo`, `phase`"),
            ("{", "EOF"),
        ] {
            let error = text.parse::<PolicyConfig>().expect_err(text).to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}

//! Policy configuration: from a name, `name:key=value:…`, or JSON. One flat set of parameters for all policies, so that
//! changing the policy and changing back loses nothing; each parameter says who reads it.
//!
//! One definition serves the daemon's command line, its admin API and the simulator. What is out of range is refused
//! with the range, what is misspelt with the list of what there is; nothing is clamped silently.

use crate::corun::{CoRun, CoreSplit};
use crate::{Nanos, nanos};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The policies there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyName {
    /// Submit everything as soon as it is ready.
    Passthrough,
    /// Global arrival order, one stream on the device at a time.
    #[default]
    Fifo,
    /// Round robin over sessions: so many operators a round, shared by weight.
    Quota,
    /// Strictly by priority of session and stream.
    Priority,
    /// Prefill and decode take turns in a fixed ratio of time.
    StaticRatio,
    /// Prefill and decode each have a fixed part of the cores.
    CoreSplit,
    /// Prefill and decode by slack.
    Phase,
}

impl PolicyName {
    /// Every policy.
    pub const ALL: [Self; 7] =
        [Self::Passthrough, Self::Fifo, Self::Quota, Self::Priority, Self::StaticRatio, Self::CoreSplit, Self::Phase];

    /// Name as it is configured.
    pub const fn name(self) -> &'static str {
        ["passthrough", "fifo", "quota", "priority", "static-ratio", "core-split", "phase"][self as usize]
    }
}

/// Which phase `priority` prefers among operators of equal priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum First {
    /// Neither.
    #[default]
    None,
    /// Prefill: first tokens as early as can be, whatever that does to decode.
    Prefill,
    /// Decode: as fast as alone, whatever that does to prefill.
    Decode,
}

/// A policy and its parameters. Every parameter has a default, so `phase` and `{"name": "phase"}` are complete.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PolicyConfig {
    /// Which policy. Parameters without a policy's name in their description are `phase`'s.
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
    /// Most time that decode stands still for prefill at a stretch, in τ; without hints also the most that a decoding stream
    /// may be ahead of schedule. This bounds the gap between two tokens.
    pub credit: f64,
    /// Throughput that running side by side must gain before it is preferred to taking turns: `Σ rates ≥ 1 + γ`.
    pub gamma: f64,
    /// No ready operator is held back for longer, milliseconds. All policies but `fifo` and `core-split`, whose queues
    /// are in order of arrival.
    pub age_max_ms: f64,
    /// How long a decode step that is due keeps prefill away while its host launches the next operator, microseconds.
    pub gap_us: f64,
    /// Compute time by which one session's prefills may get ahead of another's (per unit of weight), milliseconds; for
    /// `static-ratio`, what a phase that was away may catch up on (per part).
    pub fair_quantum_ms: f64,
    /// A request that the gateway has not mentioned for so long is forgotten, milliseconds.
    pub lease_ms: f64,
    /// `quota`: operators dispatched a round.
    pub quota: u32,
    /// `quota`: how long a round lasts where idle sessions keep their part, microseconds.
    pub round_us: f64,
    /// `quota`: sessions without work leave their part of the round to the others, and rounds end early.
    pub share_in_idle: bool,
    /// `priority`: which phase goes first among operators of equal priority.
    pub first: First,
    /// `static-ratio`, `core-split`: prefill's part of the time, or of the cores.
    pub prefill_part: f64,
    /// `core-split`: part of the cores that can use the full memory bandwidth.
    pub knee: f64,
    /// Correct predictions and the belief about contention by what is measured.
    pub learn: bool,
    /// What the policy believes about contention on this device, until it has learnt better.
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
            // The most that the published quota scheduler allows; smaller rounds only add waiting.
            quota: 16,
            // A few operators of a decode step, one of a long prompt.
            round_us: 1000.0,
            share_in_idle: true,
            first: First::None,
            prefill_part: 0.5,
            knee: 0.3,
            learn: true,
            corun: CoRun::default(),
        }
    }
}

/// Why a configuration was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Not a policy.
    #[error("no policy is called {name:?}; there are: {}", PolicyName::ALL.map(PolicyName::name).join(", "))]
    UnknownName {
        /// What was asked for.
        name: String,
    },
    /// Not `key=value`.
    #[error("{part:?} is not key=value (as in phase:tpot_ms=40:omega=0.5)")]
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
            ("quota", f64::from(self.quota), (1.0, 16.0, "1 to 16 operators")),
            ("round_us", self.round_us, (1.0, 1e6, "1 to 1000000 µs")),
            ("prefill_part", self.prefill_part, (0.01, 0.99, "0.01 to 0.99")),
            ("knee", self.knee, (0.01, 1.0, "0.01 to 1")),
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

    /// How the device's cores are split, where this policy wants that. Whoever applies the configuration tells the device.
    pub fn core_split(&self) -> Option<CoreSplit> {
        (self.name == PolicyName::CoreSplit).then_some(CoreSplit { prefill: self.prefill_part, knee: self.knee })
    }

    pub(crate) fn tpot(&self) -> Nanos {
        nanos(self.tpot_ms * 1e-3)
    }

    pub(crate) fn age_max(&self) -> Nanos {
        nanos(self.age_max_ms * 1e-3)
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
                let (key, value) =
                    part.split_once('=').ok_or_else(|| ConfigError::NotAParameter { part: part.to_owned() })?;
                let (key, value) = (key.trim(), value.trim());
                let value = match (value.parse::<u32>(), value.parse::<f64>(), value.parse::<bool>()) {
                    (Ok(whole), ..) => whole.into(),
                    (_, Ok(number), _) => number.into(),
                    (.., Ok(yes)) => yes.into(),
                    _ => Value::from(value),
                };
                let into =
                    if matches!(key, "omega" | "kappa_prefill" | "kappa_decode") { &mut corun } else { &mut object };
                into.insert(key.to_owned(), value);
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
            (
                "quota:quota=4:share_in_idle=false",
                PolicyConfig { quota: 4, share_in_idle: false, ..PolicyConfig::named(PolicyName::Quota) },
            ),
            (
                "priority:first=decode",
                PolicyConfig { first: First::Decode, ..PolicyConfig::named(PolicyName::Priority) },
            ),
            (
                "static-ratio:prefill_part=0.25",
                PolicyConfig { prefill_part: 0.25, ..PolicyConfig::named(PolicyName::StaticRatio) },
            ),
            ("core-split", PolicyConfig::named(PolicyName::CoreSplit)),
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
            ("", "passthrough, fifo, quota, priority, static-ratio, core-split, phase"),
            ("fair", "passthrough, fifo, quota"),
            ("phase:tpot=40", "expected one of `name`, `tpot_ms`"),
            ("phase:tpot_ms", "key=value"),
            ("phase:tpot_ms=fast", "expected f64"),
            ("quota:quota=17", "1 to 16 operators"),
            ("quota:quota=0", "1 to 16 operators"),
            ("quota:quota=1.5", "expected u32"),
            ("quota:round_us=0", "1 to 1000000 µs"),
            ("quota:share_in_idle=2", "expected a boolean"),
            ("priority:first=mixed", "expected one of `none`, `prefill`, `decode`"),
            ("static-ratio:prefill_part=1", "0.01 to 0.99"),
            ("core-split:knee=0", "0.01 to 1"),
            ("phase:tpot_ms=0", "0.001 to 86400000 ms"),
            ("phase:tpot_ms=NaN", "expected f64"),
            ("phase:omega=1.5", "0 to 1"),
            (r#"{"tpot_ms": 40}"#, "\"name\" is missing"),
            (r#"{"name": "fair"}"#, "expected one of `passthrough`, `fifo`, `quota`"),
            ("{", "EOF"),
        ] {
            let error = text.parse::<PolicyConfig>().expect_err(text).to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}

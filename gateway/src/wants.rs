//! What a request wants of the scheduler: the gateway's objectives, or the client's own where they are trusted.
//!
//! | header | value | without it |
//! |---|---|---|
//! | `x-vnpu-priority` | 0–255, larger is more urgent | 0 |
//! | `x-vnpu-tenant` | who pays, at most 64 bytes | nobody |
//! | `x-vnpu-ttft-ms` | time to the first token | `--ttft-slo-ms` |
//! | `x-vnpu-tpot-ms` | time between tokens | `--tpot-slo-ms` |
//!
//! They count only with `--trust-client-hints`: whoever may name a priority may push others aside. The scheduler bounds
//! by how much (sessions keep their fair share, and no operator waits for ever), so trust is about order, not safety.

use http::HeaderMap;

/// Headers that carry wishes.
const HEADERS: [&str; 4] = ["x-vnpu-priority", "x-vnpu-tenant", "x-vnpu-ttft-ms", "x-vnpu-tpot-ms"];

/// What one request wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wants {
    /// Time to the first token, milliseconds.
    pub ttft_ms: u32,
    /// Time between tokens, milliseconds.
    pub tpot_ms: u32,
    /// Larger is more urgent.
    pub priority: u8,
    /// Who pays; empty where nobody said.
    pub tenant: String,
}

impl Wants {
    /// What every request wants that does not say otherwise.
    pub fn objectives(ttft_ms: u32, tpot_ms: u32) -> Self {
        Self { ttft_ms, tpot_ms, priority: 0, tenant: String::new() }
    }

    /// These, changed by what the client's headers say.
    ///
    /// # Errors
    /// The name of a header whose value makes no sense.
    pub fn of(&self, headers: &HeaderMap) -> Result<Self, &'static str> {
        let mut wants = self.clone();
        for name in HEADERS {
            let Some(value) = headers.get(name) else { continue };
            let text = value.to_str().map_err(|_| name)?.trim();
            match name {
                "x-vnpu-priority" => wants.priority = text.parse().map_err(|_| name)?,
                "x-vnpu-ttft-ms" => wants.ttft_ms = text.parse().map_err(|_| name)?,
                "x-vnpu-tpot-ms" => wants.tpot_ms = text.parse().map_err(|_| name)?,
                _ if text.len() > wire::TENANT_BYTES_MAX => return Err(name),
                _ => text.clone_into(&mut wants.tenant),
            }
        }
        Ok(wants)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_change_what_they_name_and_nonsense_is_refused() {
        let base = Wants::objectives(1000, 50);
        let read = |pairs: &[(&'static str, &str)]| {
            let headers = pairs.iter().map(|(name, value)| ((*name).parse().unwrap(), value.parse().unwrap()));
            base.of(&headers.collect::<HeaderMap>())
        };
        let all =
            [("x-vnpu-priority", "7"), ("x-vnpu-tenant", "blue"), ("x-vnpu-ttft-ms", "200"), ("x-vnpu-tpot-ms", "30")];
        assert_eq!(read(&[]), Ok(base.clone()));
        assert_eq!(read(&all), Ok(Wants { ttft_ms: 200, tpot_ms: 30, priority: 7, tenant: "blue".to_owned() }));
        let long = "t".repeat(wire::TENANT_BYTES_MAX + 1);
        for (name, value) in [
            ("x-vnpu-priority", "256"),
            ("x-vnpu-priority", "high"),
            ("x-vnpu-ttft-ms", "-1"),
            ("x-vnpu-tpot-ms", "1.5"),
            ("x-vnpu-tenant", &long),
        ] {
            assert_eq!(read(&[(name, value)]), Err(name), "{value}");
        }
    }
}

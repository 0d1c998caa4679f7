//! How fast a backlog is admitted, and from that how long a wait will be.

/// Time over which the past is forgotten. Long against one request, short against a change of load.
const HALF_LIFE_US: f64 = 5e6;
/// Busy time below which nothing is predicted: one request says nothing.
const KNOWN_AFTER_US: f64 = 0.5e6;

/// Tokens admitted out of a backlog over the time that there was one; both decay.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pace {
    tokens: f64,
    busy_us: f64,
    seen_us: u64,
}

impl Pace {
    /// Time passes, with or without requests waiting.
    pub fn pass(&mut self, now_us: u64, backlog: bool) {
        let passed = now_us.saturating_sub(self.seen_us) as f64;
        self.seen_us = self.seen_us.max(now_us);
        if backlog && passed > 0.0 {
            let keep = 0.5f64.powf(passed / HALF_LIFE_US);
            self.tokens *= keep;
            self.busy_us = self.busy_us * keep + passed;
        }
    }

    /// A request of so many tokens left the backlog.
    pub fn admitted(&mut self, tokens: u64) {
        self.tokens += tokens as f64;
    }

    /// Predicted time until `tokens` are admitted; `None` while too little is known.
    pub fn wait_us(&self, tokens: u64) -> Option<u64> {
        if tokens == 0 {
            return Some(0);
        }
        if self.busy_us < KNOWN_AFTER_US || self.tokens <= 0.0 {
            return None;
        }
        Some((tokens as f64 * self.busy_us / self.tokens) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steady_backlog_is_predicted_and_idle_time_is_not_counted() {
        let mut pace = Pace::default();
        assert_eq!(pace.wait_us(100), None);
        let mut now_us = 0;
        for _ in 0..100 {
            now_us += 100_000;
            pace.pass(now_us, true);
            pace.admitted(1000);
        }
        pace.pass(now_us + 3_600_000_000, false);
        // 10,000 tokens a second.
        let wait_us = pace.wait_us(5000).unwrap();
        assert!((450_000..550_000).contains(&wait_us), "{wait_us}");
        assert_eq!(pace.wait_us(0), Some(0));
    }

    #[test]
    fn slower_engine_is_noticed() {
        let mut pace = Pace::default();
        let mut now_us = 0;
        for tokens in [1000, 100] {
            for _ in 0..600 {
                now_us += 100_000;
                pace.pass(now_us, true);
                pace.admitted(tokens);
            }
        }
        let wait_us = pace.wait_us(1000).unwrap();
        assert!((900_000..1_200_000).contains(&wait_us), "{wait_us}");
    }
}

//! Is an engine worth trying? Failures in a row open the breaker, a growing pause follows, then one request is the probe.

/// When it opens and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerLimits {
    /// Failures in a row.
    pub failures: u32,
    /// First pause.
    pub pause_us: u64,
    /// Longest pause.
    pub pause_max_us: u64,
}

impl Default for BreakerLimits {
    /// Three failures are no accident; a restarting engine is found within a second, a dead one costs a try in half a
    /// minute.
    fn default() -> Self {
        Self { failures: 3, pause_us: 500_000, pause_max_us: 30_000_000 }
    }
}

/// State for one engine.
#[derive(Clone, Copy, Debug)]
pub struct Breaker {
    limits: BreakerLimits,
    failures: u32,
    opened: u32,
    open_until_us: Option<u64>,
}

impl Breaker {
    /// Closed.
    pub fn new(limits: BreakerLimits) -> Self {
        Self { limits, failures: 0, opened: 0, open_until_us: None }
    }

    /// Whether requests may go through now. After the pause they may again, and the next failure opens it at once.
    pub fn is_closed(&self, now_us: u64) -> bool {
        self.open_until_us.is_none_or(|until| now_us >= until)
    }

    /// When it will let a request through again, if it does not now.
    pub fn reopens_us(&self, now_us: u64) -> Option<u64> {
        self.open_until_us.filter(|&until| now_us < until)
    }

    /// The engine answered.
    pub fn succeeded(&mut self) {
        *self = Self::new(self.limits);
    }

    /// The engine failed; true if that opens the breaker.
    pub fn failed(&mut self, now_us: u64) -> bool {
        if !self.is_closed(now_us) {
            return false;
        }
        self.failures += 1;
        if self.open_until_us.is_none() && self.failures < self.limits.failures {
            return false;
        }
        let pause_us = self.limits.pause_us.saturating_mul(1 << self.opened.min(16)).min(self.limits.pause_max_us);
        self.opened += 1;
        self.open_until_us = Some(now_us.saturating_add(pause_us));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_after_failures_in_a_row_and_pauses_grow() {
        let limits = BreakerLimits { failures: 3, pause_us: 100, pause_max_us: 350 };
        let mut breaker = Breaker::new(limits);
        assert!(!breaker.failed(0) && !breaker.failed(0));
        breaker.succeeded();
        assert!(!breaker.failed(0) && !breaker.failed(0));
        assert!(breaker.failed(1000));
        let mut now_us = 1000;
        for pause_us in [100, 200, 350, 350] {
            assert!(!breaker.is_closed(now_us + pause_us - 1));
            assert_eq!(breaker.reopens_us(now_us), Some(now_us + pause_us));
            assert!(!breaker.failed(now_us + 1), "late failures of earlier requests do not prolong it");
            now_us += pause_us;
            assert!(breaker.is_closed(now_us));
            assert!(breaker.failed(now_us), "the probe's failure opens it at once");
        }
        breaker.succeeded();
        assert!(breaker.is_closed(now_us) && !breaker.failed(now_us));
    }
}

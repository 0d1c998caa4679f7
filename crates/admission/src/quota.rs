//! What a tenant may use over time: requests and tokens a minute, tokens a day.
//!
//! Token buckets that can be given back to. A request reserves its prompt and the most it may generate, so that a hundred
//! requests at once cannot pass a limit that each alone respects; when it ends, what it did not use returns. Not the crate
//! governor, which takes and cannot give back (every request would be charged its `max_tokens`), nor be asked without
//! taking (`/v1/explain`, the `x-ratelimit-*` headers of a refusal), nor get another limit while it runs.

/// Limits; `None` is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// Requests a minute.
    pub requests_per_minute: Option<u64>,
    /// Tokens a minute, prompt and output.
    pub tokens_per_minute: Option<u64>,
    /// Tokens a day; a day is 24 hours of the caller's clock.
    pub tokens_per_day: Option<u64>,
}

/// What a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Requests a minute.
    RequestsPerMinute,
    /// Tokens a minute.
    TokensPerMinute,
    /// Tokens a day.
    TokensPerDay,
}

/// A limit that a request would pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exceeded {
    /// Which.
    pub resource: Resource,
    /// The limit.
    pub limit: u64,
    /// When it would pass; `None` if the request alone is above the limit.
    pub retry_after_us: Option<u64>,
}

/// What is left of a limit a minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remaining {
    /// The limit.
    pub limit: u64,
    /// What is left now.
    pub remaining: u64,
    /// Time until it is whole again.
    pub reset_us: u64,
}

const MINUTE_US: i128 = 60_000_000;
const DAY_US: u64 = 86_400_000_000;

/// A bucket that fills evenly; its level is in units × [`MINUTE_US`], so that no fraction is lost.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    limit: u64,
    level: i128,
    seen_us: u64,
}

impl Bucket {
    fn new(limit: u64, now_us: u64) -> Self {
        Self { limit, level: i128::from(limit) * MINUTE_US, seen_us: now_us }
    }

    fn pass(&mut self, now_us: u64) {
        let passed = i128::from(now_us.saturating_sub(self.seen_us));
        self.seen_us = self.seen_us.max(now_us);
        let full = i128::from(self.limit) * MINUTE_US;
        self.level = (self.level + passed * i128::from(self.limit)).min(full);
    }

    /// Time until `units` are there.
    fn lacks_us(&self, units: u64) -> u64 {
        let lacking = i128::from(units) * MINUTE_US - self.level;
        if lacking <= 0 {
            0
        } else {
            u64::try_from((lacking as u128).div_ceil(u128::from(self.limit.max(1)))).unwrap_or(u64::MAX)
        }
    }

    fn change(&mut self, units: i128) {
        let full = i128::from(self.limit) * MINUTE_US;
        self.level = (self.level + units * MINUTE_US).min(full);
    }

    /// With another limit; what was used stays used.
    fn limited(self, limit: u64) -> Self {
        let more = i128::from(limit) - i128::from(self.limit);
        Self { limit, level: self.level + more * MINUTE_US, ..self }
    }

    fn remaining(&self) -> Remaining {
        let remaining = u64::try_from(self.level.max(0) / MINUTE_US).unwrap_or(0);
        Remaining { limit: self.limit, remaining, reset_us: self.lacks_us(self.limit) }
    }
}

/// A tenant's use against its quota.
#[derive(Clone, Debug)]
pub struct QuotaMeter {
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
    day_limit: Option<u64>,
    day: u64,
    day_tokens: u64,
}

impl QuotaMeter {
    /// Nothing used yet.
    pub fn new(quota: Quota, now_us: u64) -> Self {
        Self {
            requests: quota.requests_per_minute.map(|l| Bucket::new(l, now_us)),
            tokens: quota.tokens_per_minute.map(|l| Bucket::new(l, now_us)),
            day_limit: quota.tokens_per_day,
            day: now_us / DAY_US,
            day_tokens: 0,
        }
    }

    /// Other limits from now on; what was used stays used.
    pub fn set_quota(&mut self, quota: Quota, now_us: u64) {
        self.pass(now_us);
        let limited = |bucket: Option<Bucket>, limit: Option<u64>| {
            limit.map(|l| bucket.map_or_else(|| Bucket::new(l, now_us), |b| b.limited(l)))
        };
        self.requests = limited(self.requests, quota.requests_per_minute);
        self.tokens = limited(self.tokens, quota.tokens_per_minute);
        self.day_limit = quota.tokens_per_day;
    }

    fn pass(&mut self, now_us: u64) {
        self.requests.iter_mut().chain(&mut self.tokens).for_each(|b| b.pass(now_us));
        if now_us / DAY_US > self.day {
            self.day = now_us / DAY_US;
            self.day_tokens = 0;
        }
    }

    /// Takes one request of so many tokens, or nothing.
    ///
    /// # Errors
    /// The limit that forbids it.
    pub fn take(&mut self, tokens: u64, now_us: u64) -> Result<(), Exceeded> {
        self.check(tokens, now_us)?;
        if let Some(bucket) = &mut self.requests {
            bucket.change(-1);
        }
        if let Some(bucket) = &mut self.tokens {
            bucket.change(-i128::from(tokens));
        }
        self.day_tokens = self.day_tokens.saturating_add(tokens);
        Ok(())
    }

    /// Whether [`take`](Self::take) would succeed.
    ///
    /// # Errors
    /// The limit that forbids it.
    pub fn check(&mut self, tokens: u64, now_us: u64) -> Result<(), Exceeded> {
        self.pass(now_us);
        let minute =
            [(&self.requests, Resource::RequestsPerMinute, 1), (&self.tokens, Resource::TokensPerMinute, tokens)];
        for (bucket, resource, units) in minute {
            let Some(bucket) = bucket else { continue };
            if units > bucket.limit {
                return Err(Exceeded { resource, limit: bucket.limit, retry_after_us: None });
            }
            let wait_us = bucket.lacks_us(units);
            if wait_us > 0 {
                return Err(Exceeded { resource, limit: bucket.limit, retry_after_us: Some(wait_us) });
            }
        }
        if let Some(limit) = self.day_limit.filter(|&l| self.day_tokens.saturating_add(tokens) > l) {
            let tomorrow_us = DAY_US - now_us % DAY_US;
            let retry_after_us = (tokens <= limit).then_some(tomorrow_us);
            return Err(Exceeded { resource: Resource::TokensPerDay, limit, retry_after_us });
        }
        Ok(())
    }

    /// A request that took `reserved` tokens used `used`. More than reserved becomes a debt.
    pub fn settle(&mut self, reserved: u64, used: u64, now_us: u64) {
        self.pass(now_us);
        if let Some(bucket) = &mut self.tokens {
            bucket.change(i128::from(reserved) - i128::from(used));
        }
        self.day_tokens = self.day_tokens.saturating_sub(reserved).saturating_add(used);
    }

    /// What is left of requests and tokens a minute, where they are limited.
    pub fn remaining(&mut self, now_us: u64) -> (Option<Remaining>, Option<Remaining>) {
        self.pass(now_us);
        (self.requests.map(|b| b.remaining()), self.tokens.map(|b| b.remaining()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const QUOTA: Quota =
        Quota { requests_per_minute: Some(60), tokens_per_minute: Some(6000), tokens_per_day: Some(20_000) };

    #[test]
    fn each_limit_says_when_to_come_back() {
        let mut meter = QuotaMeter::new(QUOTA, 0);
        assert_eq!(meter.take(4000, 0), Ok(()));
        let later = Exceeded { resource: Resource::TokensPerMinute, limit: 6000, retry_after_us: Some(20_000_000) };
        assert_eq!(meter.take(4000, 0), Err(later));
        assert_eq!(meter.take(4000, 19_999_999).unwrap_err().resource, Resource::TokensPerMinute);
        assert_eq!(meter.take(4000, 20_000_000), Ok(()));
        assert_eq!(meter.take(6001, 20_000_000).unwrap_err().retry_after_us, None);
        for _ in 0..2 {
            assert_eq!(meter.take(6000, 200_000_000).map_err(|e| e.resource), Ok(()));
            meter.settle(0, 0, 400_000_000);
        }
        let tomorrow = meter.take(1000, 500_000_000).unwrap_err();
        assert_eq!((tomorrow.resource, tomorrow.retry_after_us), (Resource::TokensPerDay, Some(DAY_US - 500_000_000)));
        assert_eq!(meter.take(1000, DAY_US), Ok(()));
        let mut many = QuotaMeter::new(QUOTA, 0);
        assert_eq!((0..100).filter(|_| many.take(1, 0).is_ok()).count(), 60);
        assert_eq!(many.take(1, 0).unwrap_err().retry_after_us, Some(1_000_000));
    }

    #[test]
    fn unused_tokens_return() {
        let mut meter = QuotaMeter::new(QUOTA, 0);
        meter.take(6000, 0).unwrap();
        meter.settle(6000, 100, 0);
        let (_, tokens) = meter.remaining(0);
        assert_eq!(tokens, Some(Remaining { limit: 6000, remaining: 5900, reset_us: 1_000_000 }));
    }

    #[test]
    fn changed_limit_keeps_what_was_used() {
        let mut meter = QuotaMeter::new(QUOTA, 0);
        meter.take(4000, 0).unwrap();
        meter.set_quota(Quota { tokens_per_minute: Some(9000), requests_per_minute: None, ..QUOTA }, 0);
        let (requests, tokens) = meter.remaining(0);
        assert_eq!((requests, tokens.map(|t| (t.limit, t.remaining))), (None, Some((9000, 5000))));
        meter.set_quota(Quota { tokens_per_minute: Some(1000), ..QUOTA }, 0);
        assert_eq!(meter.take(1, 0).unwrap_err().retry_after_us, Some(180_060_000), "3,000 above the new limit");
        assert_eq!(meter.remaining(0).0.map(|r| r.remaining), Some(60));
    }

    proptest! {
        /// However requests are spread and settled, no more is used in any time than the bucket and its refill allow.
        #[test]
        fn concurrency_does_not_pass_the_limit(
            ops in prop::collection::vec((0u64..3_000_000, 1u64..3000, 0u64..=100), 1..200),
        ) {
            let quota = Quota { tokens_per_minute: Some(6000), ..Quota::default() };
            let (mut meter, mut now_us, mut used) = (QuotaMeter::new(quota, 0), 0, 0u64);
            let mut running: Vec<(u64, u64)> = Vec::new();
            for (pause_us, tokens, part) in ops {
                now_us += pause_us;
                if meter.take(tokens, now_us).is_ok() {
                    running.push((tokens, tokens * part / 100));
                }
                if running.len() > 3 {
                    let (reserved, actual) = running.remove(0);
                    meter.settle(reserved, actual, now_us);
                    used += actual;
                }
                let held: u64 = running.iter().map(|(r, _)| r).sum();
                prop_assert!(used + held <= 6000 + now_us * 6000 / 60_000_000 + 1);
            }
        }
    }
}

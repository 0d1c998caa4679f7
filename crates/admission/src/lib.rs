//! Which request may go to which engine, and when: every decision of the gateway, without a socket or a clock.
//!
//! Time comes in as microseconds of any monotonic clock, randomness as a seed. [`Admission`] holds two ledgers for each
//! engine (prefill tokens in flight; sequences and KV tokens in flight) and a queue in front of them. Whoever gets a
//! [`Grant`] ends it exactly once with [`Admission::finish`].
//!
//! Everything is counted in tokens: what is reserved, what fairness weighs, how long a wait is predicted to take.

mod admission;
mod balance;
mod breaker;
mod estimate;
mod fair;
mod ledger;
mod pace;
mod prefix;
mod queue;
mod quota;

pub use admission::{Admission, Explanation, Grant, GrantId, QueueLimits, Refusal, Request, Served};
pub use balance::{AFFINITY_LOAD_FACTOR, Candidate, choose};
pub use breaker::{Breaker, BreakerLimits};
pub use estimate::{Estimate, Estimator};
pub use fair::TenantLimits;
pub use ledger::{Capacity, Demand, Ledger, Misfit, Others};
pub use prefix::{PrefixIndex, block_hashes};
pub use queue::Ticket;
pub use quota::{Exceeded, Quota, QuotaMeter, Remaining, Resource};

/// Most engines behind one gateway: a set of them is one word.
pub const ENGINES_MAX: usize = 64;
/// Most tenants told apart.
pub const TENANTS_MAX: usize = 4096;
/// Priority bands: 0 is served last.
pub const BANDS: usize = 4;

/// Position of an engine in the gateway's table.
pub type EngineIndex = usize;
/// Position of a tenant in the gateway's table.
pub type TenantIndex = usize;

/// A set of engines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineSet(u64);

impl EngineSet {
    /// No engine.
    pub const EMPTY: Self = Self(0);

    /// With `engine` added.
    #[must_use]
    pub fn with(self, engine: EngineIndex) -> Self {
        debug_assert!(engine < ENGINES_MAX);
        Self(self.0 | 1 << engine)
    }

    /// Without the engines of `other`.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Engines in both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether `engine` is in it.
    pub fn has(self, engine: EngineIndex) -> bool {
        self.0 >> engine & 1 == 1
    }

    /// Whether it has none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Its engines, in order.
    pub fn iter(self) -> impl Iterator<Item = EngineIndex> {
        (0..ENGINES_MAX).filter(move |&e| self.has(e))
    }
}

impl FromIterator<EngineIndex> for EngineSet {
    fn from_iter<I: IntoIterator<Item = EngineIndex>>(engines: I) -> Self {
        engines.into_iter().fold(Self::EMPTY, Self::with)
    }
}

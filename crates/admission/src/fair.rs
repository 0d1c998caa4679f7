//! Fairness between tenants: a virtual clock each, which runs with the tokens served over the tenant's weight.
//!
//! Whoever waits and has the clock furthest behind is next (the virtual token counter of Sheng et al., OSDI 2024). A tenant
//! that begins to wait after a pause is lifted to those who waited meanwhile, so that an idle hour is not credit.

use std::collections::BTreeSet;

use crate::{BANDS, TenantIndex};

/// Virtual time of one token at weight one: fine enough for any weight to matter.
const UNIT: u64 = 1 << 12;

/// What a tenant may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TenantLimits {
    /// Share against other tenants that wait, 1 and more.
    pub weight: u32,
    /// Sequences at a time over all engines.
    pub sequences: u64,
}

impl Default for TenantLimits {
    fn default() -> Self {
        Self { weight: 1, sequences: u64::MAX }
    }
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tenant {
    pub limits: TenantLimits,
    /// Tokens served.
    pub served_tokens: u64,
    /// Sequences running.
    pub sequences: u64,
    clock: u64,
    /// Requests waiting, by band.
    waiting: [u32; BANDS],
}

/// Tenants and, for each band, those with a backlog in the order of their clocks.
#[derive(Debug, Default)]
pub(crate) struct Fair {
    tenants: Vec<Tenant>,
    order: [BTreeSet<(u64, TenantIndex)>; BANDS],
    /// Clock of the tenant served last: where one starts that waits alone.
    reached: u64,
}

impl Fair {
    pub fn tenant(&self, tenant: TenantIndex) -> Tenant {
        self.tenants.get(tenant).copied().unwrap_or_default()
    }

    pub fn tenants(&self) -> usize {
        self.tenants.len()
    }

    pub fn tenant_mut(&mut self, tenant: TenantIndex) -> &mut Tenant {
        if self.tenants.len() <= tenant {
            self.tenants.resize_with(tenant + 1, Tenant::default);
        }
        &mut self.tenants[tenant]
    }

    /// Tenants that wait in `band`, the one furthest behind first.
    pub fn waiting(&self, band: usize) -> impl Iterator<Item = TenantIndex> {
        self.order[band].iter().map(|&(_, tenant)| tenant)
    }

    /// Weights of all tenants that wait, and `plus` if it does not.
    pub fn weights(&self, plus: TenantIndex) -> u64 {
        let waiting = self.tenants.iter().enumerate();
        let all = waiting.filter(|(i, t)| *i == plus || t.waiting.iter().any(|&n| n > 0));
        all.map(|(_, t)| u64::from(t.limits.weight.max(1))).sum::<u64>().max(1)
    }

    pub fn enters(&mut self, tenant: TenantIndex, band: usize) {
        let floor = self.order.iter().filter_map(|o| o.first()).map(|&(clock, _)| clock).min().unwrap_or(self.reached);
        let t = self.tenant_mut(tenant);
        if t.waiting.iter().all(|&n| n == 0) {
            t.clock = t.clock.max(floor);
        }
        t.waiting[band] += 1;
        let entry = (t.clock, tenant);
        self.order[band].insert(entry);
    }

    pub fn leaves(&mut self, tenant: TenantIndex, band: usize) {
        let t = self.tenant_mut(tenant);
        t.waiting[band] -= 1;
        let entry = (t.clock, tenant);
        if t.waiting[band] == 0 {
            self.order[band].remove(&entry);
        }
    }

    /// Tokens were served to `tenant`; negative takes back what an estimate had charged too much.
    pub fn charge(&mut self, tenant: TenantIndex, tokens: i64) {
        let t = self.tenant_mut(tenant);
        let before = t.clock;
        let step = tokens.unsigned_abs().saturating_mul(UNIT) / u64::from(t.limits.weight.max(1));
        if tokens < 0 {
            t.clock = t.clock.saturating_sub(step);
            t.served_tokens = t.served_tokens.saturating_sub(tokens.unsigned_abs());
        } else {
            t.clock = t.clock.saturating_add(step);
            t.served_tokens = t.served_tokens.saturating_add(tokens.unsigned_abs());
        }
        let (after, waiting) = (t.clock, t.waiting);
        for band in (0..BANDS).filter(|&b| waiting[b] > 0) {
            self.order[band].remove(&(before, tenant));
            self.order[band].insert((after, tenant));
        }
    }

    /// `tenant` is served now.
    pub fn serves(&mut self, tenant: TenantIndex) {
        self.reached = self.reached.max(self.tenant(tenant).clock);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_served_least_for_its_weight_is_next() {
        let mut fair = Fair::default();
        fair.tenant_mut(1).limits.weight = 3;
        for tenant in 0..3 {
            fair.enters(tenant, 0);
        }
        fair.charge(0, 100);
        fair.charge(1, 150);
        fair.charge(2, 60);
        assert_eq!(fair.waiting(0).collect::<Vec<_>>(), [1, 2, 0]);
        fair.charge(0, -90);
        assert_eq!(fair.waiting(0).collect::<Vec<_>>(), [0, 1, 2]);
    }

    #[test]
    fn pause_is_no_credit() {
        let mut fair = Fair::default();
        fair.enters(0, 0);
        fair.charge(0, 1000);
        fair.enters(1, 0);
        fair.charge(1, 1);
        assert_eq!(fair.waiting(0).collect::<Vec<_>>(), [0, 1], "lifted to the one that waited");
    }
}

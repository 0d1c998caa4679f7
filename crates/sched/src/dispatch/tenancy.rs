//! Tenants: who may use the device before a policy is asked.
//!
//! A policy orders operators; how much of the device a tenant gets, all its sessions together, is decided here, under every
//! policy alike. Three rules narrow what a policy sees:
//!
//! - **window**: a tenant has at most so many operators on the device;
//! - **priority**: while a tenant with a higher priority has something ready or running, others wait;
//! - **weight**: each tenant is charged the device time that passes while its operators run ([`crate::split`]), over its weight.
//!   A tenant may be ahead of the one with the least charge by [`LEAD_NS`] of its own time, no more. Only tenants with something
//!   to do count, so what an idle one leaves is the others'; who comes back is owed at most
//!   [`OWED_NS`], however long it was away. While several want the device, each has at most [`LEAD_NS`] of predicted work on it, and
//!   one operator: what a device holds is never taken back, and a policy or a client may hand it any amount.
//!
//! The policy is asked about those that are left. Where it would let the device idle for them although others have work, it is
//! asked about tenants up to twice the lead ahead too, and if it still declines, the oldest operator of the tenant that is
//! furthest behind goes: shares are kept whatever a policy prefers. Priority and weight yield to the age bound of the policy.
//!
//! With one tenant and no window there is nothing to decide, and none of this runs.

use super::{Dispatcher, HoldReason, Label, Stream};
use crate::policy::{Board, Choice};
use crate::split::Split;
use crate::{Nanos, dispatch::Op};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// By how much device time a tenant may be ahead of its share: some dozens of operators of a decode step, or one of a long
/// prompt, so that tenants are not switched between needlessly; a two-thousandth of the ten seconds over which shares are promised.
pub const LEAD_NS: Nanos = 5_000_000;

/// What a tenant is owed at most when it comes back, device time of its own: an engine whose host pauses between two steps keeps
/// its share, and one that comes back after an hour delays its neighbours by no more than a token takes.
pub const OWED_NS: Nanos = 20_000_000;

/// A tenant's standing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantParams {
    /// Part of the device relative to other tenants that want it; 0 counts as 1.
    pub weight: u32,
    /// Larger goes first.
    pub priority: u8,
    /// Most operators on the device; 0 for no bound but the streams' windows.
    pub window: u32,
}

impl Default for TenantParams {
    fn default() -> Self {
        Self { weight: 1, priority: 0, window: 0 }
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Tenant {
    params: TenantParams,
    /// Operators on the device, and streams whose next one is ready.
    in_flight: u32,
    ready: u32,
    /// Predicted time alone of those on the device.
    flying_ns: Nanos,
    /// Device time over weight, nanoseconds.
    charged: f64,
}

impl Tenant {
    fn weight(&self) -> f64 {
        f64::from(self.params.weight.max(1))
    }

    fn is_full(&self) -> bool {
        self.params.window > 0 && self.in_flight >= self.params.window
    }

    fn wants(&self) -> bool {
        self.in_flight > 0 || (self.ready > 0 && !self.is_full())
    }
}

/// What all tenants are held to.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Tenancy {
    tenants: BTreeMap<u32, Tenant>,
    split: Split<u32>,
    /// There is something to decide.
    active: bool,
    /// More than one tenant wants the device.
    contended: bool,
    /// Of the tenants that want the device: the highest priority, and the least charge of that.
    priority: u8,
    least: f64,
}

fn is_transfer(label: Label) -> bool {
    label == Label::COPY_IN || label == Label::COPY_OUT
}

impl Tenancy {
    fn charge(&mut self, now: Nanos) {
        let tenants = &mut self.tenants;
        self.split.advance(now, |tenant, ns| {
            if let Some(tenant) = tenants.get_mut(&tenant) {
                tenant.charged += ns as f64 / tenant.weight();
            }
        });
    }

    /// Why the next operator of a stream does not go before the policy is asked, and until when.
    fn gate(&self, now: Nanos, stream: &Stream, leads: f64, age_max: Nanos) -> Option<(HoldReason, Option<Nanos>)> {
        let tenant = self.tenants.get(&stream.tenant)?;
        if tenant.is_full() {
            return Some((HoldReason::TenantWindow, None));
        }
        let aged = stream.ready_since.saturating_add(age_max);
        if now >= aged {
            return None;
        }
        if tenant.params.priority < self.priority {
            return Some((HoldReason::LowerPriority, Some(aged)));
        }
        if self.contended && tenant.flying_ns >= LEAD_NS {
            return Some((HoldReason::TenantShare, Some(aged)));
        }
        let ahead = (tenant.charged - self.least) * tenant.weight();
        (ahead > leads * LEAD_NS as f64).then_some((HoldReason::TenantShare, Some(aged)))
    }
}

impl Dispatcher {
    /// Says what a tenant is to get from now on; sessions name it in [`super::SessionParams::tenant`].
    pub fn set_tenant(&mut self, tenant: u32, params: TenantParams) {
        self.log(|| super::RecordEntry::SetTenant(tenant, params));
        self.tenancy.charge(self.now);
        let least = self.tenancy.least;
        let of = self.tenancy.tenants.entry(tenant).or_default();
        // What it has had so far counts as before; a weight changes what it gets from here on.
        let ahead = (of.charged - least) * of.weight();
        of.params = params;
        of.charged = least + ahead / of.weight();
        self.activate_tenancy();
    }

    /// Forgets a tenant, which must have no session. Its operators that are still on the device go uncharged.
    pub fn remove_tenant(&mut self, tenant: u32) {
        self.log(|| super::RecordEntry::RemoveTenant(tenant));
        self.tenancy.charge(self.now);
        self.tenancy.tenants.remove(&tenant);
        self.activate_tenancy();
    }

    /// Device time that tenants were charged over their weights: for tests.
    pub fn charged(&self, tenant: u32) -> Option<f64> {
        self.tenancy.tenants.get(&tenant).map(|t| t.charged)
    }

    /// A session's tenant is one of those that share, named before or not.
    pub(super) fn meet_tenant(&mut self, tenant: u32) {
        if !self.tenancy.tenants.contains_key(&tenant) {
            let charged = self.tenancy.least;
            self.tenancy.tenants.insert(tenant, Tenant { charged, ..Tenant::default() });
            self.activate_tenancy();
        }
    }

    /// Whether there is anything to decide; if that is new, who is on the device already.
    fn activate_tenancy(&mut self) {
        let tenants = &self.tenancy.tenants;
        let active = tenants.len() > 1 || tenants.values().any(|t| t.params.window > 0);
        if std::mem::replace(&mut self.tenancy.active, active) || !active {
            return;
        }
        self.tenancy.split = Split::new(self.now);
        self.tenancy.tenants.values_mut().for_each(|t| (t.in_flight, t.flying_ns) = (0, 0));
        for stream in self.streams.iter().flatten() {
            let Some(tenant) = self.tenancy.tenants.get_mut(&stream.tenant) else { continue };
            tenant.in_flight += stream.in_flight;
            tenant.flying_ns += stream.ops().filter(|(_, flying)| *flying).map(|(op, _)| op.solo).sum::<Nanos>();
            if let Some((head, true)) = stream.ops().next() {
                self.tenancy.split.begin(stream.tenant, is_transfer(head.label));
            }
        }
    }

    /// An operator of a stream went to the device.
    pub(super) fn tenant_submitted(&mut self, now: Nanos, index: usize, op: &Op) {
        if !self.tenancy.active {
            return;
        }
        let Some(stream) = self.streams[index].as_ref() else { return };
        self.tenancy.charge(now);
        if let Some(tenant) = self.tenancy.tenants.get_mut(&stream.tenant) {
            tenant.in_flight += 1;
            tenant.flying_ns = tenant.flying_ns.saturating_add(op.solo);
        }
        if stream.in_flight == 1 {
            self.tenancy.split.begin(stream.tenant, is_transfer(op.label));
        }
    }

    /// An operator of a stream, its head, is complete.
    pub(super) fn tenant_completed(&mut self, now: Nanos, index: usize, op: &Op) {
        if !self.tenancy.active {
            return;
        }
        let Some(stream) = self.streams[index].as_ref() else { return };
        self.tenancy.charge(now);
        if let Some(tenant) = self.tenancy.tenants.get_mut(&stream.tenant) {
            tenant.in_flight = tenant.in_flight.saturating_sub(1);
            tenant.flying_ns = tenant.flying_ns.saturating_sub(op.solo);
        }
        self.tenancy.split.end(stream.tenant, is_transfer(op.label));
        if let Some((head, true)) = stream.ops().next() {
            self.tenancy.split.begin(stream.tenant, is_transfer(head.label));
        }
    }

    /// Which stream goes next: the policy's word, among those whose tenants may.
    pub(super) fn choose(&mut self, now: Nanos) -> Option<Choice> {
        if !self.tenancy.active {
            let board = Board { ready: &self.ready, streams: &self.streams, in_flight: self.flying.len() };
            return self.policy.choose(now, &board, &mut self.stats);
        }
        self.weigh_tenants(now);
        for leads in [1.0, 2.0] {
            let all = self.permit(now, leads);
            let board = Board { ready: &self.permitted, streams: &self.streams, in_flight: self.flying.len() };
            let choice = self.policy.choose(now, &board, &mut self.stats);
            if choice.is_some() || all || !self.flying.is_empty() {
                return choice;
            }
        }
        self.furthest_behind()
    }

    /// Who wants the device, and how far each has got.
    fn weigh_tenants(&mut self, now: Nanos) {
        self.tenancy.charge(now);
        let Tenancy { tenants, priority: first_priority, least: least_before, contended, .. } = &mut self.tenancy;
        tenants.values_mut().for_each(|t| t.ready = 0);
        for &index in &self.ready {
            let tenant = self.streams[index].as_ref().and_then(|s| tenants.get_mut(&s.tenant));
            if let Some(tenant) = tenant {
                tenant.ready += 1;
            }
        }
        let Some(priority) = tenants.values().filter(|t| t.wants()).map(|t| t.params.priority).max() else { return };
        let first = |t: &&Tenant| t.wants() && t.params.priority == priority;
        let least = tenants.values().filter(first).map(|t| t.charged).fold(f64::INFINITY, f64::min);
        // Nobody saves up while it is away.
        let floor = least_before.max(least);
        *first_priority = priority;
        *contended = tenants.values().filter(|t| t.wants()).count() > 1;
        let mut lowest = f64::INFINITY;
        for tenant in tenants.values_mut() {
            tenant.charged = tenant.charged.max(floor - OWED_NS as f64 / tenant.weight());
            if first(&&*tenant) {
                lowest = lowest.min(tenant.charged);
            }
        }
        *least_before = lowest;
    }

    /// Puts the streams whose tenants may go into `permitted`; true if that is all of them.
    fn permit(&mut self, now: Nanos, leads: f64) -> bool {
        let (tenancy, streams, age_max) = (&self.tenancy, &self.streams, self.config.age_max());
        let may =
            |&&index: &&usize| streams[index].as_ref().is_some_and(|s| tenancy.gate(now, s, leads, age_max).is_none());
        self.permitted.clear();
        self.permitted.extend(self.ready.iter().filter(may));
        self.permitted.len() == self.ready.len()
    }

    /// The oldest operator of the tenant that has had least.
    fn furthest_behind(&self) -> Option<Choice> {
        let behind = self.permitted.iter().filter_map(|&index| {
            let stream = self.streams[index].as_ref()?;
            let charged = self.tenancy.tenants.get(&stream.tenant).map_or(0.0, |t| t.charged);
            Some((charged, stream.next_op()?.seq, index))
        });
        let (_, _, stream) = behind.min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)))?;
        Some(Choice { stream, expired: false })
    }

    /// Why a ready stream's tenant may not go, if that is why it waits.
    pub(super) fn tenant_hold(&self, now: Nanos, stream: &Stream) -> Option<(HoldReason, Option<Nanos>)> {
        if !self.tenancy.active {
            return None;
        }
        // Beside an idle device it was the policy that declined, knowing of those a little ahead too.
        let leads = if self.flying.is_empty() { 2.0 } else { 1.0 };
        self.tenancy.gate(now, stream, leads, self.config.age_max())
    }
}

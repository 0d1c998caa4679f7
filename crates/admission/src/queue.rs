//! Requests that wait: by band, then tenant, then deadline. Bounded in requests and bytes by whoever pushes.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::admission::Request;
use crate::{BANDS, EngineSet, TenantIndex};

/// Name of a waiting request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub(crate) u64);

#[derive(Clone, Debug)]
pub(crate) struct Waiting {
    pub request: Request,
    pub since_us: u64,
}

/// Order inside a tenant: earliest deadline, then first come.
type Place = (u64, Ticket);

#[derive(Debug, Default)]
pub(crate) struct Queue {
    waiting: HashMap<Ticket, Waiting>,
    by_tenant: [BTreeMap<TenantIndex, BTreeSet<Place>>; BANDS],
    tokens: [u64; BANDS],
    bytes: u64,
    next: u64,
}

impl Queue {
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Tokens that wait in `band` and above.
    pub fn tokens_from(&self, band: usize) -> u64 {
        self.tokens[band..].iter().sum()
    }

    pub fn get(&self, ticket: Ticket) -> Option<&Waiting> {
        self.waiting.get(&ticket)
    }

    /// Where a waiting request may go.
    pub fn set_eligible(&mut self, ticket: Ticket, eligible: EngineSet) {
        if let Some(waiting) = self.waiting.get_mut(&ticket) {
            waiting.request.eligible = eligible;
        }
    }

    /// Where each waiting request may go.
    pub fn eligible_mut(&mut self) -> impl Iterator<Item = &mut EngineSet> {
        self.waiting.values_mut().map(|w| &mut w.request.eligible)
    }

    pub fn push(&mut self, request: Request, now_us: u64) -> Ticket {
        let ticket = Ticket(self.next);
        self.next += 1;
        let band = request.band;
        let tenant = self.by_tenant[band].entry(request.tenant).or_default();
        tenant.insert((request.deadline_us, ticket));
        self.tokens[band] += request.demand.prompt_tokens;
        self.bytes += request.bytes;
        self.waiting.insert(ticket, Waiting { request, since_us: now_us });
        ticket
    }

    pub fn remove(&mut self, ticket: Ticket) -> Option<Waiting> {
        let waiting = self.waiting.remove(&ticket)?;
        let request = &waiting.request;
        let band = request.band;
        if let Some(tenant) = self.by_tenant[band].get_mut(&request.tenant) {
            tenant.remove(&(request.deadline_us, ticket));
            if tenant.is_empty() {
                self.by_tenant[band].remove(&request.tenant);
            }
        }
        self.tokens[band] -= request.demand.prompt_tokens;
        self.bytes -= request.bytes;
        Some(waiting)
    }

    /// Requests of a tenant in a band, the earliest deadline first.
    pub fn of_tenant(&self, band: usize, tenant: TenantIndex) -> impl Iterator<Item = Ticket> {
        self.by_tenant[band].get(&tenant).into_iter().flat_map(|t| t.iter().map(|&(_, ticket)| ticket))
    }

    /// Tokens of a tenant that wait in a band before `deadline_us`.
    pub fn tokens_of(&self, band: usize, tenant: TenantIndex, deadline_us: u64) -> u64 {
        let earlier = self.by_tenant[band].get(&tenant).into_iter();
        let earlier = earlier.flat_map(|t| t.range(..(deadline_us, Ticket(u64::MAX))));
        earlier.filter_map(|(_, ticket)| Some(self.get(*ticket)?.request.demand.prompt_tokens)).sum()
    }

    /// Every waiting request.
    pub fn all(&self) -> impl Iterator<Item = (Ticket, &Waiting)> {
        self.waiting.iter().map(|(&ticket, waiting)| (ticket, waiting))
    }
}

//! Which prefill goes first, and whether one is urgent.
//!
//! One stream at a time: the session's priority first, then among sessions of equal standing (served time over weight,
//! within a quantum) the hinted priority, then the earliest deadline; two at once would only finish both later.

use super::PhasePolicy;
use crate::Nanos;
use crate::policy::StreamIndex;
use crate::policy::lane::Lane;
use crate::policy::leases::FirstToken;
use std::cmp::Reverse;

impl PhasePolicy {
    /// What a lane's prefills are wanted by: the hints' word, or the configuration's for a prompt nobody mentioned.
    pub(super) fn wanted(&self, lane: &Lane) -> FirstToken {
        let hinted = self.sessions.get(&lane.info.session).and_then(|s| s.leases.waiting());
        hinted.unwrap_or_else(|| self.targets.first_token(lane.prefill.open().unwrap_or(Nanos::MAX), 0, 0))
    }

    /// Some prefill has used up its patience, or is about to miss its deadline even if it has the device from now on.
    pub(super) fn prefill_urgent(&self, now: Nanos, reserve: Nanos) -> bool {
        self.active_lanes().filter(|(_, l)| l.prefill.pending() > 0).any(|(_, lane)| {
            let wanted = self.wanted(lane);
            let latest = wanted.deadline.saturating_sub(lane.prefill.remaining()).saturating_sub(reserve);
            now >= wanted.urgent_at.min(latest)
        })
    }

    /// The prefill that goes first among those ready or in flight.
    pub(super) fn first_prefill(&self, ready: impl Iterator<Item = StreamIndex>) -> Option<StreamIndex> {
        let flying = self.active_lanes().filter(|(_, l)| l.prefill_flying > 0).map(|(s, _)| s);
        let mut best: Option<(StreamIndex, &Lane, f64)> = None;
        for stream in ready.chain(flying) {
            let Some(lane) = self.lane(stream) else { continue };
            let served = self.sessions.get(&lane.info.session).map_or(0.0, |s| s.served);
            let better = best.is_none_or(|(b, other, other_served)| {
                let rank = |s: StreamIndex, l: &Lane| {
                    let wanted = self.wanted(l);
                    (Reverse(l.info.priority), Reverse(wanted.priority), wanted.deadline, s)
                };
                if lane.info.priority == other.info.priority && (served - other_served).abs() > self.fair_quantum {
                    served < other_served
                } else {
                    rank(stream, lane) < rank(b, other)
                }
            });
            if better {
                best = Some((stream, lane, served));
            }
        }
        best.map(|(s, ..)| s)
    }
}

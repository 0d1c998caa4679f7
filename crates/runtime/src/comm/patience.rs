//! How long a rank stands at an exchange without anything happening: a peer that lives and never comes is an error then, not a hang.

use sched::Nanos;

use super::Comm;

/// The bound, and since when it runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Patience {
    /// Nanoseconds; 0: for ever.
    limit: Nanos,
    /// What stood still when it was looked at last: the exchange, by its flag, and its bytes that were done; and since when.
    standing: Option<((u32, u64), Nanos)>,
}

impl Comm {
    /// Bounds the time that an exchange may stand still, in nanoseconds from when its stream got there or bytes moved last; 0 lets it
    /// stand for ever.
    pub fn set_patience(&mut self, limit: Nanos) {
        self.patience.limit = limit;
    }

    /// Why the exchange at the front ends now, if it has stood still for too long; asked whenever something has happened, and at
    /// [`Comm::deadline`].
    pub fn late(&mut self, now: Nanos) -> Option<String> {
        let Patience { limit, standing } = self.patience;
        let front =
            self.ops.front().filter(|op| limit > 0 && op.reached && self.in_flight == 0 && self.broken.is_none());
        let Some(op) = front else {
            self.patience.standing = None;
            return None;
        };
        let done: u64 = op.sends.iter().chain(&op.receives).map(|p| p.done).sum();
        let since = match standing {
            Some((at, since)) if at == (op.flag, done) => since,
            _ => now,
        };
        self.patience.standing = Some(((op.flag, done), since));
        if now.saturating_sub(since) < limit {
            return None;
        }
        let absent: Vec<String> = self.absent().into_iter().map(|rank| rank.to_string()).collect();
        let who = match absent.as_slice() {
            [] => "its peers stand still".to_owned(),
            ranks => format!("rank {} has not come to it", ranks.join(", rank ")),
        };
        Some(format!(
            "an exchange of rank {} stood still for {} s (HCCL_EXEC_TIMEOUT): {who}",
            self.rank,
            limit / 1_000_000_000
        ))
    }

    /// When [`Comm::late`] must be asked again at the latest.
    pub fn deadline(&self) -> Option<Nanos> {
        self.patience.standing.map(|(_, since)| since.saturating_add(self.patience.limit))
    }

    /// Peers that have not got to the exchange at the front.
    fn absent(&self) -> Vec<usize> {
        let (Some(op), Some(member)) = (self.ops.front(), &self.member) else { return Vec::new() };
        let (segment, me) = (member.segment(), self.rank);
        let owes = |peer: usize| {
            op.sends.iter().any(|p| p.peer == peer && segment.wanted(me, peer) <= p.message)
                || op.receives.iter().any(|p| p.peer == peer && segment.offered(peer, me) <= p.message)
        };
        (0..self.ranks()).filter(|&peer| owes(peer)).collect()
    }
}

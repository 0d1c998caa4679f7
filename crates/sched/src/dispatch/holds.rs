//! Hold-backs: why each ready stream waits, since when, and when to look again.

use super::stream::Held;
use super::{Dispatcher, HoldReason, StreamKey, Token};
use crate::{Nanos, Phase, policy};

/// A hold-back that has ended: what counts once in [`Stats::holds`].
/// A hold-back that has ended: what counts once in [`Stats::holds`](super::Stats::holds).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HoldSpan {
    /// Whose next operator waited.
    pub stream: StreamKey,
    /// The operator.
    pub token: Token,
    /// Its phase.
    pub phase: Phase,
    /// Why.
    pub reason: HoldReason,
    /// From here …
    pub since: Nanos,
    /// … to here.
    pub ended: Nanos,
    /// Ended by the age bound.
    pub expired: bool,
}

impl Dispatcher {
    /// From now on every hold-back is noted when it ends, for [`Dispatcher::take_holds`].
    pub fn watch_holds(&mut self) {
        self.holds_watched = Some(Vec::new());
    }

    /// Hold-backs that ended since the last call.
    pub fn take_holds(&mut self) -> Vec<HoldSpan> {
        self.holds_watched.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Notes why each ready stream waits, and when to look again.
    pub(super) fn hold_the_rest(&mut self, now: Nanos) {
        self.wake = None;
        for i in 0..self.ready.len() {
            let index = self.ready[i];
            let Some(state) = self.streams[index].as_ref() else { continue };
            let Some(op) = state.next_op() else { continue };
            let (phase, token) = (op.phase, op.token);
            let hold = match self.tenant_hold(now, state) {
                Some((reason, until)) => policy::Hold { reason, until },
                None => self.policy.hold(now, &policy::Candidate { stream: index, state, op }),
            };
            if let Some(until) = hold.until {
                // Something that is due already is looked at a little later, not at once and forever.
                let until = until.max(now + 1);
                self.wake = Some(self.wake.map_or(until, |w| w.min(until)));
            }
            if state.held.is_none_or(|h| h.reason != hold.reason) {
                self.end_hold(now, index);
                if let Some(stream) = self.streams[index].as_mut() {
                    let (reason, until, expired) = (hold.reason, hold.until, false);
                    stream.held = Some(Held { phase, reason, since: now, until, expired, token });
                }
                self.stats.holds[hold.reason.index()].count += 1;
            } else if let Some(held) = self.streams[index].as_mut().and_then(|s| s.held.as_mut()) {
                held.until = hold.until;
            }
        }
    }

    pub(super) fn end_hold(&mut self, now: Nanos, index: usize) {
        let Some(stream) = self.streams[index].as_mut() else { return };
        let Some(held) = stream.held.take() else { return };
        if let Some(watched) = &mut self.holds_watched {
            let Held { phase, reason, since, expired, token, .. } = held;
            watched.push(HoldSpan { stream: stream.key, token, phase, reason, since, ended: now, expired });
        }
        let ns = now - held.since;
        let stats = &mut self.stats.holds[held.reason.index()];
        stats.total_ns += ns;
        stats.longest_ns = stats.longest_ns.max(ns);
        self.stats.held_ns[held.phase.index()] += ns;
    }
}

//! `quota`: weighted round robin, so many operators a round.
//!
//! A round dispatches at most `quota` operators, shared among sessions by weight; fractions of an operator carry over, so
//! that shares are exact in the long run within one round. With `share_in_idle` only sessions with work count, and a round
//! ends when the device has run dry of what it may dispatch: nobody waits for a session that has nothing ready. Without, a
//! round lasts `round_us`, and an idle session's part stays unused: a rate limit.
//!
//! What a session has no work for is lost, but for one operator. Bounds: a session of weight w among W is served every
//! ⌈W/(w·quota)⌉ rounds, and nothing waits beyond the age bound.

use super::{Board, Candidate, Choice, Hold, Policy, PolicyConfig, StreamIndex, StreamInfo};
use crate::dispatch::{HoldReason, Op, Stats};
use crate::{Nanos, nanos};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Debug, Default, Serialize, Deserialize)]
struct Share {
    weight: u32,
    streams: u32,
    /// Operators queued or in flight.
    pending: u64,
    /// Operators that it may still dispatch; the fraction is for later rounds.
    allowance: f64,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Quota {
    quota: u32,
    round: Nanos,
    share_in_idle: bool,
    age_max: Nanos,
    sessions: BTreeMap<u64, Share>,
    /// Session of each stream.
    streams: Vec<Option<u64>>,
    /// Dispatched in this round.
    spent: u32,
    ends: Nanos,
    /// Session that dispatched last: the next one in order of number goes next.
    last: u64,
}

impl Quota {
    pub fn new(config: &PolicyConfig) -> Self {
        Self {
            quota: config.quota,
            round: nanos(config.round_us * 1e-6),
            share_in_idle: config.share_in_idle,
            age_max: config.age_max(),
            sessions: BTreeMap::new(),
            streams: Vec::new(),
            spent: 0,
            ends: 0,
            last: 0,
        }
    }

    fn share_of(&mut self, stream: StreamIndex) -> Option<&mut Share> {
        self.sessions.get_mut(&(*self.streams.get(stream)?)?)
    }

    /// Begins a round; where rounds are no matter of time, as many as the ready session that is nearest to a whole operator
    /// needs.
    fn begin_round(&mut self, now: Nanos, board: &Board<'_>) {
        let share_in_idle = self.share_in_idle;
        (self.spent, self.ends) = (0, if share_in_idle { Nanos::MAX } else { now.saturating_add(self.round) });
        let counts = |s: &Share| !share_in_idle || s.pending > 0;
        let total: f64 = self.sessions.values().filter(|s| counts(s)).map(|s| f64::from(s.weight)).sum();
        if total == 0.0 {
            return;
        }
        let quota = f64::from(self.quota);
        // What a session had no work for is lost; what it only did not come to is not.
        let waited = quota + self.sessions.len() as f64;
        let carried = |s: &Share| s.allowance.min(if s.pending > 0 { waited } else { 1.0 });
        let mut rounds = 1.0;
        if share_in_idle {
            let ready = board.ready().filter_map(|c| self.sessions.get(&c.session()));
            let needed = ready
                .map(|s| ((1.0 - carried(s)) * total / (quota * f64::from(s.weight))).ceil())
                .fold(f64::INFINITY, f64::min);
            rounds = if needed.is_finite() { needed.max(1.0) } else { 1.0 };
        }
        for share in self.sessions.values_mut().filter(|s| counts(s)) {
            share.allowance = carried(share) + rounds * quota * f64::from(share.weight) / total;
        }
    }

    /// The next ready session in turn that has something left, its oldest operator.
    fn next(&self, board: &Board<'_>) -> Option<StreamIndex> {
        // Sums of fractions: an operator is an operator.
        const WHOLE: f64 = 1.0 - 1e-9;
        if self.spent >= self.quota {
            return None;
        }
        let left = |c: &Candidate<'_>| self.sessions.get(&c.session()).is_some_and(|s| s.allowance >= WHOLE);
        let turn = |c: &Candidate<'_>| (c.session().wrapping_sub(self.last.wrapping_add(1)), c.op.seq);
        board.ready().filter(left).min_by_key(turn).map(|c| c.stream)
    }
}

impl Policy for Quota {
    fn choose(&mut self, now: Nanos, board: &Board<'_>, _stats: &mut Stats) -> Option<Choice> {
        if board.ready.is_empty() {
            return None;
        }
        if now >= self.ends {
            self.begin_round(now, board);
        }
        if let Some(stream) = self.next(board) {
            return Some(Choice { stream, expired: false });
        }
        if self.share_in_idle && board.in_flight == 0 {
            self.begin_round(now, board);
            if let Some(stream) = self.next(board) {
                return Some(Choice { stream, expired: false });
            }
        }
        board.expired(now, self.age_max)
    }

    fn hold(&self, _now: Nanos, candidate: &Candidate<'_>) -> Hold {
        // A round that has no end in time ends with an operator.
        let until = (self.ends < Nanos::MAX).then_some(self.ends);
        Hold::aged(HoldReason::QuotaSpent, until, candidate, self.age_max)
    }

    fn opened(&mut self, stream: StreamIndex, info: &StreamInfo) {
        if self.streams.len() <= stream {
            self.streams.resize(stream + 1, None);
        }
        self.streams[stream] = Some(info.session);
        let share = self.sessions.entry(info.session).or_default();
        share.weight = info.weight.max(1);
        share.streams += 1;
    }

    fn closed(&mut self, stream: StreamIndex) {
        let Some(session) = self.streams.get_mut(stream).and_then(Option::take) else { return };
        if let Some(share) = self.sessions.get_mut(&session) {
            share.streams -= 1;
            if share.streams == 0 {
                self.sessions.remove(&session);
            }
        }
    }

    fn session_closed(&mut self, session: u64) {
        self.sessions.remove(&session);
        for of in self.streams.iter_mut().filter(|s| **s == Some(session)) {
            *of = None;
        }
    }

    fn pushed(&mut self, _now: Nanos, stream: StreamIndex, _op: &Op) {
        if let Some(share) = self.share_of(stream) {
            share.pending += 1;
        }
    }

    fn dropped(&mut self, _now: Nanos, stream: StreamIndex, _op: &Op) {
        if let Some(share) = self.share_of(stream) {
            share.pending -= 1;
        }
    }

    fn submitted(&mut self, _now: Nanos, stream: StreamIndex, _op: &Op) {
        self.spent += 1;
        if let Some(session) = self.streams.get(stream).copied().flatten() {
            self.last = session;
        }
        if let Some(share) = self.share_of(stream) {
            share.allowance -= 1.0;
        }
    }

    fn completed(&mut self, _now: Nanos, stream: StreamIndex, _op: &Op, _stats: &mut Stats) {
        if let Some(share) = self.share_of(stream) {
            share.pending -= 1;
        }
    }
}

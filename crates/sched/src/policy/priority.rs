//! `priority`: strict priority.
//!
//! An operator goes when nothing more important is ready or on the device: first by the session's priority (larger first),
//! then by the stream's (AscendCL's, 0 first), then, if configured, by phase. Among equals everything runs side by side,
//! oldest first. What the device holds is never taken back, so a lower operator delays a higher one by at most the
//! operators of one window.
//!
//! Strict priority starves whoever is below a busy class; the age bound is what lets one operator through.

use super::{Board, Candidate, Choice, First, Hold, Policy, PolicyConfig, StreamIndex, StreamInfo};
use crate::dispatch::{HoldReason, Op, Stats};
use crate::{Nanos, Phase};
use serde::{Deserialize, Serialize};
use std::cmp::Reverse;

/// Smaller goes first.
type Rank = (Reverse<u8>, u32, bool);

#[derive(Serialize, Deserialize)]
pub(super) struct Priority {
    first: First,
    age_max: Nanos,
    /// Priorities of each stream: the session's, its own.
    streams: Vec<(u8, u32)>,
    /// Rank of each operator that the device holds.
    flying: Vec<(StreamIndex, Rank)>,
}

impl Priority {
    pub fn new(config: &PolicyConfig) -> Self {
        Self { first: config.first, age_max: config.age_max(), streams: Vec::new(), flying: Vec::new() }
    }

    fn rank(&self, (session, stream): (u8, u32), phase: Phase) -> Rank {
        let behind = match self.first {
            First::None => false,
            First::Prefill => phase != Phase::Prefill,
            First::Decode => phase == Phase::Prefill,
        };
        (Reverse(session), stream, behind)
    }

    fn rank_of(&self, c: &Candidate<'_>) -> Rank {
        self.rank((c.session_priority(), c.stream_priority()), c.op.phase)
    }
}

impl Policy for Priority {
    fn choose(&mut self, now: Nanos, board: &Board<'_>, _stats: &mut Stats) -> Option<Choice> {
        let best = board.ready().min_by_key(|c| (self.rank_of(c), c.op.seq))?;
        let rank = self.rank_of(&best);
        if self.flying.iter().all(|&(_, other)| rank <= other) {
            // A stream's priority may have changed since it was opened.
            self.streams[best.stream] = (best.session_priority(), best.stream_priority());
            return Some(Choice { stream: best.stream, expired: false });
        }
        board.expired(now, self.age_max)
    }

    fn hold(&self, _now: Nanos, candidate: &Candidate<'_>) -> Hold {
        Hold::aged(HoldReason::LowerPriority, None, candidate, self.age_max)
    }

    fn opened(&mut self, stream: StreamIndex, info: &StreamInfo) {
        if self.streams.len() <= stream {
            self.streams.resize(stream + 1, (0, 0));
        }
        self.streams[stream] = (info.priority, info.stream_priority);
    }

    fn submitted(&mut self, _now: Nanos, stream: StreamIndex, op: &Op) {
        self.flying.push((stream, self.rank(self.streams[stream], op.phase)));
    }

    fn completed(&mut self, _now: Nanos, stream: StreamIndex, _op: &Op, _stats: &mut Stats) {
        if let Some(at) = self.flying.iter().position(|f| f.0 == stream) {
            self.flying.remove(at);
        }
    }
}

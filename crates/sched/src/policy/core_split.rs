//! `core-split`: prefill has a fixed part of the cores, everything else the rest.
//!
//! Both parts run side by side, each first come first served and one stream at a time, as if they were two smaller devices
//! that share the memory. The split itself is the device's work ([`crate::CoreSplit`], told by whoever applies the
//! configuration); it is static: a part whose phase has nothing to do stays idle. Published multiplexers do this with a
//! ratio chosen offline, which is what makes it a baseline.

use super::{Board, Candidate, Choice, Hold, Policy, StreamIndex};
use crate::dispatch::{HoldReason, Op, Stats};
use crate::{Nanos, Phase};
use serde::{Deserialize, Serialize};

/// Operators on one part of the cores, and their stream.
#[derive(Debug, Default, Clone, Copy, Serialize, Deserialize)]
struct Part {
    flying: u32,
    stream: StreamIndex,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct CoreSplit {
    /// Prefill's part, and the rest.
    parts: [Part; 2],
}

fn part(phase: Phase) -> usize {
    usize::from(phase != Phase::Prefill)
}

impl Policy for CoreSplit {
    fn choose(&mut self, _now: Nanos, board: &Board<'_>, _stats: &mut Stats) -> Option<Choice> {
        let oldest = |p| board.ready().filter(move |c| part(c.op.phase) == p).min_by_key(|c| c.op.seq);
        let free = |(p, c): (usize, Candidate<'_>)| {
            (self.parts[p].flying == 0 || self.parts[p].stream == c.stream).then_some(c.stream)
        };
        let stream = [0, 1].into_iter().filter_map(|p| Some((p, oldest(p)?))).find_map(free)?;
        Some(Choice { stream, expired: false })
    }

    fn hold(&self, _now: Nanos, _candidate: &Candidate<'_>) -> Hold {
        Hold { reason: HoldReason::Order, until: None }
    }

    fn submitted(&mut self, _now: Nanos, stream: StreamIndex, op: &Op) {
        let part = &mut self.parts[part(op.phase)];
        part.flying += 1;
        part.stream = stream;
    }

    fn completed(&mut self, _now: Nanos, _stream: StreamIndex, op: &Op, _stats: &mut Stats) {
        self.parts[part(op.phase)].flying -= 1;
    }
}

//! `passthrough`: submit everything as soon as it is ready.
//!
//! The device's own streams decide who runs beside whom: what an application without a scheduler gets, and the baseline
//! that interposition is measured against.

use super::{Board, Candidate, Choice, Hold, Policy};
use crate::dispatch::{HoldReason, Stats};
use crate::{Nanos, Phase};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
pub(super) struct Passthrough;

impl Policy for Passthrough {
    fn choose(&mut self, _now: Nanos, board: &Board<'_>, _stats: &mut Stats) -> Option<Choice> {
        // Oldest first, so that the device sees submission order.
        let candidate = board.ready().min_by_key(|c| c.op.seq)?;
        Some(Choice { stream: candidate.stream, expired: false })
    }

    fn hold(&self, _now: Nanos, _candidate: &Candidate<'_>) -> Hold {
        // Not asked: `choose` leaves nothing waiting.
        Hold { reason: HoldReason::Order, until: None }
    }

    fn window(&self, _phase: Phase, _mean_solo: f64, _configured: u32) -> u32 {
        u32::MAX
    }
}

//! `fifo`: global arrival order, one stream on the device at a time.
//!
//! An operator is submitted when it is the oldest one ready and the device holds nothing of any other stream; within a
//! stream the window keeps the device busy. This is what a device with one queue does, and the baseline for every policy
//! that looks further.

use super::{Board, Candidate, Choice, Hold, Policy};
use crate::Nanos;
use crate::dispatch::{HoldReason, Stats};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
pub(super) struct Fifo;

impl Policy for Fifo {
    fn choose(&mut self, _now: Nanos, board: &Board<'_>, _stats: &mut Stats) -> Option<Choice> {
        let oldest = board.ready().min_by_key(|c| c.op.seq)?;
        let alone = oldest.in_flight() as usize == board.in_flight;
        alone.then_some(Choice { stream: oldest.stream, expired: false })
    }

    fn hold(&self, _now: Nanos, _candidate: &Candidate<'_>) -> Hold {
        Hold { reason: HoldReason::Order, until: None }
    }
}

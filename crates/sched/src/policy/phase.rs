//! Placeholder while the policy is being written: behaves as fifo.
use super::{Board, Candidate, Choice, Hold, Policy};
use crate::Nanos;
use crate::dispatch::Stats;
pub(super) struct PhasePolicy(super::fifo::Fifo);
impl PhasePolicy {
    pub fn new(_config: &super::PolicyConfig, _requests: usize) -> Self {
        Self(super::fifo::Fifo)
    }
}
impl Policy for PhasePolicy {
    fn choose(&mut self, now: Nanos, board: &Board<'_>, stats: &mut Stats) -> Option<Choice> {
        self.0.choose(now, board, stats)
    }
    fn hold(&self, now: Nanos, candidate: &Candidate<'_>) -> Hold {
        self.0.hold(now, candidate)
    }
}

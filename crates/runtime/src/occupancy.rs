//! How busy the device is, and for how long both phases were on it: integrals over time, moved on at every submission and
//! completion. A few additions an operator.

use sched::{Nanos, Phase};
use serde::Serialize;

/// Time in which the device held something.
#[derive(Clone, Copy, Debug, Default)]
pub struct Occupancy {
    flying: [u32; 4],
    since: Nanos,
    busy_ns: Nanos,
    both_ns: Nanos,
}

/// [`Occupancy`] as status shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct OccupancySnapshot {
    /// Time in which the device held anything, nanoseconds.
    pub busy_ns: Nanos,
    /// Of it, time in which it held operators of prefill and of decode.
    pub both_ns: Nanos,
}

impl Occupancy {
    fn advance(&mut self, now: Nanos) {
        let elapsed = now.saturating_sub(self.since);
        self.since = self.since.max(now);
        if self.flying != [0; 4] {
            self.busy_ns += elapsed;
            if self.flying[Phase::Prefill.index()] > 0 && self.flying[Phase::Decode.index()] > 0 {
                self.both_ns += elapsed;
            }
        }
    }

    /// The device got a command.
    pub fn begins(&mut self, now: Nanos, phase: Phase) {
        self.advance(now);
        self.flying[phase.index()] += 1;
    }

    /// The device is through with one.
    pub fn ends(&mut self, now: Nanos, phase: Phase) {
        self.advance(now);
        self.flying[phase.index()] -= 1;
    }

    /// Commands of each phase that the device holds.
    pub fn flying(&self) -> [u32; 4] {
        self.flying
    }

    /// Up to `now`.
    pub fn snapshot(&self, now: Nanos) -> OccupancySnapshot {
        let mut upto = *self;
        upto.advance(now);
        OccupancySnapshot { busy_ns: upto.busy_ns, both_ns: upto.both_ns }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_counts_while_something_runs_and_twice_over_is_not_twice() {
        let mut o = Occupancy::default();
        o.begins(10, Phase::Decode);
        o.begins(20, Phase::Decode);
        o.begins(30, Phase::Prefill);
        assert_eq!(o.snapshot(35), OccupancySnapshot { busy_ns: 25, both_ns: 5 });
        o.ends(40, Phase::Decode);
        o.ends(50, Phase::Decode);
        o.ends(70, Phase::Prefill);
        assert_eq!(o.flying(), [0; 4]);
        assert_eq!(o.snapshot(100), OccupancySnapshot { busy_ns: 60, both_ns: 20 });
    }
}

//! The device of a world in virtual time: it takes what operators really need, whatever the dispatcher was told.

use sched::{CoRun, Demand, Nanos, Phase, StreamKey, Token, corun};
use std::collections::{BTreeMap, VecDeque};

pub(super) struct Running {
    pub token: Token,
    pub left: f64,
    pub demand: Demand,
    pub phase: Phase,
}

/// Streams in order, heads side by side, at the rates of the contention model.
pub(super) struct Device {
    pub corun: CoRun,
    at: Nanos,
    pub streams: BTreeMap<StreamKey, VecDeque<Running>>,
    /// Time with anything to do, and what was completed in it: seconds of cube, vector, HBM, and alone.
    pub busy: Nanos,
    pub done: [f64; 4],
}

impl Device {
    pub fn new(corun: CoRun) -> Self {
        Self { corun, at: 0, streams: BTreeMap::new(), busy: 0, done: [0.0; 4] }
    }

    fn rates(&self) -> Vec<f64> {
        let heads: Vec<_> = self.streams.values().filter_map(|q| q.front()).map(|r| (r.demand, r.phase)).collect();
        corun::rates(&heads, &self.corun)
    }

    pub fn next(&self) -> Option<Nanos> {
        let heads = self.streams.values().filter_map(|q| q.front());
        heads.zip(self.rates()).map(|(r, rate)| self.at + (r.left / rate).ceil() as Nanos).min()
    }

    pub fn advance(&mut self, to: Nanos) {
        let rates = self.rates();
        let dt = (to - self.at) as f64;
        self.busy += if self.streams.is_empty() { 0 } else { to - self.at };
        self.at = to;
        for (r, rate) in self.streams.values_mut().filter_map(|q| q.front_mut()).zip(rates) {
            r.left -= rate * dt;
        }
    }

    pub fn take_completed(&mut self) -> Vec<(StreamKey, Token)> {
        let mut out = Vec::new();
        for (key, queue) in &mut self.streams {
            if queue.front().is_some_and(|r| r.left < 1e-3) {
                let done = queue.pop_front().expect("checked");
                let Demand { cube, vector, hbm, solo_s, .. } = done.demand;
                for (sum, part) in self.done.iter_mut().zip([cube, vector, hbm, solo_s]) {
                    *sum += part;
                }
                out.push((*key, done.token));
            }
        }
        self.streams.retain(|_, q| !q.is_empty());
        out
    }
}

//! A model step as weighed operators.

use std::collections::HashMap;
use std::rc::Rc;

use sched::calls::{self, Batch};
use sched::model::Model;
use sched::{Demand, Nanos, OpClass, Profile, Work, work};

/// One operator, or a run of them handed over as one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Op {
    /// Time alone.
    pub solo: Nanos,
    /// Need of each resource.
    pub demand: Demand,
    /// Crosses the host link.
    pub transfer: bool,
    /// Launches that it stands for.
    pub count: u32,
}

impl Op {
    /// This one and the next as one: as long alone, and with the same use of each resource in sum.
    #[must_use]
    pub fn then(self, next: Self) -> Self {
        let (a, b) = (self.demand, next.demand);
        let demand = Demand {
            cube: a.cube + b.cube,
            vector: a.vector + b.vector,
            hbm: a.hbm + b.hbm,
            static_s: a.static_s + b.static_s,
            solo_s: a.solo_s + b.solo_s,
        };
        Self {
            solo: self.solo + next.solo,
            demand,
            transfer: self.transfer && next.transfer,
            count: self.count + next.count,
        }
    }
}

/// All of `ops` as one.
pub fn whole(ops: &[Op]) -> Op {
    let mut all = ops[0];
    ops[1..].iter().for_each(|op| all = all.then(*op));
    all
}

/// Weighs the steps of one model on one device profile.
///
/// Operators other than attention depend on the number of tokens and output rows alone and are weighed once for each;
/// attention is weighed for every step from the sequences' lengths.
pub struct Weigher {
    model: Model,
    profile: Profile,
    known: HashMap<(u64, u64), Rc<[Op]>>,
}

/// Where attention stands among the operators of a layer, and how many a layer has.
const ATTENTION: (usize, usize) = (4, 11);
/// Operators before the first layer, the copy in included.
const PROLOGUE: usize = 5;

impl Weigher {
    /// For `model` on `profile`.
    pub fn new(model: Model, profile: Profile) -> Self {
        Self { model, profile, known: HashMap::new() }
    }

    fn op(&self, work: &Work) -> Op {
        Op {
            solo: self.profile.solo(work),
            demand: self.profile.demand(work),
            transfer: work.class == OpClass::Copy,
            count: 1,
        }
    }

    /// The operators of a step, in order: the copy of its inputs, the model, the copy of the chosen tokens. `rows` of its
    /// tokens go through the output layer.
    pub fn step(&mut self, batch: &Batch, rows: u64) -> Vec<Op> {
        let tokens = batch.tokens();
        if !self.known.contains_key(&(tokens, rows)) {
            // Token, position, slot and row indices; block tables add little.
            let mut ops = vec![self.op(&Work::host_copy(4 * (3 * tokens + rows)))];
            let placeholder = Batch { queries: vec![tokens], contexts: vec![tokens], paged: false };
            ops.extend(calls::step(&self.model, &placeholder, rows).iter().map(|call| self.op(&work(call))));
            if rows > 0 {
                ops.push(self.op(&Work::host_copy(4 * rows)));
            }
            self.known.insert((tokens, rows), ops.into());
        }
        let mut ops = self.known[&(tokens, rows)].to_vec();
        let attention = self.op(&work(&calls::attention(&self.model, batch)));
        for layer in 0..self.model.layers as usize {
            ops[PROLOGUE + ATTENTION.1 * layer + ATTENTION.0] = attention;
        }
        ops
    }

    /// Time alone of a whole prompt.
    pub fn prefill_alone(&mut self, prompt: u32) -> Nanos {
        whole(&self.step(&Batch::prefill(u64::from(prompt)), 1)).solo
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_weighs_what_its_calls_weigh() {
        let (model, profile) = (Model::QWEN2_5_7B, Profile::A910B3);
        let mut weigher = Weigher::new(model, profile);
        for batch in [
            Batch::prefill(300),
            Batch::decode(3, 900),
            Batch { queries: vec![1, 1, 200], contexts: vec![50, 80, 900], paged: true },
            Batch::decode(3, 901),
        ] {
            let rows = batch.queries.len() as u64;
            let calls = calls::step(&model, &batch, rows);
            let want: Nanos = calls.iter().map(|c| profile.solo(&work(c))).sum();
            let ops = weigher.step(&batch, rows);
            assert_eq!(ops.len(), calls.len() + 2);
            let got = whole(&ops[1..ops.len() - 1]).solo;
            assert_eq!(got, want, "{batch:?}");
            assert!(ops[0].transfer && !ops[1].transfer);
        }
    }

    #[test]
    fn a_whole_step_keeps_time_and_demand() {
        let mut weigher = Weigher::new(Model::QWEN2_5_7B, Profile::A910B3);
        let ops = weigher.step(&Batch::decode(8, 1000), 8);
        let all = whole(&ops);
        assert_eq!(all.solo, ops.iter().map(|op| op.solo).sum::<Nanos>());
        let hbm: f64 = ops.iter().map(|op| op.demand.hbm).sum();
        assert!((all.demand.hbm / hbm - 1.0).abs() < 1e-12 && all.count as usize == ops.len() && !all.transfer);
    }
}

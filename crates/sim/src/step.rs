//! A model step as weighed operators.

use std::collections::HashMap;
use std::rc::Rc;

use sched::calls::{self, Batch};
use sched::model::Model;
use sched::{Demand, Label, Nanos, OpClass, Profile, Work, work};

/// One operator, or a run of them handed over as one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Op {
    /// Time alone.
    pub solo: Nanos,
    /// Need of each resource.
    pub demand: Demand,
    /// What it is called.
    pub label: Label,
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
            label: Label::STEP,
            transfer: self.transfer && next.transfer,
            count: self.count + next.count,
        }
    }

    /// So many of this one after the other as one.
    #[must_use]
    fn times(self, count: u32) -> Self {
        let Demand { cube, vector, hbm, static_s, solo_s } = self.demand;
        let [cube, vector, hbm, static_s, solo_s] =
            [cube, vector, hbm, static_s, solo_s].map(|part| part * f64::from(count));
        let demand = Demand { cube, vector, hbm, static_s, solo_s };
        Self { solo: self.solo * Nanos::from(count), demand, count: self.count * count, ..self }
    }
}

/// The operators of a step, in order. A model's layers are alike, so one layer stands for all of them.
#[derive(Clone, Debug)]
pub struct Step {
    shape: Rc<Shape>,
    attention: Op,
    /// Handed over as one operator instead.
    one: Option<Op>,
}

/// What depends on the number of tokens and output rows alone: everything but attention.
#[derive(Debug)]
struct Shape {
    before: Vec<Op>,
    layer: Vec<Op>,
    layers: usize,
    after: Vec<Op>,
    /// All of it but attention as one.
    rest: Op,
}

impl Step {
    /// The step as one operator that takes so long.
    pub fn merged(self, solo: Nanos) -> Self {
        let one = Some(Op { solo, ..self.whole() });
        Self { one, ..self }
    }

    /// Operators.
    #[allow(clippy::len_without_is_empty, reason = "no step is empty")]
    pub fn len(&self) -> usize {
        let Shape { before, layer, layers, after, .. } = &*self.shape;
        if self.one.is_some() { 1 } else { before.len() + layer.len() * layers + after.len() }
    }

    /// The operator at `index`.
    ///
    /// # Panics
    /// Beyond the last one.
    pub fn op(&self, index: usize) -> &Op {
        let Shape { before, layer, layers, after, .. } = &*self.shape;
        if let Some(one) = &self.one {
            assert_eq!(index, 0, "one operator");
            return one;
        }
        let Some(inner) = index.checked_sub(before.len()) else { return &before[index] };
        match inner.checked_sub(layer.len() * layers) {
            Some(last) => &after[last],
            None if inner % layer.len() == ATTENTION => &self.attention,
            None => &layer[inner % layer.len()],
        }
    }

    /// Its operators in order.
    pub fn ops(&self) -> impl Iterator<Item = &Op> {
        (0..self.len()).map(|index| self.op(index))
    }

    /// All operators as one.
    pub fn whole(&self) -> Op {
        self.one.unwrap_or_else(|| self.shape.rest.then(self.attention.times(self.shape.layers as u32)))
    }
}

/// Weighs the steps of one model on one device profile.
///
/// Operators other than attention depend on the number of tokens and output rows alone and are weighed once for each;
/// attention is weighed for every step from the sequences' lengths.
pub struct Weigher {
    model: Model,
    profile: Profile,
    known: HashMap<(u64, u64), Rc<Shape>>,
}

/// Where attention stands among the operators of a layer, and how many a layer has.
const ATTENTION: usize = 4;
const LAYER: usize = 11;
/// Operators of the model before the first layer.
const PROLOGUE: usize = 4;

impl Weigher {
    /// For `model` on `profile`.
    pub fn new(model: Model, profile: Profile) -> Self {
        Self { model, profile, known: HashMap::new() }
    }

    fn op(&self, work: &Work, label: Label) -> Op {
        Op {
            solo: self.profile.solo(work),
            demand: self.profile.demand(work),
            label,
            transfer: work.class == OpClass::Copy,
            count: 1,
        }
    }

    fn shape(&self, tokens: u64, rows: u64) -> Shape {
        let placeholder = Batch { queries: vec![tokens], contexts: vec![tokens], paged: false };
        let calls = calls::step(&Model { layers: 1, ..self.model }, &placeholder, rows);
        let ops: Vec<Op> = calls.iter().map(|call| self.op(&work(call), Label::op(call.op))).collect();
        // Token, position, slot and row indices; block tables add little.
        let mut before = vec![self.op(&Work::host_copy(4 * (3 * tokens + rows)), Label::COPY_IN)];
        before.extend(&ops[..PROLOGUE]);
        let layer = ops[PROLOGUE..PROLOGUE + LAYER].to_vec();
        let mut after = ops[PROLOGUE + LAYER..].to_vec();
        if rows > 0 {
            after.push(self.op(&Work::host_copy(4 * rows), Label::COPY_OUT));
        }
        let layers = self.model.layers as usize;
        let others = layer.iter().enumerate().filter(|(i, _)| *i != ATTENTION).map(|(_, op)| op.times(layers as u32));
        let rest = before[1..].iter().chain(&after).copied().chain(others).fold(before[0], Op::then);
        Shape { before, layer, layers, after, rest }
    }

    /// The operators of a step: the copy of its inputs, the model, the copy of the chosen tokens. `rows` of its
    /// tokens go through the output layer.
    pub fn step(&mut self, batch: &Batch, rows: u64) -> Step {
        let tokens = batch.tokens();
        let shape = match self.known.get(&(tokens, rows)) {
            Some(shape) => shape.clone(),
            None => {
                let shape = Rc::new(self.shape(tokens, rows));
                self.known.insert((tokens, rows), shape.clone());
                shape
            }
        };
        let call = calls::attention(&self.model, batch);
        Step { shape, attention: self.op(&work(&call), Label::op(call.op)), one: None }
    }

    /// Time alone of a whole prompt.
    pub fn prefill_alone(&mut self, prompt: u32) -> Nanos {
        self.step(&Batch::prefill(u64::from(prompt)), 1).whole().solo
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_weighs_what_its_calls_weigh() {
        let (model, profile) = (Model::QWEN2_5_7B, Profile::A910B3);
        let mut weigher = Weigher::new(model, profile);
        for (batch, rows) in [
            (Batch::prefill(300), 1),
            (Batch::prefill(300), 0),
            (Batch::decode(3, 900), 3),
            (Batch { queries: vec![1, 1, 200], contexts: vec![50, 80, 900], paged: true }, 3),
            (Batch::decode(3, 901), 3),
        ] {
            let step = weigher.step(&batch, rows);
            let want: Vec<Nanos> = calls::step(&model, &batch, rows).iter().map(|c| profile.solo(&work(c))).collect();
            let copies = if rows > 0 { 2 } else { 1 };
            assert_eq!(step.len(), want.len() + copies, "{batch:?}");
            let got: Vec<Nanos> = step.ops().skip(1).take(want.len()).map(|op| op.solo).collect();
            assert_eq!(got, want, "{batch:?}");
            assert!(step.op(0).transfer && !step.op(1).transfer && step.op(step.len() - 1).transfer == (rows > 0));
        }
    }

    #[test]
    fn a_whole_step_keeps_time_and_demand() {
        let mut weigher = Weigher::new(Model::QWEN2_5_7B, Profile::A910B3);
        let step = weigher.step(&Batch::decode(8, 1000), 8);
        let all = step.whole();
        assert_eq!(all.solo, step.ops().map(|op| op.solo).sum::<Nanos>());
        let hbm: f64 = step.ops().map(|op| op.demand.hbm).sum();
        assert!((all.demand.hbm / hbm - 1.0).abs() < 1e-12 && all.count as usize == step.len() && !all.transfer);
        let merged = step.merged(7);
        assert_eq!((merged.len(), merged.op(0).solo, merged.op(0).count), (1, 7, all.count));
    }
}

//! What operators really take: alone, against the prediction, and side by side, against alone.
//!
//! **Alone.** For each phase and size (a power of two of the predicted time) an average of measured over predicted time,
//! over operators that had the device for themselves. It corrects later predictions of the same phase and size.
//!
//! **Side by side.** How fast prefill and decode each run beside the other, relative to alone, as a decaying ratio of sums.
//! An operator counts for the part of its time in which exactly one stream of each phase was busy; what it did alone is
//! taken off. So a belief can be corrected without ever co-running on purpose: operators overlap at every change of turn.
//! Averages of a mix that is gone are forgotten ([`Learner::forget_rates`]).
//!
//! An operator starts when it is submitted or when the one before it on its stream completes. Two running integrals, the
//! time in which one stream was busy and the time in which one of each phase was, tell what an operator met on its way
//! without looking at any other: O(1) an event, and no allocation once the queues have grown.

use super::StreamIndex;
use crate::dispatch::{Op, SIZES, Stats, size};
use crate::{Nanos, Phase};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Bounds of a correction. Beyond them something else than the model is off, and it is better not to follow.
const RATIO: (f64, f64) = (0.25, 4.0);
/// Operators of a phase and size before the correction is used.
const SAMPLES_MIN: u32 = 4;
/// Weight of the newest operator in the average.
const NEWEST: f64 = 1.0 / 32.0;
/// Time side by side, over an operator's whole time, from which it says something about co-running.
const PAIRED_MIN: f64 = 0.25;
/// Part that one operator keeps in the sums of co-running, per operator that follows.
const PAIR_DECAY: f64 = 1.0 - 1.0 / 256.0;
/// Operators of each phase before the rates are used: a few changes of turn.
const PAIR_SAMPLES_MIN: u32 = 8;
/// Bounds of a learnt rate: a phase that got nothing would never be measured again.
const RATE: (f64, f64) = (0.05, 1.0);

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Ratio {
    value: f64,
    samples: u32,
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Pair {
    /// Work done side by side, in time alone, and the time it took.
    work: f64,
    took: f64,
    samples: u32,
}

/// Integrals at the moment an operator began.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Mark {
    at: Nanos,
    alone: Nanos,
    paired: Nanos,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Flying {
    phase: Phase,
    solo: Nanos,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Track {
    flying: VecDeque<Flying>,
    /// Of the operator at the head.
    began: Mark,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Learner {
    ratios: [[Ratio; SIZES]; 4],
    pairs: [Pair; 2],
    tracks: Vec<Track>,
    /// Streams whose running operator has this phase.
    busy: [u32; 4],
    mark: Mark,
}

/// Which of the pair a phase is.
fn side(phase: Phase) -> Option<usize> {
    match phase {
        Phase::Prefill => Some(0),
        Phase::Decode => Some(1),
        Phase::Unknown | Phase::Mixed => None,
    }
}

impl Learner {
    pub fn new() -> Self {
        Self {
            ratios: [[Ratio { value: 1.0, samples: 0 }; SIZES]; 4],
            pairs: [Pair::default(); 2],
            tracks: Vec::new(),
            busy: [0; 4],
            mark: Mark::default(),
        }
    }

    /// Time alone to expect of an operator that is predicted to take `solo`.
    pub fn expected(&self, phase: Phase, solo: Nanos) -> Nanos {
        let ratio = self.ratios[phase.index()][size(solo)];
        if ratio.samples < SAMPLES_MIN { solo } else { (solo as f64 * ratio.value) as Nanos }
    }

    /// Rates of prefill and of decode beside each other, 1 = as fast as alone; `None` while too little was seen.
    pub fn rates(&self) -> Option<(f64, f64)> {
        let rate = |p: Pair| (p.work / p.took).clamp(RATE.0, RATE.1);
        let seen = self.pairs.iter().all(|p| p.samples >= PAIR_SAMPLES_MIN && p.took > 0.0);
        seen.then(|| (rate(self.pairs[0]), rate(self.pairs[1])))
    }

    /// Forgets how fast the phases run beside each other.
    pub fn forget_rates(&mut self) {
        self.pairs = [Pair::default(); 2];
    }

    /// An operator went to the device.
    pub fn submitted(&mut self, now: Nanos, stream: StreamIndex, op: &Op) {
        self.advance(now);
        if self.tracks.len() <= stream {
            self.tracks.resize_with(stream + 1, Track::default);
        }
        let track = &mut self.tracks[stream];
        if track.flying.is_empty() {
            track.began = self.mark;
            self.busy[op.phase.index()] += 1;
        }
        track.flying.push_back(Flying { phase: op.phase, solo: op.solo });
    }

    /// The stream's oldest operator on the device completed.
    pub fn completed(&mut self, now: Nanos, stream: StreamIndex, stats: &mut Stats) {
        self.advance(now);
        let Some(track) = self.tracks.get_mut(stream) else { return };
        let Some(op) = track.flying.pop_front() else { return };
        let began = std::mem::replace(&mut track.began, self.mark);
        self.busy[op.phase.index()] -= 1;
        if let Some(next) = track.flying.front() {
            self.busy[next.phase.index()] += 1;
        }
        let took = self.mark.at - began.at;
        let (alone, paired) = (self.mark.alone - began.alone, self.mark.paired - began.paired);
        if op.solo == 0 || took == 0 {
            return;
        }
        if alone == took {
            self.learn_alone(op, took, stats);
        } else if alone + paired == took
            && paired as f64 >= PAIRED_MIN * took as f64
            && let Some(side) = side(op.phase)
        {
            let work = self.expected(op.phase, op.solo).saturating_sub(alone);
            let pair = &mut self.pairs[side];
            pair.work = pair.work * PAIR_DECAY + work as f64;
            pair.took = pair.took * PAIR_DECAY + paired as f64;
            pair.samples = pair.samples.saturating_add(1);
        }
    }

    fn learn_alone(&mut self, op: Flying, took: Nanos, stats: &mut Stats) {
        let expected = self.expected(op.phase, op.solo);
        let p = &mut stats.predictions[op.phase.index()][size(op.solo)];
        p.add(took, op.solo, expected);
        let measured = took as f64 / op.solo as f64;
        p.out_of_range += u64::from(!(RATIO.0..=RATIO.1).contains(&measured));
        let ratio = &mut self.ratios[op.phase.index()][size(op.solo)];
        ratio.samples = ratio.samples.saturating_add(1);
        let weight = NEWEST.max(1.0 / f64::from(ratio.samples));
        ratio.value += weight * (measured.clamp(RATIO.0, RATIO.1) - ratio.value);
    }

    /// Brings the integrals up to `now`.
    fn advance(&mut self, now: Nanos) {
        let [unknown, prefill, decode, mixed] = self.busy;
        let passed = now.saturating_sub(self.mark.at);
        self.mark.at += passed;
        match (unknown + mixed + prefill + decode, prefill, decode) {
            (1, ..) => self.mark.alone += passed,
            (2, 1, 1) => self.mark.paired += passed,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Demand;

    const US: Nanos = 1_000;

    fn op(phase: Phase, solo: Nanos) -> Op {
        Op { token: 0, solo, demand: Demand::default(), phase, label: Default::default(), seq: 0, pushed: 0 }
    }

    #[test]
    fn measured_time_alone_corrects_predictions_of_that_phase_and_size() {
        let (mut l, mut stats) = (Learner::new(), Stats::default());
        for i in 0..10 {
            l.submitted(i * 300 * US, 0, &op(Phase::Decode, 100 * US));
            l.completed(i * 300 * US + 150 * US, 0, &mut stats);
        }
        for (phase, solo, want) in [
            (Phase::Decode, 100 * US, 150 * US),
            (Phase::Decode, 120 * US, 180 * US),
            (Phase::Decode, 400 * US, 400 * US),
            (Phase::Prefill, 100 * US, 100 * US),
        ] {
            assert!(l.expected(phase, solo).abs_diff(want) <= 1, "{phase:?} {solo}: {}", l.expected(phase, solo));
        }
        let p = stats.predicted(Phase::Decode);
        assert_eq!(stats.predictions[Phase::Decode.index()][size(100 * US)], p, "in one size");
        assert_eq!((p.samples, p.measured_ns, p.error_ns), (10, 1_500 * US, 500 * US));
        assert_eq!(p.corrected_error_ns, 200 * US, "four operators until the correction is used");
        let (error, corrected) = p.mean_relative_errors();
        assert!((error - 1.0 / 3.0).abs() < 1e-5 && (corrected - 4.0 / 30.0).abs() < 1e-5, "{error} {corrected}");
    }

    #[test]
    fn corrections_are_bounded_and_what_is_beyond_is_counted() {
        let (mut l, mut stats) = (Learner::new(), Stats::default());
        for i in 0..10 {
            l.submitted(i * 2_000 * US, 0, &op(Phase::Prefill, 100 * US));
            l.completed(i * 2_000 * US + 1_000 * US, 0, &mut stats);
        }
        assert_eq!(l.expected(Phase::Prefill, 100 * US), 400 * US);
        assert_eq!(stats.predicted(Phase::Prefill).out_of_range, 10);
    }

    #[test]
    fn operators_behind_one_another_are_measured_one_by_one() {
        let (mut l, mut stats) = (Learner::new(), Stats::default());
        for _ in 0..8 {
            l.submitted(0, 0, &op(Phase::Decode, 100 * US));
        }
        for i in 1..=8 {
            l.completed(i * 200 * US, 0, &mut stats);
        }
        assert!(l.expected(Phase::Decode, 100 * US).abs_diff(200 * US) <= 1);
    }

    #[test]
    fn overlaps_tell_how_fast_the_phases_run_side_by_side() {
        let (mut l, mut stats) = (Learner::new(), Stats::default());
        // Prefill alone for 60 µs, then both: prefill at 0.4, decode at 0.5, as long as decode takes.
        let mut now = 0;
        for round in 0..40 {
            assert_eq!(l.rates().is_some(), round >= 8, "{round}");
            l.submitted(now, 0, &op(Phase::Prefill, 140 * US));
            l.submitted(now + 60 * US, 1, &op(Phase::Decode, 100 * US));
            now += 260 * US;
            l.completed(now, 1, &mut stats);
            l.completed(now, 0, &mut stats);
        }
        let (prefill, decode) = l.rates().expect("seen");
        assert!((prefill - 0.4).abs() < 1e-6 && (decode - 0.5).abs() < 1e-6, "{prefill} and {decode}");
        assert_eq!(stats.predicted(Phase::Decode).samples, 0, "nothing ran alone");
        l.forget_rates();
        assert_eq!(l.rates(), None);
    }

    #[test]
    fn a_third_stream_spoils_the_sample() {
        let (mut l, mut stats) = (Learner::new(), Stats::default());
        for i in 0..100 {
            let now = i * 1_000 * US;
            for (stream, phase) in [(0, Phase::Prefill), (1, Phase::Decode), (2, Phase::Unknown)] {
                l.submitted(now, stream, &op(phase, 100 * US));
            }
            for stream in 0..3 {
                l.completed(now + 300 * US, stream, &mut stats);
            }
        }
        assert_eq!(l.rates(), None);
    }
}

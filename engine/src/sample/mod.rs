//! Choosing a token from logits on the host: temperature, top-k, top-p, log-probabilities.
//!
//! Greedy requests without log-probabilities never come here; the device chooses for them.
//!
//! **Invariant:** the choice depends on the logits, the parameters, the request's seed and the position in the output, on
//! nothing else. There is no generator state to carry: each position of each request has its own stream of numbers, so
//! batch composition and recomputation cannot change a sequence.
//!
//! Cost: one pass over the vocabulary; with top-k or top-p, a selection of the most likely few besides.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::core::{Logprobs, SamplingParams, TokenLogprob};

/// Candidates sorted first when only top-p limits their number: enough for nearly every distribution.
const TOP_P_FIRST: usize = 256;

/// A token and what the request asked to know about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// Token.
    pub token: u32,
    /// Present if the request asked.
    pub logprobs: Option<Logprobs>,
}

/// Scratch space for choosing; one a loop.
#[derive(Debug, Default)]
pub struct Sampler {
    scores: Vec<f32>,
    order: Vec<u32>,
}

impl Sampler {
    /// Chooses the token at position `generated` of a request's output. `forbidden` cannot be chosen.
    ///
    /// # Panics
    /// If `logits` is empty.
    pub fn choose(
        &mut self,
        logits: &[f32],
        params: &SamplingParams,
        seed: u64,
        generated: usize,
        forbidden: &[u32],
    ) -> Choice {
        assert!(!logits.is_empty(), "a vocabulary");
        self.scores.clear();
        self.scores.extend_from_slice(logits);
        for &token in forbidden {
            if let Some(score) = self.scores.get_mut(token as usize) {
                *score = f32::NEG_INFINITY;
            }
        }
        let token = if params.temperature <= 0.0 {
            first_maximum(&self.scores)
        } else {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(generated as u64);
            self.draw(params, rng.random::<f64>())
        };
        Choice { token, logprobs: params.logprobs.map(|top| self.logprobs(logits, token, top)) }
    }

    /// Draws by `uniform` in [0, 1).
    fn draw(&mut self, params: &SamplingParams, uniform: f64) -> u32 {
        let top = self.scores[first_maximum(&self.scores) as usize];
        let inverse = 1.0 / f64::from(params.temperature);
        let weight = |score: f32| ((f64::from(score) - f64::from(top)) * inverse).exp();
        let vocab = self.scores.len();
        let k = usize::try_from(params.top_k).ok().filter(|&k| k > 0).map_or(vocab, |k| k.min(vocab));
        if k == vocab && params.top_p >= 1.0 {
            let total: f64 = self.scores.iter().map(|&s| weight(s)).sum();
            return pick((0..vocab as u32).map(|t| (t, weight(self.scores[t as usize]))), uniform * total);
        }
        let mut sorted = k.min(TOP_P_FIRST);
        if params.top_p >= 1.0 {
            sorted = k;
        }
        // Mass that top-p is a share of: what top-k leaves.
        let total: f64 = if k == vocab {
            self.scores.iter().map(|&s| weight(s)).sum()
        } else {
            self.sort_first(k);
            self.order[..k].iter().map(|&t| weight(self.scores[t as usize])).sum()
        };
        loop {
            self.sort_first(sorted);
            let mut mass = 0.0;
            let wanted = params.top_p.min(1.0);
            let reached = self.order[..sorted].iter().position(|&t| {
                mass += weight(self.scores[t as usize]);
                mass >= f64::from(wanted) * total
            });
            if reached.is_some() || sorted == k {
                let kept = reached.map_or(sorted, |last| last + 1);
                let kept = self.order[..kept].iter().map(|&t| (t, weight(self.scores[t as usize])));
                return pick(kept, uniform * mass);
            }
            sorted = (sorted * 8).min(k);
        }
    }

    /// Puts the `count` most likely tokens first in `order`, most likely first; equals by number.
    fn sort_first(&mut self, count: usize) {
        self.order.clear();
        self.order.extend(0..self.scores.len() as u32);
        let scores = &self.scores;
        let before = |a: &u32, b: &u32| scores[*b as usize].total_cmp(&scores[*a as usize]).then(a.cmp(b));
        if count < self.order.len() && count > 0 {
            self.order.select_nth_unstable_by(count - 1, before);
        }
        self.order[..count].sort_unstable_by(before);
    }

    fn logprobs(&mut self, logits: &[f32], token: u32, top: usize) -> Logprobs {
        self.scores.clear();
        self.scores.extend_from_slice(logits);
        let most = f64::from(logits[first_maximum(logits) as usize]);
        let sum: f64 = logits.iter().map(|&l| (f64::from(l) - most).exp()).sum();
        let logprob = |t: u32| (f64::from(logits[t as usize]) - most - sum.ln()) as f32;
        let top = top.min(logits.len());
        self.sort_first(top);
        Logprobs {
            chosen: logprob(token),
            top: self.order[..top].iter().map(|&id| TokenLogprob { id, logprob: logprob(id) }).collect(),
        }
    }
}

/// The first token whose cumulative weight exceeds `threshold`; the last possible one if rounding leaves none.
fn pick(weights: impl Iterator<Item = (u32, f64)>, threshold: f64) -> u32 {
    let mut sum = 0.0;
    let mut last = 0;
    for (token, weight) in weights {
        if weight > 0.0 {
            last = token;
            sum += weight;
            if sum > threshold {
                break;
            }
        }
    }
    last
}

/// Position of the first maximum; NaN never wins.
fn first_maximum(scores: &[f32]) -> u32 {
    let mut best = 0;
    for (i, &score) in scores.iter().enumerate() {
        if score > scores[best] || (scores[best].is_nan() && !score.is_nan()) {
            best = i;
        }
    }
    best as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(temperature: f32, top_k: i32, top_p: f32) -> SamplingParams {
        SamplingParams { temperature, top_k, top_p, ..SamplingParams::default() }
    }

    /// Share of each token over many draws.
    fn shares(logits: &[f32], params: &SamplingParams) -> Vec<f64> {
        let mut sampler = Sampler::default();
        let mut counts = vec![0usize; logits.len()];
        let draws = 20_000;
        for i in 0..draws {
            counts[sampler.choose(logits, params, 42, i, &[]).token as usize] += 1;
        }
        counts.iter().map(|&c| c as f64 / draws as f64).collect()
    }

    #[test]
    fn draws_follow_the_distribution_and_its_cuts() {
        // Probabilities 0.5, 0.25, 0.125, 0.125 at temperature 1.
        let logits = [4f32.ln(), 2f32.ln(), 0.0, 0.0];
        for (p, want) in [
            (params(1.0, -1, 1.0), [0.5, 0.25, 0.125, 0.125]),
            (params(0.5, -1, 1.0), [16.0 / 22.0, 4.0 / 22.0, 1.0 / 22.0, 1.0 / 22.0]),
            (params(1.0, 2, 1.0), [2.0 / 3.0, 1.0 / 3.0, 0.0, 0.0]),
            (params(1.0, 3, 1.0), [4.0 / 7.0, 2.0 / 7.0, 1.0 / 7.0, 0.0]),
            (params(1.0, 0, 0.5), [1.0, 0.0, 0.0, 0.0]),
            (params(1.0, 0, 0.51), [2.0 / 3.0, 1.0 / 3.0, 0.0, 0.0]),
            (params(1.0, 2, 0.67), [2.0 / 3.0, 1.0 / 3.0, 0.0, 0.0]),
            (params(1.0, 2, 0.66), [1.0, 0.0, 0.0, 0.0]),
            (params(0.0, -1, 1.0), [1.0, 0.0, 0.0, 0.0]),
        ] {
            let got = shares(&logits, &p);
            for (g, w) in got.iter().zip(want) {
                assert!((g - w).abs() < 0.015, "{p:?}: {got:?}, want {want:?}");
            }
        }
    }

    #[test]
    fn top_p_reaches_past_the_first_candidates() {
        let logits = vec![0.0f32; 1000];
        let got = shares(&logits, &params(1.0, -1, 0.9));
        assert_eq!(got.iter().filter(|&&g| g > 0.0).count(), 900, "ties are cut by number");
        assert!(got[900..].iter().all(|&g| g == 0.0));
    }

    #[test]
    fn a_choice_depends_on_seed_and_position_only() {
        let logits: Vec<f32> = (0..64).map(|i| (i * 37 % 11) as f32 / 4.0).collect();
        let p = params(0.8, 20, 0.95);
        let draw = |seed, at| Sampler::default().choose(&logits, &p, seed, at, &[]).token;
        let mut used = Sampler::default();
        for at in 0..50 {
            assert_eq!(used.choose(&logits, &p, 7, at, &[]).token, draw(7, at));
        }
        assert!((0..50).any(|at| draw(7, at) != draw(8, at)));
        assert!((1..50).any(|at| draw(7, at) != draw(7, 0)));
    }

    #[test]
    fn forbidden_tokens_are_never_chosen() {
        let logits = [9.0f32, 1.0, 2.0];
        assert_eq!(Sampler::default().choose(&logits, &params(0.0, -1, 1.0), 1, 0, &[0, 77]).token, 2);
        let mut sampler = Sampler::default();
        assert!((0..200).all(|i| sampler.choose(&logits, &params(5.0, -1, 1.0), 1, i, &[0]).token != 0));
    }

    #[test]
    fn logprobs_are_of_the_unmodified_distribution() {
        let logits = [4f32.ln(), 2f32.ln(), 0.0, 0.0];
        let p = SamplingParams { logprobs: Some(2), temperature: 0.0, ..SamplingParams::default() };
        let choice = Sampler::default().choose(&logits, &p, 1, 0, &[0]);
        assert_eq!(choice.token, 1);
        let logprobs = choice.logprobs.unwrap();
        assert!((logprobs.chosen - 0.25f32.ln()).abs() < 1e-6);
        assert_eq!(logprobs.top.iter().map(|t| t.id).collect::<Vec<_>>(), [0, 1]);
        assert!((logprobs.top[0].logprob - 0.5f32.ln()).abs() < 1e-6);
    }

    #[test]
    fn numbers_that_are_none_do_not_win() {
        assert_eq!(first_maximum(&[f32::NAN, 1.0, 3.0, 3.0, f32::NAN]), 2);
        assert_eq!(first_maximum(&[f32::NEG_INFINITY, f32::NEG_INFINITY]), 0);
    }
}

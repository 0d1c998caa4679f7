//! Contention: how fast operators run beside each other.
//!
//! Fluid model. Operator i uses, per second of running alone, `u_i^k = demand_i^k / solo_i` of resource k (cube, vector,
//! HBM). Rates are the max-min fair solution of `Σ r_i·u_i^k ≤ 1`, `0 < r_i ≤ 1`: all rates rise together until a
//! resource is full, its users stop there, the others rise on. Then
//!
//! - an overlap knob ω blends from time-sharing (every operator at `1/n`, nothing overlaps) at 0 to the fluid rates at 1:
//!   `b_i = (1 − ω)/n + ω·r_i`;
//! - interference beyond bandwidth and cores (row-buffer and L2 conflicts) costs `b_i / (1 + ω·κ)`, κ by phase.
//!
//! No co-run measurement on Ascend is public; ω and κ are assumptions, and results are shown at several ω. κ's starting
//! values lie inside what GPU papers report (decode slows at most 20–30 % beside prefill, a large product under 8 %).

use crate::{Demand, Phase};

/// Parameters of the contention model.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CoRun {
    /// Overlap, 0 (operators serialise) to 1 (fluid).
    pub omega: f64,
    /// Slow-down of a prefill operator beside any other at ω = 1.
    pub kappa_prefill: f64,
    /// Slow-down of a decode operator beside any other at ω = 1.
    pub kappa_decode: f64,
}

impl Default for CoRun {
    fn default() -> Self {
        Self { omega: 0.5, kappa_prefill: 0.065, kappa_decode: 0.15 }
    }
}

impl CoRun {
    /// κ of an operator: mixed steps count as decode (memory-bound work is what suffers), unknown ones as the mean.
    pub fn kappa(&self, phase: Phase) -> f64 {
        match phase {
            Phase::Prefill => self.kappa_prefill,
            Phase::Decode | Phase::Mixed => self.kappa_decode,
            Phase::Unknown => 0.5 * (self.kappa_prefill + self.kappa_decode),
        }
    }
}

/// A static split of the cores: prefill has a part of them, everything else the rest, busy or not.
///
/// With a part n of the cores an operator's cube and vector rates scale with n and its bandwidth with `min(1, n/knee)`
/// (CANN's per-stream core limits, `aclrtSetStreamResLimit`; a part of about 30 % saturates the memory in GPU studies,
/// nobody has published it for Ascend). One operator at a time may use a part: who splits the cores keeps to that.
/// ω applies as to any operators side by side: how far a device overlaps two streams is its own property.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CoreSplit {
    /// Prefill's part of the cores, above 0, below 1.
    pub prefill: f64,
    /// Part of the cores from which on the full bandwidth is there, above 0, at most 1.
    pub knee: f64,
}

impl CoreSplit {
    /// Part of the cores that an operator of this phase may use.
    pub fn part(&self, phase: Phase) -> f64 {
        if phase == Phase::Prefill { self.prefill } else { 1.0 - self.prefill }
    }

    /// `demand` on the cores of its phase: it asks for as much of the device, over a longer time alone.
    pub fn limit(&self, demand: &Demand, phase: Phase) -> Demand {
        let part = self.part(phase);
        let bandwidth = f64::min(1.0, part / self.knee);
        let busy = (demand.cube / part).max(demand.vector / part).max(demand.hbm / bandwidth);
        Demand { solo_s: busy + demand.static_s, ..*demand }
    }
}

/// Rates of operators that run concurrently, 1 = as fast as alone.
pub fn rates(operators: &[(Demand, Phase)], corun: &CoRun) -> Vec<f64> {
    let mut out = Vec::new();
    rates_into(operators, corun, &mut out);
    out
}

/// [`rates`] into a buffer of the caller's; allocates nothing once the buffer has grown.
pub fn rates_into(operators: &[(Demand, Phase)], corun: &CoRun, out: &mut Vec<f64>) {
    out.clear();
    let n = operators.len();
    if n <= 1 {
        out.resize(n, 1.0);
        return;
    }
    let omega = corun.omega.clamp(0.0, 1.0);
    let share = 1.0 / n as f64;
    if omega == 0.0 {
        out.resize(n, share);
        return;
    }
    fluid_into(operators, out);
    for (rate, (_, phase)) in out.iter_mut().zip(operators) {
        *rate = ((1.0 - omega) * share + omega * *rate) / (1.0 + omega * corun.kappa(*phase).max(0.0));
    }
}

/// Part of each resource that a running operator occupies.
fn usage(demand: &Demand) -> [f64; 3] {
    let solo = demand.solo_s.max(f64::MIN_POSITIVE);
    // The largest finite demands give NaN here; whoever asks for that much uses everything.
    [demand.cube, demand.vector, demand.hbm].map(|k| k / solo).map(|u| if u.is_nan() { 1.0 } else { u.clamp(0.0, 1.0) })
}

/// Max-min fair rates by progressive filling. Rates still rising are kept negative (−1) in `out`.
fn fluid_into(operators: &[(Demand, Phase)], out: &mut Vec<f64>) {
    const RISING: f64 = -1.0;
    out.resize(operators.len(), RISING);
    loop {
        let mut frozen = [0.0; 3];
        let mut rising = [0.0; 3];
        for ((demand, _), &rate) in operators.iter().zip(out.iter()) {
            for (k, u) in usage(demand).into_iter().enumerate() {
                if rate == RISING {
                    rising[k] += u;
                } else {
                    frozen[k] += u * rate;
                }
            }
        }
        // The common level at which the first resource fills up, or everyone runs at full rate.
        let mut level = 1.0;
        for k in 0..3 {
            if rising[k] > 0.0 {
                level = f64::min(level, ((1.0 - frozen[k]) / rising[k]).max(0.0));
            }
        }
        let full: [bool; 3] =
            std::array::from_fn(|k| rising[k] > 0.0 && (1.0 - frozen[k]) / rising[k] <= level * (1.0 + 1e-12));
        let mut left = 0;
        for ((demand, _), rate) in operators.iter().zip(out.iter_mut()) {
            if *rate != RISING {
                continue;
            }
            let stopped = usage(demand).into_iter().zip(full).any(|(u, full)| full && u > 0.0);
            if level >= 1.0 || stopped {
                *rate = level;
            } else {
                left += 1;
            }
        }
        if left == 0 {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn demand(cube: f64, vector: f64, hbm: f64, static_s: f64) -> Demand {
        Demand { cube, vector, hbm, static_s, solo_s: cube.max(vector).max(hbm) + static_s }
    }

    fn fluid() -> CoRun {
        CoRun { omega: 1.0, kappa_prefill: 0.0, kappa_decode: 0.0 }
    }

    #[test]
    fn a_core_limit_slows_compute_in_proportion_and_memory_below_the_knee() {
        let split = CoreSplit { prefill: 0.6, knee: 0.5 };
        let (cube, memory) = (demand(6e-3, 0.0, 1e-3, 0.0), demand(1e-3, 0.0, 4e-3, 0.0));
        for (what, d, phase, want) in [
            ("prefill's product", cube, Phase::Prefill, 10e-3),
            ("decode's product", cube, Phase::Decode, 15e-3),
            ("memory above the knee", memory, Phase::Prefill, 4e-3),
            ("memory below it", memory, Phase::Mixed, 5e-3),
        ] {
            assert!((split.limit(&d, phase).solo_s / want - 1.0).abs() < 1e-12, "{what}");
        }
        // Side by side neither takes the other's cores; bandwidth is enough for both.
        let pair = [
            (split.limit(&cube, Phase::Prefill), Phase::Prefill),
            (split.limit(&memory, Phase::Decode), Phase::Decode),
        ];
        assert_eq!(rates(&pair, &fluid()), [1.0, 1.0]);
    }

    fn demands() -> impl Strategy<Value = Vec<(Demand, Phase)>> {
        let part = || prop_oneof![Just(0.0), 1e-6..1e-2f64];
        let one = (part(), part(), part(), 1e-7..1e-5f64, 0..4usize)
            .prop_map(|(c, v, m, s, p)| (demand(c, v, m, s), Phase::ALL[p]));
        proptest::collection::vec(one, 1..9)
    }

    #[test]
    fn known_mixes() {
        let cube = demand(1.0, 0.0, 0.15, 0.0);
        let memory = demand(0.12, 0.0, 1.0, 0.0);
        for (name, mix, want) in [
            ("alone", vec![cube], vec![1.0]),
            ("two of a kind halve", vec![cube, cube], vec![0.5, 0.5]),
            // Both rise to the level where a resource fills: 1/1.15 on the memory side.
            ("complements", vec![cube, memory], vec![1.0 / 1.15, 1.0 / 1.15]),
            ("an idle third does not count", vec![cube, cube, demand(0.0, 0.0, 0.0, 1.0)], vec![0.5, 0.5, 1.0]),
        ] {
            let mix: Vec<_> = mix.into_iter().map(|d| (d, Phase::Unknown)).collect();
            let got = rates(&mix, &fluid());
            for (g, w) in got.iter().zip(&want) {
                assert!((g - w).abs() < 1e-9, "{name}: {got:?}");
            }
        }
    }

    #[test]
    fn interference_slows_by_phase_and_scales_with_overlap() {
        let idle = demand(0.0, 0.0, 0.0, 1.0);
        let mix = [(idle, Phase::Prefill), (idle, Phase::Decode)];
        let full = rates(&mix, &CoRun { omega: 1.0, ..CoRun::default() });
        assert!((full[0] - 1.0 / 1.065).abs() < 1e-12 && (full[1] - 1.0 / 1.15).abs() < 1e-12);
        assert_eq!(rates(&mix, &CoRun { omega: 0.0, ..CoRun::default() }), [0.5, 0.5]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 512, rng_seed: proptest::test_runner::RngSeed::Fixed(7), ..ProptestConfig::default() })]

        #[test]
        fn no_resource_is_oversubscribed(mix in demands(), omega in 0.0..=1.0f64) {
            let got = rates(&mix, &CoRun { omega, ..CoRun::default() });
            prop_assert_eq!(got.len(), mix.len());
            for k in 0..3 {
                let used: f64 = mix.iter().zip(&got).map(|((d, _), r)| usage(d)[k] * r).sum();
                prop_assert!(used <= 1.0 + 1e-9, "resource {} at {}", k, used);
            }
            for r in got {
                prop_assert!(r > 0.0 && r <= 1.0);
            }
        }

        #[test]
        fn alone_runs_at_full_rate(mix in demands(), omega in 0.0..=1.0f64) {
            prop_assert_eq!(rates(&mix[..1], &CoRun { omega, ..CoRun::default() }), vec![1.0]);
        }

        /// Max-min fair: whoever runs below full rate uses a full resource on which nobody is faster.
        #[test]
        fn nobody_can_be_faster_without_slowing_a_slower_one(mix in demands()) {
            let got = rates(&mix, &fluid());
            for (i, (d, _)) in mix.iter().enumerate() {
                if got[i] >= 1.0 {
                    continue;
                }
                let bottleneck = (0..3).any(|k| {
                    let used: f64 = mix.iter().zip(&got).map(|((d, _), r)| usage(d)[k] * r).sum();
                    let fastest = mix.iter().zip(&got).filter(|((d, _), _)| usage(d)[k] > 0.0).map(|(_, r)| *r).fold(0.0, f64::max);
                    usage(d)[k] > 0.0 && used > 1.0 - 1e-6 && got[i] >= fastest - 1e-6
                });
                prop_assert!(bottleneck, "operator {} at {:?}", i, got);
            }
        }

        /// Without interference overlap only helps; with it, it helps whoever gains more than κ.
        #[test]
        fn more_overlap_is_never_slower_without_interference(mix in demands(), a in 0.0..=1.0f64, b in 0.0..=1.0f64) {
            let (low, high) = (a.min(b), a.max(b));
            let free = |omega| rates(&mix, &CoRun { omega, ..fluid() });
            for (l, h) in free(low).iter().zip(free(high)) {
                prop_assert!(h >= l - 1e-12);
            }
            let corun = CoRun { omega: 1.0, ..CoRun::default() };
            let (slow, fast) = (rates(&mix, &CoRun { omega: low, ..corun }), rates(&mix, &CoRun { omega: high, ..corun }));
            for (i, r) in free(1.0).iter().enumerate() {
                if mix.len() > 1 && r * mix.len() as f64 >= 1.0 + corun.kappa(mix[i].1) {
                    prop_assert!(fast[i] >= slow[i] - 1e-12);
                }
            }
        }
    }
}

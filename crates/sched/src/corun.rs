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
    fluid_into(operators, out);
    let omega = corun.omega.clamp(0.0, 1.0);
    let share = 1.0 / n as f64;
    for (rate, (_, phase)) in out.iter_mut().zip(operators) {
        *rate = ((1.0 - omega) * share + omega * *rate) / (1.0 + omega * corun.kappa(*phase).max(0.0));
    }
}

/// Part of each resource that a running operator occupies.
fn usage(demand: &Demand) -> [f64; 3] {
    let solo = demand.solo_s.max(f64::MIN_POSITIVE);
    [demand.cube, demand.vector, demand.hbm].map(|k| (k / solo).clamp(0.0, 1.0))
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

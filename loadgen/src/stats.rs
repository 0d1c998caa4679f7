//! What few samples can say: confidence intervals that are absent where there is no saying, and differences of two.
//!
//! - A percentile's interval lies between two fractional order statistics (Hutson, *Calculating nonparametric confidence
//!   intervals for quantiles using fractional order statistics*, J. Appl. Stat. 26, 1999): no assumption about the
//!   distribution. Where the sample has no observation beyond it, as with p99 of a hundred requests, there is none.
//! - A mean's is Student's t with Hall's correction for skewness (Hall, *On the removal of skewness by transformation*,
//!   J. R. Stat. Soc. B 54, 1992), because latencies are skewed and plain t is then too short on the high side.
//! - A share's is Wilson's.
//! - A difference's is made of both sides' (Zou and Donner's MOVER, Stat. Med. 27, 2008).
//!
//! All take samples as independent. Requests of one run queue behind each other and are not quite: an interval of one run is
//! a lower bound on the doubt, and `ab` repeats runs for that reason. Pure.

use statrs::distribution::{ContinuousCDF, StudentsT};
use statrs::function::beta::beta_reg;

/// Confidence of every interval.
pub const CONFIDENCE: f64 = 0.95;
/// Standard normal quantile of a two-sided interval of [`CONFIDENCE`].
const Z: f64 = 1.959_963_985;
const TAIL: f64 = (1.0 - CONFIDENCE) / 2.0;
/// Fewest samples that a mean's interval is made of: below, the skewness is a guess.
const MEAN_SAMPLES_MIN: usize = 8;

/// From low to high.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

impl Interval {
    /// Whether `value` lies in it.
    pub fn contains(&self, value: f64) -> bool {
        (self.low..=self.high).contains(&value)
    }
}

/// A figure with its doubt.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The figure.
    pub value: f64,
    /// Its interval; `None` where the sample cannot say.
    pub interval: Option<Interval>,
}

/// Interval of quantile `p` (0 to 1) of `count` samples, of which `at` gives the one of a rank (from 0, ascending).
pub fn quantile(count: usize, p: f64, at: impl Fn(usize) -> f64) -> Option<Interval> {
    let spread = (count + 1) as f64;
    let find = |level: f64| -> Option<f64> {
        // Decreasing in u; fifty halvings are exact in a double.
        let (mut low, mut high) = (0.0f64, 1.0f64);
        for _ in 0..50 {
            let u = (low + high) / 2.0;
            if beta_reg(spread * u, spread * (1.0 - u), p) > level { low = u } else { high = u }
        }
        let rank = spread * low - 1.0;
        if !(0.0..=(count as f64 - 1.0)).contains(&rank) {
            return None;
        }
        let (below, part) = (rank.floor() as usize, rank.fract());
        let value = at(below);
        Some(if part > 0.0 && below + 1 < count { value + part * (at(below + 1) - value) } else { value })
    };
    Some(Interval { low: find(1.0 - TAIL)?, high: find(TAIL)? })
}

/// Interval of the mean of `values`.
pub fn mean(values: &[f64]) -> Option<Interval> {
    if values.len() < MEAN_SAMPLES_MIN {
        return None;
    }
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let moment = |k: i32| values.iter().map(|v| (v - mean).powi(k)).sum::<f64>() / n;
    let deviation = (moment(2) * n / (n - 1.0)).sqrt();
    if deviation == 0.0 {
        return Some(Interval { low: mean, high: mean });
    }
    let skewness = moment(3) / moment(2).powf(1.5);
    let t = student(values.len());
    let step = deviation / n.sqrt();
    let corrected = |x: f64| {
        let a = skewness / n.sqrt();
        if a.abs() < 1e-9 { x } else { 3.0 / a * ((1.0 + a * (x - a / 6.0)).cbrt() - 1.0) }
    };
    Some(Interval { low: mean - step * corrected(t), high: mean - step * corrected(-t) })
}

/// Interval of the mean of repeated, independent measurements: plain Student's t, which holds from two on.
pub fn repeated(values: &[f64]) -> Option<Estimate> {
    let n = values.len();
    let mean = values.iter().sum::<f64>() / n as f64;
    (n >= 2).then(|| {
        let deviation = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1) as f64).sqrt();
        let reach = student(n) * deviation / (n as f64).sqrt();
        Estimate { value: mean, interval: Some(Interval { low: mean - reach, high: mean + reach }) }
    })
}

/// Student's quantile of a two-sided interval from `count` samples.
fn student(count: usize) -> f64 {
    StudentsT::new(0.0, 1.0, (count - 1) as f64).map_or(Z, |t| t.inverse_cdf(1.0 - TAIL))
}

/// Interval of a share: `good` of `all`.
pub fn share(good: usize, all: usize) -> Option<Interval> {
    if all == 0 {
        return None;
    }
    let (n, p) = (all as f64, good as f64 / all as f64);
    let middle = (p + Z * Z / (2.0 * n)) / (1.0 + Z * Z / n);
    let reach = Z / (1.0 + Z * Z / n) * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
    Some(Interval { low: (middle - reach).max(0.0), high: (middle + reach).min(1.0) })
}

/// `b − a`, with an interval if both have one.
pub fn difference(a: &Estimate, b: &Estimate) -> Estimate {
    let value = b.value - a.value;
    let interval = a.interval.zip(b.interval).map(|(ia, ib)| Interval {
        low: value - (b.value - ib.low).hypot(ia.high - a.value),
        high: value + (ib.high - b.value).hypot(a.value - ia.low),
    });
    Estimate { value, interval }
}

/// What a difference says about the second of two.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// The second is better.
    Better,
    /// The second is worse.
    Worse,
    /// The samples do not tell them apart.
    NoEvidence,
}

impl Verdict {
    /// Judges a difference; `lower_is_better` as for latencies.
    pub fn of(difference: &Estimate, lower_is_better: bool) -> Self {
        match difference.interval {
            Some(i) if i.high < 0.0 => {
                if lower_is_better {
                    Self::Better
                } else {
                    Self::Worse
                }
            }
            Some(i) if i.low > 0.0 => {
                if lower_is_better {
                    Self::Worse
                } else {
                    Self::Better
                }
            }
            _ => Self::NoEvidence,
        }
    }

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Worse => "worse",
            Self::NoEvidence => "no evidence",
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;
    use rand_distr::{Distribution, Exp, LogNormal};

    use super::*;

    const RUNS: usize = 4000;

    /// Share of `RUNS` simulated samples whose interval contains the truth; the seed is fixed.
    fn coverage(mut sample: impl FnMut(&mut ChaCha8Rng) -> Option<Interval>, truth: f64) -> f64 {
        let mut rng = ChaCha8Rng::seed_from_u64(11);
        let hits = (0..RUNS).filter(|_| sample(&mut rng).expect("enough samples").contains(truth)).count();
        hits as f64 / RUNS as f64
    }

    fn assert_covers(what: &str, got: f64) {
        assert!(
            (0.93..=0.97).contains(&got),
            "{what}: 95 % intervals contain the truth {:.1} % of the time",
            got * 100.0
        );
    }

    fn sorted(rng: &mut ChaCha8Rng, n: usize, law: &impl Distribution<f64>) -> Vec<f64> {
        let mut values: Vec<f64> = law.sample_iter(rng).take(n).collect();
        values.sort_unstable_by(f64::total_cmp);
        values
    }

    #[test]
    fn quantiles_are_covered_at_every_size_that_has_an_interval() {
        let law = Exp::new(1.0).unwrap();
        for (n, p) in [(12, 0.5), (30, 0.5), (200, 0.5), (60, 0.9), (300, 0.9), (500, 0.99), (2000, 0.99)] {
            let truth = -(1.0f64 - p).ln();
            let got = coverage(
                |rng| {
                    let v = sorted(rng, n, &law);
                    quantile(n, p, |i| v[i])
                },
                truth,
            );
            assert_covers(&format!("p{} of {n}", p * 100.0), got);
        }
    }

    #[test]
    fn means_of_skewed_latencies_are_covered() {
        for n in [40, 100, 400] {
            let law = Exp::new(1.0).unwrap();
            assert_covers(&format!("exponential mean of {n}"), coverage(|rng| mean(&sorted(rng, n, &law)), 1.0));
            let law = LogNormal::new(0.0, 0.5).unwrap();
            let truth = (0.125f64).exp();
            assert_covers(&format!("log-normal mean of {n}"), coverage(|rng| mean(&sorted(rng, n, &law)), truth));
        }
    }

    #[test]
    fn differences_repetitions_and_shares_are_covered() {
        let law = Exp::new(1.0).unwrap();
        let median = |v: &[f64]| Estimate { value: v[v.len() / 2], interval: quantile(v.len(), 0.5, |i| v[i]) };
        let got = coverage(
            |rng| {
                let (a, b) =
                    (sorted(rng, 81, &law), sorted(rng, 121, &law).iter().map(|v| v * 3.0).collect::<Vec<_>>());
                difference(&median(&a), &median(&b)).interval
            },
            2.0 * 2f64.ln(),
        );
        assert_covers("difference of medians", got);
        let law = rand_distr::Normal::new(5.0, 2.0).unwrap();
        let got = coverage(|rng| repeated(&sorted(rng, 5, &law)).and_then(|e| e.interval), 5.0);
        assert_covers("mean of five rounds", got);
        let got = coverage(|rng| share((0..150).filter(|_| rng.random_bool(0.8)).count(), 150), 0.8);
        assert_covers("share", got);
    }

    #[test]
    fn what_a_sample_cannot_say_is_not_said() {
        let v: Vec<f64> = (0..1000).map(f64::from).collect();
        for (n, p, said) in [(100, 0.99, false), (400, 0.99, true), (5, 0.5, false), (8, 0.5, true), (30, 0.9, false)] {
            assert_eq!(quantile(n, p, |i| v[i]).is_some(), said, "p{} of {n}", p * 100.0);
        }
        assert_eq!(quantile(0, 0.5, |i| v[i]), None);
        assert_eq!((mean(&v[..3]), repeated(&v[..1]), share(0, 0)), (None, None, None));
    }

    #[test]
    fn verdicts_need_an_interval_beside_zero() {
        let with = |low, high| Estimate { value: 0.0, interval: Some(Interval { low, high }) };
        for (estimate, lower, higher) in [
            (with(-2.0, -1.0), Verdict::Better, Verdict::Worse),
            (with(1.0, 2.0), Verdict::Worse, Verdict::Better),
            (with(-1.0, 1.0), Verdict::NoEvidence, Verdict::NoEvidence),
            (Estimate { value: 9.0, interval: None }, Verdict::NoEvidence, Verdict::NoEvidence),
        ] {
            assert_eq!((Verdict::of(&estimate, true), Verdict::of(&estimate, false)), (lower, higher));
        }
    }
}

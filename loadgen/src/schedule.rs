//! When each request is sent: an absolute schedule fixed before the first byte leaves.
//!
//! Open loop: a slow server does not slow the arrivals down, so its queue is measured instead of hidden. Offsets are
//! absolute (from the start of the run), so no error accumulates the way a chain of relative sleeps drifts.
//!
//! Pure: randomness comes from the seed, time does not come in at all.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Gamma};

/// Arrival offsets of `count` requests in seconds, ascending, at `rate` requests a second.
///
/// Inter-arrival times are gamma distributed with shape `burstiness` and mean `1/rate`: 1 is a Poisson process, smaller
/// is burstier, large values approach a constant rate. An infinite rate sends everything at once.
///
/// # Errors
/// If `rate` or `burstiness` is not positive.
pub fn arrivals(count: usize, rate: f64, burstiness: f64, seed: u64) -> Result<Vec<f64>, ScheduleError> {
    if rate.is_nan() || rate <= 0.0 {
        return Err(ScheduleError::Rate(rate));
    }
    if !(burstiness > 0.0 && burstiness.is_finite()) {
        return Err(ScheduleError::Burstiness(burstiness));
    }
    if rate.is_infinite() {
        return Ok(vec![0.0; count]);
    }
    let gaps = Gamma::new(burstiness, 1.0 / (rate * burstiness)).map_err(|_| ScheduleError::Burstiness(burstiness))?;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut at = 0.0;
    // The first request opens the run; every further one follows its gap.
    Ok((0..count)
        .map(|i| {
            if i > 0 {
                at += gaps.sample(&mut rng);
            }
            at
        })
        .collect())
}

/// What is wrong with a schedule's parameters.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum ScheduleError {
    /// Rate not positive.
    #[error("--request-rate must be above 0 (or `inf`), not {0}")]
    Rate(f64),
    /// A schedule that would not fit into memory.
    #[error("the stages ask for more than {} requests", crate::profile::ARRIVALS_MAX)]
    TooMany,
    /// Burstiness not positive.
    #[error("--burstiness must be above 0 (1 is Poisson), not {0}")]
    Burstiness(f64),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(burstiness: f64) -> (f64, f64) {
        let at = arrivals(20_000, 8.0, burstiness, 7).unwrap();
        let gaps: Vec<f64> = at.windows(2).map(|w| w[1] - w[0]).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        (mean, variance.sqrt() / mean)
    }

    #[test]
    fn gaps_have_the_asked_mean_and_variation() {
        for (burstiness, cv) in [(1.0, 1.0), (0.25, 2.0), (4.0, 0.5)] {
            let (mean, got) = moments(burstiness);
            assert!((mean - 0.125).abs() < 0.006, "mean gap {mean} at burstiness {burstiness}");
            assert!((got - cv).abs() < 0.1, "variation {got} at burstiness {burstiness}");
        }
    }

    #[test]
    fn same_seed_same_schedule() {
        assert_eq!(arrivals(50, 3.0, 1.0, 1), arrivals(50, 3.0, 1.0, 1));
        assert_ne!(arrivals(50, 3.0, 1.0, 1), arrivals(50, 3.0, 1.0, 2));
    }

    #[test]
    fn infinite_rate_sends_everything_at_once() {
        assert_eq!(arrivals(3, f64::INFINITY, 1.0, 0), Ok(vec![0.0; 3]));
    }

    #[test]
    fn nonsense_is_refused() {
        assert_eq!(arrivals(1, 0.0, 1.0, 0), Err(ScheduleError::Rate(0.0)));
        assert!(arrivals(1, f64::NAN, 1.0, 0).is_err());
        assert_eq!(arrivals(1, 1.0, -1.0, 0), Err(ScheduleError::Burstiness(-1.0)));
    }
}

//! Rates that change: stages and ramps, and arrivals that follow them.
//!
//! Arrivals are drawn at one a second and their clock is bent: the arrival of unit time *u* comes when the area under the
//! rate reaches *u*. So a ramp of Poisson arrivals is a Poisson process of the ramp's rate, and constant gaps stay even. Pure.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Gamma};

use crate::schedule::ScheduleError;

/// Most arrivals of one schedule.
pub const ARRIVALS_MAX: usize = 20_000_000;

/// How the gaps between arrivals vary.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Gaps {
    /// All the same.
    Constant,
    /// Gamma distributed with this shape: 1 is a Poisson process, smaller is burstier.
    Gamma(f64),
}

/// A stretch of time whose rate moves from one to another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stage {
    /// Seconds.
    pub seconds: f64,
    /// Requests a second at its beginning.
    pub from: f64,
    /// Requests a second at its end.
    pub to: f64,
    /// The rate grows by the same factor in the same time, instead of by the same amount.
    pub exponential: bool,
}

impl Stage {
    /// Requests expected in it.
    fn area(&self) -> f64 {
        if self.exponential && self.from != self.to {
            self.seconds * (self.to - self.from) / (self.to / self.from).ln()
        } else {
            self.seconds * (self.from + self.to) / 2.0
        }
    }

    /// Seconds into it at which so many are expected.
    fn at(&self, area: f64) -> f64 {
        if area <= 0.0 {
            return 0.0;
        }
        if self.from == self.to {
            return area / self.from;
        }
        if self.exponential {
            let growth = (self.to / self.from).ln() / self.seconds;
            return (1.0 + area * growth / self.from).ln() / growth;
        }
        let slope = (self.to - self.from) / self.seconds;
        // The root of slope/2·t² + from·t = area that does not cancel where the slope is small.
        2.0 * area / (self.from + (self.from * self.from + 2.0 * slope * area).max(0.0).sqrt())
    }
}

/// Reads `60s:10`, `60s:1-10` (a straight ramp) and several of them with commas between.
///
/// # Errors
/// A sentence naming the stage and what was expected.
pub fn parse(text: &str) -> Result<Vec<Stage>, String> {
    text.split(',')
        .map(|stage| {
            let wrong =
                || format!("--stages {stage}: want seconds and a rate, as in 60s:10, or a ramp, as in 60s:1-10");
            let (seconds, rate) = stage.trim().split_once("s:").ok_or_else(wrong)?;
            let (from, to) = rate.split_once('-').unwrap_or((rate, rate));
            let number = |text: &str| text.trim().parse::<f64>().ok().filter(|n| n.is_finite() && *n >= 0.0);
            let (Some(seconds), Some(from), Some(to)) = (number(seconds), number(from), number(to)) else {
                return Err(wrong());
            };
            if seconds > 0.0 { Ok(Stage { seconds, from, to, exponential: false }) } else { Err(wrong()) }
        })
        .collect()
}

/// A ramp that `count` requests fill.
///
/// # Errors
/// If a rate is not positive.
pub fn ramp(count: usize, from: f64, to: f64, exponential: bool) -> Result<Stage, ScheduleError> {
    for rate in [from, to] {
        if !(rate > 0.0 && rate.is_finite()) {
            return Err(ScheduleError::Rate(rate));
        }
    }
    let unit = Stage { seconds: 1.0, from, to, exponential };
    Ok(Stage { seconds: count as f64 / unit.area(), ..unit })
}

/// Arrival offsets over `stages`, seconds, ascending; at most `count`.
///
/// # Errors
/// If the shape of the gaps is not positive, or there would be more than [`ARRIVALS_MAX`].
pub fn arrivals(stages: &[Stage], gaps: Gaps, count: Option<usize>, seed: u64) -> Result<Vec<f64>, ScheduleError> {
    let shape = match gaps {
        Gaps::Constant => 1.0,
        Gaps::Gamma(shape) => shape,
    };
    let law = Gamma::new(shape, 1.0 / shape).map_err(|_| ScheduleError::Burstiness(shape))?;
    let most = count.unwrap_or(ARRIVALS_MAX);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (mut out, mut unit) = (Vec::new(), 0.0);
    let (mut start_s, mut before) = (0.0, 0.0);
    for stage in stages {
        let area = stage.area();
        // The first arrival opens the schedule; every further one follows its gap.
        while unit < before + area && out.len() < most {
            out.push(start_s + stage.at(unit - before));
            unit += if gaps == Gaps::Constant { 1.0 } else { law.sample(&mut rng) };
        }
        start_s += stage.seconds;
        before += area;
    }
    if count.is_none() && out.len() == ARRIVALS_MAX { Err(ScheduleError::TooMany) } else { Ok(out) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flat(seconds: f64, rate: f64) -> Stage {
        Stage { seconds, from: rate, to: rate, exponential: false }
    }

    #[test]
    fn constant_gaps_are_even_at_every_stage() {
        let at = arrivals(&[flat(2.0, 1.0), flat(1.0, 4.0)], Gaps::Constant, None, 0).unwrap();
        assert_eq!(at, [0.0, 1.0, 2.0, 2.25, 2.5, 2.75]);
    }

    #[test]
    fn ramps_have_the_rates_they_name() {
        for exponential in [false, true] {
            let stage = ramp(40_000, 50.0, 200.0, exponential).unwrap();
            let at = arrivals(&[stage], Gaps::Gamma(1.0), None, 3).unwrap();
            assert!((at.len() as f64 / 40_000.0 - 1.0).abs() < 0.02, "{}", at.len());
            let rate = |from: f64, to: f64| {
                let within = at.iter().filter(|t| (from * stage.seconds..to * stage.seconds).contains(*t)).count();
                within as f64 / (stage.seconds * (to - from))
            };
            let middle = if exponential { 100.0 } else { 125.0 };
            for (name, got, want) in [
                ("begins", rate(0.0, 0.02), 50.0),
                ("ends", rate(0.98, 1.0), 200.0),
                ("is half way", rate(0.49, 0.51), middle),
            ] {
                assert!((got / want - 1.0).abs() < 0.15, "exponential {exponential}: {name} at {got}, not {want}");
            }
        }
    }

    #[test]
    fn stages_are_read_and_nonsense_is_refused() {
        assert_eq!(
            parse("60s:10, 5s:1-3").unwrap(),
            [flat(60.0, 10.0), Stage { seconds: 5.0, from: 1.0, to: 3.0, exponential: false }]
        );
        for bad in ["", "60:10", "60s", "0s:1", "1s:x", "1s:1-"] {
            assert!(parse(bad).unwrap_err().contains("want seconds and a rate"), "{bad}");
        }
        assert!(ramp(1, 0.0, 1.0, false).is_err());
        assert_eq!(arrivals(&[flat(1.0, 0.0)], Gaps::Constant, None, 0).unwrap(), [0.0; 0]);
    }
}

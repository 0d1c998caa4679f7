//! Figures: named values, written as one flat JSON object, and small statistics over repeated runs.

use std::path::Path;

use anyhow::{Context, Result};
use loadgen::stats;
use serde_json::{Map, Value, json};

/// Figure name → value, in the order they were measured. Names are those of `SPECIFICATION.md`.
#[derive(Default)]
pub struct Figures(Map<String, Value>);

impl Figures {
    /// Sets a figure.
    pub fn set(&mut self, name: impl Into<String>, value: f64) {
        self.0.insert(name.into(), json!(value));
    }

    /// Sets a figure that is a word: a device label, a policy.
    pub fn set_text(&mut self, name: impl Into<String>, value: &str) {
        self.0.insert(name.into(), json!(value));
    }

    /// Value of a figure.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.get(name)?.as_f64()
    }

    /// Copies every figure of a JSON file that another program wrote, with a prefix.
    pub fn absorb(&mut self, path: &Path, prefix: &str) -> Result<()> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let map: Map<String, Value> = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
        self.0.extend(map.into_iter().map(|(k, v)| (format!("{prefix}{k}"), v)));
        Ok(())
    }

    /// Those whose names begin with `prefix` and an underscore, without that.
    pub fn of(&self, prefix: &str) -> Map<String, Value> {
        let named = |(name, value): (&String, &Value)| {
            Some((name.strip_prefix(prefix)?.strip_prefix('_')?.to_owned(), value.clone()))
        };
        self.0.iter().filter_map(named).collect()
    }

    /// Writes the object, if a file was asked for.
    pub fn write(&self, path: Option<&Path>) -> Result<()> {
        let Some(path) = path else { return Ok(()) };
        let text = serde_json::to_string_pretty(&self.0)? + "\n";
        std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
    }
}

/// Median.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

/// Median of paired ratios `b/a` and its 95 % interval between order statistics ([`loadgen::stats::quantile`]), which asks
/// nothing of the noise but that pairs are independent: what interleaved runs on a noisy machine can say. Of fewer than six
/// pairs no such interval can be had; theirs is from the lowest to the highest.
pub fn paired_ratio(a: &[f64], b: &[f64]) -> (f64, f64, f64) {
    let mut ratios: Vec<f64> = a.iter().zip(b).map(|(a, b)| b / a).collect();
    ratios.sort_by(f64::total_cmp);
    let (low, high) = match stats::quantile(ratios.len(), 0.5, |rank| ratios[rank]) {
        Some(interval) => (interval.low, interval.high),
        None => (ratios.first().copied().unwrap_or(f64::NAN), ratios.last().copied().unwrap_or(f64::NAN)),
    };
    (median(&ratios), low, high)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_odd_even_none() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn paired_ratio_of_few_pairs_is_their_range_and_of_many_leaves_out_the_extremes() {
        assert_eq!(paired_ratio(&[1.0; 5], &[0.5, 0.99, 1.0, 1.01, 9.0]), (1.0, 0.5, 9.0));
        let b: Vec<f64> = (0..41).map(|i| if i == 40 { 9.0 } else { 0.8 + 0.01 * f64::from(i) }).collect();
        let (ratio, low, high) = paired_ratio(&[1.0; 41], &b);
        assert!((ratio - 1.0).abs() < 1e-9, "{ratio}");
        // Ranks 14 and 28 of 41, by the binomial distribution.
        assert!((0.92..0.95).contains(&low) && (1.05..1.08).contains(&high), "{low} {high}");
    }
}

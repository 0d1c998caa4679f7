//! Figures: named values, written as one flat JSON object, and small statistics over repeated runs.

use std::path::Path;

use anyhow::{Context, Result};
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

/// Median of paired ratios `b/a` and the interval from its lowest to its highest after dropping one at each end (if
/// there are at least five pairs): what interleaved runs on a noisy machine can say.
pub fn paired_ratio(a: &[f64], b: &[f64]) -> (f64, f64, f64) {
    let mut ratios: Vec<f64> = a.iter().zip(b).map(|(a, b)| b / a).collect();
    ratios.sort_by(f64::total_cmp);
    let cut = usize::from(ratios.len() >= 5);
    let kept = &ratios[cut..ratios.len() - cut];
    (median(&ratios), kept.first().copied().unwrap_or(f64::NAN), kept.last().copied().unwrap_or(f64::NAN))
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
    fn paired_ratio_drops_the_extremes() {
        let a = [1.0; 5];
        assert_eq!(paired_ratio(&a, &[0.5, 0.99, 1.0, 1.01, 9.0]), (1.0, 0.99, 1.01));
    }
}

//! Rotary position tables, computed on the host as transformers computes them: frequencies and angles in single precision.

/// Rotary positions of a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// How frequencies are stretched for longer contexts.
    pub scaling: RopeScaling,
}

/// Stretching of rotary frequencies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// None.
    None,
    /// Every frequency divided by `factor`.
    Linear {
        /// Divisor.
        factor: f64,
    },
    /// Llama 3.1: long wavelengths divided by `factor`, short ones kept, a linear blend between.
    Llama3 {
        /// Divisor of the long wavelengths.
        factor: f64,
        /// Wavelengths above `original_max_position / low_freq_factor` are long.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_position / high_freq_factor` are short.
        high_freq_factor: f64,
        /// Context the model was first trained for.
        original_max_position: usize,
    },
}

impl Rope {
    /// Angle per position of each of the `head_dim / 2` pairs.
    pub fn frequencies(&self, head_dim: usize) -> Vec<f32> {
        let base = self.theta as f32;
        let plain = (0..head_dim / 2).map(|i| 1.0 / base.powf((2 * i) as f32 / head_dim as f32));
        match self.scaling {
            RopeScaling::None => plain.collect(),
            RopeScaling::Linear { factor } => plain.map(|f| f / factor as f32).collect(),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position } => {
                let old = original_max_position as f32;
                let (factor, low, high) = (factor as f32, low_freq_factor as f32, high_freq_factor as f32);
                let stretch = |f: f32| {
                    let wavelength = 2.0 * std::f32::consts::PI / f;
                    if wavelength > old / low {
                        f / factor
                    } else if wavelength < old / high {
                        f
                    } else {
                        let smooth = (old / wavelength - low) / (high - low);
                        (1.0 - smooth) * f / factor + smooth * f
                    }
                };
                plain.map(stretch).collect()
            }
        }
    }

    /// Cosines and sines of positions `0..positions`, each `[positions, head_dim]`: the angles of the pairs, twice over.
    pub fn tables(&self, head_dim: usize, positions: usize) -> (Vec<f32>, Vec<f32>) {
        let frequencies = self.frequencies(head_dim);
        let mut cos = Vec::with_capacity(positions * head_dim);
        let mut sin = Vec::with_capacity(positions * head_dim);
        for position in 0..positions {
            for _ in 0..2 {
                for f in &frequencies {
                    let angle = position as f32 * f;
                    cos.push(angle.cos());
                    sin.push(angle.sin());
                }
            }
        }
        (cos, sin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_hold_each_angle_twice() {
        let rope = Rope { theta: 10_000.0, scaling: RopeScaling::None };
        let (cos, sin) = rope.tables(8, 3);
        assert_eq!((cos.len(), sin.len()), (24, 24));
        assert_eq!(&cos[..8], &[1.0; 8]);
        assert_eq!(cos[8..12], cos[12..16]);
        assert_eq!(sin[16], 2f32.sin());
        assert!((sin[17] - (0.2f32).sin()).abs() < 1e-6);
    }

    #[test]
    fn llama3_stretches_long_wavelengths_only() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position: 8192,
        };
        let plain = Rope { theta: 500_000.0, scaling: RopeScaling::None }.frequencies(128);
        let stretched = Rope { theta: 500_000.0, scaling }.frequencies(128);
        assert_eq!(plain[0], stretched[0]);
        assert!((stretched[63] * 8.0 / plain[63] - 1.0).abs() < 1e-6);
        assert!(plain.iter().zip(&stretched).all(|(p, s)| *s <= *p && *s * 8.001 >= *p));
    }
}

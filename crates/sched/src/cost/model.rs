//! A whole model step in closed form: what the sum over its operators must come to.
//!
//! For a dense decoder of L layers, hidden size h, H query and Hkv key heads of D elements, ffn f, vocabulary V (16-bit
//! weights and cache), with P parameters in the layers:
//!
//! - prefill of S tokens: `2·P·S + 2·L·H·D·S² + 2·h·V` FLOP; weights, `4·L·Hkv·D·S` cache bytes and the activations;
//! - decode of B sequences at context C: `2·(P + h·V)·B + 4·L·H·D·C·B` FLOP; weights and `4·L·Hkv·D·C·B` cache bytes.
//!
//! Only the last token of a prompt goes through the output layer. Norms, biases and rotary tables are left out: under
//! one per mille of the FLOP.

use super::{OpClass, Work};

/// Dimensions of a dense decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Model {
    /// Layers.
    pub layers: u64,
    /// Hidden size.
    pub hidden: u64,
    /// Query heads.
    pub heads: u64,
    /// Key heads.
    pub kv_heads: u64,
    /// Elements of a head.
    pub head_dim: u64,
    /// Width of the feed-forward layer.
    pub ffn: u64,
    /// Vocabulary.
    pub vocab: u64,
}

/// Bytes of a weight or cache element.
const BYTES: u64 = 2;

impl Model {
    /// Qwen2.5-7B: 7.6 G parameters, 57,344 cache bytes a token.
    pub const QWEN2_5_7B: Self =
        Self { layers: 28, hidden: 3584, heads: 28, kv_heads: 4, head_dim: 128, ffn: 18944, vocab: 152_064 };

    /// Parameters of one layer's products.
    pub const fn layer_params(&self) -> u64 {
        let qkv = self.hidden * (self.heads + 2 * self.kv_heads) * self.head_dim;
        let out = self.heads * self.head_dim * self.hidden;
        qkv + out + 3 * self.hidden * self.ffn
    }

    /// Parameters of all layers' products.
    pub const fn body_params(&self) -> u64 {
        self.layers * self.layer_params()
    }

    /// Parameters of the output layer.
    pub const fn head_params(&self) -> u64 {
        self.hidden * self.vocab
    }

    /// Cache bytes of a token.
    pub const fn kv_bytes_per_token(&self) -> u64 {
        2 * self.layers * self.kv_heads * self.head_dim * BYTES
    }

    /// Bytes that the weights take when a step reads them once.
    pub const fn weight_bytes(&self) -> u64 {
        (self.body_params() + self.head_params()) * BYTES
    }

    /// Activation bytes of a token in one layer: each product, attention and the gate read their input and write their
    /// output once; norms and rotations, which are two elementwise passes more, are left out.
    const fn activation_bytes(&self) -> u64 {
        let (h, f) = (self.hidden, self.ffn);
        let qkv = (self.heads + 2 * self.kv_heads) * self.head_dim;
        let attended = self.heads * self.head_dim;
        let elements = (h + qkv) + (attended + attended) + (attended + h) + (h + 2 * f) + (2 * f + f) + (f + h);
        elements * BYTES
    }

    /// One prompt of `tokens` tokens.
    pub fn prefill(&self, tokens: u64) -> Work {
        let s = tokens as f64;
        let attention = 2.0 * (self.layers * self.heads * self.head_dim) as f64 * s * s;
        Work {
            cube_flops: 2.0 * self.body_params() as f64 * s + attention + 2.0 * self.head_params() as f64,
            vector_flops: 0.0,
            hbm_bytes: self.weight_bytes() as f64
                + self.kv_bytes_per_token() as f64 * s
                + (self.layers * self.activation_bytes()) as f64 * s,
            class: OpClass::Matmul,
        }
    }

    /// One decode step of `batch` sequences, each with `context` tokens.
    pub fn decode(&self, batch: u64, context: u64) -> Work {
        let (b, c) = (batch as f64, context as f64);
        let linear = 2.0 * (self.body_params() + self.head_params()) as f64 * b;
        Work {
            cube_flops: linear + 4.0 * (self.layers * self.heads * self.head_dim) as f64 * c * b,
            vector_flops: 0.0,
            hbm_bytes: self.weight_bytes() as f64 + self.kv_bytes_per_token() as f64 * c * b,
            class: OpClass::Matmul,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Profile;

    #[test]
    fn parameters_and_cache_are_the_published_ones() {
        let m = Model::QWEN2_5_7B;
        assert_eq!(m.kv_bytes_per_token(), 57_344);
        for (what, got, want) in [
            ("a layer", m.layer_params() as f64, 233.05e6),
            ("body", m.body_params() as f64, 6.525e9),
            ("output layer", m.head_params() as f64, 0.545e9),
            ("weights of a step", m.weight_bytes() as f64, 14.14e9),
        ] {
            assert!((got / want - 1.0).abs() < 1e-3, "{what}: {got}");
        }
    }

    #[test]
    fn step_times_are_the_tables() {
        let m = Model::QWEN2_5_7B;
        for (work, b1, b3, b4) in [
            (m.prefill(1024), 55.0, 66.0, 79.0),
            (m.prefill(4096), 229.0, 275.0, 330.0),
            (m.decode(1, 2000), 14.9, 14.9, 29.7),
            (m.decode(32, 2048), 18.6, 18.6, 37.3),
            (m.decode(128, 2048), 30.4, 30.4, 60.8),
        ] {
            for (profile, want_ms) in [(Profile::A910B1, b1), (Profile::A910B3, b3), (Profile::A910B4, b4)] {
                let demand = profile.demand(&work);
                let ms = (demand.solo_s - demand.static_s) * 1e3;
                assert!((ms / want_ms - 1.0).abs() < 0.01, "{}: {ms:.1} ms, not {want_ms}", profile.name);
            }
        }
    }
}

//! Shapes of published models, for running without a checkpoint (`--load-format dummy`).

use super::config::ModelConfig;
use super::rope::{Rope, RopeScaling};

/// Name, architecture, hidden, intermediate, layers, query heads, KV heads, vocabulary, positions, tied embeddings.
type Row = (&'static str, &'static str, usize, usize, usize, usize, usize, usize, usize, bool);

const QWEN2: &str = "Qwen2ForCausalLM";
const LLAMA: &str = "LlamaForCausalLM";

/// From the models' published `config.json`.
const PRESETS: &[Row] = &[
    ("qwen2.5-0.5b", QWEN2, 896, 4864, 24, 14, 2, 151_936, 32_768, true),
    ("qwen2.5-1.5b", QWEN2, 1536, 8960, 28, 12, 2, 151_936, 32_768, true),
    ("qwen2.5-3b", QWEN2, 2048, 11_008, 36, 16, 2, 151_936, 32_768, true),
    ("qwen2.5-7b", QWEN2, 3584, 18_944, 28, 28, 4, 152_064, 32_768, false),
    ("qwen2.5-14b", QWEN2, 5120, 13_824, 48, 40, 8, 152_064, 32_768, false),
    ("llama-3-8b", LLAMA, 4096, 14_336, 32, 32, 8, 128_256, 8192, false),
];

/// Names of all presets.
pub fn names() -> impl Iterator<Item = &'static str> {
    PRESETS.iter().map(|row| row.0)
}

/// Shapes by name.
pub fn by_name(name: &str) -> Option<ModelConfig> {
    let &(_, architecture, hidden, intermediate, layers, heads, kv_heads, vocab, max_position, tied) =
        PRESETS.iter().find(|row| row.0 == name)?;
    let qwen = architecture == QWEN2;
    Some(ModelConfig {
        architecture: architecture.to_owned(),
        hidden,
        intermediate,
        layers,
        heads,
        kv_heads,
        head_dim: hidden / heads,
        vocab,
        rms_norm_eps: if qwen { 1e-6 } else { 1e-5 },
        rope: Rope { theta: if qwen { 1e6 } else { 5e5 }, scaling: RopeScaling::None },
        max_position,
        tied_embeddings: tied,
        qkv_bias: qwen,
        torch_dtype: Some("bfloat16".to_owned()),
        eos_token_ids: vec![if qwen { 151_645 } else { 128_001 }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qwen2_5_7b_has_its_published_size() {
        let c = by_name("qwen2.5-7b").unwrap();
        let layer = c.qkv_width() * (c.hidden + 1)
            + c.heads * c.head_dim * c.hidden
            + 3 * c.hidden * c.intermediate
            + 2 * c.hidden;
        let total = c.layers * layer + c.hidden + 2 * c.vocab * c.hidden;
        assert_eq!(total, 7_615_616_512);
        assert_eq!(2 * 2 * c.layers * c.kv_width(), 57_344, "KV bytes a token in 16 bit");
    }

    #[test]
    fn every_name_is_found() {
        assert!(names().all(|name| by_name(name).is_some_and(|c| c.heads % c.kv_heads == 0)));
        assert_eq!(by_name("qwen2.5-8b"), None);
    }
}

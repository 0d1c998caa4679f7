//! The Llama side of the model: no biases, an output layer of its own, heads wider than hidden / heads, stretched rotary
//! frequencies, a checkpoint in shards. Weights come from a formula, so no checkpoint needs to be stored.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::{config, host_device};
use engine::core::{Dtype, EngineConfig, ModelSource, debug};
use safetensors::tensor::TensorView;
use serde::Deserialize;

#[derive(Deserialize)]
struct Reference {
    config: serde_json::Value,
    shapes: BTreeMap<String, Vec<usize>>,
    prompt: Vec<u32>,
    positions: Vec<usize>,
    float32: Vec<Vec<f32>>,
}

/// In [−0.5, 0.5): the same 32-bit hash as `make_reference.py`'s.
fn weight(tensor: u32, element: u32) -> f64 {
    let mut x = element.wrapping_mul(2_654_435_761).wrapping_add(tensor.wrapping_mul(40_503)).wrapping_add(12_345);
    x ^= x >> 15;
    x = x.wrapping_mul(2_246_822_519);
    x ^= x >> 13;
    f64::from(x) / 4_294_967_296.0 - 0.5
}

/// Writes the checkpoint as two shards with an index.
fn write_checkpoint(reference: &Reference, dir: &Path) {
    std::fs::write(dir.join("config.json"), reference.config.to_string()).unwrap();
    let tensor = |(number, (name, shape)): (usize, (&String, &Vec<usize>))| {
        let elements = shape.iter().product::<usize>() as u32;
        let scaled = |e| match name.ends_with("norm.weight") {
            true => 1.0 + weight(number as u32, e) / 2.0,
            false => weight(number as u32, e) / 2.0,
        };
        let bytes: Vec<u8> = (0..elements).flat_map(|e| (scaled(e) as f32).to_le_bytes()).collect();
        (name.clone(), shape.clone(), bytes)
    };
    let tensors: Vec<_> = reference.shapes.iter().enumerate().map(tensor).collect();
    let mut weight_map = BTreeMap::new();
    for (shard, half) in tensors.chunks(tensors.len().div_ceil(2)).enumerate() {
        let file = format!("model-{:05}-of-00002.safetensors", shard + 1);
        let views = half.iter().map(|(name, shape, bytes)| {
            weight_map.insert(name.clone(), file.clone());
            (name.clone(), TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap())
        });
        let views: Vec<_> = views.collect();
        safetensors::serialize_to_file(views, None, &dir.join(&file)).unwrap();
    }
    let index = serde_json::json!({ "weight_map": weight_map });
    std::fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

#[test]
fn a_sharded_llama_with_stretched_rope_matches_transformers() {
    host_device("Ascend910B3:functional");
    let reference: Reference = serde_json::from_str(include_str!("data/tiny_llama.json")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    write_checkpoint(&reference, dir.path());
    for (dtype, bound) in [(Dtype::Float32, 1e-4f32), (Dtype::Float16, 1e-2)] {
        for piece in [150, 32] {
            let config = EngineConfig {
                dtype: Some(dtype),
                enable_chunked_prefill: true,
                max_num_batched_tokens: piece,
                ..config(ModelSource::Dir(dir.path().to_owned()))
            };
            let rows = debug::logits(config, &reference.prompt).unwrap();
            for (&position, want) in reference.positions.iter().zip(&reference.float32) {
                let worst = rows[position].iter().zip(want).fold(0.0f32, |m, (r, w)| m.max((r - w).abs()));
                assert!(worst <= bound, "{} position {position}, pieces of {piece}: {worst}", dtype.name());
            }
        }
    }
}

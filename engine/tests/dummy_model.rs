//! A published 7B shape without weights on the timing device, which never touches memory: what a laptop can run.

mod common;

use std::sync::{Mutex, PoisonError};

use common::{config, greedy, host_device, submit};
use engine::core::{EngineConfig, FinishReason, KvCacheSize, ModelSource, SamplingParams, start};

fn preset() -> EngineConfig {
    host_device("Ascend910B3:timing:unpaced");
    EngineConfig {
        block_size: 128,
        max_num_seqs: 32,
        kv_cache: KvCacheSize::MemoryUtilization(0.9),
        ..config(ModelSource::Preset("qwen2.5-7b".to_owned()))
    }
}

/// The device has room for one such model at a time.
static DEVICE: Mutex<()> = Mutex::new(());

#[test]
fn every_request_runs_to_its_length_with_token_zero() {
    let _device = DEVICE.lock().unwrap_or_else(PoisonError::into_inner);
    let engine = start(preset()).unwrap();
    let info = engine.info();
    assert!(info.dummy && info.soc_name == "Ascend910B3" && info.dtype == "bfloat16", "{info:?}");
    assert_eq!(info.max_model_len, 32_768);
    let sampling = SamplingParams { temperature: 1.0, logprobs: Some(2), ignore_eos: false, ..greedy(64) };
    let stopping = SamplingParams { ignore_eos: false, stop_token_ids: vec![0], ..greedy(64) };
    let running: Vec<_> = (0..32)
        .map(|i| submit(&engine, &vec![1; 100 + 60 * i], if i % 2 == 0 { &sampling } else { &stopping }))
        .collect();
    for request in running {
        let output = request.wait();
        assert_eq!((output.tokens, output.reason), (vec![0; 64], FinishReason::Length));
    }
    let stats = engine.stats();
    assert_eq!((stats.finished, stats.kv_blocks_free), (32, stats.kv_blocks_total));
    println!(
        "{} decode steps, {:.3} ms of host time each",
        stats.decode_steps,
        stats.decode_post_ns as f64 / stats.decode_steps as f64 / 1e6
    );
}

#[test]
fn a_model_that_does_not_fit_says_how_much_it_takes() {
    let _device = DEVICE.lock().unwrap_or_else(PoisonError::into_inner);
    let too_small = EngineConfig { kv_cache: KvCacheSize::MemoryUtilization(0.1), ..preset() };
    let error = format!("{:#}", start(too_small).unwrap_err());
    assert!(error.contains("more than 0.1 of the device's"), "{error}");
    let too_large = EngineConfig { kv_cache: KvCacheSize::Bytes(200 << 30), ..preset() };
    let error = format!("{:#}", start(too_large).unwrap_err());
    assert!(error.contains("KV blocks") && error.contains("207001"), "{error}");
}

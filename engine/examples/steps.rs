//! Times prefill and decode steps of a preset on the AscendCL device, alone and beside each other.
//!
//! `steps PRESET PREFILL_TOKENS DECODE_BATCH DECODE_CONTEXT REPEATS` prints one JSON object of wall times in seconds.

use anyhow::Context;
use engine::core::timing::{Steps, run};
use engine::core::{Dtype, EngineConfig, ModelSource};

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [preset, numbers @ ..] = &args[..] else { anyhow::bail!("want PRESET and four numbers") };
    let numbers = numbers.iter().map(|n| n.parse()).collect::<Result<Vec<usize>, _>>().context("want whole numbers")?;
    let [prefill_tokens, decode_batch, decode_context, repeats] = numbers[..] else {
        anyhow::bail!("want PRESET PREFILL_TOKENS DECODE_BATCH DECODE_CONTEXT REPEATS")
    };
    let mut config = EngineConfig::new(ModelSource::Preset(preset.clone()));
    config.dtype = Some(Dtype::BFloat16);
    let times = run(&config, &Steps { prefill_tokens, decode_batch, decode_context, repeats })?;
    let object = serde_json::json!({
        "prefill_alone_s": times.prefill_alone_s,
        "decode_alone_s": times.decode_alone_s,
        "prefill_beside_s": times.prefill_beside_s,
        "decode_beside_s": times.decode_beside_s,
    });
    println!("{object}");
    Ok(())
}

//! Times of single steps, alone and beside each other: for comparing a device with a model of it.
//!
//! No scheduler and no requests: one [`Forward`] on each of two streams, driven as the engine's loops drive them, with the
//! clock around post and synchronise.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::config::EngineConfig;
use super::load::Source;
use super::plan::StepPlan;
use crate::acl::AclError;
use crate::kv::blocks_for;
use crate::model::{Activations, Capacity, Forward, KvCache};

/// The steps to time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steps {
    /// Tokens of the prompt that a prefill step runs.
    pub prefill_tokens: usize,
    /// Sequences of a decode step.
    pub decode_batch: usize,
    /// Tokens of each of them after the step.
    pub decode_context: usize,
    /// Prefill steps to time, alone and again beside decode.
    pub repeats: usize,
}

/// Wall times in seconds: host's post to end of synchronise.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Times {
    /// Prefill steps with nothing else on the device.
    pub prefill_alone_s: Vec<f64>,
    /// Decode steps with nothing else on the device.
    pub decode_alone_s: Vec<f64>,
    /// Prefill steps while decode steps follow one another on the other stream.
    pub prefill_beside_s: Vec<f64>,
    /// Decode steps that lay wholly inside the run of prefill steps.
    pub decode_beside_s: Vec<f64>,
}

/// Times the steps.
///
/// # Errors
/// As [`super::start`], and any failure of a step.
pub fn run(config: &EngineConfig, steps: &Steps) -> anyhow::Result<Times> {
    let source = Source::open(config)?;
    let (device, weights) = source.upload(config)?;
    let block = config.block_size;
    let decode_blocks = blocks_for(steps.decode_context, block);
    let prefill_blocks = blocks_for(steps.prefill_tokens, block);
    let blocks = decode_blocks * steps.decode_batch + prefill_blocks;
    let kv = Arc::new(KvCache::new(&device, &source.model, source.dtype, blocks, block, false)?);
    let forward = |capacity| -> anyhow::Result<Forward> {
        let activations = Activations::new(&device, &source.model, source.dtype.bytes(), capacity)?;
        Ok(Forward::new(&device, weights.clone(), kv.clone(), activations)?)
    };
    let one = Capacity { tokens: steps.prefill_tokens, sequences: 1, rows: 1, table_width: prefill_blocks };
    let batch = steps.decode_batch;
    let many = Capacity { tokens: batch, sequences: batch, rows: batch, table_width: decode_blocks };
    let (mut prefill, mut decode) = (forward(one)?, forward(many)?);

    let own_blocks = |first: usize, count: usize| (first as u32..(first + count) as u32).collect::<Vec<u32>>();
    let mut prompt = StepPlan::default();
    let table = own_blocks(decode_blocks * batch, prefill_blocks);
    prompt.push(&vec![1; steps.prefill_tokens], 0, &table, block, true);
    prompt.push_table(&table);
    let mut tokens = StepPlan::default();
    let tables: Vec<_> = (0..batch).map(|i| own_blocks(i * decode_blocks, decode_blocks)).collect();
    tables.iter().for_each(|t| tokens.push(&[1], steps.decode_context - 1, t, block, true));
    tables.iter().for_each(|t| tokens.push_table(t));

    let time = |forward: &mut Forward, plan: &StepPlan| -> Result<f64, AclError> {
        let begin = Instant::now();
        forward.run(plan, &mut |_, _| ())?;
        Ok(begin.elapsed().as_secs_f64())
    };
    // One of each to make the descriptors, which later steps of the same shape reuse.
    time(&mut prefill, &prompt)?;
    time(&mut decode, &tokens)?;
    let mut times = Times::default();
    for _ in 0..steps.repeats {
        times.prefill_alone_s.push(time(&mut prefill, &prompt)?);
        times.decode_alone_s.push(time(&mut decode, &tokens)?);
    }
    let ended = AtomicBool::new(false);
    let beside = std::thread::scope(|scope| {
        let decoding = scope.spawn(|| -> anyhow::Result<Vec<f64>> {
            device.bind_thread()?;
            let mut all = Vec::new();
            while !ended.load(Ordering::Acquire) {
                all.push(time(&mut decode, &tokens)?);
            }
            // The last one may have outlived the prefills.
            all.pop();
            Ok(all)
        });
        let mut run = || -> Result<(), AclError> {
            // The first begins at an arbitrary point of a decode step and is not counted.
            time(&mut prefill, &prompt)?;
            for _ in 0..steps.repeats {
                times.prefill_beside_s.push(time(&mut prefill, &prompt)?);
            }
            Ok(())
        };
        let result = run();
        ended.store(true, Ordering::Release);
        let decoded = decoding.join().map_err(|_| anyhow::anyhow!("the decode thread panicked"))??;
        result?;
        anyhow::Ok(decoded)
    })?;
    // The first decode steps may have begun before the first prefill.
    times.decode_beside_s = beside.into_iter().skip(2).collect();
    Ok(times)
}

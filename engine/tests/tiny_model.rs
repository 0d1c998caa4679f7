//! The tiny checkpoint on the functional device: against transformers, and against itself under other batchings.
//!
//! `data/tiny_qwen2.json` holds what transformers computes; `data/make_reference.py` makes it.

mod common;

use std::sync::OnceLock;

use common::{Output, config, eventually, greedy, host_device, submit, tiny_model};
use engine::core::{
    Dtype, EngineConfig, EngineHandle, EngineRequest, FailKind, FinishReason, Health, KvCacheSize, ModelSource,
    SamplingParams, SubmitError, TokenEvent, Usage, debug, start,
};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    prompt: Vec<u32>,
    greedy: Vec<u32>,
    #[serde(default)]
    positions: Vec<usize>,
    #[serde(default)]
    float32: Vec<Vec<f32>>,
    #[serde(default)]
    bfloat16: Vec<Vec<f32>>,
}

fn cases() -> &'static [Case] {
    #[derive(Deserialize)]
    struct Reference {
        cases: Vec<Case>,
    }
    static CASES: OnceLock<Vec<Case>> = OnceLock::new();
    CASES.get_or_init(|| {
        let text = include_str!("data/tiny_qwen2.json");
        serde_json::from_str::<Reference>(text).expect("the reference parses").cases
    })
}

fn tiny(dtype: Dtype) -> EngineConfig {
    host_device("Ascend910B3:functional");
    EngineConfig { dtype: Some(dtype), ..config(ModelSource::Dir(tiny_model())) }
}

/// Greedy output of every case, all at once, each submitted when the one before has its first token.
fn staggered(engine: &EngineHandle) -> Vec<Vec<u32>> {
    let mut running = Vec::new();
    for case in cases() {
        let mut request = submit(engine, &case.prompt, &greedy(case.greedy.len()));
        let TokenEvent::Token { id, .. } = request.next() else { panic!("a token comes first") };
        running.push((id, request));
    }
    running.into_iter().map(|(first, r)| [vec![first], r.wait().tokens].concat()).collect()
}

/// Output of every case, all submitted together.
fn together(engine: &EngineHandle, params: impl Fn(&Case, usize) -> SamplingParams) -> Vec<Output> {
    let submit_one = |(i, case): (usize, &Case)| submit(engine, &case.prompt, &params(case, i));
    let running: Vec<_> = cases().iter().enumerate().map(submit_one).collect();
    running.into_iter().map(common::Running::wait).collect()
}

fn assert_greedy(outputs: &[Vec<u32>]) {
    for (case, output) in cases().iter().zip(outputs) {
        assert_eq!(output, &case.greedy, "prompt {:?}", case.prompt);
    }
}

/// Fails with the first difference only: outputs are long.
fn assert_same(outputs: &[Output], wanted: &[Output], how: &str) {
    assert_eq!(outputs.len(), wanted.len());
    for (case, (output, want)) in outputs.iter().zip(wanted).enumerate() {
        let steps = output.tokens.iter().zip(&output.logprobs).zip(want.tokens.iter().zip(&want.logprobs));
        for (step, (got, want)) in steps.enumerate() {
            assert_eq!(got, want, "{how}: case {case}, token {step}");
        }
        assert_eq!((output.tokens.len(), output.reason, output.usage), (want.tokens.len(), want.reason, want.usage));
    }
}

#[test]
fn logits_match_transformers() {
    for (dtype, bound) in [(Dtype::Float32, 1e-4f32), (Dtype::BFloat16, 2e-2)] {
        for case in cases().iter().filter(|c| !c.positions.is_empty()) {
            let rows = debug::logits(tiny(dtype), &case.prompt).unwrap();
            assert_eq!(rows.len(), case.prompt.len());
            let wanted = if dtype == Dtype::Float32 { &case.float32 } else { &case.bfloat16 };
            for (&position, want) in case.positions.iter().zip(wanted) {
                let row = &rows[position];
                assert_eq!(row.len(), want.len());
                // A 16-bit logit of 16 has a last place of 0.125: only a bound relative to the largest makes sense there.
                let largest = want.iter().fold(0.0f32, |m, w| m.max(w.abs()));
                let scale = if dtype == Dtype::Float32 { 1.0 } else { largest };
                let worst = row.iter().zip(want).fold(0.0f32, |m, (r, w)| m.max((r - w).abs())) / scale;
                println!("{} position {position}: difference {worst:e}, largest logit {largest}", dtype.name());
                assert!(worst <= bound, "{} position {position}: {worst} > {bound}", dtype.name());
            }
        }
    }
}

#[test]
fn logits_are_the_same_bits_however_a_prompt_is_cut() {
    let prompt = &cases()[12].prompt;
    for dtype in [Dtype::Float32, Dtype::BFloat16] {
        let whole = debug::logits(tiny(dtype), prompt).unwrap();
        for piece in [1, 7, 64] {
            let config = EngineConfig { enable_chunked_prefill: true, max_num_batched_tokens: piece, ..tiny(dtype) };
            let cut = debug::logits(config, prompt).unwrap();
            let differing = whole.iter().zip(&cut).position(|(a, b)| a != b);
            assert_eq!(differing, None, "{} in pieces of {piece}: first differing position", dtype.name());
        }
    }
}

#[test]
fn greedy_tokens_are_those_of_transformers_alone_and_in_a_staggered_batch() {
    let engine = start(tiny(Dtype::Float32)).unwrap();
    let alone: Vec<_> =
        cases().iter().map(|c| submit(&engine, &c.prompt, &greedy(c.greedy.len())).wait().tokens).collect();
    assert_greedy(&alone);
    assert_greedy(&staggered(&engine));
    let stats = engine.stats();
    assert_eq!((stats.waiting, stats.prefilling, stats.running), (0, 0, 0));
    assert_eq!(stats.kv_blocks_free, stats.kv_blocks_total);
    assert_eq!(stats.tokens_generated, 2 * cases().iter().map(|c| c.greedy.len() as u64).sum::<u64>());
}

#[test]
fn greedy_tokens_do_not_depend_on_chunking_or_prefilling_ahead() {
    for (max_num_batched_tokens, prefill_ahead) in [(13, 0), (64, 4)] {
        let engine = start(EngineConfig {
            enable_chunked_prefill: true,
            max_num_batched_tokens,
            prefill_ahead,
            max_num_seqs: 5,
            ..tiny(Dtype::Float32)
        })
        .unwrap();
        let outputs = together(&engine, |case, _| greedy(case.greedy.len()));
        assert_greedy(&outputs.into_iter().map(|o| o.tokens).collect::<Vec<_>>());
        let prompts: usize = cases().iter().map(|c| c.prompt.len()).sum();
        assert_eq!(engine.stats().tokens_prefilled, prompts as u64);
        assert!(engine.stats().prefill_steps as usize >= prompts / max_num_batched_tokens);
    }
}

#[test]
fn greedy_tokens_survive_preemption() {
    for chunked in [false, true] {
        let engine = start(EngineConfig {
            kv_cache: KvCacheSize::Blocks(40), // sixteen sequences of up to 257 tokens want 110
            block_size: 8,
            max_model_len: Some(300),
            enable_chunked_prefill: chunked,
            max_num_batched_tokens: 64,
            ..tiny(Dtype::Float32)
        })
        .unwrap();
        let outputs = together(&engine, |case, _| greedy(case.greedy.len()));
        assert_greedy(&outputs.into_iter().map(|o| o.tokens).collect::<Vec<_>>());
        let stats = engine.stats();
        assert!(stats.preemptions > 0, "{stats:?}");
        assert_eq!(stats.kv_blocks_free, stats.kv_blocks_total);
    }
}

#[test]
fn seeded_samples_depend_on_the_seed_alone() {
    let params = |seed: u64| SamplingParams {
        temperature: 1.5,
        top_p: 0.95,
        top_k: 50,
        seed: Some(seed),
        max_tokens: 24,
        ignore_eos: true,
        logprobs: Some(3),
        ..SamplingParams::default()
    };
    let roomy = start(tiny(Dtype::Float32)).unwrap();
    let alone: Vec<Output> =
        cases().iter().enumerate().map(|(i, c)| submit(&roomy, &c.prompt, &params(i as u64)).wait()).collect();
    assert_same(&together(&roomy, |_, i| params(i as u64)), &alone, "in a batch");
    let tight = start(EngineConfig {
        kv_cache: KvCacheSize::Blocks(36),
        block_size: 8,
        max_model_len: Some(280),
        ..tiny(Dtype::Float32)
    })
    .unwrap();
    assert_same(&together(&tight, |_, i| params(i as u64)), &alone, "after preemption");
    assert!(tight.stats().preemptions > 0);
    assert_ne!(submit(&roomy, &cases()[8].prompt, &params(99)).wait().tokens, alone[8].tokens, "another seed");
    for logprobs in alone[0].logprobs.iter().map(|l| l.as_ref().unwrap()) {
        assert_eq!(logprobs.top.len(), 3);
        assert!(logprobs.chosen <= logprobs.top[0].logprob && logprobs.top[0].logprob <= 0.0);
    }
}

#[test]
fn end_tokens_end_a_sequence_unless_told_otherwise() {
    let engine = start(tiny(Dtype::Float32)).unwrap();
    let case = &cases()[5];
    let end = case.greedy.iter().position(|&t| t == 1023).expect("this answer ends");
    let stopping = SamplingParams { ignore_eos: false, ..greedy(40) };
    let output = submit(&engine, &case.prompt, &stopping).wait();
    assert_eq!(output.tokens, case.greedy[..end], "the end token is not reported");
    let usage = Usage { prompt_tokens: case.prompt.len(), completion_tokens: end + 1 };
    assert_eq!((output.reason, output.usage), (FinishReason::Stop, usage));

    let stop_early = SamplingParams { stop_token_ids: vec![case.greedy[2]], ..greedy(40) };
    let first = case.greedy.iter().position(|&t| t == case.greedy[2]).unwrap();
    assert_eq!(submit(&engine, &case.prompt, &stop_early).wait().tokens, case.greedy[..first]);

    let longer = SamplingParams { min_tokens: end + 3, ..stopping };
    let output = submit(&engine, &case.prompt, &longer).wait();
    assert!(output.usage.completion_tokens >= end + 3 && !output.tokens.contains(&1023), "{output:?}");
    assert_eq!(output.tokens[..end], case.greedy[..end]);
}

#[test]
fn abort_frees_blocks_and_leaves_others_alone() {
    let engine = start(tiny(Dtype::Float32)).unwrap();
    let case = &cases()[12];
    let other = submit(&engine, &case.prompt, &greedy(case.greedy.len()));
    let mut doomed = submit(&engine, &cases()[13].prompt, &greedy(1500));
    for _ in 0..3 {
        assert!(matches!(doomed.next(), TokenEvent::Token { .. }));
    }
    engine.abort(doomed.id);
    let output = doomed.wait();
    assert_eq!(output.reason, FinishReason::Abort);
    assert!(output.usage.completion_tokens >= 3);
    assert_eq!(other.wait().tokens, case.greedy);
    let deserted = submit(&engine, &case.prompt, &greedy(1500));
    drop(deserted);
    eventually("blocks come back", || engine.stats().kv_blocks_free == engine.stats().kv_blocks_total);
    assert_eq!(engine.stats().aborted, 2);
}

#[test]
fn requests_that_cannot_be_served_are_refused_at_submit() {
    let engine = start(EngineConfig { max_model_len: Some(64), ..tiny(Dtype::Float32) }).unwrap();
    let refuse = |prompt: Vec<u32>, params: SamplingParams| {
        let (events, _receiver) = tokio::sync::mpsc::unbounded_channel();
        engine.submit(EngineRequest { id: u64::MAX, prompt, params, events }).unwrap_err()
    };
    let too_long = SubmitError::ContextTooLong { prompt: 60, max_tokens: 5, max_model_len: 64 };
    assert_eq!(refuse(vec![1; 60], greedy(5)), too_long);
    for (prompt, params) in [
        (vec![], greedy(1)),
        (vec![1024], greedy(1)),
        (vec![1], greedy(0)),
        (vec![1], SamplingParams { temperature: f32::NAN, ..greedy(1) }),
        (vec![1], SamplingParams { top_p: 0.0, ..greedy(1) }),
        (vec![1], SamplingParams { top_k: -2, ..greedy(1) }),
    ] {
        assert!(matches!(refuse(prompt, params), SubmitError::Invalid(_)));
    }
    assert_eq!(submit(&engine, &[1; 60], &greedy(4)).wait().tokens.len(), 4, "exactly full is fine");
}

#[test]
fn a_full_queue_refuses() {
    let engine = start(EngineConfig { max_num_seqs: 1, max_waiting: 1, ..tiny(Dtype::Float32) }).unwrap();
    let mut first = submit(&engine, &[1], &greedy(1500));
    assert!(matches!(first.next(), TokenEvent::Token { .. }));
    let second = submit(&engine, &[1], &greedy(1));
    let (events, _receiver) = tokio::sync::mpsc::unbounded_channel();
    let third = engine.submit(EngineRequest { id: u64::MAX, prompt: vec![1], params: greedy(1), events });
    assert_eq!(third, Err(SubmitError::QueueFull { limit: 1 }));
    engine.abort(first.id);
    assert_eq!(second.wait().reason, FinishReason::Length);
}

#[test]
fn shutdown_fails_live_requests_and_refuses_new_ones() {
    let engine = start(tiny(Dtype::Float32)).unwrap();
    let mut live = submit(&engine, &[1], &greedy(1500));
    assert!(matches!(live.next(), TokenEvent::Token { .. }));
    engine.shutdown();
    let last = loop {
        match live.next() {
            TokenEvent::Token { .. } => {}
            last => break last,
        }
    };
    assert!(matches!(last, TokenEvent::Failed { kind: FailKind::Shutdown, .. }));
    assert_eq!(*engine.health().borrow(), Health::Stopped);
    let (events, _receiver) = tokio::sync::mpsc::unbounded_channel();
    let refused = engine.submit(EngineRequest { id: u64::MAX, prompt: vec![1], params: greedy(1), events });
    assert!(matches!(refused, Err(SubmitError::EngineDead(_))));
}

#[test]
fn what_is_missing_is_named() {
    let good = tiny(Dtype::Float32);
    let broken = tempfile::tempdir().unwrap();
    for file in ["model.safetensors", "config.json"] {
        std::fs::copy(tiny_model().join(file), broken.path().join(file)).unwrap();
    }
    let text = std::fs::read_to_string(broken.path().join("config.json")).unwrap();
    let text = text.replace("\"tie_word_embeddings\": true", "\"tie_word_embeddings\": false");
    std::fs::write(broken.path().join("config.json"), text).unwrap();
    for (config, want) in [
        (EngineConfig { acl_library: "libnowhere.so".to_owned(), ..good.clone() }, "libnowhere.so"),
        (EngineConfig { op_library: "libc.so.6".to_owned(), ..good.clone() }, "libc.so.6 has no acl"),
        (EngineConfig { device: 7, ..good.clone() }, "device 7"),
        (EngineConfig { model: ModelSource::Dir(broken.path().to_owned()), ..good.clone() }, "`lm_head.weight`"),
        (EngineConfig { model: ModelSource::Dir("/nonexistent".into()), ..good.clone() }, "/nonexistent/config.json"),
        (EngineConfig { max_model_len: Some(2000), kv_cache: KvCacheSize::Blocks(3), ..good }, "48 tokens"),
    ] {
        let error = format!("{:#}", start(config).unwrap_err());
        assert!(error.contains(want), "{error}");
    }
}

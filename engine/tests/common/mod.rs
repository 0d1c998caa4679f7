//! Runs the engine in this process on the emulated device that the built interposer hosts (its direct mode).
//!
//! The engine is given the library's path; nothing of the engine knows where it comes from.

#![allow(dead_code, missing_docs)] // each test program uses a part

use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use engine::core::{
    EngineConfig, EngineHandle, EngineRequest, FinishReason, KvCacheSize, Logprobs, ModelSource, SamplingParams,
    TokenEvent, Usage,
};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// Longest that a request of these tests may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// The interposer's library, beside this test program.
fn library() -> PathBuf {
    let exe = std::env::current_exe().expect("path of the running test");
    let found = exe.ancestors().skip(1).take(2).map(|d| d.join("libvnpu_interposer.so")).find(|p| p.is_file());
    found.expect("the interposer is not built: run `cargo build --release`")
}

/// Chooses the device that libraries loaded later will host: once a process, before any engine starts.
pub fn host_device(spec: &str) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: called before this process has loaded the only library that reads these variables; tests started meanwhile
        // wait in `call_once`.
        unsafe {
            std::env::set_var("VNPU_MODE", "direct");
            std::env::set_var("VNPU_DEVICE", spec);
        }
    });
}

pub fn tiny_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny-qwen2")
}

pub fn config(model: ModelSource) -> EngineConfig {
    let library = library().to_string_lossy().into_owned();
    EngineConfig {
        acl_library: library.clone(),
        op_library: library,
        max_num_seqs: 16,
        block_size: 16,
        kv_cache: KvCacheSize::Blocks(512),
        ..EngineConfig::new(model)
    }
}

/// A request in progress.
pub struct Running {
    pub id: u64,
    events: UnboundedReceiver<TokenEvent>,
}

/// All that came of a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    pub tokens: Vec<u32>,
    pub logprobs: Vec<Option<Logprobs>>,
    pub reason: FinishReason,
    pub usage: Usage,
}

pub fn greedy(max_tokens: usize) -> SamplingParams {
    SamplingParams { temperature: 0.0, ignore_eos: true, max_tokens, ..SamplingParams::default() }
}

pub fn submit(engine: &EngineHandle, prompt: &[u32], params: &SamplingParams) -> Running {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let id = NEXT.fetch_add(1, Ordering::Relaxed);
    let (sender, events) = unbounded_channel();
    engine
        .submit(EngineRequest { id, prompt: prompt.to_vec(), params: params.clone(), events: sender })
        .expect("the request is accepted");
    Running { id, events }
}

impl Running {
    /// The next event; panics if none comes in time or the channel closes without a last event.
    pub fn next(&mut self) -> TokenEvent {
        let started = Instant::now();
        loop {
            match self.events.try_recv() {
                Ok(event) => return event,
                Err(tokio::sync::mpsc::error::TryRecvError::Disconnected) => panic!("closed without a last event"),
                Err(_) => {
                    assert!(started.elapsed() < PATIENCE, "no event in {PATIENCE:?}");
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
    }

    pub fn wait(mut self) -> Output {
        let (mut tokens, mut logprobs) = (Vec::new(), Vec::new());
        loop {
            match self.next() {
                TokenEvent::Token { id, logprobs: l } => {
                    tokens.push(id);
                    logprobs.push(l);
                }
                TokenEvent::Finished { reason, usage } => return Output { tokens, logprobs, reason, usage },
                TokenEvent::Failed { kind, message } => panic!("{kind}: {message}"),
            }
        }
    }
}

/// Waits until `condition` holds.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

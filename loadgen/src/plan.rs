//! From the command line to a plan, and from a plan to bodies: everything that is decided before the clock starts.

use std::io::Write;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use loadgen::dataset::{self, Planned, prompt_ids};
use loadgen::schedule;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::cli::{DatasetName, RunArgs};
use crate::engine::Job;

/// Bodies are made before the run and held until its end; this many bytes of them at most.
const BODIES_BYTES_MAX: usize = 4 << 30;

/// What is sent when, from the arguments alone: the same arguments give the same plan.
///
/// # Errors
/// A bad argument or trace, with what was expected.
pub fn plan(args: &RunArgs) -> anyhow::Result<Vec<Planned>> {
    let mut plan = match args.dataset_name {
        DatasetName::Random => {
            let count = args.num_prompts.unwrap_or(100);
            let at = schedule::arrivals(count, args.request_rate.unwrap_or(f64::INFINITY), args.burstiness, args.seed)?;
            ensure!(
                (0.0..1.0).contains(&args.random_range_ratio),
                "--random-range-ratio must be at least 0 and below 1"
            );
            let lengths = dataset::random_lengths(
                count,
                args.random_input_len,
                args.random_output_len,
                args.random_range_ratio,
                args.seed,
            );
            at.into_iter()
                .zip(lengths)
                .map(|(at_s, (prompt_tokens, output_tokens))| Planned { at_s, prompt_tokens, output_tokens })
                .collect()
        }
        DatasetName::Trace => trace(args)?,
    };
    if args.quick {
        plan.truncate(10);
        plan.iter_mut().for_each(|p| p.output_tokens = p.output_tokens.min(32));
    }
    ensure!(!plan.is_empty(), "nothing to send: --num-prompts is 0 or the filters leave no request");
    Ok(plan)
}

fn trace(args: &RunArgs) -> anyhow::Result<Vec<Planned>> {
    let Some(path) = &args.dataset_path else { bail!("--dataset-name trace needs --dataset-path FILE") };
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let rows = dataset::parse_trace(&text).with_context(|| path.display().to_string())?;
    let end = args.trace_duration.map_or(f64::INFINITY, |d| args.trace_start + d);
    let mut plan: Vec<Planned> = rows
        .into_iter()
        .filter(|r| r.at_s >= args.trace_start && r.at_s < end)
        .filter(|r| args.max_total_len.is_none_or(|max| r.prompt_tokens.saturating_add(r.output_tokens) <= max))
        .take(args.num_prompts.unwrap_or(usize::MAX))
        .collect();
    if let Some(rate) = args.request_rate {
        ensure!(rate > 0.0, "--request-rate must be above 0 (or `inf`), not {rate}");
    }
    dataset::rescale(&mut plan, args.request_rate);
    Ok(plan)
}

/// Writes the plan, one JSON object a line.
///
/// # Errors
/// If `out` does not take it.
pub fn print(plan: &[Planned], out: &mut impl Write) -> std::io::Result<()> {
    for (index, p) in plan.iter().enumerate() {
        let line = json!({
            "index": index, "at_ns": at_ns(p), "prompt_tokens": p.prompt_tokens, "output_tokens": p.output_tokens,
        });
        writeln!(out, "{line}")?;
    }
    Ok(())
}

/// Hash of everything that is sent and when: equal for runs that may be compared.
pub fn workload(args: &RunArgs, plan: &[Planned]) -> String {
    let mut text = Vec::new();
    print(plan, &mut text).expect("memory takes every write");
    let about =
        (args.seed, args.vocab_size, &args.endpoint, args.max_concurrency, args.ignore_eos, args.extra_body.as_deref());
    text.extend_from_slice(format!("{about:?}").as_bytes());
    Sha256::digest(&text).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn at_ns(planned: &Planned) -> u64 {
    (planned.at_s * 1e9).round() as u64
}

/// What every body of a run has in common.
pub struct Template {
    /// Model name.
    pub model: String,
    extra: Map<String, Value>,
    chat: bool,
    ignore_eos: bool,
    vocab: u32,
    seed: u64,
}

impl Template {
    /// Reads what of it the arguments say.
    ///
    /// # Errors
    /// If `--extra-body` is no JSON object.
    pub fn new(args: &RunArgs, model: String) -> anyhow::Result<Self> {
        let extra = match &args.extra_body {
            Some(text) => serde_json::from_str(text).context("--extra-body must be a JSON object")?,
            None => Map::new(),
        };
        Ok(Self {
            model,
            extra,
            chat: args.endpoint.ends_with("/chat/completions"),
            ignore_eos: args.ignore_eos,
            vocab: args.vocab_size,
            seed: args.seed,
        })
    }

    /// Makes every request of the plan ready.
    ///
    /// # Errors
    /// If the bodies would take more memory than is sane.
    pub fn jobs(&self, plan: &[Planned]) -> anyhow::Result<Vec<Job>> {
        let mut bytes = 0;
        plan.iter()
            .enumerate()
            .map(|(index, planned)| {
                let body = Bytes::from(self.body(planned, index).to_string());
                bytes += body.len();
                ensure!(
                    bytes <= BODIES_BYTES_MAX,
                    "the first {index} requests have {} GiB of prompts; send fewer (--num-prompts) or shorter ones",
                    BODIES_BYTES_MAX >> 30
                );
                Ok(Job {
                    index,
                    at_ns: at_ns(planned),
                    body,
                    prompt_tokens: planned.prompt_tokens,
                    output_tokens: planned.output_tokens,
                })
            })
            .collect()
    }

    fn body(&self, planned: &Planned, index: usize) -> Value {
        let ids = prompt_ids(planned.prompt_tokens, self.vocab, self.seed, index);
        let mut body = json!({
            "model": self.model,
            "stream": true,
            "stream_options": { "include_usage": true },
            "max_tokens": planned.output_tokens.max(1),
            "temperature": 0,
        });
        if self.chat {
            // Chat endpoints take text: one short word a token is the closest that holds for any tokenizer.
            let words: Vec<String> = ids.iter().map(|id| format!("w{}", id % 10)).collect();
            body["messages"] = json!([{ "role": "user", "content": words.join(" ") }]);
        } else {
            body["prompt"] = json!(ids);
        }
        if self.ignore_eos {
            body["ignore_eos"] = json!(true);
        }
        for (key, value) in &self.extra {
            body[key] = value.clone();
        }
        body
    }
}

//! From a plan to bodies: everything that a request carries is made before the clock starts.

use anyhow::{Context, ensure};
use bytes::Bytes;
use loadgen::dataset::Planned;
use loadgen::prompt::Prompt;
use serde_json::{Map, Value, json};

use crate::cli::RunArgs;
use crate::engine::{Job, Turn};

/// Bodies are made before the run and held until its end; this many bytes of them at most.
const BODIES_BYTES_MAX: usize = 4 << 30;

/// What every body of a run has in common.
pub struct Template {
    model: String,
    extra: Map<String, Value>,
    chat: bool,
    ignore_eos: bool,
    vocab: u32,
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
        })
    }

    /// Makes every request of the plan ready; a session's turns become one job.
    ///
    /// # Errors
    /// A prompt that the endpoint does not take, or more bytes of bodies than is sane.
    pub fn jobs(&self, plan: &[Planned]) -> anyhow::Result<Vec<Job>> {
        let mut bytes = 0;
        let mut jobs: Vec<Job> = Vec::new();
        for (index, planned) in plan.iter().enumerate() {
            let body = Bytes::from(self.body(planned)?.to_string());
            bytes += body.len();
            ensure!(
                bytes <= BODIES_BYTES_MAX,
                "the first {index} requests have {} GiB of prompts; send fewer (--num-prompts) or shorter ones",
                BODIES_BYTES_MAX >> 30
            );
            let turn = Turn {
                index,
                think_ns: if planned.follows() { nanos(planned.at_s) } else { 0 },
                body,
                prompt_tokens: planned.prompt_tokens,
                is_exact: planned.prompt.is_exact(),
                output_tokens: planned.output_tokens,
                cancel_after_ns: planned.cancel_after_s.map(nanos),
            };
            match jobs.last_mut().filter(|_| planned.follows()) {
                Some(session) => session.turns.push(turn),
                None => jobs.push(Job { at_ns: nanos(planned.at_s), turns: vec![turn] }),
            }
        }
        Ok(jobs)
    }

    fn body(&self, planned: &Planned) -> anyhow::Result<Value> {
        let mut body = json!({
            "model": self.model,
            "stream": true,
            "stream_options": { "include_usage": true },
            "max_tokens": planned.output_tokens.max(1),
            "temperature": 0,
        });
        let user = |text: &str| json!([{ "role": "user", "content": text }]);
        match (&planned.prompt, self.chat) {
            (Prompt::Text(text), false) => body["prompt"] = json!(text),
            (Prompt::Text(text), true) => body["messages"] = user(text),
            (Prompt::Messages(messages), true) => body["messages"] = messages.clone(),
            (Prompt::Messages(_), false) => {
                anyhow::bail!("messages need --endpoint /v1/chat/completions")
            }
            (prompt, chat) => {
                let ids = prompt.ids(self.vocab).expect("blocks and ids have token ids");
                // Chat endpoints take text: one short word a token is the closest that holds for any tokenizer.
                let words = || ids.iter().map(|id| format!("w{}", id % 10)).collect::<Vec<_>>().join(" ");
                match chat {
                    true => body["messages"] = user(&words()),
                    false => body["prompt"] = json!(ids),
                }
            }
        }
        if self.ignore_eos {
            body["ignore_eos"] = json!(true);
        }
        for (key, value) in &self.extra {
            body[key] = value.clone();
        }
        Ok(body)
    }
}

/// Nanoseconds of a plan's seconds.
pub fn nanos(seconds: f64) -> u64 {
    (seconds * 1e9).round() as u64
}

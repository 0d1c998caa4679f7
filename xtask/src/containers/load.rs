//! Clients that never stop asking while something is done to the stack: every request ends, finished or with a clear failure, and none
//! takes longer than the gateway's own bounds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use serde_json::{Value, json};
use stack::{Http, StreamEvent};

/// Longer than the gateway's longest wait (60 s for a first token, 20 s for the next): whoever takes longer hangs.
pub const HANGS_AFTER: Duration = Duration::from_secs(90);
/// Clients at a time; every other one streams.
const CLIENTS: usize = 4;
/// Pause of a client after a failure.
const PAUSE: Duration = Duration::from_millis(50);

/// How requests ended.
#[derive(Debug, Default)]
pub struct Ends {
    /// Whole answers.
    pub finished: usize,
    /// Failures by what the client was told.
    pub failed: BTreeMap<String, usize>,
    /// Failures of requests that are not streamed: nothing of their answers had come.
    pub before_anything: usize,
    /// Longest request.
    pub longest: Duration,
}

impl Ends {
    /// Requests that failed.
    pub fn failures(&self) -> usize {
        self.failed.values().sum()
    }

    fn add(&mut self, other: Self) {
        self.finished += other.finished;
        for (what, count) in other.failed {
            *self.failed.entry(what).or_default() += count;
        }
        self.before_anything += other.before_anything;
        self.longest = self.longest.max(other.longest);
    }
}

/// Clients at work.
pub struct Load {
    over: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Result<Ends>>>,
}

impl Load {
    /// Begins to ask at `http`, which has its key.
    pub fn start(http: &Http) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let client = |index: usize| {
            let (http, over) = (http.within(HANGS_AFTER), Arc::clone(&over));
            std::thread::spawn(move || ask_on(&http, index.is_multiple_of(2), &over))
        };
        let clients = (0..CLIENTS).map(client).collect();
        Self { over, clients }
    }

    /// Asks no more; how all ended.
    ///
    /// # Errors
    /// If one hung, or ended without saying how.
    pub fn end(self) -> Result<Ends> {
        self.over.store(true, Ordering::Relaxed);
        let mut all = Ends::default();
        for client in self.clients {
            all.add(client.join().map_err(|_| anyhow!("a client panicked"))??);
        }
        Ok(all)
    }
}

fn ask_on(http: &Http, streams: bool, over: &AtomicBool) -> Result<Ends> {
    let mut ends = Ends::default();
    while !over.load(Ordering::Relaxed) {
        let start = Instant::now();
        match ask(http, streams) {
            Ok(()) => ends.finished += 1,
            Err(error) => {
                ends.before_anything += usize::from(!streams);
                *ends.failed.entry(words(&error)?).or_default() += 1;
                std::thread::sleep(PAUSE);
            }
        }
        ends.longest = ends.longest.max(start.elapsed());
        ensure!(start.elapsed() < HANGS_AFTER, "a request hung for {:?}", start.elapsed());
    }
    Ok(ends)
}

/// One request, its answer read to the end.
///
/// # Errors
/// How it failed.
pub fn ask(http: &Http, streams: bool) -> Result<()> {
    let body =
        json!({ "model": "tiny-qwen2", "prompt": [1, 2, 3, 4, 5, 6, 7, 8], "max_tokens": 300, "ignore_eos": true });
    if !streams {
        let answer = http.post_json("/v1/completions", &body)?;
        ensure!(answer["choices"][0]["text"].is_string(), "an answer without text: {answer}");
        return Ok(());
    }
    let mut done = false;
    for event in http.stream("/v1/completions", &body)? {
        match event? {
            StreamEvent::Error(error) => return Err(anyhow!("{}", json!({ "error": error }))),
            StreamEvent::Done => done = true,
            StreamEvent::Text(..) | StreamEvent::Usage(_) => {}
        }
    }
    ensure!(done, "closed");
    Ok(())
}

/// What a failed request was told: the code of an error in the API's shape, or that there was no connection or it closed.
///
/// # Errors
/// An answer that says nothing that a client could act on.
fn words(error: &anyhow::Error) -> Result<String> {
    let text = format!("{error:#}");
    if let Some(object) = text.find("{\"error\"").and_then(|at| serde_json::from_str::<Value>(&text[at..]).ok()) {
        let code = object["error"]["code"].as_str();
        ensure!(code.is_some() && object["error"]["message"].is_string(), "an error without code or message: {text}");
        return Ok(code.unwrap_or_default().to_owned());
    }
    // Whatever else a client is told comes from its own connection, unless it waited in vain or got a status without an explanation.
    let unclear = ["timeout", "timed out", "HTTP ", "without text"];
    ensure!(!unclear.iter().any(|word| text.contains(word)), "a failure that says nothing: {text}");
    Ok("connection closed".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_clear_or_an_error() {
        let said = |text: &str| words(&anyhow!(text.to_owned())).ok();
        let object = r#"{"error":{"message":"m","type":"t","param":null,"code":"engine_lost"}}"#;
        assert_eq!(said(&format!("POST /x: HTTP 502: {object}")).as_deref(), Some("engine_lost"));
        assert_eq!(said("POST /x: io: Connection refused").as_deref(), Some("connection closed"));
        assert_eq!(said("closed").as_deref(), Some("connection closed"));
        assert_eq!(said("POST /x: timeout: global"), None);
        assert_eq!(said("an answer without text: {}"), None);
        assert_eq!(said("POST /x: HTTP 500: oops"), None);
        assert_eq!(said(r#"{"error":{"message":"m"}}"#), None);
    }
}

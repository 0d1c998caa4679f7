//! What the mock answers, whatever protocol it was asked in.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::body::{self, Script, Tokens};
use super::truth::Truth;
use super::{MODEL, MockArgs};
use crate::clock::{Alarms, now_ns};

/// Tokens of an answer where the request names no number.
const TOKENS_DEFAULT: u32 = 16;

/// A request that has been read whole.
pub struct Ask<'a> {
    /// In capitals.
    pub method: &'a str,
    /// Without a query.
    pub path: &'a str,
    /// `x-request-id`.
    pub id: Option<&'a str>,
    /// Its body.
    pub body: &'a [u8],
    /// When its last bytes left the socket, monotonic nanoseconds.
    pub read_ns: u64,
}

/// What is answered.
pub enum Answer {
    /// A status, and JSON.
    Whole(u16, String),
    /// Tokens, each when it is due.
    Stream(Box<Tokens>),
}

impl Answer {
    fn json(status: u16, value: &Value) -> Self {
        Self::Whole(status, value.to_string())
    }

    fn error(status: u16, message: &str) -> Self {
        Self::json(status, &json!({ "error": { "message": message } }))
    }
}

/// One thread's server.
pub struct Server {
    pub args: MockArgs,
    pub alarms: Rc<Alarms>,
    seen: Cell<u64>,
    /// The event of a whole chunk, of completions and of chat.
    chunks: [Bytes; 2],
    slots: Option<Arc<Semaphore>>,
    truth: Arc<Mutex<Vec<Truth>>>,
}

/// What is read of a request; everything else is accepted and ignored.
#[derive(Deserialize)]
struct Asked {
    #[serde(default)]
    prompt: Prompt,
    #[serde(default)]
    messages: Vec<Message>,
    #[serde(alias = "max_completion_tokens")]
    max_tokens: Option<u32>,
    #[serde(default)]
    stream: bool,
}

#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    content: Prompt,
}

/// Token ids, or text of which a word is a token.
#[derive(Deserialize)]
#[serde(untagged)]
enum Prompt {
    Ids(Vec<u32>),
    Text(String),
    Other(serde::de::IgnoredAny),
}

impl Default for Prompt {
    fn default() -> Self {
        Self::Ids(Vec::new())
    }
}

impl Prompt {
    fn tokens(&self) -> usize {
        match self {
            Self::Ids(ids) => ids.len(),
            Self::Text(text) => text.split_whitespace().count(),
            Self::Other(_) => 0,
        }
    }
}

impl Server {
    /// A server that notes what it does in `truth`.
    pub fn new(args: &MockArgs, alarms: Rc<Alarms>, truth: Arc<Mutex<Vec<Truth>>>) -> Self {
        Self {
            args: args.clone(),
            alarms,
            seen: Cell::new(0),
            chunks: [false, true].map(|chat| body::content(chat, args.tokens_per_chunk, None)),
            slots: args.slots.map(|n| Arc::new(Semaphore::new(n.max(1)))),
            truth,
        }
    }

    /// Answers, once there is a place for the request.
    pub async fn answer(&self, ask: Ask<'_>) -> Answer {
        match (ask.method, ask.path) {
            ("GET", "/v1/models") => {
                Answer::json(200, &json!({ "object": "list", "data": [{ "id": MODEL, "object": "model" }] }))
            }
            ("GET", "/truth") => {
                let taken = std::mem::take(&mut *self.truth.lock().unwrap_or_else(|e| e.into_inner()));
                Answer::json(200, &json!(taken))
            }
            ("GET", "/health") => Answer::json(200, &json!({})),
            ("POST", "/v1/completions") => self.complete(ask, false).await,
            ("POST", "/v1/chat/completions") => self.complete(ask, true).await,
            (_, path) => Answer::error(404, &format!("no {path} here")),
        }
    }

    async fn complete(&self, ask: Ask<'_>, chat: bool) -> Answer {
        let asked: Asked = match serde_json::from_slice(ask.body) {
            Ok(asked) => asked,
            Err(error) => return Answer::error(400, &error.to_string()),
        };
        let seen = self.seen.get() + 1;
        self.seen.set(seen);
        let due = |every: u64| every > 0 && seen.is_multiple_of(every);
        if due(self.args.refuse_every) {
            return Answer::error(500, "refused, as --refuse-every asks");
        }
        let mut read_ns = ask.read_ns;
        let place = match &self.slots {
            Some(slots) => {
                let place = Arc::clone(slots).acquire_owned().await.ok();
                read_ns = read_ns.max(now_ns());
                place
            }
            None => None,
        };
        let prompt_tokens = asked.prompt.tokens() + asked.messages.iter().map(|m| m.content.tokens()).sum::<usize>();
        let script = Script {
            id: ask.id.and_then(|id| id.rsplit('-').next()?.parse().ok()).unwrap_or(u64::MAX),
            chat,
            read_ns,
            prompt_tokens: prompt_tokens as u32,
            tokens: asked.max_tokens.unwrap_or(TOKENS_DEFAULT).max(1),
            truncated: due(self.args.truncate_every),
            broken: due(self.args.error_every),
            empty: due(self.args.empty_every),
        };
        let chunk = &self.chunks[usize::from(chat)];
        let tokens = Tokens::new(&self.args, script, chunk, Rc::clone(&self.alarms), Arc::clone(&self.truth), place);
        match asked.stream {
            true => Answer::Stream(Box::new(tokens)),
            false => Answer::json(200, &tokens.whole().await),
        }
    }
}

//! A stream of the mock as the body of its response: each poll gives what is due by now.
//!
//! No channel and no task of its own: the connection polls the body, an alarm wakes the connection. A frame is one HTTP
//! chunk; hyper writes it out before it polls for the next that is not due yet.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame};
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;

use super::truth::Truth;
use super::{MODEL, MockArgs};
use crate::clock::{Alarms, Until, now_ns};

/// Streams whose truth is kept until somebody asks; later ones are not noted.
const TRUTHS_MAX: usize = 1 << 20;

/// What one stream is to do.
pub struct Script {
    /// The request's number.
    pub id: u64,
    /// Chat format instead of plain completions.
    pub chat: bool,
    /// When its time begins, monotonic nanoseconds.
    pub read_ns: u64,
    /// Prompt tokens to report.
    pub prompt_tokens: u32,
    /// Tokens to give.
    pub tokens: u32,
    /// Ends in the middle, without `[DONE]`.
    pub truncated: bool,
    /// Carries an error.
    pub broken: bool,
    /// Has no content.
    pub empty: bool,
}

/// The body.
pub struct Tokens {
    script: Script,
    schedule: Schedule,
    tokens_per_chunk: u32,
    /// The event of a whole chunk, made once a server; `None` where events differ.
    chunk: Option<Bytes>,
    split_bytes: Option<usize>,
    continuous_usage: bool,
    alarms: Rc<Alarms>,
    truths: Arc<Mutex<Vec<Truth>>>,
    truth: Truth,
    /// What has been made and not been taken yet.
    made: Bytes,
    given: u32,
    state: State,
    waiting: Option<Until>,
    _place: Option<OwnedSemaphorePermit>,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Role,
    Tokens,
    Tail,
    End,
}

/// When tokens are due. Pure.
#[derive(Clone, Copy, Debug)]
struct Schedule {
    first_ns: u64,
    itl_ns: u64,
    in_step: bool,
}

impl Schedule {
    /// When token `index`, from 0, leaves: monotonic nanoseconds.
    fn due_ns(&self, index: u32) -> u64 {
        let first_ns = match self.in_step && self.itl_ns > 0 {
            true => self.first_ns.next_multiple_of(self.itl_ns),
            false => self.first_ns,
        };
        first_ns + u64::from(index) * self.itl_ns
    }
}

impl Tokens {
    /// A stream that begins at `script.read_ns`.
    pub fn new(
        args: &MockArgs,
        script: Script,
        chunk: &Bytes,
        alarms: Rc<Alarms>,
        truths: Arc<Mutex<Vec<Truth>>>,
        place: Option<OwnedSemaphorePermit>,
    ) -> Self {
        let ns = |ms: f64| (ms * 1e6) as u64;
        Self {
            schedule: Schedule {
                first_ns: script.read_ns + ns(args.ttft_ms),
                itl_ns: ns(args.itl_ms),
                in_step: args.in_step,
            },
            tokens_per_chunk: args.tokens_per_chunk,
            chunk: (!args.continuous_usage).then(|| chunk.clone()),
            split_bytes: args.split_bytes.map(|n| n as usize),
            continuous_usage: args.continuous_usage,
            alarms,
            truths,
            truth: Truth { id: script.id, read_ns: script.read_ns, first_ns: 0, last_ns: 0, tokens: script.tokens },
            made: Bytes::new(),
            given: 0,
            state: if script.chat { State::Role } else { State::Tokens },
            waiting: None,
            _place: place,
            script,
        }
    }

    /// Waits for the last token; the whole answer as one object.
    pub async fn whole(self) -> Value {
        self.alarms.until(self.schedule.due_ns(self.script.tokens - 1)).await;
        let text = "a ".repeat(self.script.tokens as usize);
        let choice = match self.script.chat {
            true => {
                json!({ "index": 0, "message": { "role": "assistant", "content": text }, "finish_reason": "length" })
            }
            false => json!({ "index": 0, "text": text, "finish_reason": "length" }),
        };
        json!({ "id": "mock", "model": MODEL, "choices": [choice], "usage": self.usage(self.script.tokens) })
    }

    fn usage(&self, given: u32) -> Value {
        let prompt = self.script.prompt_tokens;
        json!({ "prompt_tokens": prompt, "completion_tokens": given, "total_tokens": prompt + given })
    }

    /// The next bytes, once they are due; `None` at the end.
    fn make(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        match self.state {
            State::Role => {
                self.state = State::Tokens;
                let role = json!({ "role": "assistant", "content": "" });
                Poll::Ready(Some(event(self.script.chat, &json!([{ "index": 0, "delta": role }]), None)))
            }
            State::Tokens if self.script.empty => {
                self.state = State::End;
                Poll::Ready(Some(Bytes::from_static(b"data: [DONE]\n\n")))
            }
            State::Tokens => {
                let upto = (self.given + self.tokens_per_chunk).min(self.script.tokens);
                let due_ns = self.schedule.due_ns(upto - 1);
                if now_ns() < due_ns {
                    let waiting = self.waiting.get_or_insert_with(|| self.alarms.until(due_ns));
                    std::task::ready!(Pin::new(waiting).poll(cx));
                }
                self.waiting = None;
                let fresh = upto - self.given;
                self.truth.last_ns = now_ns();
                if self.given == 0 {
                    self.truth.first_ns = self.truth.last_ns;
                }
                self.given = upto;
                let half = self.given >= self.script.tokens.div_ceil(2);
                if self.given == self.script.tokens {
                    self.state = State::Tail;
                } else if half && self.script.truncated {
                    self.state = State::End;
                }
                if half && self.script.broken {
                    self.state = State::End;
                    return Poll::Ready(Some(Bytes::from_static(
                        b"data: {\"error\":{\"message\":\"broken, as --error-every asks\",\"code\":500}}\n\ndata: [DONE]\n\n",
                    )));
                }
                Poll::Ready(Some(match &self.chunk {
                    Some(chunk) if fresh == self.tokens_per_chunk => chunk.clone(),
                    _ => content(self.script.chat, fresh, self.continuous_usage.then(|| self.usage(self.given))),
                }))
            }
            State::Tail => {
                self.state = State::End;
                if self.script.truncated {
                    return Poll::Ready(None);
                }
                let mut tail = event(self.script.chat, &json!([]), Some(self.usage(self.given))).to_vec();
                tail.extend_from_slice(b"data: [DONE]\n\n");
                Poll::Ready(Some(tail.into()))
            }
            State::End => Poll::Ready(None),
        }
    }
}

/// The event of a chunk of `tokens` tokens.
pub fn content(chat: bool, tokens: u32, usage: Option<Value>) -> Bytes {
    let text = "a ".repeat(tokens as usize);
    let choice = match chat {
        true => json!([{ "index": 0, "delta": { "content": text }, "finish_reason": null }]),
        false => json!([{ "index": 0, "text": text, "finish_reason": null }]),
    };
    event(chat, &choice, usage)
}

fn event(chat: bool, choices: &Value, usage: Option<Value>) -> Bytes {
    let object = if chat { "chat.completion.chunk" } else { "text_completion" };
    let event =
        json!({ "id": "mock", "object": object, "created": 0, "model": MODEL, "choices": choices, "usage": usage });
    Bytes::from(format!("data: {event}\n\n"))
}

impl Body for Tokens {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        if self.made.is_empty() {
            match std::task::ready!(self.make(cx)) {
                Some(bytes) => self.made = bytes,
                None => return Poll::Ready(None),
            }
        }
        let take = self.split_bytes.unwrap_or(usize::MAX).min(self.made.len());
        Poll::Ready(Some(Ok(Frame::data(self.made.split_to(take)))))
    }
}

impl Drop for Tokens {
    fn drop(&mut self) {
        if self.given > 0 {
            let mut truths = self.truths.lock().unwrap_or_else(|e| e.into_inner());
            if truths.len() < TRUTHS_MAX {
                truths.push(Truth { tokens: self.given, ..self.truth });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_due_on_an_absolute_schedule() {
        let free = Schedule { first_ns: 105, itl_ns: 20, in_step: false };
        assert_eq!([free.due_ns(0), free.due_ns(1), free.due_ns(5)], [105, 125, 205]);
        let stepped = Schedule { in_step: true, ..free };
        assert_eq!([stepped.due_ns(0), stepped.due_ns(1)], [120, 140], "at the clock's ticks");
    }
}

//! One task of the engine: a request, or the turns of a session one after the other.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use loadgen::measure::Outcome;

use super::connect::Pool;
use super::target::Head;
use super::{Job, Place, Shared, Turn, request};
use crate::clock::{Alarms, now_ns};

/// What a task needs of its thread.
pub struct Session {
    pub pool: Rc<Pool>,
    pub head: Rc<Head>,
    pub alarms: Rc<Alarms>,
    pub outcomes: Rc<RefCell<Vec<Outcome>>>,
    pub shared: Arc<Shared>,
    pub start_ns: u64,
}

impl Session {
    /// Sends the turns of `job`, the first of which has its place.
    pub async fn run(self, job: Job, place: Place) {
        let (mut due_ns, mut place) = (job.at_ns, Some(place));
        let mut turns = job.turns.into_iter();
        for turn in turns.by_ref() {
            let place = match place.take() {
                Some(first) => first,
                None => {
                    due_ns = now_ns() - self.start_ns + turn.think_ns;
                    self.alarms.until(self.start_ns + due_ns).await;
                    self.shared.place().await
                }
            };
            let outcome = self.send(turn, due_ns, &place).await;
            let failed = outcome.error.is_some();
            self.outcomes.borrow_mut().push(outcome);
            if failed {
                break;
            }
        }
        // What would have followed an answer that never came.
        let due_ns = now_ns() - self.start_ns;
        self.outcomes.borrow_mut().extend(turns.map(|turn| Outcome {
            scheduled_ns: due_ns,
            permitted_ns: due_ns,
            sent_ns: due_ns,
            error: Some("not sent: a turn before it failed".into()),
            ..planned(&turn)
        }));
    }

    async fn send(&self, turn: Turn, due_ns: u64, place: &Place) -> Outcome {
        let progress = &self.shared.progress;
        progress.sent.fetch_add(1, Ordering::Relaxed);
        let mut outcome = Outcome {
            scheduled_ns: due_ns,
            permitted_ns: place.as_ref().map_or(due_ns, |(_, since_ns)| since_ns - self.start_ns),
            ..planned(&turn)
        };
        let id = format!("{}-{}", self.shared.run_id, turn.index);
        let timeout = self.shared.target.timeout;
        let cancel_ns = turn.cancel_after_ns.map(|after_ns| now_ns() + after_ns);
        let sending = request::run(&self.pool, &self.head, &id, turn.body, self.start_ns, &mut outcome);
        let ended = tokio::time::timeout(timeout, async {
            match cancel_ns {
                None => Some(sending.await),
                Some(at_ns) => tokio::select! {
                    biased;
                    ended = sending => Some(ended),
                    () = self.alarms.until(at_ns) => None,
                },
            }
        });
        let ended = ended.await;
        match ended {
            Ok(Some(Ok(()))) => {}
            Ok(Some(Err(failure))) => outcome.error = Some(failure.0),
            Ok(None) => outcome.cancelled = true,
            Err(_) => outcome.error = Some(format!("no end after {} s", timeout.as_secs())),
        }
        if outcome.error.is_some() || outcome.cancelled {
            outcome.output_tokens = outcome.output_tokens.min(outcome.chunks_ns.len() as u32);
        }
        progress.ended(&outcome);
        outcome
    }
}

fn planned(turn: &Turn) -> Outcome {
    Outcome {
        index: turn.index,
        expected_prompt_tokens: turn.is_exact.then_some(turn.prompt_tokens),
        prompt_tokens: turn.prompt_tokens,
        output_tokens: turn.output_tokens,
        ..Outcome::default()
    }
}

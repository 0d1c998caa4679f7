//! One loop: schedule a step, run it, hand in its tokens, send the events. The same code for prefill and decode.

use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, error, warn};

use super::config::Dtype;
use super::ground_truth::GroundTruth;
use super::live::Live;
use super::request::{FailKind, FinishReason, TokenEvent};
use super::scheduler::{Step, Verdict};
use super::service::Shared;
use crate::acl::{AclError, Device};
use crate::model::Forward;
use crate::model::checkpoint::decode_row;
use crate::sample::{Choice, Sampler};

/// How long a loop is idle before it asks the device for a sign of life, so that a lost device turns the engine unhealthy
/// before the next request finds out. One round trip a second costs nothing that can be measured.
const IDLE_PROBE: Duration = Duration::from_secs(1);

/// Which steps a loop runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Prefill,
    Decode,
    /// Both in one.
    Mixed,
}

impl Kind {
    pub(super) fn thread_name(self) -> &'static str {
        match self {
            Self::Prefill => "engine-prefill",
            Self::Decode => "engine-decode",
            Self::Mixed => "engine-steps",
        }
    }
}

/// What a loop does next.
enum Next {
    Step,
    Probe,
    Stop,
}

/// One loop's own things.
pub(super) struct StepLoop {
    kind: Kind,
    shared: Arc<Shared>,
    device: Device,
    forward: Forward,
    step: Step<Arc<Live>>,
    sampler: Sampler,
    /// One choice for each output of the step.
    choices: Vec<Choice>,
    verdicts: Vec<Verdict>,
    truth: Option<GroundTruth>,
}

/// Stops the engine if its loop unwinds: a request must never wait for a loop that is gone.
struct StopOnPanic<'a>(&'a Shared);

impl Drop for StopOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.stop(FailKind::Runtime("engine".to_owned()), "an engine loop panicked; its message is in the log");
        }
    }
}

impl StepLoop {
    pub(super) fn new(kind: Kind, shared: Arc<Shared>, device: Device, forward: Forward) -> Self {
        Self {
            kind,
            shared,
            device,
            forward,
            step: Step::default(),
            sampler: Sampler::default(),
            choices: Vec::new(),
            verdicts: Vec::new(),
            truth: GroundTruth::open(kind.thread_name()),
        }
    }

    /// Runs until the engine stops.
    pub(super) fn run(mut self) {
        let shared = self.shared.clone();
        let _guard = StopOnPanic(&shared);
        if let Err(e) = self.device.bind_thread() {
            return self.lost(&e);
        }
        loop {
            let result = match self.schedule() {
                Next::Stop => return,
                Next::Probe => self.forward.probe(),
                Next::Step => self.execute().map(|()| self.hand_in()),
            };
            match result {
                Ok(()) => {}
                Err(e) if e.is_device_lost() => return self.lost(&e),
                Err(e) => self.fail_step(&e),
            }
        }
    }

    /// Waits for the next step.
    fn schedule(&mut self) -> Next {
        let mut state = self.shared.state.lock();
        loop {
            if state.stopped {
                return Next::Stop;
            }
            let preempted = state.scheduler.counters().preemptions;
            let some = match self.kind {
                Kind::Prefill => state.scheduler.next_prefill(&mut self.step),
                Kind::Decode => state.scheduler.next_decode(&mut self.step),
                Kind::Mixed => state.scheduler.next_mixed(&mut self.step),
            };
            let preempted = state.scheduler.counters().preemptions - preempted;
            if preempted > 0 {
                debug!(preempted, "KV blocks ran out");
                self.shared.wake(&state);
            }
            if some {
                return Next::Step;
            }
            if self.shared.signal(self.kind).wait_for(&mut state, IDLE_PROBE).timed_out() {
                return Next::Probe;
            }
        }
    }

    /// Runs the step and chooses its tokens.
    fn execute(&mut self) -> Result<(), AclError> {
        let Self { forward, step, sampler, choices, shared, .. } = self;
        choices.clear();
        if let Some(truth) = &mut self.truth {
            truth.step(step);
        }
        let outputs: Vec<usize> = (0..step.sequences.len()).filter(|&i| step.sequences[i].output).collect();
        let dtype = forward.dtype();
        let (plan, sequences) = (&step.plan, &step.sequences);
        let mut sampled = Vec::with_capacity(plan.logits_rows.len());
        let mut row = Vec::new();
        let mut on_logits = |index: usize, bytes: &[u8]| {
            let part = &sequences[outputs[plan.logits_rows[index] as usize]];
            sampled.push(sample(sampler, &part.payload, part.generated, bytes, dtype, &mut row));
        };
        let chosen = forward.run(plan, &mut on_logits)?;
        // A dummy model's output is whatever the device left there.
        let limit = shared.vocab() as u32 - 1;
        let greedy = |&id: &i32| if shared.dummy() { (id.max(0) as u32).min(limit) } else { id as u32 };
        choices.extend(chosen.iter().map(|id| Choice { token: greedy(id), logprobs: None }));
        for (&index, choice) in plan.logits_rows.iter().zip(sampled) {
            choices[index as usize] = choice;
        }
        match choices.iter().find(|c| c.token > limit) {
            Some(bad) => Err(AclError {
                call: "aclnnArgMax",
                code: -1,
                detail: format!("token {} is outside the vocabulary of {}", bad.token, limit + 1),
            }),
            None => Ok(()),
        }
    }

    /// Gives the tokens to the scheduler, then the events to their requests.
    ///
    /// A request's events must leave in order although both loops send them. A sequence comes from prefill to decode as
    /// soon as the lock is released, so the prefill loop sends while it holds it. The way back goes through the decode
    /// loop's next scheduling, which comes after its sends, so the decode loop sends without.
    fn hand_in(&mut self) {
        let tokens: Vec<u32> = self.choices.iter().map(|c| c.token).collect();
        self.verdicts.clear();
        let shared = self.shared.clone();
        let mut state = shared.state.lock();
        state.scheduler.complete(&self.step, &tokens, &mut self.verdicts);
        for (part, verdict) in self.step.outputs().zip(&self.verdicts) {
            if matches!(verdict, Verdict::Finish { .. }) {
                state.ids.remove(&part.payload.id);
            }
        }
        shared.wake(&state);
        let decodes = self.step.sequences.iter().any(|s| !s.prefilling);
        state.prefill_steps += u64::from(self.step.sequences.iter().any(|s| s.prefilling));
        state.decode_steps += u64::from(decodes);
        if decodes {
            state.decode_post_ns += self.forward.last_post().as_nanos() as u64;
        }
        let deserted = if self.kind == Kind::Prefill {
            let deserted = self.send_events();
            drop(state);
            deserted
        } else {
            drop(state);
            self.send_events()
        };
        // Requests go with their step, so that what they hold is not kept until the next one.
        self.step.sequences.clear();
        for id in deserted {
            shared.abort(id);
        }
    }

    /// Sends what the step's verdicts say; returns the requests that nobody listens to.
    fn send_events(&mut self) -> Vec<u64> {
        let mut deserted = Vec::new();
        for ((part, verdict), choice) in self.step.outputs().zip(&self.verdicts).zip(self.choices.drain(..)) {
            let request = &part.payload;
            let token = TokenEvent::Token { id: choice.token, logprobs: choice.logprobs };
            match *verdict {
                Verdict::Dropped => {}
                Verdict::Continue => {
                    if !request.send(token) {
                        deserted.push(request.id);
                    }
                }
                Verdict::Finish { reason, usage } => {
                    if reason != FinishReason::Stop {
                        request.send(token);
                    }
                    request.finish(reason, usage);
                }
            }
        }
        deserted
    }

    /// Ends the step's sequences after an error that leaves the device usable.
    fn fail_step(&mut self, cause: &AclError) {
        warn!(error = %cause, sequences = self.step.sequences.len(), "{} step failed", self.kind.thread_name());
        let failed = {
            let mut state = self.shared.state.lock();
            let failed = state.scheduler.fail(&self.step);
            for request in &failed {
                state.ids.remove(&request.id);
            }
            self.shared.wake(&state);
            failed
        };
        for request in failed {
            request.fail(fail_kind(cause), cause.to_string());
        }
        self.step.sequences.clear();
    }

    fn lost(&self, cause: &AclError) {
        error!(error = %cause, "the device is lost");
        self.shared.stop(FailKind::DeviceLost, &cause.to_string());
    }
}

fn sample(
    sampler: &mut Sampler,
    request: &Live,
    generated: usize,
    bytes: &[u8],
    dtype: Dtype,
    row: &mut Vec<f32>,
) -> Choice {
    decode_row(bytes, dtype, row);
    sampler.choose(row, &request.params, request.seed, generated, request.forbidden(generated))
}

fn fail_kind(cause: &AclError) -> FailKind {
    if cause.is_device_lost() {
        FailKind::DeviceLost
    } else if cause.is_out_of_memory() {
        FailKind::OutOfMemory
    } else if let Some(operator) = cause.operator() {
        FailKind::Operator(operator.to_owned())
    } else {
        FailKind::Runtime(cause.call.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_told_apart() {
        let error = |call, code, detail: &str| AclError { call, code, detail: detail.to_owned() };
        for (cause, want) in [
            (error("aclrtSynchronizeStream", 507_010, "heartbeat"), FailKind::DeviceLost),
            (error("aclnnMatmul", 207_001, "workspace"), FailKind::OutOfMemory),
            (
                error("aclrtSynchronizeStream", 507_000, "aclnnSwiGlu: odd"),
                FailKind::Operator("aclnnSwiGlu".to_owned()),
            ),
            (error("aclrtMemcpyAsync", 107_000, ""), FailKind::Runtime("aclrtMemcpyAsync".to_owned())),
        ] {
            assert_eq!(fail_kind(&cause), want, "{cause}");
        }
    }
}

//! The steps that streams ran, and the requests that hints name: what the daemon believes an engine is doing.
//!
//! [`sched::phase`] finds steps and matches them with requests; this keeps the newest of them for whoever asks, and lets
//! requests go when their leases run out, under every policy. Nothing here decides what runs.
//!
//! Costs: nothing an operator beyond the classifier's own look; a step is one record of some hundred bytes, of which
//! [`STEPS_KEPT_MAX`] are kept.

use std::collections::VecDeque;

use acl_abi::OpCall;
use sched::Nanos;
use sched::Phase;
use sched::dispatch::{HintInput, HintKind};
use sched::phase::{Request, Requests, Sequence, Step, sequences};
use serde::Serialize;
use wire::Hint;

use crate::core::Core;
use crate::tenant::{Stream, Tenant};

/// Steps that are kept: about a minute of an engine with two streams.
pub const STEPS_KEPT_MAX: usize = 4096;
/// Requests listed with a step; the step's sequences are counted all the same.
pub const REQUESTS_LISTED_MAX: usize = 64;

/// How long after a step's last operator a hint may still claim one of its prompts: what a loaded machine delays one of two
/// messages that were sent together.
const CLAIM_WITHIN: Nanos = 100_000_000;

/// A step, as the admin API shows it.
#[derive(Clone, Debug, Serialize)]
pub struct StepSnapshot {
    /// Number, over all streams of the device, in the order in which steps ended.
    pub number: u64,
    /// Session.
    pub session: u64,
    /// Stream of the session.
    pub stream: u32,
    /// What it is believed to be.
    pub phase: Phase,
    /// Operators posted.
    pub operators: u32,
    /// Of them, those that were queued under this phase: the others came before the first attention and were guessed
    /// wrong.
    pub operators_in_phase: u32,
    /// Of them, attention (of attention in single operators: softmax).
    pub attention: u32,
    /// Sequences that decode.
    pub decoding: u64,
    /// Sequences whose prompt is processed.
    pub prefilling: u64,
    /// New tokens.
    pub query_tokens: u64,
    /// Tokens that these look at.
    pub key_tokens: u64,
    /// When its first operator was posted, nanoseconds.
    pub began_ns: Nanos,
    /// When its last operator was posted, nanoseconds.
    pub last_ns: Nanos,
    /// Requests that it was matched with, as the gateway numbers them.
    pub requests: Vec<u64>,
    /// The next step has not begun: operators may follow.
    pub open: bool,
}

/// A request, as the admin API shows it.
#[derive(Clone, Debug, Serialize)]
pub struct RequestSnapshot {
    /// Session that was told of it.
    pub session: u64,
    /// The gateway's number.
    pub request: u64,
    /// Who pays.
    pub tenant: String,
    /// `admitted`, `prefill` or `decode`, as the gateway said last.
    pub state: &'static str,
    /// Larger is more urgent.
    pub priority: u8,
    /// Tokens of the prompt, as the gateway counts them.
    pub prompt_tokens: u32,
    /// Most tokens it may generate.
    pub max_tokens: u32,
    /// Tokens that the gateway has seen.
    pub tokens: u32,
    /// Time to first token that is wanted, nanoseconds; 0: the policy's.
    pub ttft_ns: Nanos,
    /// Time between tokens that is wanted, nanoseconds; 0: the policy's.
    pub tpot_ns: Nanos,
    /// Tokens in the cache after its last step.
    pub context: u64,
    /// Steps that it had a part in.
    pub steps: u64,
    /// Since its admission, nanoseconds.
    pub age_ns: Nanos,
    /// Since the gateway last mentioned it, nanoseconds.
    pub silent_ns: Nanos,
}

/// A step of a stream, by which it is found again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepKey {
    stream: u32,
    /// As [`sched::Classifier::serial`].
    serial: u64,
}

/// A step that has ended.
#[derive(Debug)]
struct Ended {
    step: Step,
    session: u64,
    key: StepKey,
    requests: Vec<u64>,
}

/// Steps that have ended.
#[derive(Debug, Default)]
pub(crate) struct StepLog {
    kept: VecDeque<Ended>,
    /// Number of the next one.
    next: u64,
    /// Reused for each step's match.
    sequences: Vec<Sequence>,
    whose: Vec<Option<u64>>,
}

fn shown(step: &Step, number: u64, session: u64, stream: u32, requests: Vec<u64>, open: bool) -> StepSnapshot {
    StepSnapshot {
        number,
        session,
        stream,
        phase: step.phase,
        operators: step.operators.iter().sum(),
        operators_in_phase: step.operators[step.phase.index()],
        attention: step.attention,
        decoding: step.decoding,
        prefilling: step.prefilling,
        query_tokens: step.query_tokens,
        key_tokens: step.key_tokens,
        began_ns: step.began,
        last_ns: step.last,
        requests,
        open,
    }
}

impl StepLog {
    /// Phase of an operator that was posted to a stream.
    pub fn observe(
        &mut self,
        now: Nanos,
        (session, id): (u64, u32),
        stream: &mut Stream,
        requests: &mut Requests,
        call: &OpCall,
    ) -> Phase {
        let phase = stream.classifier.observe(now, call);
        self.take_finished(session, id, stream);
        if !stream.classifier.attended() {
            return phase;
        }
        stream.whose.clear();
        stream.unclaimed.clear();
        match self.assign(requests, call) {
            None => phase,
            Some((decoding, prefilling)) => {
                self.list(stream);
                if requests.is_empty() { phase } else { stream.classifier.correct(decoding, prefilling) }
            }
        }
    }

    /// As [`Self::observe`], of an operator whose arguments may yet be replaced, as those of a captured graph's attention are.
    /// Where its step hangs on them, the step: [`Self::amend`] wants it back with the arguments that hold. Requests are
    /// matched then.
    pub fn observe_replaceable(
        &mut self,
        now: Nanos,
        (session, id): (u64, u32),
        stream: &mut Stream,
        call: &OpCall,
    ) -> (Phase, Option<StepKey>) {
        let phase = stream.classifier.observe(now, call);
        self.take_finished(session, id, stream);
        let key = stream.classifier.attended().then(|| {
            stream.whose.clear();
            stream.unclaimed.clear();
            StepKey { stream: id, serial: stream.classifier.serial() }
        });
        (phase, key)
    }

    /// The first attention of a step that is open or has ended works on what `call` says.
    pub fn amend(&mut self, session: u64, key: StepKey, tenant: &mut Tenant, call: &OpCall) {
        let Some(batch) = sched::phase::attention_batch(call) else { return };
        let Some(assigned) = self.assign(&mut tenant.requests, call) else { return };
        let counts = if tenant.requests.is_empty() { (batch.decoding, batch.prefilling) } else { assigned };
        match tenant.streams.get_mut(&key.stream) {
            Some(stream) if stream.classifier.serial() == key.serial => {
                stream.classifier.amend(&batch, counts);
                self.list(stream);
            }
            _ => {
                let mut newest_first = self.kept.iter_mut().rev();
                if let Some(ended) = newest_first.find(|e| e.session == session && e.key == key) {
                    ended.step.amend(&batch, counts);
                    ended.requests = self.whose.iter().flatten().copied().take(REQUESTS_LISTED_MAX).collect();
                }
            }
        }
    }

    /// Finds whose an attention operator's sequences are; how many decode, and how many do not. `None` without any.
    fn assign(&mut self, requests: &mut Requests, call: &OpCall) -> Option<(u64, u64)> {
        self.sequences.clear();
        self.whose.clear();
        sequences(call, &mut self.sequences);
        (!self.sequences.is_empty()).then(|| requests.assign(&self.sequences, &mut self.whose))
    }

    /// Notes what [`Self::assign`] found with the open step of a stream.
    fn list(&self, stream: &mut Stream) {
        stream.whose.extend(self.whose.iter().flatten().take(REQUESTS_LISTED_MAX));
        let nobodys = self.sequences.iter().zip(&self.whose).filter(|(s, id)| id.is_none() && s.new == s.context);
        stream.unclaimed.extend(nobodys.map(|(s, _)| s).take(REQUESTS_LISTED_MAX));
    }

    /// The host waits for what a stream ran so far.
    pub fn boundary(&mut self, session: u64, id: u32, stream: &mut Stream) {
        stream.classifier.boundary();
        self.take_finished(session, id, stream);
    }

    /// A stream is gone: its last step has ended.
    pub fn close(&mut self, session: u64, id: u32, stream: &mut Stream) {
        if let Some(step) = stream.classifier.step().copied() {
            let key = StepKey { stream: id, serial: stream.classifier.serial() };
            self.keep(session, key, step, std::mem::take(&mut stream.whose));
        }
    }

    fn take_finished(&mut self, session: u64, id: u32, stream: &mut Stream) {
        if let Some(step) = stream.classifier.take_finished() {
            let key = StepKey { stream: id, serial: stream.classifier.serial() - 1 };
            self.keep(session, key, step, std::mem::take(&mut stream.whose));
        }
    }

    fn keep(&mut self, session: u64, key: StepKey, step: Step, requests: Vec<u64>) {
        if self.kept.len() == STEPS_KEPT_MAX {
            self.kept.pop_front();
        }
        self.kept.push_back(Ended { step, session, key, requests });
        self.next += 1;
    }
}

impl Core {
    /// Takes a hint in: into the session's list of requests, and to the policy.
    pub(crate) fn hint(&mut self, session: u64, hint: &Hint) {
        self.hints_total += 1;
        let tenant = if let Hint::Admitted { tenant, .. } = hint { tenant.as_str() } else { "" };
        let hint = &input(hint);
        let (now, lease, most) = (self.time, self.lease(), self.limits.requests_max);
        let (of, _) = self.tenant(session);
        let (prompt, output) = of.served.hint(now, hint);
        let account = of.account;
        if let Some(usage) = self.accounts.usage(account) {
            usage.prompt_tokens += prompt;
            usage.output_tokens += output;
        }
        let (of, _) = self.tenant(session);
        let forgotten = of.requests.hint(now, hint, tenant, lease, most);
        if let HintKind::Admitted { prompt_tokens, .. } = hint.kind {
            self.claim(session, hint.request, u64::from(prompt_tokens));
        }
        let expires = self.tenant(session).0.requests.expires();
        self.leases_end = self.leases_end.min(expires);
        if let Some(request) = forgotten {
            self.hints_dropped += 1;
            self.dispatcher.hint(now, session, &HintInput { request, kind: HintKind::Aborted });
        }
        self.dispatcher.hint(now, session, hint);
    }

    /// A request's prompt may run already: of those that nobody has, the one of its length, or the first.
    fn claim(&mut self, session: u64, request: u64, length: u64) {
        let since = self.time.saturating_sub(CLAIM_WITHIN);
        let (tenant, _) = self.tenant(session);
        let fresh = |s: &Stream| s.classifier.step().is_some_and(|step| step.last >= since);
        if let Some(stream) = tenant.streams.values_mut().find(|s| !s.unclaimed.is_empty() && fresh(s)) {
            let at = stream.unclaimed.iter().position(|s| s.context == length).unwrap_or(0);
            tenant.requests.claim(request, stream.unclaimed.remove(at));
            stream.whose.push(request);
        }
    }

    fn lease(&self) -> Nanos {
        sched::nanos(self.dispatcher.policy().lease_ms * 1e-3)
    }

    /// Forgets requests that no gateway has mentioned for a lease.
    pub(crate) fn expire_hints(&mut self) {
        let (now, lease) = (self.time, self.lease());
        let mut gone = Vec::new();
        self.leases_end = Nanos::MAX;
        for (&session, (tenant, _)) in &mut self.tenants {
            tenant.requests.expire(now, lease, &mut gone);
            self.leases_end = self.leases_end.min(tenant.requests.expires());
            for request in gone.drain(..) {
                self.hints_expired += 1;
                self.dispatcher.hint(now, session, &HintInput { request, kind: HintKind::Aborted });
            }
        }
    }

    /// Tells a policy that has just been set what hints said before.
    pub(crate) fn tell_requests(&mut self) {
        let now = self.time;
        for (&session, (tenant, _)) in &self.tenants {
            for (request, r) in tenant.requests.iter() {
                let &Request { prompt_tokens, max_tokens, tpot, priority, .. } = r;
                // What is left of it; 0 would mean the policy's own.
                let ttft = if r.ttft == 0 { 0 } else { r.ttft.saturating_sub(now.saturating_sub(r.admitted)).max(1) };
                let admitted = HintKind::Admitted { prompt_tokens, max_tokens, ttft, tpot, priority };
                self.dispatcher.hint(now, session, &HintInput { request, kind: admitted });
                if r.first_token {
                    self.dispatcher.hint(now, session, &HintInput { request, kind: HintKind::FirstToken });
                }
            }
        }
        // A lease may be shorter than it was.
        self.leases_end = now;
    }

    /// The host waits for a stream, or for all of the session.
    pub(crate) fn step_boundary(&mut self, session: u64, stream: Option<u32>) {
        let Some((tenant, _)) = self.tenants.get_mut(&session) else { return };
        for (&id, state) in tenant.streams.range_mut(stream.unwrap_or(0)..=stream.unwrap_or(u32::MAX)) {
            self.steps.boundary(session, id, state);
        }
    }

    /// Every stream of a session that ends.
    pub(crate) fn close_steps(&mut self, session: u64, tenant: &mut Tenant) {
        for (&id, stream) in &mut tenant.streams {
            self.steps.close(session, id, stream);
        }
    }

    /// Steps from number `after` on, those that have ended first, then the open ones.
    pub fn steps(&self, after: u64) -> Vec<StepSnapshot> {
        let first = self.steps.next - self.steps.kept.len() as u64;
        let numbered = self.steps.kept.iter().zip(first..).filter(|&(_, number)| number >= after);
        let ended =
            numbered.map(|(e, number)| shown(&e.step, number, e.session, e.key.stream, e.requests.clone(), false));
        let streams = self.tenants.iter().flat_map(|(&s, (t, _))| t.streams.iter().map(move |(&id, x)| (s, id, x)));
        let open = streams.filter_map(|(session, id, stream)| {
            let step = stream.classifier.step()?;
            Some(shown(step, self.steps.next, session, id, stream.whose.clone(), true))
        });
        ended.chain(open).collect()
    }

    /// Requests that hints keep alive.
    pub fn requests(&self) -> Vec<RequestSnapshot> {
        let of = |session: u64, request: u64, r: &Request| RequestSnapshot {
            session,
            request,
            tenant: r.tenant.clone(),
            state: match (r.first_token, r.started) {
                (true, _) => "decode",
                (_, true) => "prefill",
                _ => "admitted",
            },
            priority: r.priority,
            prompt_tokens: r.prompt_tokens,
            max_tokens: r.max_tokens,
            tokens: r.tokens,
            ttft_ns: r.ttft,
            tpot_ns: r.tpot,
            context: r.context,
            steps: r.steps,
            age_ns: self.time.saturating_sub(r.admitted),
            silent_ns: self.time.saturating_sub(r.heard),
        };
        let all = self.tenants.iter().flat_map(|(&s, (t, _))| t.requests.iter().map(move |(id, r)| (s, id, r)));
        all.map(|(session, id, r)| of(session, id, r)).collect()
    }
}

/// A hint as the dispatcher takes it.
fn input(hint: &Hint) -> HintInput {
    const NS_PER_MS: Nanos = 1_000_000;
    let kind = match *hint {
        Hint::Admitted { prompt_tokens, max_tokens, ttft_deadline_ms, tpot_target_ms, priority, .. } => {
            HintKind::Admitted {
                prompt_tokens,
                max_tokens,
                ttft: Nanos::from(ttft_deadline_ms) * NS_PER_MS,
                tpot: Nanos::from(tpot_target_ms) * NS_PER_MS,
                priority,
            }
        }
        Hint::PrefillStarted { .. } => HintKind::PrefillStarted,
        Hint::FirstToken { .. } => HintKind::FirstToken,
        Hint::Progress { tokens, .. } => HintKind::Progress { tokens },
        Hint::Finished { .. } => HintKind::Finished,
        Hint::Aborted { .. } => HintKind::Aborted,
    };
    HintInput { request: hint.request(), kind }
}

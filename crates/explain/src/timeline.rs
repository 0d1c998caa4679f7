//! A record replayed into intervals: operators on the device, hold-backs, requests.
//!
//! An operator occupies its stream from its submission, or from the completion before it on the stream if that is later, until
//! its own completion: what the daemon counts as measured time. A hold-back is exactly what the dispatcher counts as one.

use std::collections::{BTreeMap, HashMap};

use sched::dispatch::{
    Aside, HintInput, HintKind, HoldReason, HoldSpan, Label, Op, Record, RecordEntry, ReplayError, Replayed, Spectator,
    Stats,
};
use sched::{Action, Dispatcher, Item, Nanos, Phase, PolicyConfig, StreamKey, Token};

use crate::about::About;

/// One operator that completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operator {
    /// Its stream; `None`: the device did it outside of the session's streams, as a synchronous copy.
    pub stream: Option<StreamKey>,
    /// Session.
    pub session: u64,
    /// What it is called.
    pub label: Label,
    /// Phase.
    pub phase: Phase,
    /// Predicted time alone.
    pub solo: Nanos,
    /// When it was queued.
    pub pushed: Nanos,
    /// When it began to run.
    pub began: Nanos,
    /// When it was complete.
    pub ended: Nanos,
    /// It began before the record does: shown from there.
    pub clipped: bool,
}

/// One hold-back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    /// Whose next operator waited.
    pub stream: StreamKey,
    /// The operator.
    pub label: Label,
    /// Its phase.
    pub phase: Phase,
    /// Why.
    pub reason: HoldReason,
    /// From here …
    pub since: Nanos,
    /// … to here.
    pub ended: Nanos,
    /// Ended by the age bound.
    pub expired: bool,
    /// Not over at the end of the record: the dispatcher has counted it, not its time.
    pub open: bool,
}

/// One request, as far as hints told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Whose.
    pub session: u64,
    /// The gateway's number.
    pub request: u64,
    /// Prompt, tokens; 0 where the record begins later.
    pub prompt_tokens: u32,
    /// When it was first heard of.
    pub admitted: Nanos,
    /// When its prompt began to be processed.
    pub prefill: Option<Nanos>,
    /// When its first token was out.
    pub first_token: Option<Nanos>,
    /// Tokens that hints told of.
    pub tokens: u32,
    /// When it was complete or given up; the record's end otherwise.
    pub ended: Nanos,
    /// How it ended.
    pub end: RequestEnd,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestEnd {
    /// Complete.
    Finished,
    /// Given up.
    Aborted,
    /// Not while the record lasts.
    Open,
}

/// The policy from a time on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PolicyChange {
    /// When.
    pub at: Nanos,
    /// To what.
    pub policy: PolicyConfig,
}

/// A record's intervals. Lists are in order of their ends.
#[derive(Debug)]
pub struct Timeline {
    /// Names.
    pub about: About,
    /// When the record begins …
    pub began: Nanos,
    /// … and ends.
    pub ended: Nanos,
    /// Operators completed.
    pub operators: Vec<Operator>,
    /// Hold-backs.
    pub holds: Vec<Hold>,
    /// Requests that hints told of.
    pub requests: Vec<Request>,
    /// The policy at the beginning, and changes.
    pub policies: Vec<PolicyChange>,
    /// Counters at the beginning.
    pub stats_before: Stats,
    /// Counters at the end.
    pub stats_after: Stats,
    /// What the replay went through: every decision was the same.
    pub replayed: Replayed,
    /// Entries that the ring had forgotten before.
    pub forgotten: u64,
}

struct Known {
    stream: StreamKey,
    op: Op,
    submitted: Option<Nanos>,
    /// The device had it when the record began.
    clipped: bool,
}

#[derive(Default)]
struct Builder {
    now: Nanos,
    /// Queued or in flight.
    known: HashMap<Token, Known>,
    /// Last completion of each stream.
    last_done: HashMap<StreamKey, Nanos>,
    began: Nanos,
    operators: Vec<Operator>,
    holds: Vec<Hold>,
    live: BTreeMap<(u64, u64), Request>,
    requests: Vec<Request>,
    policies: Vec<PolicyChange>,
    last_aside: HashMap<u64, Nanos>,
}

impl Timeline {
    /// Replays a record.
    ///
    /// # Errors
    /// It does not replay.
    pub fn of(record: &Record) -> Result<Self, ReplayError> {
        let mut dispatcher = record.dispatcher()?;
        dispatcher.watch_holds();
        let began = dispatcher.now();
        let stats_before = dispatcher.stats().clone();
        let mut builder = Builder { now: began, began, ..Builder::default() };
        builder.policies.push(PolicyChange { at: began, policy: *dispatcher.policy() });
        for (stream, op, clipped) in dispatcher.operators() {
            builder.known.insert(op.token, Known { stream, op, submitted: clipped.then_some(began), clipped });
        }
        let replayed = record.replay_on(&mut dispatcher, &mut builder)?;
        let ended = builder.now;
        builder.finish(&dispatcher);
        let Builder { operators, holds, requests, policies, .. } = builder;
        let stats_after = dispatcher.stats().clone();
        let (about, forgotten) = (About::of(record), record.forgotten());
        Ok(Self {
            about,
            began,
            ended,
            operators,
            holds,
            requests,
            policies,
            stats_before,
            stats_after,
            replayed,
            forgotten,
        })
    }

    /// Leaves out what was over more than `span` before the end.
    pub fn keep_last(&mut self, span: Nanos) {
        let from = self.ended.saturating_sub(span);
        if from <= self.began {
            return;
        }
        self.began = from;
        self.operators.retain(|op| op.ended > from);
        for op in self.operators.iter_mut().filter(|op| op.began < from) {
            (op.began, op.clipped) = (from, true);
        }
        self.holds.retain(|h| h.ended > from);
        self.requests.retain(|r| r.ended > from);
        let before = self.policies.iter().rposition(|p| p.at <= from).unwrap_or(0);
        self.policies.drain(..before);
        self.policies.iter_mut().for_each(|p| p.at = p.at.max(from));
    }

    /// Time in which operators of both phases ran, and in which any ran, nanoseconds, by bucket of `bucket` nanoseconds
    /// from [`Timeline::began`] on.
    pub fn occupancy(&self, bucket: Nanos) -> Vec<Occupancy> {
        let mut edges: Vec<(Nanos, i32, Phase)> = Vec::with_capacity(2 * self.operators.len());
        for op in self.operators.iter().filter(|op| op.ended > op.began) {
            edges.push((op.began, 1, op.phase));
            edges.push((op.ended, -1, op.phase));
        }
        edges.sort_unstable_by_key(|&(at, change, _)| (at, change));
        let buckets = (self.ended.saturating_sub(self.began)).div_ceil(bucket).max(1) as usize;
        let mut out = vec![Occupancy::default(); buckets];
        let (mut running, mut from) = ([0i32; 4], self.began);
        for (at, change, phase) in edges {
            let at = at.clamp(self.began, self.ended);
            let both = running[Phase::Prefill.index()] > 0 && running[Phase::Decode.index()] > 0;
            while from < at && running.iter().any(|&n| n > 0) {
                let index = ((from - self.began) / bucket) as usize;
                let until = at.min(self.began + (index as u64 + 1) * bucket);
                let Some(cell) = out.get_mut(index) else { break };
                cell.busy += until - from;
                cell.both += if both { until - from } else { 0 };
                from = until;
            }
            from = from.max(at);
            running[phase.index()] += change;
        }
        out
    }
}

/// See [`Timeline::occupancy`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Occupancy {
    /// Time in which prefill and decode ran side by side.
    pub both: Nanos,
    /// Time in which anything ran.
    pub busy: Nanos,
}

impl Builder {
    fn completed(&mut self, token: Token) {
        let Some(Known { stream, op, submitted, clipped }) = self.known.remove(&token) else { return };
        let last = self.last_done.insert(stream, self.now);
        let began = submitted.unwrap_or(self.began).max(last.unwrap_or(0));
        // Behind another one it began within the record.
        let clipped = clipped && last.is_none();
        let Op { label, phase, solo, pushed, .. } = op;
        let (session, stream, ended) = (stream.session, Some(stream), self.now);
        self.operators.push(Operator { stream, session, label, phase, solo, pushed, began, ended, clipped });
    }

    fn aside(&mut self, aside: &Aside) {
        let Aside { session, label, phase, solo, began, ended } = *aside;
        let last = self.last_aside.insert(session, ended).unwrap_or(0);
        let (pushed, began, clipped) = (began, began.max(last).max(self.began), began < self.began);
        self.operators.push(Operator { stream: None, session, label, phase, solo, pushed, began, ended, clipped });
    }

    fn hint(&mut self, session: u64, hint: &HintInput) {
        let now = self.now;
        let key = (session, hint.request);
        if matches!(hint.kind, HintKind::Finished | HintKind::Aborted) && !self.live.contains_key(&key) {
            return;
        }
        let fresh = Request {
            session,
            request: hint.request,
            prompt_tokens: 0,
            admitted: now,
            prefill: None,
            first_token: None,
            tokens: 0,
            ended: now,
            end: RequestEnd::Open,
        };
        let request = self.live.entry(key).or_insert(fresh);
        match hint.kind {
            HintKind::Admitted { prompt_tokens, .. } => request.prompt_tokens = prompt_tokens,
            HintKind::PrefillStarted => request.prefill = request.prefill.or(Some(now)),
            HintKind::FirstToken => {
                request.first_token = request.first_token.or(Some(now));
                request.tokens = request.tokens.max(1);
            }
            HintKind::Progress { tokens } => {
                request.first_token = request.first_token.or(Some(now));
                request.tokens = request.tokens.max(tokens);
            }
            HintKind::Finished | HintKind::Aborted => {
                request.ended = now;
                request.end = if hint.kind == HintKind::Finished { RequestEnd::Finished } else { RequestEnd::Aborted };
                self.requests.extend(self.live.remove(&key));
            }
        }
    }

    fn hold(&self, span: &HoldSpan, label: Label, open: bool) -> Hold {
        let HoldSpan { stream, phase, reason, since, ended, expired, .. } = *span;
        Hold { stream, label, phase, reason, since, ended, expired, open }
    }

    fn label_of(&self, token: Token) -> Label {
        self.known.get(&token).map_or(Label::default(), |known| known.op.label)
    }

    /// What is not over stays open until the end.
    fn finish(&mut self, dispatcher: &Dispatcher) {
        let now = self.now;
        for ready in dispatcher.ready() {
            let Some((reason, since, _)) = ready.held else { continue };
            let (stream, token, phase) = (ready.stream, ready.op.token, ready.op.phase);
            let span = HoldSpan { stream, token, phase, reason, since, ended: now, expired: false };
            self.holds.push(self.hold(&span, ready.op.label, true));
        }
        let open = std::mem::take(&mut self.live);
        self.requests.extend(open.into_values().map(|request| Request { ended: now, ..request }));
    }
}

impl Spectator for Builder {
    fn after(&mut self, entry: &RecordEntry, decided: &[Action], dispatcher: &mut Dispatcher) {
        self.now = self.now.max(dispatcher.now());
        match entry {
            RecordEntry::Push(_, stream, Item::Op { token, solo, demand, phase, label }) => {
                let (solo, demand, phase, label) = (*solo, *demand, *phase, *label);
                let op = Op { token: *token, solo, demand, phase, label, seq: 0, pushed: self.now };
                self.known.insert(*token, Known { stream: *stream, op, submitted: None, clipped: false });
            }
            RecordEntry::Complete(_, token) => self.completed(*token),
            RecordEntry::Aside(aside) => self.aside(aside),
            RecordEntry::Hint(_, session, hint) => self.hint(*session, hint),
            RecordEntry::SetPolicy(policy) => self.policies.push(PolicyChange { at: self.now, policy: *policy }),
            _ => {}
        }
        for action in decided {
            if let Action::Submit { token, .. } = action
                && let Some(known) = self.known.get_mut(token)
            {
                known.submitted = Some(self.now);
            }
        }
        for span in dispatcher.take_holds() {
            let hold = self.hold(&span, self.label_of(span.token), false);
            self.holds.push(hold);
        }
    }
}

//! One decision in words: what was on the device, what was ready, what was chosen, who was held back, why, and until when.

use std::fmt::Write as _;

use sched::dispatch::{HoldReason, HoldSpan, Record, RecordEntry, ReplayError, Replayed, Spectator};
use sched::policy::PolicyName;
use sched::{Action, Dispatcher, Label, Nanos, Phase, StreamKey, Token};
use serde::Serialize;

use crate::about::About;

/// An operator, in short.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Operator {
    /// Session.
    pub session: u64,
    /// Stream.
    pub stream: u32,
    /// Name.
    pub operator: &'static str,
    /// Phase.
    pub phase: Phase,
    /// Predicted time alone, nanoseconds.
    pub solo_ns: Nanos,
    /// For how long it could have been submitted, or has been with the device, nanoseconds.
    pub for_ns: Nanos,
}

/// A stream that a decision leaves waiting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HeldBack {
    /// Its next operator.
    #[serde(flatten)]
    pub op: Operator,
    /// Why.
    pub reason: &'static str,
    /// Since when, before the decision, nanoseconds.
    pub held_for_ns: Nanos,
    /// When the policy looks at it again at the latest, from the decision on; `None`: with the next completion.
    pub looked_at_in_ns: Option<Nanos>,
    /// When it was over, from the decision on; `None`: not while the record lasts.
    pub ended_in_ns: Option<Nanos>,
    #[serde(skip)]
    token: Token,
}

/// One decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// When, nanoseconds since the daemon's start.
    pub at_ns: Nanos,
    /// The policy that decided.
    pub policy: PolicyName,
    /// What the device held before.
    pub on_device: Vec<Operator>,
    /// Who could have gone.
    pub ready: Vec<Operator>,
    /// Who went, in order.
    pub chosen: Vec<Operator>,
    /// Who stayed.
    pub held: Vec<HeldBack>,
}

struct Finder {
    from: Nanos,
    to: Nanos,
    most: usize,
    /// The step about to decide.
    pending: Option<Decision>,
    found: Vec<Decision>,
    /// The last one before `from` that chose or held anything.
    last: Option<Decision>,
    /// Decisions in the range beyond `most`.
    more: u64,
}

/// The decisions in a stretch of a record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Found {
    /// In order of time.
    pub decisions: Vec<Decision>,
    /// As many more were left out.
    pub more: u64,
}

/// Every decision from `from` to `to` that chose or held back something, at most `most`. If there is none, the last one
/// before: it was in force.
///
/// # Errors
/// The record does not replay.
pub fn find(record: &Record, from: Nanos, to: Nanos, most: usize) -> Result<(Found, Replayed), ReplayError> {
    let mut dispatcher = record.dispatcher()?;
    dispatcher.watch_holds();
    let mut finder = Finder { from, to, most, pending: None, found: Vec::new(), last: None, more: 0 };
    let replayed = record.replay_on(&mut dispatcher, &mut finder)?;
    let Finder { mut found, last, more, .. } = finder;
    if found.is_empty() {
        found.extend(last);
    }
    Ok((Found { decisions: found, more }, replayed))
}

fn operator(stream: StreamKey, label: Label, phase: Phase, solo: Nanos, for_ns: Nanos) -> Operator {
    Operator { session: stream.session, stream: stream.stream, operator: label.name(), phase, solo_ns: solo, for_ns }
}

impl Finder {
    /// A hold-back is over: the decisions that left it waiting learn when.
    fn over(&mut self, span: &HoldSpan) {
        for decision in self.found.iter_mut().chain(&mut self.last) {
            let at = decision.at_ns;
            let began = span.since <= at && span.ended >= at;
            for held in decision.held.iter_mut().filter(|h| began && h.token == span.token && h.ended_in_ns.is_none()) {
                if held.reason == span.reason.name() {
                    held.ended_in_ns = Some(span.ended - at);
                }
            }
        }
    }
}

impl Spectator for Finder {
    fn before(&mut self, entry: &RecordEntry, dispatcher: &Dispatcher) {
        let RecordEntry::Step(now) = *entry else { return };
        let now = now.max(dispatcher.now());
        if now > self.to || (self.found.len() >= self.most && self.more > 0) {
            return;
        }
        let mut ready: Vec<_> = dispatcher
            .ready()
            .map(|r| (r.stream, operator(r.stream, r.op.label, r.op.phase, r.op.solo, now - r.since)))
            .collect();
        ready.sort_by_key(|(stream, _)| *stream);
        let mut on_device: Vec<_> = dispatcher.operators().filter(|(.., in_flight)| *in_flight).collect();
        on_device.sort_by_key(|(stream, ..)| *stream);
        let on_device = on_device
            .into_iter()
            .map(|(stream, op, _)| operator(stream, op.label, op.phase, op.solo, now.saturating_sub(op.pushed)));
        self.pending = Some(Decision {
            at_ns: now,
            policy: dispatcher.policy().name,
            on_device: on_device.collect(),
            ready: ready.into_iter().map(|(_, op)| op).collect(),
            chosen: Vec::new(),
            held: Vec::new(),
        });
    }

    fn after(&mut self, _: &RecordEntry, decided: &[Action], dispatcher: &mut Dispatcher) {
        for span in dispatcher.take_holds() {
            self.over(&span);
        }
        let Some(mut decision) = self.pending.take() else { return };
        let now = decision.at_ns;
        for action in decided {
            let Action::Submit { token, stream } = *action else { continue };
            let op = dispatcher.operators().find(|(_, op, _)| op.token == token);
            decision.chosen.extend(op.map(|(_, op, _)| operator(stream, op.label, op.phase, op.solo, now - op.pushed)));
        }
        let held = dispatcher.ready().filter_map(|r| {
            let (reason, since, until) = r.held?;
            Some(HeldBack {
                op: operator(r.stream, r.op.label, r.op.phase, r.op.solo, now - r.since),
                reason: reason.name(),
                held_for_ns: now - since,
                looked_at_in_ns: until.map(|u| u.saturating_sub(now)),
                ended_in_ns: None,
                token: r.op.token,
            })
        });
        decision.held.extend(held);
        decision.held.sort_by_key(|h| (h.op.session, h.op.stream));
        if decision.chosen.is_empty() && decision.held.is_empty() {
            return;
        }
        match (now < self.from, self.found.len() < self.most) {
            (true, _) => self.last = Some(decision),
            (false, true) => self.found.push(decision),
            (false, false) => self.more += 1,
        }
    }
}

fn ms(ns: Nanos) -> String {
    format!("{}.{:03} ms", ns / 1_000_000, ns / 1000 % 1000)
}

impl Decision {
    /// In words. `began` is the record's beginning.
    pub fn text(&self, about: &About, began: Nanos) -> String {
        let mut out = format!(
            "at {}.{:09} s (record + {}), policy {}\n",
            self.at_ns / 1_000_000_000,
            self.at_ns % 1_000_000_000,
            ms(self.at_ns.saturating_sub(began)),
            self.policy.name(),
        );
        let name = |op: &Operator| {
            format!("{} stream {}: {} [{}]", about.session(op.session), op.stream, op.operator, op.phase.name())
        };
        let mut line = |title: &str, text: String| {
            let _ = writeln!(out, "  {title:<10} {text}");
        };
        for op in &self.on_device {
            line("on device", format!("{}, alone {}", name(op), ms(op.solo_ns)));
        }
        for op in &self.ready {
            line("ready", format!("{}, alone {}, for {}", name(op), ms(op.solo_ns), ms(op.for_ns)));
        }
        for op in &self.chosen {
            line("chosen", format!("{}, queued {} before", name(op), ms(op.for_ns)));
        }
        for held in &self.held {
            let why = HoldReason::ALL.iter().find(|r| r.name() == held.reason).map_or("", |r| r.words());
            line("held back", format!("{}: {} ({why})", name(&held.op), held.reason));
            let again = match held.looked_at_in_ns {
                Some(ns) => format!("in {} at the latest", ms(ns)),
                None => "with the next completion".to_owned(),
            };
            let ended = match held.ended_in_ns {
                Some(ns) => format!("ended {} later", ms(ns)),
                None => "not over when the record ends".to_owned(),
            };
            line("", format!("  since {}; looked at again {again}; {ended}", ms(held.held_for_ns)));
        }
        out
    }
}

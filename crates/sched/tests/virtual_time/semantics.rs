//! What every run must have meant, whatever the policy decided: order, waits, answers, work conservation, bounds of hold-backs.

use super::{Nanos, World};
use sched::dispatch::HoldReason;
use sched::policy::PolicyName;
use sched::{Phase, StreamKey, Token};
use std::collections::HashMap;

/// What the model remembers of one stream: pushed entries in order.
#[derive(Clone, Copy, Debug)]
pub(super) enum Entry {
    Op(Token),
    Wait(usize),
    /// A record, or a point that a waiter looks at.
    Point,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct OpTrace {
    pub pushed: Nanos,
    pub submitted: Option<Nanos>,
    pub completed: Option<Nanos>,
    pub(super) solo: Nanos,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trace {
    Submitted(Nanos, Token, StreamKey),
    Completed(Nanos, Token),
    Done(Nanos, Token),
}

pub(super) struct Waiter {
    /// Positions that it looks at: stream, number of entries before.
    pub points: Vec<(StreamKey, usize)>,
    pub from: Nanos,
    /// Largest time that `earliest_release` named while it waited.
    pub bound: Nanos,
    pub answered: Option<Nanos>,
}

impl World {
    pub(super) fn check_holds(&mut self) {
        let held: Vec<_> = self.dispatcher.held().collect();
        let idle = self.dispatcher.in_flight() == 0;
        for &(key, reason, since) in &held {
            let first = *self.held_since.entry(key).or_insert(since);
            let limit = (self.config.age_max_ms * 1e6) as Nanos + 1;
            if reason == HoldReason::TenantWindow {
                // Until the tenant's own operators are through.
                assert!(!idle, "{key:?} waits for its window beside an idle device");
            } else if self.tenants && reason == HoldReason::Order {
                // In order of arrival among those whose tenants may go.
            } else if reason == HoldReason::Order {
                // What was pushed before goes first, and what the device held already; on a part of it where cores are split.
                let slowest = match self.config.core_split() {
                    Some(s) => 4.0 / s.prefill.min(1.0 - s.prefill),
                    // An earlier policy may have left several streams there, which slow each other down.
                    None if self.changed => 16.0,
                    None => 1.0,
                };
                let bound = (self.work_before(key, first) as f64 * slowest) as Nanos + self.ops.len() as Nanos;
                assert!(self.now - first <= bound, "{key:?} waits for its turn for {} ns", self.now - first);
            } else {
                assert!(self.now - first <= limit, "{key:?} held for {} ns, {reason:?}", self.now - first);
                let wake = self.dispatcher.wake_at(self.now).expect("a hold-back has an end");
                assert!(wake <= first + limit, "nobody would look at {key:?} in time");
            }
            if idle {
                assert!(reason != HoldReason::TenantShare, "the device idles while {key:?} waits for its share");
                // Only while a decode step that is due waits for its host, or a round has time left that nobody may use.
                let idle_us = match reason {
                    HoldReason::DecodeDue => self.config.gap_us,
                    HoldReason::QuotaSpent if !self.config.share_in_idle => self.config.round_us,
                    _ => panic!("the device idles beside {key:?}: {reason:?}"),
                };
                let wake = self.dispatcher.wake_at(self.now).expect("has an end");
                // A microsecond as a fraction of a second is no whole number of nanoseconds.
                assert!(wake <= self.now + (idle_us * 1e3) as Nanos + 1, "idles until {wake} at {}", self.now);
            }
        }
        self.held_since.retain(|key, _| held.iter().any(|(k, ..)| k == key));
    }

    /// An idle device beside an operator that could run: only where the dispatcher says that it holds the operator back, and
    /// for how long that may be is checked there.
    pub(super) fn check_idle(&mut self) {
        if !self.device.streams.is_empty() {
            return;
        }
        let held: Vec<StreamKey> = self.dispatcher.held().map(|(key, ..)| key).collect();
        let memo = &mut HashMap::new();
        let mut passed_now = Vec::new();
        for (key, entries) in self.model.iter().filter(|(key, _)| !self.is_dead(key.session)) {
            let passed = self.passed.get(key).copied().unwrap_or(0);
            let stops = entries[passed..].iter().position(|entry| match entry {
                Entry::Op(token) => self.ops[token].submitted.is_none(),
                // A record that died with its session holds nobody back.
                Entry::Wait(record) => {
                    self.recorded(memo, *record).is_none() && !self.is_dead(self.records[*record].0.session)
                }
                Entry::Point => false,
            });
            let at = stops.map_or(entries.len(), |n| passed + n);
            if let Some(Entry::Op(token)) = entries.get(at) {
                assert!(held.contains(key), "the device idles beside operator {token} of {key:?}");
            }
            passed_now.push((*key, at));
        }
        self.passed.extend(passed_now);
    }

    /// Time alone of everything that was pushed before the operator that a stream waits with since `since`, and of what the
    /// device held then.
    fn work_before(&self, key: StreamKey, since: Nanos) -> Nanos {
        let entries = self.model[&key].iter();
        let next = entries.filter_map(|e| match e {
            Entry::Op(token) => Some(*token),
            _ => None,
        });
        let next = next.into_iter().find(|t| self.ops[t].submitted.is_none()).expect("it waits with one");
        let held =
            |op: &OpTrace| op.submitted.is_some_and(|at| at <= since) && op.completed.is_none_or(|at| at >= since);
        self.ops.iter().filter(|&(&t, op)| t < next || held(op)).map(|(_, op)| op.solo).sum()
    }

    fn is_dead(&self, session: u64) -> bool {
        self.died.contains_key(&session)
    }

    /// When everything before a point of a stream had completed; `None` where a death cut it off.
    fn reached(&self, memo: &mut HashMap<usize, Option<Nanos>>, (key, before): (StreamKey, usize)) -> Option<Nanos> {
        let mut at = 0;
        for entry in &self.model.get(&key)?[..before] {
            let done = match entry {
                Entry::Op(token) => self.ops[token].completed?,
                Entry::Wait(record) => self.recorded(memo, *record)?,
                Entry::Point => 0,
            };
            at = at.max(done);
        }
        Some(at)
    }

    fn recorded(&self, memo: &mut HashMap<usize, Option<Nanos>>, record: usize) -> Option<Nanos> {
        if let Some(&known) = memo.get(&record) {
            return known;
        }
        let place = self.records[record];
        let died = self.died.get(&place.0.session);
        // What a session had not recorded when it died, nobody waits for: how much of it still ran does not matter.
        let at = self.reached(memo, place).filter(|at| died.is_none_or(|died| at <= died));
        memo.insert(record, at);
        at
    }

    /// The semantics, checked against the finished run.
    pub(super) fn check(&self) {
        assert_eq!(self.dispatcher.in_flight(), 0);
        assert_eq!(self.dispatcher.queued(), 0, "something never came to its turn");
        let stats = self.dispatcher.stats();
        assert_eq!(stats.unknown_completions, 0);
        if self.config.name == PolicyName::Phase && !self.changed && !self.tenants {
            for phase in [Phase::Unknown, Phase::Mixed] {
                assert_eq!(stats.held_ns[phase.index()], 0, "{} work was held back", phase.name());
            }
        }
        for host in self.hosts.iter().filter(|h| !h.dead) {
            assert!(host.waits.is_none() && host.script.is_empty(), "a host of session {} never went on", host.session);
        }
        // The ideal bound: no resource gives more than it has, and without overlap nothing does.
        let limit = (self.device.busy + self.ops.len() as u64) as f64 * 1e-9 * (1.0 + 1e-9);
        let [resources @ .., alone] = self.device.done;
        assert!(resources.iter().all(|&used| used <= limit), "{resources:?} s in {limit} s");
        assert!(self.device.corun.omega > 0.0 || alone <= limit, "{alone} s of work in {limit} s");
        let memo = &mut HashMap::new();
        for (key, entries) in &self.model {
            let alive = !self.is_dead(key.session);
            let eager = self.config.name == PolicyName::Passthrough && !self.changed && !self.tenants && alive;
            let (mut submitted_last, mut completed_last, mut released) = (0, 0, 0);
            for entry in entries {
                match entry {
                    Entry::Wait(record) => {
                        // A record that died with its session holds nobody back.
                        released = released.max(self.recorded(memo, *record).unwrap_or(0));
                    }
                    Entry::Op(token) => {
                        let op = self.ops[token];
                        let dropped = self.dropped.contains(token);
                        assert_eq!(op.submitted.is_some(), op.completed.is_some());
                        assert_eq!(op.submitted.is_none(), dropped, "an operator is submitted or dropped, once");
                        assert!(!(alive && dropped), "a neighbour's operator was dropped");
                        if let (Some(s), Some(c)) = (op.submitted, op.completed) {
                            assert!(s >= submitted_last && c >= completed_last, "{key:?} out of order");
                            assert!(s >= released, "operator {token} of {key:?} passed a wait");
                            if eager && self.died.is_empty() {
                                assert_eq!(s, op.pushed.max(released), "passthrough submits at the first chance");
                            }
                            (submitted_last, completed_last) = (s, c);
                        }
                    }
                    Entry::Point => {}
                }
            }
        }
        for (token, w) in &self.waiters {
            let dropped = self.dropped.contains(token);
            assert_ne!(w.answered.is_some(), dropped, "a waiter is answered or dropped");
            let Some(answered) = w.answered else { continue };
            let reached: Option<Vec<_>> = w.points.iter().map(|&p| self.reached(memo, p)).collect();
            if let Some(reached) = reached {
                let want = reached.into_iter().max().unwrap_or(0).max(w.from);
                assert_eq!(answered, want, "waiter {token} is answered when its work has completed");
            }
            // Rounding: a nanosecond an operator.
            let slack = self.ops.len() as u64 + 1;
            assert!(!self.exact || w.bound <= answered + slack, "sleeping until {} misses {answered}", w.bound);
        }
    }
}

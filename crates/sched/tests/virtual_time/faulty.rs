//! A dispatcher that is broken on purpose, to see that the properties notice.
//!
//! Every world holds its dispatcher through [`Faulty`]. Without a [`Fault`] that adds nothing. With one, calls are dropped,
//! changed or doubled on their way in or out, so that what the world sees is what a dispatcher with that defect would do.
//! `broken_dispatchers_are_noticed`, beside the properties, runs them against faults that they exist for and expects them to fail.

use sched::dispatch::{HintInput, HintKind, Item, Refused};
use sched::policy::PolicyName;
use sched::{Action, Dispatcher, EventKey, Limits, Nanos, PolicyConfig, SessionParams, StreamKey, Token};
use std::collections::HashMap;
use std::ops::{Deref, DerefMut};

/// By how much [`Fault::SleepsIn`] is late.
const SLEEP: Nanos = 100_000;

/// What is wrong with a dispatcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Two operators of a stream that start in the same moment start in the wrong order.
    SwapsOperators,
    /// A wait for an event holds nothing back.
    ForgetsWaits,
    /// A reset of an event does nothing: later waits are for a record that no longer counts.
    ForgetsResets,
    /// Recording an event again does nothing: waits are for the first record.
    ForgetsSecondRecords,
    /// A synchronise is answered when it is asked for.
    AnswersAtOnce,
    /// A synchronise with the device looks at no stream but the default one.
    LooksAtOneStream,
    /// The answer to a synchronise is lost.
    LosesAnswers,
    /// Now and then a completion goes unnoticed.
    LosesCompletions,
    /// Now and then an operator starts twice.
    StartsTwice,
    /// What was chosen goes a tenth of a millisecond later. (Not under `passthrough`, which is what others are compared with.)
    SleepsIn,
    /// Whatever is configured, everything goes as it comes.
    IgnoresPolicy,
    /// A ready operator may be held back twenty times as long as the configuration says.
    HoldsForLong,
    /// A due decode step keeps an idle device twenty times as long as the configuration says.
    IdlesForLong,
    /// Every session has the same weight.
    IgnoresWeights,
    /// Both phases get half of the time whatever the configuration says.
    IgnoresPart,
    /// Decode may take its time: a hundred times the configured interval.
    IgnoresInterval,
    /// The gateway is not listened to after a request's admission.
    IgnoresTokens,
    /// A session that ends goes on.
    IgnoresDeaths,
    /// A session that ends takes another one with it.
    KillsNeighbours,
    /// Decisions depend on something besides what came in: here, on how many dispatchers there were before.
    Moody,
    /// A synchronise is answered when the operators before it should have ended by their estimates.
    TrustsEstimates,
}

/// A dispatcher, and what is wrong with it.
pub struct Faulty {
    inner: Dispatcher,
    fault: Option<Fault>,
    calls: u64,
    name: PolicyName,
    /// Kept back until then.
    late: Vec<(Nanos, Action)>,
    now_answered: Vec<Token>,
    recorded: HashMap<EventKey, ()>,
    sessions: Vec<u64>,
    /// Estimated end of everything pushed so far, by stream; what is answered then.
    ends: HashMap<StreamKey, Nanos>,
    by_estimate: Vec<(Nanos, Token)>,
    /// Answered by then: the real answer comes too late.
    early: Vec<Token>,
}

thread_local! {
    static MOOD: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
    static FAULT: std::cell::Cell<Option<Fault>> = const { std::cell::Cell::new(None) };
}

/// True while dispatchers of this thread are broken: then the first failure is enough.
pub fn is_broken() -> bool {
    FAULT.get().is_some()
}

/// What threads with broken dispatchers panic about is expected: nobody has to read it.
fn expect_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !is_broken() {
                usual(info);
            }
        }));
    });
}

/// Runs a property with broken dispatchers, which it must notice; answers what it said.
pub fn noticed(fault: Fault, property: fn()) -> String {
    expect_panics();
    FAULT.set(Some(fault));
    let result = std::panic::catch_unwind(property);
    FAULT.set(None);
    let Err(panic) = result else { panic!("a dispatcher that {fault:?} has every property that is asked for") };
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default()
}

/// A property, and faults that it must notice with a part of what it must say of each.
pub type Noticed<'a> = (fn(), &'a [(Fault, &'a str)]);

/// Each property against its faults.
pub fn all_noticed(table: &[Noticed<'_>]) {
    for (property, faults) in table {
        for &(fault, says) in *faults {
            let said = noticed(fault, *property);
            assert!(said.contains(says), "{fault:?}: {said}");
        }
    }
}

impl Faulty {
    pub fn new(config: PolicyConfig, limits: Limits) -> Self {
        let fault = FAULT.get();
        MOOD.set(MOOD.get() + 1);
        Self {
            inner: Dispatcher::new(broken(config, fault), limits),
            fault,
            calls: 0,
            name: config.name,
            late: Vec::new(),
            now_answered: Vec::new(),
            recorded: HashMap::new(),
            sessions: Vec::new(),
            ends: HashMap::new(),
            by_estimate: Vec::new(),
            early: Vec::new(),
        }
    }

    fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    pub fn set_policy(&mut self, config: PolicyConfig) {
        self.name = config.name;
        self.inner.set_policy(broken(config, self.fault));
    }

    pub fn open_session(&mut self, session: u64, params: SessionParams) -> Result<(), Refused> {
        self.sessions.push(session);
        let weight = if self.has(Fault::IgnoresWeights) { 1 } else { params.weight };
        self.inner.open_session(session, SessionParams { weight, ..params })
    }

    pub fn push(&mut self, now: Nanos, key: StreamKey, item: Item) -> Result<(), Refused> {
        match item {
            Item::WaitEvent(_) if self.has(Fault::ForgetsWaits) => return Ok(()),
            Item::ResetEvent(_) if self.has(Fault::ForgetsResets) => return Ok(()),
            Item::RecordEvent(event)
                if self.has(Fault::ForgetsSecondRecords) && self.recorded.insert(event, ()).is_some() =>
            {
                return Ok(());
            }
            Item::Notify { token } if self.has(Fault::AnswersAtOnce) => {
                self.now_answered.push(token);
                return Ok(());
            }
            Item::Notify { token } if self.has(Fault::TrustsEstimates) => {
                self.by_estimate.push((self.ends.get(&key).copied().unwrap_or(0), token));
            }
            Item::Op { solo, .. } => {
                let end = self.ends.entry(key).or_insert(now);
                *end = now.max(*end) + solo;
            }
            _ => {}
        }
        self.inner.push(now, key, item)
    }

    pub fn notify_device(&mut self, now: Nanos, session: u64, token: Token) {
        if self.has(Fault::LooksAtOneStream) {
            let _ = self.inner.push(now, StreamKey { session, stream: 0 }, Item::Notify { token });
        } else {
            self.inner.notify_device(now, session, token);
        }
    }

    pub fn complete(&mut self, now: Nanos, token: Token) {
        self.calls += 1;
        if !(self.has(Fault::LosesCompletions) && self.calls.is_multiple_of(7)) {
            self.inner.complete(now, token);
        }
    }

    pub fn hint(&mut self, now: Nanos, session: u64, hint: &HintInput) {
        if !self.has(Fault::IgnoresTokens) || matches!(hint.kind, HintKind::Admitted { .. }) {
            self.inner.hint(now, session, hint);
        }
    }

    pub fn close_session(&mut self, now: Nanos, session: u64, dropped: &mut Vec<Token>) {
        if self.has(Fault::IgnoresDeaths) {
            return;
        }
        self.inner.close_session(now, session, dropped);
        if self.has(Fault::KillsNeighbours)
            && let Some(&next) = self.sessions.iter().find(|&&s| s != session)
        {
            self.inner.close_session(now, next, dropped);
        }
    }

    pub fn wake_at(&self, now: Nanos) -> Option<Nanos> {
        let late = self.late.first().map(|(at, _)| *at);
        self.inner.wake_at(now).into_iter().chain(late).min()
    }

    pub fn step(&mut self, now: Nanos, out: &mut Vec<Action>) {
        self.inner.step(now, out);
        out.extend(self.now_answered.drain(..).map(|token| Action::Done { token }));
        match self.fault {
            Some(Fault::SwapsOperators) => swap(out),
            Some(Fault::LosesAnswers) => out.retain(|a| !matches!(a, Action::Done { .. })),
            Some(Fault::SleepsIn) if self.name != PolicyName::Passthrough => {
                self.late.extend(out.drain(..).map(|action| (now + SLEEP, action)));
                let due = self.late.iter().take_while(|(at, _)| *at <= now).count();
                out.extend(self.late.drain(..due).map(|(_, action)| action));
            }
            Some(Fault::StartsTwice) => {
                self.calls += 1;
                let start = out.iter().copied().find(|a| matches!(a, Action::Submit { .. }));
                out.extend(start.filter(|_| self.calls.is_multiple_of(5)));
            }
            Some(Fault::TrustsEstimates) => {
                out.retain(|a| match a {
                    Action::Done { token } => !self.early.contains(token),
                    Action::Submit { .. } => true,
                });
                self.by_estimate.retain(|(_, t)| !out.contains(&Action::Done { token: *t }));
                let due: Vec<Token> = self.by_estimate.iter().filter(|(at, _)| *at <= now).map(|w| w.1).collect();
                self.by_estimate.retain(|(at, _)| *at > now);
                out.extend(due.iter().map(|&token| Action::Done { token }));
                self.early.extend(due);
            }
            _ => {}
        }
    }
}

/// What a dispatcher with the fault makes of a configuration.
fn broken(config: PolicyConfig, fault: Option<Fault>) -> PolicyConfig {
    match fault {
        Some(Fault::HoldsForLong) => PolicyConfig { age_max_ms: 20.0 * config.age_max_ms, ..config },
        Some(Fault::IdlesForLong) => PolicyConfig { gap_us: 20.0 * config.gap_us, ..config },
        Some(Fault::IgnoresPart) => PolicyConfig { prefill_part: 0.5, ..config },
        Some(Fault::IgnoresInterval) => PolicyConfig { tpot_ms: 100.0 * config.tpot_ms, ..config },
        Some(Fault::IgnoresPolicy) => PolicyConfig { name: PolicyName::Passthrough, ..config },
        Some(Fault::Moody) if MOOD.get().is_multiple_of(2) => PolicyConfig { tpot_ms: 0.1, quota: 1, ..config },
        _ => config,
    }
}

/// Swaps the first two operators of one stream.
fn swap(actions: &mut [Action]) {
    for i in 0..actions.len() {
        let Action::Submit { stream, .. } = actions[i] else { continue };
        let same = |a: &Action| matches!(a, Action::Submit { stream: other, .. } if *other == stream);
        if let Some(j) = actions[i + 1..].iter().position(same) {
            actions.swap(i, i + 1 + j);
            return;
        }
    }
}

impl Deref for Faulty {
    type Target = Dispatcher;

    fn deref(&self) -> &Dispatcher {
        &self.inner
    }
}

impl DerefMut for Faulty {
    fn deref_mut(&mut self) -> &mut Dispatcher {
        &mut self.inner
    }
}

//! A world in virtual time around one dispatcher: host programs, a device with contention, and a model of the semantics
//! that every run is checked against, whatever the policy decided.
#![allow(dead_code)]

pub mod engine;

use engine::{Engine, Role};
use sched::dispatch::{HoldReason, Label, RecordLimits};
use sched::policy::PolicyName;
use sched::{
    Action, CoRun, Demand, Dispatcher, EventKey, Item, Limits, Nanos, Phase, PolicyConfig, SessionParams, StreamKey,
    Token, corun,
};
use std::collections::{BTreeMap, HashMap, VecDeque};

/// Random programs a property. Properties that run each program under every policy see 13 schedules a program: 10,400. Others
/// run 13 times as many programs.
const CASES: u32 = 800;

/// Configuration of a property: [`CASES`] programs, or as many as `SCHED_CASES` says, times `factor`.
pub fn property(seed: u64, factor: f64) -> proptest::test_runner::Config {
    let cases = std::env::var("SCHED_CASES").map_or(CASES, |n| n.parse().expect("SCHED_CASES is a number"));
    proptest::test_runner::Config {
        cases: (f64::from(cases) * factor).ceil() as u32,
        rng_seed: proptest::test_runner::RngSeed::Fixed(seed),
        failure_persistence: None,
        ..Default::default()
    }
}

pub const US: Nanos = 1_000;
pub const MS: Nanos = 1_000_000;

/// What a host thread does next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Act {
    Op {
        stream: u32,
        work: Work,
        phase: Phase,
    },
    Record {
        stream: u32,
        event: EventKey,
    },
    Wait {
        stream: u32,
        event: EventKey,
    },
    Reset {
        stream: u32,
        event: EventKey,
    },
    /// Wait for everything on the stream.
    Sync {
        stream: u32,
    },
    /// Wait for the event's last record.
    SyncEvent {
        event: EventKey,
    },
    /// Wait for everything of the session.
    SyncDevice,
    /// Compute on the host.
    Think(Nanos),
    /// Remember the time under this name.
    Stamp(u32),
    /// Close the host's own session and end.
    Die,
    /// An engine's loop goes on for as long as it has requests.
    Loop {
        engine: usize,
        role: Role,
    },
    /// The engine's next request arrives.
    Arrive {
        engine: usize,
    },
    /// The tokens of a step are out.
    HandIn {
        engine: usize,
        role: Role,
    },
}

/// True cost of an operator, and how wrong the dispatcher's estimate of it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Work {
    pub solo: Nanos,
    /// Parts of the time that cube, vector and HBM are busy.
    pub usage: [f64; 3],
    /// Estimate over truth.
    pub error: f64,
}

impl Work {
    pub fn cube(solo: Nanos) -> Self {
        Self { solo, usage: [0.95, 0.05, 0.15], error: 1.0 }
    }

    pub fn memory(solo: Nanos) -> Self {
        Self { solo, usage: [0.12, 0.05, 0.95], error: 1.0 }
    }

    fn demand(&self, scale: f64) -> Demand {
        let s = self.solo as f64 * 1e-9 * scale;
        let [cube, vector, hbm] = self.usage.map(|u| u * s);
        Demand { cube, vector, hbm, static_s: s - cube.max(vector).max(hbm), solo_s: s }
    }
}

pub struct Host {
    pub session: u64,
    pub script: VecDeque<Act>,
    wakes: Nanos,
    waits: Option<Token>,
    dead: bool,
}

struct Running {
    token: Token,
    left: f64,
    demand: Demand,
    phase: Phase,
}

/// Streams in order, heads side by side, at the rates of the contention model.
struct Device {
    corun: CoRun,
    at: Nanos,
    streams: BTreeMap<StreamKey, VecDeque<Running>>,
    /// Time with anything to do, and what was completed in it: seconds of cube, vector, HBM, and alone.
    busy: Nanos,
    done: [f64; 4],
}

impl Device {
    fn rates(&self) -> Vec<f64> {
        let heads: Vec<_> = self.streams.values().filter_map(|q| q.front()).map(|r| (r.demand, r.phase)).collect();
        corun::rates(&heads, &self.corun)
    }

    fn next(&self) -> Option<Nanos> {
        let heads = self.streams.values().filter_map(|q| q.front());
        heads.zip(self.rates()).map(|(r, rate)| self.at + (r.left / rate).ceil() as Nanos).min()
    }

    fn advance(&mut self, to: Nanos) {
        let rates = self.rates();
        let dt = (to - self.at) as f64;
        self.busy += if self.streams.is_empty() { 0 } else { to - self.at };
        self.at = to;
        for (r, rate) in self.streams.values_mut().filter_map(|q| q.front_mut()).zip(rates) {
            r.left -= rate * dt;
        }
    }

    fn take_completed(&mut self) -> Vec<(StreamKey, Token)> {
        let mut out = Vec::new();
        for (key, queue) in &mut self.streams {
            if queue.front().is_some_and(|r| r.left < 1e-3) {
                let done = queue.pop_front().expect("checked");
                let Demand { cube, vector, hbm, solo_s, .. } = done.demand;
                for (sum, part) in self.done.iter_mut().zip([cube, vector, hbm, solo_s]) {
                    *sum += part;
                }
                out.push((*key, done.token));
            }
        }
        self.streams.retain(|_, q| !q.is_empty());
        out
    }
}

/// What the model remembers of one stream: pushed entries in order.
#[derive(Clone, Copy, Debug)]
enum Entry {
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
    solo: Nanos,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trace {
    Submitted(Nanos, Token, StreamKey),
    Completed(Nanos, Token),
    Done(Nanos, Token),
}

struct Waiter {
    /// Positions that it looks at: stream, number of entries before.
    points: Vec<(StreamKey, usize)>,
    from: Nanos,
    /// Largest time that `earliest_release` named while it waited.
    bound: Nanos,
    answered: Option<Nanos>,
}

pub struct World {
    pub dispatcher: Dispatcher,
    pub config: PolicyConfig,
    pub hosts: Vec<Host>,
    pub engines: Vec<Engine>,
    pub now: Nanos,
    pub trace: Vec<Trace>,
    pub stamps: HashMap<u32, Vec<Nanos>>,
    pub ops: BTreeMap<Token, OpTrace>,
    device: Device,
    model: HashMap<StreamKey, Vec<Entry>>,
    /// Each record: where it stands.
    records: Vec<(StreamKey, usize)>,
    bound_to: HashMap<EventKey, usize>,
    waiters: BTreeMap<Token, Waiter>,
    held_since: HashMap<StreamKey, Nanos>,
    dropped: Vec<Token>,
    died: HashMap<u64, Nanos>,
    tokens: Token,
    exact: bool,
    demands: HashMap<Token, (Demand, Phase)>,
    changes: VecDeque<(Nanos, PolicyConfig)>,
    changed: bool,
}

impl World {
    pub fn new(config: PolicyConfig, limits: Limits, corun: CoRun) -> Self {
        Self {
            dispatcher: Dispatcher::new(config, limits),
            config,
            hosts: Vec::new(),
            engines: Vec::new(),
            now: 0,
            trace: Vec::new(),
            stamps: HashMap::new(),
            ops: BTreeMap::new(),
            device: Device { corun, at: 0, streams: BTreeMap::new(), busy: 0, done: [0.0; 4] },
            model: HashMap::new(),
            records: Vec::new(),
            bound_to: HashMap::new(),
            waiters: BTreeMap::new(),
            held_since: HashMap::new(),
            dropped: Vec::new(),
            died: HashMap::new(),
            tokens: 0,
            exact: true,
            demands: HashMap::new(),
            changes: VecDeque::new(),
            changed: false,
        }
    }

    /// Like [`World::new`], with everything recorded.
    pub fn recording(mut self, bytes_max: usize) -> Self {
        self.dispatcher.start_record(RecordLimits { bytes_max, span: Nanos::MAX });
        self
    }

    /// Changes the policy at a time; times ascend.
    pub fn change_policy(&mut self, at: Nanos, config: PolicyConfig) {
        self.changes.push_back((at, config));
    }

    /// Opens a session with so many streams besides the default one.
    pub fn session(&mut self, session: u64, streams: u32, params: SessionParams) {
        self.dispatcher.open_session(session, params).expect("opens");
        for stream in 1..=streams {
            self.dispatcher.open_stream(StreamKey { session, stream }, 0).expect("opens");
        }
    }

    pub fn host(&mut self, session: u64, starts: Nanos, script: impl IntoIterator<Item = Act>) {
        let script = script.into_iter().collect();
        self.hosts.push(Host { session, script, wakes: starts, waits: None, dead: false });
    }

    /// Runs until nothing is left to do, then checks the whole run.
    pub fn run(&mut self) {
        let mut turns = 0u64;
        while self.turn() {
            turns += 1;
            assert!(turns < 4_000_000, "no end in sight at {} ns", self.now);
        }
        self.check();
    }

    fn turn(&mut self) -> bool {
        while let Some(&(_, config)) = self.changes.front().filter(|(at, _)| *at <= self.now) {
            self.changes.pop_front();
            self.dispatcher.set_policy(config);
            self.config = config;
            self.changed = true;
            self.held_since.clear();
        }
        self.step();
        if self.run_hosts() {
            return true;
        }
        let awake = |h: &&Host| !h.dead && h.waits.is_none() && !h.script.is_empty() && h.wakes < Nanos::MAX;
        let hosts = self.hosts.iter().filter(awake).map(|h| h.wakes);
        let wake = self.dispatcher.wake_at(self.now);
        let change = self.changes.front().map(|c| c.0);
        let Some(next) = hosts.chain(self.device.next()).chain(wake).chain(change).min() else { return false };
        assert!(next > self.now, "time must pass");
        self.now = next;
        self.device.advance(next);
        for (_, token) in self.device.take_completed() {
            self.trace.push(Trace::Completed(next, token));
            self.ops.get_mut(&token).expect("known").completed = Some(next);
            self.dispatcher.complete(next, token);
        }
        true
    }

    fn step(&mut self) {
        let mut actions = Vec::new();
        self.dispatcher.step(self.now, &mut actions);
        for action in actions {
            match action {
                Action::Submit { token, stream } => {
                    self.trace.push(Trace::Submitted(self.now, token, stream));
                    let op = self.ops.get_mut(&token).expect("known");
                    assert!(op.submitted.replace(self.now).is_none(), "submitted twice");
                    let (mut demand, phase) = self.demands[&token];
                    let mut left = op.solo as f64;
                    if let Some(split) = self.config.core_split() {
                        let limited = split.limit(&demand, phase);
                        left *= limited.solo_s / demand.solo_s;
                        demand = limited;
                    }
                    let running = Running { token, left, demand, phase };
                    self.device.streams.entry(stream).or_default().push_back(running);
                    self.held_since.remove(&stream);
                }
                Action::Done { token } => {
                    self.trace.push(Trace::Done(self.now, token));
                    let waiter = self.waiters.get_mut(&token).expect("known");
                    assert!(waiter.answered.replace(self.now).is_none(), "answered twice");
                    for host in self.hosts.iter_mut().filter(|h| h.waits == Some(token)) {
                        host.waits = None;
                        host.wakes = self.now;
                    }
                }
            }
        }
        self.check_holds();
        if let Some(bound) = self.dispatcher.earliest_release(self.now) {
            for w in self.waiters.values_mut().filter(|w| w.answered.is_none()) {
                w.bound = w.bound.max(bound);
            }
        }
    }

    fn check_holds(&mut self) {
        let held: Vec<_> = self.dispatcher.held().collect();
        let idle = self.dispatcher.in_flight() == 0;
        for &(key, reason, since) in &held {
            let first = *self.held_since.entry(key).or_insert(since);
            let limit = (self.config.age_max_ms * 1e6) as Nanos + 1;
            if reason == HoldReason::Order {
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

    fn run_hosts(&mut self) -> bool {
        let mut progress = false;
        for i in 0..self.hosts.len() {
            while !self.hosts[i].dead && self.hosts[i].waits.is_none() && self.hosts[i].wakes <= self.now {
                let Some(&act) = self.hosts[i].script.front() else { break };
                if let Act::Loop { engine, role } = act {
                    progress |= self.go_on(i, engine, role);
                    continue;
                }
                self.hosts[i].script.pop_front();
                progress = true;
                self.act(i, act);
            }
        }
        progress
    }

    fn act(&mut self, host: usize, act: Act) {
        let session = self.hosts[host].session;
        let at = |stream| StreamKey { session, stream };
        self.tokens += 1;
        let token = self.tokens;
        match act {
            Act::Op { stream, work, phase } => {
                self.exact &= work.error == 1.0;
                let solo = (work.solo as f64 * work.error) as Nanos;
                let item = Item::Op { token, solo, demand: work.demand(work.error), phase, label: Label::default() };
                self.ops.insert(token, OpTrace { pushed: self.now, solo: work.solo, ..OpTrace::default() });
                self.demands.insert(token, (work.demand(1.0), phase));
                self.model.entry(at(stream)).or_default().push(Entry::Op(token));
                self.dispatcher.push(self.now, at(stream), item).expect("room");
            }
            Act::Record { stream, event } => {
                let entries = self.model.entry(at(stream)).or_default();
                self.records.push((at(stream), entries.len()));
                entries.push(Entry::Point);
                self.bound_to.insert(event, self.records.len() - 1);
                self.dispatcher.push(self.now, at(stream), Item::RecordEvent(event)).expect("room");
            }
            Act::Wait { stream, event } => {
                if let Some(&record) = self.bound_to.get(&event) {
                    self.model.entry(at(stream)).or_default().push(Entry::Wait(record));
                }
                self.dispatcher.push(self.now, at(stream), Item::WaitEvent(event)).expect("room");
            }
            Act::Reset { stream, event } => {
                self.bound_to.remove(&event);
                self.dispatcher.push(self.now, at(stream), Item::ResetEvent(event)).expect("room");
            }
            Act::Sync { stream } => {
                let entries = self.model.entry(at(stream)).or_default();
                let points = vec![(at(stream), entries.len())];
                entries.push(Entry::Point);
                self.wait(host, token, points);
                self.dispatcher.push(self.now, at(stream), Item::Notify { token }).expect("room");
            }
            Act::SyncEvent { event } => {
                let points = self.bound_to.get(&event).map(|&r| vec![self.records[r]]).unwrap_or_default();
                self.wait(host, token, points);
                self.dispatcher.notify_event(self.now, event, token);
            }
            Act::SyncDevice => {
                let of_session = self.model.iter().filter(|(k, _)| k.session == session);
                let points = of_session.map(|(k, e)| (*k, e.len())).collect();
                self.wait(host, token, points);
                self.dispatcher.notify_device(self.now, session, token);
            }
            Act::Think(ns) => self.hosts[host].wakes = self.now + ns,
            Act::Loop { .. } => unreachable!("goes on before"),
            Act::Arrive { engine } => self.arrive(engine),
            Act::HandIn { engine, role } => self.hand_in(engine, role),
            Act::Stamp(name) => self.stamps.entry(name).or_default().push(self.now),
            Act::Die => {
                self.dispatcher.close_session(self.now, session, &mut self.dropped);
                self.died.insert(session, self.now);
                self.bound_to.retain(|e, _| e.session != session);
                for h in self.hosts.iter_mut().filter(|h| h.session == session) {
                    h.dead = true;
                }
            }
        }
    }

    fn wait(&mut self, host: usize, token: Token, points: Vec<(StreamKey, usize)>) {
        self.hosts[host].waits = Some(token);
        self.waiters.insert(token, Waiter { points, from: self.now, bound: 0, answered: None });
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
    fn check(&self) {
        assert_eq!(self.dispatcher.in_flight(), 0);
        assert_eq!(self.dispatcher.queued(), 0, "something never came to its turn");
        let stats = self.dispatcher.stats();
        assert_eq!(stats.unknown_completions, 0);
        if self.config.name == PolicyName::Phase && !self.changed {
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
            let eager = self.config.name == PolicyName::Passthrough && !self.changed && alive;
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

impl World {
    /// Phase of an operator.
    pub fn phase_of(&self, token: Token) -> Option<Phase> {
        self.demands.get(&token).map(|d| d.1)
    }

    /// Session that submitted an operator.
    pub fn submitted_by(&self, token: Token) -> Option<u64> {
        self.trace.iter().find_map(|t| match t {
            Trace::Submitted(_, submitted, key) if *submitted == token => Some(key.session),
            _ => None,
        })
    }

    /// When the session's last operator completed.
    pub fn last_completion_of(&self, session: u64) -> Nanos {
        let of_session = self.trace.iter().filter_map(|t| match t {
            Trace::Completed(at, token) if self.submitted_by(*token) == Some(session) => Some(*at),
            _ => None,
        });
        of_session.max().unwrap_or(0)
    }
}

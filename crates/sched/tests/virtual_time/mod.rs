//! A world in virtual time around one dispatcher: host programs, a device with contention, and a model of the semantics
//! that every run is checked against, whatever the policy decided.
#![allow(dead_code)]

mod act;
mod device;
pub mod engine;
pub mod faulty;
mod semantics;

pub use act::{Act, Work};
use device::{Device, Running};
use engine::Engine;
use faulty::Faulty;
use sched::dispatch::RecordLimits;
use sched::{Action, CoRun, Demand, EventKey, Limits, Nanos, Phase, PolicyConfig, SessionParams, StreamKey, Token};
use semantics::{Entry, Waiter};
pub use semantics::{OpTrace, Trace};
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
        max_shrink_iters: if faulty::is_broken() { 0 } else { u32::MAX },
        ..Default::default()
    }
}

/// Turns of a world, of which programs need a few ten thousand.
const TURNS_MAX: u64 = 400_000;

pub const US: Nanos = 1_000;
pub const MS: Nanos = 1_000_000;

pub struct Host {
    pub session: u64,
    pub script: VecDeque<Act>,
    wakes: Nanos,
    waits: Option<Token>,
    dead: bool,
}

pub struct World {
    pub dispatcher: Faulty,
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
    /// Entries of each stream that cannot keep it from going on any more.
    passed: HashMap<StreamKey, usize>,
    tokens: Token,
    exact: bool,
    demands: HashMap<Token, (Demand, Phase)>,
    changes: VecDeque<(Nanos, PolicyConfig)>,
    changed: bool,
    /// Sessions belong to several tenants, who are held to their shares: hold-backs beyond the policy's.
    pub tenants: bool,
}

impl World {
    pub fn new(config: PolicyConfig, limits: Limits, corun: CoRun) -> Self {
        Self {
            dispatcher: Faulty::new(config, limits),
            config,
            hosts: Vec::new(),
            engines: Vec::new(),
            now: 0,
            trace: Vec::new(),
            stamps: HashMap::new(),
            ops: BTreeMap::new(),
            device: Device::new(corun),
            model: HashMap::new(),
            records: Vec::new(),
            bound_to: HashMap::new(),
            waiters: BTreeMap::new(),
            held_since: HashMap::new(),
            dropped: Vec::new(),
            died: HashMap::new(),
            passed: HashMap::new(),
            tokens: 0,
            exact: true,
            demands: HashMap::new(),
            changes: VecDeque::new(),
            changed: false,
            tenants: false,
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
            assert!(turns < TURNS_MAX, "no end in sight at {} ns", self.now);
        }
        self.check();
    }

    /// Runs up to a time at which there may be work left; checks nothing of what is still under way.
    pub fn run_until(&mut self, until: Nanos) {
        while self.now < until && self.turn() {}
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
        self.check_idle();
        if let Some(bound) = self.dispatcher.earliest_release(self.now) {
            for w in self.waiters.values_mut().filter(|w| w.answered.is_none()) {
                w.bound = w.bound.max(bound);
            }
        }
    }

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

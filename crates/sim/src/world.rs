//! The loop: engines push steps, dispatchers decide, devices model, in one virtual time.
//!
//! It does what the daemon's `runtime::Core` does, in the same order: at the earliest next time, every completion first, then
//! what hosts do at that time, then one decision of each dispatcher that something happened to.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use device::emulated::model::Model as DeviceModel;
use sched::dispatch::{HintInput, HintKind, RecordLimits, Recording, Stats, Window};
use sched::model::Model;
use sched::{Action, CoRun, Dispatcher, Item, Limits, Nanos, Phase, PolicyConfig, Profile, SessionParams, StreamKey};

use crate::engine::{Engine, EngineConfig, Mode, Plan};
use crate::step::{Op, Step, Weigher};
use crate::{Outcome, Request};

/// What an engine's host costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    /// Launching one operator.
    pub launch: Nanos,
    /// From the end of a step on the device until the first operator of the next is launched; the step's tokens are out then.
    pub turn: Nanos,
    /// From a request's arrival, or a slot becoming free, until an idle loop has launched its first operator.
    pub wake: Nanos,
}

impl Host {
    /// The reference engine under the interposer, on an emulated, paced device: what `cargo xtask bench timing` and the demo
    /// show on a two-core machine. Posting an operator takes under a microsecond, turning a step round a few hundred.
    pub const REFERENCE: Self = Self { launch: 1_000, turn: 300_000, wake: 300_000 };
    /// An eager Python host: 16 µs an operator lies inside what was measured on 910B2 (12–25 µs).
    pub const EAGER: Self = Self { launch: 16_000, turn: 500_000, wake: 500_000 };
}

/// One engine and where it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Its settings.
    pub engine: EngineConfig,
    /// Device of its prefill steps (of all its steps, if they share a stream).
    pub prefill: usize,
    /// Device of its decode steps. Moving KV blocks between two devices takes no time here, which favours disaggregation.
    pub decode: usize,
    /// Its session's weight and priority.
    pub session: SessionParams,
}

/// A simulation's fixed part.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The model that every engine serves.
    pub model: Model,
    /// What every device is.
    pub profile: Profile,
    /// How operators share a device.
    pub corun: CoRun,
    /// Dispatch policy of every device.
    pub policy: PolicyConfig,
    /// Devices.
    pub devices: usize,
    /// Engines.
    pub engines: Vec<Placement>,
    /// What every host costs.
    pub host: Host,
    /// Hand a step over as one operator while nothing else can want the device before it ends.
    pub merge_alone: bool,
    /// A gateway sends hints.
    pub hints: bool,
    /// Record every device's decisions, within these limits.
    pub record: Option<RecordLimits>,
}

impl Setup {
    /// One engine on one device, with the reference host, hints, and steps merged where nothing can tell.
    pub fn single(profile: Profile, corun: CoRun, policy: PolicyConfig, engine: EngineConfig) -> Self {
        Self {
            model: Model::QWEN2_5_7B,
            profile,
            corun,
            policy,
            devices: 1,
            engines: vec![Placement { engine, prefill: 0, decode: 0, session: SessionParams::default() }],
            host: Host::REFERENCE,
            merge_alone: true,
            hints: true,
            record: None,
        }
    }
}

/// What a simulation saw.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// Every request, by engine and arrival.
    pub outcomes: Vec<Outcome>,
    /// Each device's dispatcher counters.
    pub stats: Vec<Stats>,
    /// Operators handed to devices, merged ones counted once.
    pub submitted: u64,
    /// Steps that engines ran.
    pub steps: u64,
    /// Each device's decisions, where [`Setup::record`] asked for them.
    pub recordings: Vec<Recording>,
}

/// Progress hints come with the second token, and then this often, tokens.
const PROGRESS_EVERY: u32 = 16;
/// Low bits of a token: the operator within its step; all ones: the waiter behind the step.
const INDEX_BITS: u32 = 16;
const WAITER: u64 = (1 << INDEX_BITS) - 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// The next request arrives.
    Arrival,
    /// A lane that slept looks for work.
    Start(usize),
    /// A lane launches operators from this one on.
    Launch(usize, usize),
    /// A lane's host has seen the end of its step.
    HandIn(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle,
    /// Its host is at work: about to look for a step, or about to hand one in.
    Host,
    /// A step is launched.
    Running,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Prefill,
    Decode,
    All,
}

/// One stream of an engine.
struct Lane {
    engine: usize,
    device: usize,
    key: StreamKey,
    role: Role,
    state: State,
    plan: Plan,
    phase: Phase,
    step: Option<Step>,
    /// When its first operator was launched.
    began: Nanos,
}

struct Device {
    dispatcher: Dispatcher,
    model: DeviceModel,
    /// Something happened that its dispatcher has not decided about.
    touched: bool,
}

struct World<'a> {
    setup: &'a Setup,
    requests: &'a [Request],
    arrived: usize,
    now: Nanos,
    devices: Vec<Device>,
    engines: Vec<Engine>,
    lanes: Vec<Lane>,
    events: BinaryHeap<Reverse<(Nanos, u64, Event)>>,
    minted: u64,
    weigher: Weigher,
    submitted: u64,
    steps: u64,
}

/// Runs `requests`, which come in order of arrival, to their end.
///
/// # Panics
/// If requests are out of order or name an engine that is not there, if one could never run, or if the dispatcher stops
/// dispatching: a policy that holds work back for ever.
pub fn run(setup: &Setup, requests: &[Request]) -> Run {
    assert!(requests.is_sorted_by_key(|r| r.arrival), "requests come in order of arrival");
    let mut world = World::new(setup, requests);
    world.run();
    let stats = world.devices.iter().map(|d| d.dispatcher.stats().clone()).collect();
    let outcomes = world.engines.iter().flat_map(|e| e.outcomes().copied()).collect();
    let recordings = world.devices.iter_mut().filter_map(|d| d.dispatcher.take_record()).collect();
    Run { outcomes, stats, submitted: world.submitted, steps: world.steps, recordings }
}

impl<'a> World<'a> {
    fn new(setup: &'a Setup, requests: &'a [Request]) -> Self {
        // The window that the daemon gives a device that is nothing but a model.
        let limits = Limits { window: Window::Adaptive { handoff: 0, max: 16 }, ..Limits::default() };
        let mut devices: Vec<Device> = (0..setup.devices)
            .map(|_| Device {
                dispatcher: Dispatcher::new(setup.policy, limits),
                model: DeviceModel::new(setup.profile, setup.corun).with_core_split(setup.policy.core_split()),
                touched: false,
            })
            .collect();
        let mut lanes = Vec::new();
        for (engine, placement) in setup.engines.iter().enumerate() {
            let roles: &[(Role, usize)] = match placement.engine.mode {
                Mode::Split => &[(Role::Prefill, placement.prefill), (Role::Decode, placement.decode)],
                Mode::Colocated | Mode::Mixed { .. } => &[(Role::All, placement.prefill)],
            };
            for (stream, &(role, device)) in (1..).zip(roles) {
                let session = engine as u64 + 1;
                let dispatcher = &mut devices[device].dispatcher;
                // The second stream of a session finds it open already.
                let _ = dispatcher.open_session(session, placement.session);
                let key = StreamKey { session, stream };
                dispatcher.open_stream(key, 0).expect("within the limits");
                let (state, phase, plan) = (State::Idle, Phase::Unknown, Plan::default());
                lanes.push(Lane { engine, device, key, role, state, plan, phase, step: None, began: 0 });
            }
        }
        for device in &mut devices {
            if let Some(limits) = setup.record {
                device.dispatcher.start_record(limits);
            }
        }
        let mut world = Self {
            setup,
            requests,
            arrived: 0,
            now: 0,
            devices,
            engines: setup.engines.iter().map(|p| Engine::new(p.engine)).collect(),
            lanes,
            events: BinaryHeap::new(),
            minted: 0,
            weigher: Weigher::new(setup.model, setup.profile),
            submitted: 0,
            steps: 0,
        };
        world.expect_arrival();
        world
    }

    fn at(&mut self, time: Nanos, event: Event) {
        self.minted += 1;
        self.events.push(Reverse((time, self.minted, event)));
    }

    fn expect_arrival(&mut self) {
        if let Some(next) = self.requests.get(self.arrived) {
            self.at(next.arrival, Event::Arrival);
        }
    }

    fn run(&mut self) {
        let mut actions = Vec::new();
        loop {
            let event = self.events.peek().map(|Reverse((time, ..))| *time);
            let now = self.now;
            let on_devices = self.devices.iter().flat_map(|d| {
                let expiry = d.dispatcher.wake_at(now).filter(|&t| t > now);
                [d.model.next_end(), expiry].into_iter().flatten()
            });
            let Some(next) = on_devices.chain(event).min() else { break };
            self.now = self.now.max(next);
            for device in &mut self.devices {
                device.model.run_until(self.now);
                while let Some((at, id)) = device.model.take_ended(self.now) {
                    device.dispatcher.complete(at, u64::from(id));
                    device.touched = true;
                }
                device.touched |= device.dispatcher.wake_at(0).is_some_and(|t| t <= self.now);
            }
            while let Some(&Reverse((time, _, event))) = self.events.peek().filter(|Reverse((t, ..))| *t <= self.now) {
                self.events.pop();
                self.host(time, event);
            }
            for index in 0..self.devices.len() {
                if std::mem::take(&mut self.devices[index].touched) {
                    self.decide(index, &mut actions);
                }
            }
        }
        let finished: usize = self.engines.iter().map(Engine::finished).sum();
        let reason = "every request ends: no policy holds work back for ever";
        assert_eq!(finished, self.requests.len(), "{reason}");
    }

    /// One decision of a device's dispatcher.
    fn decide(&mut self, index: usize, actions: &mut Vec<Action>) {
        actions.clear();
        let device = &mut self.devices[index];
        device.dispatcher.step(self.now, actions);
        for action in actions {
            match *action {
                Action::Submit { token, .. } => {
                    let number = (token >> INDEX_BITS) as usize;
                    let lane = &self.lanes[number];
                    let Some(step) = &lane.step else { continue };
                    let &Op { solo, demand, transfer, .. } = step.op((token & WAITER) as usize);
                    let weighed = (demand, solo, transfer);
                    device.model.submit_weighed(self.now, number as u32, token as u32, lane.phase, weighed);
                    self.submitted += 1;
                }
                Action::Done { token } => {
                    let lane = (token >> INDEX_BITS) as usize;
                    self.lanes[lane].state = State::Host;
                    self.minted += 1;
                    let at = self.now + self.setup.host.turn;
                    self.events.push(Reverse((at, self.minted, Event::HandIn(lane))));
                }
            }
        }
    }

    fn host(&mut self, time: Nanos, event: Event) {
        match event {
            Event::Arrival => {
                let request = self.requests[self.arrived];
                self.arrived += 1;
                let id = self.engines[request.engine].submit(&request);
                let (prompt_tokens, max_tokens) = (request.prompt, request.output);
                let admitted = HintKind::Admitted { prompt_tokens, max_tokens, ttft: 0, tpot: 0, priority: 0 };
                self.hint(request.engine, id, admitted);
                self.hint(request.engine, id, HintKind::PrefillStarted);
                self.wake(request.engine, time);
                self.expect_arrival();
            }
            Event::Start(lane) => self.start(lane, time),
            Event::Launch(lane, from) => self.launch(lane, from, time),
            Event::HandIn(lane) => self.hand_in(lane, time),
        }
    }

    fn hint(&mut self, engine: usize, request: usize, kind: HintKind) {
        if !self.setup.hints {
            return;
        }
        let placement = &self.setup.engines[engine];
        let (first, second) = (placement.prefill, placement.decode);
        let input = HintInput { request: request as u64, kind };
        for device in [first, second].into_iter().take(if first == second { 1 } else { 2 }) {
            self.devices[device].dispatcher.hint(self.now, engine as u64 + 1, &input);
            self.devices[device].touched = true;
        }
    }

    /// Wakes those of an engine's sleeping lanes that have something to do.
    fn wake(&mut self, engine: usize, now: Nanos) {
        let (prompts, tokens) = (self.engines[engine].can_prefill(), self.engines[engine].can_decode());
        for lane in 0..self.lanes.len() {
            let useful = match self.lanes[lane].role {
                Role::Prefill => prompts,
                Role::Decode => tokens,
                Role::All => prompts || tokens,
            };
            if useful && self.lanes[lane].engine == engine && self.lanes[lane].state == State::Idle {
                self.lanes[lane].state = State::Host;
                self.at(now + self.setup.host.wake, Event::Start(lane));
            }
        }
    }

    fn start(&mut self, lane: usize, now: Nanos) {
        let engine = &mut self.engines[self.lanes[lane].engine];
        let plan = match self.lanes[lane].role {
            Role::Prefill => engine.next_prefill(),
            Role::Decode => engine.next_decode(),
            Role::All => engine.next_step(),
        };
        if plan.is_empty() {
            self.lanes[lane].state = State::Idle;
            return;
        }
        self.steps += 1;
        let mut step = self.weigher.step(&plan.batch(), plan.rows());
        if self.alone(lane, now, &step) {
            let ends =
                step.ops().zip(0..).fold(now, |end, (op, i)| end.max(now + i * self.setup.host.launch) + op.solo);
            step = step.merged(ends - now);
        }
        let state = &mut self.lanes[lane];
        state.phase = match state.role {
            Role::Prefill => Phase::Prefill,
            Role::Decode => Phase::Decode,
            Role::All => plan.phase(),
        };
        (state.plan, state.step, state.began, state.state) = (plan, Some(step), now, State::Running);
        self.launch(lane, 0, now);
    }

    /// True if nothing can want the lane's device before a step of these operators that begins now has ended.
    fn alone(&self, lane: usize, now: Nanos, step: &Step) -> bool {
        let others =
            || self.lanes.iter().enumerate().filter(|(i, l)| *i != lane && l.device == self.lanes[lane].device);
        // With part of the cores an operator's time follows from its own bound, not from the whole step's.
        let split = self.setup.policy.core_split().is_some();
        if !self.setup.merge_alone || split || others().any(|(_, l)| l.state != State::Idle) {
            return false;
        }
        // An idle lane wakes for an arrival, unless older requests of its engine queue already, or for a step of its engine,
        // which on this device is this one.
        let wakes = |engine: usize| !self.engines[engine].has_waiting() && others().any(|(_, l)| l.engine == engine);
        let launched = now + step.len() as Nanos * self.setup.host.launch;
        let end = launched + step.whole().solo;
        let mut arrivals = self.requests[self.arrived..].iter().take_while(|r| r.arrival <= end);
        !arrivals.any(|r| wakes(r.engine)) && !self.other_device_feeds(lane)
    }

    /// An engine with its streams on two devices wakes one by the other at times that this device does not see.
    fn other_device_feeds(&self, lane: usize) -> bool {
        let device = self.lanes[lane].device;
        let here = |l: &Lane| l.device == device;
        let mut idle_here = self.lanes.iter().enumerate().filter(|(i, l)| *i != lane && here(l));
        let feeds = |engine: usize| self.lanes.iter().any(|l| l.engine == engine && l.device != device);
        idle_here.any(|(_, l)| feeds(l.engine))
    }

    /// Pushes operators from `from` on: as many as are launched before the device could have run those before them.
    fn launch(&mut self, lane: usize, from: usize, now: Nanos) {
        let Lane { key, device, step, began, phase, .. } = &self.lanes[lane];
        let Some(step) = step else { return };
        let dispatcher = &mut self.devices[*device].dispatcher;
        let mut runs_until = now;
        let mut next = None;
        for (index, op) in step.ops().enumerate().skip(from) {
            let launched = began + index as Nanos * self.setup.host.launch;
            if launched > runs_until {
                next = Some((launched, index));
                break;
            }
            let token = (lane as u64) << INDEX_BITS | index as u64;
            let item = Item::Op { token, solo: op.solo, demand: op.demand, phase: *phase, label: op.label };
            dispatcher.push(self.now, *key, item).expect("a step is far under the limits");
            runs_until += op.solo;
        }
        if next.is_none() {
            let token = (lane as u64) << INDEX_BITS | WAITER;
            dispatcher.push(self.now, *key, Item::Notify { token }).expect("a step is far under the limits");
        }
        self.devices[*device].touched = true;
        if let Some((launched, index)) = next {
            self.at(launched, Event::Launch(lane, index));
        }
    }

    fn hand_in(&mut self, lane: usize, now: Nanos) {
        let plan = std::mem::take(&mut self.lanes[lane].plan);
        let engine = self.lanes[lane].engine;
        let mut emitted = Vec::new();
        self.engines[engine].complete(&plan, now, &mut emitted);
        for token in emitted {
            let (tokens, last) = (token.tokens, token.last);
            if tokens == 1 {
                self.hint(engine, token.request, HintKind::FirstToken);
            } else if tokens == 2 || tokens % PROGRESS_EVERY == 1 {
                self.hint(engine, token.request, HintKind::Progress { tokens });
            }
            if last {
                self.hint(engine, token.request, HintKind::Finished);
            }
        }
        // Its own loop goes on; the engine's other one may have something to do now.
        self.wake(engine, now);
        self.start(lane, now);
    }
}

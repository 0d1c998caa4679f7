//! Modelled time: when each command would complete on the profiled device.
//!
//! A discrete-event fluid simulation. Every physical stream runs its commands in order; the commands at the heads of
//! the streams run concurrently and share the device by [`sched::corun`]'s rates. A command that needs `solo`
//! nanoseconds alone (static cost included, [`sched::Profile::solo`]) and runs at rates `r` over intervals `Δt` ends when
//! `Σ r·Δt = solo`. Rates change only when a command starts or ends, so state is advanced only there: completion times
//! depend on what was submitted and when, never on when somebody asked.
//!
//! Transfers over the host link ([`OpClass::Copy`]) and to other devices ([`OpClass::Link`]) run beside everything at full
//! rate: DMA engines carry them, and at 25 GB/s and 137 GB/s they take under 3 % and 15 % of HBM bandwidth. Copies within the device and fills share like any operator.
//!
//! With a core split ([`CoreSplit`]) a command takes longer alone, by its phase's part of the cores, and asks for less of the
//! device at a time.
//!
//! Times are whole nanoseconds: an end is rounded up, so errors stay below 1 ns an event. Pure: no clock, no threads.

use std::collections::VecDeque;

use sched::{CoRun, CoreSplit, Demand, Nanos, OpClass, Phase, Profile, Work, corun};

/// Names a command within the device.
pub type Id = u32;

/// Slack in nanoseconds below which an end counts as reached: far under 1 ns, far over the rounding of sums of doubles.
const END_SLACK_NS: f64 = 1e-3;

#[derive(Debug, Clone, Copy)]
struct Queued {
    id: Id,
    solo: Nanos,
    demand: Demand,
    phase: Phase,
    /// Crosses the host link: outside of contention.
    transfer: bool,
}

/// The head of a stream.
#[derive(Debug, Clone, Copy)]
struct Running {
    command: Queued,
    stream: u32,
    /// Work left, in nanoseconds of running alone.
    left: f64,
    rate: f64,
    /// When it ends at the present rate.
    due: Nanos,
}

#[derive(Debug, Default)]
struct Stream {
    id: u32,
    /// Commands behind the head.
    waiting: VecDeque<Queued>,
}

/// The modelled device.
#[derive(Debug)]
pub struct Model {
    profile: Profile,
    corun: CoRun,
    split: Option<CoreSplit>,
    /// Time of the last start or end.
    now: Nanos,
    /// Heads in order of starting.
    running: Vec<Running>,
    /// Streams with a running head.
    streams: Vec<Stream>,
    /// Emptied streams, kept for their buffers.
    spare: Vec<Stream>,
    /// Ends not yet taken, in order of time.
    ended: VecDeque<(Nanos, Id)>,
    sharing: Vec<(Demand, Phase)>,
    rates: Vec<f64>,
}

impl Model {
    /// An idle device at time 0.
    pub fn new(profile: Profile, corun: CoRun) -> Self {
        Self {
            profile,
            corun,
            split: None,
            now: 0,
            running: Vec::new(),
            streams: Vec::new(),
            spare: Vec::new(),
            ended: VecDeque::new(),
            sharing: Vec::new(),
            rates: Vec::new(),
        }
    }

    /// The same with limited cores from the start.
    pub fn with_core_split(self, split: Option<CoreSplit>) -> Self {
        Self { split, ..self }
    }

    /// Limits the cores of what is submitted from now on.
    pub fn set_core_split(&mut self, split: Option<CoreSplit>) {
        self.split = split;
    }

    /// Queues command `id`: it starts at `at`, or when its predecessor on `stream` ends.
    pub fn submit(&mut self, at: Nanos, stream: u32, id: Id, phase: Phase, work: &Work) {
        let (demand, transfer) =
            (self.profile.demand(work), matches!(work.class, OpClass::Copy | OpClass::Link { .. }));
        self.queue(at, stream, Queued { id, solo: self.profile.solo(work), demand, phase, transfer });
    }

    /// Like [`Self::submit`], for a command whose demand and time alone are known already: a simulator weighs a step once, and
    /// hands several operators over as one. `transfer`: it crosses the host link.
    pub fn submit_weighed(
        &mut self,
        at: Nanos,
        stream: u32,
        id: Id,
        phase: Phase,
        (demand, solo, transfer): (Demand, Nanos, bool),
    ) {
        self.queue(at, stream, Queued { id, solo, demand, phase, transfer });
    }

    fn queue(&mut self, at: Nanos, stream: u32, mut command: Queued) {
        self.run_until(at);
        if let Some(split) = self.split.filter(|_| !command.transfer) {
            let limited = split.limit(&command.demand, command.phase);
            command.solo =
                (command.solo as f64 * limited.solo_s / command.demand.solo_s.max(f64::MIN_POSITIVE)).ceil() as Nanos;
            command.demand = limited;
        }
        if let Some(stream) = self.streams.iter_mut().find(|s| s.id == stream) {
            stream.waiting.push_back(command);
            return;
        }
        let mut queue = self.spare.pop().unwrap_or_default();
        queue.id = stream;
        self.streams.push(queue);
        self.integrate(at.max(self.now));
        self.start(stream, command);
        self.share();
    }

    /// Simulates every start and end up to and including `until`.
    pub fn run_until(&mut self, until: Nanos) {
        while let Some(due) = self.running.iter().map(|r| r.due).min().filter(|&due| due <= until) {
            self.integrate(due);
            let mut index = 0;
            while index < self.running.len() {
                if self.running[index].due > due {
                    index += 1;
                    continue;
                }
                let Running { command, stream, .. } = self.running.remove(index);
                self.ended.push_back((due, command.id));
                let position = self.streams.iter().position(|s| s.id == stream);
                let Some(position) = position else { continue };
                match self.streams[position].waiting.pop_front() {
                    // The successor joins at the end of the list and cannot be due before the loop reaches it,
                    // unless it takes no time at all, and then it ends here too.
                    Some(next) => self.start(stream, next),
                    None => {
                        let emptied = self.streams.swap_remove(position);
                        self.spare.push(emptied);
                    }
                }
            }
            self.share();
        }
    }

    /// The next end up to `until`, as simulated so far ([`Self::run_until`]).
    pub fn take_ended(&mut self, until: Nanos) -> Option<(Nanos, Id)> {
        match self.ended.front() {
            Some(&(at, _)) if at <= until => self.ended.pop_front(),
            _ => None,
        }
    }

    /// When the next command ends if nothing else is submitted.
    pub fn next_end(&self) -> Option<Nanos> {
        match self.ended.front() {
            Some(&(at, _)) => Some(at),
            None => self.running.iter().map(|r| r.due).min(),
        }
    }

    fn start(&mut self, stream: u32, command: Queued) {
        let left = command.solo as f64;
        let due = self.now.saturating_add(command.solo);
        self.running.push(Running { command, stream, left, rate: 1.0, due });
    }

    /// Moves time to `to`, which no running command ends before.
    fn integrate(&mut self, to: Nanos) {
        let elapsed = to.saturating_sub(self.now) as f64;
        if elapsed > 0.0 {
            for running in &mut self.running {
                running.left -= running.rate * elapsed;
            }
        }
        self.now = self.now.max(to);
    }

    /// Gives everything that runs its rate and its end from now on.
    fn share(&mut self) {
        self.sharing.clear();
        self.sharing
            .extend(self.running.iter().filter(|r| !r.command.transfer).map(|r| (r.command.demand, r.command.phase)));
        corun::rates_into(&self.sharing, &self.corun, &mut self.rates);
        let mut rates = self.rates.iter();
        for running in self.running.iter_mut().filter(|r| !r.command.transfer) {
            running.rate = rates.next().copied().unwrap_or(1.0).max(f64::MIN_POSITIVE);
            let ahead = (running.left / running.rate - END_SLACK_NS).ceil().max(0.0);
            running.due = self.now.saturating_add(ahead as Nanos);
        }
    }
}

//! What hosts do: single acts, and how each goes into the dispatcher and into the model of what it must mean.

use super::engine::Role;
use super::semantics::{Entry, OpTrace, Waiter};
use super::{Nanos, World};
use sched::{Demand, EventKey, Item, Label, Phase, StreamKey, Token};

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

    pub(super) fn demand(&self, scale: f64) -> Demand {
        let s = self.solo as f64 * 1e-9 * scale;
        let [cube, vector, hbm] = self.usage.map(|u| u * s);
        Demand { cube, vector, hbm, static_s: s - cube.max(vector).max(hbm), solo_s: s }
    }
}

impl World {
    pub(super) fn run_hosts(&mut self) -> bool {
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
}

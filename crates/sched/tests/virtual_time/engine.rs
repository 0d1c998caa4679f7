//! A serving engine in virtual time: prompts on one stream, decode steps of every running request on another, hints as a
//! gateway sends them.
//!
//! What a request waits for, what it gets and when is decided by the dispatcher under test and by nothing else, so the
//! engine says when each request had its slot and its last token.

use super::{Act, Nanos, Work, World};
use sched::dispatch::{HintInput, HintKind};
use sched::{Phase, SessionParams};

/// Stream of decode steps, and of prompts.
const DECODE: u32 = 1;
const PREFILL: u32 = 2;
/// Progress is told with the second token, and then this often.
const PROGRESS_EVERY: u32 = 16;

/// Which of an engine's two loops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Prefill,
    Decode,
}

/// One request: what it is, and what became of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Request {
    pub at: Nanos,
    /// Its prompt: so many operators of so long.
    pub operators: u32,
    pub operator: Nanos,
    /// Tokens that it gets, and that it may have at most.
    pub tokens: u32,
    pub limit: u32,
    /// When it had its first token, a decode slot, and its last token.
    pub first: Option<Nanos>,
    pub slot: Option<Nanos>,
    pub last: Option<Nanos>,
    /// Tokens that are out.
    pub out: u32,
    /// Longest time between two of them, from the second on: who joins while a step is held waits for that one and its own.
    pub stall: Nanos,
    /// When the latest came.
    pub latest: Nanos,
}

/// What every step of an engine takes.
#[derive(Clone, Copy, Debug)]
pub struct Steps {
    /// A step of nobody, and what everyone adds to it.
    pub base: Nanos,
    pub each: Nanos,
    pub operators: u32,
    /// What the host takes from a step's end to its tokens and the next step.
    pub turn: Nanos,
    /// Predictions over truth, of decode and prefill.
    pub errors: [f64; 2],
    pub slots: usize,
    /// Requests with a first token that may wait for a slot.
    pub ahead: usize,
}

pub struct Engine {
    pub session: u64,
    pub steps: Steps,
    pub requests: Vec<Request>,
    arrived: usize,
    prefilled: usize,
    parked: Vec<usize>,
    running: Vec<usize>,
    batch: Vec<usize>,
}

/// What a loop does next.
pub(super) enum Next {
    Do(Vec<Act>),
    Sleep,
    Ended,
}

impl Engine {
    fn next(&mut self, engine: usize, role: Role) -> Next {
        let hand_in = Act::HandIn { engine, role };
        let think = Act::Think(self.steps.turn);
        if self.requests.iter().all(|r| r.last.is_some()) {
            return Next::Ended;
        }
        match role {
            Role::Prefill => {
                let admitted = self.running.len() + self.parked.len();
                if self.prefilled == self.arrived || admitted >= self.steps.slots + self.steps.ahead {
                    return Next::Sleep;
                }
                let request = self.requests[self.prefilled];
                let work = Work { error: self.steps.errors[1], ..Work::cube(request.operator) };
                let op = Act::Op { stream: PREFILL, work, phase: Phase::Prefill };
                let ops = (0..request.operators).map(|_| op);
                Next::Do(ops.chain([Act::Sync { stream: PREFILL }, think, hand_in]).collect())
            }
            Role::Decode => {
                if self.running.is_empty() {
                    return Next::Sleep;
                }
                self.batch.clone_from(&self.running);
                let solo = self.steps.base + self.steps.each * self.batch.len() as Nanos;
                let each = Work::memory(solo / Nanos::from(self.steps.operators));
                let work = Work { error: self.steps.errors[0], ..each };
                let op = Act::Op { stream: DECODE, work, phase: Phase::Decode };
                let ops = (0..self.steps.operators).map(|_| op);
                Next::Do(ops.chain([Act::Sync { stream: DECODE }, think, hand_in]).collect())
            }
        }
    }

    /// Gives out the tokens of a step: what the gateway says of them.
    fn hand_in(&mut self, now: Nanos, role: Role) -> Vec<HintInput> {
        let mut hints = Vec::new();
        let done = match role {
            Role::Prefill => {
                self.prefilled += 1;
                vec![self.prefilled - 1]
            }
            Role::Decode => std::mem::take(&mut self.batch),
        };
        for id in done {
            let r = &mut self.requests[id];
            r.out += 1;
            if role == Role::Decode {
                r.stall = if r.out > 2 { r.stall.max(now - r.latest) } else { 0 };
                r.latest = now;
            }
            r.first.get_or_insert(now);
            let last = r.out == r.tokens;
            let mut say = |kind| hints.push(HintInput { request: id as u64, kind });
            match r.out {
                1 => say(HintKind::FirstToken),
                out if out == 2 || out % PROGRESS_EVERY == 1 => say(HintKind::Progress { tokens: out }),
                _ => {}
            }
            if last {
                r.last = Some(now);
                say(HintKind::Finished);
                self.running.retain(|&running| running != id);
            } else if role == Role::Prefill {
                self.parked.push(id);
            }
        }
        while self.running.len() < self.steps.slots && !self.parked.is_empty() {
            let id = self.parked.remove(0);
            self.requests[id].slot = Some(now);
            self.running.push(id);
        }
        hints
    }
}

impl World {
    /// Opens a session with an engine that serves `requests`, which come in order of arrival.
    pub fn engine(&mut self, session: u64, steps: Steps, requests: Vec<Request>) {
        self.session(session, PREFILL, SessionParams::default());
        let engine = self.engines.len();
        for role in [Role::Prefill, Role::Decode] {
            self.host(session, 0, [Act::Loop { engine, role }]);
        }
        for request in &requests {
            self.host(session, request.at, [Act::Arrive { engine }]);
        }
        let [parked, running, batch] = [const { Vec::new() }; 3];
        self.engines.push(Engine { session, steps, requests, arrived: 0, prefilled: 0, parked, running, batch });
    }

    /// The loop at the head of a host's script goes on, or sleeps. Answers whether it goes on.
    pub(super) fn go_on(&mut self, host: usize, engine: usize, role: Role) -> bool {
        match self.engines[engine].next(engine, role) {
            Next::Do(acts) => acts.into_iter().rev().for_each(|act| self.hosts[host].script.push_front(act)),
            Next::Ended => self.hosts[host].script.clear(),
            Next::Sleep => {
                self.hosts[host].wakes = Nanos::MAX;
                return false;
            }
        }
        true
    }

    pub(super) fn arrive(&mut self, engine: usize) {
        let (id, session) = (self.engines[engine].arrived, self.engines[engine].session);
        let limit = self.engines[engine].requests[id].limit;
        let prompt_tokens = self.engines[engine].requests[id].operators;
        self.engines[engine].arrived += 1;
        let kind = HintKind::Admitted { prompt_tokens, max_tokens: limit, ttft: 0, tpot: 0, priority: 0 };
        self.dispatcher.hint(self.now, session, &HintInput { request: id as u64, kind });
        self.wake(session);
    }

    pub(super) fn hand_in(&mut self, engine: usize, role: Role) {
        let session = self.engines[engine].session;
        for hint in self.engines[engine].hand_in(self.now, role) {
            self.dispatcher.hint(self.now, session, &hint);
        }
        self.wake(session);
    }

    fn wake(&mut self, session: u64) {
        for host in self.hosts.iter_mut().filter(|h| h.session == session && h.wakes == Nanos::MAX) {
            host.wakes = self.now;
        }
    }
}

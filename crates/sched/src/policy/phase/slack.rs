//! How long decode may wait: by when the open step must end.
//!
//! **With hints** a request's target is its mean ([`crate::policy::budget`]): whoever would be late soonest says when the step
//! must end. Later steps are planned at the pace that decode keeps beside prefill, so that prefill never stops altogether.
//! Whoever is late whatever happens gets a bearable pace instead ([`LOST_PACE`]).
//!
//! **Saturated**: prompts pile up for several TTFT targets, so that first tokens are late whatever is done. Then those whose
//! first token was late are not protected either, nor is anybody where few were in time, and prompts go first until decode steps
//! are full: a step of a full batch costs little more than one of a small one, and draining the pile is what helps everyone. A
//! full batch runs side by side with prefill wherever that gains anything; so does a long answer that would otherwise be decoded
//! alone in the end, unless one as long still waits: its steps then serve both.
//!
//! **Without hints** a token is due every τ, with some credit for work done early ([`crate::policy::clock`]).
//!
//! In every case decode stands still for `credit` τ at most.

use super::{PREFILL_FLOOR, PhasePolicy};
use crate::Nanos;
use crate::policy::StreamIndex;
use crate::policy::budget::Pace;
use crate::policy::growth::Growth;
use crate::policy::lane::Lane;
use crate::policy::leases::Leases;
use serde::{Deserialize, Serialize};

/// Backlog of prompts, in TTFT targets, from which first tokens are late whatever is done, and throughput is what is left.
const SATURATED: u64 = 4;
/// Part of the requests that fill a decode step from which one counts as full: they come and go.
const FULL_PART: f64 = 0.75;
/// Pace of requests that have missed a target whatever happens, in τ a token: bearable, and cheap. Half of that while prompts
/// pile up.
const LOST_PACE: u64 = 4;
const SATURATED_PACE: u64 = 8;

/// What is known of a session.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Standing {
    pub(super) leases: Leases,
    /// Prefill time served over weight, nanoseconds.
    pub(super) served: f64,
    /// Prefill time submitted, nanoseconds.
    pub(super) prefill_ns: f64,
    /// Its engine has no decode slot for someone who has a first token.
    pub(super) parked: bool,
    /// What the longest request that decodes still takes, and its tokens.
    pub(super) longest: Nanos,
    pub(super) longest_tokens: u32,
    /// How many decode, and how many did when its engine last took no prompt although some waited: that fills a step.
    pub(super) decoding: usize,
    pub(super) fills: Option<usize>,
    /// How its decode steps grow, and how many requests the open one has.
    pub(super) growth: Growth,
    pub(super) in_step: usize,
    /// It queued a prefill operator since the latest decode step began.
    pub(super) prefills: bool,
}

impl Standing {
    /// Decode beside prefill loses nothing: steps are about as full as they get, or someone will decode alone in the end.
    pub(super) fn decode_pays(&self) -> bool {
        let full = self.fills.is_some_and(|fills| self.decoding as f64 >= FULL_PART * fills as f64);
        full || (self.longest > self.backlog() && self.longest_tokens > self.leases.longest_waiting())
    }

    /// Prefill time that its waiting prompts will take, by what prompts took so far.
    pub(super) fn backlog(&self) -> Nanos {
        let done = self.leases.prefilled_tokens();
        if done == 0 { 0 } else { (self.leases.waiting_tokens() as f64 * self.prefill_ns / done as f64) as Nanos }
    }
}

impl PhasePolicy {
    /// More prompts wait than could have their first token in time, and each that is prefilled makes decode steps fuller.
    pub(super) fn saturated(&self, standing: &Standing) -> bool {
        !standing.parked && standing.backlog() > SATURATED.saturating_mul(self.targets.ttft)
    }

    /// A decode step of a stream may have begun.
    pub(super) fn decode_began(&mut self, now: Nanos, stream: StreamIndex) {
        let Some(Some(lane)) = self.lanes.get_mut(stream) else { return };
        if lane.decode.open().is_none() {
            return;
        }
        let session = lane.info.session;
        let tau = self.tpot_of(session);
        if let Some(Some(lane)) = self.lanes.get_mut(stream) {
            lane.token.begin(now, tau);
        }
        if let Some(standing) = self.sessions.get_mut(&session) {
            standing.leases.step_began(now);
            standing.prefills = self.prefill_flying > 0;
            standing.in_step = standing.leases.in_step();
        }
        self.ask(now, stream);
    }

    /// Finds by when the open decode step of a stream must end.
    pub(super) fn ask(&mut self, now: Nanos, stream: StreamIndex) {
        let Some(lane) = self.lane(stream) else { return };
        let Some(opened) = lane.decode.open() else { return };
        let tau = self.tpot_of(lane.info.session);
        let stall = (tau as f64 * self.config.credit) as Nanos;
        // Beside what is left to prefill, or side by side with it.
        let slowed = self.decode_rate_beside.unwrap_or(1.0).min(1.0 - PREFILL_FLOOR);
        let (session, turn) = (lane.info.session, lane.decode.turn());
        let standing = self.sessions.get(&session);
        let saturated = standing.is_some_and(|s| self.saturated(s));
        // Throughput counts then, and where other engines are there too, the first tokens of all: nobody's part is put by for first
        // steps and for requests that join, and who cannot make it at the planned pace is given up.
        let sole = self.lanes.iter().flatten().all(|l| l.info.session == session);
        let strict = sole && !saturated;
        // Every stream that decodes takes its step in turn.
        let step = |l: &Lane| match strict || !l.decode.is_new() {
            true => l.decode.alone().saturating_add(l.decode.turn()),
            false => 0,
        };
        let others = self.active_lanes().filter(|(s, l)| *s != stream && l.decoding(now, self.gap));
        let others = others.map(|(_, l)| step(l)).sum::<Nanos>();
        let alone = step(lane).saturating_add(others);
        let open = |s: &Standing| (s.in_step, lane.decode.alone());
        let more = standing.filter(|_| strict).map_or(0, |s| s.growth.more(s.leases.in_step(), open(s)));
        let cycle = (alone.saturating_add(more) as f64 / slowed) as Nanos;
        let fastest = if strict { alone } else { cycle };
        let pace = Pace { now, opened, left: lane.decode.remaining(), fastest, cycle, turn };
        let by_clock = lane.token.due().unwrap_or(Nanos::MAX);
        let mut due = Nanos::MAX;
        if let Some(standing) = self.sessions.get(&session) {
            let asks = standing.leases.step_asks(&pace, self.tpot, saturated);
            if asks.unlimited || (asks.end_by.is_none() && !asks.lost) {
                due = by_clock;
            }
            due = due.min(asks.end_by.unwrap_or(Nanos::MAX));
            if asks.lost {
                let pace = if saturated { SATURATED_PACE } else { LOST_PACE };
                due = due.min(opened.saturating_add(pace * tau));
            }
            if let Some(standing) = self.sessions.get_mut(&session) {
                (standing.parked, standing.decoding) = (asks.parked, asks.decoding);
                standing.longest_tokens = asks.longest;
                standing.longest = cycle.saturating_mul(Nanos::from(asks.longest));
            }
        } else {
            due = by_clock;
        }
        if let Some(Some(lane)) = self.lanes.get_mut(stream) {
            lane.step_due = due.min(opened.saturating_add(stall));
        }
    }
}

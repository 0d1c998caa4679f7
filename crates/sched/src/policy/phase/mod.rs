//! `phase`: prefill and decode share the device by slack.
//!
//! [`slack`] says by when a decode step must end; what is left until then, less the work that the step still needs, is its
//! slack `S_D`. While both phases want the device ([`turns`]):
//!
//! 1. if the prefill that is queued ends within `S_D`, decode is held back and prefill has the device alone
//!    ([`HoldReason::DecodeHasSlack`]): its first token is out soonest, and no token of decode is late;
//! 2. else, if running side by side is predicted to gain throughput (`r_D + r_P ≥ 1 + γ`) and decode stays in its slack at
//!    its slowed rate, nobody is held back: with a backlog of prompts, capacity is what shortens their wait;
//! 3. else, while `S_D` exceeds the margin, decode is held back and prefill runs ([`HoldReason::DecodeHasSlack`]);
//! 4. else decode runs and prefill is held back until the step is complete ([`HoldReason::DecodeDue`]), bridging the short
//!    gaps in which the host launches the next operator;
//! 5. but a prefill that is urgent (older than a part of its TTFT target, or about to miss it) gets a floor:
//!    [`PREFILL_FLOOR`] of the time, as much as it lacks after each decode turn ([`HoldReason::PrefillOverdue`]). From the
//!    first such turn until one of the rules above applies again the device is overloaded, which is counted and timed.
//!
//! The margin is `θ·τ` plus the prefill operators that stand between now and decode: those in flight and the next.
//! Prefills go one stream at a time ([`order`]). Operators of unknown or mixed phase are never held back, and no operator is held back for longer than the age bound. With one phase alone on the device nothing is held back.
//!
//! Times are what the cost model says, corrected by what operators of that phase and size took alone; how the phases slow
//! each other down is measured too and replaces the configured belief ([`super::learn`]; `learn=false` keeps both as
//! configured).
//!
//! Predictions only move the moment of a changeover. If they are wrong, steps end earlier or later than thought, the
//! token clock notices, and the next decision corrects it.

mod order;
mod slack;
mod turns;

use super::clock::StepEnd;
use super::lane::{Lane, remember};
use super::learn::Learner;
use super::leases::Targets;
use super::{Board, Candidate, Choice, Hold, Policy, PolicyConfig, StreamIndex, StreamInfo};
use crate::dispatch::{HintInput, HintKind, HoldReason, Op, Stats};
use crate::{Nanos, Phase, nanos};
use foldhash::{HashMap, HashMapExt};
use serde::{Deserialize, Serialize};
use slack::Standing;
use turns::{Plan, Turn};

/// Share of the time that an urgent prefill gets even while decode is short of slack. A judgement: low enough that decode
/// steps of up to two thirds of τ stay within τ, high enough that a backlog of prompts drains.
const PREFILL_FLOOR: f64 = 0.25;

#[derive(Serialize, Deserialize)]
pub(super) struct PhasePolicy {
    config: PolicyConfig,
    requests_max: usize,
    tpot: Nanos,
    targets: Targets,
    age_max: Nanos,
    gap: Nanos,
    fair_quantum: f64,
    lanes: Vec<Option<Lane>>,
    /// Streams with an open step.
    active: Vec<StreamIndex>,
    #[serde(serialize_with = "crate::dispatch::sorted")]
    sessions: HashMap<u64, Standing>,
    prefill_flying: u32,
    decode_flying: u32,
    turn: Turn,
    side_by_side: bool,
    /// Decode's rate beside prefill, if that pays.
    decode_rate_beside: Option<f64>,
    plan: Plan,
    last_decode_turn: Nanos,
    /// Prefill time submitted since the last decode turn ended.
    prefill_since: Nanos,
    /// `served` of the session whose prefill went last: newcomers start near it.
    served_mark: f64,
    rates: Vec<f64>,
    learner: Learner,
    /// Decode turns since prefill and decode last ran side by side on purpose.
    turns_apart: u32,
    /// Since when both are overloaded.
    overloaded_since: Option<Nanos>,
}

impl PhasePolicy {
    pub fn new(config: &PolicyConfig, requests_max: usize) -> Self {
        let ms = |ms: f64| nanos(ms * 1e-3);
        Self {
            config: *config,
            requests_max,
            tpot: config.tpot(),
            targets: Targets { ttft: ms(config.ttft_ms), urgent: config.urgent, lease: ms(config.lease_ms) },
            age_max: ms(config.age_max_ms),
            gap: nanos(config.gap_us * 1e-6),
            fair_quantum: config.fair_quantum_ms * 1e6,
            lanes: Vec::new(),
            active: Vec::new(),
            sessions: HashMap::new(),
            prefill_flying: 0,
            decode_flying: 0,
            turn: Turn::Both,
            side_by_side: false,
            decode_rate_beside: None,
            plan: Plan::default(),
            last_decode_turn: 0,
            prefill_since: 0,
            served_mark: 0.0,
            rates: Vec::new(),
            learner: Learner::new(),
            turns_apart: 0,
            overloaded_since: None,
        }
    }

    fn lane(&self, stream: StreamIndex) -> Option<&Lane> {
        self.lanes.get(stream)?.as_ref()
    }

    fn active_lanes(&self) -> impl Iterator<Item = (StreamIndex, &Lane)> {
        self.active.iter().filter_map(|&s| Some((s, self.lane(s)?)))
    }

    fn tpot_of(&self, session: u64) -> Nanos {
        self.sessions.get(&session).and_then(|s| s.leases.tpot()).unwrap_or(self.tpot)
    }

    /// Expected time alone of an operator.
    fn expected(&self, op: &Op) -> Nanos {
        if self.config.learn { self.learner.expected(op.phase, op.solo) } else { op.solo }
    }

    fn expire_leases(&mut self, now: Nanos, stats: &mut Stats) {
        for i in 0..self.active.len() {
            if let Some(Some(lane)) = self.lanes.get(self.active[i])
                && let Some(standing) = self.sessions.get_mut(&lane.info.session)
            {
                standing.leases.expire(now, &self.targets, stats);
            }
        }
    }

    fn activate(&mut self, stream: StreamIndex) {
        if !self.active.contains(&stream) {
            self.active.push(stream);
        }
    }

    fn deactivate_if_idle(&mut self, stream: StreamIndex) {
        let idle = self.lane(stream).is_none_or(|l| l.prefill.open().is_none() && l.decode.open().is_none());
        if idle {
            self.active.retain(|&s| s != stream);
        }
    }

    fn token_out(&mut self, step: StepEnd, stream: StreamIndex, stats: Option<&mut Stats>) {
        let at = step.ended;
        let Some(Some(lane)) = self.lanes.get(stream) else { return };
        let tau = self.tpot_of(lane.info.session);
        let credit = (tau as f64 * self.config.credit) as Nanos;
        if let Some(Some(lane)) = self.lanes.get_mut(stream) {
            let late = at > lane.step_due;
            lane.token.token(at, tau, credit);
            lane.due = false;
            if let Some(standing) = self.sessions.get_mut(&lane.info.session) {
                standing.leases.step_ended();
                standing.growth.step(standing.in_step, step.work);
                if !standing.prefills && standing.leases.waiting_tokens() > 0 {
                    standing.fills = Some(standing.decoding);
                }
            }
            if let Some(stats) = stats {
                stats.decode_steps += 1;
                stats.decode_steps_late += u64::from(late);
            }
        }
        if let Turn::Decode { began } = self.turn
            && !self.active_lanes().any(|(_, l)| l.due)
        {
            self.end_decode_turn(at, began);
        }
    }
}

impl Policy for PhasePolicy {
    fn choose(&mut self, now: Nanos, board: &Board<'_>, stats: &mut Stats) -> Option<Choice> {
        if board.ready.is_empty() {
            // A decode turn may have to end by its gap even so; it does when something is ready again.
            return None;
        }
        self.plan(now, board, stats);
        let free =
            board.ready().filter(|c| self.held(c).is_none()).min_by_key(|c| (c.op.phase == Phase::Prefill, c.op.seq));
        if let Some(c) = free {
            return Some(Choice { stream: c.stream, expired: false });
        }
        board.expired(now, self.age_max)
    }

    fn hold(&self, _now: Nanos, candidate: &Candidate<'_>) -> Hold {
        let hold = self.held(candidate).unwrap_or(Hold { reason: HoldReason::Order, until: None });
        Hold::aged(hold.reason, hold.until, candidate, self.age_max)
    }

    fn window(&self, phase: Phase, mean_solo: f64, configured: u32) -> u32 {
        // What prefill has in flight stands between a step that is due and the device.
        let decoding = self.active_lanes().any(|(_, l)| l.decode.open().is_some());
        if phase != Phase::Prefill || !decoding || configured <= 1 {
            return configured;
        }
        let reserve = self.config.theta * self.tpot as f64;
        ((reserve / mean_solo.max(1.0)) as u32).clamp(1, configured)
    }

    fn measures(&self) -> bool {
        true
    }

    fn opened(&mut self, stream: StreamIndex, info: &StreamInfo) {
        if self.lanes.len() <= stream {
            self.lanes.resize_with(stream + 1, || None);
        }
        self.sessions.entry(info.session).or_default();
        self.lanes[stream] = Some(Lane::new(*info));
    }

    fn closed(&mut self, stream: StreamIndex) {
        if let Some(lane) = self.lanes.get_mut(stream) {
            *lane = None;
        }
        self.active.retain(|&s| s != stream);
    }

    fn session_closed(&mut self, session: u64) {
        self.sessions.remove(&session);
        // Operators in flight are all that is left: their steps will never end.
        for lane in self.lanes.iter_mut().flatten().filter(|l| l.info.session == session) {
            lane.abandon();
        }
        let lanes = &self.lanes;
        self.active.retain(|&s| lanes.get(s).and_then(Option::as_ref).is_some_and(|l| l.info.session != session));
    }

    fn pushed(&mut self, now: Nanos, stream: StreamIndex, op: &Op) {
        let expected = self.expected(op);
        let Some(Some(lane)) = self.lanes.get_mut(stream) else { return };
        lane.push(expected);
        match op.phase {
            Phase::Prefill => {
                lane.prefill.pushed(now, expected);
                if let Some(standing) = self.sessions.get_mut(&lane.info.session) {
                    standing.prefills = true;
                }
                // A pause between two prompts keeps what the session was behind, a long absence does not.
                let mark = self.served_mark - 2.0 * self.fair_quantum;
                if lane.prefill.open() == Some(now)
                    && let Some(standing) = self.sessions.get_mut(&lane.info.session)
                {
                    standing.served = standing.served.max(mark);
                }
                self.activate(stream);
            }
            Phase::Decode => {
                let open = lane.decode.open();
                let ended = lane.decode.pushed(now, expected);
                let began = lane.decode.open() != open;
                let first = lane.decode.is_new();
                if let Some(step) = ended {
                    self.token_out(step, stream, None);
                }
                self.activate(stream);
                if began {
                    self.decode_began(now, stream);
                } else if first {
                    // The longer it gets, the more its requests' later steps take.
                    self.ask(now, stream);
                }
            }
            Phase::Unknown | Phase::Mixed => {}
        }
    }

    fn dropped(&mut self, _now: Nanos, stream: StreamIndex, op: &Op) {
        let Some(Some(lane)) = self.lanes.get_mut(stream) else { return };
        let expected = lane.drop_next();
        match op.phase {
            Phase::Prefill => lane.prefill.dropped(expected),
            Phase::Decode => lane.decode.dropped(expected),
            Phase::Unknown | Phase::Mixed => {}
        }
    }

    fn submitted(&mut self, now: Nanos, stream: StreamIndex, op: &Op) {
        self.learner.submitted(now, stream, op);
        let Some(Some(lane)) = self.lanes.get_mut(stream) else { return };
        let expected = lane.submit();
        match op.phase {
            Phase::Prefill => {
                lane.prefill_flying += 1;
                lane.prefill_flying_time = lane.prefill_flying_time.saturating_add(expected);
                self.prefill_flying += 1;
                self.prefill_since = self.prefill_since.saturating_add(expected);
                if let Some(standing) = self.sessions.get_mut(&lane.info.session) {
                    standing.prefill_ns += expected as f64;
                    standing.served += expected as f64 / f64::from(lane.info.weight.max(1));
                    self.served_mark = standing.served;
                }
                self.disturb_decode();
            }
            Phase::Decode => {
                lane.decode_flying += 1;
                self.decode_flying += 1;
                if self.prefill_flying > 0 {
                    lane.decode.disturb();
                }
            }
            Phase::Unknown | Phase::Mixed => {}
        }
    }

    fn completed(&mut self, now: Nanos, stream: StreamIndex, op: &Op, stats: &mut Stats) {
        self.learner.completed(now, stream, stats);
        let permille = |rate: f64| (rate * 1e3) as u32;
        stats.corun_rates_permille = self.learner.rates().map_or([0; 2], |(p, d)| [permille(p), permille(d)]);
        let Some(Some(lane)) = self.lanes.get_mut(stream) else { return };
        let expected = lane.complete();
        match op.phase {
            Phase::Prefill => {
                lane.prefill_flying = lane.prefill_flying.saturating_sub(1);
                lane.prefill_flying_time = lane.prefill_flying_time.saturating_sub(expected);
                self.prefill_flying = self.prefill_flying.saturating_sub(1);
                lane.prefill.completed(now, expected);
                remember(&mut lane.prefill_usage, &op.demand);
            }
            Phase::Decode => {
                lane.decode_flying = lane.decode_flying.saturating_sub(1);
                self.decode_flying = self.decode_flying.saturating_sub(1);
                lane.quiet_since = now;
                lane.decode.completed(now, expected);
                remember(&mut lane.decode_usage, &op.demand);
            }
            Phase::Unknown | Phase::Mixed => {}
        }
    }

    fn boundary(&mut self, now: Nanos, stream: StreamIndex, stats: &mut Stats) {
        let Some(Some(lane)) = self.lanes.get_mut(stream) else { return };
        lane.prefill.boundary(now);
        if let Some(step) = lane.decode.boundary(now) {
            self.token_out(step, stream, Some(stats));
            // A host that is a step ahead has begun the next one already.
            self.decode_began(now, stream);
        }
        self.deactivate_if_idle(stream);
    }

    fn hint(&mut self, now: Nanos, session: u64, hint: &HintInput, stats: &mut Stats) {
        let standing = self.sessions.entry(session).or_default();
        standing.leases.hint(now, hint, &self.targets, self.requests_max, stats);
        if hint.kind == HintKind::FirstToken {
            // It may want its second token before the step under way would have to end.
            for i in 0..self.active.len() {
                let stream = self.active[i];
                if self.lane(stream).is_some_and(|l| l.info.session == session) {
                    self.ask(now, stream);
                }
            }
        }
    }
}

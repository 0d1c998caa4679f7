//! `phase`: prefill and decode share the device by slack.
//!
//! A decoding stream owes a token every τ ([`super::clock`]); what is left until the next one is due, less the work that
//! the step still needs, is its slack `S_D`. While both phases want the device:
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
//! Prefills go one stream at a time, the session's priority first, then among sessions of equal standing (served time over
//! weight, within a quantum) the hinted priority, then the earliest deadline; two at once would only finish both later. Operators of unknown or mixed phase are never held back,
//! and no operator is held back for longer than the age bound. With one phase alone on the device nothing is held back.
//!
//! Times are what the cost model says, corrected by what operators of that phase and size took alone; how the phases slow
//! each other down is measured too and replaces the configured belief ([`super::learn`]; `learn=false` keeps both as
//! configured).
//!
//! Predictions only move the moment of a changeover. If they are wrong, steps end earlier or later than thought, the
//! token clock notices, and the next decision corrects it.

use super::lane::{Lane, add, remember};
use super::learn::Learner;
use super::leases::{FirstToken, Leases, Targets};
use super::{Board, Candidate, Choice, Hold, Policy, PolicyConfig, StreamIndex, StreamInfo};
use crate::corun::rates_into;
use crate::dispatch::{HintInput, HoldReason, Op, Stats};
use crate::{Demand, Nanos, Phase, nanos};
use std::cmp::Reverse;
use std::collections::HashMap;

/// Share of the time that an urgent prefill gets even while decode is short of slack. A judgement: low enough that decode
/// steps of up to two thirds of τ stay within τ, high enough that a backlog of prompts drains.
const PREFILL_FLOOR: f64 = 0.25;
/// Decode turns without co-running after which the learnt rates are forgotten: the mix has changed, and the configured
/// belief gets another try.
const FORGET_AFTER_TURNS: u32 = 64;

#[derive(Debug, Default)]
struct Standing {
    leases: Leases,
    /// Prefill time served over weight, nanoseconds.
    served: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// Nobody is held back for the other phase.
    Both,
    /// Decode waits.
    Prefill,
    /// Prefill waits until the steps that are due have ended.
    Decode { began: Nanos },
    /// Decode waits although it is due.
    Overdue { until: Nanos },
}

/// What the last [`PhasePolicy::plan`] decided.
#[derive(Clone, Copy, Debug, Default)]
struct Plan {
    hold_decode: Option<Hold>,
    hold_prefill: Option<Hold>,
    /// The prefill stream that goes first.
    first: Option<StreamIndex>,
}

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
    sessions: HashMap<u64, Standing>,
    prefill_flying: u32,
    decode_flying: u32,
    turn: Turn,
    side_by_side: bool,
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

    /// What a lane's prefills are wanted by: the hints' word, or the configuration's for a prompt nobody mentioned.
    fn wanted(&self, lane: &Lane) -> FirstToken {
        let hinted = self.sessions.get(&lane.info.session).and_then(|s| s.leases.waiting());
        hinted.unwrap_or_else(|| self.targets.first_token(lane.prefill.open().unwrap_or(Nanos::MAX), 0, 0))
    }

    /// Some prefill has used up its patience, or is about to miss its deadline even if it has the device from now on.
    fn prefill_urgent(&self, now: Nanos, reserve: Nanos) -> bool {
        self.active_lanes().filter(|(_, l)| l.prefill.pending() > 0).any(|(_, lane)| {
            let wanted = self.wanted(lane);
            let latest = wanted.deadline.saturating_sub(lane.prefill.remaining()).saturating_sub(reserve);
            now >= wanted.urgent_at.min(latest)
        })
    }

    /// Expected time alone of an operator.
    fn expected(&self, op: &Op) -> Nanos {
        if self.config.learn { self.learner.expected(op.phase, op.solo) } else { op.solo }
    }

    /// How fast decode and prefill run side by side: as measured, or as configured while too little was.
    fn side_by_side_rates(&mut self, decode: Demand, prefill: Demand) -> Option<(f64, f64)> {
        if self.config.learn
            && let Some((prefill, decode)) = self.learner.rates()
        {
            return Some((decode, prefill));
        }
        if decode.solo_s <= 0.0 || prefill.solo_s <= 0.0 {
            return None;
        }
        rates_into(&[(decode, Phase::Decode), (prefill, Phase::Prefill)], &self.config.corun, &mut self.rates);
        Some((self.rates[0], self.rates[1]))
    }

    /// Notes whether both phases want more than there is.
    fn overload(&mut self, now: Nanos, overloaded: bool, stats: &mut Stats) {
        match (self.overloaded_since, overloaded) {
            (None, true) => {
                self.overloaded_since = Some(now);
                stats.overloads += 1;
            }
            (Some(since), false) => {
                self.overloaded_since = None;
                stats.overloaded_ns = stats.overloaded_ns.saturating_add(now.saturating_sub(since));
            }
            _ => {}
        }
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

    /// The prefill that goes first among those ready or in flight.
    fn first_prefill(&self, ready: impl Iterator<Item = StreamIndex>) -> Option<StreamIndex> {
        let flying = self.active_lanes().filter(|(_, l)| l.prefill_flying > 0).map(|(s, _)| s);
        let mut best: Option<(StreamIndex, &Lane, f64)> = None;
        for stream in ready.chain(flying) {
            let Some(lane) = self.lane(stream) else { continue };
            let served = self.sessions.get(&lane.info.session).map_or(0.0, |s| s.served);
            let better = best.is_none_or(|(b, other, other_served)| {
                let rank = |s: StreamIndex, l: &Lane| {
                    let wanted = self.wanted(l);
                    (Reverse(l.info.priority), Reverse(wanted.priority), wanted.deadline, s)
                };
                if lane.info.priority == other.info.priority && (served - other_served).abs() > self.fair_quantum {
                    served < other_served
                } else {
                    rank(stream, lane) < rank(b, other)
                }
            });
            if better {
                best = Some((stream, lane, served));
            }
        }
        best.map(|(s, ..)| s)
    }

    /// Decides whose turn it is.
    fn plan(&mut self, now: Nanos, board: &Board<'_>, stats: &mut Stats) {
        let of = |phase: Phase| board.ready().filter(move |c| c.op.phase == phase);
        let next_prefill = of(Phase::Prefill).map(|c| self.expected(c.op)).max();
        let decode_here = self.decode_flying > 0 || of(Phase::Decode).next().is_some();
        let prefill_here = self.prefill_flying > 0 || next_prefill.is_some();
        self.plan = Plan::default();
        if next_prefill.is_some() {
            self.plan.first = self.first_prefill(of(Phase::Prefill).map(|c| c.stream));
        }
        if let Turn::Decode { began } = self.turn {
            if let Some(until) = self.decode_turn_until(now, board) {
                self.plan.hold_prefill = Some(Hold { reason: HoldReason::DecodeDue, until });
                return;
            }
            self.end_decode_turn(now, began);
        }
        if !(decode_here && prefill_here) {
            // Decode is away between two steps even where it is overloaded.
            if !prefill_here {
                self.overload(now, false, stats);
            }
            self.turn = Turn::Both;
            self.side_by_side = false;
            return;
        }
        if let Turn::Overdue { until } = self.turn {
            if now < until {
                self.plan.hold_decode = Some(Hold { reason: HoldReason::PrefillOverdue, until: Some(until) });
                return;
            }
            // It had its time, whatever it made of it.
            self.prefill_since = Nanos::MAX;
        }
        self.expire_leases(now, stats);
        self.share(now, next_prefill.unwrap_or(0), stats);
    }

    /// Both phases want the device and nobody's turn is under way.
    fn share(&mut self, now: Nanos, next_prefill: Nanos, stats: &mut Stats) {
        let (mut due, mut work, mut tau, mut ahead) = (Nanos::MAX, 0u64, self.tpot, next_prefill);
        let (mut decode, mut prefill) = (Demand::default(), Demand::default());
        let mut prefill_left: Nanos = 0;
        for (_, lane) in self.active_lanes() {
            prefill_left = prefill_left.saturating_add(lane.prefill.pending());
            ahead = ahead.saturating_add(lane.prefill_flying_time);
            if lane.prefill.pending() > 0 {
                add(&mut prefill, &lane.prefill_usage);
            }
            if lane.decoding(now, self.gap) {
                due = due.min(lane.token.due().unwrap_or(Nanos::MAX));
                work = work.saturating_add(lane.decode.remaining());
                tau = tau.min(self.tpot_of(lane.info.session));
                add(&mut decode, &lane.decode_usage);
            }
        }
        let reserve = (self.config.theta * tau as f64) as Nanos;
        let decode_start = due.saturating_sub(work).saturating_sub(reserve);
        let latest = decode_start.saturating_sub(ahead);
        let fits = now.saturating_add(prefill_left) <= decode_start;

        let together = self.side_by_side_rates(decode, prefill).filter(|(d, p)| d + p >= 1.0 + self.config.gamma);
        if !fits
            && let Some((decode_rate, _)) = together
            && now <= due.saturating_sub((work as f64 / decode_rate) as Nanos).saturating_sub(reserve)
        {
            stats.coruns += u64::from(!self.side_by_side);
            (self.side_by_side, self.turns_apart) = (true, 0);
            self.overload(now, false, stats);
            self.turn = Turn::Both;
            return;
        }
        self.side_by_side = false;
        if fits || now < latest {
            self.overload(now, false, stats);
            self.turn = Turn::Prefill;
            self.plan.hold_decode = Some(Hold { reason: HoldReason::DecodeHasSlack, until: Some(latest) });
            self.disturb_decode();
            return;
        }
        let floor = (self.last_decode_turn as f64 * PREFILL_FLOOR / (1.0 - PREFILL_FLOOR)) as Nanos;
        let lacking = floor.saturating_sub(self.prefill_since).min(tau);
        if lacking > 0 && self.prefill_urgent(now, reserve) {
            let until = now + lacking;
            self.overload(now, true, stats);
            stats.overloaded_turns += 1;
            self.turn = Turn::Overdue { until };
            self.plan.hold_decode = Some(Hold { reason: HoldReason::PrefillOverdue, until: Some(until) });
            self.disturb_decode();
            return;
        }
        self.turn = Turn::Decode { began: now };
        for i in 0..self.active.len() {
            if let Some(Some(lane)) = self.lanes.get_mut(self.active[i]) {
                lane.due = lane.decoding(now, self.gap);
            }
        }
        self.plan.hold_prefill = Some(Hold { reason: HoldReason::DecodeDue, until: None });
    }

    /// Whether the decode turn goes on: `None` if every step that was due has ended, else until when prefill waits, if
    /// that is known.
    fn decode_turn_until(&mut self, now: Nanos, board: &Board<'_>) -> Option<Option<Nanos>> {
        let mut until = None;
        for i in 0..self.active.len() {
            let stream = self.active[i];
            let Some(Some(lane)) = self.lanes.get_mut(stream) else { continue };
            if !lane.due {
                continue;
            }
            if lane.decode_flying > 0 || board.ready().any(|c| c.stream == stream && c.op.phase == Phase::Decode) {
                return Some(None);
            }
            // The host is launching the next operator, or the step waits for something else.
            let patience = lane.quiet_since.saturating_add(self.gap);
            if now < patience {
                until = until.max(Some(patience));
            } else {
                lane.due = false;
            }
        }
        until.map(Some)
    }

    fn end_decode_turn(&mut self, now: Nanos, began: Nanos) {
        self.turn = Turn::Both;
        self.last_decode_turn = now.saturating_sub(began);
        self.prefill_since = 0;
        self.turns_apart += 1;
        if self.turns_apart >= FORGET_AFTER_TURNS {
            self.turns_apart = 0;
            self.learner.forget_rates();
        }
    }

    fn disturb_decode(&mut self) {
        for i in 0..self.active.len() {
            if let Some(Some(lane)) = self.lanes.get_mut(self.active[i]) {
                lane.decode.disturb();
            }
        }
    }

    fn held(&self, candidate: &Candidate<'_>) -> Option<Hold> {
        match candidate.op.phase {
            Phase::Unknown | Phase::Mixed => None,
            Phase::Decode => self.plan.hold_decode,
            Phase::Prefill => self.plan.hold_prefill.or_else(|| {
                let waits = self.plan.first.is_some_and(|first| first != candidate.stream);
                waits.then_some(Hold { reason: HoldReason::PrefillOrder, until: None })
            }),
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

    fn token_out(&mut self, at: Nanos, stream: StreamIndex, stats: Option<&mut Stats>) {
        let Some(Some(lane)) = self.lanes.get(stream) else { return };
        let tau = self.tpot_of(lane.info.session);
        let credit = (tau as f64 * self.config.credit) as Nanos;
        if let Some(Some(lane)) = self.lanes.get_mut(stream) {
            let late = lane.token.token(at, tau, credit);
            lane.due = false;
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
                let session = lane.info.session;
                if let Some(step) = lane.decode.pushed(now, expected) {
                    self.token_out(step.ended, stream, None);
                }
                let tau = self.tpot_of(session);
                if let Some(Some(lane)) = self.lanes.get_mut(stream)
                    && lane.decode.open() == Some(now)
                {
                    lane.token.begin(now, tau);
                }
                self.activate(stream);
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
        if lane.decode.boundary(now).is_some() {
            self.token_out(now, stream, Some(stats));
        }
        self.deactivate_if_idle(stream);
    }

    fn hint(&mut self, now: Nanos, session: u64, hint: &HintInput, stats: &mut Stats) {
        let standing = self.sessions.entry(session).or_default();
        standing.leases.hint(now, hint, &self.targets, self.requests_max, stats);
    }
}

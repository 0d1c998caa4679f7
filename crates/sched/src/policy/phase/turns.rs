//! Whose turn it is while both phases want the device: the rules of [`super`], in order.

use super::{PREFILL_FLOOR, PhasePolicy};
use crate::corun::rates_into;
use crate::dispatch::{HoldReason, Stats};
use crate::policy::lane::add;
use crate::policy::{Board, Candidate, Hold, StreamIndex};
use crate::{Demand, Nanos, Phase};
use serde::{Deserialize, Serialize};

/// Decode turns without co-running after which the learnt rates are forgotten: the mix has changed, and the configured
/// belief gets another try.
const FORGET_AFTER_TURNS: u32 = 64;
/// Gain of running side by side that is enough where throughput is all that is left to win.
const THROUGHPUT_GAIN_MIN: f64 = 0.02;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Turn {
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
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct Plan {
    pub(super) hold_decode: Option<Hold>,
    pub(super) hold_prefill: Option<Hold>,
    /// The prefill stream that goes first.
    pub(super) first: Option<StreamIndex>,
}

impl PhasePolicy {
    /// Decides whose turn it is.
    pub(super) fn plan(&mut self, now: Nanos, board: &Board<'_>, stats: &mut Stats) {
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
    pub(super) fn share(&mut self, now: Nanos, next_prefill: Nanos, stats: &mut Stats) {
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
                due = due.min(lane.step_due);
                work = work.saturating_add(lane.decode.remaining());
                tau = tau.min(self.tpot_of(lane.info.session));
                add(&mut decode, &lane.decode_usage);
            }
        }
        let reserve = (self.config.theta * tau as f64) as Nanos;
        let decode_start = due.saturating_sub(work).saturating_sub(reserve);
        let latest = decode_start.saturating_sub(ahead);
        let fits = now.saturating_add(prefill_left) <= decode_start;

        let rates = self.side_by_side_rates(decode, prefill);
        let gains = |least: f64| rates.filter(|(d, p)| d + p >= 1.0 + least);
        self.decode_rate_beside = gains(self.config.gamma).map(|(d, _)| d);
        let throughput = self.active_lanes().any(|(_, l)| {
            let standing = self.sessions.get(&l.info.session);
            l.prefill.pending() > 0 && standing.is_some_and(|s| s.decode_pays() && self.saturated(s))
        });
        let least = if throughput { THROUGHPUT_GAIN_MIN.min(self.config.gamma) } else { self.config.gamma };
        if (!fits || throughput)
            && let Some((decode_rate, _)) = gains(least)
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

    /// How fast decode and prefill run side by side: as measured, or as configured while too little was.
    pub(super) fn side_by_side_rates(&mut self, decode: Demand, prefill: Demand) -> Option<(f64, f64)> {
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

    /// Whether the decode turn goes on: `None` if every step that was due has ended, else until when prefill waits, if
    /// that is known.
    pub(super) fn decode_turn_until(&mut self, now: Nanos, board: &Board<'_>) -> Option<Option<Nanos>> {
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

    pub(super) fn end_decode_turn(&mut self, now: Nanos, began: Nanos) {
        self.turn = Turn::Both;
        self.last_decode_turn = now.saturating_sub(began);
        self.prefill_since = 0;
        self.turns_apart += 1;
        if self.turns_apart >= FORGET_AFTER_TURNS {
            self.turns_apart = 0;
            self.learner.forget_rates();
        }
    }

    /// Notes whether both phases want more than there is.
    pub(super) fn overload(&mut self, now: Nanos, overloaded: bool, stats: &mut Stats) {
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

    pub(super) fn disturb_decode(&mut self) {
        for i in 0..self.active.len() {
            if let Some(Some(lane)) = self.lanes.get_mut(self.active[i]) {
                lane.decode.disturb();
            }
        }
    }

    pub(super) fn held(&self, candidate: &Candidate<'_>) -> Option<Hold> {
        match candidate.op.phase {
            Phase::Unknown | Phase::Mixed => None,
            Phase::Decode => self.plan.hold_decode,
            Phase::Prefill => self.plan.hold_prefill.or_else(|| {
                let waits = self.plan.first.is_some_and(|first| first != candidate.stream);
                waits.then_some(Hold { reason: HoldReason::PrefillOrder, until: None })
            }),
        }
    }
}

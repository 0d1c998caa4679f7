//! What a schedule could reach at best: the ideal time-sharing bound, and a clairvoyant schedule.
//!
//! **Ideal bound** ([`ideal`]). The device seconds of all prefills, one prompt at a time, plus those of all decode steps
//! with every prompt there from the start and the decode slots full as long as requests last. Both alone, hosts at no
//! cost. If running side by side is faster than taking turns (`r_P + r_D > 1` at the mean use of prefill and decode), they
//! overlap until one of them is through. No schedule that runs prefill and decode steps as separate operators completes
//! all requests sooner, give or take batching several prompts in a step and pairing operators better than their mean;
//! steps that mix both phases (chunked prefill) read the weights once for both and may.
//!
//! **Oracle** ([`oracle`]). A schedule that knows every arrival, length and step time, has no operator boundaries, and changes
//! over at no cost; its host needs a moment between two decode steps, as everyone's. It minimises mean TTFT under the TPOT target, greedily: prefill has the device
//! alone (shortest remaining prompt first) as long as every running request can still meet the target if decode goes first
//! from then on; then decode goes, beside prefill where that pays. "Meet" has two readings ([`Target`]):
//!
//! - [`Target::Mean`]: a request's tokens in its slot take τ each on average by its end. Decode may stop for long and catch up.
//!   This is the target as TPOT is defined, and the lower TTFT of the two.
//! - [`Target::EachToken`]: the n-th token in the slot is out by n·τ, so that nobody sees decode fall behind schedule.
//!
//! A request that has missed its target whatever happens no longer counts. Greedy is optimal for one backlog of prompts at
//! ω = 0; elsewhere it is a good clairvoyant schedule, not a proven optimum: a policy may beat it by a little.

use std::collections::BTreeSet;

use sched::calls::Batch;
use sched::{CoRun, Demand, Nanos, Phase, corun};

use crate::step::Weigher;
use crate::{Outcome, Request};

/// What "within the TPOT target" asks of the oracle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// On average by the request's end.
    Mean,
    /// With every token.
    EachToken,
}

/// What the oracle serves with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Oracle {
    /// Decode slots.
    pub slots: usize,
    /// TPOT target τ.
    pub tau: Nanos,
    /// How τ is read.
    pub target: Target,
    /// How operators share the device.
    pub corun: CoRun,
    /// The host's time between two decode steps, in which only prefill can run: what no dispatcher can take away.
    pub turn: Nanos,
}

/// Device seconds and the bound that follows from them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Ideal {
    /// All prefills alone, seconds.
    pub prefill_s: f64,
    /// All decode steps alone, seconds.
    pub decode_s: f64,
    /// The least time for both, seconds.
    pub total_s: f64,
}

/// The ideal time-sharing bound for `requests` with so many decode slots; arrivals do not matter.
pub fn ideal(requests: &[Request], slots: usize, corun: &CoRun, weigher: &mut Weigher) -> Ideal {
    let (mut prefill, mut decode) = (Demand::default(), Demand::default());
    for request in requests {
        let op = weigher.step(&Batch::prefill(u64::from(request.prompt)), 1).whole();
        add(&mut prefill, &op.demand);
    }
    let mut waiting = requests.iter().filter(|r| r.output > 1);
    let mut running: Vec<(u32, u32)> = Vec::new();
    loop {
        let free = slots - running.len();
        running.extend(waiting.by_ref().take(free).map(|r| (r.prompt + 1, r.output - 1)));
        if running.is_empty() {
            break;
        }
        add(&mut decode, &decode_demand(running.iter().map(|r| r.0), weigher));
        running.iter_mut().for_each(|r| *r = (r.0 + 1, r.1 - 1));
        running.retain(|r| r.1 > 0);
    }
    let (p, d) = (prefill.solo_s, decode.solo_s);
    let (rp, rd) = pair(&prefill, &decode, corun);
    let total_s = if rp + rd > 1.0 && p > 0.0 && d > 0.0 {
        let together = (p / rp).min(d / rd);
        together + (p - together * rp) + (d - together * rd)
    } else {
        p + d
    };
    Ideal { prefill_s: p, decode_s: d, total_s }
}

fn add(sum: &mut Demand, more: &Demand) {
    sum.cube += more.cube;
    sum.vector += more.vector;
    sum.hbm += more.hbm;
    sum.static_s += more.static_s;
    sum.solo_s += more.solo_s;
}

fn decode_demand(contexts: impl Iterator<Item = u32>, weigher: &mut Weigher) -> Demand {
    let contexts: Vec<u64> = contexts.map(u64::from).collect();
    let batch = Batch { queries: vec![1; contexts.len()], contexts, paged: true };
    let rows = batch.queries.len() as u64;
    weigher.step(&batch, rows).whole().demand
}

/// Rates of prefill and decode side by side.
fn pair(prefill: &Demand, decode: &Demand, corun: &CoRun) -> (f64, f64) {
    let rates = corun::rates(&[(*prefill, Phase::Prefill), (*decode, Phase::Decode)], corun);
    (rates[0], rates[1])
}

#[derive(Clone, Copy)]
struct Prompt {
    left_s: f64,
    demand: Demand,
}

#[derive(Clone, Copy)]
struct Decoding {
    request: usize,
    context: u32,
    /// Tokens it still has to decode.
    left: u32,
    entered_s: f64,
    decoded: u32,
}

/// A decode step under way.
struct Step {
    left_s: f64,
    solo_s: f64,
    demand: Demand,
}

/// Runs the oracle over `requests`, which come in order of arrival.
pub fn oracle(oracle: &Oracle, requests: &[Request], weigher: &mut Weigher) -> Vec<Outcome> {
    const TINY_S: f64 = 1e-9;
    let s = |ns: Nanos| ns as f64 * 1e-9;
    let tau_s = s(oracle.tau);
    let mut outcomes: Vec<Outcome> = requests
        .iter()
        .map(|r| Outcome {
            arrival: r.arrival,
            prompt: r.prompt,
            output: r.output,
            engine: r.engine,
            ..Outcome::default()
        })
        .collect();
    let mut now_s = 0.0;
    let mut arrived = 0;
    let mut prompts: Vec<Option<Prompt>> = vec![None; requests.len()];
    // Shortest remaining first: only the one in front has been worked on, so order by what is left stays put.
    let mut queue: BTreeSet<(Nanos, usize)> = BTreeSet::new();
    let mut parked: BTreeSet<usize> = BTreeSet::new();
    let mut running: Vec<Decoding> = Vec::new();
    let mut step: Option<Step> = None;
    // The host is through with the last step's tokens.
    let mut resumes_s = 0.0;
    loop {
        while let Some(request) = requests.get(arrived).filter(|r| s(r.arrival) <= now_s + TINY_S) {
            let op = weigher.step(&Batch::prefill(u64::from(request.prompt)), 1).whole();
            prompts[arrived] = Some(Prompt { left_s: op.demand.solo_s, demand: op.demand });
            queue.insert((op.solo, arrived));
            arrived += 1;
        }
        while running.len() < oracle.slots
            && step.is_none()
            && let Some(request) = parked.pop_first()
        {
            let Request { prompt, output, .. } = requests[request];
            // It waited for the slot, not for the step that was under way.
            let entered_s = s(outcomes[request].slot);
            running.push(Decoding { request, context: prompt + 1, left: output - 1, entered_s, decoded: 0 });
        }
        if step.is_none() && !running.is_empty() && now_s + TINY_S >= resumes_s {
            let demand = decode_demand(running.iter().map(|r| r.context), weigher);
            step = Some(Step { left_s: demand.solo_s, solo_s: demand.solo_s, demand });
        }
        let resume_s = if step.is_none() && !running.is_empty() { resumes_s } else { f64::INFINITY };
        let next_arrival_s = requests.get(arrived).map_or(f64::INFINITY, |r| s(r.arrival));
        let front = queue.first().copied();
        let prompt = front.and_then(|(_, i)| prompts[i]);
        // Rates of prefill and decode until something changes.
        let (rp, rd, until_s) = match (&prompt, &step) {
            (None, None) if next_arrival_s.min(resume_s).is_finite() => (0.0, 0.0, resume_s),
            (None, None) => break,
            (Some(_), None) => (1.0, 0.0, resume_s),
            (None, Some(_)) => (0.0, 1.0, f64::INFINITY),
            (Some(p), Some(d)) => {
                let (rp, rd) = pair(&p.demand, &d.demand, &oracle.corun);
                let (beside, at) = if rp + rd > 1.0 { (rp, rd) } else { (0.0, 1.0) };
                let slack_s =
                    running.iter().filter_map(|r| slack(oracle, r, d, at, tau_s, now_s)).fold(f64::INFINITY, f64::min);
                let hopeless = slack_s == f64::INFINITY;
                if slack_s > TINY_S && !hopeless { (1.0, 0.0, now_s + slack_s) } else { (beside, at, f64::INFINITY) }
            }
        };
        let mut end_s = until_s.min(next_arrival_s);
        if let Some(p) = &prompt {
            end_s = end_s.min(if rp > 0.0 { now_s + p.left_s / rp } else { f64::INFINITY });
        }
        if let Some(d) = &step {
            end_s = end_s.min(if rd > 0.0 { now_s + d.left_s / rd } else { f64::INFINITY });
        }
        let elapsed_s = (end_s - now_s).max(0.0);
        now_s = end_s;
        let now = (now_s * 1e9).round() as Nanos;
        if let Some((solo, request)) = front
            && let Some(p) = prompts[request].as_mut()
        {
            p.left_s -= rp * elapsed_s;
            let left_s = p.left_s;
            queue.remove(&(solo, request));
            if left_s <= TINY_S {
                prompts[request] = None;
                let outcome = &mut outcomes[request];
                (outcome.first, outcome.slot, outcome.last) = (now, now, now);
                if requests[request].output > 1 {
                    parked.insert(request);
                }
            } else {
                queue.insert(((left_s * 1e9) as Nanos, request));
            }
        }
        if let Some(d) = step.as_mut() {
            d.left_s -= rd * elapsed_s;
            if d.left_s <= TINY_S {
                step = None;
                resumes_s = now_s + s(oracle.turn);
                for r in &mut running {
                    (r.context, r.left, r.decoded) = (r.context + 1, r.left - 1, r.decoded + 1);
                    let outcome = &mut outcomes[r.request];
                    outcome.stall = outcome.stall.max(now - outcome.last);
                    outcome.stall_in_slot = outcome.stall_in_slot.max(now - outcome.last.max(outcome.slot));
                    outcome.last = now;
                }
                let before = running.len();
                running.retain(|r| r.left > 0);
                // Who is parked has had the slot since now.
                for &request in parked.iter().take(if before >= oracle.slots { before - running.len() } else { 0 }) {
                    outcomes[request].slot = outcomes[request].slot.max(now);
                }
            }
        }
    }
    outcomes
}

/// How long decode may stand still before a request misses its target; `None` if it has whatever happens. `rate` is
/// decode's speed when it goes first.
fn slack(oracle: &Oracle, r: &Decoding, step: &Step, rate: f64, tau_s: f64, now_s: f64) -> Option<f64> {
    let (due_s, work_s) = match oracle.target {
        Target::Mean => {
            let tokens = f64::from(r.decoded + r.left);
            let each_s = step.solo_s + oracle.turn as f64 * 1e-9;
            (r.entered_s + tokens * tau_s, step.left_s + f64::from(r.left - 1) * each_s)
        }
        Target::EachToken => (r.entered_s + f64::from(r.decoded + 1) * tau_s, step.left_s),
    };
    let slack_s = due_s - now_s - work_s / rate;
    // Alone and without a pause it would still be late.
    let missed = due_s - now_s - work_s < -tau_s;
    (!missed).then_some(slack_s.max(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sched::Profile;
    use sched::model::Model;

    fn all_at_once(count: u32, prompt: u32, output: u32) -> Vec<Request> {
        (0..count).map(|_| Request { arrival: 0, prompt, output, engine: 0 }).collect()
    }

    fn weigher() -> Weigher {
        Weigher::new(Model::QWEN2_5_7B, Profile::A910B3)
    }

    fn serial() -> CoRun {
        CoRun { omega: 0.0, ..CoRun::default() }
    }

    fn mean_ttft_s(outcomes: &[Outcome]) -> f64 {
        outcomes.iter().map(|o| (o.first - o.arrival) as f64 * 1e-9).sum::<f64>() / outcomes.len() as f64
    }

    #[test]
    fn the_bound_is_the_sum_without_overlap_and_less_with_it() {
        let requests = all_at_once(16, 1024, 64);
        let sum = ideal(&requests, 4, &serial(), &mut weigher());
        assert!((sum.total_s - sum.prefill_s - sum.decode_s).abs() < 1e-9);
        // 16 prompts of 66 ms and their small operators; 4 batches of 63 steps of 15 ms.
        assert!((1.05..1.2).contains(&sum.prefill_s) && (3.7..4.2).contains(&sum.decode_s), "{sum:?}");
        let fluid = ideal(&requests, 4, &CoRun { omega: 1.0, ..CoRun::default() }, &mut weigher());
        assert!(fluid.total_s < sum.total_s && fluid.total_s > sum.decode_s);
    }

    #[test]
    fn with_budget_to_spare_prompts_go_one_after_the_other() {
        let requests = all_at_once(8, 1024, 200);
        let oracle_ = Oracle { slots: 4, tau: 50_000_000, target: Target::Mean, corun: serial(), turn: 0 };
        let outcomes = oracle(&oracle_, &requests, &mut weigher());
        let one = weigher().prefill_alone(1024) as f64 * 1e-9;
        let mean = mean_ttft_s(&outcomes);
        assert!((mean / (one * 4.5) - 1.0).abs() < 1e-5, "{mean} s, one prompt takes {one} s");
    }

    #[test]
    fn both_targets_hold_and_the_stricter_one_costs_first_tokens() {
        let requests = all_at_once(60, 1024, 40);
        let mut means = Vec::new();
        for target in [Target::Mean, Target::EachToken] {
            for corun in [serial(), CoRun::default(), CoRun { omega: 1.0, ..CoRun::default() }] {
                let oracle_ = Oracle { slots: 4, tau: 50_000_000, target, corun, turn: 300_000 };
                let outcomes = oracle(&oracle_, &requests, &mut weigher());
                for o in &outcomes {
                    let tpot = (o.last - o.slot) as f64 / f64::from(o.output - 1);
                    assert!(tpot <= 50e6 * 1.02, "{target:?} at {}: {tpot} ns a token", corun.omega);
                }
                means.push(mean_ttft_s(&outcomes));
            }
        }
        assert!(means[0] < means[3], "{means:?}");
        assert!(means[2] <= means[0] * 1.001, "overlap does not hurt: {means:?}");
    }

    #[test]
    fn arrivals_are_not_served_before_they_come() {
        let requests: Vec<Request> = (0..5)
            .map(|i| Request { arrival: i * 3_000_000_000, prompt: 300, output: 1 + 7 * (i as u32), engine: 0 })
            .collect();
        let oracle_ = Oracle { slots: 64, tau: 50_000_000, target: Target::Mean, corun: CoRun::default(), turn: 0 };
        for o in oracle(&oracle_, &requests, &mut weigher()) {
            assert!(o.first > o.arrival && o.first < o.arrival + 40_000_000 && o.last >= o.first, "{o:?}");
        }
    }
}

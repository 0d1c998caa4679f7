//! The requests of every experiment, and what serves them.

use anyhow::{Context, Result};
use loadgen::dataset::{self, Planned};
use loadgen::schedule;
use sched::model::Model;
use sched::{CoRun, Nanos, Profile};
use sim::Request;
use sim::bound::{self, Ideal};
use sim::step::Weigher;

use super::OMEGAS;
use crate::build;

/// Everything runs on this.
pub const PROFILE: Profile = Profile::A910B3;
/// And serves this.
pub const MODEL: Model = Model::QWEN2_5_7B;
/// TPOT target of policies and oracle, milliseconds: the paper's.
pub const TPOT_MS: f64 = 50.0;
/// Native context of Qwen2.5-7B; longer requests of a trace are left out.
const CONTEXT_MAX: u32 = 32_768;
const SEED: u64 = 7;

/// One workload at one load and overlap.
#[derive(Clone, Debug)]
pub struct Case {
    /// `a`, `b` or `c`.
    pub experiment: char,
    /// As tables and figures name it.
    pub workload: String,
    /// `at once`, or a part of capacity.
    pub load: String,
    /// Overlap.
    pub omega: f64,
    /// Decode slots of each engine.
    pub slots: usize,
    /// Tokens of a prefill step.
    pub batched: u32,
    /// Requests parked beyond the slots, where the engine's streams are split.
    pub ahead: usize,
    /// In order of arrival.
    pub requests: Vec<Request>,
    /// What the bound says of them.
    pub ideal: Ideal,
}

impl Case {
    /// The contention model at this overlap.
    pub fn corun(&self) -> CoRun {
        CoRun { omega: self.omega, ..CoRun::default() }
    }

    /// True if only the device differs, and only in how it overlaps operators.
    pub fn same_but_for_overlap(&self, other: &Self) -> bool {
        let key = |c: &Self| (c.experiment, c.slots, c.batched, c.ahead);
        key(self) == key(other)
            && self.workload == other.workload
            && self.load == other.load
            && self.requests == other.requests
    }

    /// Output tokens a second that no time-sharing schedule exceeds: the bound's, or what arrives if that is less.
    pub fn ideal_tokens_per_s(&self) -> f64 {
        let tokens: f64 = self.requests.iter().map(|r| f64::from(r.output)).sum();
        let arrives_s = self.requests.last().map_or(0, |r| r.arrival) as f64 * 1e-9;
        tokens / self.ideal.total_s.max(arrives_s)
    }
}

fn nanos(seconds: f64) -> Nanos {
    (seconds * 1e9) as Nanos
}

fn corun(omega: f64) -> CoRun {
    CoRun { omega, ..CoRun::default() }
}

/// Poisson arrivals at `rate` a second, from time 0.
fn poisson(count: usize, rate: f64, seed: u64) -> Result<Vec<Nanos>> {
    Ok(schedule::arrivals(count, rate, 1.0, seed)?.into_iter().map(nanos).collect())
}

/// (a) The paper's workloads, with its four decode slots and with as many as fit.
pub fn paper(quick: bool) -> Result<Vec<Case>> {
    // Fewer prompts would measure the ends of the run: the figures are those of the paper's number or of nothing.
    let count = 200;
    let mut cases = Vec::new();
    for (prompt, output) in [(256, 256), (256, 1024), (1024, 256), (1024, 1024)] {
        if quick && output == 1024 {
            continue;
        }
        for slots in [4, 256] {
            if quick && slots == 256 {
                continue;
            }
            let burst = vec![Request { arrival: 0, prompt, output, engine: 0 }; count];
            for omega in OMEGAS {
                let ideal = bound::ideal(&burst, slots, &corun(omega), &mut Weigher::new(MODEL, PROFILE));
                // Capacity without overlap, so that ω changes the device and not the load.
                let serial = bound::ideal(&burst, slots, &corun(0.0), &mut Weigher::new(MODEL, PROFILE));
                let rate = 0.9 * count as f64 / serial.total_s;
                let spread: Vec<Request> = poisson(count, rate, SEED)?
                    .into_iter()
                    .map(|arrival| Request { arrival, prompt, output, engine: 0 })
                    .collect();
                for (load, requests) in [("at once", burst.clone()), ("90 %", spread)] {
                    cases.push(Case {
                        experiment: 'a',
                        workload: format!("{prompt}/{output}, {slots} slots"),
                        load: load.to_owned(),
                        omega,
                        slots,
                        batched: 1024,
                        ahead: if slots == 4 { count } else { 0 },
                        requests,
                        ideal,
                    });
                }
            }
        }
    }
    Ok(cases)
}

/// An excerpt that the repository carries.
fn excerpt(file: &str, most: usize) -> Result<Vec<Planned>> {
    let path = build::root().join("loadgen/data").join(file);
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let mut plan = dataset::parse_trace(&text).with_context(|| path.display().to_string())?;
    plan.retain(|r| r.prompt_tokens > 0 && r.output_tokens > 0);
    plan.retain(|r| r.prompt_tokens.saturating_add(r.output_tokens) <= CONTEXT_MAX);
    plan.truncate(most);
    Ok(plan)
}

/// A plan as requests of one engine, at `rate` a second.
pub fn requests(plan: &[Planned], rate: f64) -> Vec<Request> {
    let mut plan = plan.to_vec();
    dataset::rescale(&mut plan, Some(rate));
    let one =
        |r: &Planned| Request { arrival: nanos(r.at_s), prompt: r.prompt_tokens, output: r.output_tokens, engine: 0 };
    plan.iter().map(one).collect()
}

/// (b) Traces at parts of capacity, and at once for saturation.
pub fn traces(quick: bool) -> Result<Vec<Case>> {
    let loads: &[f64] = if quick { &[0.8] } else { &[0.5, 0.7, 0.8, 0.9, 1.0] };
    let mut cases = Vec::new();
    for (name, file, most) in [
        ("Azure conversation", "azure_conv_excerpt.csv", 500),
        ("Azure code", "azure_code_excerpt.csv", 700),
        ("Mooncake", "mooncake_conversation_excerpt.jsonl", 200),
    ] {
        let plan = excerpt(file, if quick { most * 2 / 5 } else { most })?;
        let burst = requests(&plan, f64::INFINITY);
        let tokens: u64 = burst.iter().map(|r| u64::from(r.prompt) + u64::from(r.output)).sum();
        // As many sequences as their KV cache leaves room for.
        let cache = sim::engine::EngineConfig::new(sim::engine::Mode::Split, &MODEL, &PROFILE).kv_blocks;
        let fit = u64::from(cache) * u64::from(sim::engine::BLOCK) * burst.len() as u64 / tokens;
        let ideal_slots = (fit as usize).clamp(1, 256);
        for omega in OMEGAS {
            let mut weigher = Weigher::new(MODEL, PROFILE);
            let ideal = bound::ideal(&burst, ideal_slots, &corun(omega), &mut weigher);
            let serial = bound::ideal(&burst, ideal_slots, &corun(0.0), &mut weigher);
            let capacity = burst.len() as f64 / serial.total_s;
            let at_loads =
                loads.iter().map(|load| (format!("{:.0} %", load * 100.0), requests(&plan, load * capacity)));
            for (load, requests) in at_loads.chain([("at once".to_owned(), burst.clone())]) {
                let workload = name.to_owned();
                cases.push(Case {
                    experiment: 'b',
                    workload,
                    load,
                    omega,
                    slots: 256,
                    batched: 2048,
                    ahead: 0,
                    requests,
                    ideal,
                });
            }
        }
    }
    Ok(cases)
}

/// (c) Two tenants: long prompts with short answers, and short prompts with long answers, each with two fifths of the
/// device's time.
pub fn tenants(quick: bool) -> Result<Vec<Case>> {
    const TENANTS: [(u32, u32); 2] = [(3072, 16), (128, 400)];
    let span_s = if quick { 30.0 } else { 120.0 };
    let mut weigher = Weigher::new(MODEL, PROFILE);
    let mut requests = Vec::new();
    for (engine, (prompt, output)) in TENANTS.into_iter().enumerate() {
        let sample = vec![Request { arrival: 0, prompt, output, engine: 0 }; 64];
        let alone = bound::ideal(&sample, 16, &corun(0.0), &mut weigher);
        let rate = 0.4 * sample.len() as f64 / alone.total_s;
        let arrivals = poisson((rate * span_s) as usize, rate, SEED + engine as u64)?;
        requests.extend(arrivals.into_iter().map(|arrival| Request { arrival, prompt, output, engine }));
    }
    requests.sort_by_key(|r| (r.arrival, r.engine));
    let case = |omega| Case {
        experiment: 'c',
        workload: "two tenants".to_owned(),
        load: "80 %".to_owned(),
        omega,
        slots: 64,
        batched: 8192,
        ahead: 0,
        ideal: bound::ideal(&requests, 64, &corun(omega), &mut Weigher::new(MODEL, PROFILE)),
        requests: requests.clone(),
    };
    Ok(OMEGAS.map(case).to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_excerpt_parses_and_fits() {
        for case in traces(true).unwrap() {
            assert!(case.requests.len() >= 40, "{} has {}", case.workload, case.requests.len());
            assert!(case.requests.is_sorted_by_key(|r| r.arrival));
            assert!(case.ideal.total_s > 0.0 && case.ideal_tokens_per_s() > 0.0);
        }
    }

    #[test]
    fn overlap_raises_the_bound_and_not_the_load() {
        let cases = paper(true).unwrap();
        // Prompts of 256 tokens are bound by memory like decode: overlap gains nothing there.
        let at = |omega: f64| {
            let one = |c: &&Case| c.omega == omega && c.load == "90 %" && c.workload.starts_with("1024/256");
            cases.iter().find(one).unwrap()
        };
        assert_eq!(at(0.0).requests, at(1.0).requests);
        assert!(at(1.0).ideal.total_s < at(0.0).ideal.total_s);
    }
}

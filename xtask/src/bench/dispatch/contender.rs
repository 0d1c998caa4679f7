//! Who is compared: every dispatch policy by name, static placements, chunked prefill, and the clairvoyant schedules.

use sched::policy::PolicyName;
use sched::{PolicyConfig, SessionParams};
use sim::bound::{self, Oracle, Target};
use sim::engine::{EngineConfig, Mode};
use sim::report::{Objectives, Report};
use sim::step::Weigher;
use sim::world::Placement;
use sim::{Host, Outcome, Request, Setup};

use super::row::Row;
use super::workload::{Case, MODEL, PROFILE, TPOT_MS};

/// One way of serving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contender {
    /// One stream, a prompt waits for a decode slot: what the paper compares with.
    Colocation,
    /// Steps of so many tokens that mix pieces of prompts with decode.
    Chunked(u32),
    /// Prefill on one device, decode on another, twice the load; rates are given for one device. KV moves for nothing.
    Disaggregation,
    /// The reference engine under a dispatch policy.
    Policy(PolicyName),
    /// Each tenant with the device to itself: what co-location costs it.
    Alone,
    /// Clairvoyant, TPOT target met on average over a request.
    Oracle,
    /// Clairvoyant, every token in time.
    OracleEachToken,
}

/// Everyone who takes part in a case.
pub fn all(case: &Case) -> Vec<Contender> {
    let policies = PolicyName::ALL.map(Contender::Policy);
    let oracles = [Contender::OracleEachToken, Contender::Oracle];
    match case.experiment {
        // What the paper compares, and what a dispatcher does without thinking.
        'a' => {
            let others = [PolicyName::Passthrough, PolicyName::Fifo, PolicyName::Phase].map(Contender::Policy);
            let placements = [Contender::Colocation, Contender::Disaggregation];
            placements.into_iter().chain(others).chain(oracles).collect()
        }
        'c' => [Contender::Alone].into_iter().chain(policies).chain(oracles).collect(),
        _ => {
            let placements =
                [Contender::Colocation, Contender::Chunked(512), Contender::Chunked(2048), Contender::Disaggregation];
            placements.into_iter().chain(policies).chain(oracles).collect()
        }
    }
}

impl Contender {
    /// As tables and figures name it.
    pub fn name(self) -> String {
        match self {
            Self::Colocation => "static-colocation".into(),
            Self::Chunked(budget) => format!("chunked-{budget}"),
            Self::Disaggregation => "disaggregated".into(),
            Self::Policy(policy) => policy.name().into(),
            Self::Alone => "alone".into(),
            Self::Oracle => "oracle".into(),
            Self::OracleEachToken => "oracle-each-token".into(),
        }
    }

    /// False if it never has two operators side by side, so that the overlap changes nothing.
    pub fn overlaps(self) -> bool {
        let one_at_a_time =
            [Self::Colocation, Self::Disaggregation, Self::Alone, Self::Policy(PolicyName::Fifo)].contains(&self);
        !one_at_a_time && !matches!(self, Self::Chunked(_))
    }

    /// Simulates a case: one row, or one a tenant.
    pub fn run(self, case: &Case) -> Vec<Row> {
        let mut weigher = Weigher::new(MODEL, PROFILE);
        let outcomes = match self {
            Self::Oracle | Self::OracleEachToken => {
                let target = if self == Self::Oracle { Target::Mean } else { Target::EachToken };
                let tau = (TPOT_MS * 1e6) as u64;
                let turn = Host::REFERENCE.turn;
                let oracle = Oracle { slots: case.slots * engines(case), tau, target, corun: case.corun(), turn };
                bound::oracle(&oracle, &case.requests, &mut weigher)
            }
            Self::Disaggregation => {
                let mut requests = case.requests.clone();
                requests.iter_mut().for_each(|r| r.arrival /= 2);
                sim::run(&self.setup(case), &requests).outcomes
            }
            Self::Alone => {
                let tenant = |engine: usize| -> Vec<Request> {
                    case.requests.iter().copied().filter(|r| r.engine == engine).collect()
                };
                (0..engines(case)).flat_map(|e| sim::run(&self.setup(case), &tenant(e)).outcomes).collect()
            }
            Self::Colocation | Self::Chunked(_) | Self::Policy(_) => {
                sim::run(&self.setup(case), &case.requests).outcomes
            }
        };
        let devices = if self == Self::Disaggregation { 2.0 } else { 1.0 };
        let mut row = |workload: String, outcomes: &[Outcome]| {
            let mut report = Report::new(outcomes, &Objectives::default(), |prompt| weigher.prefill_alone(prompt));
            for rate in [&mut report.tokens_per_s, &mut report.requests_per_s, &mut report.goodput_per_s] {
                *rate /= devices;
            }
            Row {
                experiment: case.experiment,
                workload,
                load: case.load.clone(),
                omega: case.omega,
                contender: self.name(),
                report,
                ideal_tokens_per_s: case.ideal_tokens_per_s(),
            }
        };
        if engines(case) == 1 {
            return vec![row(case.workload.clone(), &outcomes)];
        }
        ["prefill-heavy", "decode-heavy"]
            .into_iter()
            .enumerate()
            .map(|(engine, name)| {
                let own: Vec<Outcome> = outcomes.iter().copied().filter(|o| o.engine == engine).collect();
                row(format!("tenant {name}"), &own)
            })
            .collect()
    }

    /// What to simulate.
    pub fn setup(self, case: &Case) -> Setup {
        let policy = match self {
            Self::Policy(name) => name,
            _ => PolicyName::Fifo,
        };
        // The policy knows the device's overlap: a daemon is told it with the device.
        let policy = PolicyConfig { tpot_ms: TPOT_MS, corun: case.corun(), ..PolicyConfig::named(policy) };
        let mode = match self {
            Self::Colocation => Mode::Colocated,
            Self::Chunked(budget) => Mode::Mixed { budget },
            _ => Mode::Split,
        };
        let prefill_ahead = if mode == Mode::Split { case.ahead } else { 0 };
        let engine = EngineConfig {
            max_num_seqs: case.slots,
            prefill_ahead,
            max_num_batched_tokens: case.batched,
            ..EngineConfig::new(mode, &MODEL, &PROFILE)
        };
        let mut setup = Setup::single(PROFILE, case.corun(), policy, engine);
        if self == Self::Disaggregation {
            (setup.devices, setup.engines[0].decode) = (2, 1);
        }
        if engines(case) > 1 {
            // Two tenants share the memory as well.
            let engine = EngineConfig { kv_blocks: engine.kv_blocks / 3, ..engine };
            let placement = Placement { engine, prefill: 0, decode: 0, session: SessionParams::default() };
            setup.engines = vec![placement; engines(case)];
        }
        setup
    }
}

fn engines(case: &Case) -> usize {
    if case.experiment == 'c' { 2 } else { 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case() -> Case {
        let requests = vec![Request { arrival: 0, prompt: 512, output: 24, engine: 0 }; 12];
        let ideal = bound::ideal(&requests, 4, &sched::CoRun::default(), &mut Weigher::new(MODEL, PROFILE));
        Case {
            experiment: 'a',
            workload: "test".into(),
            load: "at once".into(),
            omega: 0.5,
            slots: 4,
            batched: 1024,
            ahead: 8,
            requests,
            ideal,
        }
    }

    #[test]
    fn nobody_beats_the_bound_and_static_colocation_waits_for_slots() {
        let case = case();
        let rows: Vec<Row> = all(&case).into_iter().flat_map(|c| c.run(&case)).collect();
        let of = |name: &str| rows.iter().find(|r| r.contender == name).unwrap().report;
        for row in rows.iter().filter(|r| !r.contender.starts_with("chunked")) {
            let (got, most) = (row.report.tokens_per_s, row.ideal_tokens_per_s);
            assert!(got <= most * 1.001, "{}: {got} of {most}", row.contender);
            assert_eq!(row.report.requests, 12);
        }
        assert!(of("static-colocation").ttft_s.mean > 2.0 * of("phase").ttft_s.mean);
        assert!(of("oracle").ttft_s.mean <= of("phase").ttft_s.mean);
        assert!(of("oracle").ttft_s.mean <= of("oracle-each-token").ttft_s.mean * 1.001);
    }
}

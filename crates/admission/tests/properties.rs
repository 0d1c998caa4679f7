//! Admission against a simple model, in virtual time: nothing leaks, nothing starves, no limit is passed.

use std::collections::{HashMap, HashSet};

use admission::{Admission, BANDS, Capacity, Demand, ENGINES_MAX, EngineSet, Grant, GrantId, Misfit, QueueLimits};
use admission::{Refusal, Request, Served, TenantLimits, Ticket};
use proptest::prelude::*;

const QUEUE: QueueLimits = QueueLimits { requests: 1000, bytes: 1 << 30 };
const LATE: u64 = u64::MAX;

fn request(tenant: usize, band: usize, prompt_tokens: u64, output_tokens: u64) -> Request {
    Request {
        tenant,
        band,
        deadline_us: LATE,
        demand: Demand { prompt_tokens, exact: true, output_tokens, sequences: 1, prompts: 1 },
        bytes: 10,
        eligible: EngineSet::EMPTY.with(0),
        preferred: Vec::new(),
    }
}

fn capacity(prefill_tokens: u64, sequences: u64, kv_tokens: u64) -> Capacity {
    Capacity { prefill_tokens, sequences, kv_tokens, context_tokens: u64::MAX }
}

fn one_engine(capacity: Capacity) -> Admission {
    let mut admission = Admission::new(QUEUE, 1);
    admission.add_engine(capacity);
    admission
}

fn all(admission: &mut Admission, now_us: u64) -> Vec<Grant> {
    std::iter::from_fn(|| admission.next(now_us)).collect()
}

#[test]
fn prefill_ends_with_the_first_token_and_the_rest_with_the_request() {
    let mut a = one_engine(capacity(100, 10, 1000));
    let first = a.offer(request(0, 0, 80, 20), 0).unwrap();
    let second = a.offer(request(0, 0, 80, 20), 0).unwrap();
    let [grant] = all(&mut a, 0)[..] else { panic!("one at a time") };
    assert_eq!(grant.ticket, first);
    a.first_token(grant.id);
    a.first_token(grant.id);
    let [next] = all(&mut a, 5)[..] else { panic!("the second may go") };
    assert_eq!((next.ticket, next.waited_us), (second, 5));
    assert_eq!(a.ledger(0).kv_tokens, 200);
    for id in [grant.id, next.id, grant.id] {
        a.finish(id, None);
    }
    assert!(a.ledger(0).is_idle());
}

#[test]
fn earliest_deadline_of_a_tenant_goes_first() {
    let mut a = one_engine(capacity(10, 10, 1000));
    let tickets: Vec<Ticket> =
        [30, 10, 20].map(|deadline_us| a.offer(Request { deadline_us, ..request(0, 0, 10, 1) }, 0).unwrap()).into();
    let mut order = Vec::new();
    while let Some(grant) = a.next(0) {
        order.push(tickets.iter().position(|&t| t == grant.ticket).unwrap());
        a.finish(grant.id, None);
    }
    assert_eq!(order, [1, 2, 0]);
}

#[test]
fn higher_band_goes_first_and_the_lower_gets_its_sixteenth() {
    let mut a = one_engine(capacity(10, 1, 1000));
    for _ in 0..100 {
        a.offer(request(0, 3, 10, 1), 0).unwrap();
    }
    let low: HashSet<Ticket> = (0..5).map(|_| a.offer(request(1, 0, 10, 1), 0).unwrap()).collect();
    let mut places = Vec::new();
    for place in 0..105 {
        let grant = a.next(0).unwrap();
        if low.contains(&grant.ticket) {
            places.push(place);
        }
        a.finish(grant.id, None);
    }
    assert_eq!(places, [16, 33, 50, 67, 84]);
}

#[test]
fn large_request_is_not_overtaken_on_its_engine() {
    let mut a = Admission::new(QUEUE, 1);
    a.add_engine(capacity(100, 10, 10_000));
    a.add_engine(capacity(100, 10, 10_000));
    let grants = |a: &mut Admission| all(a, 0).iter().map(|g| (g.ticket, g.engine)).collect::<Vec<_>>();
    a.offer(request(0, 0, 60, 1), 0).unwrap();
    assert_eq!(grants(&mut a).len(), 1);
    let large = a.offer(request(0, 0, 90, 1), 0).unwrap();
    let behind = a.offer(request(0, 0, 10, 1), 0).unwrap();
    let elsewhere = Request { eligible: EngineSet::EMPTY.with(0).with(1), ..request(0, 0, 10, 1) };
    let elsewhere = a.offer(elsewhere, 0).unwrap();
    assert_eq!(grants(&mut a), [(elsewhere, 1)], "{large:?} and {behind:?} wait for engine 0");
}

#[test]
fn known_prefill_time_predicts_before_there_is_experience() {
    let mut a = one_engine(capacity(1000, 10, 100_000));
    a.offer(request(0, 0, 1000, 5), 0).unwrap();
    a.next(0).unwrap();
    let more = request(0, 0, 500, 5);
    assert_eq!((a.explain(&more).wait_us, a.explain(&more).prefill_us), (None, None));
    a.set_prefill_ns_per_token(0, Some(2000.0));
    let told = a.explain(&more);
    // 500 above the limit (and one token for what is ahead); 1,000 in flight and its own 500.
    assert_eq!((told.wait_us, told.prefill_us), (Some(1002), Some(3000)));
    let hurried = Request { deadline_us: 999, ..more };
    assert!(matches!(a.offer(hurried, 0), Err(Refusal::TooLate { wait_us: 1002, retry_after_us: 3 })));
}

#[test]
fn removed_engine_keeps_what_runs_and_its_place_is_taken_after_it() {
    let mut a = one_engine(capacity(100, 1, 10_000));
    a.offer(request(0, 0, 10, 5), 0).unwrap();
    let running = a.next(0).unwrap();
    let waits = a.offer(request(0, 0, 20, 5), 0).unwrap();
    a.remove_engine(0);
    a.set_open(0, true);
    assert_eq!((a.next(0), a.orphans()), (None, vec![waits]), "a removed engine does not open again");
    assert_eq!(a.add_engine(capacity(100, 1, 10_000)), Some(1), "something runs in the old place");
    assert_eq!(a.next(0), None, "nobody has said that the new engine serves its model");
    a.set_eligible(waits, EngineSet::EMPTY.with(1));
    let moved = a.next(0).unwrap();
    assert_eq!((moved.ticket, moved.engine), (waits, 1));
    a.finish(running.id, None);
    a.finish(moved.id, None);
    assert!(a.ledger(0).is_idle() && a.ledger(1).is_idle());
    assert_eq!(a.add_engine(capacity(100, 1, 10_000)), Some(0));
    for engine in 2..ENGINES_MAX {
        assert_eq!(a.add_engine(capacity(1, 1, 1)), Some(engine));
    }
    assert_eq!(a.add_engine(capacity(1, 1, 1)), None);
}

#[test]
fn tenants_get_their_weights_while_both_wait() {
    for (weights, flood) in [([1, 1], [10, 1]), ([3, 1], [1, 10]), ([1, 5], [10, 1])] {
        let mut a = one_engine(capacity(2000, 8, 20_000));
        for (tenant, weight) in weights.into_iter().enumerate() {
            a.set_tenant(tenant, TenantLimits { weight, ..TenantLimits::default() });
        }
        // Tenant by tenant as many waiting as it floods; the one with ten times the requests gets no more for it.
        let mut waiting = [0, 0];
        let mut running: Vec<(GrantId, usize)> = Vec::new();
        let mut owner = HashMap::new();
        for round in 0..20_000u64 {
            for tenant in 0..2 {
                while waiting[tenant] < 4 * flood[tenant] {
                    let sizes = if tenant == 0 { (300, 40) } else { (90, 160) };
                    owner.insert(a.offer(request(tenant, 1, sizes.0, sizes.1), round).unwrap(), tenant);
                    waiting[tenant] += 1;
                }
            }
            for grant in all(&mut a, round) {
                let tenant = owner.remove(&grant.ticket).unwrap();
                waiting[tenant] -= 1;
                a.first_token(grant.id);
                running.push((grant.id, tenant));
            }
            let (id, tenant) = running.remove(0);
            let output = if tenant == 0 { 40 } else { 160 };
            a.tokens(id, output);
            a.finish(id, None);
        }
        let share = a.served_tokens(0) as f64 / (a.served_tokens(0) + a.served_tokens(1)) as f64;
        let want = f64::from(weights[0]) / f64::from(weights[0] + weights[1]);
        assert!((share / want - 1.0).abs() < 0.05, "weights {weights:?}: {share} of {want}");
    }
}

#[test]
fn cached_prompt_tokens_are_not_charged() {
    let mut a = one_engine(capacity(1000, 10, 10_000));
    a.offer(request(0, 0, 500, 10), 0).unwrap();
    let grant = a.next(0).unwrap();
    a.tokens(grant.id, 10);
    assert_eq!(a.served_tokens(0), 510);
    a.finish(grant.id, Some(Served { prompt_tokens: 20, output_tokens: 10 }));
    assert_eq!(a.served_tokens(0), 30);
}

#[test]
fn what_cannot_start_in_time_is_refused_early_with_an_honest_delay() {
    let mut a = one_engine(capacity(1000, 100, 1_000_000));
    let mut now_us = 0;
    // 1000 tokens a second, for a while, with a backlog.
    for _ in 0..40 {
        a.offer(Request { deadline_us: 24_000_000, ..request(0, 0, 1000, 1) }, now_us).unwrap();
    }
    for _ in 0..20 {
        let grant = a.next(now_us).unwrap();
        now_us += 1_000_000;
        a.finish(grant.id, None);
    }
    // Twenty wait: some twenty seconds.
    let soon = Request { deadline_us: now_us + 5_000_000, ..request(0, 0, 1000, 1) };
    let Err(Refusal::TooLate { wait_us, retry_after_us }) = a.offer(soon, now_us) else { panic!("let in") };
    assert!((15_000_000..25_000_000).contains(&wait_us), "{wait_us}");
    assert_eq!(retry_after_us, wait_us - 5_000_000);
    // Another tenant has only itself before it.
    let other = Request { tenant: 1, deadline_us: now_us + 5_000_000, ..request(1, 0, 1000, 1) };
    assert!(a.offer(other, now_us).is_ok());
    assert!(a.offer(Request { deadline_us: now_us + 60_000_000, ..request(0, 0, 1000, 1) }, now_us).is_ok());
}

#[test]
fn full_queue_and_misfits_are_refused() {
    let mut a = Admission::new(QueueLimits { requests: 2, bytes: 25 }, 1);
    a.add_engine(Capacity { context_tokens: 500, ..capacity(100, 2, 1000) });
    let four = Request { demand: Demand { sequences: 4, ..request(0, 0, 1, 1).demand }, ..request(0, 0, 1, 1) };
    let never = Refusal::NeverFits(Misfit::Sequences { sequences: 4, max: 3 });
    a.set_tenant(0, TenantLimits { weight: 1, sequences: 3 });
    assert_eq!(a.offer(four, 0), Err(never));
    assert!(matches!(a.offer(request(0, 0, 501, 1), 0), Err(Refusal::NeverFits(Misfit::Context { .. }))));
    a.offer(request(0, 0, 100, 1), 0).unwrap();
    assert_eq!(all(&mut a, 0).len(), 1);
    for _ in 0..2 {
        a.offer(request(0, 0, 100, 1), 0).unwrap();
    }
    assert!(matches!(a.offer(request(0, 0, 100, 1), 0), Err(Refusal::QueueFull { .. })));
    a.set_queue_limits(QueueLimits { requests: 10, bytes: 25 });
    assert!(matches!(a.offer(request(0, 0, 100, 1), 0), Err(Refusal::QueueFull { .. })), "20 of 25 bytes are held");
    a.set_open(0, false);
    assert_eq!(a.offer(request(0, 0, 1, 1), 0), Err(Refusal::NoEngine));
    assert_eq!(a.orphans().len(), 2);
}

#[test]
fn tenant_at_its_sequences_waits_without_holding_up_others() {
    let mut a = one_engine(capacity(1000, 10, 10_000));
    a.set_tenant(0, TenantLimits { weight: 1, sequences: 1 });
    let mine: Vec<Ticket> = (0..2).map(|_| a.offer(request(0, 0, 10, 1), 0).unwrap()).collect();
    let other = a.offer(request(1, 0, 10, 1), 0).unwrap();
    let granted: Vec<Ticket> = all(&mut a, 0).iter().map(|g| g.ticket).collect();
    assert!(granted.contains(&other) && granted.contains(&mine[0]) && !granted.contains(&mine[1]), "{granted:?}");
}

#[derive(Clone, Debug)]
enum Op {
    Offer { tenant: usize, band: usize, prompt: u64, output: u64, sequences: u64, engines: u8, deadline: u64 },
    Withdraw(usize),
    FirstToken(usize),
    Tokens(usize, u64),
    Finish(usize, Option<(u64, u64)>),
    Open(usize, bool),
    Pass(u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0usize..4, 0..BANDS, 0u64..400, 0u64..200, 1u64..4, 1u8..8, 0u64..5_000_000).prop_map(
            |(tenant, band, prompt, output, sequences, engines, deadline)| Op::Offer {
                tenant, band, prompt, output, sequences, engines, deadline
            }
        ),
        1 => any::<usize>().prop_map(Op::Withdraw),
        3 => any::<usize>().prop_map(Op::FirstToken),
        3 => (any::<usize>(), 0u64..40).prop_map(|(i, n)| Op::Tokens(i, n)),
        4 => (any::<usize>(), prop::option::of((0u64..400, 0u64..400))).prop_map(|(i, s)| Op::Finish(i, s)),
        1 => (0usize..3, any::<bool>()).prop_map(|(e, open)| Op::Open(e, open)),
        2 => (0u64..2_000_000).prop_map(Op::Pass),
    ]
}

/// The simple model: what each running request must hold.
struct Held {
    grant: Grant,
    demand: Demand,
    first: bool,
    output: u64,
}

const CAPACITY: Capacity = Capacity { prefill_tokens: 500, sequences: 6, kv_tokens: 2000, context_tokens: u64::MAX };

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn ledgers_are_the_sum_of_what_runs_within_limits_and_return_to_zero(
        ops in prop::collection::vec(op(), 1..200),
    ) {
        let mut a = Admission::new(QueueLimits { requests: 50, bytes: 400 }, 7);
        for _ in 0..3 {
            a.add_engine(CAPACITY);
        }
        let mut now_us = 0;
        let mut waiting: HashMap<Ticket, Demand> = HashMap::new();
        let mut running: Vec<Held> = Vec::new();
        for op in ops {
            match op {
                Op::Offer { tenant, band, prompt, output, sequences, engines, deadline } => {
                    let eligible: EngineSet = (0..3).filter(|e| engines >> e & 1 == 1).collect();
                    let demand = Demand { prompt_tokens: prompt, exact: true, output_tokens: output, sequences, prompts: 1 };
                    let request = Request {
                        demand, eligible, deadline_us: now_us + deadline, ..request(tenant, band, 0, 0)
                    };
                    if let Ok(ticket) = a.offer(request, now_us) {
                        waiting.insert(ticket, demand);
                    }
                }
                Op::Withdraw(i) => {
                    let Some(&ticket) = waiting.keys().nth(i % waiting.len().max(1)) else { continue };
                    prop_assert!(a.withdraw(ticket, now_us));
                    waiting.remove(&ticket);
                }
                Op::FirstToken(i) if !running.is_empty() => {
                    let i = i % running.len();
                    a.first_token(running[i].grant.id);
                    running[i].first = true;
                }
                Op::Tokens(i, n) if !running.is_empty() => {
                    let i = i % running.len();
                    // Within what was reserved: engines stop at the limit they were given.
                    let left = running[i].demand.output_tokens * running[i].demand.sequences - running[i].output;
                    a.tokens(running[i].grant.id, n.min(left));
                    running[i].output += n.min(left);
                }
                Op::Finish(i, served) if !running.is_empty() => {
                    let i = i % running.len();
                    let held = running.swap_remove(i);
                    let served = served.map(|(prompt_tokens, output_tokens)| Served { prompt_tokens, output_tokens });
                    a.finish(held.grant.id, served);
                }
                Op::Open(engine, open) => a.set_open(engine, open),
                Op::Pass(us) => now_us += us,
                _ => {}
            }
            for grant in all(&mut a, now_us) {
                let demand = waiting.remove(&grant.ticket).expect("granted once");
                running.push(Held { grant, demand, first: false, output: 0 });
            }
            for engine in 0..3 {
                let here: Vec<&Held> = running.iter().filter(|h| h.grant.engine == engine).collect();
                let prefill: u64 =
                    here.iter().filter(|h| !h.first).map(|h| h.demand.prompt_tokens.min(CAPACITY.prefill_tokens)).sum();
                let kv: u64 = here.iter().map(|h| h.demand.kv_tokens().min(CAPACITY.kv_tokens)).sum();
                let sequences: u64 = here.iter().map(|h| h.demand.sequences).sum();
                let ledger = a.ledger(engine);
                prop_assert_eq!((ledger.prefill_tokens, ledger.sequences, ledger.kv_tokens), (prefill, sequences, kv));
                prop_assert!(prefill <= CAPACITY.prefill_tokens && sequences <= CAPACITY.sequences);
                prop_assert!(kv <= CAPACITY.kv_tokens);
            }
            prop_assert_eq!(a.queued(), (waiting.len(), 10 * waiting.len() as u64));
        }
        // Everything ends; whoever waits gets its turn.
        (0..3).for_each(|e| a.set_open(e, true));
        loop {
            for grant in all(&mut a, now_us) {
                let demand = waiting.remove(&grant.ticket).expect("granted once");
                running.push(Held { grant, demand, first: false, output: 0 });
            }
            let Some(held) = running.pop() else { break };
            a.finish(held.grant.id, None);
        }
        prop_assert!(waiting.is_empty(), "{} starve in front of idle engines", waiting.len());
        prop_assert!((0..3).all(|e| a.ledger(e).is_idle()) && a.running() == 0 && a.queued() == (0, 0));
        prop_assert!((0..a.tenants()).all(|t| a.sequences(t) == 0));
    }

    /// A flood in the same band, from any number of tenants, delays nobody for more than its share.
    #[test]
    fn nobody_starves_behind_a_flood(
        others in 1usize..4, band in 0..BANDS, flood_band in 0..BANDS, prompt in 1u64..400,
    ) {
        let mut a = one_engine(CAPACITY);
        let flood = |a: &mut Admission, n: usize| {
            for i in 0..n {
                a.offer(request(1 + i % others, flood_band, 100, 10), 0).unwrap();
            }
        };
        flood(&mut a, 40);
        all(&mut a, 0);
        let mine = a.offer(request(0, band, prompt, 10), 0).unwrap();
        let mut running: Vec<GrantId> = Vec::new();
        for _ in 0..40 {
            flood(&mut a, 4);
        }
        let mut tokens = 0u64;
        let a = &mut a;
        let mut granted = false;
        // All bands together, the sixteenth being the least: twice that, and what runs already.
        while !granted && tokens < 2 * 16 * prompt.max(100) + 2000 {
            let Some(grant) = a.next(0) else {
                let id = if running.is_empty() { break } else { running.remove(0) };
                a.finish(id, None);
                continue;
            };
            granted = grant.ticket == mine;
            tokens += 100;
            flood(a, 1);
            running.push(grant.id);
        }
        prop_assert!(granted || running.is_empty() && tokens == 0, "still waiting after {tokens} tokens");
    }
}

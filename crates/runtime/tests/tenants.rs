//! Tenants of one device: memory limits and guarantees, shares of modelled time, and books that sum up to it.

mod common;

use acl_abi::values as acl;
use common::{Bench, FUNCTIONAL, PACED, add, facts, layout, matmul};
use runtime::{TenantConfig, TenantError};
use sched::{Nanos, SessionParams};
use session::local;
use wire::{HostSource, Record};

const MIB: u64 = 1 << 20;
const MS: Nanos = 1_000_000;

/// A session of a tenant; its index.
fn open(bench: &mut Bench, tenant: &str) -> usize {
    let (client, server) = local(layout(), bench.doorbell.clone(), facts()).unwrap();
    bench.core.attach(&server, tenant, SessionParams::default()).unwrap();
    bench.ends.push((client, server));
    bench.ends.len() - 1
}

fn tenant(bench: &mut Bench, name: &str, config: TenantConfig) {
    bench.core.set_tenant(bench.now, name, config).unwrap();
}

fn status_of_malloc(bench: &mut Bench, session: usize, size: u64) -> (i32, String) {
    let reply = bench.call(session, |reply| Record::Malloc { size, reply });
    (reply.status, reply.text.to_string())
}

fn free_and_total(bench: &mut Bench, session: usize) -> (u64, u64) {
    let reply = bench.call(session, |reply| Record::MemInfo { reply });
    (reply.payload[0], reply.payload[1])
}

#[test]
fn a_limit_is_for_all_processes_of_the_tenant_and_nobody_else_notices() {
    let mut bench = Bench::new(FUNCTIONAL, "fifo");
    tenant(&mut bench, "small", TenantConfig { memory_limit_bytes: Some(4 * MIB), ..TenantConfig::default() });
    let [one, two] = [open(&mut bench, "small"), open(&mut bench, "small")];
    let neighbour = open(&mut bench, "default");
    let held = bench.malloc(one, 3 * MIB);
    assert_eq!(free_and_total(&mut bench, two), (MIB, 4 * MIB), "what the other process took is gone for both");
    let (status, text) = status_of_malloc(&mut bench, two, 2 * MIB);
    assert_eq!(status, acl::ACL_ERROR_RT_MEMORY_ALLOCATION);
    assert_eq!(status, 207_001);
    assert!(text.contains("this tenant's limit of 4194304 bytes"), "{text}");
    // The neighbour allocates more than the limit, computes, and has seen no error.
    let [a, b, out] = [0; 3].map(|_| bench.malloc(neighbour, 5 * MIB));
    bench.op(neighbour, 0, &add(a, b, out, &[64]));
    assert_eq!(bench.sync(neighbour, 0).status, 0);
    let faults: Vec<u64> = bench.core.snapshot(Default::default(), 0).sessions.iter().map(|s| s.faults).collect();
    assert_eq!(faults, [0, 1, 0]);
    // What is freed may be had again, and a limit that is raised counts at once.
    assert_eq!(bench.free(one, held).status, 0);
    assert_eq!(status_of_malloc(&mut bench, two, 4 * MIB).0, 0);
    assert_eq!(status_of_malloc(&mut bench, one, MIB).0, 207_001);
    tenant(&mut bench, "small", TenantConfig { memory_limit_bytes: Some(8 * MIB), ..TenantConfig::default() });
    assert_eq!(status_of_malloc(&mut bench, one, MIB).0, 0);
}

#[test]
fn a_guarantee_is_kept_free_for_its_tenant() {
    let mut bench = Bench::new(FUNCTIONAL, "fifo");
    tenant(&mut bench, "sure", TenantConfig { memory_guarantee_bytes: 40 * MIB, ..TenantConfig::default() });
    let (sure, other) = (open(&mut bench, "sure"), open(&mut bench, "default"));
    let total = bench.core.device().memory().total;
    assert_eq!(free_and_total(&mut bench, other).0, total - 40 * MIB);
    let (status, text) = status_of_malloc(&mut bench, other, 30 * MIB);
    assert_eq!(status, 207_001);
    assert!(text.contains("guaranteed to other tenants"), "{text}");
    bench.malloc(other, 20 * MIB);
    bench.malloc(sure, 30 * MIB);
    bench.malloc(sure, 10 * MIB);
    // The guarantee is used up: what is left is anybody's.
    let left = free_and_total(&mut bench, other).0;
    assert_eq!(left, total - 60 * MIB);
    bench.malloc(other, left);
}

#[test]
fn tenants_are_refused_with_a_reason() {
    let mut bench = Bench::new(FUNCTIONAL, "fifo");
    let now = bench.now;
    let all = bench.core.device().memory().total;
    let guarantee = |memory_guarantee_bytes| TenantConfig { memory_guarantee_bytes, ..TenantConfig::default() };
    bench.core.set_tenant(now, "a", guarantee(all / 2)).unwrap();
    let too_much = bench.core.set_tenant(now, "b", guarantee(all / 2 + 1)).unwrap_err();
    assert!(matches!(too_much, TenantError::Guarantees { .. }), "{too_much}");
    let unknown = bench.core.remove_tenant(now, "b").unwrap_err().to_string();
    assert!(unknown.contains("there are: default, a"), "{unknown}");
    assert_eq!(bench.core.remove_tenant(now, "default"), Err(TenantError::Default));
    let session = open(&mut bench, "a");
    assert!(matches!(bench.core.remove_tenant(now, "a"), Err(TenantError::Busy { sessions: 1, .. })));
    let id = bench.id(session);
    bench.core.detach(now, id);
    bench.core.remove_tenant(now, "a").unwrap();
    let (_client, server) = local(layout(), bench.doorbell.clone(), facts()).unwrap();
    let gone = bench.core.attach(&server, "a", SessionParams::default()).unwrap_err().to_string();
    assert!(gone.contains("no tenant is called \"a\"; there are: default"), "{gone}");
    for n in 0..400 {
        if let Err(e) = bench.core.set_tenant(now, &format!("n{n}"), TenantConfig::default()) {
            assert!(n > 200 && matches!(e, TenantError::TooMany(_)), "{e}");
            return;
        }
    }
    panic!("400 tenants");
}

/// Keeps a backlog of products on a session's stream for so long; they take about a millisecond alone.
fn busy(bench: &mut Bench, sessions: &[(usize, u64)], ms: u64) {
    for _ in 0..ms {
        for &(session, matrix) in sessions {
            let id = bench.id(session);
            let queued =
                bench.core.snapshot(Default::default(), 0).sessions.iter().find(|s| s.session == id).unwrap().items;
            for _ in queued..40 {
                bench.op(session, 0, &matmul(matrix, matrix, matrix, 4096));
            }
        }
        bench.pass(MS);
    }
}

fn device_ns(bench: &mut Bench) -> (Nanos, std::collections::BTreeMap<String, u64>) {
    let books = bench.core.books();
    (books.busy_ns, books.tenants.iter().map(|(name, usage)| (name.clone(), usage.device_total_ns())).collect())
}

#[test]
fn shares_are_the_weights_and_the_books_are_the_device_s() {
    for (policy, spec) in [("fifo", PACED), ("phase", PACED), ("passthrough", "Ascend910B3:timing:paced:omega=1")] {
        let mut bench = Bench::new(spec, policy);
        tenant(&mut bench, "one", TenantConfig::default());
        tenant(&mut bench, "three", TenantConfig { weight: 3, ..TenantConfig::default() });
        let sessions = ["one", "three", "three"].map(|name| {
            let session = open(&mut bench, name);
            let matrix = bench.malloc(session, 64 * MIB);
            (session, matrix)
        });
        busy(&mut bench, &sessions, 1000);
        let (whole, used) = device_ns(&mut bench);
        assert_eq!(used.values().sum::<u64>(), whole, "{policy}: to the nanosecond");
        let part = used["three"] as f64 / whole as f64;
        assert!((part - 0.75).abs() < 0.02, "{policy}: {part}");
        // Alone, the other one has the device.
        for (session, _) in &sessions[1..] {
            let id = bench.id(*session);
            bench.core.detach(bench.now, id);
        }
        bench.pass(200 * MS);
        let (before, had) = device_ns(&mut bench);
        busy(&mut bench, &sessions[..1], 100);
        let (after, has) = device_ns(&mut bench);
        assert_eq!(has["one"] - had["one"], after - before, "{policy}");
        assert!(after - before > 99 * MS, "{policy}: busy for {}", after - before);
    }
}

#[test]
fn the_books_tell_bytes_memory_and_operators() {
    let mut bench = Bench::new(PACED, "fifo");
    tenant(&mut bench, "one", TenantConfig::default());
    let session = open(&mut bench, "one");
    let addr = bench.malloc(session, 1 << 30);
    let source = vec![7u8; 1024];
    for _ in 0..3 {
        bench.call(session, |reply| Record::CopyIn {
            dst: addr,
            source: HostSource::Inline(&source),
            stream: None,
            reply: Some(reply),
        });
    }
    bench.read(session, addr, 512).unwrap();
    bench.op(session, 0, &add(addr, addr, addr, &[1 << 20]));
    bench.sync(session, 0);
    let start = bench.now;
    bench.pass(5_000 * MS);
    let held_s = (bench.now - start) / 1_000_000_000;
    bench.free(session, addr);
    bench.pass(3_000 * MS);
    let usage = bench.core.books().tenants["one"];
    assert_eq!((usage.bytes_in, usage.bytes_out, usage.operators), (3 * 1024, 512, 5));
    // Two tensors read, one written.
    assert_eq!(usage.hbm_bytes, 3 * 1024 + 512 + 3 * (4 << 20));
    assert_eq!(usage.memory_byte_seconds >> 30, held_s, "a GiB for five seconds, none since");
    let transfer: u64 = usage.device_ns.iter().map(|classes| classes[2]).sum();
    let vector: u64 = usage.device_ns.iter().map(|classes| classes[1]).sum();
    assert!(transfer > 0 && vector > 0 && transfer + vector == usage.device_total_ns(), "{usage:?}");
}

#[test]
fn the_dead_are_charged_for_what_the_device_still_runs() {
    let mut bench = Bench::new(PACED, "passthrough");
    tenant(&mut bench, "gone", TenantConfig::default());
    let session = open(&mut bench, "gone");
    let matrix = bench.malloc(session, 64 * MIB);
    bench.op(session, 0, &matmul(matrix, matrix, matrix, 4096));
    let id = bench.id(session);
    bench.core.detach(bench.now, id);
    bench.core.remove_tenant(bench.now, "gone").unwrap();
    bench.pass(10 * MS);
    let (busy, used) = device_ns(&mut bench);
    assert!(busy > MS / 10, "{busy}");
    assert_eq!(used["gone"], busy);
}

//! What clients leave in the daemon: nothing.

use std::process::Command;

use serde_json::Value;
use stack::{Daemon, Held};
use system_tests::{FUNCTIONAL, wait_for};

/// Starts and kills `count` clients, and waits until the daemon has none.
fn kill_clients(daemon: &Daemon, count: u32, seed: u32) -> Value {
    let script = stack::source_root().unwrap().join("tests/python/killed_clients.py");
    let out = Command::new(stack::program_path("vnpu").unwrap())
        .args(["run", "--socket"])
        .arg(&daemon.socket)
        .args(["--", "python3"])
        .arg(script)
        .args([count.to_string(), seed.to_string()])
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{errors}\n{}", daemon.program.output());
    wait_for("the daemon drops every session", || {
        daemon.status().is_ok_and(|s| s["sessions"].as_array().is_some_and(Vec::is_empty) && s["in_flight"] == 0)
    });
    daemon.status().unwrap()
}

/// A thousand processes die at random moments: opening, allocating, copying, computing.
#[test]
fn a_thousand_killed_clients_leave_the_daemon_as_it_was() {
    let dir = stack::scratch().unwrap();
    let idle = |daemon: &Daemon, descriptors| {
        wait_for("the daemon closes what it opened", || {
            Held::by(daemon.program.pid()).unwrap().descriptors == descriptors
        });
        Held::by(daemon.program.pid()).unwrap()
    };
    let daemon = Daemon::start(dir.path(), FUNCTIONAL, "phase").unwrap();
    let fresh = Held::by(daemon.program.pid()).unwrap();
    // Buffers grow to what the load needs; from then on they stay.
    let warm = kill_clients(&daemon, 200, 1);
    let before = idle(&daemon, fresh.descriptors);
    let status = kill_clients(&daemon, 1000, 2);
    let after = idle(&daemon, fresh.descriptors);
    println!("before {before:?}, after {after:?}");

    let sessions = |s: &Value| s["sessions_total"].as_u64().unwrap();
    assert!(sessions(&status) - sessions(&warm) > 500, "most clients got as far as a session: {status}");
    let done =
        |s: &Value| s["phases"].as_array().unwrap().iter().map(|p| p["completed"].as_u64().unwrap()).sum::<u64>();
    assert!(done(&status) - done(&warm) > 1000, "they computed: {status}");
    assert_eq!(status["memory"]["used_bytes"], 0, "{status}");
    assert_eq!(status["violations_total"], 0, "a death is not a violation: {status}");
    // The admin API's thread pool grows and shrinks by itself; a session has no thread of its own.
    assert!(after.threads <= before.threads + 2, "{before:?} {after:?}");
    // An allocator keeps a few mappings of its own; a session has at least one, so a leak would show as hundreds.
    assert!(after.mappings < before.mappings + 50, "{before:?} {after:?}");
    // A session's shared memory or tables left behind would be tens of KiB each.
    assert!(after.resident_kib < before.resident_kib + 8 * 1024, "{before:?} {after:?}");
}

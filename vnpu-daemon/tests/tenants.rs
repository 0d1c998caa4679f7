//! Tenants of the real program: sockets of their own, limits, shares of a paced device over ten seconds, and a ledger that goes on
//! after `kill -9`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use acl_abi::{Arg, DataType, OpCall, TensorDesc, ops};
use serde_json::{Value, json};
use session::{Client, ConnectOptions};
use stack::{Http, Program};
use wire::Record;

const PACED: &str = "Ascend910B3:timing:paced:omega=0.5";
const MIB: u64 = 1 << 20;

struct Daemon {
    program: Program,
    admin: Http,
}

impl Daemon {
    fn start(dir: &Path, policy: &str) -> Self {
        let file = dir.join("tenants.toml");
        if !file.exists() {
            let text = "[tenants.one]\n[tenants.three]\nweight = 3\n[tenants.small]\nmemory_limit_bytes = 1048576\n";
            std::fs::write(&file, text).unwrap();
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_vnpu-daemon"));
        command.arg("--socket").arg(dir.join("npu0.sock")).args(["--device", PACED, "--policy", policy]);
        command.args(["--admin", "127.0.0.1:0"]).arg("--tenants").arg(&file);
        command.arg("--tenant-sockets").arg(dir.join("tenants")).arg("--ledger").arg(dir.join("usage.ledger"));
        let program = Program::start("vnpu-daemon", command).unwrap();
        let admin = Http::new(&program.ready_field("admin").unwrap());
        Self { program, admin }
    }

    fn usage(&self) -> Value {
        self.admin.get_json("/v1/usage").unwrap()
    }
}

fn socket(dir: &Path, tenant: &str) -> PathBuf {
    dir.join("tenants").join(tenant).join("npu.sock")
}

fn connect(dir: &Path, tenant: &str) -> Client {
    Client::connect(&socket(dir, tenant), &ConnectOptions::default()).unwrap()
}

fn device_ns(usage: &Value, tenant: &str) -> u64 {
    usage["tenants"][tenant]["device_ns"].as_u64().unwrap_or(0)
}

fn sum_ns(usage: &Value) -> u64 {
    usage["tenants"].as_object().unwrap().values().map(|t| t["device_ns"].as_u64().unwrap()).sum()
}

fn busy_ns(usage: &Value) -> u64 {
    usage["busy_ns"].as_u64().unwrap()
}

/// A backlog of products of about half a millisecond each until told to stop; ends with the daemon.
fn load(client: &Client, over: &AtomicBool) {
    let Ok(reply) = client.call(|reply| Record::Malloc { size: 32 * MIB, reply }) else { return };
    let matrix = reply.payload[0];
    let mut call = OpCall::new(ops::aclnnMatmul);
    for _ in 0..3 {
        call.push_tensor(Some(TensorDesc::contiguous(matrix, DataType::BF16, &[4096, 4096])));
    }
    call.push(Arg::Int(0));
    while !over.load(Ordering::Relaxed) {
        for _ in 0..64 {
            if client.post(&Record::Op { stream: 0 }, Some(&call)).is_err() {
                return;
            }
        }
        // Two batches ahead, so that the device always has the next one.
        std::thread::sleep(Duration::from_millis(15));
    }
}

/// Says that it is over when it goes, also with a panic: threads of a scope are waited for.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs loads of tenants side by side while `during` runs.
fn loaded<T>(dir: &Path, tenants: &[&str], during: impl FnOnce() -> T) -> T {
    let over = AtomicBool::new(false);
    let clients: Vec<Client> = tenants.iter().map(|tenant| connect(dir, tenant)).collect();
    std::thread::scope(|scope| {
        for client in &clients {
            scope.spawn(|| load(client, &over));
        }
        let _ends = Ends(&over);
        during()
    })
}

#[test]
fn a_tenant_over_its_limit_gets_207001_and_its_neighbour_nothing() {
    let dir = stack::scratch().unwrap();
    let daemon = Daemon::start(dir.path(), "fifo");
    let (small, other) = (connect(dir.path(), "small"), connect(dir.path(), "one"));
    let malloc = |client: &Client, size| client.call(|reply| Record::Malloc { size, reply }).unwrap();
    let refused = malloc(&small, 2 * MIB);
    assert_eq!(refused.status, 207_001);
    assert!(refused.text.contains("limit of 1048576 bytes"), "{}", refused.text);
    assert_eq!(malloc(&other, 64 * MIB).status, 0);
    let status = daemon.admin.get_json("/v1/status").unwrap();
    let of =
        |tenant: &str| status["sessions"].as_array().unwrap().iter().find(|s| s["tenant"] == tenant).unwrap().clone();
    assert_eq!((&of("small")["faults"], &of("one")["faults"]), (&json!(1), &json!(0)));
    // Live: a higher limit counts at once.
    let body = json!({ "memory_limit_bytes": 4 * MIB }).to_string();
    assert_eq!(daemon.admin.send("PUT", "/v1/tenants/small", &body).unwrap().0, 200);
    assert_eq!(malloc(&small, 2 * MIB).status, 0);
}

#[test]
fn tenants_come_and_go_over_the_admin_api() {
    let dir = stack::scratch().unwrap();
    let daemon = Daemon::start(dir.path(), "fifo");
    let send = |method: &str, path: &str, body: &str| daemon.admin.send(method, path, body).unwrap();
    assert!(Client::connect(&socket(dir.path(), "late"), &ConnectOptions::default()).is_err());
    let (status, body) = send("PUT", "/v1/tenants/late", r#"{"weight":5}"#);
    assert_eq!(status, 200, "{body}");
    let late = connect(dir.path(), "late");
    let tenants = daemon.admin.get_json("/v1/tenants").unwrap();
    let shown = tenants.as_array().unwrap().iter().find(|t| t["tenant"] == "late").unwrap();
    assert_eq!((&shown["config"]["weight"], &shown["sessions"]), (&json!(5), &json!(1)));
    assert_eq!(shown["socket"], socket(dir.path(), "late").to_str().unwrap());
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(dir.path().join("tenants/late")).unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o700, "the directory is this user's alone");
    for (method, path, body, status, says) in [
        ("DELETE", "/v1/tenants/late", "", 409, "1 processes attached"),
        ("DELETE", "/v1/tenants/default", "", 409, "stays"),
        ("DELETE", "/v1/tenants/nobody", "", 404, "there are: default"),
        ("GET", "/v1/tenants/nobody", "", 404, "PUT makes it"),
        ("PUT", "/v1/tenants/..", "{}", 400, "is no name for a tenant"),
        ("PUT", "/v1/tenants/a%2Fb", "{}", 400, "is no name for a tenant"),
        ("PUT", "/v1/tenants/a%20b", "{}", 400, "is no name for a tenant"),
        ("PUT", "/v1/tenants/a", r#"{"wieght":3}"#, 400, "wieght"),
        ("PUT", "/v1/tenants/a", r#"{"weight":0}"#, 400, "1 to 1000"),
        ("PUT", "/v1/tenants/a", r#"{"memory_guarantee_bytes":999999999999}"#, 409, "would be guaranteed"),
        ("PUT", "/v1/tenants/a", "[]", 400, ""),
        ("GET", "/v1/usage.csv?by=day", "", 400, "day"),
    ] {
        let (got, answer) = send(method, path, body);
        assert!(got == status && answer.contains(says), "{method} {path} {body}: {got} {answer}");
    }
    drop(late);
    let deadline = Instant::now() + Duration::from_secs(5);
    while send("DELETE", "/v1/tenants/late", "").0 != 204 {
        assert!(Instant::now() < deadline, "the client is gone");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(!socket(dir.path(), "late").exists());
    assert!(Client::connect(&socket(dir.path(), "late"), &ConnectOptions::default()).is_err());
}

#[test]
fn shares_of_a_paced_device_are_the_weights_over_ten_seconds() {
    let dir = stack::scratch().unwrap();
    let daemon = Daemon::start(dir.path(), "phase");
    loaded(dir.path(), &["one", "three"], || {
        std::thread::sleep(Duration::from_millis(500));
        let before = daemon.usage();
        std::thread::sleep(Duration::from_secs(10));
        let after = daemon.usage();
        let had = |tenant: &str| (device_ns(&after, tenant) - device_ns(&before, tenant)) as f64;
        let busy = (busy_ns(&after) - busy_ns(&before)) as f64;
        assert!(busy > 9.8e9, "busy for {busy}");
        let part = had("three") / busy;
        assert!((part - 0.75).abs() < 0.02, "{part}");
        assert!((had("one") + had("three") - busy).abs() < 1.0, "to the nanosecond");
    });
    let (alone, busy) = loaded(dir.path(), &["one"], || {
        // What the others queued is dropped with them.
        std::thread::sleep(Duration::from_millis(300));
        let before = daemon.usage();
        std::thread::sleep(Duration::from_secs(1));
        let after = daemon.usage();
        (device_ns(&after, "one") - device_ns(&before, "one"), busy_ns(&after) - busy_ns(&before))
    });
    assert!(alone == busy && busy > 980_000_000, "alone it has the device: {alone} of {busy}");
}

#[test]
fn the_ledger_goes_on_after_kill_9_and_a_torn_line_is_dropped_and_said() {
    let dir = stack::scratch().unwrap();
    let ledger = dir.path().join("usage.ledger");
    let mut daemon = Daemon::start(dir.path(), "fifo");
    // A second daemon may not write the same file.
    let mut second = Command::new(env!("CARGO_BIN_EXE_vnpu-daemon"));
    second.arg("--socket").arg(dir.path().join("npu1.sock")).args(["--device", PACED]).arg("--ledger").arg(&ledger);
    let out = second.output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success() && said.contains("another daemon writes it"), "{said}");

    let (last, at_kill) = loaded(dir.path(), &["one", "three"], || {
        std::thread::sleep(Duration::from_secs(2));
        let last = daemon.usage();
        let seen = Instant::now();
        std::thread::sleep(Duration::from_millis(600));
        let at_kill = seen.elapsed();
        daemon.program.kill();
        (last, at_kill)
    });
    assert!(busy_ns(&last) > 1_500_000_000, "{last}");
    assert_eq!(sum_ns(&last), busy_ns(&last));
    // As if the daemon had been killed in the middle of a line.
    let whole = std::fs::read(&ledger).unwrap();
    assert!(whole.ends_with(b"\n"), "each line is written whole");
    let torn = [&whole[..], &whole[..40]].concat();
    std::fs::write(&ledger, torn).unwrap();

    let daemon = Daemon::start(dir.path(), "fifo");
    let deadline = Instant::now() + Duration::from_secs(5);
    while !daemon.program.output().contains("never finished") {
        assert!(Instant::now() < deadline, "it says that it drops a line: {}", daemon.program.output());
        std::thread::sleep(Duration::from_millis(5));
    }
    let on = daemon.usage();
    assert_eq!(sum_ns(&on), busy_ns(&on), "what is left sums up");
    // Everything up to a quarter of a second before the kill is there; a loaded machine may be late by as much again.
    let missing = (busy_ns(&last) + at_kill.as_nanos() as u64).saturating_sub(busy_ns(&on));
    assert!(missing < 600_000_000, "{missing} ns are missing");
    assert!(busy_ns(&on) >= busy_ns(&last));
    // And it grows from there.
    loaded(dir.path(), &["three"], || std::thread::sleep(Duration::from_secs(1)));
    let later = daemon.usage();
    assert!(device_ns(&later, "three") > device_ns(&on, "three") + 700_000_000, "{later}");
    assert_eq!(device_ns(&later, "one"), device_ns(&on, "one"));
    let csv = daemon.admin.get("/v1/usage.csv?by=hour").unwrap();
    assert!(csv.starts_with("from,to,tenant,device_s") && csv.contains(",one,") && csv.contains("*busy*"), "{csv}");
    // The page of metrics counts from the daemon's start.
    let metrics = daemon.admin.get("/metrics").unwrap();
    assert!(metrics.contains("vnpu_tenant_device_seconds_total{tenant=\"three\""), "{metrics}");
    assert!(!metrics.contains("vnpu_tenant_device_seconds_total{tenant=\"one\""), "{metrics}");
}

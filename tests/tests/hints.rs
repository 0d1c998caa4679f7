//! What a gateway says of single requests: it arrives whole, it changes what is dispatched, and nobody can abuse it.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Instant;

use serde_json::{Value, json};
use stack::{Completion, Daemon, Engine, Gateway, Http, Program, StreamEvent, Via};
use system_tests::wait_for;

/// Time passes as the modelled device takes it.
const PACED: &str = "Ascend910B3:timing:paced:omega=0.5";

/// A gateway before an engine with the shapes of Qwen2.5-7B. Fields drop in this order.
struct Tenant {
    gateway: Gateway,
    engine: Engine,
}

impl Tenant {
    fn new(dir: &tempfile::TempDir, daemon: &Daemon, name: &str) -> Self {
        let hints = dir.path().join(format!("{name}.sock"));
        let args = ["--model-preset", "qwen2.5-7b", "--load-format", "dummy", "--dtype", "bfloat16"];
        let more = ["--served-model-name", "m", "--max-num-seqs", "8"];
        let sizes = ["--kv-cache-memory-bytes", "2GiB", "--max-model-len", "20992"];
        let args: Vec<&str> = args.iter().chain(&more).chain(&sizes).copied().collect();
        let engine = Engine::start(&Via::Daemon(daemon), Some(&hints), &args).unwrap();
        let gateway = Gateway::start(&engine.http, Some(&hints), &["--trust-client-hints"]).unwrap();
        Self { gateway, engine }
    }
}

fn body(prompt_tokens: usize, max_tokens: usize) -> Value {
    let prompt: Vec<usize> = (0..prompt_tokens).map(|i| 1 + i % 900).collect();
    json!({ "model": "m", "prompt": prompt, "max_tokens": max_tokens })
}

fn start(http: &Http, prompt_tokens: usize, max_tokens: usize) -> Completion {
    http.stream("/v1/completions", &body(prompt_tokens, max_tokens)).unwrap()
}

fn first_token(stream: &mut Completion) -> Instant {
    match stream.next() {
        Some(Ok(StreamEvent::Text(_, at))) => at,
        other => panic!("no token: {other:?}"),
    }
}

fn requests(daemon: &Daemon) -> Vec<Value> {
    daemon.admin.get_json("/v1/requests").unwrap().as_array().unwrap().clone()
}

fn scheduling(daemon: &Daemon, name: &str) -> u64 {
    daemon.status().unwrap()["scheduling"][name].as_u64().unwrap()
}

#[test]
fn every_field_of_a_request_reaches_the_daemon() {
    let dir = stack::scratch().unwrap();
    // Under a policy that has no use for hints, too.
    let daemon = Daemon::start(dir.path(), PACED, "fifo").unwrap();
    let tenant = Tenant::new(&dir, &daemon, "a");
    let wishes =
        [("x-vnpu-priority", "7"), ("x-vnpu-tenant", "blue"), ("x-vnpu-ttft-ms", "400"), ("x-vnpu-tpot-ms", "30")];
    let http = wishes.iter().fold(tenant.gateway.http.clone(), |http, (name, value)| http.with_header(name, value));
    let mut stream = start(&http, 100, 2000);
    first_token(&mut stream);
    wait_for("progress", || requests(&daemon).first().is_some_and(|r| r["tokens"].as_u64() > Some(16)));
    let request = &requests(&daemon)[0];
    for (field, want) in [
        ("tenant", json!("blue")),
        ("state", json!("decode")),
        ("priority", json!(7)),
        ("prompt_tokens", json!(100)),
        ("max_tokens", json!(2000)),
        ("ttft_ns", json!(400_000_000)),
        ("tpot_ns", json!(30_000_000)),
    ] {
        assert_eq!(request[field], want, "{request}");
    }
    // Its operators are known to be its own: the prompt's and those of every token since.
    let (context, tokens) = (request["context"].as_u64().unwrap(), request["tokens"].as_u64().unwrap());
    assert!(context >= 100 + tokens - 1 && context <= 100 + tokens + 32, "{request}");
    drop(stream);
    wait_for("the request to be gone with its client", || requests(&daemon).is_empty());
    assert_eq!(scheduling(&daemon, "hints_expired"), 0, "the gateway said so itself");
}

#[test]
fn priority_and_deadline_of_single_requests_change_who_goes_first() {
    const PROMPT: usize = 9000;
    let dir = stack::scratch().unwrap();
    // Fairness between tenants must not decide this.
    let daemon = Daemon::start(dir.path(), PACED, "phase:fair_quantum_ms=600000").unwrap();
    let (early, late) = (Tenant::new(&dir, &daemon, "a"), Tenant::new(&dir, &daemon, "b"));
    let patient = ("x-vnpu-ttft-ms", "30000");
    for (wishes, late_first) in [
        (&[patient][..], false),
        (&[patient, ("x-vnpu-priority", "5")][..], true),
        (&[("x-vnpu-ttft-ms", "200")][..], true),
    ] {
        let with = |tenant: &Tenant, wishes: &[(&str, &str)]| {
            wishes.iter().fold(tenant.gateway.http.clone(), |http, (name, value)| http.with_header(name, value))
        };
        let ask = |http: Http| std::thread::spawn(move || first_token(&mut start(&http, PROMPT, 2)));
        let first = ask(with(&early, &[patient]));
        wait_for("the first prompt to run", || requests(&daemon).iter().any(|r| r["steps"] == 1));
        let second = ask(with(&late, wishes));
        let (early_at, late_at) = (first.join().unwrap(), second.join().unwrap());
        assert_eq!(late_at < early_at, late_first, "{wishes:?}");
        wait_for("both to be over", || requests(&daemon).is_empty());
    }
}

/// What a gateway can do wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wrong {
    Killed,
    Stopped,
}

fn signal(program: &Program, name: &str) {
    let status = Command::new("kill").args([name, &program.pid().to_string()]).status().unwrap();
    assert!(status.success());
}

#[test]
fn a_gateway_that_is_killed_or_stopped_holds_nothing_back() {
    for wrong in [Wrong::Killed, Wrong::Stopped] {
        let dir = stack::scratch().unwrap();
        let daemon = Daemon::start(dir.path(), PACED, "phase:lease_ms=1500").unwrap();
        let (mut bad, good) = (Tenant::new(&dir, &daemon, "bad"), Tenant::new(&dir, &daemon, "good"));
        // The most that a request can ask for.
        let greedy = bad.gateway.http.with_header("x-vnpu-priority", "255").with_header("x-vnpu-tpot-ms", "1");
        let mut stream = start(&greedy.with_header("x-vnpu-ttft-ms", "1"), 500, 20_000);
        first_token(&mut stream);
        wait_for("the daemon to know", || requests(&daemon).len() == 1);
        match wrong {
            Wrong::Killed => bad.gateway.program.kill(),
            Wrong::Stopped => signal(&bad.gateway.program, "-STOP"),
        }
        wait_for("the lease to run out", || {
            // Leases end when something happens: the other tenant's work is enough.
            good.gateway.http.post_json("/v1/completions", &body(50, 2)).unwrap();
            requests(&daemon).iter().all(|r| r["priority"] == 0)
        });
        assert!(scheduling(&daemon, "hints_expired") >= 1, "{wrong:?}: and it is counted");
        // The other tenant is served, whatever the bad one's engine does meanwhile.
        let answer = good.gateway.http.post_json("/v1/completions", &body(2000, 20)).unwrap();
        assert_eq!(answer["usage"]["completion_tokens"], 20, "{wrong:?}");
        // Two seconds is the most that the policy may hold anything back.
        let longest = |h: &Value| h["longest_ns"].as_u64().unwrap();
        let longest = daemon.status().unwrap()["holds"].as_array().unwrap().iter().map(longest).max();
        assert!(longest < Some(2_500_000_000), "{wrong:?}: held back for {longest:?} ns");
        if wrong == Wrong::Stopped {
            signal(&bad.gateway.program, "-CONT");
        }
    }
}

#[test]
fn nonsense_on_the_hint_socket_changes_nothing_for_long() {
    let dir = stack::scratch().unwrap();
    let daemon = Daemon::start(dir.path(), PACED, "phase:lease_ms=1500").unwrap();
    let (bad, good) = (Tenant::new(&dir, &daemon, "bad"), Tenant::new(&dir, &daemon, "good"));
    let mut socket = UnixStream::connect(bad.engine.hints.as_ref().unwrap()).unwrap();
    let before = scheduling(&daemon, "requests");
    let long = "x".repeat(100_000);
    let nonsense =
        ["{}", "garbage", "\u{0}\u{1}\u{2}", r#"{"hint":"nap","request":1}"#, r#"{"hint":"admitted"}"#, &long];
    for line in nonsense {
        writeln!(socket, "{line}").unwrap();
    }
    let refused = || daemon.status().unwrap()["hints_refused_total"].as_u64().unwrap();
    wait_for("every line to be counted", || refused() == nonsense.len() as u64);
    // A lie in good form: a request that nobody serves wants everything at once.
    let lie = json!({
        "hint": "admitted", "request": 1, "prompt_tokens": 4_000_000_000u32, "max_tokens": 4_000_000_000u32,
        "ttft_deadline_ms": 1, "tpot_target_ms": 1, "priority": 255, "tenant": "nobody"
    });
    writeln!(socket, "{lie}").unwrap();
    wait_for("the lie to arrive", || scheduling(&daemon, "requests") == before + 1);
    let answer = good.gateway.http.post_json("/v1/completions", &body(1000, 8)).unwrap();
    assert_eq!(answer["usage"]["completion_tokens"], 8);
    wait_for("the lie to be forgotten", || {
        bad.gateway.http.post_json("/v1/completions", &body(50, 2)).unwrap();
        requests(&daemon).iter().all(|r| r["tenant"] != "nobody")
    });
    assert!(scheduling(&daemon, "hints_expired") >= 1);
    wait_for("every request to be over", || scheduling(&daemon, "requests") == 0);
}

#[test]
fn hints_outlive_a_change_of_policy() {
    let dir = stack::scratch().unwrap();
    let daemon = Daemon::start(dir.path(), PACED, "fifo").unwrap();
    let tenant = Tenant::new(&dir, &daemon, "a");
    let mut stream = start(&tenant.gateway.http.with_header("x-vnpu-tpot-ms", "40"), 100, 2000);
    first_token(&mut stream);
    let (status, text) = daemon.admin.send("PUT", "/v1/policy", "phase:lease_ms=60000").unwrap();
    assert_eq!(status, 200, "{text}");
    wait_for("more tokens", || requests(&daemon).first().is_some_and(|r| r["tokens"].as_u64() > Some(16)));
    assert_eq!(scheduling(&daemon, "requests"), 1);
    assert_eq!(scheduling(&daemon, "hints_expired"), 0);
}

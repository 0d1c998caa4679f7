//! What the daemon decided, told by the real programs: records replay, timelines keep the format and add up, `vnpu top` shows it.

use std::process::{Command, Output};
use std::time::Duration;

use explain::check::check;
use serde_json::{Value, json};
use stack::{Daemon, Engine, Gateway, Via, program_path};

const QWEN: [&str; 8] =
    ["--model-preset", "qwen2.5-7b", "--load-format", "dummy", "--dtype", "bfloat16", "--served-model-name", "m"];

fn vnpu(daemon: &Daemon, arguments: &[&str]) -> Output {
    let mut command = Command::new(program_path("vnpu").unwrap());
    command.args(arguments);
    if !arguments.contains(&"replay") && !arguments.contains(&"--from") {
        command.args(["--admin", daemon.admin.authority()]);
    }
    command.output().unwrap()
}

fn works(daemon: &Daemon, arguments: &[&str]) -> String {
    let out = vnpu(daemon, arguments);
    assert!(out.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

fn fails(daemon: &Daemon, arguments: &[&str], with: &str) {
    let out = vnpu(daemon, arguments);
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success() && text.contains(with), "{arguments:?}: {text}");
}

/// Requests that overlap: prompts come while others decode.
fn load(gateway: &Gateway, requests: u32) {
    std::thread::scope(|scope| {
        for i in 0..requests {
            scope.spawn(move || {
                std::thread::sleep(Duration::from_millis(u64::from(i) * 60));
                let prompt: Vec<u32> = (0..600).map(|k| 1 + (k * 7 + i * 13) % 900).collect();
                let body = json!({ "model": "m", "prompt": prompt, "max_tokens": 40, "ignore_eos": true });
                gateway.http.stream("/v1/completions", &body).unwrap().text().unwrap();
            });
        }
    });
}

#[test]
fn what_the_daemon_decided_under_load_replays_and_adds_up() {
    let dir = stack::scratch().unwrap();
    let daemon = Daemon::start(dir.path(), "Ascend910B3:timing:paced:omega=0.5", "phase").unwrap();
    let file = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    // From before the first operator on.
    assert_eq!(works(&daemon, &["record", "--start", "--mib", "64"]), "recording the last 64 MiB\n");
    let hints = dir.path().join("hints.sock");
    let engine = Engine::start(&Via::Daemon(&daemon), Some(&hints), &QWEN).unwrap();
    let gateway = Gateway::start(&engine.http, Some(&hints), &[]).unwrap();
    load(&gateway, 8);

    let (whole, trace) = (file("whole.rec"), file("trace.json"));
    works(&daemon, &["record", "--out", &whole]);
    let status = daemon.status().unwrap();
    let text = works(&daemon, &["replay", &whole]);
    assert!(text.starts_with("the same ") && text.contains("policy phase") && text.contains("8 requests"), "{text}");
    assert!(text.contains("held back"), "{text}");
    works(&daemon, &["trace", "--from", &whole, "--out", &trace]);
    let summary = check(&std::fs::read_to_string(&trace).unwrap()).unwrap();
    // Busy time and hold-backs are the daemon's own counters.
    for phase in status["phases"].as_array().unwrap() {
        let name = phase["phase"].as_str().unwrap();
        let shown = summary.by_category.get(name).copied().unwrap_or_default();
        let counted = (phase["measured_ns"].as_u64().unwrap(), phase["completed"].as_u64().unwrap());
        assert_eq!(shown, counted, "{name}");
    }
    for hold in status["holds"].as_array().unwrap() {
        let (total, count, _) = summary.holds.get(hold["reason"].as_str().unwrap()).copied().unwrap_or_default();
        assert_eq!((Some(total), Some(count)), (hold["total_ns"].as_u64(), hold["count"].as_u64()), "{hold}");
    }
    assert!(summary.by_category["prefill"].0 > 0 && summary.by_category["decode"].0 > 0);
    assert_eq!((summary.spans["request"], summary.spans["prefill"], summary.spans["decode"]), (8, 8, 8));
    let process = format!("session 1 (engine, pid {})", status["sessions"][0]["pid"]);
    assert!(summary.processes.contains(&process), "{process} is not in {:?}", summary.processes);

    // A decision in the middle, in words and as JSON.
    let replayed: Value = serde_json::from_str(&works(&daemon, &["replay", &whole, "--json"])).unwrap();
    assert_eq!(replayed["same_decisions"], true);
    let middle = (replayed["began_ns"].as_u64().unwrap() + replayed["ended_ns"].as_u64().unwrap()) as f64 / 2e9;
    let text = works(&daemon, &["replay", &whole, "--at", &format!("{middle:.6}")]);
    assert!(text.starts_with("at ") && (text.contains("chosen") || text.contains("held back")), "{text}");
    fails(&daemon, &["replay", &whole, "--at", "100000"], "the record goes from");

    // Damaged, cut off, of another version.
    let bytes = std::fs::read(&whole).unwrap();
    let broken = file("broken.rec");
    for (change, words) in [
        (Box::new(|b: &mut Vec<u8>| b[20_000] ^= 1) as Box<dyn Fn(&mut Vec<u8>)>, "damaged"),
        (Box::new(|b: &mut Vec<u8>| b.truncate(20_000)), "damaged or cut off"),
        (Box::new(|b: &mut Vec<u8>| b[7] = b'1'), "version '1'"),
        (Box::new(|b: &mut Vec<u8>| b[0] = b'P'), "no decision record"),
    ] {
        let mut bytes = bytes.clone();
        change(&mut bytes);
        std::fs::write(&broken, bytes).unwrap();
        fails(&daemon, &["replay", &broken], words);
    }

    // Without a ring: the next second, under load, and nothing is kept afterwards.
    assert_eq!(works(&daemon, &["record", "--stop"]), "not recording any more\n");
    let (second, live) = (file("second.rec"), file("live.json"));
    std::thread::scope(|scope| {
        scope.spawn(|| load(&gateway, 24));
        std::thread::sleep(Duration::from_millis(300));
        works(&daemon, &["record", "--seconds", "1", "--out", &second]);
        works(&daemon, &["trace", "--seconds", "1", "--out", &live]);
    });
    let text = works(&daemon, &["replay", &second]);
    assert!(text.starts_with("the same "), "{text}");
    check(&std::fs::read_to_string(&live).unwrap()).unwrap();
    assert_eq!(daemon.status().unwrap()["recording"], Value::Null);
}

#[test]
fn top_shows_sessions_and_says_when_a_daemon_is_not_there() {
    let dir = stack::scratch().unwrap();
    let mut daemon = Daemon::start(dir.path(), "Ascend910B3:timing:paced:omega=0.5", "phase").unwrap();
    let hints = dir.path().join("hints.sock");
    let engine = Engine::start(&Via::Daemon(&daemon), Some(&hints), &QWEN).unwrap();
    let gateway = Gateway::start(&engine.http, Some(&hints), &[]).unwrap();
    let view: Value = std::thread::scope(|scope| {
        scope.spawn(|| load(&gateway, 24));
        std::thread::sleep(Duration::from_millis(500));
        serde_json::from_str(&works(&daemon, &["top", "--once", "--json"])).unwrap()
    });
    assert_eq!((&view["policy"], &view["lost"]), (&json!("phase"), &Value::Null));
    assert!(view["busy"].as_f64().is_some_and(|busy| (0.05..=1.05).contains(&busy)), "{view}");
    let session = &view["sessions"][0];
    assert_eq!((&session["process"], session["memory_bytes"].as_u64() > Some(1 << 30)), (&json!("engine"), true));
    let phase = |name: &str| view["phases"].as_array().unwrap().iter().find(|p| p["phase"] == name).unwrap().clone();
    assert!(phase("prefill")["operators_per_s"].as_f64() > Some(0.0), "{view}");
    assert!(phase("decode")["operators_per_s"].as_f64() > Some(0.0), "{view}");

    let lines = works(&daemon, &["top", "--once"]);
    assert!(lines.starts_with(daemon.admin.authority()) && lines.contains("session 1 engine"), "{lines}");
    // TTFT and TPOT of the minute, from the gateway's hints, within what the requests can have taken.
    let view: Value = serde_json::from_str(&works(&daemon, &["top", "--once", "--json"])).unwrap();
    let status = daemon.status().unwrap();
    let requests = &status["requests"];
    assert_eq!(
        (&requests["finished"], &requests["decoding"], &requests["ttft"]["count"]),
        (&json!(24), &json!(0), &json!(24))
    );
    let ttft_ms = requests["ttft"]["sum_ns"].as_f64().unwrap() / 24e6;
    assert!((1.0..60_000.0).contains(&ttft_ms), "{ttft_ms} ms");
    assert_eq!(view["requests"]["aborted"], 0);

    let admin = daemon.admin.authority().to_owned();
    daemon.program.stop();
    fails(&daemon, &["top", "--once"], &format!("no answer from a daemon at {admin}"));
    fails(&daemon, &["record", "--out", "/dev/null"], &format!("no answer from a daemon at {admin}"));
}

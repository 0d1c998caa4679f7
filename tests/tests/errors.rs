//! Bad input gets a clear error that says what to do.

use std::process::{Command, Output};

use serde_json::{Value, json};
use stack::{Daemon, Engine, Via, program_path};
use system_tests::{FUNCTIONAL, MODEL, Path, tiny_args};

fn run(program: &str, args: &[&str]) -> Output {
    Command::new(program_path(program).unwrap()).args(args).output().unwrap()
}

/// What an engine says that does not start.
fn engine_error(via: &Via<'_>, args: &[&str]) -> String {
    match Engine::start(via, None, args) {
        Ok(_) => panic!("the engine started with {args:?}"),
        Err(error) => format!("{error:#}"),
    }
}

#[track_caller]
fn says(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "no `{word}` in: {text}");
    }
    assert!(!text.contains("panicked"), "{text}");
}

#[test]
fn wrong_checkpoint() {
    let dir = stack::scratch().unwrap();
    let direct = Via::Direct(FUNCTIONAL);
    let at = dir.path().to_str().unwrap();
    says(&engine_error(&direct, &["--model", at]), &["config.json"]);
    std::fs::write(dir.path().join("config.json"), r#"{"model_type":"mamba","architectures":["MambaForCausalLM"]}"#)
        .unwrap();
    says(&engine_error(&direct, &["--model", at]), &["MambaForCausalLM", "Qwen2ForCausalLM", "LlamaForCausalLM"]);
    let tiny = system_tests::tiny_model();
    std::fs::copy(tiny.join("config.json"), dir.path().join("config.json")).unwrap();
    says(&engine_error(&direct, &["--model", at]), &["safetensors"]);
    says(&engine_error(&direct, &["--model-preset", "gpt-99", "--load-format", "dummy"]), &["gpt-99", "qwen2.5-7b"]);
}

#[test]
fn missing_daemon_and_device() {
    let args = tiny_args(&[]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut command = vec!["run", "--socket", "/nonexistent/npu0.sock", "--"];
    let engine = program_path("engine").unwrap();
    command.push(engine.to_str().unwrap());
    command.extend(&args);
    let out = run("vnpu", &command);
    assert!(!out.status.success());
    says(&String::from_utf8_lossy(&out.stderr), &["/nonexistent/npu0.sock", "vnpu-daemon"]);
    says(&engine_error(&Via::Direct("Ascend910Z9:functional"), &args), &["Ascend910Z9", "Ascend910B3"]);
    // Without `vnpu run` there is no AscendCL at all.
    let out = Command::new(&engine).args(&args).env_remove("LD_LIBRARY_PATH").output().unwrap();
    assert!(!out.status.success());
    says(&String::from_utf8_lossy(&out.stderr), &["libascendcl.so"]);
}

#[test]
fn daemon_refuses_nonsense() {
    let dir = stack::scratch().unwrap();
    let socket = dir.path().join("s");
    let socket = socket.to_str().unwrap();
    for (device, policy, words) in [
        ("Ascend310", "fifo", &["Ascend310", "Ascend910B3"][..]),
        ("Ascend910B3:fast", "fifo", &["fast", "functional", "timing"]),
        ("Ascend910B3:timing:paced:omega=2", "fifo", &["omega", "2"]),
        ("Ascend910B3:functional", "lottery", &["lottery", "fifo", "phase", "passthrough"]),
    ] {
        let out = run("vnpu-daemon", &["--socket", socket, "--device", device, "--policy", policy]);
        assert!(!out.status.success(), "{device} {policy}");
        says(&String::from_utf8_lossy(&out.stderr), words);
    }
    let _first = Daemon::start(dir.path(), FUNCTIONAL, "fifo").unwrap();
    let taken = dir.path().join("npu0.sock");
    let out = run("vnpu-daemon", &["--socket", taken.to_str().unwrap(), "--device", FUNCTIONAL, "--policy", "fifo"]);
    assert!(!out.status.success(), "a second daemon took over a live socket");
    says(&String::from_utf8_lossy(&out.stderr), &["npu0.sock"]);
}

#[test]
fn out_of_device_memory() {
    let args = ["--model-preset", "qwen2.5-7b", "--load-format", "dummy", "--dtype", "bfloat16"];
    says(&engine_error(&Via::Direct("Ascend910B3:timing:hbm=4"), &args), &["207001"]);
}

#[test]
fn gateway_and_vnpu_arguments() {
    let out = run("gateway", &["--listen", "127.0.0.1:0", "--upstream", "nowhere"]);
    assert!(!out.status.success());
    says(&String::from_utf8_lossy(&out.stderr), &["nowhere", "host:port"]);
    let out = run("vnpu", &["run", "--direct", FUNCTIONAL, "--", "no-such-command-here"]);
    assert_eq!(out.status.code(), Some(127));
    says(&String::from_utf8_lossy(&out.stderr), &["no-such-command-here"]);
}

#[test]
fn bad_requests() {
    let path = Path::tiny(&["--max-model-len", "256"]);
    let long: Vec<u32> = vec![5; 300];
    let cases: [(&str, String, u16, &[&str]); 6] = [
        ("/v1/completions", "{\"prompt\": ".into(), 400, &["line 1"]),
        ("/v1/completions", json!({ "model": MODEL, "prompt": long }).to_string(), 400, &["300", "256"]),
        ("/v1/completions", json!({ "model": "gpt-99", "prompt": "x" }).to_string(), 404, &["gpt-99"]),
        (
            "/v1/completions",
            json!({ "model": MODEL, "prompt": "x", "temperature": -1 }).to_string(),
            400,
            &["temperature"],
        ),
        ("/v1/chat/completions", json!({ "model": MODEL, "messages": [] }).to_string(), 400, &["messages"]),
        ("/v1/completions", json!({ "model": MODEL, "prompt": [999999] }).to_string(), 400, &["999999"]),
    ];
    for (endpoint, body, want, words) in cases {
        let (status, text) = path.gateway.http.send("POST", endpoint, &body).unwrap();
        assert_eq!(status, want, "{body}: {text}");
        let answer: Value = serde_json::from_str(&text).unwrap();
        let error = answer["error"].as_object().unwrap_or_else(|| panic!("{text}"));
        assert!(["message", "type", "param", "code"].iter().all(|k| error.contains_key(*k)), "{text}");
        says(error["message"].as_str().unwrap(), words);
    }
    let (status, _) = path.gateway.http.send("GET", "/v1/nothing", "").unwrap();
    assert_eq!(status, 404);
}

#[test]
fn policy_command_shows_changes_and_passes_on_what_the_daemon_says() {
    let dir = stack::scratch().unwrap();
    let daemon = Daemon::start(dir.path(), FUNCTIONAL, "fifo").unwrap();
    let admin = daemon.admin.authority();
    let policy = |args: &[&str]| run("vnpu", &[&["policy", "--admin", admin], args].concat());
    let out = policy(&[]);
    says(&String::from_utf8_lossy(&out.stdout), &["fifo\n", "  tpot_ms=50", "  omega=0.5"]);
    for (set, want) in [("core-split:prefill_part=0.25", "core-split"), (r#"{"name":"quota","quota":3}"#, "quota")] {
        let out = policy(&["set", set]);
        says(&String::from_utf8_lossy(&out.stdout), &[want]);
        assert_eq!(daemon.status().unwrap()["policy"]["name"], want);
    }
    let shown: Value = serde_json::from_slice(&policy(&["show", "--json"]).stdout).unwrap();
    assert_eq!((&shown["name"], &shown["quota"]), (&json!("quota"), &json!(3)));
    let out = policy(&["set", "quota:quota=99"]);
    assert!(!out.status.success());
    says(&String::from_utf8_lossy(&out.stderr), &["quota = 99", "1 to 16"]);
    let nobody = run("vnpu", &["policy", "--admin", "127.0.0.1:1", "show"]);
    assert!(!nobody.status.success());
    says(&String::from_utf8_lossy(&nobody.stderr), &["127.0.0.1:1"]);
}

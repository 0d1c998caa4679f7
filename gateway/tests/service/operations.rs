//! What operators do and see: draining, stopping, the access log.

use super::*;

#[test]
fn drained_engine_finishes_what_it_has() {
    let (one, first) = held();
    let (two, second) = held();
    let gateway = configured(&[&one, &two], "", "");
    let admin = gateway.admin().unwrap();
    let drain = |name: &str, on: bool| {
        admin.send("PUT", &format!("/v1/engines/{name}"), &json!({ "draining": on }).to_string()).unwrap()
    };
    assert_eq!(drain("e1", true).0, 200);
    let running = Raw::send(&gateway.http, "/v1/completions", &[], &completion(3, 5, true));
    let mut e = next(&first);
    assert_eq!((drain("e0", true).0, drain("e1", false).0), (200, 200));
    let other = Raw::send(&gateway.http, "/v1/completions", &[], &completion(3, 5, false));
    finish(&mut next(&second));
    assert_eq!(Raw::head(other).status, 200);
    finish(&mut e);
    assert!(Raw::head(running).rest().ends_with("[DONE]\n\n"));
    assert_eq!(drain("e9", true).0, 404);
    assert_eq!(admin.send("PUT", "/v1/engines/e0", "{}").unwrap().0, 400);
}

#[test]
fn signal_to_stop_ends_the_gateway_with_its_last_stream() {
    let (engine, requests) = held();
    let mut gateway = gateway(&engine);
    let client = Raw::send(&gateway.http, "/v1/completions", &[], &completion(3, 5, true));
    let mut e = next(&requests);
    e.start_stream();
    e.token("a");
    let mut answer = Raw::head(client);
    assert!(answer.chunk().contains("\"a\""));
    let address = gateway.http.authority().to_owned();
    let ended = std::thread::spawn(move || gateway.program.stop());
    wait_for("no new connections", || std::net::TcpStream::connect(&address).is_err());
    e.token("b");
    e.end_stream();
    assert!(answer.rest().ends_with("[DONE]\n\n"));
    assert!(ended.join().unwrap().success());
}

#[test]
fn each_request_leaves_one_line_and_keeps_its_name() {
    let engine = upstream(|mut e| {
        assert_eq!(e.header("x-request-id"), Some("mine-1"));
        finish(&mut e);
    });
    let dir = stack::scratch().unwrap();
    let path = dir.path().join("access.log");
    let gateway = stack::Gateway::start(&engine, None, &["--access-log", path.to_str().unwrap()]).unwrap();
    let answer = Raw::post(&gateway.http, "/v1/completions", &["x-request-id: mine-1"], &completion(3, 5, false));
    assert_eq!(answer.header("x-request-id"), Some("mine-1"));
    let log = || std::fs::read_to_string(&path).unwrap_or_default();
    wait_for("the line", || log().ends_with('\n'));
    let line: Value = serde_json::from_str(log().trim()).unwrap();
    assert_eq!(
        (&line["request"], &line["end"], &line["output_tokens"]),
        (&json!("mine-1"), &json!("finished"), &json!(1))
    );
    assert_eq!((&line["status"], &line["estimated"]), (&json!(200), &json!(false)));
}

#[test]
fn check_of_a_file_names_the_line_of_a_mistake() {
    let dir = stack::scratch().unwrap();
    let path = dir.path().join("gateway.toml");
    let fine = "body_bytes_max = 10\n[[engines]]\naddress = \"127.0.0.1:1\"\n";
    for (text, words) in [
        (fine.to_owned(), &["fine: 1 engines, 0 tenants"][..]),
        (fine.replace("= 10", "= \"10\""), &["line 1", "body_bytes_max"]),
        (fine.replace("127.0.0.1:1", "nowhere"), &["line 3", "nowhere", "host:port"]),
        (format!("{fine}kind = \"vlm\""), &["line 4", "vlm", "vllm"]),
        (format!("{fine}daemon = \"here\""), &["line 4", "daemon", "here"]),
        (format!("{fine}[tiers.a]\nweight = 1\n[tiers.b]\nweight = 0\n"), &["line 7", "tier `b`"]),
        (format!("{fine}[[tenants]]\nname = \"t\"\nkey_sha256 = [\n \"x\"]\n"), &["line 7", "gateway key"]),
    ] {
        std::fs::write(&path, &text).unwrap();
        let mut command = std::process::Command::new(stack::program_path("gateway").unwrap());
        let output = command.arg("--check-config").arg("--config").arg(&path).output().unwrap();
        assert_eq!(output.status.success(), text == fine, "{text}");
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(words.iter().all(|word| said.contains(word)), "{words:?} in: {said}");
    }
}

#[test]
fn soft_limit_on_open_files_is_raised() {
    let engine = upstream(|mut e| finish(&mut e));
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "ulimit -Sn 64; exec \"$@\"", "sh"]).arg(stack::program_path("gateway").unwrap());
    command.args(["--listen", "127.0.0.1:0", "--upstream", engine.authority()]);
    let gateway = stack::Program::start("gateway", command).unwrap();
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", gateway.pid())).unwrap();
    let open_files = limits.lines().find_map(|l| l.strip_prefix("Max open files")).unwrap();
    let [soft, hard] = [0, 1].map(|i| open_files.split_whitespace().nth(i).unwrap());
    assert_eq!(soft, hard);
}

//! The API descriptions under `openapi/`: schemathesis, as published, holds the running servers against them, and the reference
//! pages are what they say.

use std::process::Command;

use stack::{Daemon, Gateway, Http};
use system_tests::{FUNCTIONAL, Path, python, reference};

/// Requests made up for each operation beside those that cover each rule of the description. Deterministic: the same in every run.
const EXAMPLES: &str = "20";

/// Runs schemathesis on those operations of `openapi/<api>.yaml` that `args` choose.
fn conforms(api: &str, server: &Http, args: &[&str]) {
    let python = python::with_requirements("tests/python/openapi.txt").unwrap();
    let description = stack::source_root().unwrap().join(format!("openapi/{api}.yaml"));
    let scratch = stack::scratch().unwrap();
    let mut command = Command::new(python.with_file_name("schemathesis"));
    command.current_dir(scratch.path()).arg("run").arg(description).args(["--url", server.url(), "--no-color"]);
    command.args(["--phases", "examples,coverage,fuzzing", "--max-examples", EXAMPLES, "--generation-deterministic"]);
    let out = command.args(args).output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{said}{}", String::from_utf8_lossy(&out.stderr));
    assert!(said.contains("Operations:") && !said.contains(" 0 selected"), "nothing was tested: {said}");
}

#[test]
fn daemon_answers_as_described() {
    let dir = stack::scratch().unwrap();
    let daemon = Daemon::start(dir.path(), FUNCTIONAL, "phase").unwrap();
    // What it records for one request takes as many seconds as that asks for.
    conforms("daemon", &daemon.admin, &["--exclude-operation-id", "getRecord"]);
}

#[test]
fn gateway_answers_as_described() {
    let path = Path::tiny(&[]);
    let file = path.dir.path().join("gateway.toml");
    std::fs::write(&file, format!("[[engines]]\nname = \"tiny\"\naddress = \"{}\"\n", path.engine.http.authority()))
        .unwrap();
    let gateway = Gateway::configured(&file, &[]).unwrap();
    conforms("gateway", &gateway.http, &["--exclude-tag", "admin"]);
    // What the console hears has no end.
    conforms(
        "gateway",
        &gateway.admin().unwrap(),
        &["--include-tag", "admin", "--exclude-operation-id", "consoleEvents"],
    );
}

#[test]
fn reference_pages_are_current() {
    for (path, text) in reference::pages().unwrap() {
        let have = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(have == text, "{} is not what openapi/ says: run `cargo xtask reference`", path.display());
    }
}

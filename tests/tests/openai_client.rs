//! The `openai` Python package, as published, chats with the gateway.

use std::process::Command;

use system_tests::{MODEL, Path, python};

#[test]
fn openai_package_chats_with_the_gateway() {
    let python = python::with_requirements("tests/python/requirements.txt").unwrap();
    let script = stack::source_root().unwrap().join("tests/python/openai_chat.py");
    let path = Path::tiny(&[]);
    let url = format!("{}/v1", path.gateway.http.url());
    let out = Command::new(python).arg(script).args([&url, MODEL]).output().unwrap();
    let errors = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{errors}\n{}", path.engine.program.output());
    println!("{}", String::from_utf8_lossy(&out.stdout));
}

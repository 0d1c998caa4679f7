//! A strict reader of event streams, in the manner of browsers and JS clients, reads what the gateway sends.

use std::process::Command;

use serde_json::Value;
use stack::Gateway;
use system_tests::{MODEL, Path};

#[test]
fn strict_event_stream_reader_follows_a_chat() {
    let path = Path::tiny(&[]);
    // Comments between the tokens, as often as the clock allows.
    let config = path.dir.path().join("gateway.toml");
    let engine = path.engine.http.authority();
    std::fs::write(&config, format!("[timeouts]\nkeep_alive_ms = 1\n[[engines]]\naddress = \"{engine}\"\n")).unwrap();
    let gateway = Gateway::configured(&config, &[]).unwrap();
    let script = stack::source_root().unwrap().join("tests/python/event_stream.py");
    for http in [&path.gateway.http, &gateway.http] {
        let out = Command::new("python3").arg(&script).args([http.authority(), MODEL]).output().unwrap();
        let errors = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{errors}\n{}", path.engine.program.output());
        let seen: Value = serde_json::from_slice(&out.stdout).unwrap();
        assert!(seen["answer"].as_str().is_some_and(|a| !a.is_empty()), "{seen}");
    }
}

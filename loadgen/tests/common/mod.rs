//! The real program, against its own mock.
#![allow(dead_code, reason = "each test program uses its part")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_loadgen");

/// A mock in a process of its own, ended when dropped.
pub struct Mock {
    pub child: Child,
    pub url: String,
}

impl Mock {
    pub fn start(flags: &[&str]) -> Self {
        let mut child = Command::new(PROGRAM)
            .args(["mock", "--listen", "127.0.0.1:0"])
            .args(flags)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.strip_prefix("ready ").unwrap_or_else(|| panic!("no ready line but `{line}`")).trim().to_owned();
        Self { child, url }
    }
}

impl Drop for Mock {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn loadgen(args: &[&str]) -> Output {
    Command::new(PROGRAM).args(args).output().unwrap()
}

/// Runs against `mock`; output and figures.
pub fn run(mock: &Mock, flags: &[&str]) -> (Output, Value) {
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("figures.json");
    let mut args = vec!["--base-url", &mock.url, "--no-progress", "--random-input-len", "8", "--json"];
    args.push(json.to_str().unwrap());
    args.extend(flags);
    let out = loadgen(&args);
    (out, figures(&json))
}

pub fn figures(path: &Path) -> Value {
    std::fs::read_to_string(path).map_or(Value::Null, |text| serde_json::from_str(&text).unwrap())
}

pub fn text(out: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

/// A value of a flat figures object.
pub fn number(figures: &Value, name: &str) -> f64 {
    figures[name].as_f64().unwrap_or_else(|| panic!("no {name} in {figures}"))
}

//! Dependencies point one way: the picture in `ARCHITECTURE.md`, checked against cargo's own graph.

use std::collections::BTreeSet;
use std::process::Command;

/// Each crate and the crates of ours it may depend on, build and test dependencies left aside.
const ALLOWED: &[(&str, &[&str])] = &[
    ("acl-abi", &[]),
    ("sse", &[]),
    ("openai", &[]),
    ("admission", &[]),
    ("wire", &["acl-abi"]),
    ("sched", &["acl-abi"]),
    ("session", &["acl-abi", "wire"]),
    ("device", &["acl-abi", "sched"]),
    ("sim", &["sched", "device"]),
    ("explain", &["sched"]),
    ("runtime", &["acl-abi", "wire", "sched", "device", "session"]),
    ("stack", &[]),
    ("probe", &[]),
    ("interposer", &["acl-abi", "wire", "session", "runtime", "device", "sched"]),
    ("vnpu-daemon", &["acl-abi", "wire", "sched", "device", "session", "runtime", "probe"]),
    ("vnpu", &["acl-abi", "sched", "explain"]),
    ("engine", &["acl-abi"]),
    ("gateway", &["wire", "sse", "openai", "admission", "probe"]),
    ("loadgen", &["sse"]),
    ("xtask", &["stack", "sched", "sim", "sse", "loadgen", "explain", "system-tests"]),
    ("system-tests", &["stack"]),
];

#[test]
fn dependencies_point_one_way() {
    let root = stack::source_root().unwrap();
    let out = Command::new(std::env::var("CARGO").unwrap_or("cargo".into()))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root)
        .output()
        .unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let ours: BTreeSet<&str> = packages.iter().map(|p| p["name"].as_str().unwrap()).collect();
    let listed: BTreeSet<&str> = ALLOWED.iter().map(|(name, _)| *name).collect();
    assert_eq!(ours, listed, "every crate has a row, and every row a crate");
    for package in packages {
        let name = package["name"].as_str().unwrap();
        let allowed = ALLOWED.iter().find(|(n, _)| *n == name).unwrap().1;
        for dependency in package["dependencies"].as_array().unwrap().iter().filter(|d| d["kind"].is_null()) {
            let dependency = dependency["name"].as_str().unwrap();
            let fine = !ours.contains(dependency) || allowed.contains(&dependency);
            assert!(fine, "{name} must not depend on {dependency}");
        }
    }
}

#[test]
fn engine_does_not_mention_what_it_must_not_know() {
    fn walk(dir: &std::path::Path, visit: &mut dyn FnMut(&std::path::Path)) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { walk(&path, visit) } else { visit(&path) }
        }
    }
    let mut files = 0;
    walk(&stack::source_root().unwrap().join("engine/src"), &mut |path| {
        files += 1;
        let text = std::fs::read_to_string(path).unwrap().to_lowercase();
        for word in ["vnpu", "interposer", "flexnpu"] {
            assert!(!text.contains(word), "{} mentions {word}", path.display());
        }
    });
    assert!(files > 10, "only {files} files seen");
}

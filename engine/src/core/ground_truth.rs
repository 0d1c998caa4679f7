//! What the steps really were: for tests of whoever has to guess it.
//!
//! With [`VARIABLE`] set, each loop appends one line of JSON a step to that file. Only tests set it and only tests read the
//! file; nothing of it reaches the device or whoever owns it.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;

use serde_json::json;

use super::live::Live;
use super::scheduler::Step;

/// Names the file.
const VARIABLE: &str = "ENGINE_TEST_STEP_LOG";

/// One loop's lines.
#[derive(Debug)]
pub(super) struct GroundTruth {
    file: File,
    name: &'static str,
}

impl GroundTruth {
    /// For the loop of this name; `None` unless a test has asked for it.
    pub(super) fn open(name: &'static str) -> Option<Self> {
        let path = std::env::var_os(VARIABLE)?;
        let file = File::options().create(true).append(true).open(&path);
        let file = file.inspect_err(|error| tracing::error!(%error, ?path, "no step log")).ok()?;
        Some(Self { file, name })
    }

    /// Writes a step down, before it runs. One write a line, so that loops do not mix.
    pub(super) fn step(&mut self, step: &Step<Arc<Live>>) {
        let sequences: Vec<_> = step
            .sequences
            .iter()
            .map(|s| json!({ "prompt": s.prompt, "new": s.new, "context": s.context, "prefilling": s.prefilling }))
            .collect();
        let line = format!("{}\n", json!({ "loop": self.name, "sequences": sequences }));
        if let Err(error) = self.file.write_all(line.as_bytes()) {
            tracing::error!(%error, "step log");
        }
    }
}

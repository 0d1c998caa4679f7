//! One line of JSON for each request that is over. A request never waits for the disk: lines go through a bounded queue, and
//! what does not fit is dropped and said so in the log of the program.

use std::io::Write;
use std::path::Path;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};

use anyhow::Context;

/// Lines waiting for the disk.
const LINES_MAX: usize = 8192;

/// Where lines go.
#[derive(Clone)]
pub struct AccessLog {
    lines: SyncSender<String>,
}

impl AccessLog {
    /// Appends to the file at `path`; `-` is standard error.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let mut out: Box<dyn Write + Send> = if path == Path::new("-") {
            Box::new(std::io::stderr())
        } else {
            let file = std::fs::OpenOptions::new().append(true).create(true).open(path);
            Box::new(file.with_context(|| format!("--access-log {}: cannot be written", path.display()))?)
        };
        let (lines, queue) = sync_channel::<String>(LINES_MAX);
        std::thread::spawn(move || {
            while let Ok(line) = queue.recv() {
                // One write for a line: several programs may append to one file.
                if let Err(error) = out.write_all(line.as_bytes()) {
                    tracing::warn!(%error, "access log: a line is lost");
                }
            }
        });
        Ok(Self { lines })
    }

    /// Writes a line; never waits.
    pub fn line(&self, entry: &serde_json::Value) {
        if let Err(TrySendError::Full(_)) = self.lines.try_send(format!("{entry}\n")) {
            tracing::warn!("access log: the disk is too slow, a line is dropped");
        }
    }
}

//! Building the programs, and the scratch directory that a task works in.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, ensure};

/// Directory to remove if the task is interrupted.
static SCRATCH: Mutex<Option<PathBuf>> = Mutex::new(None);

/// Top of the source tree.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// Builds every program in release, with cargo's own progress. The whole workspace but this program, which runs: named one by one,
/// packages would share other features of their dependencies than in the tests' build, and each build would undo the other.
pub fn programs() -> Result<()> {
    let mut command = Command::new(env!("CARGO"));
    command.args(["build", "--release", "--locked", "--workspace", "--exclude", "xtask"]).current_dir(root());
    ensure!(command.status().context("starting cargo")?.success(), "the build failed");
    Ok(())
}

/// Builds an example of a package in release.
pub fn example(package: &str, name: &str) -> Result<()> {
    let mut command = Command::new(env!("CARGO"));
    command.args(["build", "--release", "--locked", "--package", package, "--example", name]).current_dir(root());
    ensure!(command.status().context("starting cargo")?.success(), "the build of {name} failed");
    Ok(())
}

/// A scratch directory that goes with the value, or when the task is interrupted.
pub struct Scratch(tempfile::TempDir);

impl Scratch {
    /// Makes it.
    pub fn new() -> Result<Self> {
        let dir = stack::scratch()?;
        *SCRATCH.lock().unwrap_or_else(PoisonError::into_inner) = Some(dir.path().to_owned());
        Ok(Self(dir))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

/// Removes the scratch directory of an interrupted task.
pub fn remove_scratch() {
    if let Some(path) = SCRATCH.lock().unwrap_or_else(PoisonError::into_inner).take() {
        let _ = std::fs::remove_dir_all(path);
    }
}

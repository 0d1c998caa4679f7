//! PyTorch and torch_npu as published, on a virtual NPU: the environment they run in, and the test suites that run there.

pub mod environment;
mod needs;
pub mod phases;
mod standins;
mod suites;
mod tokens;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

pub use suites::run;

/// The PyTorch that every test run uses.
pub const FIRST: &str = "2.9.1";
/// The PyTorch that `./x test --torch` runs too.
pub const SECOND: &str = "2.14.0";

/// `cargo xtask torch-env`: makes the PyTorch of the virtual environment `dir` load without CUDA.
///
/// # Errors
/// If there is no such environment or PyTorch, or a stand-in cannot be made.
pub fn complete(dir: &Path) -> Result<()> {
    let python = dir.join("bin/python");
    let site_packages = site_packages(&python)?;
    standins::make(&site_packages)?;
    say_what_stands_in(&python)
}

/// Says openly what in an environment is not as published.
fn say_what_stands_in(python: &Path) -> Result<()> {
    let made = standins::made(&site_packages(python)?)?;
    if made.is_empty() {
        println!("no stand-ins: nothing of NVIDIA's was missing");
    } else {
        println!(
            "stand-ins for NVIDIA's libraries, whose every function fails with \"no device\":\n  {}",
            made.join("\n  ")
        );
    }
    Ok(())
}

/// Where a Python keeps its packages.
fn site_packages(python: &Path) -> Result<PathBuf> {
    let ask = "import sysconfig; print(sysconfig.get_path('platlib'))";
    let out = Command::new(python).args(["-c", ask]).output().with_context(|| python.display().to_string())?;
    ensure!(out.status.success(), "{}: {}", python.display(), String::from_utf8_lossy(&out.stderr));
    Ok(PathBuf::from(String::from_utf8_lossy(&out.stdout).trim()))
}

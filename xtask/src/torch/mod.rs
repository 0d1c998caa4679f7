//! PyTorch and torch_npu as published, on a virtual NPU: the environment they run in, and the test suites that run there.

mod needs;
mod standins;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// `cargo xtask torch-env`: makes the PyTorch of the virtual environment `dir` load without CUDA.
///
/// # Errors
/// If there is no such environment or PyTorch, or a stand-in cannot be made.
pub fn complete(dir: &Path) -> Result<()> {
    let (made, place) = standins::make(&site_packages(&dir.join("bin/python"))?)?;
    if made.is_empty() {
        println!("nothing of NVIDIA's is missing");
    } else {
        println!("stand-ins (no device, every function fails) in {}: {}", place.display(), made.join(" "));
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

//! Virtual environments with PyTorch and torch_npu as published on PyPI, under `target/python`.
//!
//! Made on first use, kept with the build output, made anew when what they are to hold changes. torch_npu's metadata asks for a
//! PyTorch that PyPI does not have (`2.9.1+cpu`), so the two wheels are installed without their dependencies, and the packages
//! they import are listed in `tests/python/torch/requirements.txt`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{site_packages, standins};
use crate::build;

/// What the environments hold beside the two wheels.
const REQUIREMENTS: &str = "tests/python/torch/requirements.txt";
/// Counts up when this program changes what it adds to an environment.
const LAYOUT: u32 = 1;

/// A ready environment.
pub struct Environment {
    /// Version of both PyTorch and torch_npu.
    pub version: &'static str,
    /// Its interpreter.
    pub python: PathBuf,
}

impl Environment {
    /// As [`beside`], of this environment's Python.
    ///
    /// # Errors
    /// As there.
    pub fn beside(&self, name: &str, requirements: &str) -> Result<PathBuf> {
        beside(&self.python, name, requirements)
    }
}

/// A directory with other packages for a Python, to be put before its own: those of `requirements`, a file of the repository. Made
/// if need be.
///
/// # Errors
/// If it cannot be made.
pub fn beside(python: &Path, name: &str, requirements: &str) -> Result<PathBuf> {
    let dir = build::root().join("target/python").join(name);
    let (stamp, file) = (dir.join("installed.txt"), build::root().join(requirements));
    let wanted = std::fs::read_to_string(&file).with_context(|| requirements.to_owned())?;
    if !std::fs::read_to_string(&stamp).is_ok_and(|have| have == wanted) {
        if dir.exists() {
            std::fs::remove_dir_all(&dir).with_context(|| dir.display().to_string())?;
        }
        let (target, file) = (dir.display().to_string(), file.display().to_string());
        pip(python, &["--no-deps", "--target", &target, "-r", &file])?;
        std::fs::write(stamp, wanted)?;
    }
    Ok(dir)
}

/// The environment for `version` of PyTorch and torch_npu, made if need be, with pip's progress on the terminal.
///
/// # Errors
/// If it cannot be made.
pub fn ready(version: &'static str) -> Result<Environment> {
    let wheels = [format!("torch=={version}"), format!("torch_npu=={version}")];
    let python = made(&format!("torch-{version}"), &wheels, &["-r"], REQUIREMENTS)?;
    Ok(Environment { version, python })
}

/// The interpreter of the environment of this name, made if need be: `wheels` without dependencies, then the packages that a file of
/// the repository lists (`how` are pip's options before it), then the stand-ins.
///
/// # Errors
/// If it cannot be made.
pub fn made(name: &str, wheels: &[String], how: &[&str], requirements: &str) -> Result<PathBuf> {
    let dir = build::root().join("target/python").join(name);
    let (python, stamp) = (dir.join("bin/python"), dir.join("installed.txt"));
    let file = build::root().join(requirements);
    let packages = std::fs::read_to_string(&file).with_context(|| requirements.to_owned())?;
    let wanted = format!("layout {LAYOUT}\n{}\n{packages}", wheels.join("\n"));
    if !std::fs::read_to_string(&stamp).is_ok_and(|have| have == wanted) {
        println!("{} from PyPI into {}", wheels.join(", "), dir.display());
        run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&dir))?;
        let wheels: Vec<&str> = std::iter::once("--no-deps").chain(wheels.iter().map(String::as_str)).collect();
        pip(&python, &wheels)?;
        pip(&python, &[how, &[&file.display().to_string()]].concat())?;
        standins::make(&site_packages(&python)?)?;
        std::fs::write(stamp, wanted)?;
    }
    super::say_what_stands_in(&python)?;
    Ok(python)
}

fn pip(python: &Path, arguments: &[&str]) -> Result<()> {
    run(Command::new(python).args(["-m", "pip", "install", "--disable-pip-version-check"]).args(arguments))
}

fn run(command: &mut Command) -> Result<()> {
    ensure!(command.status().with_context(|| format!("{command:?}"))?.success(), "{command:?} failed");
    Ok(())
}

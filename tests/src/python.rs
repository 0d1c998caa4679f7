//! A Python with third-party packages as published, in a virtual environment under `target/`.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Path of a `python` that has the packages of `requirements`, a file of the repository. Made on first use, kept with the
/// build output, made anew when the file changes.
///
/// # Errors
/// If the environment cannot be made; with pip's own words.
pub fn with_requirements(requirements: &str) -> Result<PathBuf> {
    let root = stack::source_root()?;
    let file = root.join(requirements);
    let wanted = std::fs::read_to_string(&file).with_context(|| requirements.to_owned())?;
    let name = requirements.replace(['/', '.'], "-");
    let venv = root.join("target/python").join(name);
    let (python, stamp) = (venv.join("bin/python"), venv.join("installed.txt"));
    if std::fs::read_to_string(&stamp).is_ok_and(|have| have == wanted) {
        return Ok(python);
    }
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv)).context("making a virtual environment")?;
    run(Command::new(&python)
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"])
        .arg(&file))
    .with_context(|| format!("installing {requirements}"))?;
    std::fs::write(stamp, wanted)?;
    Ok(python)
}

fn run(command: &mut Command) -> Result<()> {
    let out = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
    Ok(())
}

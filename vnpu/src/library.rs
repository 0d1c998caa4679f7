//! Finding the interposer library.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

/// File name of the library.
pub const LIBRARY: &str = "libvnpu_interposer.so";

/// The library: `VNPU_INTERPOSER`, or [`LIBRARY`] beside this program or in `../lib` of it.
///
/// # Errors
/// If it is nowhere, with what to do.
pub fn find() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("VNPU_INTERPOSER").filter(|p| !p.is_empty()) {
        let path = PathBuf::from(path);
        return path.canonicalize().with_context(|| format!("VNPU_INTERPOSER={}", path.display()));
    }
    let program = std::env::current_exe().context("cannot tell where this program is")?;
    let program = program.canonicalize().unwrap_or(program);
    find_beside(&program)
}

fn find_beside(program: &Path) -> anyhow::Result<PathBuf> {
    let beside = program.parent().unwrap_or(Path::new("/"));
    let places = [beside.join(LIBRARY), beside.join("../lib").join(LIBRARY)];
    match places.iter().find_map(|path| path.canonicalize().ok()) {
        Some(path) => Ok(path),
        None => bail!(
            "{LIBRARY} is not in {}; build it with `cargo build --release -p interposer`, or set VNPU_INTERPOSER to its path",
            beside.display()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn library_is_found_beside_the_program_or_in_lib() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("bin/vnpu");
        std::fs::create_dir_all(dir.path().join("bin")).unwrap();
        let error = find_beside(&program).unwrap_err().to_string();
        assert!(error.contains("cargo build --release -p interposer"), "{error}");
        for place in ["lib", "bin"] {
            std::fs::create_dir_all(dir.path().join(place)).unwrap();
            let path = dir.path().join(place).join(LIBRARY);
            std::fs::write(&path, "").unwrap();
            assert_eq!(find_beside(&program).unwrap(), path.canonicalize().unwrap());
        }
    }
}

//! What Python programs find beside their packages: a module of pyACL's name and a plugin of vLLM's. Each file says why it exists.
//!
//! They are part of this program and written to a directory that `vnpu run` puts last in `PYTHONPATH`. No package is changed.

use std::fs;
use std::path::Path;

use anyhow::Context as _;

/// Where they lie, below the directory of library links.
pub const DIR: &str = "python";

/// Path below the directory, and contents.
const FILES: [(&str, &str); 5] = [
    ("acl/__init__.py", include_str!("../python/acl/__init__.py")),
    ("acl/rt.py", include_str!("../python/acl/rt.py")),
    ("flexnpu_vllm.py", include_str!("../python/flexnpu_vllm.py")),
    ("flexnpu_vllm-1.dist-info/METADATA", include_str!("../python/flexnpu_vllm-1.dist-info/METADATA")),
    ("flexnpu_vllm-1.dist-info/entry_points.txt", include_str!("../python/flexnpu_vllm-1.dist-info/entry_points.txt")),
];

/// Makes `dir` hold the files; touches none that is right already, so that the directory can be read-only then.
///
/// # Errors
/// If a file cannot be written.
pub fn refresh(dir: &Path) -> anyhow::Result<()> {
    for (name, text) in FILES {
        let path = dir.join(name);
        if fs::read(&path).is_ok_and(|have| have == text.as_bytes()) {
            continue;
        }
        let hint = || format!("cannot write {}; choose another directory with --libs-dir", path.display());
        fs::create_dir_all(path.parent().unwrap_or(dir)).with_context(hint)?;
        // Moved into place: programs that are starting see the old file or the new one.
        let fresh = path.with_extension(format!("new.{}", std::process::id()));
        fs::write(&fresh, text).with_context(hint)?;
        fs::rename(&fresh, &path).with_context(hint)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_written_once_and_renewed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILES[1].0);
        for old in [None, Some("of another release")] {
            if let Some(old) = old {
                fs::write(&path, old).unwrap();
            }
            refresh(dir.path()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), FILES[1].1);
        }
        let before = fs::metadata(&path).unwrap().modified().unwrap();
        refresh(dir.path()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), before, "what is right is left alone");
        assert_eq!(fs::read_dir(dir.path().join("acl")).unwrap().count(), 2, "nothing is left over");
    }
}

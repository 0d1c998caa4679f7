//! The directory of links: one library under every name that applications load.
//!
//! Links, not copies: the dynamic loader tells libraries apart by file, and all names must be one library with one state.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

/// What applications link against or `dlopen`. None of the clients seen asks for a versioned name.
pub const NAMES: [&str; 27] = [
    "libascendcl.so",
    "libopapi.so",
    "libnnopbase.so",
    "libhccl.so",
    "libhcomm.so",
    "libacl_op_compiler.so",
    "libge_runner.so",
    "libgraph.so",
    "libruntime.so",
    "libacl_tdt_channel.so",
    "libacl_cblas.so",
    "libge_common.so",
    "libprofapi.so",
    "libmsprofiler.so",
    // What vllm_ascend's extension and torch_npu's ATB plugin name beside them.
    "libatb.so",
    "libcust_opapi.so",
    "libregister.so",
    "libplatform.so",
    "libascendalog.so",
    "liberror_manager.so",
    "libge_common_base.so",
    "libunified_dlog.so",
    "libmmpa.so",
    "libascend_dump.so",
    "libc_sec.so",
    // What torchair, which vllm_ascend 0.18.0 imports, names beside them.
    "libascend_protobuf.so",
    "libfmk_parser.so",
];

/// The directory that `vnpu run` uses unless told otherwise.
pub fn default_dir(library: &Path) -> PathBuf {
    library.with_file_name("vnpu-libs")
}

/// Makes `dir` hold exactly one right link a name; touches nothing that is right already, so that a directory somebody else
/// made can be read-only.
///
/// # Errors
/// If a link cannot be made, or something that is no link has its name.
pub fn refresh(library: &Path, dir: &Path) -> anyhow::Result<()> {
    let hint = || format!("cannot make library links in {}; choose another directory with --libs-dir", dir.display());
    fs::create_dir_all(dir).with_context(hint)?;
    for name in NAMES {
        link(library, &dir.join(name)).with_context(hint)?;
    }
    Ok(())
}

/// Puts the library itself into `dir`; its name there, which links can point to wherever the directory is mounted.
///
/// # Errors
/// If that cannot be done.
pub fn copy(library: &Path, dir: &Path) -> anyhow::Result<PathBuf> {
    let name = library.file_name().context("the library has no name")?;
    let fresh = dir.join(format!(".library.{}", std::process::id()));
    let hint = || format!("cannot copy the library into {}", dir.display());
    fs::create_dir_all(dir).with_context(hint)?;
    fs::copy(library, &fresh).with_context(hint)?;
    // Programs that have the old one open keep it.
    fs::rename(&fresh, dir.join(name)).with_context(hint)?;
    Ok(name.into())
}

fn link(library: &Path, at: &Path) -> anyhow::Result<()> {
    match fs::read_link(at) {
        Ok(target) if target == library => return Ok(()),
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(_) => bail!("{} exists and is no link", at.display()),
    }
    // Made beside its place and moved there: programs that are starting see the old link or the new one.
    let fresh = at.with_extension(format!("so.{}", std::process::id()));
    symlink(library, &fresh)?;
    fs::rename(&fresh, at).inspect_err(|_| {
        let _ = fs::remove_file(&fresh);
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_made_kept_and_renewed() {
        let root = tempfile::tempdir().unwrap();
        let (old, new) = (root.path().join("old.so"), root.path().join("new.so"));
        let dir = root.path().join("libs");
        for library in [&old, &new, &new] {
            refresh(library, &dir).unwrap();
            for name in NAMES {
                assert_eq!(&fs::read_link(dir.join(name)).unwrap(), library);
            }
        }
        assert_eq!(fs::read_dir(&dir).unwrap().count(), NAMES.len(), "nothing is left over");
    }

    #[test]
    fn copied_directory_works_wherever_it_is() {
        let root = tempfile::tempdir().unwrap();
        let library = root.path().join("lib.so");
        let (made, moved) = (root.path().join("made"), root.path().join("moved"));
        for text in ["old", "new"] {
            fs::write(&library, text).unwrap();
            refresh(&copy(&library, &made).unwrap(), &made).unwrap();
        }
        fs::remove_file(&library).unwrap();
        fs::rename(&made, &moved).unwrap();
        for name in NAMES {
            assert_eq!(fs::read_to_string(moved.join(name)).unwrap(), "new", "{name}");
        }
        assert_eq!(fs::read_dir(&moved).unwrap().count(), NAMES.len() + 1, "nothing is left over");
    }

    #[test]
    fn files_of_others_are_not_replaced() {
        let root = tempfile::tempdir().unwrap();
        let real = root.path().join("libascendcl.so");
        fs::write(&real, "CANN").unwrap();
        let error = format!("{:#}", refresh(Path::new("/x.so"), root.path()).unwrap_err());
        assert!(error.contains("exists and is no link") && error.contains("--libs-dir"), "{error}");
        assert_eq!(fs::read(&real).unwrap(), b"CANN");
    }
}

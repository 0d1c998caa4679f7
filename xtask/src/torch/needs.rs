//! What a set of shared libraries wants from others: the names of libraries and the symbols, each with its version tag.
//!
//! Reads section by section, so a library of a gigabyte costs a few megabytes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use object::LittleEndian;
use object::read::ReadCache;
use object::read::elf::{Dyn as _, ElfFile64, Sym as _};

/// The dynamic section and the undefined symbols of one shared library.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// `DT_NEEDED`, in order.
    pub libraries: Vec<String>,
    /// Directories of `DT_RPATH` and `DT_RUNPATH`, `$ORIGIN` unresolved.
    pub paths: Vec<String>,
    /// Undefined symbols; weak ones are not among them, their absence is allowed.
    pub symbols: BTreeSet<Symbol>,
}

/// An undefined symbol.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Symbol {
    /// Its name.
    pub name: String,
    /// The library that its version tag names, and the tag.
    pub version: Option<(String, String)>,
    /// Data, not a function; its size in bytes is not known to who refers to it.
    pub data: bool,
}

/// Reads one x86-64 or aarch64 shared library.
///
/// # Errors
/// If it cannot be read or is no such library.
pub fn of(path: &Path) -> Result<Needs> {
    read(path).with_context(|| format!("reading {}", path.display()))
}

fn read(path: &Path) -> Result<Needs> {
    let cache = ReadCache::new(File::open(path)?);
    let file = ElfFile64::<LittleEndian, _>::parse(&cache)?;
    let (endian, sections) = (LittleEndian, file.elf_section_table());
    let mut needs = Needs::default();
    if let Some((entries, link)) = sections.dynamic(endian, &cache)? {
        let strings = sections.strings(endian, &cache, link)?;
        for entry in entries {
            let text = || -> Result<String> {
                let offset = u32::try_from(entry.d_val(endian))?;
                let bytes = strings.get(offset).ok().context("a name outside the string table")?;
                Ok(String::from_utf8_lossy(bytes).into_owned())
            };
            match u32::try_from(entry.d_tag(endian)) {
                Ok(object::elf::DT_NEEDED) => needs.libraries.push(text()?),
                Ok(object::elf::DT_RPATH | object::elf::DT_RUNPATH) => {
                    needs.paths.extend(text()?.split(':').filter(|p| !p.is_empty()).map(str::to_owned));
                }
                _ => {}
            }
        }
    }
    let versions = sections.versions(endian, &cache)?;
    let symbols = file.elf_dynamic_symbol_table();
    for (index, symbol) in symbols.enumerate() {
        if !symbol.is_undefined(endian) || symbol.st_bind() != object::elf::STB_GLOBAL {
            continue;
        }
        let name = String::from_utf8_lossy(symbols.symbol_name(endian, symbol)?).into_owned();
        let version = match &versions {
            Some(table) => table.version(table.version_index(endian, index))?,
            None => None,
        };
        let version = version.and_then(|v| {
            let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
            Some((text(v.file()?), text(v.name())))
        });
        needs.symbols.insert(Symbol { name, version, data: symbol.st_type() == object::elf::STT_OBJECT });
    }
    Ok(needs)
}

/// Reads `first` and, of the libraries it needs and theirs in turn, those that lie in `dir`.
///
/// # Errors
/// As [`of`].
pub fn closure(first: PathBuf, dir: &Path) -> Result<BTreeMap<PathBuf, Needs>> {
    let (mut read, mut waiting) = (BTreeMap::new(), vec![first]);
    while let Some(path) = waiting.pop() {
        if read.contains_key(&path) {
            continue;
        }
        let needs = of(&path)?;
        waiting.extend(needs.libraries.iter().map(|name| dir.join(name)).filter(|p| p.is_file()));
        read.insert(path, needs);
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn compile(dir: &Path, name: &str, source: &str, arguments: &[&str]) -> PathBuf {
        let (text, library) = (dir.join(format!("{name}.c")), dir.join(name));
        std::fs::write(&text, source).unwrap();
        let mut command = Command::new("cc");
        command.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&text).args(arguments).current_dir(dir);
        assert!(command.status().unwrap().success());
        library
    }

    #[test]
    fn libraries_symbols_versions_and_paths_are_read() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("map"), "one.v2 { global: tagged; };").unwrap();
        compile(
            dir.path(),
            "libone.so",
            "int tagged(void) { return 1; }",
            &["-Wl,--version-script=map,-soname=libone.so"],
        );
        compile(
            dir.path(),
            "libtwo.so",
            "extern int plain(void); int two(void) { return plain(); }",
            &["-Wl,-soname=libtwo.so"],
        );
        let source = "extern int tagged(void), plain(void), maybe(void) __attribute__((weak)); extern int two(void);
            int use(void) { return tagged() + plain() + two() + (maybe ? maybe() : 0); }";
        let arguments = ["-L.", "-lone", "-ltwo", "-Wl,--disable-new-dtags,-rpath,$ORIGIN/a:$ORIGIN/b"];
        let user = compile(dir.path(), "libuser.so", source, &arguments);
        let needs = of(&user).unwrap();
        assert!(["libone.so", "libtwo.so"].iter().all(|n| needs.libraries.iter().any(|l| l == n)), "{needs:?}");
        assert_eq!(needs.paths, ["$ORIGIN/a", "$ORIGIN/b"]);
        let find = |name: &str| needs.symbols.iter().find(|s| s.name == name);
        assert_eq!(find("tagged").unwrap().version, Some(("libone.so".to_owned(), "one.v2".to_owned())));
        assert_eq!(find("plain").unwrap().version, None);
        assert_eq!(find("maybe"), None, "weak");
        let all = closure(user.clone(), dir.path()).unwrap();
        let names: Vec<_> = all.keys().map(|p| p.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["libone.so", "libtwo.so", "libuser.so"]);
    }
}

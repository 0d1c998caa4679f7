//! Stand-ins for NVIDIA's libraries, so that a CUDA build of PyTorch loads on a machine without them.
//!
//! PyPI has PyTorch for x86-64 only as a CUDA build, whose libraries need about 2.5 GB of NVIDIA's at load time. An NPU user has
//! no use for them. For each library that PyTorch needs and nobody brings, one is made from PyTorch's own list of undefined
//! symbols: every function answers 100, which is CUDA's "no device is detected", and the number of devices is 0. Then
//! `torch.cuda.is_available()` is `False`, and all else is as published. No file of a wheel is touched: the stand-ins go to a
//! directory in which PyTorch's libraries look for NVIDIA's wheels, and a library that is there already is left alone.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::needs::{self, Needs, Symbol};

/// How names of NVIDIA's libraries begin.
const NVIDIA: [&str; 3] = ["libcu", "libnv", "libnccl"];
/// Where packages that are built on PyTorch keep their libraries.
const BESIDE: [&str; 2] = ["torchvision", "torchaudio/lib"];
/// What says which libraries are stand-ins, beside them.
const LIST: &str = "nvidia/STAND-INS.txt";
/// How a library's line in the list begins.
const LISTED: &str = "  ";
/// The list's beginning, for who finds it.
const NOTE: &str = "The libraries listed here are not NVIDIA's. They are stand-ins that FlexNPU's `./x torch-env` made from
PyTorch's undefined symbols so that a CUDA build of PyTorch loads on a machine without CUDA: every function returns error 100
(no device), the number of devices is 0. Remove them and install the nvidia-* packages to use CUDA.
";

/// One library to make.
#[derive(Debug, Default, PartialEq, Eq)]
struct StandIn {
    /// Symbols by version tag; those without a tag under "".
    symbols: BTreeMap<String, Vec<Symbol>>,
}

/// Makes what the PyTorch in `site_packages` lacks, if anything: on aarch64 it needs nothing of NVIDIA's.
///
/// # Errors
/// If there is no PyTorch, a library cannot be read, or the C compiler fails; with its words.
pub fn make(site_packages: &Path) -> Result<()> {
    let lib = site_packages.join("torch/lib");
    let all = needs::closure(lib.join("libtorch_python.so"), &lib)?;
    let deps = needs::of(&lib.join("libtorch_global_deps.so"))?;
    let all: Vec<_> = all.into_values().chain([deps]).collect();
    let found = |name: &str| {
        let at = |path: &String| path.strip_prefix("$ORIGIN/").is_some_and(|p| lib.join(p).join(name).is_file());
        lib.join(name).is_file() || all.iter().any(|n| n.paths.iter().any(at))
    };
    let mut missing: BTreeMap<String, StandIn> = BTreeMap::new();
    for name in all.iter().flat_map(|n| &n.libraries) {
        if NVIDIA.iter().any(|p| name.starts_with(p)) && !found(name) {
            missing.entry(name.clone()).or_default();
        }
    }
    let place =
        all.iter().flat_map(|n| &n.paths).find_map(|p| p.strip_prefix("$ORIGIN/").filter(|p| p.contains("nvidia/")));
    let place = place.unwrap_or_default().trim_start_matches("../");
    if missing.is_empty() {
        return Ok(());
    }
    for symbol in all.iter().chain(&beside(site_packages)?).flat_map(|n| &n.symbols) {
        if let Some((library, tag)) = owner(symbol, missing.keys()) {
            let list = missing.entry(library).or_default().symbols.entry(tag).or_default();
            if !list.contains(symbol) {
                list.push(symbol.clone());
            }
        }
    }
    let dir = site_packages.join(place);
    std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    let mut list = NOTE.to_owned();
    for (name, library) in &missing {
        let first = name.starts_with("libcudart");
        let more = (first && keys_clash(site_packages)?).then_some(include_str!("hide_cuda_keys.cc"));
        compile(name, library, more, &dir).with_context(|| format!("making {name}"))?;
        let _ = writeln!(list, "{LISTED}{place}/{name}");
    }
    std::fs::write(site_packages.join(LIST), list).context(LIST)
}

/// What packages that are built on PyTorch need, of those that are there: they name symbols of the same libraries.
fn beside(site_packages: &Path) -> Result<Vec<Needs>> {
    let mut needs = Vec::new();
    for dir in BESIDE {
        let dir = site_packages.join(dir);
        let Ok(entries) = std::fs::read_dir(&dir) else { continue };
        for entry in entries {
            let path = entry.with_context(|| dir.display().to_string())?.path();
            if path.extension().is_some_and(|e| e == "so") {
                needs.push(needs::of(&path)?);
            }
        }
    }
    Ok(needs)
}

/// The stand-ins that [`make`] made in `site_packages`, relative to it.
///
/// # Errors
/// If the list cannot be read; there need not be one.
pub fn made(site_packages: &Path) -> Result<Vec<String>> {
    match std::fs::read_to_string(site_packages.join(LIST)) {
        Ok(list) => Ok(list.lines().filter_map(|l| l.strip_prefix(LISTED)).map(str::to_owned).collect()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).context(LIST),
    }
}

/// Whether CUDA's part of PyTorch and torch_npu add their options to one set; see `hide_cuda_keys.cc`.
fn keys_clash(site_packages: &Path) -> Result<bool> {
    for library in ["torch/lib/libc10_cuda.so", "torch_npu/lib/libtorch_npu.so"] {
        let path = site_packages.join(library);
        if !path.is_file() || !needs::of(&path)?.symbols.iter().any(|s| s.name.contains("14getMutableKeys")) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The missing library that a symbol belongs to, and its version tag there. A symbol without a tag belongs to the library whose
/// name begins like it: `ncclSend` to `libnccl.so.2`.
fn owner<'a>(symbol: &Symbol, missing: impl Iterator<Item = &'a String>) -> Option<(String, String)> {
    let name = symbol.name.to_lowercase();
    let mut best = None;
    for library in missing {
        match &symbol.version {
            Some((file, tag)) if file == library => return Some((library.clone(), tag.clone())),
            Some(_) => {}
            None => {
                let stem = library.trim_start_matches("lib").split('.').next().unwrap_or_default().to_lowercase();
                if name.starts_with(&stem) && best.as_ref().is_none_or(|(len, _)| *len < stem.len()) {
                    best = Some((stem.len(), library.clone()));
                }
            }
        }
    }
    best.map(|(_, library)| (library, String::new()))
}

/// The C text of a library: what each function answers depends on what its caller does with it.
fn source(library: &StandIn) -> String {
    let mut out = String::from("#include <stddef.h>\n");
    for symbol in library.symbols.values().flatten() {
        let name = &symbol.name;
        let text = ["String", "ErrorName", "ncclGetLastError"].iter().any(|end| name.ends_with(end));
        let _ = match name.as_str() {
            // Larger than any object PyTorch refers to.
            _ if symbol.data => writeln!(out, "char {name}[4096];"),
            _ if text => {
                writeln!(out, "const char *{name}(void) {{ return \"no CUDA: a stand-in library answers\"; }}")
            }
            "cudaGetDeviceCount" => writeln!(out, "int {name}(int *n) {{ if (n != NULL) *n = 0; return 100; }}"),
            // Functions whose answer is a handle that only comes back to us, or nothing.
            "__cudaRegisterFatBinary" => {
                writeln!(out, "void **{name}(void) {{ static void *handle; return &handle; }}")
            }
            _ => writeln!(out, "size_t {name}(void) {{ return 100; }}"),
        };
    }
    out
}

/// The linker's version script: one node a tag.
fn version_script(library: &StandIn) -> String {
    let mut out = String::new();
    for (tag, symbols) in library.symbols.iter().filter(|(tag, _)| !tag.is_empty()) {
        let names: String = symbols.iter().map(|s| format!(" {};", s.name)).collect();
        let _ = writeln!(out, "{tag} {{ global:{names} }};");
    }
    out
}

fn compile(name: &str, library: &StandIn, more: Option<&str>, dir: &Path) -> Result<()> {
    let scratch = tempfile::tempdir().context("no temporary directory")?;
    let (text, script) = (scratch.path().join("stand-in.c"), scratch.path().join("versions"));
    std::fs::write(&text, source(library))?;
    let mut command = Command::new("cc");
    command.args(["-shared", "-fPIC", "-O1", "-fno-builtin", "-w", "-o"]).arg(dir.join(name)).arg(&text);
    command.arg(format!("-Wl,-soname={name}"));
    if let Some(more) = more {
        let path = scratch.path().join("more.cc");
        std::fs::write(&path, more)?;
        command.arg(path).args(["-lstdc++", "-ldl"]);
    }
    let versions = version_script(library);
    if !versions.is_empty() {
        std::fs::write(&script, versions)?;
        command.arg(format!("-Wl,--version-script={}", script.display()));
    }
    let done = command.output().context("starting cc")?;
    ensure!(done.status.success(), "cc: {}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn symbol(name: &str, version: Option<(&str, &str)>) -> Symbol {
        let version = version.map(|(f, t)| (f.to_owned(), t.to_owned()));
        Symbol { name: name.to_owned(), version, data: false }
    }

    #[test]
    fn symbols_go_to_the_library_of_their_tag_or_name() {
        let missing = ["libcudart.so.12", "libcusparse.so.12", "libcusparseLt.so.0", "libnccl.so.2"].map(str::to_owned);
        for (symbol, want) in [
            (
                symbol("cudaMalloc", Some(("libcudart.so.12", "libcudart.so.12"))),
                Some(("libcudart.so.12", "libcudart.so.12")),
            ),
            (symbol("ncclSend", None), Some(("libnccl.so.2", ""))),
            (symbol("cusparseLtInit", None), Some(("libcusparseLt.so.0", ""))),
            (symbol("malloc", Some(("libc.so.6", "GLIBC_2.2.5"))), None),
            (symbol("PyErr_Occurred", None), None),
        ] {
            let got = owner(&symbol, missing.iter());
            assert_eq!(got.as_ref().map(|(l, t)| (l.as_str(), t.as_str())), want, "{symbol:?}");
        }
    }

    #[test]
    fn libraries_are_made_where_pytorch_looks_and_real_ones_stay() {
        let dir = tempfile::tempdir().unwrap();
        let lib = dir.path().join("torch/lib");
        std::fs::create_dir_all(&lib).unwrap();
        let real = dir.path().join("nvidia/b/lib/libcureal.so.1");
        std::fs::create_dir_all(real.parent().unwrap()).unwrap();
        std::fs::write(&real, "theirs").unwrap();
        let cc = |name: &str, source: &str, arguments: &[&str]| {
            let text = lib.join("a.c");
            std::fs::write(&text, source).unwrap();
            let mut command = Command::new("cc");
            command.args(["-shared", "-fPIC", "-o", name, "a.c"]).args(arguments).current_dir(&lib);
            assert!(command.status().unwrap().success());
            std::fs::remove_file(text).unwrap();
        };
        std::fs::write(lib.join("map"), "libcudart.so.12 { global: cudaGetDeviceCount; cudaGetErrorString; };")
            .unwrap();
        cc(
            "libcudart.so.12",
            "int cudaGetDeviceCount(int *n){return 0;} char *cudaGetErrorString(int e){return 0;}",
            &["-Wl,--version-script=map,-soname=libcudart.so.12"],
        );
        cc("libnccl.so.2", "int ncclSend(void){return 0;}", &["-Wl,-soname=libnccl.so.2"]);
        cc("libcureal.so.1", "int curealGo(void){return 0;}", &["-Wl,-soname=libcureal.so.1"]);
        let uses = "int cudaGetDeviceCount(int*), ncclSend(void), curealGo(void); const char *cudaGetErrorString(int);
            int use(int *n) { return cudaGetErrorString(1)[0] == 'n' && curealGo() == 0 ? cudaGetDeviceCount(n) + ncclSend() : -1; }";
        let rpath = "-Wl,--disable-new-dtags,-rpath,$ORIGIN/../../nvidia/a/lib:$ORIGIN/../../nvidia/b/lib:$ORIGIN";
        for name in ["libtorch_python.so", "libtorch_global_deps.so"] {
            cc(name, uses, &["-L.", "-l:libcudart.so.12", "-l:libnccl.so.2", "-l:libcureal.so.1", rpath]);
        }
        std::fs::rename(lib.join("libcureal.so.1"), &real).unwrap();
        for name in ["libcudart.so.12", "libnccl.so.2"] {
            std::fs::remove_file(lib.join(name)).unwrap();
        }
        let before = std::fs::read(&real).unwrap();
        // A package beside PyTorch names one more symbol of a library.
        let beside = dir.path().join("torchvision");
        std::fs::create_dir_all(&beside).unwrap();
        std::fs::write(beside.join("b.c"), "int ncclMore(void); int more(void) { return ncclMore(); }").unwrap();
        let mut command = Command::new("cc");
        command.args(["-shared", "-fPIC", "-o", "_C.so", "b.c"]).current_dir(&beside);
        assert!(command.status().unwrap().success());
        make(dir.path()).unwrap();
        let both = ["nvidia/a/lib/libcudart.so.12", "nvidia/a/lib/libnccl.so.2"];
        assert_eq!(made(dir.path()).unwrap(), both);
        assert_eq!(std::fs::read(&real).unwrap(), before);
        let check = "import ctypes, sys; n = ctypes.c_int(7); l = ctypes.CDLL(sys.argv[1]); print(l.use(ctypes.byref(n)), n.value)";
        let out = Command::new("python3").args(["-c", check]).arg(lib.join("libtorch_python.so")).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&out.stdout), "200 0\n", "{}", String::from_utf8_lossy(&out.stderr));
        let symbols = Command::new("nm").args(["-D", "--defined-only"]).arg(dir.path().join(both[1])).output().unwrap();
        assert!(String::from_utf8_lossy(&symbols.stdout).contains(" ncclMore"), "what a package beside PyTorch names");
        make(dir.path()).unwrap();
        assert_eq!(made(dir.path()).unwrap(), both, "a second time there is nothing left to make");
    }
}

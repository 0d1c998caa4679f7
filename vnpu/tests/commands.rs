//! The program itself: commands of `vnpu` on the library that was built with it, and a C application run by it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The library beside this test: a development dependency, so cargo builds it first.
fn library() -> PathBuf {
    let exe = std::env::current_exe().expect("a test knows its path");
    let path = exe.parent().expect("in a directory").join("libvnpu_interposer.so");
    assert!(path.exists(), "{} is missing", path.display());
    path
}

fn vnpu(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vnpu"));
    command.args(arguments).env("VNPU_INTERPOSER", library());
    for name in ["VNPU_SOCKET", "VNPU_DEVICE", "VNPU_MODE", "VNPU_LOG"] {
        command.env_remove(name);
    }
    command.output().expect("vnpu starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Output of a command that must work.
fn works(arguments: &[&str]) -> String {
    let out = vnpu(arguments);
    assert!(out.status.success(), "{arguments:?}: {}", text(&out.stderr));
    text(&out.stdout)
}

/// Compiles the application in file `source` against the links in `libs`.
fn compile(compiler: &str, source: &str, libs: &Path, program: &Path) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(source);
    let status = Command::new(compiler)
        .args(["-O1", "-Wall", "-Werror", "-o"])
        .arg(program)
        .arg(source)
        .arg(format!("-L{}", libs.display()))
        .args(["-lascendcl", "-lopapi", "-latb", "-lm"])
        .status()
        .expect("a compiler is installed");
    assert!(status.success(), "{compiler}");
}

#[test]
fn c_application_runs_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    let (libs, program) = (dir.path().join("libs"), dir.path().join("program"));
    let libs_text = libs.to_str().unwrap();
    assert_eq!(works(&["libs", "--dir", libs_text]).trim(), libs.canonicalize().unwrap().to_str().unwrap());
    compile("cc", "program.c", &libs, &program);
    let alone = Command::new(&program).env_remove("LD_LIBRARY_PATH").output().unwrap();
    assert!(!alone.status.success(), "without vnpu its libraries do not exist");
    let run = ["run", "--direct", "Ascend910B3:functional:hbm=1", "--libs-dir", libs_text, "--"];
    let out = works(&[&run[..], &[program.to_str().unwrap()]].concat());
    assert_eq!(out, "1 device, Ascend910B3\ncomputed\n");

    // The application's own status comes back.
    let out = vnpu(&["run", "--direct", "NoSuchChip", "--libs-dir", libs_text, "--", program.to_str().unwrap()]);
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stderr).contains("NoSuchChip"), "{}", text(&out.stderr));
}

#[test]
fn operations_of_the_cpp_library_are_computed_or_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let (libs, program) = (dir.path().join("libs"), dir.path().join("program"));
    let libs_text = libs.to_str().unwrap();
    works(&["libs", "--dir", libs_text]);
    compile("c++", "atb.cpp", &libs, &program);
    let run = ["run", "--direct", "Ascend910B3:functional:hbm=1", "--log", "off", "--libs-dir", libs_text, "--"];
    let out = vnpu(&[&run[..], &[program.to_str().unwrap()]].concat());
    assert_eq!((text(&out.stdout).as_str(), out.status.code()), ("computed\n", Some(0)), "{}", text(&out.stderr));
}

#[test]
fn what_cannot_run_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let libs = dir.path().join("libs");
    let libs = libs.to_str().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "not a program").unwrap();
    let direct = ["run", "--direct", "Ascend910B3", "--libs-dir", libs, "--"];
    for (arguments, code, part) in [
        ([&direct[..], &["/nonexistent/program"]].concat(), 127, "/nonexistent/program"),
        ([&direct[..], &["no-such-command-anywhere"]].concat(), 127, "no-such-command-anywhere"),
        ([&direct[..], &[file.to_str().unwrap()]].concat(), 126, "file"),
        (vec!["run", "--libs-dir", libs, "--", "true"], 125, "--direct Ascend910B3:functional"),
        (vec!["run", "--socket", "/nonexistent/d.sock", "--libs-dir", libs, "--", "true"], 125, "vnpu-daemon --socket"),
        (vec!["run", "--direct", "Ascend910B3", "--libs-dir", "/proc/nothing", "--", "true"], 125, "--libs-dir"),
    ] {
        let out = vnpu(&arguments);
        assert_eq!(out.status.code(), Some(code), "{arguments:?}: {}", text(&out.stderr));
        assert!(text(&out.stderr).contains(part), "{arguments:?}: {}", text(&out.stderr));
    }
    let out = Command::new(env!("CARGO_BIN_EXE_vnpu"))
        .args(["functions"])
        .env("VNPU_INTERPOSER", "/nonexistent/lib.so")
        .output()
        .unwrap();
    assert!(text(&out.stderr).contains("VNPU_INTERPOSER=/nonexistent/lib.so"), "{}", text(&out.stderr));
}

#[test]
fn the_command_sees_the_library_first() {
    let dir = tempfile::tempdir().unwrap();
    let libs = dir.path().join("libs");
    let libs = libs.to_str().unwrap();
    let show = "echo $LD_LIBRARY_PATH; echo $VNPU_MODE $VNPU_DEVICE $VNPU_POLICY $VNPU_HINTS";
    let out = works(&[
        "run",
        "--direct",
        "Ascend910B3:timing",
        "--policy",
        "fifo",
        "--hints",
        "/run/h",
        "--libs-dir",
        libs,
        "--",
        "sh",
        "-c",
        show,
    ]);
    let canonical = std::fs::canonicalize(libs).unwrap();
    assert!(out.starts_with(canonical.to_str().unwrap()), "{out}");
    assert!(out.ends_with("direct Ascend910B3:timing fifo /run/h\n"), "{out}");
}

#[test]
fn python_finds_the_memcpy_of_pyacl_and_the_plugin() {
    let dir = tempfile::tempdir().unwrap();
    let libs = dir.path().join("libs");
    let script = "
import ctypes, importlib.metadata, acl
library = ctypes.CDLL('libascendcl.so')
assert library.aclInit(None) == 0 and library.aclrtSetDevice(0) == 0
device = ctypes.c_void_p()
assert library.aclrtMalloc(ctypes.byref(device), ctypes.c_size_t(8), 0) == 0
there, back = ctypes.create_string_buffer(b'flexnpu', 8), ctypes.create_string_buffer(8)
assert acl.rt.memcpy(device.value, 8, ctypes.addressof(there), 8, 1) == 0
assert acl.rt.memcpy(ctypes.addressof(back), 8, device.value, 8, 2) == 0
assert acl.rt.memcpy(ctypes.addressof(back), 4, device.value, 8, 2) != 0, 'more than there is room for'
print(back.value.decode(), hasattr(acl.rt, 'malloc'))
print(*importlib.metadata.entry_points(group='vllm.general_plugins'))
";
    let run = ["run", "--direct", "Ascend910B3:functional:hbm=1", "--libs-dir", libs.to_str().unwrap(), "--"];
    let out = works(&[&run[..], &["python3", "-c", script]].concat());
    assert!(out.starts_with("flexnpu False\n"), "{out}");
    assert!(out.contains("flexnpu_vllm:register"), "{out}");
}

#[test]
fn functions_tell_of_the_library_that_is_there() {
    let all: serde_json::Value = serde_json::from_str(&works(&["functions", "--json"])).unwrap();
    let row =
        |name: &str| all.as_array().unwrap().iter().find(|r| r["function"] == name).unwrap_or_else(|| panic!("{name}"));
    assert_eq!(row("aclrtMalloc")["supported"], true);
    assert!(row("aclrtMalloc")["used_by"].to_string().contains("llama.cpp:link"));
    assert_eq!(row("aclmdlLoadFromFile")["state"], "refused");
    assert_eq!(row("_ZN3atb13CreateContextEPPNS_7ContextE")["supported"], true);
    assert_eq!(row("_ZN2fe19PlatformInfoManager8InstanceEv")["state"], "refused");
    assert_eq!(row("aclrtMallocHostWithCfg")["state"], "absent");
    let text = works(&["functions", "--supported"]);
    assert!(text.contains("aclrtMemcpyAsync") && !text.contains("aclmdlLoadFromFile"), "{text}");
}

#[test]
fn operators_tell_which_are_computed() {
    let all: serde_json::Value = serde_json::from_str(&works(&["ops", "--json"])).unwrap();
    let supported =
        |name: &str| all.as_array().unwrap().iter().find(|r| r["operator"] == name).unwrap()["supported"].clone();
    assert_eq!((supported("aclnnMatmul"), supported("aclnnMatmulAllReduce")), (true.into(), false.into()));
}

//! C programs against the ABI: compiled with headers made of the tables, run with the device in their own process and through a daemon.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use stack::{Daemon, program_path, source_root};

const DEVICE: &str = "Ascend910B3:functional:hbm=1";

/// The compiled programs of `tests/c`, and the links they were linked against.
struct Programs {
    dir: tempfile::TempDir,
}

static PROGRAMS: LazyLock<Programs> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    let root = source_root().unwrap();
    let (toolkit, libs) = (dir.path().join("toolkit"), dir.path().join("libs"));
    let mut headers = Command::new("python3");
    headers.arg("-B").arg(root.join("tests/python/toolkit.py")).arg(&toolkit).arg(root.join("tests/c"));
    works(&mut headers);
    works(Command::new(program_path("vnpu").unwrap()).args(["libs", "--dir"]).arg(&libs));
    let mut compile = Command::new("cc");
    compile.args(["-std=gnu17", "-O1", "-Wall", "-Wextra", "-Werror", "-o"]).arg(dir.path().join("llama_cpp"));
    compile.arg(root.join("tests/c/llama_cpp.c")).arg(format!("-I{}", toolkit.join("include").display()));
    compile.arg(format!("-L{}", libs.display())).args(["-lascendcl", "-lopapi", "-lm"]);
    works(&mut compile);
    Programs { dir }
});

#[track_caller]
fn works(command: &mut Command) -> Output {
    let out = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(out.status.success(), "{command:?}: {}{}", text(&out.stdout), text(&out.stderr));
    out
}

/// Runs a part of a program on the device that `via` names.
#[track_caller]
fn computes(via: &[&str], program: &Path, part: &str) {
    let libs = PROGRAMS.dir.path().join("libs");
    let mut command = Command::new(program_path("vnpu").unwrap());
    command.arg("run").args(via).arg("--libs-dir").arg(libs).arg("--").arg(program).arg(part);
    let out = works(&mut command);
    assert_eq!(String::from_utf8_lossy(&out.stdout), "computed\n", "{part} {via:?}");
}

/// One part of `tests/c/llama_cpp.c`, both ways, and nothing of it left in the daemon.
#[track_caller]
fn llama_cpp(part: &str) {
    let program: PathBuf = PROGRAMS.dir.path().join("llama_cpp");
    computes(&["--direct", DEVICE], &program, part);
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path(), DEVICE, "phase").unwrap();
    computes(&["--socket", daemon.socket.to_str().unwrap()], &program, part);
    let gone = || daemon.status().unwrap()["sessions"].as_array().is_some_and(Vec::is_empty);
    system_tests::wait_for("the session has ended", gone);
}

macro_rules! parts {
    ($($(#[$doc:meta])* $test:ident: $part:literal;)*) => {$(
        $(#[$doc])*
        #[test]
        fn $test() {
            llama_cpp($part);
        }
    )*};
}

parts! {
    weights_in_fractal_nz_are_multiplied_by_their_tag: "private_weights";
    quantised_weights_are_widened_by_groups: "quantised_weights";
    int4_weights_are_two_to_a_byte: "packed_int4";
    the_default_stream_is_a_stream_like_any_other: "default_stream";
    far_more_addresses_than_memory_can_be_reserved: "over_reservation";
    everything_can_be_given_back_after_the_device_was_reset: "after_reset";
    attention_takes_its_mask_as_an_addend: "attention";
    views_of_six_dimensions_and_mixed_types_are_read: "views";
}

//! llama.cpp, unmodified, on virtual NPUs: built from the source that llama-cpp-python publishes, with its CANN backend and a toolkit
//! made of this project's tables (`tests/python/toolkit.py`), and its greedy tokens on the device compared with those of its own CPU
//! backend.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use stack::Daemon;

use crate::build::{self, Scratch};
use crate::suite::nothing_left;
use crate::test::Tally;

/// The source on PyPI, which carries llama.cpp.
const SOURCE: &str = "llama-cpp-python==0.3.36";
/// Its directory, once unpacked.
const UNPACKED: &str = "llama_cpp_python-0.3.36";
const REQUIREMENTS: &str = "tests/python/llama/requirements.txt";
/// Counts up when this program changes what it builds.
const LAYOUT: u32 = 1;
/// The device.
const DEVICE: &str = "Ascend910B3:functional:hbm=2";

/// One way to run a model: what it is called, the backend's variables, and whether attention is fused.
type Way = (&'static str, &'static [(&'static str, &'static str)], &'static [&'static str]);
const WAYS: [Way; 4] = [
    ("graphs", &[], &[]),
    ("eager", &[("GGML_CANN_ACL_GRAPH", "off")], &[]),
    // With graphs and without fused attention it replays graphs that name memory which no allocation holds by then, an error.
    (
        "plain attention, weights row by row, eager",
        &[("GGML_CANN_WEIGHT_NZ", "off"), ("GGML_CANN_ACL_GRAPH", "off")],
        &["plain"],
    ),
    ("fused operators", &[("GGML_CANN_OPERATOR_FUSION", "on")], &[]),
];

/// What runs: an interpreter, the package, and the libraries that were built.
struct Llama {
    python: PathBuf,
    package: PathBuf,
    libraries: PathBuf,
    models: PathBuf,
}

/// Runs every model whose name contains `filter` in every way, in the process's own device and through a daemon.
///
/// # Errors
/// If it cannot be built; tokens that differ are in the tally.
pub fn run(filter: &str) -> Result<Tally> {
    let llama = Llama::ready()?;
    let scratch = Scratch::new()?;
    let daemons = [Daemon::start_named(scratch.path(), "npu0", DEVICE, "phase")?];
    let socket = daemons[0].socket.display().to_string();
    let entries = std::fs::read_dir(&llama.models)?.map(|e| Ok(e?.path())).collect::<Result<Vec<PathBuf>>>()?;
    let mut models: Vec<PathBuf> = entries.into_iter().filter(|path| path.is_file()).collect();
    models.sort();
    let mut tally = Tally::default();
    for model in models {
        let name = model.file_stem().context("a model has a name")?.to_string_lossy().into_owned();
        if !name.contains(filter) {
            continue;
        }
        // A quantised model's twin: the CPU backend would quantise activations too.
        let twin = llama.models.join("reference").join(model.file_name().context("a model has a name")?);
        let reference = if twin.exists() { twin } else { model.clone() };
        for (way, variables, how) in WAYS {
            let want = llama.tokens(&["--direct", DEVICE], &reference, "cpu", variables, how)?;
            for via in [["--direct", DEVICE], ["--socket", &socket]] {
                match llama.tokens(&via, &model, "npu", variables, how) {
                    Ok(got) if got == want => {
                        println!("{name}, {way}, {} ... ok", via[0]);
                        tally.passed += 1;
                    }
                    Ok(got) => {
                        println!("{name}, {way}, {} ... FAILED\n  device {got:?}\n  cpu    {want:?}", via[0]);
                        tally.failed += 1;
                    }
                    Err(error) => {
                        println!("{name}, {way}, {} ... FAILED: {error:#}", via[0]);
                        tally.failed += 1;
                    }
                }
            }
        }
    }
    tally += nothing_left(&daemons)?;
    Ok(tally)
}

impl Llama {
    /// Builds it if need be, under `target/llama`; several minutes the first time.
    fn ready() -> Result<Self> {
        let root = build::root();
        let dir = root.join("target/llama");
        let (venv, source, out) = (dir.join("venv"), dir.join(UNPACKED).join("vendor/llama.cpp"), dir.join("build"));
        let made = Self {
            python: venv.join("bin/python"),
            package: dir.join(UNPACKED),
            libraries: out.join("bin"),
            models: dir.join("models"),
        };
        let packages = std::fs::read_to_string(root.join(REQUIREMENTS)).context(REQUIREMENTS)?;
        let (stamp, wanted) = (dir.join("built.txt"), format!("layout {LAYOUT}\n{SOURCE}\n{packages}"));
        if std::fs::read_to_string(&stamp).is_ok_and(|have| have == wanted) {
            return Ok(made);
        }
        println!("{SOURCE} from PyPI into {}", dir.display());
        if dir.exists() {
            std::fs::remove_dir_all(&dir)?;
        }
        std::fs::create_dir_all(&dir)?;
        let pip = || {
            let mut pip = Command::new(&made.python);
            pip.args(["-m", "pip", "--disable-pip-version-check"]);
            pip
        };
        succeeds(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
        succeeds(pip().args(["install", "-r"]).arg(root.join(REQUIREMENTS)))?;
        succeeds(pip().args(["download", "--no-deps", "--no-binary", ":all:", SOURCE, "--dest"]).arg(&dir))?;
        let archive = dir.join(format!("{UNPACKED}.tar.gz"));
        succeeds(Command::new("tar").arg("-xzf").arg(archive).arg("-C").arg(&dir))?;
        let toolkit = dir.join("toolkit");
        let mut tables = Command::new(&made.python);
        tables.arg("-B").arg(root.join("tests/python/toolkit.py")).arg(&toolkit);
        succeeds(tables.arg(source.join("ggml/src/ggml-cann")))?;
        let mut configure = Command::new("cmake");
        configure.arg("-S").arg(&source).arg("-B").arg(&out).arg(format!("-DCANN_INSTALL_DIR={}", toolkit.display()));
        configure.args([
            "-DCMAKE_BUILD_TYPE=Release",
            "-DBUILD_SHARED_LIBS=ON",
            "-DGGML_CANN=ON",
            "-DUSE_ACL_GRAPH=ON",
        ]);
        configure.args(["-DSOC_TYPE=Ascend910B3", "-DLLAMA_BUILD_COMMON=OFF", "-DLLAMA_CURL=OFF"]);
        // Compiling takes longer than running: the models are tiny.
        configure.args(["-DCMAKE_CXX_FLAGS_RELEASE=-O1", "-DCMAKE_C_FLAGS_RELEASE=-O2"]);
        succeeds(&mut configure)?;
        let jobs = std::thread::available_parallelism()?.to_string();
        succeeds(Command::new("cmake").arg("--build").arg(&out).args(["--target", "llama", "--parallel", &jobs]))?;
        let script = root.join("tests/python/llama/models.py");
        succeeds(Command::new(&made.python).arg("-B").arg(script).arg(&made.models))?;
        std::fs::write(stamp, wanted)?;
        Ok(made)
    }

    /// What `generate.py` prints.
    fn tokens(
        &self,
        via: &[&str],
        model: &Path,
        place: &str,
        variables: &[(&str, &str)],
        how: &[&str],
    ) -> Result<Vec<String>> {
        let mut command = Command::new(stack::program_path("vnpu")?);
        command.arg("run").args(via).arg("--").arg(&self.python).arg("-B");
        command.arg(build::root().join("tests/python/llama/generate.py")).arg(model).arg(place).args(how);
        command.env("PYTHONPATH", &self.package).env("LLAMA_CPP_LIB_PATH", &self.libraries);
        let out = command.envs(variables.iter().copied()).output().with_context(|| format!("{command:?}"))?;
        let said = String::from_utf8_lossy(&out.stderr);
        let last: Vec<&str> = said.lines().rev().take(6).collect();
        ensure!(out.status.success(), "{place} ended with {}: {last:?}", out.status);
        Ok(String::from_utf8_lossy(&out.stdout).lines().map(str::to_owned).collect())
    }
}

fn succeeds(command: &mut Command) -> Result<()> {
    ensure!(command.status().with_context(|| format!("{command:?}"))?.success(), "{command:?} failed");
    Ok(())
}

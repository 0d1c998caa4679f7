//! Child processes with a `ready` line.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::START_TIME_MAX;

/// Lines of output kept for error messages.
const LINES_KEPT_MAX: usize = 400;
/// How long a program may take to end after SIGTERM before it is killed.
const STOP_TIME_MAX: Duration = Duration::from_secs(5);

/// The same for a program that has processes of its own to end.
const STOP_GROUP_TIME_MAX: Duration = Duration::from_secs(30);

/// Process ids of the programs that run now, for [`end_all`].
pub(crate) static RUNNING: Mutex<Vec<u32>> = Mutex::new(Vec::new());

/// Kills every program that this process started and that still runs: for signal handlers' threads.
pub fn end_all() {
    for pid in std::mem::take(&mut *RUNNING.lock().unwrap_or_else(PoisonError::into_inner)) {
        signal(pid, libc::SIGTERM);
    }
}

fn signal(pid: u32, signal: libc::c_int) {
    // SAFETY: kill has no memory effects; the id is of a child that we started and have not reaped.
    unsafe { libc::kill(pid as libc::pid_t, signal) };
}

/// The child gets SIGTERM when the thread that starts it ends.
pub(crate) fn die_with_parent(command: &mut Command) {
    let parent = std::process::id();
    // SAFETY: prctl and getppid are async-signal-safe and touch no memory of ours.
    unsafe {
        command.pre_exec(move || {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
            if libc::getppid() as u32 != parent {
                return Err(std::io::Error::other("parent is gone"));
            }
            Ok(())
        });
    }
}

/// Path of one of our programs: beside the running executable, or one directory up (test executables).
///
/// # Errors
/// Says which command builds it.
pub fn program_path(name: &str) -> Result<PathBuf> {
    let exe = std::env::current_exe().context("no path of the running executable")?;
    let found = exe.ancestors().skip(1).take(2).map(|d| d.join(name)).find(|p| p.is_file());
    found.with_context(|| format!("`{name}` is not built: run `cargo build --release`"))
}

/// A running program.
pub struct Program {
    child: Child,
    name: String,
    ready: String,
    log: Arc<Mutex<VecDeque<String>>>,
    /// It leads a process group of its own, which ends with it.
    leads: bool,
}

/// Told of each line that a program writes.
type Watch = Arc<dyn Fn(&str) + Send + Sync>;

impl Program {
    /// Starts `command` and waits for its line that begins with `ready`.
    ///
    /// # Errors
    /// If it ends first or takes longer than [`START_TIME_MAX`]; with its last output.
    pub fn start(name: &str, command: Command) -> Result<Self> {
        let (lines, ready) = channel();
        // Gone with the program's standard output, so that its end is seen at once.
        let (mut program, errors) = Self::spawn(name, command, false, Arc::new(|_: &str| ()), Some(lines))?;
        program.ready = program.wait_ready(&ready, &errors)?;
        Ok(program)
    }

    /// Starts a program that nobody here wrote, with a process group of its own, and waits until `is_ready`. Each line that it or its
    /// children write goes to `watch`, errors too.
    ///
    /// # Errors
    /// If it ends first or takes longer than `at_most`; with its last output.
    pub fn start_when(
        name: &str,
        command: Command,
        at_most: Duration,
        is_ready: impl Fn() -> bool,
        watch: impl Fn(&str) + Send + Sync + 'static,
    ) -> Result<Self> {
        let (mut program, _) = Self::spawn(name, command, true, Arc::new(watch), None)?;
        let deadline = Instant::now() + at_most;
        while !is_ready() {
            if let Some(status) = program.wait(Duration::from_millis(100)) {
                bail!("{name} ended before it was ready ({status}):\n{}", program.output());
            }
            if Instant::now() >= deadline {
                bail!("{name} was not ready within {at_most:?}:\n{}", program.output());
            }
        }
        Ok(program)
    }

    fn spawn(
        name: &str,
        mut command: Command,
        leads: bool,
        watch: Watch,
        lines: Option<Sender<String>>,
    ) -> Result<(Self, JoinHandle<()>)> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if leads {
            command.process_group(0);
        }
        die_with_parent(&mut command);
        let mut child = command.spawn().with_context(|| format!("starting {name}"))?;
        RUNNING.lock().unwrap_or_else(PoisonError::into_inner).push(child.id());
        let log = Arc::new(Mutex::new(VecDeque::new()));
        let stdout = child.stdout.take().context("stdout was piped")?;
        let stderr = child.stderr.take().context("stderr was piped")?;
        let (own_log, own_watch) = (Arc::clone(&log), Arc::clone(&watch));
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let Some(lines) = lines.as_ref().filter(|_| line.starts_with("ready")) {
                    let _ = lines.send(line.clone());
                }
                own_watch(&line);
                keep(&own_log, line);
            }
        });
        let own_log = Arc::clone(&log);
        let errors = std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                watch(&line);
                keep(&own_log, line);
            }
        });
        Ok((Self { child, name: name.to_owned(), ready: String::new(), log, leads }, errors))
    }

    fn wait_ready(&mut self, ready: &Receiver<String>, errors: &JoinHandle<()>) -> Result<String> {
        let deadline = Instant::now() + START_TIME_MAX;
        loop {
            match ready.recv_timeout(Duration::from_millis(50)) {
                Ok(line) => return Ok(line),
                Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => {}
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.wait(Duration::from_secs(5));
                    // Its last words may still be on their way through the other pipe.
                    while !errors.is_finished() && Instant::now() < deadline {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    bail!("{} ended before it was ready ({status:?}):\n{}", self.name, self.output());
                }
                Err(RecvTimeoutError::Timeout) => {
                    bail!("{} was not ready within {START_TIME_MAX:?}:\n{}", self.name, self.output())
                }
            }
        }
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Value of `key=` in the ready line.
    pub fn ready_field(&self, key: &str) -> Option<String> {
        self.ready.split_whitespace().find_map(|w| w.strip_prefix(key)?.strip_prefix('=')).map(str::to_owned)
    }

    /// The `http://…` or `https://…` word of the ready line.
    ///
    /// # Errors
    /// If there is none.
    pub fn ready_url(&self) -> Result<String> {
        let url = self.ready.split_whitespace().find(|w| w.starts_with("http://") || w.starts_with("https://"));
        url.map(str::to_owned).with_context(|| format!("no URL in `{}` of {}", self.ready, self.name))
    }

    /// The last lines it wrote.
    pub fn output(&self) -> String {
        let lines = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().map(|l| format!("{}: {l}\n", self.name)).collect()
    }

    /// Ends it the hard way, as `kill -9` does.
    pub fn kill(&mut self) {
        self.end_group();
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.forget();
    }

    /// Waits for its end.
    pub fn wait(&mut self, at_most: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + at_most;
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                self.forget();
                return Some(status);
            }
            if Instant::now() >= deadline {
                return None;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Asks it to end (SIGTERM) and waits; kills it if it does not.
    pub fn stop(&mut self) -> ExitStatus {
        if let Some(status) = self.wait(Duration::ZERO) {
            return status;
        }
        signal(self.child.id(), libc::SIGTERM);
        let at_most = if self.leads { STOP_GROUP_TIME_MAX } else { STOP_TIME_MAX };
        if let Some(status) = self.wait(at_most) {
            return status;
        }
        self.kill();
        ExitStatus::from_raw(libc::SIGKILL)
    }

    /// Ends what is left of its group. Before the program is reaped: its number is its group's.
    fn end_group(&self) {
        if self.leads {
            // SAFETY: kill has no memory effects; the group is of a child that we started.
            unsafe { libc::kill(-(self.child.id() as libc::pid_t), libc::SIGKILL) };
        }
    }

    fn forget(&self) {
        RUNNING.lock().unwrap_or_else(PoisonError::into_inner).retain(|&pid| pid != self.child.id());
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.stop();
    }
}

fn keep(log: &Mutex<VecDeque<String>>, line: String) {
    let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
    if log.len() == LINES_KEPT_MAX {
        log.pop_front();
    }
    log.push_back(line);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn ready_line_is_read_and_the_child_ends_with_the_value() {
        let program = Program::start("sh", shell("echo noise; echo ready a=1 http://x:1; exec sleep 60")).unwrap();
        assert_eq!(program.ready_field("a").as_deref(), Some("1"));
        assert_eq!(program.ready_url().unwrap(), "http://x:1");
        let pid = program.pid();
        drop(program);
        assert!(!std::path::Path::new(&format!("/proc/{pid}/stat")).exists());
    }

    #[test]
    fn a_program_without_a_ready_line_is_asked_and_its_children_end_with_it() {
        let child = Arc::new(Mutex::new(String::new()));
        let (seen, known) = (Arc::clone(&child), Arc::clone(&child));
        let script = shell("sleep 60 & echo $! >&2; trap '' TERM; while :; do sleep 0.1; done");
        let is_ready = move || !known.lock().unwrap().is_empty();
        let watch = move |line: &str| seen.lock().unwrap().push_str(line);
        let mut program = Program::start_when("sh", script, START_TIME_MAX, is_ready, watch).unwrap();
        program.kill();
        let stat = format!("/proc/{}/stat", child.lock().unwrap());
        let gone = || std::fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z "));
        let deadline = Instant::now() + Duration::from_secs(10);
        while !gone() {
            assert!(Instant::now() < deadline, "the child of a killed program still runs");
            std::thread::sleep(Duration::from_millis(5));
        }
        let error = Program::start_when("sh", shell("echo broken; exit 3"), START_TIME_MAX, || false, |_| ());
        assert!(error.err().unwrap().to_string().contains("ended before it was ready"));
    }

    #[test]
    fn early_end_reports_what_it_wrote() {
        let error = Program::start("sh", shell("echo broken >&2; exit 3")).err().unwrap().to_string();
        assert!(error.contains("ended before it was ready") && error.contains("broken"), "{error}");
    }
}

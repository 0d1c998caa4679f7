//! Programs that run to their end: their output is passed on line by line, their time is bounded.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::PoisonError;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::process::{RUNNING, die_with_parent};

/// How long after its time a program's output is read at most.
const LAST_WORDS_MAX: Duration = Duration::from_secs(2);

/// How a program ended.
#[derive(Debug)]
pub enum Ended {
    /// By itself.
    Exit(ExitStatus),
    /// It was killed, with its children, because its time was over.
    Late,
}

impl Ended {
    /// Whether it ended by itself, with success.
    pub fn success(&self) -> bool {
        matches!(self, Self::Exit(status) if status.success())
    }
}

/// Runs `command` to its end, or `at_most` that long, and hands each line of its output and errors to `line`, in the order
/// they come.
///
/// # Errors
/// If it cannot be started.
pub fn run_script(mut command: Command, at_most: Duration, mut line: impl FnMut(&str)) -> Result<Ended> {
    let deadline = Instant::now() + at_most;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    die_with_parent(&mut command);
    let mut child = command.spawn().with_context(|| format!("starting {}", command.get_program().display()))?;
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner).push(child.id());
    let (sender, lines) = channel();
    pass_on(child.stdout.take().context("stdout was piped")?, sender.clone());
    pass_on(child.stderr.take().context("stderr was piped")?, sender);
    // A grandchild may hold the pipes open after the child is gone: its end decides, then what it wrote before is read.
    let mut ended = None;
    loop {
        match lines.recv_timeout(Duration::from_millis(20)) {
            Ok(text) => line(&text),
            Err(RecvTimeoutError::Timeout) if ended.is_some() => break,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) if ended.is_some() => break,
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(Duration::from_millis(5)),
        }
        if ended.is_some() {
            if Instant::now() >= deadline + LAST_WORDS_MAX {
                break;
            }
            continue;
        }
        if let Some(status) = child.try_wait()? {
            ended = Some(Ended::Exit(status));
        } else if Instant::now() >= deadline {
            // SAFETY: kill has no memory effects; the group is the child's own, and the child is not reaped yet.
            unsafe { libc::kill(-(child.id() as libc::pid_t), libc::SIGKILL) };
            child.wait()?;
            ended = Some(Ended::Late);
        }
    }
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner).retain(|&pid| pid != child.id());
    Ok(ended.unwrap_or(Ended::Late))
}

fn pass_on(pipe: impl Read + Send + 'static, lines: Sender<String>) {
    std::thread::spawn(move || {
        for text in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
            if lines.send(String::from_utf8_lossy(&text).into_owned()).is_err() {
                break;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, at_most: Duration) -> (Ended, Vec<String>) {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let mut lines = Vec::new();
        let ended = run_script(command, at_most, |line| lines.push(line.to_owned())).unwrap();
        (ended, lines)
    }

    #[test]
    fn output_and_status_are_passed_on() {
        let (ended, lines) = shell("echo one; sleep 0.1; echo two >&2; exit 3", Duration::from_secs(30));
        assert!(matches!(ended, Ended::Exit(status) if status.code() == Some(3)), "{ended:?}");
        assert_eq!(lines, ["one", "two"]);
    }

    #[test]
    fn late_programs_are_killed_with_their_children() {
        let (ended, lines) = shell("sleep 100 & echo $!; wait", Duration::from_millis(300));
        assert!(matches!(ended, Ended::Late), "{ended:?}");
        let child = std::path::PathBuf::from(format!("/proc/{}/stat", lines[0]));
        let gone = || std::fs::read_to_string(&child).map_or(true, |stat| stat.contains(") Z "));
        let deadline = Instant::now() + Duration::from_secs(10);
        while !gone() {
            assert!(Instant::now() < deadline, "the child of a killed program still runs");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

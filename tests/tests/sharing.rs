//! Processes that share memory, events and a device through a daemon: real ones, that end and are killed.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use stack::{Daemon, program_path};
use system_tests::{FUNCTIONAL, wait_for};

const BYTES: u32 = 1 << 20;
const PARAM: i32 = 107_000;
const IPC_ERROR: i32 = 507_022;
const TIMEOUT: i32 = 507_047;

/// A process of `tests/python/sharing.py`.
struct Peer {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Peer {
    fn start(daemon: &Daemon) -> Self {
        let script = stack::source_root().unwrap().join("tests/python/sharing.py");
        let mut command = Command::new(program_path("vnpu").unwrap());
        command.args(["run", "--socket"]).arg(&daemon.socket).args(["--", "python3", "-B"]).arg(script);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut peer = Self { child, stdin, stdout };
        assert_eq!(peer.line(), "ready");
        peer
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    /// Code, and the text or the result.
    fn call(&mut self, call: &str) -> (i32, String) {
        writeln!(self.stdin, "{call}").unwrap();
        let line = self.line();
        let (code, rest) = line.split_once(' ').unwrap_or((&line, ""));
        (code.parse().unwrap_or_else(|_| panic!("{call}: `{line}`")), rest.to_owned())
    }

    #[track_caller]
    fn ok(&mut self, call: &str) -> String {
        let (code, rest) = self.call(call);
        assert_eq!(code, 0, "{call}: {rest}");
        rest
    }

    #[track_caller]
    fn fails(&mut self, call: &str, want: i32, part: &str) {
        let (code, text) = self.call(call);
        assert_eq!(code, want, "{call}: {text}");
        assert!(text.contains(part), "{call}: `{text}` does not say `{part}`");
    }

    /// `kill -9`, and until the daemon has noticed.
    fn kill(mut self, daemon: &Daemon, left: usize) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        wait_for("the daemon drops the session", || sessions(daemon) == left);
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn sessions(daemon: &Daemon) -> usize {
    daemon.status().unwrap()["sessions"].as_array().map_or(0, Vec::len)
}

fn used_bytes(daemon: &Daemon) -> u64 {
    daemon.status().unwrap()["memory"]["used_bytes"].as_u64().unwrap()
}

fn start() -> (tempfile::TempDir, Daemon) {
    let dir = stack::scratch().unwrap();
    let daemon = Daemon::start(dir.path(), FUNCTIONAL, "fifo").unwrap();
    (dir, daemon)
}

/// Two processes with one block of memory and one event.
fn pair(daemon: &Daemon) -> (Peer, Peer, String) {
    let (mut writer, mut reader) = (Peer::start(daemon), Peer::start(daemon));
    writer.ok(&format!("malloc {BYTES}"));
    writer.ok(&format!("fill 1 {BYTES}"));
    writer.ok("synchronise");
    writer.ok("create");
    let key = writer.ok(&format!("export {BYTES}"));
    reader.ok(&format!("attach {key}"));
    let handle = writer.ok("handle");
    reader.ok(&format!("open {handle}"));
    (writer, reader, handle)
}

#[test]
fn an_event_orders_two_processes() {
    let (_dir, daemon) = start();
    let (mut writer, mut reader, handle) = pair(&daemon);
    assert_eq!(reader.ok("query"), "0", "never recorded");
    reader.ok("synchronise_event");
    for round in 2..8 {
        writer.ok("hold");
        writer.ok(&format!("fill {round} {BYTES}"));
        writer.ok("record");
        reader.ok("wait");
        assert_eq!((reader.ok("query"), reader.ok("idle")), ("0".to_owned(), "0".to_owned()), "round {round}");
        reader.fails("synchronise_event 1", TIMEOUT, "not complete after 1 ms");
        writer.ok("go");
        assert_eq!(reader.ok(&format!("read {BYTES}")), format!("[{round}]"));
        assert_eq!((writer.ok("query"), reader.ok("query")), ("1".to_owned(), "1".to_owned()));
    }
    // Either may record.
    reader.ok("hold");
    reader.ok("record");
    writer.fails("synchronise_event 1", TIMEOUT, "not complete after 1 ms");
    reader.ok("go");
    writer.ok("synchronise_event");
    reader.fails("handle", PARAM, "another process created the event");
    writer.fails(&format!("open {handle}"), PARAM, "this process created the event");
    writer.fails(&format!("open {}", "0".repeat(128)), PARAM, "aclrtIpcGetEventHandle did not make it");
    writer.ok("create 0");
    writer.fails("handle", PARAM, "was not created with ACL_EVENT_IPC");
}

#[test]
fn an_event_that_its_creator_destroys_lives_on_for_who_opened_it() {
    let (_dir, daemon) = start();
    let (mut writer, mut reader, handle) = pair(&daemon);
    writer.ok("hold");
    writer.ok(&format!("fill 9 {BYTES}"));
    writer.ok("record");
    reader.ok("wait");
    writer.ok("destroy");
    let mut late = Peer::start(&daemon);
    late.fails(&format!("open {handle}"), PARAM, "the key is unknown");
    assert_eq!(reader.ok("query"), "0");
    writer.ok("go");
    assert_eq!(reader.ok(&format!("read {BYTES}")), "[9]");
    assert_eq!(reader.ok("query"), "1");
    reader.ok("destroy");
    reader.fails("query", 107_017, "event");
}

#[test]
fn who_waits_for_a_process_that_is_killed_is_told_so() {
    let (_dir, daemon) = start();
    let (mut writer, mut reader, handle) = pair(&daemon);
    let mut third = Peer::start(&daemon);
    third.ok(&format!("open {handle}"));
    // A recording that is complete is not taken back.
    writer.ok("record");
    writer.ok("synchronise");
    third.ok("wait");
    third.ok("synchronise");
    writer.ok("hold");
    writer.ok(&format!("fill 9 {BYTES}"));
    writer.ok("record");
    reader.ok("wait");
    assert_eq!(reader.ok("idle"), "0");
    writer.kill(&daemon, 2);
    reader.fails("synchronise", IPC_ERROR, "ended before its stream got there");
    reader.fails("query", IPC_ERROR, "ended before its stream got there");
    third.fails("synchronise_event", IPC_ERROR, "ended before its stream got there");
    third.ok("wait");
    third.fails("synchronise", IPC_ERROR, "ended before its stream got there");
    // The memory is the reader's now, as it was, and the event can be used on.
    assert_eq!(reader.ok(&format!("read {BYTES}")), "[1]");
    reader.ok("record");
    third.ok("synchronise_event");
    assert_eq!(third.ok("query"), "1");
}

#[test]
fn memory_outlives_a_killed_exporter_and_a_killed_importer_is_not_missed() {
    let (_dir, daemon) = start();
    let mut exporter = Peer::start(&daemon);
    exporter.ok(&format!("malloc {BYTES}"));
    exporter.ok(&format!("fill 7 {BYTES}"));
    exporter.ok("synchronise");
    let key = exporter.ok(&format!("export {BYTES}"));
    let [mut first, mut second] = [0; 2].map(|_| Peer::start(&daemon));
    first.ok(&format!("attach {key}"));
    second.ok(&format!("attach {key}"));
    second.kill(&daemon, 2);
    assert_eq!(exporter.ok(&format!("read {BYTES}")), "[7]");
    // It writes, behind a wait that never ends, when it is killed.
    exporter.ok("hold");
    exporter.ok(&format!("fill 8 {BYTES}"));
    exporter.kill(&daemon, 1);
    assert_eq!(first.ok(&format!("read {BYTES}")), "[7]");
    first.ok(&format!("fill 5 {BYTES}"));
    assert_eq!(first.ok(&format!("read {BYTES}")), "[5]");
    let mut late = Peer::start(&daemon);
    late.fails(&format!("attach {key}"), PARAM, "the key is unknown");
    assert!(used_bytes(&daemon) >= u64::from(BYTES));
    first.ok(&format!("close {key}"));
    late.kill(&daemon, 1);
    wait_for("the memory is back", || used_bytes(&daemon) < u64::from(BYTES));
}

/// Where a process is when it is killed, and the calls that bring it there.
const MIDDLES: [(&str, &[&str]); 4] = [
    ("a wait", &["hold"]),
    ("a capture", &["capture", "stand"]),
    ("a replay", &["clear", "capture", "stand", "replay"]),
    ("a callback on the host", &["callback"]),
];

#[test]
fn a_process_killed_in_the_middle_of_something_leaves_nothing_and_its_neighbour_goes_on() {
    let (_dir, daemon) = start();
    let mut neighbour = Peer::start(&daemon);
    neighbour.ok(&format!("malloc {BYTES}"));
    let kept = used_bytes(&daemon);
    for (round, (place, calls)) in (1..).zip(MIDDLES) {
        let mut peer = Peer::start(&daemon);
        peer.ok(&format!("malloc {BYTES}"));
        for call in calls {
            peer.ok(call);
        }
        peer.ok(&format!("fill 9 {BYTES}"));
        // Both have work that stands still.
        neighbour.ok("hold");
        neighbour.ok(&format!("fill {round} {BYTES}"));
        peer.kill(&daemon, 1);
        assert_eq!(used_bytes(&daemon), kept, "killed in {place}");
        assert_eq!(neighbour.ok("idle"), "0", "killed in {place}");
        neighbour.ok("go");
        assert_eq!(neighbour.ok(&format!("read {BYTES}")), format!("[{round}]"), "killed in {place}");
        let mut next = Peer::start(&daemon);
        next.ok(&format!("malloc {BYTES}"));
        assert_eq!(next.ok(&format!("read {BYTES}")), "[0]", "killed in {place}");
        next.kill(&daemon, 1);
    }
    let status = daemon.status().unwrap();
    assert_eq!(status["violations_total"], 0, "{status}");
    neighbour.kill(&daemon, 0);
    assert_eq!(used_bytes(&daemon), 0);
}

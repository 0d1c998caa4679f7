//! What the other process does.

use session::{
    AcceptError, Client, ConnectOptions, Connection, DeviceFacts, Doorbell, Layout, Listener, ServerSession,
};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;
use wire::{HostSource, Record, Reply};

/// Small enough that a test fills it.
pub fn layout() -> Layout {
    Layout { ring_bytes: 16 << 10, arena_bytes: 1 << 20, staging_block_bytes: 4096, staging_blocks: 4, reply_slots: 16 }
}

/// How a daemon behaves.
#[derive(Clone, Copy)]
pub enum Mode {
    /// Answers everything.
    Honest,
    /// Accepts sessions and never reads a ring.
    Deaf,
}

/// This binary, in a role, until its standard input closes.
pub struct Child {
    process: std::process::Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Child {
    fn start(args: &[&str]) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .arg("role")
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        Self { process, output }
    }

    /// A daemon that is listening.
    pub fn serve(path: &Path, mode: Mode) -> Self {
        let mode = if matches!(mode, Mode::Honest) { "honest" } else { "deaf" };
        let mut child = Self::start(&["serve", path.to_str().unwrap(), mode]);
        child.expect_ready();
        child
    }

    /// A client that connects; [`Child::wait_ready`] waits until it has.
    pub fn client(path: &Path, behaviour: &str) -> Waiting {
        Waiting(Self::start(&["client", path.to_str().unwrap(), behaviour]))
    }

    fn expect_ready(&mut self) {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
    }

    pub fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Lets the child go on: it sees the end of its input.
    pub fn tell(mut self) -> Self {
        drop(self.process.stdin.take());
        self
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Runs `f` in a forked child and returns its exit status.
pub fn in_fork(f: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the caller's process has no other thread that holds a lock which the child needs: the only other threads
    // wait in system calls.
    match unsafe { libc::fork() } {
        0 => {
            let status = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).unwrap_or(101);
            // SAFETY: ends the child without running the parent's destructors.
            unsafe { libc::_exit(status) }
        }
        pid => {
            assert!(pid > 0, "fork");
            let mut status = 0;
            // SAFETY: waits for our own child.
            assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
            if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 1000 + status }
        }
    }
}

/// Runs the role that the arguments name, until standard input closes.
pub fn run(args: &[String]) {
    // Nothing that a test does takes this long: a role never outlives a broken test.
    // SAFETY: the default action of SIGALRM ends this process.
    unsafe { libc::alarm(60) };
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["serve", path, mode] => serve(Path::new(path), mode == "honest"),
        ["client", path, behaviour] => client(Path::new(path), behaviour),
        _ => panic!("no such role: {args:?}"),
    }
}

fn say_ready() {
    println!("ready");
    std::io::stdout().flush().unwrap();
}

fn wait_for_end_of_input() {
    let _ = std::io::stdin().read(&mut [0]);
}

fn client(path: &Path, behaviour: &str) {
    let client = Client::connect(path, &ConnectOptions::default()).unwrap();
    for stream in [11, 12] {
        client.post(&Record::StreamDestroy { stream }, None).unwrap();
    }
    if behaviour == "idle-with-child" {
        // SAFETY: the child only waits, with the parent's descriptors open, until it is killed by its alarm or sees that
        // its parent is gone long ago.
        if unsafe { libc::fork() } == 0 {
            // SAFETY: plain system calls.
            unsafe {
                libc::close(1);
                libc::sleep(2);
                libc::_exit(0)
            }
        }
    }
    say_ready();
    wait_for_end_of_input();
    drop(client);
    if behaviour == "leave" {
        // The process stays: only its session ended.
        std::thread::sleep(Duration::from_secs(2));
    }
}

struct Served {
    session: ServerSession,
    connection: Connection,
    posts: u64,
    staged: u64,
}

/// Accepts on one thread and serves on another, as a daemon does.
fn serve(path: &Path, honest: bool) {
    let doorbell = Doorbell::new().unwrap();
    let facts = DeviceFacts { soc_name: "Ascend910B3".into(), hbm_bytes: 64 << 30, device_index: 0, epoch: 5 };
    let listener = Listener::bind(path, layout(), doorbell.clone(), facts).unwrap();
    let (send, receive) = mpsc::channel();
    let bell = doorbell.clone();
    std::thread::spawn(move || {
        loop {
            match listener.accept() {
                Ok((session, connection)) => {
                    send.send(Served { session, connection, posts: 0, staged: 0 }).unwrap();
                    bell.ring();
                }
                Err(AcceptError::Stopped | AcceptError::Listen(_)) => break,
                Err(_) => {}
            }
        }
    });
    std::thread::spawn(move || dispatch(&doorbell, &receive, honest));
    say_ready();
    wait_for_end_of_input();
}

fn dispatch(doorbell: &Doorbell, arrivals: &mpsc::Receiver<Served>, honest: bool) {
    let mut sessions = HashMap::new();
    loop {
        sessions.extend(arrivals.try_iter().map(|s| (s.session.id(), s)));
        if honest {
            sessions.retain(|_, served| !served.connection.is_gone() && step(served));
        }
        let pending = honest && sessions.values().any(|s| s.session.prepare_sleep());
        if !pending {
            doorbell.wait(Some(Duration::from_millis(20)));
        }
        sessions.values().for_each(|s| s.session.cancel_sleep());
    }
}

/// False if the client broke the protocol.
fn step(served: &mut Served) -> bool {
    let Served { session, posts, staged, .. } = served;
    let (id, peer) = (session.id(), session.peer().clone());
    let drained = session.drain(1000, &mut |replier, record, _| match record {
        Record::Malloc { size, reply } => replier.reply(reply, &Reply::value(!size)),
        Record::MemInfo { reply } => {
            let payload = [u64::from(peer.pid), peer.va_base, peer.va_len, id];
            replier.reply(reply, &Reply { status: 0, payload, text: peer.process_name.clone() });
        }
        Record::DeviceSync { reply } => {
            replier.reply(reply, &Reply { payload: [*posts, *staged, 0, 0], ..Reply::ok() });
        }
        Record::StreamDestroy { .. } => *posts += 1,
        Record::CopyIn { source: HostSource::Staging { block, len }, .. } => {
            let range = replier.arena().staging_range(block, len).unwrap();
            let ptr = replier.arena().ptr(range).unwrap();
            // SAFETY: the range is in the arena and holds eight bytes.
            *staged += unsafe { ptr.cast::<u64>().read_volatile() };
            replier.release_staging(block);
        }
        _ => {}
    });
    drained.is_ok()
}

/// A client child that may not have connected yet.
pub struct Waiting(Child);

impl Waiting {
    pub fn pid(&self) -> u32 {
        self.0.process.id()
    }

    pub fn ready(mut self) -> Child {
        self.0.expect_ready();
        self.0
    }
}

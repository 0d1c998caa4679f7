//! The hint listener: one small thread that takes the gateway's phase hints and posts them into the command ring, in order
//! with the operators.
//!
//! It binds the Unix stream socket that `VNPU_HINTS` names when the first session opens (never before: a parent that forks
//! engines has none) and reads JSON lines. Hints are advice, so nothing here can fail a call: a socket that cannot be bound,
//! a malformed or overlong line and one connection too many are logged; the daemon is told how many lines were no hints.
//!
//! Bounds: [`CONNECTIONS_MAX`] connections, [`wire::HINT_JSON_BYTES_MAX`] bytes a line, one read buffer.

use std::io::{ErrorKind, Read as _};
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::thread::JoinHandle;

use session::Client;
use wire::{HINT_JSON_BYTES_MAX, Hint, Record};

use crate::lines::{Line, Lines};
use crate::log::log;

/// Gateways that may be connected at once. One engine has one gateway; the rest is room for a restart.
pub const CONNECTIONS_MAX: usize = 8;
const READ_BYTES: usize = 16 * 1024;
const STACK_BYTES: usize = 256 * 1024;

/// Lines that were no hint, of all listeners of this process.
static MALFORMED: AtomicU64 = AtomicU64::new(0);
/// Hints posted.
static POSTED: AtomicU64 = AtomicU64::new(0);
/// The listening socket, for the fork handler; -1 for none.
static LISTENING: AtomicI32 = AtomicI32::new(-1);

/// Hints posted and lines refused so far.
pub fn counts() -> (u64, u64) {
    (POSTED.load(Ordering::Relaxed), MALFORMED.load(Ordering::Relaxed))
}

/// Closes a forked child's copy of the listening socket: connections must find the parent or nobody.
pub fn forget_in_child() {
    let fd = LISTENING.swap(-1, Ordering::Relaxed);
    if fd >= 0 {
        // SAFETY: the parent's listener owns this descriptor; in the child nothing will ever use or close its copy.
        unsafe { libc::close(fd) };
    }
}

/// A running listener; dropping it ends the thread and removes the socket.
pub struct Listener {
    path: PathBuf,
    /// The thread ends when this end is closed.
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
    process: u32,
}

impl Listener {
    /// Binds `path` and starts the thread; `None`, with a line in the log, if that cannot be done.
    pub fn start(path: &Path, client: Arc<Client>) -> Option<Self> {
        match Self::try_start(path, client) {
            Ok(listener) => {
                log!(Info, "hints are taken at {}", path.display());
                Some(listener)
            }
            Err(error) => {
                log!(Warn, "no hints: cannot listen at {}: {error}", path.display());
                None
            }
        }
    }

    fn try_start(path: &Path, client: Arc<Client>) -> std::io::Result<Self> {
        let listener = bind(path)?;
        listener.set_nonblocking(true)?;
        let (stop, stopped) = UnixStream::pair()?;
        let fd = listener.as_raw_fd();
        let thread = std::thread::Builder::new()
            .name("vnpu-hints".into())
            .stack_size(STACK_BYTES)
            .spawn(move || Serving { listener, stopped, client, connections: Vec::new(), refused: 0 }.run())?;
        LISTENING.store(fd, Ordering::Relaxed);
        remove_at_exit(path);
        Ok(Self { path: path.to_owned(), stop: Some(stop), thread: Some(thread), process: std::process::id() })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            // A forked child: thread and socket are the parent's.
            std::mem::forget(self.thread.take());
            return;
        }
        LISTENING.store(-1, Ordering::Relaxed);
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.path);
        BOUND.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// The bound path and the process that bound it: for applications that end without `aclFinalize`.
static BOUND: Mutex<Option<(PathBuf, u32)>> = Mutex::new(None);

/// Has the socket removed when the process ends of itself, whatever it calls or does not call before.
fn remove_at_exit(path: &Path) {
    extern "C" fn remove() {
        if let Ok(mut bound) = BOUND.try_lock()
            && let Some((path, process)) = bound.take()
            && process == std::process::id()
        {
            let _ = std::fs::remove_file(path);
        }
    }
    static REGISTERED: Once = Once::new();
    *BOUND.lock().unwrap_or_else(PoisonError::into_inner) = Some((path.to_owned(), std::process::id()));
    REGISTERED.call_once(|| {
        // SAFETY: `remove` is a plain function of this library, which is never unloaded; it neither panics nor blocks.
        unsafe { libc::atexit(remove) };
    });
}

/// Binds, taking the place of a socket that nobody listens at any more.
fn bind(path: &Path) -> std::io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            match UnixStream::connect(path) {
                Err(gone) if gone.kind() == ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
                _ => return Err(error),
            }
            UnixListener::bind(path)
        }
        other => other,
    }
}

struct Serving {
    listener: UnixListener,
    stopped: UnixStream,
    client: Arc<Client>,
    connections: Vec<(UnixStream, Lines)>,
    /// Lines that were no hint, of which the daemon does not know yet.
    refused: u32,
}

impl Serving {
    fn run(mut self) {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let fds = [self.stopped.as_raw_fd(), self.listener.as_raw_fd()];
            let fds = fds.into_iter().chain(self.connections.iter().map(|(c, _)| c.as_raw_fd()));
            let ready = poll(fds);
            if ready[0] || self.client.is_lost() {
                return;
            }
            // Last first, so that removing one leaves the indices of those still to come.
            for index in (0..self.connections.len()).rev() {
                if ready[2 + index] && !self.read(index, &mut buffer) {
                    self.connections.swap_remove(index);
                }
            }
            if ready[1] {
                self.accept();
            }
            self.tell();
        }
    }

    /// Tells the daemon of lines that were no hint: at most one record a turn, however many there were.
    fn tell(&mut self) {
        // A lost session ends the thread at its next turn.
        if self.refused > 0 && self.client.post(&Record::HintsRefused { lines: self.refused }, None).is_ok() {
            self.refused = 0;
        }
    }

    fn accept(&mut self) {
        match self.listener.accept() {
            Ok((connection, _)) if self.connections.len() < CONNECTIONS_MAX => {
                if connection.set_nonblocking(true).is_ok() {
                    self.connections.push((connection, Lines::new(HINT_JSON_BYTES_MAX)));
                }
            }
            Ok(_) => log!(Warn, "a hint connection was refused: {CONNECTIONS_MAX} are open"),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => {
                log!(Warn, "hints: accept: {error}");
                // Out of descriptors, say: do not spin on it.
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
        }
    }

    /// Reads what is there; false if the connection has ended.
    fn read(&mut self, index: usize, buffer: &mut [u8]) -> bool {
        let Self { connections, client, refused, .. } = self;
        let (connection, lines) = &mut connections[index];
        match connection.read(buffer) {
            Ok(0) => false,
            Ok(n) => {
                *refused = refused.saturating_add(feed(client, lines, &buffer[..n]));
                true
            }
            Err(error) => matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
        }
    }
}

/// Takes what came of one connection; posts the hints of the lines that it ends, and says how many lines were none.
pub(crate) fn feed(client: &Client, lines: &mut Lines, bytes: &[u8]) -> u32 {
    let mut refused = 0;
    lines.push(bytes, |line| refused += u32::from(!take(client, line)));
    refused
}

/// False: the line is no hint.
fn take(client: &Client, line: Line<'_>) -> bool {
    let reason = match line {
        Line::Whole(b"") => return true,
        Line::Whole(bytes) => match Hint::from_json(bytes) {
            Ok(hint) => {
                // A lost session ends the thread at its next turn.
                if client.post(&Record::Hint(hint), None).is_ok() {
                    POSTED.fetch_add(1, Ordering::Relaxed);
                }
                return true;
            }
            Err(error) => error.to_string(),
        },
        Line::TooLong => format!("a line of more than {HINT_JSON_BYTES_MAX} bytes"),
    };
    let count = MALFORMED.fetch_add(1, Ordering::Relaxed) + 1;
    // A gateway of another version could send one a token: the log gets the 1st, 2nd, 4th, 8th, …
    if count.is_power_of_two() {
        log!(Warn, "{count} malformed hints so far; the last: {reason}");
    }
    false
}

/// Waits until one of `fds` can be read or has ended; says which.
fn poll(fds: impl Iterator<Item = RawFd>) -> Vec<bool> {
    let mut set: Vec<libc::pollfd> = fds.map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 }).collect();
    // SAFETY: `set` is an array of that many initialised `pollfd`s, exclusively borrowed for the call.
    let status = unsafe { libc::poll(set.as_mut_ptr(), set.len() as libc::nfds_t, -1) };
    // An interrupted call has filled in nothing and is simply repeated.
    set.iter().map(|fd| status > 0 && fd.revents != 0).collect()
}

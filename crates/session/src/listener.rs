//! Where clients come in: the daemon's Unix socket.
//!
//! Handshakes run side by side inside [`Listener::accept`], each with its own deadline, so a client that connects and says
//! nothing delays nobody.

use crate::doorbell::Doorbell;
use crate::server::{Peer, ServerSession};
use crate::shared::Shared;
use crate::socket::{self, Credentials};
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::net::{SocketFlags, accept_with};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use thiserror::Error;
use wire::PROTOCOL_VERSION;
use wire::control::{Answer, Greeting, Hello, Layout, Refuse, RefuseCode, Welcome, refuse_signatures, refuse_version};

/// How long a client may take from connecting to its hello, which it sends at once.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);

/// Most clients between connecting and hello; more wait in the kernel's queue.
pub const PENDING_MAX: usize = 64;

/// Most sessions at the same time unless [`Listener::with_sessions_max`] says otherwise. Each may take the memory of its
/// layout.
const SESSIONS_MAX: usize = 256;

/// What clients are told about the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceFacts {
    /// SoC name as `aclrtGetSocName` answers it.
    pub soc_name: String,
    /// Device memory in bytes.
    pub hbm_bytes: u64,
    /// Which of the machine's devices it is.
    pub device_index: u32,
    /// Changes with every start of the daemon.
    pub epoch: u64,
}

/// Why one connection did not become a session. Except after `Stopped`, call accept again.
#[derive(Debug, Error)]
pub enum AcceptError {
    /// The client was told to stay out and why.
    #[error("refused process {pid}: {message}")]
    Refused {
        /// Process id of the client.
        pid: u32,
        /// Why.
        code: RefuseCode,
        /// What it was told.
        message: String,
    },
    /// The client connected and said nothing, or went away.
    #[error("process {pid} connected and did not say hello")]
    Silent {
        /// Process id of the client.
        pid: u32,
    },
    /// Shared memory or descriptors could not be made for the client.
    #[error("cannot set up a session for process {pid}")]
    Setup {
        /// Process id of the client.
        pid: u32,
        /// Why.
        source: io::Error,
    },
    /// [`Stopper::stop`] was called.
    #[error("the listener was stopped")]
    Stopped,
    /// The listening socket failed, or the process is out of descriptors: pause before the next accept, or give up.
    #[error("cannot accept connections")]
    Listen(#[source] io::Error),
}

struct Pending {
    socket: OwnedFd,
    peer: Credentials,
    deadline: Instant,
}

/// The listening end. Removes its path when dropped.
pub struct Listener {
    socket: OwnedFd,
    path: PathBuf,
    layout: Layout,
    doorbell: Doorbell,
    facts: DeviceFacts,
    pending: Mutex<Vec<Pending>>,
    sessions: Arc<AtomicUsize>,
    sessions_max: usize,
    stop: Arc<OwnedFd>,
}

/// Makes [`Listener::accept`] return.
#[derive(Clone, Debug)]
pub struct Stopper(Arc<OwnedFd>);

impl Stopper {
    /// The current and every later accept returns [`AcceptError::Stopped`].
    pub fn stop(&self) {
        crate::doorbell::ring_fd(&self.0);
    }
}

/// Number of the next session, of every kind, in this process.
pub(crate) fn next_session() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Listener {
    /// Listens at `path`. Every session gets shared memory of `layout`, rings `doorbell`, and is told `facts`. The path has
    /// the permissions that the umask leaves: whoever may write to it may use the device.
    ///
    /// # Errors
    /// If the path is taken by a live listener or cannot be made, or the layout is invalid.
    pub fn bind(path: &Path, layout: Layout, doorbell: Doorbell, facts: DeviceFacts) -> io::Result<Self> {
        layout.check().map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
        Ok(Self {
            socket: socket::listen(path)?,
            path: path.to_owned(),
            layout,
            doorbell,
            facts,
            pending: Mutex::new(Vec::new()),
            sessions: Arc::new(AtomicUsize::new(0)),
            sessions_max: SESSIONS_MAX,
            stop: Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?),
        })
    }

    /// Refuses clients while `max` sessions have a live [`Connection`].
    #[must_use]
    pub fn with_sessions_max(mut self, max: usize) -> Self {
        self.sessions_max = max;
        self
    }

    /// What makes [`Listener::accept`] return.
    pub fn stopper(&self) -> Stopper {
        Stopper(Arc::clone(&self.stop))
    }

    /// Waits for the next client that completes its handshake, or for one that fails.
    ///
    /// # Errors
    /// See [`AcceptError`]; call again unless it is `Stopped`.
    pub fn accept(&self) -> Result<(ServerSession, Connection), AcceptError> {
        let mut pending = self.pending.lock();
        loop {
            let now = Instant::now();
            if let Some(i) = pending.iter().position(|p| p.deadline <= now) {
                return Err(AcceptError::Silent { pid: pending.swap_remove(i).peer.pid });
            }
            let timeout = pending.iter().map(|p| p.deadline - now).min();
            let may_accept = if pending.len() < PENDING_MAX { PollFlags::IN } else { PollFlags::empty() };
            let mut fds = vec![PollFd::new(&*self.stop, PollFlags::IN), PollFd::new(&self.socket, may_accept)];
            fds.extend(pending.iter().map(|p| PollFd::new(&p.socket, PollFlags::IN)));
            socket::poll_for(&mut fds, timeout).map_err(AcceptError::Listen)?;
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            if ready[0] {
                return Err(AcceptError::Stopped);
            }
            if let Some(i) = ready[2..].iter().position(|&r| r) {
                let client = pending.swap_remove(i);
                return self.greet(client);
            }
            if ready[1] {
                let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
                match accept_with(&self.socket, flags) {
                    Ok(socket) => {
                        let peer = socket::credentials(&socket).map_err(AcceptError::Listen)?;
                        // From now, not from before the wait: an idle listener waits for hours.
                        pending.push(Pending { socket, peer, deadline: Instant::now() + HANDSHAKE_TIMEOUT });
                    }
                    Err(rustix::io::Errno::AGAIN | rustix::io::Errno::CONNABORTED | rustix::io::Errno::INTR) => {}
                    Err(e) => return Err(AcceptError::Listen(e.into())),
                }
            }
        }
    }

    /// Reads the hello that is there and answers it.
    fn greet(&self, client: Pending) -> Result<(ServerSession, Connection), AcceptError> {
        let pid = client.peer.pid;
        let refuse = |refuse: Refuse| {
            let _ = socket::send(&client.socket, &Answer::Refuse(refuse.clone()).encode(), &[]);
            AcceptError::Refused { pid, code: refuse.code, message: refuse.message }
        };
        let (bytes, _) = socket::receive(&client.socket).map_err(|_| AcceptError::Silent { pid })?;
        if bytes.is_empty() {
            return Err(AcceptError::Silent { pid });
        }
        let hello = match Hello::decode(&bytes) {
            Err(e) => return Err(refuse(Refuse { code: RefuseCode::Malformed, message: format!("hello: {e}") })),
            Ok(Greeting::OtherVersion(theirs)) => return Err(refuse(refuse_version(theirs))),
            Ok(Greeting::Hello(hello)) if hello.signatures_digest != acl_abi::SIGNATURES_DIGEST => {
                return Err(refuse(refuse_signatures(hello.signatures_digest, acl_abi::SIGNATURES_DIGEST)));
            }
            Ok(Greeting::Hello(hello)) => hello,
        };
        debug_assert_eq!(hello.version, PROTOCOL_VERSION);
        let Some(slot) = SessionCount::take(&self.sessions, self.sessions_max) else {
            let message =
                format!("the daemon has {} sessions, the most it takes; end one and start again", self.sessions_max);
            return Err(refuse(Refuse { code: RefuseCode::Busy, message }));
        };
        self.welcome(client, hello, slot).map_err(|source| AcceptError::Setup { pid, source })
    }

    fn welcome(&self, client: Pending, hello: Hello, count: SessionCount) -> io::Result<(ServerSession, Connection)> {
        let (shared, memfd) = Shared::create(self.layout)?;
        let bell = self.doorbell.bell()?;
        let session = next_session();
        let welcome = Answer::Welcome(Welcome {
            session,
            epoch: self.facts.epoch,
            device_index: self.facts.device_index,
            hbm_bytes: self.facts.hbm_bytes,
            soc_name: self.facts.soc_name.clone(),
            layout: self.layout,
        });
        let pidfd = socket::peer_pidfd(&client.socket, client.peer);
        socket::send(&client.socket, &welcome.encode(), &[memfd.as_fd(), bell.fd.as_fd()])?;
        let peer = Peer {
            pid: client.peer.pid,
            uid: client.peer.uid,
            process_name: hello.process_name,
            va_base: hello.va_base,
            va_len: hello.va_len,
        };
        let connection = Connection { session, socket: client.socket, pidfd, _count: count };
        Ok((ServerSession::new(session, peer, shared, bell), connection))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener").field("path", &self.path).field("facts", &self.facts).finish_non_exhaustive()
    }
}

/// One of the sessions that are counted against the maximum.
#[derive(Debug)]
struct SessionCount(Arc<AtomicUsize>);

impl SessionCount {
    fn take(count: &Arc<AtomicUsize>, max: usize) -> Option<Self> {
        count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < max).then_some(n + 1)).ok()?;
        Some(Self(Arc::clone(count)))
    }
}

impl Drop for SessionCount {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Liveness of one client: readable when it is gone. Dropping it tells the client that the daemon is.
#[derive(Debug)]
pub struct Connection {
    session: u64,
    socket: OwnedFd,
    pidfd: Option<OwnedFd>,
    _count: SessionCount,
}

impl Connection {
    /// Number of the session.
    pub fn session(&self) -> u64 {
        self.session
    }

    /// The socket: readable (at its end) when the client closed it or died.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The client's pidfd, where the kernel gave one: readable when the process ended, even if a child of it holds the
    /// socket.
    pub fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.pidfd.as_ref().map(AsFd::as_fd)
    }

    /// True if the client is gone. Does not wait.
    pub fn is_gone(&self) -> bool {
        socket::is_at_end(&self.socket) || self.pidfd.as_ref().is_some_and(socket::is_at_end)
    }

    /// Waits until the client is gone (`true`) or the time is over (`None`: for ever).
    ///
    /// # Errors
    /// If the kernel cannot poll.
    pub fn wait_gone(&self, timeout: Option<Duration>) -> io::Result<bool> {
        let mut fds = vec![PollFd::new(&self.socket, PollFlags::IN)];
        fds.extend(self.pidfd.as_ref().map(|fd| PollFd::new(fd, PollFlags::IN)));
        Ok(socket::poll_for(&mut fds, timeout)? > 0)
    }
}

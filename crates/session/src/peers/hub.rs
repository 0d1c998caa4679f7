//! Where ranks meet.

use super::hello::{self, Join};
use super::member::{Member, Tie};
use super::segment::{Left, Segment, ring_others};
use crate::doorbell::{Doorbell, ring_fd};
use crate::listener::HANDSHAKE_TIMEOUT;
use crate::socket;
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd};
use rustix::fd::{AsFd, OwnedFd};
use rustix::net::{SocketFlags, accept_with};
use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// Communicators that wait for their ranks at once; beyond, the oldest is forgotten.
pub const KEYS_MAX: usize = 1024;
/// Ranks that are connected at once: 64 sessions with four communicators each.
pub const CONNECTIONS_MAX: usize = 256;
/// They call `poll` and little else.
const STACK_BYTES: usize = 128 * 1024;

type Key = [u64; 4];

/// A communicator that is being made, or is.
#[derive(Default)]
struct Group {
    ranks: usize,
    here: BTreeMap<usize, (Arc<OwnedFd>, OwnedFd)>,
    made: Option<Arc<Made>>,
}

struct Made {
    segment: Arc<Segment>,
    bells: Vec<OwnedFd>,
}

/// Groups by key, each with the order in which it was handed out.
type Groups = BTreeMap<Key, (u64, Group)>;

struct Inner {
    dir: PathBuf,
    path: PathBuf,
    id: u64,
    doorbell: Doorbell,
    /// The order of the next one, and those that are there.
    groups: Mutex<(u64, Groups)>,
    connections: AtomicUsize,
    stop: OwnedFd,
}

/// This daemon among the daemons of its directory. Clones are the same one.
#[derive(Clone)]
pub struct Peers(Arc<Inner>);

/// What a daemon is called where others look for it.
fn file_name(id: u64) -> String {
    format!("peers-{id:016x}.sock")
}

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

impl Peers {
    /// Listens for other daemons beside `socket`, the path of this daemon's clients. `doorbell` is the dispatch thread's.
    ///
    /// # Errors
    /// The path cannot be made.
    pub fn listen(socket: &Path, doorbell: Doorbell) -> io::Result<Self> {
        let name = socket.file_name().ok_or_else(|| io::Error::other("the socket has no name"))?;
        let dir = socket.parent().map(Path::to_owned).unwrap_or_default();
        let id = fnv1a(name.as_encoded_bytes());
        let path = dir.join(file_name(id));
        let listening = socket::listen(&path)?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let (groups, connections) = (Mutex::default(), AtomicUsize::new(0));
        let inner = Arc::new(Inner { dir, path, id, doorbell, groups, connections, stop });
        let hub = Arc::clone(&inner);
        spawn("peers", move || hub.accept(&listening))?;
        Ok(Self(inner))
    }

    /// A key for a new communicator.
    ///
    /// # Errors
    /// The system gives no random bytes.
    pub fn root(&self) -> io::Result<Key> {
        let mut bytes = [0; 24];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        let mut key = [self.0.id, 0, 0, 0];
        for (word, bytes) in key[1..].iter_mut().zip(bytes.chunks_exact(8)) {
            *word = bytes.iter().fold(0, |w, &b| w << 8 | u64::from(b));
        }
        let (minted, groups) = &mut *self.0.groups.lock();
        *minted += 1;
        let waiting = || groups.iter().filter(|(_, (_, group))| group.made.is_none());
        if waiting().count() >= KEYS_MAX
            && let Some(oldest) = waiting().min_by_key(|(_, (order, _))| *order).map(|(key, _)| *key)
        {
            groups.remove(&oldest);
        }
        groups.insert(key, (*minted, Group::default()));
        Ok(key)
    }

    /// Joins the communicator of `key` as `rank`, on a thread of its own; `done` is told there, once all `ranks` have come,
    /// the time is over, or it cannot be.
    pub fn join(
        &self,
        key: Key,
        (rank, ranks): (usize, usize),
        timeout: Duration,
        done: impl FnOnce(Result<Member, String>) + Send + 'static,
    ) {
        let (path, doorbell) = (self.0.dir.join(file_name(key[0])), self.0.doorbell.clone());
        let done = Arc::new(Mutex::new(Some(done)));
        let told = Arc::clone(&done);
        let tell = move |result| {
            if let Some(done) = told.lock().take() {
                done(result);
            }
        };
        let tell_late = tell.clone();
        let run = move || match enter(&path, Join { key, rank, ranks }, timeout, &doorbell) {
            Err(why) => {
                tell(Err(why));
                doorbell.ring();
            }
            Ok((member, tie)) => {
                tell(Ok(member));
                doorbell.ring();
                wait_for_end(&tie.socket);
                tie.cut.store(true, Ordering::Release);
                doorbell.ring();
            }
        };
        if let Err(e) = spawn("join", run) {
            tell_late(Err(format!("no thread can be had to join the communicator: {e}")));
        }
    }

    /// Stops listening; communicators that exist go on.
    pub fn stop(&self) {
        ring_fd(&self.0.stop);
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name(name.into()).stack_size(STACK_BYTES).spawn(run).map(|_| ())
}

/// Returns when the other end has closed, or this one has shut the connection down.
fn wait_for_end(socket: &OwnedFd) {
    let mut fds = [PollFd::new(socket, PollFlags::IN)];
    let _ = socket::poll_for(&mut fds, None);
}

/// A rank's way in.
fn enter(path: &Path, join: Join, timeout: Duration, doorbell: &Doorbell) -> Result<(Member, Arc<Tie>), String> {
    let system = |e: io::Error| format!("the communicator cannot be joined: {e}");
    let unreachable = |e: io::Error| {
        format!(
            "the daemon that the root info is of cannot be reached ({}: {e}); daemons whose devices work together have \
             their sockets in one directory",
            path.display()
        )
    };
    let socket = socket::connect(path).map_err(unreachable)?;
    let bell = doorbell.bell().map_err(system)?;
    socket::send(&socket, &join.encode(), &[bell.fd.as_fd()]).map_err(system)?;
    if !socket::wait_readable(&socket, timeout).map_err(system)? {
        let seconds = timeout.as_secs();
        return Err(format!("after {seconds} s not all {} ranks of the communicator had come", join.ranks));
    }
    let (bytes, mut fds) = socket::receive(&socket).map_err(system)?;
    if bytes.is_empty() {
        return Err("the daemon that the root info is of has ended".to_owned());
    }
    hello::read_answer(&bytes)?;
    if fds.len() != join.ranks + 1 {
        return Err(format!("{} descriptors came where {} should have", fds.len(), join.ranks + 1));
    }
    let bells = fds.split_off(1);
    let segment = Segment::open(&fds[0], join.ranks).map_err(system)?;
    let tie = Arc::new(Tie { socket, cut: AtomicBool::new(false) });
    Ok((Member::new(join.rank, segment, bells, Some(Arc::clone(&tie)), bell), tie))
}

impl Inner {
    fn accept(self: &Arc<Self>, listening: &OwnedFd) {
        loop {
            let mut fds = [PollFd::new(&self.stop, PollFlags::IN), PollFd::new(listening, PollFlags::IN)];
            if socket::poll_for(&mut fds, None).is_err() || !fds[0].revents().is_empty() {
                let _ = std::fs::remove_file(&self.path);
                return;
            }
            let Ok(socket) = accept_with(listening, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) else {
                // Out of descriptors, or a peer that left at once: nobody is waiting for this thread in particular.
                std::thread::sleep(Duration::from_millis(10));
                continue;
            };
            if self.connections.fetch_add(1, Ordering::AcqRel) >= CONNECTIONS_MAX {
                let why = format!("{CONNECTIONS_MAX} ranks are connected, no more are allowed");
                let _ = socket::send(&socket, &hello::answer(Err(&why)), &[]);
                self.connections.fetch_sub(1, Ordering::AcqRel);
                continue;
            }
            let hub = Arc::clone(self);
            let serve = move || {
                let socket = Arc::new(socket);
                if let Err(why) = hub.serve(&socket) {
                    let _ = socket::send(&socket, &hello::answer(Err(&why)), &[]);
                }
                hub.connections.fetch_sub(1, Ordering::AcqRel);
            };
            if spawn("peer", serve).is_err() {
                self.connections.fetch_sub(1, Ordering::AcqRel);
            }
        }
    }

    /// One rank, from its hello to its end.
    fn serve(&self, socket: &Arc<OwnedFd>) -> Result<(), String> {
        let system = |e: io::Error| e.to_string();
        let own = rustix::process::getuid().as_raw();
        if socket::credentials(socket).map_err(system)?.uid != own {
            return Err("only daemons of the same user work together".to_owned());
        }
        if !socket::wait_readable(socket, HANDSHAKE_TIMEOUT).map_err(system)? {
            return Err("nothing was said".to_owned());
        }
        let (bytes, mut fds) = socket::receive(socket).map_err(system)?;
        let join = Join::decode(&bytes)?;
        let bell = fds.pop().filter(|_| fds.is_empty()).ok_or("one descriptor goes with a request to join")?;
        self.admit(join, socket, bell)?;
        wait_for_end(socket);
        self.gone(join);
        Ok(())
    }

    /// Lets a rank in; the last one completes the communicator.
    fn admit(&self, join: Join, socket: &Arc<OwnedFd>, bell: OwnedFd) -> Result<(), String> {
        let Join { key, rank, ranks } = join;
        let (_, groups) = &mut *self.groups.lock();
        let unknown = "the root info is of no communicator that is waiting for ranks (used before, or too old)";
        let (_, group) = groups.get_mut(&key).filter(|(_, g)| g.made.is_none()).ok_or(unknown)?;
        if group.here.is_empty() {
            group.ranks = ranks;
        }
        if group.ranks != ranks {
            return Err(format!("this rank says that there are {ranks} ranks, another one said {}", group.ranks));
        }
        if group.here.contains_key(&rank) {
            return Err(format!("rank {rank} is there already"));
        }
        group.here.insert(rank, (Arc::clone(socket), bell));
        if group.here.len() < ranks {
            return Ok(());
        }
        let system = |e: io::Error| e.to_string();
        let (segment, memory) = Segment::create(ranks).map_err(system)?;
        let (mut sockets, mut bells) = (Vec::new(), Vec::new());
        for (socket, bell) in std::mem::take(&mut group.here).into_values() {
            sockets.push(socket);
            bells.push(bell);
        }
        let fds: Vec<_> = std::iter::once(memory.as_fd()).chain(bells.iter().map(AsFd::as_fd)).collect();
        for (rank, socket) in sockets.iter().enumerate() {
            // One that has gone meanwhile is noticed by its own thread; it has left before it was in.
            if socket::send(socket, &hello::answer(Ok(())), &fds).is_err() {
                segment.leave(rank, Left::Died);
            }
        }
        drop(fds);
        group.made = Some(Arc::new(Made { segment, bells }));
        Ok(())
    }

    /// A rank's connection has ended.
    fn gone(&self, join: Join) {
        let (_, groups) = &mut *self.groups.lock();
        let Some((_, group)) = groups.get_mut(&join.key) else { return };
        match &group.made {
            None => {
                group.here.remove(&join.rank);
            }
            Some(made) => {
                // One that ended in order has said so before.
                made.segment.leave(join.rank, Left::Died);
                ring_others(&made.bells, join.rank);
                if (0..made.segment.ranks()).all(|rank| made.segment.left(rank) != Left::No) {
                    groups.remove(&join.key);
                }
            }
        }
    }
}

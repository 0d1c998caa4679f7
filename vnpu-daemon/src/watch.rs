//! Liveness of every client, on one thread: the end of its socket or of its process ends its session.
//!
//! The kernel tells: nobody polls at intervals. Both signs are watched because a forked child may hold a dead client's socket
//! open, and because not every kernel gives a pidfd for the peer of a socket.
//!
//! **Ownership:** the thread owns every [`Connection`]; dropping one tells the client that its session is over.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::{Context, Result};
use runtime::{DeviceHandle, OnEnd};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fd::OwnedFd;
use session::Connection;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use tracing::{error, info};

enum Request {
    Add(Connection),
    /// The dispatch thread has ended the session.
    Ended(u64),
    Stop,
}

/// Speaks to the watching thread. Clones speak to the same one.
#[derive(Clone)]
pub struct Watch {
    requests: Sender<Request>,
    bell: Arc<OwnedFd>,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl Watch {
    /// Starts the thread; sessions of clients that are gone are detached from `handle`'s device.
    ///
    /// # Errors
    /// Out of descriptors or threads.
    pub fn start(handle: DeviceHandle) -> Result<Self> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).context("cannot make an eventfd")?;
        let bell = Arc::new(bell);
        let (requests, receiver) = channel();
        let own_bell = Arc::clone(&bell);
        let thread = std::thread::Builder::new()
            .name("watch".into())
            .spawn(move || run(&handle, &receiver, &own_bell))
            .context("cannot start the watch thread")?;
        Ok(Self { requests, bell, thread: Arc::new(Mutex::new(Some(thread))) })
    }

    /// Watches a client from now on. One that is gone already is noticed at once.
    pub fn add(&self, connection: Connection) {
        self.ask(Request::Add(connection));
    }

    /// What the dispatch thread calls when it ends a session of itself: the client's place is free again.
    pub fn on_end(&self) -> OnEnd {
        let this = self.clone();
        Box::new(move |session| this.ask(Request::Ended(session)))
    }

    /// Ends the thread. Every client still connected is told that its session is over.
    pub fn stop(&self) {
        self.ask(Request::Stop);
        if let Ok(mut thread) = self.thread.lock()
            && let Some(thread) = thread.take()
            && thread.join().is_err()
        {
            error!("the watch thread panicked");
        }
    }

    fn ask(&self, request: Request) {
        // Without the thread there is nobody left to tell.
        let _ = self.requests.send(request);
        let _ = rustix::io::write(&*self.bell, &1u64.to_ne_bytes());
    }
}

fn run(handle: &DeviceHandle, requests: &Receiver<Request>, bell: &OwnedFd) {
    let mut connections: Vec<Connection> = Vec::new();
    loop {
        // Rebuilt each time: a few dozen entries, and only when a client comes or goes.
        let mut fds = vec![PollFd::new(bell, PollFlags::IN)];
        let mut owner = vec![usize::MAX];
        for (index, connection) in connections.iter().enumerate() {
            let socket = connection.socket();
            fds.push(PollFd::from_borrowed_fd(socket, PollFlags::IN));
            owner.push(index);
            if let Some(pidfd) = connection.pidfd() {
                fds.push(PollFd::from_borrowed_fd(pidfd, PollFlags::IN));
                owner.push(index);
            }
        }
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return error!("cannot watch clients any more: {e}"),
        }
        // A client says nothing on its socket after the handshake: whatever happens there is its end.
        let mut gone: Vec<usize> =
            fds.iter().zip(&owner).skip(1).filter(|(fd, _)| !fd.revents().is_empty()).map(|(_, &o)| o).collect();
        let rung = !fds[0].revents().is_empty();
        drop(fds);
        gone.dedup();
        for index in gone.into_iter().rev() {
            let connection = connections.swap_remove(index);
            let (session, start) = (connection.session(), Instant::now());
            match handle.detach(session) {
                Ok(()) => info!(session, took_us = start.elapsed().as_micros() as u64, "client gone, session freed"),
                Err(e) => error!(session, "client gone, session not freed: {e}"),
            }
        }
        if rung {
            let mut count = [0; 8];
            // Only its readiness matters, and a signal that comes between is seen in the next round.
            let _ = rustix::io::read(bell, &mut count[..]);
        }
        while let Ok(request) = requests.try_recv() {
            match request {
                Request::Add(connection) => connections.push(connection),
                Request::Ended(session) => connections.retain(|c| c.session() != session),
                Request::Stop => return,
            }
        }
    }
}

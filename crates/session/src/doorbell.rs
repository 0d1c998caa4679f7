//! What the dispatch thread sleeps on.
//!
//! One epoll set: an eventfd for our own threads and one for every session's client. They are registered edge-triggered
//! and never read, so a client that drains, fills or reconfigures its eventfd affects its own wake-ups only; and a
//! wake-up costs the sleeper one system call.
//!
//! **Invariant:** only one thread calls [`Doorbell::wait`].

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;
use rustix::time::Timespec;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

/// Wakes the dispatch thread. Clones ring the same bell.
#[derive(Clone, Debug)]
pub struct Doorbell {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    epoll: OwnedFd,
    own: OwnedFd,
    /// Rung since the last wait.
    rung: AtomicBool,
    /// The waiting thread is in the kernel, or about to be.
    asleep: AtomicBool,
}

impl Doorbell {
    /// A bell that nobody has rung.
    ///
    /// # Errors
    /// If the process is out of file descriptors.
    pub fn new() -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let own = new_eventfd()?;
        add(&epoll, &own)?;
        Ok(Self { inner: Arc::new(Inner { epoll, own, rung: AtomicBool::new(false), asleep: AtomicBool::new(false) }) })
    }

    /// Wakes the waiting thread, or makes its next wait return at once. A system call only if it sleeps.
    pub fn ring(&self) {
        self.inner.rung.store(true, SeqCst);
        if self.inner.asleep.swap(false, SeqCst) {
            ring_fd(&self.inner.own);
        }
    }

    /// Sleeps until someone rings or the time is over (`None`: for ever). True if someone may have rung. Rings before the
    /// wait count.
    ///
    /// A session's client rings only between its [`crate::ServerSession::prepare_sleep`] and `cancel_sleep`.
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        let inner = &*self.inner;
        inner.asleep.store(true, SeqCst);
        let mut woken = inner.rung.swap(false, SeqCst);
        if !woken && timeout != Some(Duration::ZERO) {
            let timeout = timeout.map(|t| Timespec {
                tv_sec: i64::try_from(t.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(t.subsec_nanos()),
            });
            let mut ready = [const { std::mem::MaybeUninit::uninit() }; 16];
            woken = match epoll::wait(&inner.epoll, &mut ready[..], timeout.as_ref()) {
                Ok((ready, _)) => !ready.is_empty(),
                Err(_) => true,
            };
        }
        inner.asleep.store(false, SeqCst);
        woken | inner.rung.swap(false, SeqCst)
    }

    /// A bell for one session's client.
    pub(crate) fn bell(&self) -> io::Result<SessionBell> {
        let fd = new_eventfd()?;
        add(&self.inner.epoll, &fd)?;
        Ok(SessionBell { fd, doorbell: self.clone() })
    }
}

/// The daemon's end of one client's bell. Dropping it makes the client's rings go nowhere.
#[derive(Debug)]
pub(crate) struct SessionBell {
    pub(crate) fd: OwnedFd,
    doorbell: Doorbell,
}

impl Drop for SessionBell {
    fn drop(&mut self) {
        // Closing alone would leave it in the set for as long as the client holds its copy.
        let _ = epoll::delete(&self.doorbell.inner.epoll, &self.fd);
    }
}

fn new_eventfd() -> io::Result<OwnedFd> {
    Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}

fn add(epoll: &OwnedFd, fd: &OwnedFd) -> io::Result<()> {
    Ok(epoll::add(epoll, fd, EventData::new_u64(0), EventFlags::IN | EventFlags::ET)?)
}

/// Rings an eventfd; a full one is already ringing.
pub(crate) fn ring_fd(fd: &OwnedFd) {
    let _ = rustix::io::write(fd, &1u64.to_ne_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn rings_before_a_wait_count_once() {
        let bell = Doorbell::new().unwrap();
        bell.ring();
        bell.ring();
        assert!(bell.wait(Some(Duration::ZERO)));
        assert!(!bell.wait(Some(Duration::ZERO)));
        assert!(!bell.wait(Some(Duration::from_micros(50))));
    }

    #[test]
    fn every_ring_of_a_session_wakes_although_nobody_reads_the_eventfd() {
        let bell = Doorbell::new().unwrap();
        let session = bell.bell().unwrap();
        for _ in 0..3 {
            ring_fd(&session.fd);
            assert!(bell.wait(Some(Duration::from_secs(5))));
            assert!(!bell.wait(Some(Duration::from_micros(50))));
        }
        let kept_by_client = session.fd.try_clone().unwrap();
        drop(session);
        ring_fd(&kept_by_client);
        assert!(!bell.wait(Some(Duration::from_millis(1))), "an ended session cannot wake the daemon");
    }

    #[test]
    fn ring_wakes_a_sleeper() {
        let bell = Doorbell::new().unwrap();
        let other = bell.clone();
        for _ in 0..200 {
            let thread = std::thread::spawn({
                let other = other.clone();
                move || other.ring()
            });
            let start = Instant::now();
            assert!(bell.wait(Some(Duration::from_secs(10))));
            assert!(start.elapsed() < Duration::from_secs(5));
            thread.join().unwrap();
        }
    }
}

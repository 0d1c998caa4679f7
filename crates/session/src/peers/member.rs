//! One rank's end of a communicator.

use super::segment::{Left, Segment, ring_others};
use crate::doorbell::{Doorbell, SessionBell, ring_fd};
use rustix::fd::OwnedFd;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The watch over the connection that holds a communicator together.
#[derive(Debug)]
pub(super) struct Tie {
    pub socket: OwnedFd,
    pub cut: AtomicBool,
}

/// One rank. Dropping it without [`Member::end`] tells the others that this rank has died.
#[derive(Debug)]
pub struct Member {
    rank: usize,
    segment: Arc<Segment>,
    bells: Vec<OwnedFd>,
    tie: Option<Arc<Tie>>,
    _bell: SessionBell,
}

impl Member {
    pub(super) fn new(
        rank: usize,
        segment: Arc<Segment>,
        bells: Vec<OwnedFd>,
        tie: Option<Arc<Tie>>,
        bell: SessionBell,
    ) -> Self {
        Self { rank, segment, bells, tie, _bell: bell }
    }

    /// The ranks of a communicator within this process, in order, each with the bell of its dispatch thread.
    ///
    /// # Errors
    /// No memory or no descriptors.
    pub fn group(doorbells: &[Doorbell]) -> io::Result<Vec<Self>> {
        let (segment, _fd) = Segment::create(doorbells.len())?;
        let own = doorbells.iter().map(Doorbell::bell).collect::<io::Result<Vec<_>>>()?;
        let copies = || own.iter().map(|bell| bell.fd.try_clone()).collect::<io::Result<Vec<_>>>();
        let bells = own.iter().map(|_| copies()).collect::<io::Result<Vec<_>>>()?;
        let members = own.into_iter().zip(bells).enumerate();
        Ok(members.map(|(rank, (bell, bells))| Self::new(rank, segment.clone(), bells, None, bell)).collect())
    }

    /// Which rank this is.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many there are.
    pub fn ranks(&self) -> usize {
        self.segment.ranks()
    }

    /// The shared memory.
    pub fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }

    /// Wakes the dispatch thread of a peer.
    pub fn ring(&self, peer: usize) {
        if let Some(bell) = self.bells.get(peer) {
            ring_fd(bell);
        }
    }

    /// How a peer has left; everyone has died when the daemon that holds the communicator together is gone.
    pub fn left(&self, peer: usize) -> Left {
        match self.segment.left(peer) {
            Left::No if self.is_cut() => Left::Died,
            left => left,
        }
    }

    /// True once the daemon that holds the communicator together is gone.
    pub fn is_cut(&self) -> bool {
        self.tie.as_ref().is_some_and(|tie| tie.cut.load(Ordering::Acquire))
    }

    /// Leaves in order.
    pub fn end(self) {
        self.segment.leave(self.rank, Left::InOrder);
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // After `end` this changes nothing.
        self.segment.leave(self.rank, Left::Died);
        ring_others(&self.bells, self.rank);
        if let Some(tie) = &self.tie {
            let _ = rustix::net::shutdown(&tie.socket, rustix::net::Shutdown::Both);
        }
    }
}

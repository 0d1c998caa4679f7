//! Device memory that processes of one tenant share: keys, who may use them, and who holds what.
//!
//! A process exports an allocation or a physical handle and gets a key, which it tells another process by whatever way they
//! have. A key is random and long enough not to be guessed, is good on this device only, and only for processes of the same
//! user and tenant; the answer to anyone else is that of an unknown key.
//!
//! **Invariants**
//! - Memory goes back to the device when its last holder lets it go, whoever that is and however it ends.
//! - It counts once: for the process that allocated it, and when that one lets go, for one of the others.
//! - A key ends with the memory of the process that exported it; who imported before keeps what it has.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;

use device::PhysAddr;

/// Keys of one session at once: a process shares blocks of its caching allocator, not single tensors.
pub const EXPORTS_MAX: usize = 4096;
/// Processes that one key may be limited to.
pub const PIDS_MAX: usize = 1024;

/// A key: 256 random bits, or 64 and zeros where the C interface has no room for more.
pub type Key = [u64; 4];

/// What is shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// An allocation.
    Block,
    /// A physical handle.
    Handle,
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asker {
    /// Its session.
    pub session: u64,
    /// Its user, as the kernel says.
    pub uid: u32,
    /// Its process, as the kernel says.
    pub pid: u32,
    /// Its tenant.
    pub tenant: u32,
}

/// Why memory is not shared.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShareError {
    /// No such key, or none for the asker.
    #[error("the key is unknown on this device (never exported, closed, or of another tenant)")]
    Unknown,
    /// The exporter named the processes that may use the key.
    #[error("process {0} is not among those that the exporter allowed")]
    NotAllowed(u32),
    /// The memory is the asker's own, or imported already.
    #[error("this process holds the memory already")]
    Held,
    /// An event that the asker created.
    #[error("this process created the event; only others open it")]
    Created,
    /// An event that the asker did not create.
    #[error("another process created the event; only that one gives its handle away")]
    Opened,
    /// [`EXPORTS_MAX`], [`PIDS_MAX`].
    #[error("{0} {1} exist, the most allowed")]
    TooMany(usize, &'static str),
    /// No randomness for a key.
    #[error("no key can be made: {0}")]
    NoKey(String),
}

#[derive(Debug)]
struct Export {
    session: u64,
    uid: u32,
    tenant: u32,
    subject: Subject,
    physical: PhysAddr,
    size: u64,
    /// Who may import; everyone of the tenant without it.
    pids: Option<BTreeSet<u32>>,
}

#[derive(Debug)]
struct Shared {
    holders: BTreeSet<u64>,
    /// Whom it counts for; one of the holders.
    charged: u64,
}

/// Shared memory of one device.
#[derive(Debug, Default)]
pub struct Shares {
    exports: BTreeMap<Key, Export>,
    shared: BTreeMap<PhysAddr, Shared>,
    /// Memory that counts for another session from now on; taken by [`Shares::take_moved`].
    moved: Vec<(PhysAddr, u64)>,
}

/// A fresh key of `words` random words.
///
/// # Errors
/// The system gives no random bytes.
pub fn fresh_key(words: usize) -> Result<Key, ShareError> {
    let mut bytes = [0; 32];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    read.map_err(|e| ShareError::NoKey(e.to_string()))?;
    let mut key = [0; 4];
    for (word, bytes) in key.iter_mut().zip(bytes.chunks_exact(8)).take(words) {
        *word = bytes.iter().fold(0, |word, &byte| word << 8 | u64::from(byte));
    }
    Ok(key)
}

impl Shares {
    /// Makes `key` good for memory of the asker's; for every process of its tenant, or for those that [`Shares::allow`] names.
    ///
    /// # Errors
    /// Too many.
    pub fn export(
        &mut self,
        asker: Asker,
        key: Key,
        (subject, physical, size): (Subject, PhysAddr, u64),
        named_only: bool,
    ) -> Result<(), ShareError> {
        let Asker { session, uid, tenant, .. } = asker;
        if self.exports.values().filter(|e| e.session == session).count() >= EXPORTS_MAX {
            return Err(ShareError::TooMany(EXPORTS_MAX, "keys of this process"));
        }
        let pids = named_only.then(BTreeSet::new);
        self.exports.insert(key, Export { session, uid, tenant, subject, physical, size, pids });
        let holders = BTreeSet::from([session]);
        self.shared.entry(physical).or_insert(Shared { holders, charged: session });
        Ok(())
    }

    /// Lets one more process import; changes nothing for a key that everyone of the tenant may use.
    ///
    /// # Errors
    /// Not a key of the asker's; too many.
    pub fn allow(&mut self, asker: Asker, key: Key, pid: u32) -> Result<(), ShareError> {
        let export = self.exports.get_mut(&key).filter(|e| e.session == asker.session).ok_or(ShareError::Unknown)?;
        let Some(pids) = &mut export.pids else { return Ok(()) };
        if pids.len() >= PIDS_MAX {
            return Err(ShareError::TooMany(PIDS_MAX, "processes of this key"));
        }
        pids.insert(pid);
        Ok(())
    }

    /// What a key is good for, for this asker.
    ///
    /// # Errors
    /// Nothing.
    pub fn find(&self, asker: Asker, key: Key) -> Result<(Subject, PhysAddr, u64), ShareError> {
        let export = self
            .exports
            .get(&key)
            .filter(|e| (e.uid, e.tenant) == (asker.uid, asker.tenant))
            .ok_or(ShareError::Unknown)?;
        if export.pids.as_ref().is_some_and(|pids| !pids.contains(&asker.pid)) {
            return Err(ShareError::NotAllowed(asker.pid));
        }
        if self.shared.get(&export.physical).is_some_and(|s| s.holders.contains(&asker.session)) {
            return Err(ShareError::Held);
        }
        Ok((export.subject, export.physical, export.size))
    }

    /// `session` holds the memory as well, which [`Shares::find`] answered just before.
    pub fn imported(&mut self, physical: PhysAddr, session: u64) {
        if let Some(shared) = self.shared.get_mut(&physical) {
            shared.holders.insert(session);
        }
    }

    /// Ends a key of the asker's.
    ///
    /// # Errors
    /// Not a key of the asker's.
    pub fn close(&mut self, asker: Asker, key: Key) -> Result<(), ShareError> {
        let own = self.exports.get(&key).is_some_and(|e| e.session == asker.session);
        if !own {
            return Err(ShareError::Unknown);
        }
        self.exports.remove(&key);
        Ok(())
    }

    /// `session` lets memory go. True if nobody holds it now: then it goes back to the device.
    pub fn let_go(&mut self, session: u64, physical: PhysAddr) -> bool {
        let Some(shared) = self.shared.get_mut(&physical) else { return true };
        shared.holders.remove(&session);
        self.exports.retain(|_, e| e.session != session || e.physical != physical);
        match shared.holders.first() {
            None => {
                self.shared.remove(&physical);
                true
            }
            Some(&next) => {
                if shared.charged == session {
                    shared.charged = next;
                    self.moved.push((physical, next));
                }
                false
            }
        }
    }

    /// True if the session shares any memory: another process may then write it at any time.
    pub fn involves(&self, session: u64) -> bool {
        self.exports.values().any(|e| e.session == session)
            || self.shared.values().any(|s| s.holders.contains(&session))
    }

    /// True while the memory counts for another session than this one.
    pub fn is_borrowed(&self, session: u64, physical: PhysAddr) -> bool {
        self.shared.get(&physical).is_some_and(|s| s.charged != session)
    }

    /// Memory that counts for another session from now on.
    pub fn take_moved(&mut self) -> Option<(PhysAddr, u64)> {
        self.moved.pop()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: PhysAddr = PhysAddr(1 << 44);

    fn asker(session: u64) -> Asker {
        Asker { session, uid: 1000, pid: session as u32 * 10, tenant: 0 }
    }

    #[test]
    fn keys_are_long_and_differ() {
        let keys: BTreeSet<Key> = (0..100).map(|_| fresh_key(4).unwrap()).collect();
        assert_eq!(keys.len(), 100);
        assert!(keys.iter().all(|k| k.iter().all(|&w| w != 0)));
        let short = fresh_key(1).unwrap();
        assert!(short[0] != 0 && short[1..] == [0; 3]);
    }

    #[test]
    fn a_key_is_for_the_tenant_and_for_the_processes_that_were_named() {
        let mut shares = Shares::default();
        let (open, named) = ([1; 4], [2; 4]);
        shares.export(asker(1), open, (Subject::Block, P, 512), false).unwrap();
        shares.export(asker(1), named, (Subject::Block, P, 512), true).unwrap();
        assert_eq!(shares.find(asker(2), open), Ok((Subject::Block, P, 512)));
        assert_eq!(shares.find(Asker { uid: 1001, ..asker(2) }, open), Err(ShareError::Unknown), "another user");
        assert_eq!(shares.find(Asker { tenant: 7, ..asker(2) }, open), Err(ShareError::Unknown), "another tenant");
        assert_eq!(shares.find(asker(2), [3; 4]), Err(ShareError::Unknown));
        assert_eq!(shares.find(asker(2), named), Err(ShareError::NotAllowed(20)));
        assert_eq!(shares.allow(asker(2), named, 20), Err(ShareError::Unknown), "only the exporter allows");
        shares.allow(asker(1), named, 20).unwrap();
        assert!(shares.find(asker(2), named).is_ok() && shares.find(asker(3), named).is_err());
        assert_eq!(shares.find(asker(1), open), Err(ShareError::Held));
        assert_eq!(shares.close(asker(2), open), Err(ShareError::Unknown));
        shares.close(asker(1), open).unwrap();
        assert_eq!(shares.find(asker(2), open), Err(ShareError::Unknown));
    }

    #[test]
    fn the_last_holder_gives_it_back_and_it_counts_once() {
        let mut shares = Shares::default();
        shares.export(asker(1), [1; 4], (Subject::Handle, P, 512), false).unwrap();
        for session in [2, 3] {
            shares.find(asker(session), [1; 4]).unwrap();
            shares.imported(P, session);
            assert!(shares.is_borrowed(session, P));
        }
        assert!(!shares.let_go(2, P) && shares.take_moved().is_none());
        assert!(!shares.let_go(1, P), "the exporter first");
        assert_eq!(shares.take_moved(), Some((P, 3)));
        assert!(!shares.is_borrowed(3, P));
        assert!(shares.exports.is_empty(), "its keys end with it");
        assert!(shares.let_go(3, P));
        assert!(shares.let_go(1, P), "what is not shared goes at once");
    }
}

//! Tenants from a file, and the sockets that they come in by.
//!
//! Who a client is, its socket says: tenant NAME comes in at `DIR/NAME/npu.sock`, and whoever may reach that path is NAME. A directory
//! each, so that a container mounts its tenant's and nothing else, and finds the socket there again after the daemon was restarted.
//! Whoever comes in by the daemon's own socket is `default`.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result};
use runtime::{DEFAULT_TENANT, DeviceHandle, TenantConfig};
use serde::Deserialize;
use session::{AcceptError, DeviceFacts, Doorbell, Layout, Listener, Stopper};
use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::watch::Watch;

/// A file of tenants: `[tenants.NAME]` and what each may have.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Configured {
    /// By name.
    #[serde(default)]
    pub tenants: BTreeMap<String, TenantConfig>,
}

impl Configured {
    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, or says something else.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("{} is no file of tenants", path.display()))
    }
}

/// Lets clients in, a thread a socket.
#[derive(Clone)]
pub struct Doors {
    inner: Arc<Inner>,
}

/// Makes the listener of one socket.
type Make = Box<dyn Fn(&Path) -> std::io::Result<Listener> + Send + Sync>;

struct Inner {
    dir: Option<PathBuf>,
    make: Make,
    handle: DeviceHandle,
    watch: Watch,
    failed: mpsc::Sender<anyhow::Error>,
    open: Mutex<BTreeMap<String, (Stopper, JoinHandle<()>)>>,
}

impl Doors {
    /// None yet; tenants' sockets will be under `dir`.
    pub fn new(
        dir: Option<PathBuf>,
        (doorbell, facts, sessions_max): (Doorbell, DeviceFacts, usize),
        handle: DeviceHandle,
        watch: Watch,
        failed: mpsc::Sender<anyhow::Error>,
    ) -> Self {
        let make = Box::new(move |path: &Path| {
            let listener = Listener::bind(path, Layout::default(), doorbell.clone(), facts.clone())?;
            Ok(listener.with_sessions_max(sessions_max))
        });
        Self { inner: Arc::new(Inner { dir, make, handle, watch, failed, open: Mutex::default() }) }
    }

    fn open(&self) -> MutexGuard<'_, BTreeMap<String, (Stopper, JoinHandle<()>)>> {
        self.inner.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a tenant comes in; `None` where there is no directory for tenants.
    pub fn path(&self, tenant: &str) -> Option<PathBuf> {
        Some(self.inner.dir.as_ref()?.join(tenant).join("npu.sock"))
    }

    /// Opens a tenant's door, if it has one and it is closed. The name was checked: it is no path.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn let_in(&self, tenant: &str) -> Result<()> {
        let Some(path) = self.path(tenant).filter(|_| tenant != DEFAULT_TENANT) else { return Ok(()) };
        for dir in [path.parent().and_then(Path::parent), path.parent()].into_iter().flatten() {
            make_dir(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        self.open_at(tenant, &path)
    }

    /// Opens a door at a path.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn open_at(&self, tenant: &str, path: &Path) -> Result<()> {
        let mut open = self.open();
        if open.contains_key(tenant) {
            return Ok(());
        }
        let listener = (self.inner.make)(path).with_context(|| format!("cannot listen at {}", path.display()))?;
        let stopper = listener.stopper();
        let (this, name) = (self.clone(), tenant.to_owned());
        let thread = std::thread::Builder::new()
            .name("accept".into())
            .spawn(move || this.accept(&listener, &name))
            .context("cannot start an accept thread")?;
        open.insert(tenant.to_owned(), (stopper, thread));
        Ok(())
    }

    /// Closes a tenant's door. False if its thread had panicked, which is a bug.
    pub fn close(&self, tenant: &str) -> bool {
        let Some((stopper, thread)) = self.open().remove(tenant) else { return true };
        stopper.stop();
        // The thread drops the listener, which removes the socket from the file system.
        thread.join().is_ok()
    }

    /// Closes every door.
    pub fn close_all(&self) -> bool {
        let names: Vec<String> = self.open().keys().cloned().collect();
        names.iter().all(|name| self.close(name))
    }

    /// Lets clients in until the door is closed.
    fn accept(&self, listener: &Listener, tenant: &str) {
        let Inner { handle, watch, failed, .. } = &*self.inner;
        loop {
            let (session, connection) = match listener.accept() {
                Ok(accepted) => accepted,
                Err(AcceptError::Stopped) => return,
                Err(e @ AcceptError::Listen(_)) => {
                    // The main task may be ending for another reason already.
                    let _ = failed.blocking_send(anyhow::Error::new(e));
                    return;
                }
                Err(e) => {
                    warn!("{:#}", anyhow::Error::new(e));
                    continue;
                }
            };
            let (id, peer) = (session.id(), session.peer().clone());
            match handle.attach_with(session, tenant, Some(watch.on_end())) {
                Ok(()) => {
                    info!(
                        session = id,
                        tenant,
                        pid = peer.pid,
                        uid = peer.uid,
                        process = peer.process_name,
                        "attached"
                    );
                    watch.add(connection);
                }
                Err(e) => warn!(session = id, tenant, pid = peer.pid, "not attached: {e}"),
            }
        }
    }
}

/// Makes a directory of this user's alone; one that is there stays as it is.
fn make_dir(dir: &Path) -> std::io::Result<()> {
    match std::fs::create_dir(dir) {
        // The umask takes the right to enter from directories, too.
        Ok(()) => std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700)),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_names_tenants_and_a_misspelt_field_is_refused() {
        let text = "[tenants.chat]\nweight = 3\nmemory_limit_bytes = 4096\n[tenants.batch]\n";
        let read: Configured = toml::from_str(text).unwrap();
        assert_eq!(read.tenants["chat"].weight, 3);
        assert_eq!(read.tenants["batch"], TenantConfig::default());
        for wrong in ["[tenants.chat]\nwieght = 3\n", "[tenant.chat]\n", "[tenants]\nchat = 3\n"] {
            assert!(toml::from_str::<Configured>(wrong).is_err(), "{wrong}");
        }
    }
}

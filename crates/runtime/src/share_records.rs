//! What the records of shared memory do.

use acl_abi::values as acl;
use wire::Reply;

use crate::core::Core;
use crate::fault::Fault;
use crate::shares::{Asker, Key, ShareError, Subject, fresh_key};

/// Words of a key that `aclrtMemExportToShareableHandle` has room for.
const HANDLE_KEY_WORDS: usize = 1;

pub(crate) fn fault(what: &str, error: &ShareError) -> Fault {
    let status = match error {
        ShareError::TooMany(..) | ShareError::NoKey(_) => acl::ACL_ERROR_RT_RESOURCE_ALLOC_FAIL,
        _ => acl::ACL_ERROR_RT_PARAM_INVALID,
    };
    Fault::new(status, format!("{what}: {error}"))
}

impl Core {
    pub(crate) fn asker(&self, session: u64) -> Asker {
        let tenant = self.tenants.get(&session).map(|(tenant, _)| tenant);
        // Without a tenant there is no record; nobody has these ids.
        let nobody = Asker { session, uid: u32::MAX, pid: 0, tenant: u32::MAX };
        tenant.map_or(nobody, |t| Asker { session, uid: t.peer.uid, pid: t.peer.pid, tenant: t.account })
    }

    /// Exports the allocation that begins at `subject` (of at least `size` bytes), or handle number `subject`.
    pub(crate) fn export(
        &mut self,
        session: u64,
        handle: bool,
        subject: u64,
        size: u64,
        named_only: bool,
    ) -> Result<Reply, Fault> {
        let what = if handle { "aclrtMemExportToShareableHandle" } else { "aclrtIpcMemGetExportKey" };
        let space = self.space(session);
        let (kind, (physical, whole)) = match handle {
            true => (Subject::Handle, space.handle(subject).map_err(|e| Fault::param(format!("{what}: {e}")))?),
            false => (Subject::Block, space.allocation(subject).map_err(|e| Fault::param(format!("{what}: {e}")))?),
        };
        if size > whole {
            return Err(Fault::param(format!("{what}: {size} bytes of an allocation of {whole}")));
        }
        if self.shares.is_borrowed(session, physical) {
            return Err(Fault::param(format!("{what}: the memory was imported; only its owner exports it")));
        }
        let asker = self.asker(session);
        let key = fresh_key(if handle { HANDLE_KEY_WORDS } else { 4 }).map_err(|e| fault(what, &e))?;
        self.shares.export(asker, key, (kind, physical, whole), named_only).map_err(|e| fault(what, &e))?;
        Ok(Reply { payload: key, ..Reply::ok() })
    }

    pub(crate) fn export_allow(&mut self, session: u64, key: Key, pid: u32) -> Result<Reply, Fault> {
        let asker = self.asker(session);
        let allowed = self.shares.allow(asker, key, pid).map(|()| Reply::ok());
        allowed.map_err(|e| fault("aclrtIpcMemSetImportPid", &e))
    }

    pub(crate) fn export_close(&mut self, session: u64, key: Key) -> Result<Reply, Fault> {
        let asker = self.asker(session);
        self.shares.close(asker, key).map(|()| Reply::ok()).map_err(|e| fault("aclrtIpcMemClose", &e))
    }

    /// Imports; the answer is the address, or the handle's number, and the size.
    pub(crate) fn import(&mut self, session: u64, key: Key, handle: bool) -> Result<Reply, Fault> {
        let what = if handle { "aclrtMemImportFromShareableHandle" } else { "aclrtIpcMemImportByKey" };
        let found = self.shares.find(self.asker(session), key);
        let (subject, physical, size) = found.map_err(|e| fault(what, &e))?;
        if (subject == Subject::Handle) != handle {
            return Err(fault(what, &ShareError::Unknown));
        }
        let blocks_max = self.limits.blocks_max;
        let space = self.space(session);
        if space.blocks() >= blocks_max {
            return Err(Fault::over_limit(acl::ACL_ERROR_RT_RESOURCE_ALLOC_FAIL, what, blocks_max));
        }
        let value = match subject {
            Subject::Handle => space.borrow_handle(physical, size),
            Subject::Block => {
                let full = |e| Fault::new(acl::ACL_ERROR_RT_MEMORY_ALLOCATION, format!("{what}: {e}"));
                let start = space.find_gap(size).map_err(full)?;
                space.borrow(start, size, physical);
                start
            }
        };
        self.shares.imported(physical, session);
        Ok(Reply { payload: [value, size, 0, 0], ..Reply::ok() })
    }

    /// Counts memory for the session that it now belongs to.
    pub(crate) fn settle_shares(&mut self) {
        while let Some((physical, session)) = self.shares.take_moved() {
            if let Some((tenant, _)) = self.tenants.get_mut(&session) {
                tenant.space.charge(physical);
            }
            self.meter_memory(session);
        }
    }
}

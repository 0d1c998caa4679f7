//! Everything this library knows in one process, and what a fork does to it.
//!
//! **Invariants**
//! - Nothing here connects, maps or starts a thread before the first call that needs a device: engines ask a parent process
//!   for version and device count and then fork.
//! - A forked child shares nothing with its parent. The fork handler makes it forget all state without touching a lock,
//!   which another thread may have held; the child's first call makes fresh state, whose tables do not know the parent's
//!   handles.
//! - State is never freed, so that `&'static` references to it are safe to keep across any call.

use std::cell::Cell;
use std::ffi::{CString, c_void};
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Once, OnceLock};

use acl_abi::values as acl;

use crate::api::hccl::Comm;
use crate::api::pages::Physical;
use crate::callbacks::Callbacks;
use crate::config::{Config, Mode};
use crate::desc::Descriptors;
use crate::error::Failure;
use crate::event::Event;
use crate::graph::{Graph, TaskGroup};
use crate::handle::{Kind, Table, lock};
use crate::host::HostBlocks;
use crate::ipc::Keys;
use crate::link::Link;
use crate::log::log;
use crate::objects::Objects;
use crate::peers::Peers;
use crate::settings::Settings;
use crate::stream::Stream;

/// `aclInit` was not called yet.
const NEW: u8 = 0;
/// Between `aclInit` and `aclFinalize`.
const INITIALISED: u8 = 1;
/// After `aclFinalize`: destroying what is gone already is not an error.
const FINALISED: u8 = 2;

/// One device.
#[derive(Default)]
struct Slot {
    /// The session, from its first use to `aclFinalize`.
    link: Mutex<Option<Arc<Link>>>,
    /// SoC name as `aclrtGetSocName` hands it out; kept because callers keep the pointer.
    soc_name: OnceLock<CString>,
}

/// A context: only a device number, because one session serves a process and a device.
#[derive(Clone, Copy, Debug, Default)]
pub struct Context {
    /// Device.
    pub device: u32,
}

/// The state of one process.
pub struct Process {
    /// Differs between processes, also between a parent and its forked children.
    pub id: u32,
    config: Result<Config, String>,
    slots: Box<[Slot]>,
    /// Primary context of each device, made when first asked for.
    primary: Box<[OnceLock<usize>]>,
    lifecycle: AtomicU8,
    /// Device of threads that never called `aclrtSetDevice`, if `aclInit`'s configuration names one; -1 for none.
    default_device: AtomicI32,
    /// aclnn objects.
    pub objects: Objects,
    /// Tensor descriptions and data buffers.
    pub descriptors: Descriptors,
    /// Streams.
    pub streams: Table<Option<Stream>>,
    /// Events.
    pub events: Table<Option<Event>>,
    /// Physical device memory.
    pub physical: Table<Option<Physical>>,
    /// Captured graphs.
    pub graphs: Table<Option<Graph>>,
    /// Their task groups.
    pub task_groups: Table<Option<TaskGroup>>,
    /// Registered binaries of raw kernels: bytes of each.
    pub binaries: Table<u64>,
    /// Communicators.
    pub comms: Table<Option<Arc<Comm>>>,
    /// Contexts.
    pub contexts: Table<Context>,
    /// Keys of shared memory.
    pub keys: Keys,
    /// Which device was allowed to reach which.
    pub peers: Peers,
    /// Host memory that did not fit into an arena.
    pub host: HostBlocks,
    /// Callbacks on the host.
    pub callbacks: Callbacks,
    /// Options that are only kept and given back.
    pub settings: Settings,
}

/// What a thread last selected.
#[derive(Clone, Copy)]
struct Selected {
    process: u32,
    device: u32,
    /// Context handle as a number.
    context: usize,
}

thread_local! {
    static SELECTED: Cell<Option<Selected>> = const { Cell::new(None) };
}

static CURRENT: AtomicPtr<Process> = AtomicPtr::new(std::ptr::null_mut());
static FORK_HANDLER: Once = Once::new();

/// This process's state.
pub fn process() -> &'static Process {
    let current = CURRENT.load(Ordering::Acquire);
    if current.is_null() {
        return create();
    }
    // SAFETY: `CURRENT` is null or points at a leaked `Process`, which is never freed.
    unsafe { &*current }
}

#[cold]
fn create() -> &'static Process {
    FORK_HANDLER.call_once(|| {
        crate::entry::quiet_panics();
        // SAFETY: `forget_in_child` is an `extern "C"` function that lives as long as this library, which is never
        // unloaded (`-z nodelete`), and does only what a fork handler may (see there).
        let status = unsafe { libc::pthread_atfork(None, None, Some(forget_in_child)) };
        if status != 0 {
            log!(Error, "pthread_atfork failed ({status}): children of this process must not use the device");
        }
    });
    let fresh = Box::into_raw(Box::new(Process::new()));
    match CURRENT.compare_exchange(std::ptr::null_mut(), fresh, Ordering::AcqRel, Ordering::Acquire) {
        // SAFETY: just leaked and published; never freed.
        Ok(_) => unsafe { &*fresh },
        Err(current) => {
            // SAFETY: `fresh` came from `Box::into_raw` and was not published.
            drop(unsafe { Box::from_raw(fresh) });
            // SAFETY: as in `process`.
            unsafe { &*current }
        }
    }
}

/// Runs in a forked child, in the only thread that is left.
///
/// The parent's state stays where it is, unreachable: its locks may be held by threads that do not exist here.
extern "C" fn forget_in_child() {
    CURRENT.store(std::ptr::null_mut(), Ordering::Release);
    crate::hints::forget_in_child();
}

impl Process {
    fn new() -> Self {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        // Spread over the 32 bits, so that the generations of two processes' handles hardly ever meet.
        let id = std::process::id().wrapping_mul(0x9E37_79B1) ^ serial.wrapping_mul(0x85EB_CA6B);
        let config = Config::read(|name| std::env::var(name).ok());
        let devices = config.as_ref().map_or(0, Config::device_count);
        Self {
            id,
            config,
            slots: (0..devices).map(|_| Slot::default()).collect(),
            primary: (0..devices).map(|_| OnceLock::new()).collect(),
            lifecycle: AtomicU8::new(NEW),
            default_device: AtomicI32::new(-1),
            objects: Objects::new(id),
            descriptors: Descriptors::new(id),
            streams: Table::new(Kind::Stream, id),
            events: Table::new(Kind::Event, id),
            physical: Table::new(Kind::Physical, id),
            graphs: Table::new(Kind::Graph, id),
            task_groups: Table::new(Kind::TaskGroup, id),
            binaries: Table::new(Kind::Binary, id),
            comms: Table::new(Kind::Communicator, id),
            contexts: Table::new(Kind::Context, id),
            keys: Keys::default(),
            peers: Peers::default(),
            host: HostBlocks::default(),
            callbacks: Callbacks::default(),
            settings: Settings::default(),
        }
    }

    /// Number of devices; 0 without configuration (logged once).
    pub fn device_count(&self) -> u32 {
        if let Err(text) = &self.config {
            static ONCE: Once = Once::new();
            ONCE.call_once(|| log!(Warn, "{text}"));
        }
        self.slots.len() as u32
    }

    /// The configuration.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn config(&self) -> Result<&Config, Failure> {
        self.config.as_ref().map_err(|text| Failure::new(acl::ACL_ERROR_RT_NO_DEVICE, text.clone()))
    }

    /// `aclInit`: checks what can be checked without a connection.
    ///
    /// # Errors
    /// Repeated initialisation; no usable configuration; no daemon socket.
    pub fn initialise(&self, default_device: Option<u32>) -> Result<(), Failure> {
        if let Mode::Daemon(sockets) = &self.config()?.mode {
            crate::link::check_socket(&sockets[0])?;
        }
        if let Some(device) = default_device {
            self.check_device(i64::from(device))?;
            self.default_device.store(device as i32, Ordering::Relaxed);
        }
        if self.lifecycle.swap(INITIALISED, Ordering::AcqRel) == INITIALISED {
            return Err(Failure::new(acl::ACL_ERROR_REPEAT_INITIALIZE, "aclInit was called before in this process"));
        }
        Ok(())
    }

    /// `aclFinalize`: closes the sessions; every stream and event ends with them.
    ///
    /// # Errors
    /// Repeated finalisation, and finalisation without `aclInit`.
    pub fn finalise(&self) -> Result<(), Failure> {
        match self.lifecycle.swap(FINALISED, Ordering::AcqRel) {
            INITIALISED => {}
            FINALISED => return Err(Failure::new(acl::ACL_ERROR_REPEAT_FINALIZE, "aclFinalize was called before")),
            _ => {
                self.lifecycle.store(NEW, Ordering::Release);
                return Err(Failure::new(acl::ACL_ERROR_UNINITIALIZE, "aclInit was not called"));
            }
        }
        self.streams.clear(|s| *s = None);
        self.events.clear(|e| *e = None);
        self.graphs.clear(|g| *g = None);
        self.comms.clear(|c| *c = None);
        self.task_groups.clear(|g| *g = None);
        self.physical.clear(|p| *p = None);
        self.keys.clear();
        for slot in &self.slots {
            let link = lock(&slot.link).take();
            drop(link);
        }
        self.default_device.store(-1, Ordering::Relaxed);
        SELECTED.set(None);
        for (name, calls) in crate::stub::refused() {
            log!(Info, "{name} is not supported and was called {calls} times");
        }
        Ok(())
    }

    /// True after `aclFinalize`.
    pub fn is_finalised(&self) -> bool {
        self.lifecycle.load(Ordering::Acquire) == FINALISED
    }

    /// Checks a device number of the caller's.
    ///
    /// # Errors
    /// `ACL_ERROR_RT_INVALID_DEVICEID`, or what is wrong with the configuration.
    pub fn check_device(&self, device: i64) -> Result<u32, Failure> {
        self.config()?;
        match u32::try_from(device).ok().filter(|d| (*d as usize) < self.slots.len()) {
            Some(device) => Ok(device),
            None => {
                let text = format!("parameter deviceId: {device}, but there are {} devices", self.slots.len());
                Err(Failure::new(acl::ACL_ERROR_RT_INVALID_DEVICEID, text))
            }
        }
    }

    /// The session with `device`, opened if need be.
    ///
    /// # Errors
    /// What kept it from opening.
    pub fn link(&self, device: u32) -> Result<Arc<Link>, Failure> {
        let slot = &self.slots[self.check_device(i64::from(device))? as usize];
        let mut place = lock(&slot.link);
        if let Some(link) = &*place {
            return Ok(link.clone());
        }
        if self.is_finalised() {
            let text = "aclFinalize was called; call aclInit to use the device again";
            return Err(Failure::new(acl::ACL_ERROR_UNINITIALIZE, text));
        }
        let link = Arc::new(Link::open(device, self.config()?)?);
        // A reconnected device may be another model: then the first name stays, as callers may hold the pointer.
        let _ = slot.soc_name.set(CString::new(link.soc_name()).unwrap_or_default());
        *place = Some(link.clone());
        Ok(link)
    }

    /// The session with `device` if it is open.
    pub fn open_link(&self, device: u32) -> Option<Arc<Link>> {
        lock(&self.slots.get(device as usize)?.link).clone()
    }

    /// Every open session.
    pub fn open_links(&self) -> impl Iterator<Item = Arc<Link>> {
        self.slots.iter().filter_map(|slot| lock(&slot.link).clone())
    }

    /// The open session whose device addresses include `addr`.
    pub fn link_of(&self, addr: u64) -> Option<Arc<Link>> {
        self.open_links().find(|link| link.owns(addr))
    }

    /// Forgets a session that was lost, so that the next use opens a fresh one.
    pub fn drop_lost_link(&self, device: u32) {
        let Some(slot) = self.slots.get(device as usize) else { return };
        let mut place = lock(&slot.link);
        if place.as_ref().is_some_and(|link| link.is_lost()) {
            *place = None;
        }
    }

    /// SoC name of a device.
    ///
    /// # Errors
    /// What kept the session from opening.
    pub fn soc_name(&self, device: u32) -> Result<&std::ffi::CStr, Failure> {
        let device = self.check_device(i64::from(device))?;
        let slot = &self.slots[device as usize];
        // Constructors of libraries ask for the name while the loader's lock is held; a device that this process hosts could not
        // start its thread then, and its spec says the name.
        if slot.soc_name.get().is_none()
            && let Some(name) = crate::direct::soc_name(self.config()?, device)
        {
            let _ = slot.soc_name.set(name);
        } else {
            self.link(device)?;
        }
        let name = slot.soc_name.get();
        Ok(name.map_or(c"", |name| name))
    }

    /// Selects a device for this thread, with its primary context.
    ///
    /// # Errors
    /// No such device.
    pub fn select(&self, device: u32) -> Result<(), Failure> {
        let context = self.primary_context(device)?;
        SELECTED.set(Some(Selected { process: self.id, device, context: context.addr() }));
        Ok(())
    }

    /// Selects a context for this thread.
    ///
    /// # Errors
    /// No such context.
    pub fn select_context(&self, context: *mut c_void) -> Result<(), Failure> {
        let device = self.contexts.with(context, "context", |c| c.device)?;
        SELECTED.set(Some(Selected { process: self.id, device, context: context.addr() }));
        Ok(())
    }

    /// Unselects whatever this thread selected, if it is of `device` (or, with a context, that context).
    pub fn unselect(&self, device: u32, context: Option<*mut c_void>) {
        let of = |s: Selected| s.device == device && context.is_none_or(|c| c.addr() == s.context);
        if self.selected().is_some_and(of) {
            SELECTED.set(None);
        }
    }

    fn selected(&self) -> Option<Selected> {
        // A forked child inherits the thread's selection, but not the session it was made in.
        SELECTED.try_with(Cell::get).ok().flatten().filter(|s| s.process == self.id)
    }

    /// The thread's context.
    ///
    /// # Errors
    /// `ACL_ERROR_RT_CONTEXT_NULL` where nothing is selected.
    pub fn current_context(&self) -> Result<*mut c_void, Failure> {
        match self.selected() {
            Some(selected) => Ok(std::ptr::without_provenance_mut(selected.context)),
            None => self.primary_context(self.current_device()?),
        }
    }

    /// The thread's device.
    ///
    /// # Errors
    /// `ACL_ERROR_RT_CONTEXT_NULL` where nothing is selected.
    pub fn current_device(&self) -> Result<u32, Failure> {
        if let Some(selected) = self.selected() {
            return Ok(selected.device);
        }
        u32::try_from(self.default_device.load(Ordering::Relaxed)).map_err(|_| self.nothing_selected())
    }

    /// The device that this thread itself selected, as `aclrtGetDevice` reports it.
    ///
    /// # Errors
    /// `ACL_ERROR_RT_CONTEXT_NULL` where nothing is selected.
    pub fn selected_device(&self) -> Result<u32, Failure> {
        self.selected().map(|s| s.device).ok_or_else(|| self.nothing_selected())
    }

    fn nothing_selected(&self) -> Failure {
        let text = "no device is selected on this thread; call aclrtSetDevice first";
        Failure::new(acl::ACL_ERROR_RT_CONTEXT_NULL, text)
    }

    /// The session of the thread's device.
    ///
    /// # Errors
    /// Nothing selected; what kept the session from opening.
    pub fn current_link(&self) -> Result<Arc<Link>, Failure> {
        self.link(self.current_device()?)
    }

    fn primary_context(&self, device: u32) -> Result<*mut c_void, Failure> {
        let cell = &self.primary[self.check_device(i64::from(device))? as usize];
        if let Some(context) = cell.get() {
            return Ok(std::ptr::without_provenance_mut(*context));
        }
        let fresh = self.contexts.insert(|c| {
            c.device = device;
            Ok(())
        })?;
        Ok(std::ptr::without_provenance_mut(*cell.get_or_init(|| fresh.addr())))
    }

    /// True for a device's primary context, which `aclrtDestroyContext` does not destroy.
    pub fn is_primary(&self, context: *mut c_void) -> bool {
        self.primary.iter().any(|cell| cell.get() == Some(&context.addr()))
    }

    /// The stream behind a handle; null is the default stream of the thread's device.
    ///
    /// # Errors
    /// A bad handle; for null, nothing selected.
    pub fn stream(&self, handle: *mut c_void) -> Result<Stream, Failure> {
        if handle.is_null() {
            return Ok(self.current_link()?.default_stream());
        }
        let stream = self.streams.with(handle, "stream", |s| s.clone())?;
        stream.ok_or_else(|| Failure::new(acl::ACL_ERROR_RT_INVALID_HANDLE, "parameter stream: being destroyed"))
    }

    /// The event behind a handle.
    ///
    /// # Errors
    /// A bad handle.
    pub fn event(&self, handle: *mut c_void, parameter: &str) -> Result<Event, Failure> {
        let event = self.events.with(handle, parameter, |e| e.clone())?;
        event.ok_or_else(|| {
            Failure::new(acl::ACL_ERROR_RT_INVALID_HANDLE, format!("parameter {parameter}: being destroyed"))
        })
    }

    /// Drops the failure of destroying something after `aclFinalize` has destroyed it already.
    ///
    /// # Errors
    /// The failure, before `aclFinalize`.
    pub fn forgive_after_finalise(&self, result: Result<(), Failure>) -> Result<(), Failure> {
        if self.is_finalised() { Ok(()) } else { result }
    }
}

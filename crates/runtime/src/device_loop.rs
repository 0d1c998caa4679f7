//! The dispatch thread: the one thread that owns a device, or several.
//!
//! A turn: look at the clock, bring the state machine up to that time, take what the rings hold (a bounded number of
//! records of each), take what the control side asks for; so for each device. With nothing to do, spin briefly, then sleep
//! on the doorbell until a state machine says that something may happen. Devices share the thread, the clock and the
//! doorbell, and nothing else: modelled time is exact on each, however long the thread is with another.
//!
//! Who rings the doorbell: clients that posted while the thread slept, the device's worker threads, and [`DeviceHandle`].
//! Nobody polls.
//!
//! **Costs** of a turn without work: one clock read and a look at each ring. Asleep: nothing, or [`LOOK_EVERY_NS`] while
//! paced work is outstanding.
//!
//! [`LOOK_EVERY_NS`]: crate::core::LOOK_EVERY_NS

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use device::{Device, DeviceInfo};
use parking_lot::Mutex;
use sched::dispatch::RecordLimits;
use sched::{Nanos, PolicyConfig, SessionParams};
use session::peers::Peers;
use session::{Doorbell, ServerSession};

use crate::core::{AttachError, Core, StartError, Wake};
use crate::limits::Limits;
use crate::recording::Taken;
use crate::snapshot::{LoopCounters, Snapshot};
use crate::steps::{RequestSnapshot, StepSnapshot};
use crate::tenants::{Books, DEFAULT_TENANT, TenantConfig, TenantError};

/// How long the thread stays awake after the last record: a few gaps between the operators of an eager engine (10 µs
/// each), so that a burst is taken in without a wake-up per operator; little enough for a machine with two cores.
pub const SPIN_NS: Nanos = 20_000;
/// A timed sleep for an exact moment ends this much early and spins the rest: what timers are late by on a virtual
/// machine (measured 18 µs in the mean, with the timer slack at its least).
pub const WAKE_LEAD_NS: Nanos = 30_000;
/// Control requests waiting at once.
const CONTROL_MAX: usize = 256;
/// How long a control request waits for the thread, whose turns take well under a millisecond.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// The dispatch thread does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    /// It has ended.
    #[error("the dispatch thread has ended")]
    Stopped,
    /// It is there and busy.
    #[error("the dispatch thread did not answer within {} ms", ANSWER_TIMEOUT.as_millis())]
    Timeout,
}

/// Called once, from the dispatch thread, when it ends a session of itself (the client broke the protocol).
pub type OnEnd = Box<dyn FnOnce(u64) + Send>;

enum Control {
    Attach(Box<ServerSession>, String, Option<OnEnd>, Sender<Result<(), AttachError>>),
    Detach(u64, Sender<()>),
    SetPolicy(PolicyConfig, Sender<()>),
    SetPeers(Peers, Sender<()>),
    Snapshot(Sender<Snapshot>),
    StartRecord(RecordLimits, Sender<()>),
    StopRecord(Sender<()>),
    CopyRecord(Sender<Option<Taken>>),
    Steps(u64, Sender<Vec<StepSnapshot>>),
    Requests(Sender<Vec<RequestSnapshot>>),
    SetTenant(String, TenantConfig, Sender<Result<(), TenantError>>),
    RemoveTenant(String, Sender<Result<(), TenantError>>),
    Books(Sender<Books>),
    Shutdown,
}

/// A dispatch thread's own state.
pub struct DeviceLoop {
    lanes: Vec<Lane>,
    doorbell: Doorbell,
    started: Instant,
}

/// One device on the thread.
struct Lane {
    core: Core,
    control: Receiver<Control>,
    sessions: Vec<Attached>,
    counters: LoopCounters,
    violations: u64,
    busy_until: Nanos,
}

/// What a turn of a device was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Idle,
    Busy,
    Stop,
}

struct Attached {
    session: Box<ServerSession>,
    on_end: Option<OnEnd>,
}

/// Speaks to a dispatch thread. Clones speak to the same one.
#[derive(Clone)]
pub struct DeviceHandle {
    control: Sender<Control>,
    doorbell: Doorbell,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
    info: Arc<DeviceInfo>,
}

impl DeviceLoop {
    /// Hands a device to a new dispatch thread. `doorbell` must be the one that the device's worker threads and the sessions
    /// ring.
    ///
    /// # Errors
    /// The device has no profile, or the thread cannot be started.
    pub fn spawn(
        device: Box<dyn Device>,
        policy: PolicyConfig,
        limits: Limits,
        doorbell: Doorbell,
    ) -> Result<DeviceHandle, StartError> {
        let mut handles = Self::spawn_all(vec![(device, policy)], limits, doorbell)?;
        // One device was given, so there is one.
        handles.pop().ok_or_else(|| StartError::System("no device".to_owned()))
    }

    /// Hands several devices to one new dispatch thread; a handle for each, in order. [`DeviceHandle::shutdown`] of any of them
    /// ends the thread.
    ///
    /// # Errors
    /// A device has no profile, or the thread cannot be started.
    pub fn spawn_all(
        devices: Vec<(Box<dyn Device>, PolicyConfig)>,
        limits: Limits,
        doorbell: Doorbell,
    ) -> Result<Vec<DeviceHandle>, StartError> {
        let (mut lanes, mut ends) = (Vec::new(), Vec::new());
        for (device, policy) in devices {
            let info = Arc::new(device.info().clone());
            let core = Core::new(device, policy, limits)?;
            let (sender, control) = bounded(CONTROL_MAX);
            let (sessions, counters) = (Vec::new(), LoopCounters::default());
            lanes.push(Lane { core, control, sessions, counters, violations: 0, busy_until: 0 });
            ends.push((sender, info));
        }
        let this = Self { lanes, doorbell: doorbell.clone(), started: Instant::now() };
        let thread = std::thread::Builder::new()
            .name("dispatch".into())
            .spawn(move || this.run())
            .map_err(|e| StartError::System(e.to_string()))?;
        let thread = Arc::new(Mutex::new(Some(thread)));
        let handle =
            |(control, info)| DeviceHandle { control, info, doorbell: doorbell.clone(), thread: Arc::clone(&thread) };
        Ok(ends.into_iter().map(handle).collect())
    }

    fn now(&self) -> Nanos {
        self.started.elapsed().as_nanos() as Nanos
    }

    fn run(mut self) {
        // Refused only by a seccomp filter; timers are then 50 µs late, and nothing else changes.
        let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
        loop {
            let (mut busy, mut now) = (false, 0);
            for lane in &mut self.lanes {
                now = self.started.elapsed().as_nanos() as Nanos;
                match lane.turn(now) {
                    Turn::Idle => {}
                    Turn::Busy => busy = true,
                    Turn::Stop => return,
                }
            }
            if !busy {
                self.rest(now);
            }
        }
    }

    /// Something to read, on any device.
    fn has_pending(&self) -> bool {
        self.lanes.iter().any(Lane::has_pending)
    }

    /// Nothing to do: spins until the time that the last record set, then sleeps until something may happen.
    fn rest(&mut self, now: Nanos) {
        let (mut latest, mut sleep_until) = (Nanos::MAX, Nanos::MAX);
        for lane in &self.lanes {
            let (at, lead) = match lane.core.next_wake(now) {
                Wake::Doorbell => continue,
                Wake::By(at) => (at, 0),
                Wake::At(at) => (at, WAKE_LEAD_NS),
            };
            latest = latest.min(at);
            sleep_until = sleep_until.min(at.saturating_sub(lead));
        }
        let busy_until = self.lanes.iter().map(|lane| lane.busy_until).max().unwrap_or(0);
        let spin_until = if sleep_until <= now { latest } else { busy_until.min(latest) };
        let mut present = now;
        while present < spin_until {
            if self.has_pending() {
                return;
            }
            // Not a pause only: the client that was just answered may have been woken on this very core.
            std::thread::yield_now();
            present = self.now();
        }
        if present >= sleep_until {
            return;
        }
        let mut pending = false;
        for lane in &self.lanes {
            pending |= !lane.control.is_empty();
            for attached in &lane.sessions {
                if lane.core.has_room(attached.session.id()) {
                    pending |= attached.session.prepare_sleep();
                }
            }
        }
        if !pending {
            self.lanes.iter_mut().for_each(|lane| lane.counters.sleeps += 1);
            let timeout = (sleep_until != Nanos::MAX).then(|| Duration::from_nanos(sleep_until - present));
            self.doorbell.wait(timeout);
        }
        for attached in self.lanes.iter().flat_map(|lane| &lane.sessions) {
            attached.session.cancel_sleep();
        }
    }
}

impl Lane {
    fn turn(&mut self, now: Nanos) -> Turn {
        self.counters.turns += 1;
        self.core.advance(now);
        let mut busy = self.drain(now);
        while let Ok(control) = self.control.try_recv() {
            busy = true;
            if !self.control(now, control) {
                return Turn::Stop;
            }
        }
        if !busy {
            return Turn::Idle;
        }
        // At the time of arrival, before the clock is looked at again.
        self.core.advance(now);
        self.busy_until = now + SPIN_NS;
        Turn::Busy
    }

    /// Takes records from every ring; true if there were any.
    fn drain(&mut self, now: Nanos) -> bool {
        let core = &mut self.core;
        let mut taken = 0;
        let mut index = 0;
        while index < self.sessions.len() {
            let session = &mut self.sessions[index].session;
            let id = session.id();
            let room = core.room(id);
            if room == 0 {
                index += 1;
                continue;
            }
            let taken_in = session.drain_while(room, &mut |_, record, call| {
                core.record(now, id, record, call);
                // A launch of a graph may have filled the session.
                core.is_open(id)
            });
            match taken_in {
                Ok(n) => {
                    taken += n;
                    index += 1;
                }
                Err(violation) => {
                    tracing::warn!(session = id, pid = session.peer().pid, %violation, "session ended: protocol broken");
                    self.violations += 1;
                    core.detach(now, id);
                    let Attached { session, on_end } = self.sessions.swap_remove(index);
                    drop(session);
                    if let Some(on_end) = on_end {
                        on_end(id);
                    }
                }
            }
        }
        self.counters.records += taken as u64;
        taken > 0
    }

    /// False: stop.
    fn control(&mut self, now: Nanos, control: Control) -> bool {
        // Whoever asked may have stopped waiting.
        match control {
            Control::Attach(session, tenant, on_end, answer) => {
                let result = self.core.attach(&session, &tenant, SessionParams::default());
                if result.is_ok() {
                    self.sessions.push(Attached { session, on_end });
                }
                let _ = answer.send(result);
            }
            Control::Detach(id, answer) => {
                self.core.detach(now, id);
                self.sessions.retain(|a| a.session.id() != id);
                let _ = answer.send(());
            }
            Control::SetPolicy(policy, answer) => {
                self.core.set_policy(now, policy);
                let _ = answer.send(());
            }
            Control::SetPeers(peers, answer) => {
                self.core.set_peers(peers);
                let _ = answer.send(());
            }
            Control::Snapshot(answer) => {
                // The books go up to the present, too.
                self.core.books();
                let _ = answer.send(self.core.snapshot(self.counters, self.violations));
            }
            Control::StartRecord(limits, answer) => {
                self.core.start_record(limits);
                let _ = answer.send(());
            }
            Control::StopRecord(answer) => {
                self.core.stop_record();
                let _ = answer.send(());
            }
            Control::CopyRecord(answer) => {
                let _ = answer.send(self.core.copy_record());
            }
            Control::Steps(after, answer) => {
                let _ = answer.send(self.core.steps(after));
            }
            Control::Requests(answer) => {
                let _ = answer.send(self.core.requests());
            }
            Control::SetTenant(name, config, answer) => {
                let _ = answer.send(self.core.set_tenant(now, &name, config));
            }
            Control::RemoveTenant(name, answer) => {
                let _ = answer.send(self.core.remove_tenant(now, &name));
            }
            Control::Books(answer) => {
                let _ = answer.send(self.core.books());
            }
            Control::Shutdown => return false,
        }
        true
    }

    /// Something to read. A session under back-pressure does not count: it is not read before the device is through with some
    /// of its work.
    fn has_pending(&self) -> bool {
        !self.control.is_empty()
            || self.core.peers_moved()
            || self.sessions.iter().any(|a| a.session.has_pending() && self.core.has_room(a.session.id()))
    }
}

impl DeviceHandle {
    /// The device.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// Adds a session of [`DEFAULT_TENANT`]; its records are read from now on.
    ///
    /// # Errors
    /// Too many sessions, or the thread has ended. The client is told that it is lost.
    pub fn attach(&self, session: ServerSession) -> Result<(), AttachError> {
        self.attach_with(session, DEFAULT_TENANT, None)
    }

    /// [`Self::attach`] for any tenant; `on_end` is called if the dispatch thread ends the session of itself.
    ///
    /// # Errors
    /// See [`Self::attach`].
    pub fn attach_with(&self, session: ServerSession, tenant: &str, on_end: Option<OnEnd>) -> Result<(), AttachError> {
        let (answer, result) = bounded(1);
        self.ask(Control::Attach(Box::new(session), tenant.to_owned(), on_end, answer), &result)
            .unwrap_or(Err(AttachError::Stopped))
    }

    /// Ends a session and gives back everything it held; returns when that is done. A session that is not attached is
    /// already gone.
    ///
    /// # Errors
    /// The thread does not answer.
    pub fn detach(&self, session: u64) -> Result<(), NoAnswer> {
        let (answer, result) = bounded(1);
        self.ask(Control::Detach(session, answer), &result)
    }

    /// Changes the policy from the next decision on.
    ///
    /// # Errors
    /// The thread does not answer.
    pub fn set_policy(&self, policy: PolicyConfig) -> Result<(), NoAnswer> {
        let (answer, result) = bounded(1);
        self.ask(Control::SetPolicy(policy, answer), &result)
    }

    /// Lets sessions of this device make communicators with those of other daemons.
    ///
    /// # Errors
    /// The thread does not answer.
    pub fn set_peers(&self, peers: Peers) -> Result<(), NoAnswer> {
        let (answer, result) = bounded(1);
        self.ask(Control::SetPeers(peers, answer), &result)
    }

    /// A picture of everything.
    ///
    /// # Errors
    /// The thread does not answer.
    pub fn snapshot(&self) -> Result<Snapshot, NoAnswer> {
        let (answer, result) = bounded(1);
        self.ask(Control::Snapshot(answer), &result)
    }

    /// Begins to record decisions, or begins anew.
    ///
    /// # Errors
    /// The thread does not answer.
    pub fn start_record(&self, limits: RecordLimits) -> Result<(), NoAnswer> {
        let (answer, result) = bounded(1);
        self.ask(Control::StartRecord(limits, answer), &result)
    }

    /// Ends the recording and drops it.
    ///
    /// # Errors
    /// The thread does not answer.
    pub fn stop_record(&self) -> Result<(), NoAnswer> {
        let (answer, result) = bounded(1);
        self.ask(Control::StopRecord(answer), &result)
    }

    /// A copy of what is recorded so far, the recording going on; `None` if there is none.
    ///
    /// # Errors
    /// The thread does not answer.
    pub fn copy_record(&self) -> Result<Option<Taken>, NoAnswer> {
        let (answer, result) = bounded(1);
        self.ask(Control::CopyRecord(answer), &result)
    }

    /// Steps that streams ran, from number `after` on, as far as they are kept; then the open ones.
    ///
    /// # Errors
    /// The thread does not answer.
    pub fn steps(&self, after: u64) -> Result<Vec<StepSnapshot>, NoAnswer> {
        let (answer, result) = bounded(1);
        self.ask(Control::Steps(after, answer), &result)
    }

    /// Requests that hints keep alive.
    ///
    /// # Errors
    /// The thread does not answer.
    pub fn requests(&self) -> Result<Vec<RequestSnapshot>, NoAnswer> {
        let (answer, result) = bounded(1);
        self.ask(Control::Requests(answer), &result)
    }

    /// Makes a tenant or changes it: see [`Core::set_tenant`].
    ///
    /// # Errors
    /// The thread does not answer; what is wrong with the tenant.
    pub fn set_tenant(&self, name: &str, config: TenantConfig) -> Result<Result<(), TenantError>, NoAnswer> {
        let (answer, result) = bounded(1);
        self.ask(Control::SetTenant(name.to_owned(), config, answer), &result)
    }

    /// Removes a tenant: see [`Core::remove_tenant`].
    ///
    /// # Errors
    /// The thread does not answer; why it stays.
    pub fn remove_tenant(&self, name: &str) -> Result<Result<(), TenantError>, NoAnswer> {
        let (answer, result) = bounded(1);
        self.ask(Control::RemoveTenant(name.to_owned(), answer), &result)
    }

    /// What every tenant used so far.
    ///
    /// # Errors
    /// The thread does not answer.
    pub fn books(&self) -> Result<Books, NoAnswer> {
        let (answer, result) = bounded(1);
        self.ask(Control::Books(answer), &result)
    }

    /// Ends the thread and waits for it: every client is told that it is lost, the device is dropped. False if the thread had
    /// panicked, which is a bug.
    pub fn shutdown(&self) -> bool {
        let _ = self.control.try_send(Control::Shutdown);
        self.doorbell.ring();
        let thread = self.thread.lock().take();
        thread.is_none_or(|thread| thread.join().is_ok())
    }

    /// True while the thread runs.
    pub fn is_running(&self) -> bool {
        self.thread.lock().as_ref().is_some_and(|thread| !thread.is_finished())
    }

    fn ask<T>(&self, control: Control, answer: &Receiver<T>) -> Result<T, NoAnswer> {
        self.control.send_timeout(control, ANSWER_TIMEOUT).map_err(|e| match e {
            crossbeam_channel::SendTimeoutError::Timeout(_) => NoAnswer::Timeout,
            crossbeam_channel::SendTimeoutError::Disconnected(_) => NoAnswer::Stopped,
        })?;
        self.doorbell.ring();
        answer.recv_timeout(ANSWER_TIMEOUT).map_err(|e| match e {
            RecvTimeoutError::Timeout => NoAnswer::Timeout,
            RecvTimeoutError::Disconnected => NoAnswer::Stopped,
        })
    }
}

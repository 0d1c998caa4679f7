//! The dispatch thread: the one thread that owns a device.
//!
//! A turn: look at the clock, bring the state machine up to that time, take what the rings hold (a bounded number of
//! records of each), take what the control side asks for. With nothing to do, spin briefly, then sleep on the doorbell
//! until the state machine says that something may happen.
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
use sched::{Nanos, PolicyConfig, SessionParams};
use session::{Doorbell, ServerSession};

use crate::core::{AttachError, Core, StartError, Wake};
use crate::limits::Limits;
use crate::snapshot::{LoopCounters, Snapshot};

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
    Attach(Box<ServerSession>, SessionParams, Option<OnEnd>, Sender<Result<(), AttachError>>),
    Detach(u64, Sender<()>),
    SetPolicy(PolicyConfig, Sender<()>),
    Snapshot(Sender<Snapshot>),
    Shutdown,
}

/// A dispatch thread's own state.
pub struct DeviceLoop {
    core: Core,
    doorbell: Doorbell,
    control: Receiver<Control>,
    started: Instant,
    sessions: Vec<Attached>,
    counters: LoopCounters,
    violations: u64,
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
        let info = Arc::new(device.info().clone());
        let core = Core::new(device, policy, limits)?;
        let (sender, control) = bounded(CONTROL_MAX);
        let this = Self {
            core,
            doorbell: doorbell.clone(),
            control,
            started: Instant::now(),
            sessions: Vec::new(),
            counters: LoopCounters::default(),
            violations: 0,
        };
        let thread = std::thread::Builder::new()
            .name("dispatch".into())
            .spawn(move || this.run())
            .map_err(|e| StartError::System(e.to_string()))?;
        Ok(DeviceHandle { control: sender, doorbell, thread: Arc::new(Mutex::new(Some(thread))), info })
    }

    fn now(&self) -> Nanos {
        self.started.elapsed().as_nanos() as Nanos
    }

    fn run(mut self) {
        // Refused only by a seccomp filter; timers are then 50 µs late, and nothing else changes.
        let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
        let mut busy_until = 0;
        loop {
            self.counters.turns += 1;
            let now = self.now();
            self.core.advance(now);
            let mut busy = self.drain(now);
            while let Ok(control) = self.control.try_recv() {
                busy = true;
                if !self.control(now, control) {
                    return;
                }
            }
            if busy {
                // At the time of arrival, before the clock is looked at again.
                self.core.advance(now);
                busy_until = now + SPIN_NS;
                continue;
            }
            self.rest(now, busy_until);
        }
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
            Control::Attach(session, params, on_end, answer) => {
                let result = self.core.attach(&session, params);
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
            Control::Snapshot(answer) => {
                let _ = answer.send(self.core.snapshot(self.counters, self.violations));
            }
            Control::Shutdown => return false,
        }
        true
    }

    /// Something to read. A session under back-pressure does not count: it is not read before the device is through with some
    /// of its work.
    fn has_pending(&self) -> bool {
        !self.control.is_empty()
            || self.sessions.iter().any(|a| a.session.has_pending() && self.core.has_room(a.session.id()))
    }

    /// Nothing to do: spins until `busy_until`, then sleeps until something may happen.
    fn rest(&mut self, now: Nanos, busy_until: Nanos) {
        let wake = self.core.next_wake(now);
        let (latest, lead) = match wake {
            Wake::Doorbell => (Nanos::MAX, 0),
            Wake::By(at) => (at, 0),
            Wake::At(at) => (at, WAKE_LEAD_NS),
        };
        let sleep_until = latest.saturating_sub(lead);
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
        let mut pending = !self.control.is_empty();
        for attached in &self.sessions {
            if self.core.has_room(attached.session.id()) {
                pending |= attached.session.prepare_sleep();
            }
        }
        if !pending {
            self.counters.sleeps += 1;
            let timeout = (latest != Nanos::MAX).then(|| Duration::from_nanos(sleep_until - present));
            self.doorbell.wait(timeout);
        }
        for attached in &self.sessions {
            attached.session.cancel_sleep();
        }
    }
}

impl DeviceHandle {
    /// The device.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// Adds a session; its records are read from now on.
    ///
    /// # Errors
    /// Too many sessions, or the thread has ended. The client is told that it is lost.
    pub fn attach(&self, session: ServerSession, params: SessionParams) -> Result<(), AttachError> {
        self.attach_with(session, params, None)
    }

    /// [`Self::attach`]; `on_end` is called if the dispatch thread ends the session of itself.
    ///
    /// # Errors
    /// See [`Self::attach`].
    pub fn attach_with(
        &self,
        session: ServerSession,
        params: SessionParams,
        on_end: Option<OnEnd>,
    ) -> Result<(), AttachError> {
        let (answer, result) = bounded(1);
        self.ask(Control::Attach(Box::new(session), params, on_end, answer), &result)
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

    /// A picture of everything.
    ///
    /// # Errors
    /// The thread does not answer.
    pub fn snapshot(&self) -> Result<Snapshot, NoAnswer> {
        let (answer, result) = bounded(1);
        self.ask(Control::Snapshot(answer), &result)
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

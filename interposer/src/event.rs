//! Events as the client sees them.
//!
//! An event that was never recorded is not complete when asked and does not make anyone wait, as in AscendCL. Completion of
//! one recording is remembered, so that polling a finished event needs no answer from the daemon.
//!
//! An event for other processes (`ACL_EVENT_IPC`) may be recorded by any of them, so nothing of it is remembered, and a
//! recording is known to the daemon before the call returns: who is told of it by whatever way, and then waits, waits for it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use acl_abi::values as acl;
use wire::Record;

use crate::error::Failure;
use crate::handle::lock;
use crate::ipc::Key;
use crate::link::Link;
use crate::stream::{Marks, Stream, poll_until};

/// Flag of events that other processes open.
const FOR_OTHERS: u32 = acl::ACL_EVENT_IPC as u32;

/// An event.
#[derive(Clone)]
pub struct Event {
    /// Its session.
    pub link: Arc<Link>,
    /// Number in the session.
    pub id: u32,
    /// Recordings, and how many of them are known to be complete.
    marks: Arc<Marks>,
    /// The stream that was last made to wait, and how much had been posted to it then.
    waits: Arc<Mutex<Option<(Stream, u64)>>>,
    /// An external event's flag: what graphs set, clear and wait for.
    flag: Option<u32>,
    /// Other processes have it too, or may.
    shared: bool,
}

impl Event {
    /// A new event; its record is posted.
    ///
    /// # Errors
    /// Device lost.
    pub fn create(link: Arc<Link>, flags: u32) -> Result<Self, Failure> {
        let id = link.next_event()?;
        let shared = flags & FOR_OTHERS != 0;
        if shared && flags != FOR_OTHERS {
            let text = format!("parameter flag: {flags:#x}; ACL_EVENT_IPC goes with no other flag");
            return Err(Failure::invalid(text));
        }
        let external = flags & acl::ACL_EVENT_EXTERNAL as u32 != 0;
        let flag = if external { Some(link.bridge.next_flag()?) } else { None };
        link.post(&Record::EventCreate { event: id, flags })?;
        Ok(Self { link, id, marks: Arc::default(), waits: Arc::default(), flag, shared })
    }

    /// The event of another process that `key` is good for.
    ///
    /// # Errors
    /// A key that is unknown on this device; this process's own event; device lost.
    pub fn open(link: Arc<Link>, key: Key) -> Result<Self, Failure> {
        let id = link.next_event()?;
        link.call(|reply| Record::EventImport { event: id, key, reply })?;
        Ok(Self { link, id, marks: Arc::default(), waits: Arc::default(), flag: None, shared: true })
    }

    /// A key by which other processes open the event.
    ///
    /// # Errors
    /// Not created for that, or not by this process; device lost.
    pub fn export(&self) -> Result<Key, Failure> {
        self.link.call(|reply| Record::EventExport { event: self.id, reply })
    }

    /// What CANN does not do with events of several processes.
    ///
    /// # Errors
    /// It is one.
    pub fn is_private(&self, what: &str) -> Result<(), Failure> {
        match self.shared {
            false => Ok(()),
            true => {
                Err(Failure::unsupported(format!("{what} is not possible for an event created with ACL_EVENT_IPC")))
            }
        }
    }

    fn same_device(&self, stream: &Stream) -> Result<(), Failure> {
        if Arc::ptr_eq(&self.link, &stream.link) {
            return Ok(());
        }
        let text = format!(
            "the event belongs to device {}, the stream to device {}; events do not cross devices yet",
            self.link.device, stream.link.device
        );
        Err(Failure::unsupported(text))
    }

    /// Records the event in `stream`.
    ///
    /// # Errors
    /// Another device's stream; device lost.
    pub fn record(&self, stream: &Stream) -> Result<(), Failure> {
        self.same_device(stream)?;
        if self.shared {
            stream.is_free("recording an event of several processes")?;
            stream.post(&Record::EventRecord { event: self.id, stream: stream.id })?;
            return self.link.call(|reply| Record::EventQuery { event: self.id, reply }).map(|_| ());
        }
        if let Some(flag) = self.flag
            && stream.post_or_capture(&Record::FlagSet { stream: stream.id, flag })?
        {
            return Ok(());
        }
        if !stream.post_or_capture(&Record::EventRecord { event: self.id, stream: stream.id })? {
            self.marks.count();
        }
        Ok(())
    }

    /// Resets the event once `stream` has come this far.
    ///
    /// # Errors
    /// Another device's stream; device lost.
    pub fn reset(&self, stream: &Stream) -> Result<(), Failure> {
        self.is_private("resetting")?;
        self.same_device(stream)?;
        if let Some(flag) = self.flag
            && stream.post_or_capture(&Record::FlagClear { stream: stream.id, flag })?
        {
            return Ok(());
        }
        if !stream.post_or_capture(&Record::EventReset { event: self.id, stream: stream.id })? {
            // What was known of the last recording is no longer the event's state.
            self.marks.count();
        }
        Ok(())
    }

    /// Makes `stream` wait for the event. Devices do not see each other's events, so for another device's stream this
    /// process waits: what it posts to the stream from here on comes after the event.
    ///
    /// # Errors
    /// Device lost; for another device's stream, the first error of the operators before the event.
    pub fn make_wait(&self, stream: &Stream) -> Result<(), Failure> {
        if !Arc::ptr_eq(&self.link, &stream.link) {
            return self.synchronise();
        }
        if self.shared {
            stream.is_free("waiting for an event of several processes")?;
        }
        if let Some(flag) = self.flag
            && stream.capture(&Record::FlagWait { stream: stream.id, flag })?
        {
            return Ok(());
        }
        if !stream.post_or_capture(&Record::StreamWaitEvent { stream: stream.id, event: self.id })? {
            *lock(&self.waits) = Some((stream.clone(), stream.marks.posted()));
        }
        Ok(())
    }

    /// True if it was recorded and that recording is complete.
    ///
    /// # Errors
    /// Device lost.
    pub fn is_complete(&self) -> Result<bool, Failure> {
        self.link.event_is_free(self.id, "a query")?;
        if self.shared {
            let [complete, ..] = self.link.call(|reply| Record::EventQuery { event: self.id, reply })?;
            return Ok(complete != 0);
        }
        let recorded = self.marks.posted();
        if recorded == 0 {
            self.link.check_alive()?;
            return Ok(false);
        }
        if self.marks.is_settled() {
            self.link.check_alive()?;
            return Ok(true);
        }
        let [complete, ..] = self.link.call(|reply| Record::EventQuery { event: self.id, reply })?;
        if complete != 0 {
            self.marks.settle(recorded);
        }
        Ok(complete != 0)
    }

    /// False while the stream that was last made to wait for the event may still have to get there: a stream counts as
    /// there when it is known to have finished what it was given up to then, or is idle.
    ///
    /// # Errors
    /// Device lost; an error of that stream.
    pub fn wait_is_over(&self) -> Result<bool, Failure> {
        self.is_private("a query of who waits")?;
        let waiting = lock(&self.waits).clone();
        match waiting {
            None => self.link.check_alive().map(|()| true),
            Some((stream, posted)) => Ok(stream.marks.has_settled(posted) || stream.is_idle()?),
        }
    }

    /// Microseconds from the start of the device to the completion of the last recording.
    ///
    /// # Errors
    /// Not recorded or not complete; device lost.
    pub fn timestamp_us(&self) -> Result<u64, Failure> {
        self.is_private("a time")?;
        let [us, ..] = self.link.call(|reply| Record::EventTime { event: self.id, reply })?;
        Ok(us)
    }

    /// Destroys the event. Streams that wait for it go on waiting for its last recording, graphs for nothing.
    ///
    /// # Errors
    /// Device lost.
    pub fn destroy(&self) -> Result<(), Failure> {
        // A lost session has destroyed it already.
        if self.link.is_lost() {
            return Ok(());
        }
        if let Some(flag) = self.flag {
            self.link.post(&Record::FlagRelease { flag })?;
        }
        self.link.post(&Record::EventDestroy { event: self.id })
    }

    /// Waits for the last recording.
    ///
    /// # Errors
    /// Device lost; the first error of the operators before it.
    pub fn synchronise(&self) -> Result<(), Failure> {
        self.link.event_is_free(self.id, "synchronisation")?;
        let recorded = self.marks.posted();
        if !self.shared && (recorded == 0 || self.marks.is_settled()) {
            return self.link.check_alive();
        }
        self.link.call(|reply| Record::EventSync { event: self.id, reply })?;
        self.marks.settle(recorded);
        Ok(())
    }

    /// Waits at most `timeout_ms`; any negative number waits without limit.
    ///
    /// # Errors
    /// As [`Event::synchronise`], and `ACL_ERROR_RT_EVENT_SYNC_TIMEOUT`.
    pub fn synchronise_for(&self, timeout_ms: i32) -> Result<(), Failure> {
        let Ok(limit) = u64::try_from(timeout_ms) else { return self.synchronise() };
        let late = || {
            let text = format!("the event is not complete after {timeout_ms} ms");
            Failure::new(acl::ACL_ERROR_RT_EVENT_SYNC_TIMEOUT, text)
        };
        let done = || match self.shared {
            true => {
                let [_, pending, ..] = self.link.call(|reply| Record::EventQuery { event: self.id, reply })?;
                Ok(pending == 0)
            }
            false => Ok(self.marks.posted() == 0 || self.is_complete()?),
        };
        poll_until(Duration::from_millis(limit), done, late)
    }

    /// Milliseconds from this event's recording to `end`'s.
    ///
    /// # Errors
    /// Another device's event; not recorded or not complete; device lost.
    pub fn elapsed_ms(&self, end: &Self) -> Result<f32, Failure> {
        self.is_private("a time")?;
        end.is_private("a time")?;
        if !Arc::ptr_eq(&self.link, &end.link) {
            return Err(Failure::unsupported("the events belong to different devices"));
        }
        let [bits, ..] = self.link.call(|reply| Record::EventElapsed { start: self.id, end: end.id, reply })?;
        Ok(f32::from_bits(bits as u32))
    }
}

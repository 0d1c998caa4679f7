//! Decision records of the running dispatcher ([`sched::dispatch::Record`]), with the names that a reader wants.
//!
//! The dispatcher numbers sessions; who they are stands beside the record. Sessions that ended while it was made are
//! remembered, the last [`NAMES_PAST_MAX`] of them.

use sched::Nanos;
use sched::dispatch::{RecordLimits, Recording};
use serde::Serialize;
use session::Peer;

use crate::core::Core;

/// Ended sessions remembered: more than fit on the device at once, few bytes each.
pub const NAMES_PAST_MAX: usize = 1024;
/// Largest ring, bytes: what a daemon may spend on looking back.
pub const RECORD_BYTES_MAX: usize = 1 << 30;

/// Who a session is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SessionName {
    /// Number.
    pub session: u64,
    /// Process.
    pub pid: u32,
    /// What it calls itself.
    pub process: String,
}

impl SessionName {
    fn new(session: u64, peer: &Peer) -> Self {
        Self { session, pid: peer.pid, process: peer.process_name.clone() }
    }
}

/// A copy of what is recorded.
#[derive(Clone, Debug)]
pub struct Taken {
    /// Inputs and decisions.
    pub recording: Recording,
    /// Sessions of now and before.
    pub sessions: Vec<SessionName>,
    /// The time at which it was taken.
    pub at: Nanos,
}

/// A recording under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct RecordingSnapshot {
    /// Bytes held.
    pub bytes: usize,
    /// Bytes that it may hold.
    pub bytes_max: usize,
    /// How far back it may reach, nanoseconds; the largest number where only bytes bound it.
    pub span_ns: Nanos,
    /// Since when it holds everything, nanoseconds since the loop started.
    pub since_ns: Nanos,
}

impl Core {
    /// Begins to record, or begins anew.
    pub fn start_record(&mut self, limits: RecordLimits) {
        self.names_past.clear();
        self.dispatcher.start_record(limits);
    }

    /// Ends the recording and drops it.
    pub fn stop_record(&mut self) {
        let _ = self.dispatcher.take_record();
        self.names_past.clear();
    }

    /// A copy of what is recorded; `None` if nothing is.
    pub fn copy_record(&mut self) -> Option<Taken> {
        let recording = self.dispatcher.copy_record()?;
        let now = self.tenants.iter().map(|(&session, (tenant, _))| SessionName::new(session, &tenant.peer));
        Some(Taken { recording, sessions: self.names_past.iter().cloned().chain(now).collect(), at: self.time })
    }

    /// The recording under way.
    pub fn recording(&self) -> Option<RecordingSnapshot> {
        let (limits, bytes, since_ns) = self.dispatcher.recording()?;
        Some(RecordingSnapshot { bytes, bytes_max: limits.bytes_max, span_ns: limits.span, since_ns })
    }

    /// A session has ended.
    pub(crate) fn note_past(&mut self, session: u64, peer: &Peer) {
        if self.dispatcher.is_recording() {
            if self.names_past.len() >= NAMES_PAST_MAX {
                self.names_past.pop_front();
            }
            self.names_past.push_back(SessionName::new(session, peer));
        }
    }
}

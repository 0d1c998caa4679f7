//! What a recording program says about a record: names for the numbers in it.

use serde::{Deserialize, Serialize};

/// Written beside a record. What is absent is unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct About {
    /// The device, as measurements name it; says so where it is emulated.
    pub device: String,
    /// Who the sessions are.
    pub sessions: Vec<SessionName>,
}

/// Who a session is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SessionName {
    /// Number.
    pub session: u64,
    /// Process; 0 in virtual time.
    pub pid: u32,
    /// What it calls itself.
    pub process: String,
}

impl About {
    /// From a record's own text; empty if that is not ours.
    pub fn of(record: &sched::dispatch::Record) -> Self {
        serde_json::from_str(record.about()).unwrap_or_default()
    }

    /// As a record carries it.
    pub fn to_json(&self) -> String {
        // Text and numbers only: this cannot fail.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// A session in words.
    pub fn session(&self, session: u64) -> String {
        match self.sessions.iter().find(|s| s.session == session) {
            Some(SessionName { pid: 0, process, .. }) => format!("session {session} ({process})"),
            Some(SessionName { pid, process, .. }) => format!("session {session} ({process}, pid {pid})"),
            None => format!("session {session}"),
        }
    }
}

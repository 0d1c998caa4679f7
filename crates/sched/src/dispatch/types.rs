//! What goes into the dispatcher and what comes out of it.

use super::FlagKey;
use crate::{Demand, Nanos, Phase};
use acl_abi::{OpId, SIGNATURES};
use serde::{Deserialize, Serialize};

/// Identifies an operator or a waiter; minted by the caller, unique among those not yet completed.
pub type Token = u64;

/// A stream of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StreamKey {
    /// Session.
    pub session: u64,
    /// Stream, as the client minted it; 0 is the session's default stream.
    pub stream: u32,
}

/// An event of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EventKey {
    /// Session.
    pub session: u64,
    /// Event, as the client minted it.
    pub event: u32,
}

/// A session's standing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionParams {
    /// Whose it is ([`super::Dispatcher::set_tenant`]).
    pub tenant: u32,
    /// Share of the device relative to other sessions, where the policy looks at it; 0 counts as 1.
    pub weight: u32,
    /// Larger goes first, where the policy looks at it.
    pub priority: u8,
}

impl Default for SessionParams {
    fn default() -> Self {
        Self { tenant: 0, weight: 1, priority: 0 }
    }
}

/// What an operator is called. For people: decisions never look at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Label(u16);

impl Label {
    const NAMES: [&str; 7] = ["operator", "copy to device", "copy to host", "copy", "fill", "step", "collective"];
    /// A copy from host memory.
    pub const COPY_IN: Self = Self(1);
    /// A copy to host memory.
    pub const COPY_OUT: Self = Self(2);
    /// A copy within device memory.
    pub const COPY: Self = Self(3);
    /// Setting memory to a value.
    pub const FILL: Self = Self(4);
    /// A step of a model, handed over as one.
    pub const STEP: Self = Self(5);

    /// Part of a collective: bytes for other devices, or from them.
    pub const COLLECTIVE: Self = Self(6);

    /// An operator.
    pub const fn op(op: OpId) -> Self {
        Self(op.0.saturating_add(Self::NAMES.len() as u16))
    }

    /// Name: an operator's without `aclnn`.
    pub fn name(self) -> &'static str {
        let index = usize::from(self.0);
        let op = || SIGNATURES.get(index - Self::NAMES.len()).map(|s| s.name.trim_start_matches("aclnn"));
        Self::NAMES.get(index).copied().or_else(op).unwrap_or("operator")
    }

    pub(super) const fn number(self) -> u16 {
        self.0
    }

    pub(super) const fn from_number(number: u16) -> Self {
        Self(number)
    }
}

/// One entry of a stream.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Item {
    /// An operator or copy that the device executes.
    Op {
        /// Comes back in [`Action::Submit`].
        token: Token,
        /// Predicted time alone.
        solo: Nanos,
        /// Predicted need of each resource.
        demand: Demand,
        /// Phase.
        phase: Phase,
        /// What it is called.
        label: Label,
    },
    /// Completes the event when everything earlier in the stream has completed.
    RecordEvent(EventKey),
    /// Forgets the event's records: from here on in submission order it counts as never recorded.
    ResetEvent(EventKey),
    /// Later items wait for the record of this event that precedes this item in submission order, if there is one.
    WaitEvent(EventKey),
    /// Later items wait until this flag is set, now or later, or released.
    AwaitFlag(FlagKey),
    /// Sets the flag when everything earlier in the stream has completed.
    SetFlag(FlagKey),
    /// Clears the flag when everything earlier in the stream has completed.
    ClearFlag(FlagKey),
    /// [`Action::Done`] when everything earlier in the stream has completed.
    Notify {
        /// Comes back in [`Action::Done`].
        token: Token,
    },
}

/// What the caller must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Submit the operator to the device, behind what was submitted for the same stream before.
    Submit {
        /// Token of the operator.
        token: Token,
        /// Stream it was pushed to.
        stream: StreamKey,
    },
    /// What this token waits for has happened.
    Done {
        /// Token of the waiter.
        token: Token,
    },
}

/// State of an event as the host sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct EventStatus {
    /// A record was pushed since creation or the last reset.
    pub recorded: bool,
    /// The last record has completed. False where none was pushed.
    pub complete: bool,
    /// When it completed.
    pub time: Option<Nanos>,
}

impl EventStatus {
    /// The last record has not completed.
    pub fn is_pending(&self) -> bool {
        self.recorded && !self.complete
    }
}

/// In-flight window of a stream: how many of its operators the device may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Window {
    /// `clamp(⌈handoff/mean operator⌉ + 1, 1, max)`: enough to hide the hand-over.
    Adaptive {
        /// From a completion on the device until the next submission reaches it, nanoseconds.
        handoff: Nanos,
        /// Upper bound.
        max: u32,
    },
    /// Always this many: for devices whose operator times are unknown (functional ones).
    Fixed(u32),
}

/// Bounds of a dispatcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// In-flight window of a stream.
    pub window: Window,
    /// Sessions open at once.
    pub sessions_max: usize,
    /// Streams of a session.
    pub streams_per_session_max: usize,
    /// Items queued by a session over all its streams.
    pub items_per_session_max: usize,
    /// Events of a session that have been recorded and not destroyed.
    pub events_per_session_max: usize,
    /// Flags of a session that were mentioned and not released.
    pub flags_per_session_max: usize,
    /// Requests of a session that hints keep alive; the oldest is forgotten beyond.
    pub requests_per_session_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            window: Window::Adaptive { handoff: 0, max: 16 },
            sessions_max: 1024,
            streams_per_session_max: 1024,
            items_per_session_max: 1 << 16,
            events_per_session_max: 1 << 16,
            flags_per_session_max: 1 << 14,
            requests_per_session_max: 4096,
        }
    }
}

/// Why the dispatcher refused. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The session is not open.
    #[error("session {0} is not open")]
    NoSession(u64),
    /// The session is open already.
    #[error("session {0} is open already")]
    SessionExists(u64),
    /// The stream is not open, or was destroyed.
    #[error("stream {} of session {} is not open", .0.stream, .0.session)]
    NoStream(StreamKey),
    /// [`Limits::sessions_max`] reached.
    #[error("{0} sessions are open, no more are allowed")]
    TooManySessions(usize),
    /// [`Limits::streams_per_session_max`] reached.
    #[error("the session has {0} streams, no more are allowed")]
    TooManyStreams(usize),
    /// [`Limits::items_per_session_max`] reached: let the device work off some first.
    #[error("the session has {0} items queued, no more are allowed")]
    TooManyItems(usize),
    /// [`Limits::events_per_session_max`] reached.
    #[error("the session has {0} recorded events, no more are allowed")]
    TooManyEvents(usize),
    /// [`Limits::flags_per_session_max`] reached.
    #[error("the session has {0} callbacks or external events pending, no more are allowed")]
    TooManyFlags(usize),
}

/// What the gateway said about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HintInput {
    /// Request, unique within the session.
    pub request: u64,
    /// What happened.
    pub kind: HintKind,
}

/// Steps of a request's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HintKind {
    /// Accepted; its prompt is about to be processed.
    Admitted {
        /// Prompt length.
        prompt_tokens: u32,
        /// Most tokens it may produce.
        max_tokens: u32,
        /// First token is wanted within this time from now; 0 = the policy's target.
        ttft: Nanos,
        /// Time between tokens that is wanted; 0 = the policy's target.
        tpot: Nanos,
        /// Larger goes first.
        priority: u8,
    },
    /// Its prompt is being processed.
    PrefillStarted,
    /// The first token is out.
    FirstToken,
    /// More tokens are out.
    Progress {
        /// Tokens so far.
        tokens: u32,
    },
    /// Complete.
    Finished,
    /// Given up.
    Aborted,
}

//! Which ready operator goes next: one trait, several policies.
//!
//! The dispatcher owns queues, events and windows and asks one question: of the streams whose next operator could be
//! submitted now ([`Board::ready`]), which one goes? A policy answers with a stream or with nothing, and for nothing it
//! owes a [`Hold`] for every stream it leaves waiting: a reason, and the time at which it wants to be asked again. The
//! callbacks let it keep books; they carry everything that happens, in order, so that a policy needs no other state.
//!
//! **Invariant:** a policy decides order and time, never correctness: streams stay in order, waits are obeyed and every
//! session's death is cleaned up whatever a policy answers.

mod budget;
mod clock;
mod config;
mod core_split;
mod fifo;
mod growth;
mod lane;
pub(crate) mod learn;
mod leases;
mod passthrough;
mod phase;
mod priority;
mod quota;
mod static_ratio;

pub use config::{ConfigError, First, PolicyConfig, PolicyName};

use crate::dispatch::{HintInput, HoldReason, Op, Stats, Stream};
use crate::{Nanos, Phase};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// A stream as policies name it: small, reused after [`Policy::closed`].
pub type StreamIndex = usize;

/// What a policy knows of a stream from the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamInfo {
    /// Session.
    pub session: u64,
    /// The session's weight, at least 1.
    pub weight: u32,
    /// The session's priority; larger goes first.
    pub priority: u8,
    /// The stream's priority within the session, as AscendCL counts: 0 goes first. It may change later
    /// ([`Candidate::stream_priority`]).
    pub stream_priority: u32,
}

/// A stream whose next operator could be submitted now.
#[derive(Clone, Copy)]
pub struct Candidate<'a> {
    /// The stream.
    pub stream: StreamIndex,
    pub(crate) state: &'a Stream,
    /// Its next operator.
    pub op: &'a Op,
}

impl Candidate<'_> {
    /// Session that the stream belongs to.
    pub fn session(&self) -> u64 {
        self.state.key.session
    }

    /// The session's priority; larger goes first.
    pub fn session_priority(&self) -> u8 {
        self.state.session_priority
    }

    /// The stream's priority within its session; 0 goes first.
    pub fn stream_priority(&self) -> u32 {
        self.state.priority
    }

    /// Operators of this stream that the device holds.
    pub fn in_flight(&self) -> u32 {
        self.state.in_flight
    }

    /// Since when the operator could have been submitted.
    pub fn ready_since(&self) -> Nanos {
        self.state.ready_since
    }
}

/// Everything that is ready, and how busy the device is.
pub struct Board<'a> {
    pub(crate) ready: &'a [StreamIndex],
    pub(crate) streams: &'a [Option<Stream>],
    /// Operators that the device holds.
    pub in_flight: usize,
}

impl<'a> Board<'a> {
    /// Candidates, in no particular order (but the same one for the same history).
    pub fn ready(&self) -> impl Iterator<Item = Candidate<'a>> {
        let streams = self.streams;
        self.ready.iter().filter_map(move |&stream| {
            let state = streams[stream].as_ref()?;
            Some(Candidate { stream, state, op: state.next_op()? })
        })
    }

    /// The candidate that has been ready for longest, once that is as long as anything may be held back.
    fn expired(&self, now: Nanos, age_max: Nanos) -> Option<Choice> {
        let oldest = self.ready().min_by_key(|c| (c.ready_since(), c.op.seq))?;
        let expired = now >= oldest.ready_since().saturating_add(age_max);
        expired.then_some(Choice { stream: oldest.stream, expired: true })
    }
}

/// The stream that goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Stream.
    pub stream: StreamIndex,
    /// It goes only because it has waited for too long.
    pub expired: bool,
}

/// Why a stream waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// Reason.
    pub reason: HoldReason,
    /// When to ask again at the latest; `None` where only another operator's completion can change the answer.
    pub until: Option<Nanos>,
}

impl Hold {
    /// A hold-back that ends by the age bound if not before.
    fn aged(reason: HoldReason, until: Option<Nanos>, candidate: &Candidate<'_>, age_max: Nanos) -> Self {
        let aged = candidate.ready_since().saturating_add(age_max);
        Self { reason, until: Some(until.map_or(aged, |u| u.min(aged))) }
    }
}

/// State as bytes: a decision record begins with it ([`crate::dispatch::Record`]). Every policy derives it.
pub trait Saved {
    /// Appends everything that later decisions depend on.
    fn save(&self) -> Vec<u8>;
}

impl<T: Serialize> Saved for T {
    fn save(&self) -> Vec<u8> {
        // Fails for collections of unknown length only, of which there are none.
        postcard::to_allocvec(self).unwrap_or_default()
    }
}

/// A dispatch policy.
pub trait Policy: Saved + Send {
    /// Which of the ready streams submits next; `None` leaves all of them waiting. Asked again after each submission.
    fn choose(&mut self, now: Nanos, board: &Board<'_>, stats: &mut Stats) -> Option<Choice>;

    /// Why a candidate waits, right after [`Policy::choose`] answered `None`.
    fn hold(&self, now: Nanos, candidate: &Candidate<'_>) -> Hold;

    /// In-flight window of a stream whose next operators have this phase and mean time, given the configured one.
    fn window(&self, _phase: Phase, _mean_solo: f64, configured: u32) -> u32 {
        configured
    }

    /// The policy measures predictions itself ([`learn::Learner`]); for others the dispatcher does.
    fn measures(&self) -> bool {
        false
    }

    /// A stream appeared.
    fn opened(&mut self, _stream: StreamIndex, _info: &StreamInfo) {}
    /// A stream is gone; its index may come back.
    fn closed(&mut self, _stream: StreamIndex) {}
    /// A session is gone, after its queued operators were dropped.
    fn session_closed(&mut self, _session: u64) {}
    /// An operator was queued.
    fn pushed(&mut self, _now: Nanos, _stream: StreamIndex, _op: &Op) {}
    /// A queued operator will never run.
    fn dropped(&mut self, _now: Nanos, _stream: StreamIndex, _op: &Op) {}
    /// An operator went to the device.
    fn submitted(&mut self, _now: Nanos, _stream: StreamIndex, _op: &Op) {}
    /// An operator completed.
    fn completed(&mut self, _now: Nanos, _stream: StreamIndex, _op: &Op, _stats: &mut Stats) {}
    /// The stream completed everything before a point at which others can look: a record or a waiter.
    fn boundary(&mut self, _now: Nanos, _stream: StreamIndex, _stats: &mut Stats) {}
    /// The gateway said something.
    fn hint(&mut self, _now: Nanos, _session: u64, _hint: &HintInput, _stats: &mut Stats) {}
}

/// The policy that a configuration asks for, in the state that [`Saved::save`] gave.
pub(crate) fn restore(config: &PolicyConfig, bytes: &[u8]) -> postcard::Result<Box<dyn Policy>> {
    fn read<P: Policy + DeserializeOwned + 'static>(bytes: &[u8]) -> postcard::Result<Box<dyn Policy>> {
        Ok(Box::new(postcard::from_bytes::<P>(bytes)?))
    }
    match config.name {
        PolicyName::Passthrough => read::<passthrough::Passthrough>(bytes),
        PolicyName::Fifo => read::<fifo::Fifo>(bytes),
        PolicyName::Quota => read::<quota::Quota>(bytes),
        PolicyName::Priority => read::<priority::Priority>(bytes),
        PolicyName::StaticRatio => read::<static_ratio::StaticRatio>(bytes),
        PolicyName::CoreSplit => read::<core_split::CoreSplit>(bytes),
        PolicyName::Phase => read::<phase::PhasePolicy>(bytes),
    }
}

/// The policy that a configuration asks for.
pub(crate) fn build(config: &PolicyConfig, requests_per_session_max: usize) -> Box<dyn Policy> {
    match config.name {
        PolicyName::Passthrough => Box::new(passthrough::Passthrough),
        PolicyName::Fifo => Box::new(fifo::Fifo),
        PolicyName::Quota => Box::new(quota::Quota::new(config)),
        PolicyName::Priority => Box::new(priority::Priority::new(config)),
        PolicyName::StaticRatio => Box::new(static_ratio::StaticRatio::new(config)),
        PolicyName::CoreSplit => Box::new(core_split::CoreSplit::default()),
        PolicyName::Phase => Box::new(phase::PhasePolicy::new(config, requests_per_session_max)),
    }
}

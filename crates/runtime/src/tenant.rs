//! What one session owns: memory, streams, events, and the errors it has not been told yet.
//!
//! **Invariant:** ids are the client's, so every look-up may fail and never reaches another session.

use std::collections::BTreeMap;

use sched::phase::{Requests, Sequence};
use sched::{Classifier, Nanos, Token};
use session::Peer;

use crate::fault::Fault;
use crate::graph::Graph;
use crate::host_calls::HostCalls;
use crate::latency::Served;
use crate::memory::AddressSpace;
use crate::replay::Replay;

/// A stream.
#[derive(Debug, Default)]
pub struct Stream {
    /// The device's number for it.
    pub physical: u32,
    /// Phase of what it runs.
    pub classifier: Classifier,
    /// Requests that its open step was matched with.
    pub whose: Vec<u64>,
    /// Prompts of its open step that no request was known for.
    pub unclaimed: Vec<Sequence>,
    /// First error since the last report, with its place in the session's order.
    pub fault: Option<(u64, Fault)>,
    /// Something was pushed after the last mark.
    pub dirty: bool,
    /// The mark that a query waits for; `None` once it was passed.
    pub mark: Option<Token>,
    /// A graph's own stream: errors are told on the stream that the graph was last launched on.
    pub report_to: Option<u32>,
    /// When its last command was complete.
    pub last_done: Nanos,
}

/// An event.
#[derive(Clone, Copy, Debug, Default)]
pub struct Event {
    /// Stream it was last recorded in.
    pub stream: Option<u32>,
    /// Its number among those that processes share.
    pub shared: Option<u32>,
}

/// Operators of one phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PhaseCount {
    /// Completed operators and copies.
    pub completed: u64,
    /// Their predicted time alone, summed.
    pub predicted_ns: u64,
    /// Their time on the device, summed: from submission, or from the end of the predecessor on the stream.
    pub measured_ns: u64,
}

impl PhaseCount {
    /// Counts one completion.
    pub fn add(&mut self, predicted: Nanos, measured: Nanos) {
        self.completed += 1;
        self.predicted_ns = self.predicted_ns.saturating_add(predicted);
        self.measured_ns = self.measured_ns.saturating_add(measured);
    }
}

/// One session.
#[derive(Debug)]
pub struct Tenant {
    /// The client.
    pub peer: Peer,
    /// Whose it is: a number of [`crate::tenants`].
    pub account: u32,
    /// Memory it held when that was last booked, and when.
    pub metered: (u64, Nanos),
    /// Memory.
    pub space: AddressSpace,
    /// Streams by the client's id; 0 is the default stream.
    pub streams: BTreeMap<u32, Stream>,
    /// Events by the client's id.
    pub events: BTreeMap<u32, Event>,
    /// Graphs by the client's id.
    pub graphs: BTreeMap<u32, Graph>,
    /// Nodes and bytes of all of them.
    pub graph_nodes: usize,
    /// See there.
    pub graph_bytes: usize,
    /// The launch that is being queued.
    pub replay: Option<Replay>,
    /// Number of the next stream of a graph's own, counting down from where no client gets to.
    pub next_lane: u32,
    /// What hints said of its requests.
    pub requests: Requests,
    /// Calls of streams to the host.
    pub host_calls: HostCalls,
    /// Number of the next flag that a wait for a value stands at, counting down from where no client gets to.
    pub next_value_flag: u32,
    /// What was written to single words of memory, on a device that has none.
    pub words: BTreeMap<u64, u64>,
    /// Physical stream of synchronous copies.
    pub internal_physical: u32,
    /// First error of work that has no stream (any more).
    pub orphan: Option<(u64, Fault)>,
    /// Number of the next error.
    pub next_fault: u64,
    /// Items queued, running or waited for.
    pub items: usize,
    /// Synchronous copies that the device holds: they are in no stream.
    pub unordered: usize,
    /// Items that the device holds.
    pub in_flight: usize,
    /// Errors so far, reported or not.
    pub faults: u64,
    /// Completed work by [`sched::Phase::index`].
    pub phases: [PhaseCount; 4],
    /// What hints told of its requests.
    pub served: Served,
}

impl Tenant {
    /// A session without anything but its default stream.
    pub fn new(peer: Peer, account: u32, default_physical: u32, internal_physical: u32) -> Self {
        let default = Stream { physical: default_physical, ..Stream::default() };
        Self {
            space: AddressSpace::new(peer.va_base, peer.va_len),
            peer,
            account,
            metered: (0, 0),
            streams: BTreeMap::from([(0, default)]),
            events: BTreeMap::new(),
            graphs: BTreeMap::new(),
            graph_nodes: 0,
            graph_bytes: 0,
            replay: None,
            next_lane: u32::MAX,
            requests: Requests::default(),
            host_calls: HostCalls::default(),
            next_value_flag: u32::MAX,
            words: BTreeMap::new(),
            internal_physical,
            orphan: None,
            next_fault: 0,
            items: 0,
            unordered: 0,
            in_flight: 0,
            faults: 0,
            phases: [PhaseCount::default(); 4],
            served: Served::default(),
        }
    }

    /// Notes an error of work without a reply. A stream keeps its first one until it is reported.
    pub fn defer(&mut self, stream: Option<u32>, fault: Fault) {
        self.faults += 1;
        let number = self.next_fault;
        self.next_fault += 1;
        let stream = stream.map(|s| self.streams.get(&s).and_then(|lane| lane.report_to).unwrap_or(s));
        let place = match stream.and_then(|s| self.streams.get_mut(&s)) {
            Some(stream) => &mut stream.fault,
            None => &mut self.orphan,
        };
        place.get_or_insert((number, fault));
    }

    /// Takes the error of one stream.
    pub fn take_stream_fault(&mut self, stream: u32) -> Option<Fault> {
        self.streams.get_mut(&stream)?.fault.take().map(|(_, fault)| fault)
    }

    /// Takes the oldest error of the session; the others stay for the next call.
    pub fn take_oldest_fault(&mut self) -> Option<Fault> {
        let faults = self.streams.values_mut().map(|s| &mut s.fault).chain([&mut self.orphan]);
        let oldest = faults.filter(|f| f.is_some()).min_by_key(|f| f.as_ref().map(|(n, _)| *n))?;
        oldest.take().map(|(_, fault)| fault)
    }

    /// Forgets a stream; an error that nobody was told stays with the session.
    pub fn remove_stream(&mut self, stream: u32) -> bool {
        let Some(gone) = self.streams.remove(&stream) else { return false };
        if let Some(fault) = gone.fault {
            self.orphan.get_or_insert(fault);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant() -> Tenant {
        let peer = Peer { pid: 1, uid: 0, process_name: "test".into(), va_base: 1 << 40, va_len: 1 << 30 };
        let mut tenant = Tenant::new(peer, 0, 1, 2);
        tenant.streams.insert(5, Stream::default());
        tenant
    }

    #[test]
    fn a_stream_reports_its_first_error_once() {
        let mut tenant = tenant();
        tenant.defer(Some(5), Fault::param("first"));
        tenant.defer(Some(5), Fault::param("second"));
        assert_eq!(tenant.take_stream_fault(0), None, "another stream");
        assert_eq!(tenant.take_stream_fault(5).unwrap().text, "first");
        assert_eq!(tenant.take_stream_fault(5), None);
        assert_eq!(tenant.faults, 2);
    }

    #[test]
    fn the_session_reports_its_oldest_error_first() {
        let mut tenant = tenant();
        tenant.defer(Some(5), Fault::param("a"));
        tenant.defer(Some(0), Fault::param("b"));
        tenant.defer(None, Fault::param("c"));
        let order: Vec<String> = std::iter::from_fn(|| tenant.take_oldest_fault()).map(|f| f.text).collect();
        assert_eq!(order, ["a", "b", "c"]);
    }

    #[test]
    fn an_error_outlives_its_stream() {
        let mut tenant = tenant();
        tenant.defer(Some(5), Fault::param("late"));
        assert!(tenant.remove_stream(5));
        assert!(!tenant.remove_stream(5));
        assert_eq!(tenant.take_oldest_fault().unwrap().text, "late");
    }
}

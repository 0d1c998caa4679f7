//! Captured graphs: what a session recorded once and launches many times.
//!
//! A graph is a list of nodes in the order of capture, each on a *lane*: the stream that it was captured on. The lane of
//! the capture's first stream is wherever the graph is launched; every other lane is a stream of the graph's own. Lanes are
//! joined by events that exist only inside the graph. A launch ([`crate::replay`]) therefore needs no other rules than those of streams
//! and events.
//!
//! Addresses in nodes are the client's: they are translated when a node is queued, and checked for the whole graph
//! before its first node is, whenever the session's memory has changed since the last check.

use std::sync::Arc;

use acl_abi::OpCall;
use parking_lot::Mutex;
use wire::{ArenaRange, Exchange, HostSource, Record, ValueCondition};

use crate::steps::StepKey;

/// Graphs of one session. vLLM captures one for every piece of a model and every batch size: a few thousand.
pub const GRAPHS_MAX: usize = 8192;
/// Nodes of all graphs of one session.
pub const NODES_MAX: usize = 4 << 20;
/// Bytes of all graphs of one session.
pub const BYTES_MAX: usize = 512 << 20;
/// Lanes of one graph.
pub const LANES_MAX: usize = 64;

/// An operator of a group.
#[derive(Debug)]
pub struct Grouped {
    /// Its arguments, which an update may replace.
    pub call: OpCall,
    /// The step of a launch that it is the first attention of, until what it works on is known: at the first update behind the launch,
    /// or when it starts.
    pub step: Option<StepKey>,
}

/// An operator of a group; kept alive by launches that have not got there.
pub type Replaceable = Arc<Mutex<Grouped>>;

/// A copy from the host, owned.
#[derive(Clone, Debug)]
pub enum Source {
    /// Bytes as they were when captured.
    Bytes(Vec<u8>),
    /// Pinned memory, read when the copy executes.
    Pinned(ArenaRange),
}

/// What a node does.
#[derive(Clone, Debug)]
pub enum Kind {
    /// An operator.
    Op(Box<OpCall>),
    /// An operator of a group: executed with the arguments that it has when its stream gets there.
    Grouped(Replaceable),
    /// Host to device.
    In { dst: u64, source: Source },
    /// Device to host.
    Out { dst: ArenaRange, src: u64 },
    /// Within the device.
    Device { dst: u64, src: u64, len: u64 },
    /// Bytes set.
    Fill { addr: u64, len: u64, value: u8 },
    /// A word of memory is written.
    Word { addr: u64, value: u64 },
    /// The lane waits until a word of memory is as asked for.
    Await { addr: u64, value: u64, until: ValueCondition },
    /// Part of a collective, in a communicator.
    Exchange(u32, Arc<Exchange>),
    /// An event of the graph is recorded.
    Record(u32),
    /// The lane waits for an event of the graph.
    Wait(u32),
    /// An external event is set.
    FlagSet(u32),
    /// An external event is cleared.
    FlagClear(u32),
    /// The lane waits for an external event.
    FlagWait(u32),
}

/// One node.
#[derive(Clone, Debug)]
pub struct Node {
    /// Index of its lane.
    pub lane: usize,
    /// What it does.
    pub kind: Kind,
}

/// A graph.
#[derive(Debug)]
pub struct Graph {
    /// Nodes in the order of capture.
    pub nodes: Vec<Node>,
    /// Stream of each lane as the client captured it; the first is the origin.
    pub captured: Vec<u32>,
    /// The graph's own streams, for lanes 1 and up; empty until the graph is complete.
    pub lanes: Vec<u32>,
    /// Groups: index of each operator's node.
    pub groups: Vec<(u32, Vec<usize>)>,
    /// Approximate size.
    pub bytes: usize,
    /// Version of the session's memory that every address was last checked against.
    pub checked: Option<u64>,
    /// It can be launched.
    pub complete: bool,
    /// What was wrong with a node.
    pub refused: Option<String>,
}

impl Graph {
    /// An empty graph whose first lane is captured on `origin`.
    pub fn new(origin: u32) -> Self {
        Self {
            nodes: Vec::new(),
            captured: vec![origin],
            lanes: Vec::new(),
            groups: Vec::new(),
            bytes: 0,
            checked: None,
            complete: false,
            refused: None,
        }
    }

    /// Appends the node that `record` is; `call` goes with an operator. The bytes that it takes.
    ///
    /// # Errors
    /// A record that is no node.
    pub fn append(&mut self, record: &Record<'_>, call: &OpCall, group: u32) -> Result<usize, String> {
        let (stream, kind) = kind_of(record, call, group != 0)?;
        let lane = match self.captured.iter().position(|&s| s == stream) {
            Some(lane) => lane,
            None if self.captured.len() < LANES_MAX => {
                self.captured.push(stream);
                self.captured.len() - 1
            }
            None => return Err(format!("a graph of more than {LANES_MAX} streams")),
        };
        let bytes = size_of::<Node>() + kind.bytes();
        if matches!(kind, Kind::Grouped(_)) {
            let node = self.nodes.len();
            match self.groups.iter_mut().find(|(id, _)| *id == group) {
                Some((_, nodes)) => nodes.push(node),
                None => self.groups.push((group, vec![node])),
            }
        }
        self.nodes.push(Node { lane, kind });
        self.bytes += bytes;
        Ok(bytes)
    }

    /// Replaces the arguments of the `index`-th operator of a group; the step that hangs on them.
    ///
    /// # Errors
    /// No such operator, or another operator than was captured.
    pub fn update(&mut self, group: u32, index: u32, call: &OpCall) -> Result<Option<StepKey>, String> {
        let nodes = self.groups.iter().find(|(id, _)| *id == group).map(|(_, nodes)| nodes);
        let node = nodes.and_then(|nodes| nodes.get(index as usize)).copied();
        let node = node.ok_or_else(|| format!("task group {group} has no operator number {index}"))?;
        let Kind::Grouped(held) = &self.nodes[node].kind else { return Err("not an operator".to_owned()) };
        let mut held = held.lock();
        if held.call.op != call.op {
            let (is, wanted) = (held.call.op.name(), call.op.name());
            return Err(format!("operator {index} of the task group is {is}, not {wanted}"));
        }
        held.call.copy_from(call);
        Ok(held.step.take())
    }
}

impl Kind {
    fn bytes(&self) -> usize {
        let of_call = |call: &OpCall| {
            size_of::<OpCall>()
                + size_of_val(&call.args[..])
                + size_of_val(&call.tensors[..])
                + size_of_val(&call.scalars[..])
                + size_of_val(&call.ints[..])
                + size_of_val(&call.floats[..])
                + call.text.len()
        };
        match self {
            Self::Op(call) => of_call(call),
            Self::Grouped(call) => of_call(&call.lock().call),
            Self::In { source: Source::Bytes(bytes), .. } => bytes.len(),
            Self::Exchange(_, e) => size_of::<Exchange>() + size_of_val(&e.sends[..]) + size_of_val(&e.receives[..]),
            _ => 0,
        }
    }
}

fn kind_of(record: &Record<'_>, call: &OpCall, grouped: bool) -> Result<(u32, Kind), String> {
    let owned = || {
        let mut own = OpCall::new(call.op);
        own.copy_from(call);
        own
    };
    Ok(match *record {
        Record::Op { stream } if grouped => {
            (stream, Kind::Grouped(Arc::new(Mutex::new(Grouped { call: owned(), step: None }))))
        }
        Record::Op { stream } => (stream, Kind::Op(Box::new(owned()))),
        Record::CopyIn { dst, source, stream: Some(stream), reply: None } => {
            let source = match source {
                HostSource::Inline(bytes) => Source::Bytes(bytes.to_vec()),
                HostSource::Pinned(range) => Source::Pinned(range),
                HostSource::Staging { .. } => return Err("a copy from pageable memory".to_owned()),
            };
            (stream, Kind::In { dst, source })
        }
        Record::CopyOut { dst, src, stream: Some(stream), reply: None } => (stream, Kind::Out { dst, src }),
        Record::CopyDevice { dst, src, len, stream: Some(stream), reply: None } => {
            (stream, Kind::Device { dst, src, len })
        }
        Record::Memset { addr, len, value, stream: Some(stream), reply: None } => {
            (stream, Kind::Fill { addr, len, value })
        }
        Record::ValueWrite { stream, addr, value } => (stream, Kind::Word { addr, value }),
        Record::ValueWait { stream, addr, value, until } => (stream, Kind::Await { addr, value, until }),
        Record::Exchange { stream, comm, body } => {
            let exchange = Exchange::decode(body).map_err(|e| format!("a collective: {e}"))?;
            (stream, Kind::Exchange(comm, Arc::new(exchange)))
        }
        Record::EventRecord { event, stream } => (stream, Kind::Record(event)),
        Record::StreamWaitEvent { stream, event } => (stream, Kind::Wait(event)),
        Record::FlagSet { stream, flag } => (stream, Kind::FlagSet(flag)),
        Record::FlagClear { stream, flag } => (stream, Kind::FlagClear(flag)),
        Record::FlagWait { stream, flag } => (stream, Kind::FlagWait(flag)),
        _ => return Err("a call that graphs do not hold".to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use acl_abi::ops;

    #[test]
    fn lanes_groups_and_refusals() {
        let mut graph = Graph::new(7);
        let call = OpCall::new(ops::aclnnAbs);
        graph.append(&Record::Op { stream: 7 }, &call, 0).unwrap();
        graph.append(&Record::Op { stream: 9 }, &call, 3).unwrap();
        graph.append(&Record::Op { stream: 9 }, &call, 3).unwrap();
        assert_eq!(graph.captured, [7, 9]);
        assert_eq!(graph.groups, [(3, vec![1, 2])]);
        assert_eq!(graph.update(3, 1, &call), Ok(None));
        assert!(graph.update(3, 2, &call).unwrap_err().contains("no operator number 2"));
        assert!(graph.update(4, 0, &call).is_err());
        assert!(graph.update(3, 0, &OpCall::new(ops::aclnnAdd)).unwrap_err().contains("is aclnnAbs, not aclnnAdd"));
        for record in [
            Record::StreamDestroy { stream: 7 },
            Record::Memset { addr: 0, len: 1, value: 0, stream: None, reply: None },
            Record::CopyIn { dst: 0, source: HostSource::Staging { block: 0, len: 1 }, stream: Some(7), reply: None },
            Record::GraphLaunch { graph: 1, stream: 7 },
        ] {
            assert!(graph.append(&record, &call, 0).is_err(), "{record:?}");
        }
        for stream in 100..100 + LANES_MAX as u32 - 2 {
            graph.append(&Record::EventRecord { event: 1, stream }, &call, 0).unwrap();
        }
        assert!(graph.append(&Record::EventRecord { event: 1, stream: 999 }, &call, 0).is_err());
    }
}

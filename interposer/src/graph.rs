//! Captured graphs as the client sees them: a handle, and a list of what was captured for those who want to see it.
//!
//! While a stream is captured, its records are sent to the daemon wrapped as nodes of the graph ([`crate::capture`] decides).
//! The daemon holds the graph; launching it is one record.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use acl_abi::{OpCall, OpId, values as acl};
use wire::{HostSource, Record};

use crate::capture::{Captures, Group, Mode, Target};
use crate::error::Failure;
use crate::handle::lock;
use crate::host_calls::this_thread;
use crate::link::Link;
use crate::stream::Stream;

thread_local! {
    /// What this thread may do while others capture.
    static MODE: Cell<Mode> = const { Cell::new(Mode::Global) };
}

/// Exchanges this thread's mode; the one before.
pub fn exchange_mode(mode: Mode) -> Mode {
    MODE.replace(mode)
}

/// A captured graph, or one that is being captured.
#[derive(Clone)]
pub struct Graph {
    /// Its session.
    pub link: Arc<Link>,
    /// Number in the session.
    pub id: u32,
}

/// A task group of a graph.
#[derive(Clone)]
pub struct TaskGroup {
    /// Its session.
    pub link: Arc<Link>,
    /// Which.
    pub group: Group,
}

/// What a session knows of graphs.
#[derive(Default)]
pub struct Graphs {
    captures: Captures,
    /// Streams whose operators replace those of a task group: the group, and the number of the next.
    updates: BTreeMap<u32, (Group, u32)>,
    /// Nodes of each graph: stream, and what it is.
    nodes: BTreeMap<u32, Vec<(u32, Node)>>,
    /// Handles of the graphs that are being captured.
    handles: BTreeMap<u32, usize>,
}

/// What a node is, for listings.
#[derive(Clone, Copy, Debug)]
enum Node {
    Op(OpId),
    Other(&'static str),
}

impl Node {
    fn name(self) -> &'static str {
        match self {
            Self::Op(op) => op.name(),
            Self::Other(name) => name,
        }
    }
}

/// What happens to a record of a stream.
enum Way {
    /// It is posted.
    Post,
    /// It was taken.
    Taken,
}

impl Graphs {
    fn is_active(&self) -> bool {
        !self.captures.is_empty() || !self.updates.is_empty()
    }

    /// Appends a node to a graph.
    fn append(&mut self, link: &Link, target: Target, stream: u32, what: Node, node: &[u8]) -> Result<(), Failure> {
        let Target { graph, group } = target;
        link.post(&Record::GraphNode { graph, group, node })?;
        self.nodes.entry(graph).or_default().push((stream, what));
        Ok(())
    }

    fn take(&mut self, stream: &Stream, record: &Record<'_>) -> Result<Way, Failure> {
        let id = stream.id;
        let (target, name) = match *record {
            Record::EventRecord { event, .. } => (self.captures.record(id, event)?, "EventRecord"),
            Record::StreamWaitEvent { event, .. } => (self.captures.wait(id, event)?, "EventWait"),
            Record::EventReset { .. } => {
                // An event of a graph is recorded anew by every launch.
                return Ok(if self.captures.status(id).is_some() { Way::Taken } else { Way::Post });
            }
            Record::FlagSet { .. } => (self.captures.node(id, false)?, "ExternalEventRecord"),
            Record::FlagClear { .. } => (self.captures.node(id, false)?, "ExternalEventReset"),
            Record::FlagWait { .. } => (self.captures.node(id, false)?, "ExternalEventWait"),
            Record::CopyIn { source: HostSource::Pinned(_), reply: None, .. } => {
                (self.captures.node(id, false)?, "MemcpyHostToDevice")
            }
            Record::ValueWrite { .. } => (self.captures.node(id, false)?, "ValueWrite"),
            Record::ValueWait { .. } => (self.captures.node(id, false)?, "ValueWait"),
            Record::CopyOut { reply: None, .. } => (self.captures.node(id, false)?, "MemcpyDeviceToHost"),
            Record::CopyDevice { reply: None, .. } => (self.captures.node(id, false)?, "MemcpyDeviceToDevice"),
            Record::Exchange { .. } => (self.captures.node(id, false)?, "Collective"),
            Record::Memset { reply: None, .. } => (self.captures.node(id, false)?, "Memset"),
            Record::CopyIn { .. } => return self.refuse(id, "a copy from pageable memory"),
            Record::HostCall { .. } => return self.refuse(id, "a callback"),
            Record::GraphLaunch { .. } => return self.refuse(id, "the launch of a graph"),
            Record::StreamDestroy { .. } => return self.refuse(id, "its destruction"),
            _ => return self.refuse(id, "this call"),
        };
        let Some(target) = target else { return Ok(Way::Post) };
        let mut node = Vec::new();
        wire::encode(record, None, &mut node).map_err(|e| Failure::invalid(e.to_string()))?;
        self.append(&stream.link, target, id, Node::Other(name), &node)?;
        Ok(Way::Taken)
    }

    fn refuse(&mut self, stream: u32, what: &str) -> Result<Way, Failure> {
        self.captures.forbid(stream, what).map(|()| Way::Post)
    }

    fn take_op(&mut self, stream: &Stream, body: &[u8]) -> Result<Way, Failure> {
        let mut node = Vec::new();
        let encoded = wire::encode_op_record(stream.id, body, &mut node);
        encoded.map_err(|e| Failure::invalid(e.to_string()))?;
        if let Some((group, next)) = self.updates.get_mut(&stream.id) {
            if *next >= group.ops {
                let text = format!("the task group has {} operators, this would be one more", group.ops);
                return Err(Failure::new(acl::ACL_ERROR_RT_MODEL_UPDATE_FAILED, text));
            }
            let Group { graph, number, .. } = *group;
            let index = *next;
            *next += 1;
            stream.link.post(&Record::GraphUpdate { graph, group: number, index, node: &node })?;
            return Ok(Way::Taken);
        }
        let Some(target) = self.captures.node(stream.id, true)? else { return Ok(Way::Post) };
        let mut call = OpCall::new(OpId(0));
        let what = match wire::op::decode_op(body, &mut call) {
            Ok(()) => Node::Op(call.op),
            Err(_) => Node::Other("operator"),
        };
        self.append(&stream.link, target, stream.id, what, &node)?;
        Ok(Way::Taken)
    }
}

impl Link {
    /// Works on what is known of graphs, and notes whether anything is captured afterwards.
    fn graphs<R>(&self, f: impl FnOnce(&mut Graphs) -> R) -> R {
        let mut graphs = lock(&self.graphs);
        let result = f(&mut graphs);
        self.capturing.store(graphs.is_active(), Ordering::Release);
        result
    }

    fn is_capturing(&self) -> bool {
        self.capturing.load(Ordering::Acquire)
    }

    /// Something that waits for the device, or changes memory at once.
    ///
    /// # Errors
    /// A capture forbids it.
    pub fn unsafe_while_capturing(&self, what: &str) -> Result<(), Failure> {
        if !self.is_capturing() {
            return Ok(());
        }
        self.graphs(|graphs| graphs.captures.unsafe_call(this_thread(), MODE.get(), what))
    }

    /// Something that needs the present state of an event.
    ///
    /// # Errors
    /// The event was captured.
    pub fn event_is_free(&self, event: u32, what: &str) -> Result<(), Failure> {
        if !self.is_capturing() {
            return Ok(());
        }
        self.graphs(|graphs| graphs.captures.forbid_event(event, what))
    }
}

impl Stream {
    /// Takes a record into a graph if the stream is being captured; true if it was taken.
    ///
    /// # Errors
    /// The record is none that a graph holds, or the capture is broken; device lost.
    pub fn capture(&self, record: &Record<'_>) -> Result<bool, Failure> {
        Ok(self.link.is_capturing() && matches!(self.link.graphs(|graphs| graphs.take(self, record))?, Way::Taken))
    }

    /// As [`Stream::capture`], for an operator by its encoded body.
    ///
    /// # Errors
    /// The capture is broken; an update of more operators than the task group has; device lost.
    pub fn capture_op(&self, body: &[u8]) -> Result<bool, Failure> {
        Ok(self.link.is_capturing() && matches!(self.link.graphs(|graphs| graphs.take_op(self, body))?, Way::Taken))
    }

    /// Something that a captured stream cannot do.
    ///
    /// # Errors
    /// The stream is being captured.
    pub fn is_free(&self, what: &str) -> Result<(), Failure> {
        if !self.link.is_capturing() {
            return Ok(());
        }
        self.link.graphs(|graphs| graphs.captures.forbid(self.id, what))
    }

    /// Begins a capture; `handle` makes the caller's handle of the graph.
    ///
    /// # Errors
    /// The default stream, which every thread uses unasked; a stream that is captured; device lost.
    pub fn begin_capture(
        &self,
        mode: Mode,
        handle: impl FnOnce(Graph) -> Result<usize, Failure>,
    ) -> Result<(), Failure> {
        if self.id == 0 {
            let text = "parameter stream: the default stream cannot be captured; use one of your own";
            return Err(Failure::new(acl::ACL_ERROR_RT_STREAM_CAPTURE_IMPLICIT, text));
        }
        let id = self.link.next_graph()?;
        self.link.graphs(|graphs| {
            graphs.captures.begin(self.id, id, mode, this_thread())?;
            let made = handle(Graph { link: self.link.clone(), id })?;
            graphs.handles.insert(id, made);
            graphs.nodes.insert(id, Vec::new());
            self.link.post(&Record::GraphBegin { graph: id, stream: self.id })
        })
    }

    /// Ends the capture that began on this stream: the handle of its graph.
    ///
    /// # Errors
    /// See [`Captures::end`]; a graph that the daemon refuses; device lost. The second value is the handle of a graph that is
    /// gone with it.
    pub fn end_capture(&self) -> Result<usize, (Failure, Option<usize>)> {
        let ended = self.link.graphs(|graphs| {
            let ended = graphs.captures.end(self.id, this_thread());
            let handle = |graphs: &mut Graphs, graph| graphs.handles.remove(&graph);
            match ended {
                Ok(graph) => Ok((graph, handle(graphs, graph))),
                Err((failure, thrown)) => {
                    let gone = thrown.and_then(|graph| {
                        graphs.nodes.remove(&graph);
                        let _ = self.link.post(&Record::GraphDestroy { graph });
                        handle(graphs, graph)
                    });
                    Err((failure, gone))
                }
            }
        });
        let (graph, handle) = ended?;
        match self.link.call(|reply| Record::GraphEnd { graph, reply }) {
            Ok(_) => handle.ok_or_else(|| (Failure::invalid("the graph was destroyed meanwhile"), None)),
            Err(failure) => Err((failure, handle)),
        }
    }

    /// Handle of the graph that the stream is captured into, and whether that can be completed; `None`: not captured.
    pub fn capture_status(&self) -> Option<(usize, bool)> {
        if !self.link.is_capturing() {
            return None;
        }
        self.link.graphs(|graphs| {
            let (graph, whole) = graphs.captures.status(self.id)?;
            Some((graphs.handles.get(&graph).copied().unwrap_or(0), whole))
        })
    }

    /// Opens a task group in the stream's capture.
    ///
    /// # Errors
    /// See [`Captures::begin_group`].
    pub fn begin_group(&self) -> Result<(), Failure> {
        self.link.graphs(|graphs| graphs.captures.begin_group(self.id))
    }

    /// Closes the task group.
    ///
    /// # Errors
    /// See [`Captures::end_group`].
    pub fn end_group(&self) -> Result<TaskGroup, Failure> {
        let group = self.link.graphs(|graphs| graphs.captures.end_group(self.id))?;
        Ok(TaskGroup { link: self.link.clone(), group })
    }

    /// Operators posted to the stream from here on replace those of the group, in order.
    ///
    /// # Errors
    /// A captured stream; a stream that updates already; another device's group.
    pub fn begin_update(&self, group: &TaskGroup) -> Result<(), Failure> {
        if !Arc::ptr_eq(&self.link, &group.link) {
            return Err(Failure::invalid("parameter handle: a task group of another device"));
        }
        self.link.graphs(|graphs| {
            graphs.captures.forbid(self.id, "an update")?;
            if graphs.updates.contains_key(&self.id) {
                let text = "parameter stream: it updates a task group already";
                return Err(Failure::new(acl::ACL_ERROR_STREAM_TASK_GROUP_STATUS, text));
            }
            graphs.updates.insert(self.id, (group.group, 0));
            Ok(())
        })
    }

    /// Ends the update.
    ///
    /// # Errors
    /// The stream updates nothing; fewer operators than the group has.
    pub fn end_update(&self) -> Result<(), Failure> {
        let ended = self.link.graphs(|graphs| graphs.updates.remove(&self.id));
        let none =
            || Failure::new(acl::ACL_ERROR_STREAM_TASK_GROUP_STATUS, "parameter stream: it updates no task group");
        let (group, replaced) = ended.ok_or_else(none)?;
        if replaced < group.ops {
            let text = format!("{replaced} of the task group's {} operators were replaced", group.ops);
            return Err(Failure::new(acl::ACL_ERROR_RT_MODEL_UPDATE_FAILED, text));
        }
        Ok(())
    }
}

impl Graph {
    /// Launches the graph where `stream` is now: one record.
    ///
    /// # Errors
    /// Another device's stream; a captured stream; a graph that is still being captured; device lost. What is wrong with a
    /// node is an error of the stream.
    pub fn launch(&self, stream: &Stream) -> Result<(), Failure> {
        if !Arc::ptr_eq(&self.link, &stream.link) {
            return Err(Failure::invalid("parameter stream: it is of another device than the graph"));
        }
        if self.link.graphs(|graphs| graphs.handles.contains_key(&self.id)) {
            let text = "parameter modelRI: it is still being captured";
            return Err(Failure::new(acl::ACL_ERROR_RT_MODEL_CAPTURED, text));
        }
        stream.post(&Record::GraphLaunch { graph: self.id, stream: stream.id })?;
        stream.marks.forecast.wrote(None);
        Ok(())
    }

    /// Destroys the graph; launches that were posted are carried out.
    ///
    /// # Errors
    /// A graph that is still being captured; device lost.
    pub fn destroy(&self) -> Result<(), Failure> {
        let capturing = self.link.graphs(|graphs| {
            let capturing = graphs.handles.contains_key(&self.id);
            if !capturing {
                graphs.nodes.remove(&self.id);
            }
            capturing
        });
        if capturing {
            let text = "parameter modelRI: it is still being captured";
            return Err(Failure::new(acl::ACL_ERROR_RT_MODEL_CAPTURED, text));
        }
        // A lost session has destroyed it already.
        if self.link.is_lost() { Ok(()) } else { self.link.post(&Record::GraphDestroy { graph: self.id }) }
    }

    /// One line a node.
    pub fn listing(&self) -> Vec<String> {
        self.link.graphs(|graphs| {
            let nodes = graphs.nodes.get(&self.id).map_or(&[][..], Vec::as_slice);
            nodes.iter().enumerate().map(|(i, (stream, what))| format!("{i} stream {stream} {}", what.name())).collect()
        })
    }

    /// The nodes as JSON: an array of objects with `index`, `stream` and `name`, which need no escapes.
    pub fn json(&self) -> String {
        self.link.graphs(|graphs| {
            let mut out = String::from("[");
            for (i, (stream, what)) in graphs.nodes.get(&self.id).into_iter().flatten().enumerate() {
                let comma = if i == 0 { "" } else { "," };
                let name = what.name();
                let _ = write!(out, "{comma}\n  {{\"index\": {i}, \"stream\": {stream}, \"name\": \"{name}\"}}");
            }
            out + "\n]\n"
        })
    }
}

//! Launching a graph: one record becomes its nodes, queued one by one like everything else.
//!
//! Policies see each operator with its phase; nodes pin memory only while they are queued; back-pressure holds: a
//! launch is queued as far as the session has room, and its ring is not read before the rest is in. Where everything that is queued
//! waits for something, that may stand in the ring, so it is read then; what is of other streams passes the launch.
//!
//! Events of a graph are events of the session under numbers that no client mints. Nodes of two launches of one session are
//! never queued interleaved, so a wait always means the record of its own launch.

use acl_abi::{OpCall, values as acl};
use sched::{EventKey, Item, Label, StreamKey};
use wire::{HostSource, Record, Reply, ReplyTo};

use crate::core::Core;
use crate::fault::Fault;
use crate::graph::{BYTES_MAX, GRAPHS_MAX, Graph, Kind, NODES_MAX, Replaceable, Source};
use crate::items::Purpose;
use crate::memory::AddressSpace;
use crate::records::{Transfer, WORD_BYTES, Weighed};
use crate::tenant::Stream;
use crate::translate;

/// A launch that is being queued.
#[derive(Clone, Copy, Debug)]
pub struct Replay {
    graph: u32,
    /// Stream of the first lane.
    stream: u32,
    /// Next node.
    next: usize,
}

/// A session's number for event `event` of a graph.
fn inner_event(session: u64, event: u32) -> EventKey {
    // Clients count up from 1.
    EventKey { session, event: u32::MAX - event }
}

impl Core {
    /// A record about graphs; `scratch` is for the operators of nodes.
    pub(crate) fn graph_record(&mut self, session: u64, record: &Record<'_>, scratch: &mut OpCall) {
        match *record {
            Record::GraphBegin { graph, stream } => self.graph_begin(session, graph, stream),
            Record::GraphNode { graph, group, node } => self.graph_node(session, graph, group, node, scratch),
            Record::GraphEnd { graph, reply } => self.graph_end(session, graph, reply),
            Record::GraphLaunch { graph, stream } => self.graph_launch(session, graph, stream),
            Record::GraphUpdate { graph, group, index, node } => {
                if let Err(why) = self.graph_update(session, (graph, group, index), node, scratch) {
                    let text = format!("aclmdlRICaptureTaskUpdateEnd: {why}");
                    self.fail(session, None, None, Fault::new(acl::ACL_ERROR_RT_MODEL_UPDATE_FAILED, text));
                }
            }
            Record::GraphDestroy { graph } => self.graph_destroy(session, graph),
            _ => {}
        }
    }

    fn graph_begin(&mut self, session: u64, graph: u32, origin: u32) {
        const WHAT: &str = "aclmdlRICaptureBegin";
        let (tenant, _) = self.tenant(session);
        let fault = if tenant.graphs.len() >= GRAPHS_MAX {
            Some(Fault::over_limit(acl::ACL_ERROR_RT_NO_MODEL_RESOURCE, WHAT, GRAPHS_MAX))
        } else if tenant.graphs.insert(graph, Graph::new(origin)).is_some() {
            Some(Fault::param(format!("{WHAT}: graph {graph} exists already")))
        } else {
            None
        };
        if let Some(fault) = fault {
            self.fail(session, None, None, fault);
        }
    }

    fn graph_node(&mut self, session: u64, graph: u32, group: u32, node: &[u8], scratch: &mut OpCall) {
        let (tenant, _) = self.tenant(session);
        let Some(held) = tenant.graphs.get_mut(&graph).filter(|g| !g.complete && g.refused.is_none()) else { return };
        let room = tenant.graph_nodes < NODES_MAX && tenant.graph_bytes < BYTES_MAX;
        let appended = match wire::decode(node, scratch) {
            _ if !room => {
                Err(format!("the session's graphs have {NODES_MAX} nodes or {BYTES_MAX} bytes, the most allowed"))
            }
            Ok(record) => held.append(&record, scratch, group),
            Err(e) => Err(e.to_string()),
        };
        match appended {
            Ok(bytes) => {
                tenant.graph_nodes += 1;
                tenant.graph_bytes += bytes;
            }
            Err(why) => held.refused = Some(why),
        }
    }

    fn graph_end(&mut self, session: u64, graph: u32, reply: ReplyTo) {
        let result = self.complete_graph(session, graph);
        if result.is_err() {
            self.graph_destroy(session, graph);
        }
        self.answer(session, reply, result.map(|()| Reply::ok()));
    }

    /// Gives the graph its own streams.
    fn complete_graph(&mut self, session: u64, graph: u32) -> Result<(), Fault> {
        const WHAT: &str = "aclmdlRICaptureEnd";
        let unknown = || Fault::new(acl::ACL_ERROR_RT_MODEL_CONTEXT, format!("{WHAT}: no graph {graph}"));
        let streams_max = self.limits.streams_max;
        let held = self.tenant(session).0.graphs.get_mut(&graph).ok_or_else(unknown)?;
        if let Some(why) = held.refused.take() {
            return Err(Fault::new(acl::ACL_ERROR_RT_STREAM_CAPTURE_INVALIDATED, format!("{WHAT}: {why}")));
        }
        for _ in 1..held.captured.len() {
            let physical = self.new_physical();
            let (tenant, _) = self.tenant(session);
            if tenant.streams.len() > streams_max {
                return Err(Fault::over_limit(acl::ACL_ERROR_RT_NO_STREAM_RESOURCE, WHAT, streams_max));
            }
            let stream = tenant.next_lane;
            tenant.next_lane -= 1;
            let full = |e| Fault::new(acl::ACL_ERROR_RT_NO_STREAM_RESOURCE, format!("{WHAT}: {e}"));
            self.dispatcher.open_stream(StreamKey { session, stream }, 0).map_err(full)?;
            let (tenant, _) = self.tenant(session);
            tenant.streams.insert(stream, Stream { physical, ..Stream::default() });
            if let Some(held) = tenant.graphs.get_mut(&graph) {
                held.lanes.push(stream);
            }
        }
        self.tenant(session).0.graphs.get_mut(&graph).ok_or_else(unknown)?.complete = true;
        Ok(())
    }

    fn graph_destroy(&mut self, session: u64, graph: u32) {
        let (tenant, _) = self.tenant(session);
        let Some(gone) = tenant.graphs.remove(&graph) else { return };
        tenant.graph_nodes -= gone.nodes.len();
        tenant.graph_bytes -= gone.bytes;
        for stream in gone.lanes {
            self.tenant(session).0.remove_stream(stream);
            self.dispatcher.close_stream(self.time, StreamKey { session, stream });
        }
    }

    fn graph_update(
        &mut self,
        session: u64,
        (graph, group, index): (u32, u32, u32),
        node: &[u8],
        scratch: &mut OpCall,
    ) -> Result<(), String> {
        let record = wire::decode(node, scratch).map_err(|e| e.to_string())?;
        if !matches!(record, Record::Op { .. }) {
            return Err("only operators can be replaced".to_owned());
        }
        let (tenant, _) = self.tenants.get_mut(&session).expect("checked on entry of `record`");
        let held = tenant.graphs.get_mut(&graph).ok_or_else(|| format!("no graph {graph}"))?;
        if let Some(step) = held.update(group, index, scratch)? {
            self.steps.amend(session, step, tenant, scratch);
        }
        Ok(())
    }

    fn graph_launch(&mut self, session: u64, graph: u32, stream: u32) {
        const WHAT: &str = "aclmdlRIExecuteAsync";
        let (tenant, _) = self.tenant(session);
        if !tenant.streams.contains_key(&stream) {
            return self.fail(session, None, None, Fault::no_stream(WHAT, stream));
        }
        let checked = match tenant.graphs.get_mut(&graph).filter(|g| g.complete) {
            Some(held) => check_addresses(held, &mut tenant.space),
            None => Err(Fault::new(acl::ACL_ERROR_RT_MODEL_CONTEXT, format!("no graph {graph}"))),
        };
        if let Err(fault) = checked {
            let fault = Fault { text: format!("{WHAT}: {}", fault.text), ..fault };
            return self.fail(session, Some(stream), None, fault);
        }
        if let Some(held) = tenant.graphs.get(&graph) {
            for lane in &held.lanes {
                if let Some(lane) = tenant.streams.get_mut(lane) {
                    lane.report_to = Some(stream);
                }
            }
        }
        tenant.replay = Some(Replay { graph, stream, next: 0 });
        self.replaying.push(session);
        self.continue_replay(session, false);
    }

    /// True for a record that need not wait until a launch before it is queued whole: it is of a stream that the launch is not on, of
    /// none, or changes operators that are read when they start.
    pub(crate) fn passes_launch(&self, session: u64, record: &Record<'_>) -> bool {
        let stream = match *record {
            Record::Op { stream }
            | Record::EventRecord { stream, .. }
            | Record::EventReset { stream, .. }
            | Record::StreamWaitEvent { stream, .. }
            | Record::FlagSet { stream, .. }
            | Record::FlagClear { stream, .. }
            | Record::FlagWait { stream, .. }
            | Record::ValueWrite { stream, .. }
            | Record::ValueWait { stream, .. } => Some(stream),
            Record::CopyIn { stream, .. }
            | Record::CopyOut { stream, .. }
            | Record::CopyDevice { stream, .. }
            | Record::Memset { stream, .. } => stream,
            Record::GraphUpdate { .. } => None,
            _ => return false,
        };
        let Some((tenant, _)) = self.tenants.get(&session) else { return false };
        let Some(Replay { graph, stream: on, .. }) = tenant.replay else { return true };
        let lanes = tenant.graphs.get(&graph).map_or(&[][..], |held| &held.lanes[..]);
        stream.is_none_or(|stream| stream != on && !lanes.contains(&stream))
    }

    /// Queues more of the launches that wait for room; true if anything was queued.
    pub(crate) fn continue_replays(&mut self) -> bool {
        if self.replaying.is_empty() {
            return false;
        }
        let sessions = self.replaying.clone();
        let mut queued = false;
        for session in sessions {
            queued |= self.continue_replay(session, false);
        }
        queued
    }

    /// Queues the rest of a launch; with `all`, also beyond the session's bound.
    pub(crate) fn continue_replay(&mut self, session: u64, all: bool) -> bool {
        let mut call = std::mem::replace(&mut self.replay_call, OpCall::new(acl_abi::OpId(0)));
        let mut queued = false;
        while let Some(Replay { graph, stream, next }) = self.tenants.get(&session).and_then(|(t, _)| t.replay) {
            if !all && !self.has_space(session) {
                break;
            }
            let (tenant, _) = self.tenant(session);
            let node = tenant.graphs.get(&graph).and_then(|g| Some((g, g.nodes.get(next)?)));
            let Some((held, node)) = node else {
                tenant.replay = None;
                self.replaying.retain(|&s| s != session);
                break;
            };
            let lane = match node.lane {
                0 => stream,
                lane => held.lanes.get(lane - 1).copied().unwrap_or(stream),
            };
            let kind = match &node.kind {
                // The only kind that owns much.
                Kind::Op(captured) => {
                    call.copy_from(captured);
                    None
                }
                other => Some(other.clone()),
            };
            tenant.replay = Some(Replay { graph, stream, next: next + 1 });
            match kind {
                None => self.operator(session, lane, None, &mut call),
                Some(kind) => self.queue_node(session, lane, kind),
            }
            queued = true;
        }
        self.replay_call = call;
        queued
    }

    fn queue_node(&mut self, session: u64, stream: u32, kind: Kind) {
        const WHAT: &str = "aclmdlRIExecuteAsync";
        match kind {
            Kind::Op(_) => {}
            Kind::Grouped(call) => self.late_operator(session, stream, call),
            Kind::In { dst, source: Source::Bytes(bytes) } => {
                self.transfer(session, Transfer::In { dst, source: HostSource::Inline(&bytes) }, Some(stream), None);
            }
            Kind::In { dst, source: Source::Pinned(range) } => {
                self.transfer(session, Transfer::In { dst, source: HostSource::Pinned(range) }, Some(stream), None);
            }
            Kind::Out { dst, src } => self.transfer(session, Transfer::Out { dst, src }, Some(stream), None),
            Kind::Device { dst, src, len } => {
                self.transfer(session, Transfer::Device { dst, src, len }, Some(stream), None);
            }
            Kind::Fill { addr, len, value } => {
                self.transfer(session, Transfer::Fill { addr, len, value }, Some(stream), None);
            }
            Kind::Word { addr, value } => {
                self.transfer(session, Transfer::Word { addr, value }, Some(stream), None);
            }
            Kind::Await { addr, value, until } => self.value_wait(session, stream, addr, value, until),
            Kind::Exchange(comm, exchange) => self.exchange(session, stream, comm, &exchange),
            Kind::Record(event) => self.inner_item(session, stream, Item::RecordEvent(inner_event(session, event))),
            Kind::Wait(event) => self.inner_item(session, stream, Item::WaitEvent(inner_event(session, event))),
            Kind::FlagSet(flag) => self.flag_item(session, stream, flag, WHAT, Item::SetFlag),
            Kind::FlagClear(flag) => self.flag_item(session, stream, flag, WHAT, Item::ClearFlag),
            Kind::FlagWait(flag) => self.flag_item(session, stream, flag, WHAT, Item::AwaitFlag),
        }
    }

    fn inner_item(&mut self, session: u64, stream: u32, item: Item) {
        if let Some(state) = self.tenant(session).0.streams.get_mut(&stream) {
            state.dirty = true;
        }
        if let Err(refused) = self.dispatcher.push(self.time, StreamKey { session, stream }, item) {
            let text = format!("aclmdlRIExecuteAsync: {refused}");
            self.fail(session, Some(stream), None, Fault::new(acl::ACL_ERROR_RT_STREAM_TASK_FULL, text));
        }
    }

    /// Queues an operator whose arguments are read when it starts.
    fn late_operator(&mut self, session: u64, stream: u32, call: Replaceable) {
        let Some((tenant, _)) = self.tenants.get_mut(&session) else { return };
        let Some(state) = tenant.streams.get_mut(&stream) else { return };
        let weighed = {
            let mut held = call.lock();
            let (phase, step) = self.steps.observe_replaceable(self.time, (session, stream), state, &held.call);
            held.step = step;
            Weighed { work: sched::work(&held.call), phase, label: Label::op(held.call.op) }
        };
        let physical = state.physical;
        let token = self.items.insert(session, Purpose::Work(Some(stream)), |entry| entry.late = Some(call));
        self.enqueue(session, Some(stream), token, weighed, physical);
    }

    /// Makes the command of an item that reads its arguments when it starts. False: it cannot start, and has ended.
    pub(crate) fn bind_late(&mut self, token: u64) -> bool {
        let Some(entry) = self.items.get_mut(token) else { return false };
        let Some(call) = entry.late.take() else { return true };
        let Some((tenant, _)) = self.tenants.get_mut(&entry.session) else { return false };
        let mut own = OpCall::new(acl_abi::OpId(0));
        let step = {
            let mut held = call.lock();
            own.copy_from(&held.call);
            held.step.take()
        };
        if let Some(step) = step {
            self.steps.amend(entry.session, step, tenant, &own);
        }
        entry.work = sched::work(&own);
        match translate::translate(&mut own, &mut tenant.space, &mut entry.pins) {
            Ok(()) => {
                entry.command = Some(self.pool.operator(&mut own));
                true
            }
            Err(fault) => {
                let Purpose::Work(stream) = entry.purpose else { return false };
                tenant.items -= 1;
                tenant.defer(stream, fault);
                self.faults_total += 1;
                self.items.finish(token, |_| ());
                self.dispatcher.complete(self.time, token);
                self.ended_early = true;
                false
            }
        }
    }
}

/// Checks every address of the graph, unless nothing has changed since it was done last. Operators of groups are left out:
/// they have their addresses when they start.
fn check_addresses(graph: &mut Graph, space: &mut AddressSpace) -> Result<(), Fault> {
    if graph.checked == Some(space.version()) {
        return Ok(());
    }
    let mut range = |what: &str, addr: u64, len: u64| match len {
        0 => Ok(()),
        len => space.resolve(addr, len).map(|_| ()).map_err(|e| Fault::param(format!("{what}: {e}"))),
    };
    for node in &graph.nodes {
        match &node.kind {
            Kind::Op(call) => {
                for tensor in &call.tensors {
                    if let Ok(Some((_, end))) = tensor.byte_span() {
                        range(call.op.name(), tensor.addr, end)?;
                    }
                }
            }
            Kind::In { dst, source } => {
                let len = match source {
                    Source::Bytes(bytes) => bytes.len() as u64,
                    Source::Pinned(range) => range.len,
                };
                range("aclrtMemcpyAsync", *dst, len)?;
            }
            Kind::Out { dst, src } => range("aclrtMemcpyAsync", *src, dst.len)?,
            Kind::Device { dst, src, len } => {
                range("aclrtMemcpyAsync", *dst, *len)?;
                range("aclrtMemcpyAsync", *src, *len)?;
            }
            Kind::Fill { addr, len, .. } => range("aclrtMemsetAsync", *addr, *len)?,
            Kind::Word { addr, .. } => range("aclrtValueWrite", *addr, WORD_BYTES)?,
            Kind::Await { addr, .. } => range("aclrtValueWait", *addr, WORD_BYTES)?,
            Kind::Exchange(_, exchange) => {
                for part in &exchange.sends {
                    range("a collective", part.addr, part.len)?;
                }
                for part in &exchange.receives {
                    range("a collective", part.addr, part.len)?;
                }
            }
            Kind::Grouped(_)
            | Kind::Record(_)
            | Kind::Wait(_)
            | Kind::FlagSet(_)
            | Kind::FlagClear(_)
            | Kind::FlagWait(_) => {}
        }
    }
    graph.checked = Some(space.version());
    Ok(())
}

//! What each record does to a session.
//!
//! A call with a reply is told its own errors; a call without one leaves its error on its stream. Ids come from the client
//! and are looked up in that client's tables only.

use acl_abi::{OpCall, values as acl};
use device::{Command, HostBytes, PhysAddr};
use sched::{FlagKey, Item, Label, Nanos, Phase, StreamKey, Work};
use wire::{ArenaRange, HostSource, Record, Reply, ReplyTo};

use crate::core::{Core, give_back};
use crate::fault::Fault;
use crate::items::Purpose;
use crate::memory::{AddressSpace, BlockId};
use crate::parked::Request;
use crate::pool::Pool;
use crate::port::Port;
use crate::tenant::{Stream, Tenant};
use crate::translate;

const NS_PER_US: Nanos = 1_000;
/// What `aclrtValueWrite` writes and `aclrtValueWait` looks at.
pub(crate) const WORD_BYTES: u64 = 8;

/// A copy or fill whose addresses are still the client's.
pub(crate) enum Transfer<'a> {
    In { dst: u64, source: HostSource<'a> },
    Out { dst: ArenaRange, src: u64 },
    Device { dst: u64, src: u64, len: u64 },
    Fill { addr: u64, len: u64, value: u8 },
    Word { addr: u64, value: u64 },
}

impl Transfer<'_> {
    fn byte_len(&self) -> u64 {
        match self {
            Self::In { source, .. } => source.byte_len(),
            Self::Out { dst, .. } => dst.len,
            Self::Device { len, .. } | Self::Fill { len, .. } => *len,
            Self::Word { .. } => WORD_BYTES,
        }
    }

    fn work(&self) -> Work {
        match self {
            Self::In { .. } | Self::Out { .. } => Work::host_copy(self.byte_len()),
            Self::Device { len, .. } => Work::device_copy(*len),
            Self::Fill { len, .. } => Work::fill(*len),
            Self::Word { .. } => Work::fill(WORD_BYTES),
        }
    }

    fn label(&self) -> Label {
        match self {
            Self::In { .. } => Label::COPY_IN,
            Self::Out { .. } => Label::COPY_OUT,
            Self::Device { .. } => Label::COPY,
            Self::Fill { .. } | Self::Word { .. } => Label::FILL,
        }
    }

    fn name(&self, stream: Option<u32>) -> &'static str {
        match (self, stream) {
            (Self::Word { .. }, _) => "aclrtValueWrite",
            (Self::Fill { .. }, None) => "aclrtMemset",
            (Self::Fill { .. }, Some(_)) => "aclrtMemsetAsync",
            (_, None) => "aclrtMemcpy",
            (_, Some(_)) => "aclrtMemcpyAsync",
        }
    }
}

/// What an item asks of the device, and what it is.
pub(crate) struct Weighed {
    pub work: Work,
    pub phase: Phase,
    pub label: Label,
}

impl Core {
    /// Takes in one record that arrived at `now`, which must not lie before the last [`Core::advance`]. `call` is the
    /// operator call of [`Record::Op`]; its buffers are exchanged for others.
    pub fn record(&mut self, now: Nanos, session: u64, record: Record<'_>, call: &mut OpCall) {
        if !self.tenants.contains_key(&session) {
            return;
        }
        self.time = self.time.max(now);
        // In order: what follows a launch is queued behind all of it, unless it is of streams that the launch is not on.
        if !self.replaying.is_empty() && !self.passes_launch(session, &record) {
            self.continue_replay(session, true);
        }
        match record {
            Record::Op { stream } => self.operator(session, stream, None, call),
            Record::OpAnswered { stream, reply } => self.operator(session, stream, Some(reply), call),
            Record::CopyIn { dst, source, stream, reply } => {
                self.transfer(session, Transfer::In { dst, source }, stream, reply);
            }
            Record::CopyOut { dst, src, stream, reply } => {
                self.transfer(session, Transfer::Out { dst, src }, stream, reply);
            }
            Record::CopyDevice { dst, src, len, stream, reply } => {
                self.transfer(session, Transfer::Device { dst, src, len }, stream, reply);
            }
            Record::Memset { addr, len, value, stream, reply } => {
                self.transfer(session, Transfer::Fill { addr, len, value }, stream, reply);
            }
            Record::StreamCreate { stream, priority, .. } => self.stream_create(session, stream, priority),
            Record::StreamDestroy { stream } => self.stream_destroy(session, stream),
            Record::StreamSync { stream, reply } => self.stream_sync(session, stream, reply, false),
            Record::StreamFetch { stream, dst, src, reply } => {
                let fetched = self.fetch(session, stream, dst, src);
                self.stream_sync(session, stream, reply, fetched);
            }
            Record::StreamQuery { stream, reply } => {
                let result = self.stream_query(session, stream);
                self.answer(session, reply, result);
            }
            Record::DeviceSync { reply } => {
                self.step_boundary(session, None);
                let token = self.items.insert(session, Purpose::DeviceSync, |e| e.reply = Some(reply));
                self.count_item(session);
                self.dispatcher.notify_device(self.time, session, token);
            }
            Record::EventCreate { event, flags } => self.event_create(session, event, flags),
            Record::EventDestroy { event } => self.event_destroy(session, event),
            Record::EventRecord { event, stream } => {
                self.event_item(session, stream, event, "aclrtRecordEvent", Item::RecordEvent);
            }
            Record::EventReset { event, stream } => {
                self.event_item(session, stream, event, "aclrtResetEvent", Item::ResetEvent);
            }
            Record::StreamWaitEvent { stream, event } => {
                self.event_item(session, stream, event, "aclrtStreamWaitEvent", Item::WaitEvent);
            }
            Record::EventSync { event, reply } => self.event_sync(session, event, reply),
            Record::EventTime { event, reply } => {
                let result = self.event_time("aclrtEventGetTimestamp", session, event);
                self.answer(session, reply, result.map(|ns| Reply::value(ns / NS_PER_US)));
            }
            Record::HostCall { stream, call, block } => self.host_call(session, stream, call, block),
            Record::HostWait { reply } => self.host_wait(session, reply),
            Record::FlagWait { stream, flag } => {
                self.flag_item(session, stream, flag, "aclrtStreamWaitEvent", Item::AwaitFlag);
            }
            Record::FlagSet { stream, flag } => {
                self.flag_item(session, stream, flag, "aclrtRecordEvent", Item::SetFlag);
            }
            Record::FlagClear { stream, flag } => {
                self.flag_item(session, stream, flag, "aclrtResetEvent", Item::ClearFlag);
            }
            Record::FlagRelease { flag } => self.dispatcher.release_flag(self.time, FlagKey { session, flag }),
            Record::GraphBegin { .. }
            | Record::GraphNode { .. }
            | Record::GraphEnd { .. }
            | Record::GraphLaunch { .. }
            | Record::GraphUpdate { .. }
            | Record::GraphDestroy { .. } => self.graph_record(session, &record, call),
            Record::EventQuery { event, reply } => {
                let result = self.event_query(session, event);
                self.answer(session, reply, result);
            }
            Record::EventExport { event, reply } => {
                let result = self.event_export(session, event);
                self.answer(session, reply, result);
            }
            Record::EventImport { event, key, reply } => {
                let result = self.event_import(session, event, key);
                self.answer(session, reply, result);
            }
            Record::ValueWrite { stream, addr, value } => {
                self.transfer(session, Transfer::Word { addr, value }, Some(stream), None);
            }
            Record::ValueWait { stream, addr, value, until } => self.value_wait(session, stream, addr, value, until),
            Record::EventElapsed { start, end, reply } => {
                let result = self.elapsed(session, start, end);
                self.answer(session, reply, result);
            }
            Record::Malloc { size, reply } => self.request(session, Request::Malloc(size), reply),
            Record::PhysicalAlloc { size, reply } => self.request(session, Request::Physical(size), reply),
            Record::Map { addr, size, offset, handle, reply } => {
                self.request(session, Request::Map { addr, size, offset, handle }, reply);
            }
            Record::PhysicalFree { handle, reply } => self.free_physical(session, handle, reply),
            Record::Reserve { size, reply } => {
                let result = self.reserve(session, size);
                self.answer(session, reply, result);
            }
            Record::Release { addr, reply } => self.release(session, addr, reply),
            Record::Unmap { addr, reply } => self.unmap(session, addr, reply),
            Record::Export { handle, subject, size, named_only, reply } => {
                let result = self.export(session, handle, subject, size, named_only);
                self.answer(session, reply, result);
            }
            Record::ExportAllow { key, pid, reply } => {
                let result = self.export_allow(session, key, pid);
                self.answer(session, reply, result);
            }
            Record::ExportClose { key, reply } => {
                let result = self.export_close(session, key);
                self.answer(session, reply, result);
            }
            Record::Import { key, handle, reply } => {
                let result = self.import(session, key, handle);
                self.answer(session, reply, result);
            }
            Record::Free { addr, reply } => {
                let result = self.free_block(session, addr);
                self.answer(session, reply, result);
            }
            Record::MemInfo { reply } => {
                let memory = self.device.memory();
                let limit = self.limits.session_memory_bytes_max;
                let account = self.account(session);
                let (left, most, reserved) = self.tenant_room(account);
                let space = self.space(session);
                let (held, peak) = (space.held_bytes(), space.peak_bytes());
                let total = memory.total.min(limit).min(most.unwrap_or(u64::MAX));
                let free = memory.free.saturating_sub(reserved).min(left).min(limit.saturating_sub(held));
                self.answer(session, reply, Ok(Reply { payload: [free, total, held, peak], ..Reply::ok() }));
            }
            Record::CommRoot { reply } => {
                let result = self.comm_root();
                self.answer(session, reply, result);
            }
            Record::CommInit { comm, rank, ranks, timeout_s, exec_timeout_s, key, reply } => {
                self.comm_init((session, comm), (rank, ranks), key, (timeout_s, exec_timeout_s), reply);
            }
            Record::CommDestroy { comm } => self.comm_destroy((session, comm)),
            Record::CommStatus { comm, reply } => {
                let result = self.comm_status((session, comm));
                self.answer(session, reply, result);
            }
            Record::Exchange { stream, comm, body } => match wire::Exchange::decode(body) {
                Ok(exchange) => self.exchange(session, stream, comm, &exchange),
                Err(e) => self.fail(session, Some(stream), None, Fault::param(format!("a collective: {e}"))),
            },
            Record::Hint(hint) => self.hint(session, &hint),
            Record::HintsRefused { lines } => {
                self.hints_refused_total = self.hints_refused_total.saturating_add(u64::from(lines));
            }
        }
        let (tenant, _) = self.tenant(session);
        if tenant.space.held_bytes() != tenant.metered.0 {
            self.meter_memory(session);
        }
    }

    /// Number of the tenant that a live session belongs to.
    pub(crate) fn account(&mut self, session: u64) -> u32 {
        self.tenant(session).0.account
    }

    pub(crate) fn tenant(&mut self, session: u64) -> &mut (Tenant, Port) {
        self.tenants.get_mut(&session).expect("checked on entry of `record`")
    }

    pub(crate) fn count_item(&mut self, session: u64) {
        self.tenant(session).0.items += 1;
    }

    /// An error of work: to whoever waits for it, or onto the stream.
    pub(crate) fn fail(&mut self, session: u64, stream: Option<u32>, reply: Option<ReplyTo>, fault: Fault) {
        match reply {
            Some(reply) => self.answer(session, reply, Err(fault)),
            None => {
                self.faults_total += 1;
                self.tenant(session).0.defer(stream, fault);
            }
        }
    }

    pub(crate) fn operator(&mut self, session: u64, stream: u32, reply: Option<ReplyTo>, call: &mut OpCall) {
        let (work, label) = (sched::work(call), Label::op(call.op));
        let (tenant, _) = self.tenants.get_mut(&session).expect("checked on entry of `record`");
        let Some(state) = tenant.streams.get_mut(&stream) else {
            return self.fail(session, None, reply, Fault::no_stream(call.op.name(), stream));
        };
        let phase = self.steps.observe(self.time, (session, stream), state, &mut tenant.requests, call);
        let physical = state.physical;
        let (items, pool) = (&mut self.items, &mut self.pool);
        let mut refused = None;
        let token = items.insert(session, Purpose::Work(Some(stream)), |entry| {
            entry.reply = reply;
            match translate::translate(call, &mut tenant.space, &mut entry.pins) {
                Ok(()) => entry.command = Some(pool.operator(call)),
                Err(fault) => refused = Some(fault),
            }
        });
        if let Some(fault) = refused {
            items.finish(token, |_| ());
            return self.fail(session, Some(stream), reply, fault);
        }
        self.enqueue(session, Some(stream), token, Weighed { work, phase, label }, physical);
    }

    pub(crate) fn transfer(
        &mut self,
        session: u64,
        transfer: Transfer<'_>,
        stream: Option<u32>,
        reply: Option<ReplyTo>,
    ) {
        let name = transfer.name(stream);
        let word = self.word_written(&transfer);
        let staging = match &transfer {
            Transfer::In { source: HostSource::Staging { block, .. }, .. } => Some(*block),
            _ => None,
        };
        let (tenant, port) = self.tenants.get_mut(&session).expect("checked on entry of `record`");
        let place = match stream {
            None => Ok((tenant.internal_physical, Phase::Unknown)),
            Some(id) => match tenant.streams.get(&id) {
                Some(stream) => Ok((stream.physical, stream.classifier.current())),
                None => Err(Fault::no_stream(name, id)),
            },
        };
        let (work, label) = (transfer.work(), transfer.label());
        let empty = transfer.byte_len() == 0;
        let pool = &mut self.pool;
        let mut outcome = place;
        let token = self.items.insert(session, Purpose::Work(stream), |entry| {
            entry.reply = reply;
            entry.staging = staging;
            entry.word = word;
            if outcome.is_ok() && !empty {
                match command(name, transfer, &mut tenant.space, &mut entry.pins, port, pool) {
                    Ok(command) => entry.command = Some(pool.copy(command)),
                    Err(fault) => {
                        // Nothing is released: the blocks are mapped, or they would not have resolved.
                        translate::unpin(&mut tenant.space, &mut entry.pins, |_| {});
                        outcome = Err(fault);
                    }
                }
            }
        });
        match outcome {
            Ok((physical, phase)) if !empty => {
                self.enqueue(session, stream, token, Weighed { work, phase, label }, physical);
            }
            outcome => {
                self.items.finish(token, |_| ());
                if let Some(block) = staging {
                    self.tenant(session).1.release_staging(block);
                }
                match (outcome, stream, reply) {
                    (Err(fault), ..) => self.fail(session, stream, reply, fault),
                    // Nothing to copy, but the answer keeps its place in the stream.
                    (Ok(_), Some(stream), Some(reply)) => self.stream_sync(session, stream, reply, false),
                    (Ok(_), None, Some(reply)) => self.answer(session, reply, Ok(Reply::ok())),
                    (Ok(_), _, None) => {}
                }
            }
        }
    }

    /// Work is complete but for its cost: into its stream, or at once onto the device.
    pub(crate) fn enqueue(
        &mut self,
        session: u64,
        stream: Option<u32>,
        token: u64,
        Weighed { work, phase, label }: Weighed,
        physical: u32,
    ) {
        let demand = self.profile.demand(&work);
        let solo = sched::nanos(demand.solo_s);
        let Some(entry) = self.items.get_mut(token) else { return };
        (entry.work, entry.phase, entry.solo, entry.physical) = (work, phase, solo, physical);
        entry.label = label;
        self.urgent += usize::from(entry.is_urgent());
        self.count_item(session);
        let Some(stream) = stream else {
            self.tenant(session).0.unordered += 1;
            return self.submit(token);
        };
        let key = StreamKey { session, stream };
        match self.dispatcher.push(self.time, key, Item::Op { token, solo, demand, phase, label }) {
            Ok(()) => {
                if let Some(stream) = self.tenant(session).0.streams.get_mut(&stream) {
                    stream.dirty = true;
                }
            }
            Err(refused) => self.take_back(session, Some(stream), token, refused.to_string()),
        }
    }

    /// The dispatcher did not take an item.
    pub(crate) fn take_back(&mut self, session: u64, stream: Option<u32>, token: u64, why: String) {
        let Self { items, pool, urgent, tenants, device, shares, .. } = self;
        let (tenant, port) = tenants.get_mut(&session).expect("checked on entry of `record`");
        let reply = items.finish(token, |entry| {
            *urgent -= usize::from(entry.is_urgent());
            translate::unpin(&mut tenant.space, &mut entry.pins, |released| {
                give_back(&mut **device, shares, session, released);
            });
            if let Some(command) = entry.command.take() {
                pool.recycle(command);
            }
            if let Some(block) = entry.staging {
                port.release_staging(block);
            }
            entry.reply
        });
        tenant.items -= 1;
        let fault = Fault::new(acl::ACL_ERROR_RT_STREAM_TASK_FULL, why);
        self.fail(session, stream, reply.flatten(), fault);
    }

    fn stream_create(&mut self, session: u64, stream: u32, priority: u32) {
        const WHAT: &str = "aclrtCreateStream";
        let (limit, physical) = (self.limits.streams_max, self.new_physical());
        let (tenant, _) = self.tenant(session);
        let fault = if tenant.streams.contains_key(&stream) {
            Some(Fault::param(format!("{WHAT}: stream {stream} exists already")))
        } else if tenant.streams.len() > limit {
            Some(Fault::over_limit(acl::ACL_ERROR_RT_NO_STREAM_RESOURCE, WHAT, limit))
        } else {
            match self.dispatcher.open_stream(StreamKey { session, stream }, priority) {
                Ok(()) => None,
                Err(e) => Some(Fault::new(acl::ACL_ERROR_RT_NO_STREAM_RESOURCE, format!("{WHAT}: {e}"))),
            }
        };
        match fault {
            Some(fault) => self.fail(session, None, None, fault),
            None => {
                self.tenant(session).0.streams.insert(stream, Stream { physical, ..Stream::default() });
            }
        }
    }

    fn stream_destroy(&mut self, session: u64, stream: u32) {
        const WHAT: &str = "aclrtDestroyStream";
        if stream == 0 {
            return self.fail(session, None, None, Fault::param(format!("{WHAT}: the default stream stays")));
        }
        let (tenant, _) = self.tenants.get_mut(&session).expect("checked on entry of `record`");
        if let Some(state) = tenant.streams.get_mut(&stream) {
            self.steps.close(session, stream, state);
        }
        if !self.tenant(session).0.remove_stream(stream) {
            return self.fail(session, None, None, Fault::no_stream(WHAT, stream));
        }
        self.dispatcher.close_stream(self.time, StreamKey { session, stream });
    }

    /// Copies behind the stream's work if nothing else of the session is under way that could still change the bytes, and
    /// they are the session's own; true if so.
    fn fetch(&mut self, session: u64, stream: u32, dst: ArenaRange, src: u64) -> bool {
        let (tenant, _) = self.tenants.get_mut(&session).expect("checked on entry of `record`");
        let known = tenant.streams.contains_key(&stream) && tenant.space.resolve(src, dst.len).is_ok();
        let alone = tenant.unordered == 0
            && !self.shares.involves(session)
            && !self.is_exchanging(session)
            && self.dispatcher.alone_has_operators(StreamKey { session, stream });
        if known && alone && dst.len > 0 {
            self.transfer(session, Transfer::Out { dst, src }, Some(stream), None);
        }
        known && alone && dst.len > 0
    }

    fn stream_sync(&mut self, session: u64, stream: u32, reply: ReplyTo, fetched: bool) {
        if !self.tenant(session).0.streams.contains_key(&stream) {
            return self.answer(session, reply, Err(Fault::no_stream("aclrtSynchronizeStream", stream)));
        }
        self.step_boundary(session, Some(stream));
        let token = self.items.insert(session, Purpose::StreamSync(stream), |e| {
            e.reply = Some(reply);
            e.fetched = fetched;
        });
        self.count_item(session);
        let pushed = self.dispatcher.push(self.time, StreamKey { session, stream }, Item::Notify { token });
        if let Err(refused) = pushed {
            self.take_back(session, Some(stream), token, refused.to_string());
        }
    }

    /// Idle or not. A mark pushed behind everything else tells; it stays for the next query unless more is pushed.
    fn stream_query(&mut self, session: u64, stream: u32) -> Result<Reply, Fault> {
        let missing = Fault::no_stream("aclrtStreamQuery", stream);
        let Some(state) = self.tenant(session).0.streams.get_mut(&stream) else { return Err(missing) };
        if std::mem::take(&mut state.dirty) {
            let token = self.items.insert(session, Purpose::StreamMark(stream), |_| {});
            self.count_item(session);
            if let Err(refused) = self.dispatcher.push(self.time, StreamKey { session, stream }, Item::Notify { token })
            {
                self.take_back(session, Some(stream), token, refused.to_string());
            } else if let Some(state) = self.tenant(session).0.streams.get_mut(&stream) {
                state.mark = Some(token);
            }
            self.advance(self.time);
        }
        let (tenant, _) = self.tenant(session);
        if let Some(fault) = tenant.take_stream_fault(stream) {
            return Err(fault);
        }
        Ok(Reply::value(u64::from(tenant.streams.get(&stream).is_some_and(|s| s.mark.is_none()))))
    }

    /// A live session's memory.
    pub(crate) fn space(&mut self, session: u64) -> &mut AddressSpace {
        &mut self.tenant(session).0.space
    }
}

/// The device's command for a transfer of at least one byte. On failure, blocks that were pinned are in `pins`.
fn command(
    name: &str,
    transfer: Transfer<'_>,
    space: &mut AddressSpace,
    pins: &mut Vec<BlockId>,
    port: &Port,
    pool: &mut Pool,
) -> Result<Command, Fault> {
    let outside = |what: &str| Fault::param(format!("{name}: {what} is not inside the session's host memory"));
    let mut operand = |parameter, addr, len| translate::operand(name, parameter, addr, len, space, pins).map(PhysAddr);
    Ok(match transfer {
        Transfer::In { dst, source } => {
            let dst = operand("dst", dst, source.byte_len())?;
            let source = match source {
                HostSource::Inline(bytes) => Some(HostBytes::owned(pool.host(bytes))),
                HostSource::Staging { block, len } => port.staging(block, len),
                HostSource::Pinned(range) => port.host(range),
            };
            Command::CopyIn { dst, source: source.ok_or_else(|| outside("src"))? }
        }
        Transfer::Out { dst, src } => {
            let src = operand("src", src, dst.len)?;
            Command::CopyOut { dst: port.host(dst).ok_or_else(|| outside("dst"))?, src }
        }
        Transfer::Device { dst, src, len } => {
            Command::CopyDevice { dst: operand("dst", dst, len)?, src: operand("src", src, len)?, len }
        }
        Transfer::Fill { addr, len, value } => Command::Fill { addr: operand("devPtr", addr, len)?, len, value },
        Transfer::Word { addr, value } => {
            let source = HostBytes::owned(pool.host(&value.to_le_bytes()));
            Command::CopyIn { dst: operand("devAddr", addr, WORD_BYTES)?, source }
        }
    })
}

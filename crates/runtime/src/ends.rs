//! What ends: items that the device has finished, waiters whose time has come, and the replies that tell clients so.

use device::Completion;
use sched::Token;
use sched::dispatch::Aside;
use wire::{Reply, ReplyTo};

use crate::core::{Core, give_back};
use crate::event_records::event_fault;
use crate::fault::Fault;
use crate::items::{Entry, Purpose};
use crate::translate;

/// What a failed operator is reported as: an exception in a compute core.
const DEVICE_FAULT: i32 = acl_abi::values::ACL_ERROR_RT_AICORE_EXCEPTION;

impl Core {
    /// The device has finished an item.
    pub(crate) fn completed(&mut self, completion: Completion) {
        let Some(completion) = self.unless_a_look(completion) else { return };
        let Some(completion) = self.unless_a_move(completion) else {
            self.values.changed();
            return;
        };
        let Completion { token, at, result, extent, cmd } = completion;
        self.meter_device();
        self.in_flight -= 1;
        self.pool.recycle(cmd);
        let Self {
            items,
            tenants,
            device,
            shares,
            dispatcher,
            urgent,
            phases,
            time,
            faults_total,
            occupancy,
            meter,
            accounts,
            ..
        } = self;
        let mut written = None;
        items.finish(token, |entry| {
            occupancy.ends(*time, entry.phase);
            meter.ends(entry.physical);
            *urgent -= usize::from(entry.is_urgent());
            let Purpose::Work(stream) = entry.purpose else { unreachable!("only work is submitted") };
            if stream.is_some() {
                dispatcher.complete(*time, token);
            }
            let Some((tenant, port)) = tenants.get_mut(&entry.session) else { return };
            if let Some(usage) = accounts.usage(tenant.account) {
                crate::usage::book_bytes(usage, entry.label, &entry.work);
            }
            tenant.unordered -= usize::from(stream.is_none());
            tenant.items -= 1;
            tenant.in_flight -= 1;
            let session = entry.session;
            translate::unpin(&mut tenant.space, &mut entry.pins, |released| {
                give_back(&mut **device, shares, session, released);
            });
            if tenant.space.held_bytes() != tenant.metered.0 {
                crate::tenants::meter(accounts, tenant, *time);
            }
            if let Some(block) = entry.staging {
                port.release_staging(block);
            }
            let began = entry.submitted.unwrap_or(at);
            let began = match stream.and_then(|s| tenant.streams.get_mut(&s)) {
                Some(stream) => began.max(std::mem::replace(&mut stream.last_done, at)),
                None => began,
            };
            let measured = at.saturating_sub(began);
            if stream.is_none() {
                let Entry { session, label, phase, solo, .. } = *entry;
                dispatcher.note_aside(|| Aside { session, label, phase, solo, began, ended: at });
            }
            tenant.phases[entry.phase.index()].add(entry.solo, measured);
            phases[entry.phase.index()].add(entry.solo, measured);
            let fault = result.err().map(|e| Fault::new(DEVICE_FAULT, e.text));
            written = entry.word.filter(|_| fault.is_none()).map(|word| (session, stream, word));
            *faults_total += u64::from(fault.is_some());
            match (entry.reply, fault) {
                (Some(reply), Some(fault)) => port.reply(reply, &fault.into()),
                (None, Some(fault)) => tenant.defer(stream, fault),
                (Some(reply), None) => {
                    let earlier = match stream {
                        Some(stream) => tenant.take_stream_fault(stream),
                        None => tenant.take_oldest_fault(),
                    };
                    let done = extent.map_or_else(Reply::ok, |n| Reply { payload: [n, 1, 0, 0], ..Reply::ok() });
                    port.reply(reply, &earlier.map_or(done, Reply::from));
                }
                (None, None) => {}
            }
        });
        if let Some((session, stream, word)) = written {
            self.remember_word(session, stream, word);
        }
        if !self.values.is_empty() {
            self.values.changed();
        }
    }

    /// What a waiter waited for has happened.
    pub(crate) fn done(&mut self, token: Token) {
        let mut exchange = None;
        let Self { items, tenants, values, shared_events, .. } = self;
        items.finish(token, |entry: &mut Entry| {
            let Some((tenant, port)) = tenants.get_mut(&entry.session) else { return };
            tenant.items -= 1;
            let fault = match entry.purpose {
                Purpose::StreamMark(stream) => {
                    if let Some(stream) = tenant.streams.get_mut(&stream)
                        && stream.mark == Some(token)
                    {
                        stream.mark = None;
                    }
                    None
                }
                Purpose::HostCall(call) => {
                    tenant.host_calls.reached(call, port);
                    None
                }
                Purpose::ValueReached(flag) => {
                    values.reached((entry.session, flag));
                    None
                }
                Purpose::ExchangeReached { comm, flag } => {
                    exchange = Some(((entry.session, comm), flag));
                    None
                }
                Purpose::StreamSync(stream) => tenant.take_stream_fault(stream),
                Purpose::EventSync(event) => event_fault(tenant, shared_events, entry.session, event),
                Purpose::DeviceSync => tenant.take_oldest_fault(),
                Purpose::Work(_) | Purpose::ValueLook(_) | Purpose::ExchangeMove { .. } => {
                    unreachable!("work is never done without the device")
                }
            };
            if let Some(reply) = entry.reply {
                let done = Reply::value(entry.fetched.into());
                port.reply(reply, &fault.map_or(done, Reply::from));
            }
        });
        if let Some((key, flag)) = exchange {
            self.exchange_reached(key, flag);
        }
    }

    /// Sends a reply.
    pub(crate) fn answer(&mut self, session: u64, to: ReplyTo, result: Result<Reply, Fault>) {
        let Some((tenant, port)) = self.tenants.get_mut(&session) else { return };
        match result {
            Ok(reply) => port.reply(to, &reply),
            Err(fault) => {
                tenant.faults += 1;
                self.faults_total += 1;
                port.reply(to, &fault.into());
            }
        }
    }
}

impl From<Fault> for Reply {
    fn from(fault: Fault) -> Self {
        Reply::error(fault.status, fault.text)
    }
}

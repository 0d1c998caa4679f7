//! What the records of events do. An event is its session's own, or one that processes share ([`crate::shared_events`]).

use acl_abi::values as acl;
use sched::dispatch::EventStatus;
use sched::{EventKey, Item, Nanos, StreamKey};
use wire::{Reply, ReplyTo};

use crate::core::Core;
use crate::fault::Fault;
use crate::items::Purpose;
use crate::share_records;
use crate::shared_events::{SharedEvents, key_of};
use crate::shares::{Key, fresh_key};
use crate::tenant::{Event, Tenant};

/// A recording whose process ended first.
fn lost(what: &str, event: u32) -> Fault {
    let text = format!("{what}: the process that recorded event {event} ended before its stream got there");
    Fault::new(acl::ACL_ERROR_RT_IPC_ERROR, text)
}

/// The error that who waited for an event is told: of the stream that it was recorded in.
pub(crate) fn event_fault(tenant: &mut Tenant, all: &SharedEvents, session: u64, event: u32) -> Option<Fault> {
    let known = tenant.events.get(&event)?;
    let stream = match known.shared {
        Some(number) if all.is_lost(number) => return Some(lost("aclrtSynchronizeEvent", event)),
        Some(number) => all.stream_in(number, session),
        None => known.stream,
    };
    tenant.take_stream_fault(stream?)
}

impl Core {
    /// What the dispatcher calls an event of the session.
    fn event_key(&self, session: u64, event: u32) -> Option<EventKey> {
        let (tenant, _) = self.tenants.get(&session)?;
        let shared = tenant.events.get(&event)?.shared;
        Some(shared.map_or(EventKey { session, event }, key_of))
    }

    fn event_status(&self, what: &str, session: u64, event: u32) -> Result<EventStatus, Fault> {
        let key = self.event_key(session, event).ok_or_else(|| Fault::no_event(what, event))?;
        if self.is_lost_event(session, event) {
            return Err(lost(what, event));
        }
        Ok(self.dispatcher.event_status(key))
    }

    fn is_lost_event(&self, session: u64, event: u32) -> bool {
        let shared = self.tenants.get(&session).and_then(|(t, _)| t.events.get(&event)?.shared);
        shared.is_some_and(|number| self.shared_events.is_lost(number))
    }

    /// Room for one more event of the session under this number.
    fn room_for_event(&mut self, what: &str, session: u64, event: u32) -> Result<(), Fault> {
        let limit = self.limits.events_max;
        let (tenant, _) = self.tenant(session);
        if tenant.events.contains_key(&event) {
            return Err(Fault::param(format!("{what}: event {event} exists already")));
        }
        if tenant.events.len() >= limit {
            return Err(Fault::over_limit(acl::ACL_ERROR_RT_NO_EVENT_RESOURCE, what, limit));
        }
        Ok(())
    }

    pub(crate) fn event_create(&mut self, session: u64, event: u32, flags: u32) {
        if let Err(fault) = self.room_for_event("aclrtCreateEvent", session, event) {
            return self.fail(session, None, None, fault);
        }
        let for_others = flags & acl::ACL_EVENT_IPC as u32 != 0;
        let shared = for_others.then(|| self.shared_events.create(self.asker(session)));
        self.tenant(session).0.events.insert(event, Event { shared, ..Event::default() });
    }

    pub(crate) fn event_destroy(&mut self, session: u64, event: u32) {
        let (tenant, _) = self.tenant(session);
        match tenant.events.remove(&event).map(|e| e.shared) {
            None => tenant.defer(None, Fault::no_event("aclrtDestroyEvent", event)),
            Some(None) => self.dispatcher.destroy_event(EventKey { session, event }),
            Some(Some(number)) => self.let_event_go(session, number),
        }
    }

    fn let_event_go(&mut self, session: u64, number: u32) {
        if self.shared_events.let_go(session, number) {
            self.dispatcher.destroy_event(key_of(number));
        }
    }

    /// The session has ended, and the dispatcher has forgotten its streams.
    pub(crate) fn shared_events_end(&mut self, session: u64, own: impl Iterator<Item = u32>) {
        let Self { dispatcher, shared_events, .. } = self;
        let deceived = shared_events.recorder_ended(session, |key| {
            let status = dispatcher.event_status(key);
            status.complete && status.time.is_none()
        });
        for (waiter, stream) in deceived {
            if let Some((tenant, _)) = self.tenants.get_mut(&waiter) {
                self.faults_total += 1;
                let text =
                    "aclrtStreamWaitEvent: the process that recorded the event ended before its stream got there";
                tenant.defer(Some(stream), Fault::new(acl::ACL_ERROR_RT_IPC_ERROR, text));
            }
        }
        own.for_each(|number| self.let_event_go(session, number));
    }

    pub(crate) fn event_item(
        &mut self,
        session: u64,
        stream: u32,
        event: u32,
        what: &str,
        item: impl Fn(EventKey) -> Item,
    ) {
        let Some(key) = self.event_key(session, event) else {
            return self.fail(session, Some(stream), None, Fault::no_event(what, event));
        };
        let pending = self.dispatcher.event_status(key).is_pending();
        let (tenant, _) = self.tenants.get_mut(&session).expect("checked on entry of `record`");
        let Some(state) = tenant.streams.get_mut(&stream) else {
            return self.fail(session, None, None, Fault::no_stream(what, stream));
        };
        let Some(known) = tenant.events.get_mut(&event) else { return };
        state.dirty = true;
        let item = item(key);
        let shared = known.shared;
        match item {
            Item::RecordEvent(_) => {
                known.stream = Some(stream);
                self.steps.boundary(session, stream, state);
            }
            Item::ResetEvent(_) => known.stream = None,
            _ => {}
        }
        if let Err(refused) = self.dispatcher.push(self.time, StreamKey { session, stream }, item) {
            let fault = Fault::new(acl::ACL_ERROR_RT_STREAM_TASK_FULL, format!("{what}: {refused}"));
            return self.fail(session, Some(stream), None, fault);
        }
        match (shared, item) {
            (Some(number), Item::RecordEvent(_)) => self.shared_events.recorded(number, session, stream),
            (Some(number), Item::WaitEvent(_)) if !self.shared_events.waits(number, session, stream, pending) => {
                self.fail(session, Some(stream), None, lost(what, event));
            }
            _ => {}
        }
    }

    pub(crate) fn event_sync(&mut self, session: u64, event: u32, reply: ReplyTo) {
        const WHAT: &str = "aclrtSynchronizeEvent";
        let Some(key) = self.event_key(session, event) else {
            return self.answer(session, reply, Err(Fault::no_event(WHAT, event)));
        };
        let token = self.items.insert(session, Purpose::EventSync(event), |e| e.reply = Some(reply));
        self.count_item(session);
        self.dispatcher.notify_event(self.time, key, token);
    }

    pub(crate) fn event_query(&mut self, session: u64, event: u32) -> Result<Reply, Fault> {
        let status = self.event_status("aclrtQueryEventStatus", session, event)?;
        let payload = [status.complete.into(), status.is_pending().into(), 0, 0];
        Ok(Reply { payload, ..Reply::ok() })
    }

    pub(crate) fn elapsed(&mut self, session: u64, start: u32, end: u32) -> Result<Reply, Fault> {
        const WHAT: &str = "aclrtEventElapsedTime";
        let mut times = [0; 2];
        for (time, event) in times.iter_mut().zip([start, end]) {
            *time = self.event_time(WHAT, session, event)?;
        }
        let [start, end] = times;
        let Some(ns) = end.checked_sub(start) else {
            let text = format!("{WHAT}: the end was recorded {} ns before the start", start - end);
            return Err(Fault::new(acl::ACL_ERROR_RT_EVENT_TIMESTAMP_REVERSAL, text));
        };
        Ok(Reply::value(u64::from(((ns as f64 / 1e6) as f32).to_bits())))
    }

    /// When the event's last record completed.
    pub(crate) fn event_time(&mut self, what: &str, session: u64, event: u32) -> Result<Nanos, Fault> {
        let status = self.event_status(what, session, event)?;
        match (status.recorded, status.time) {
            (_, Some(time)) if status.complete => Ok(time),
            (true, _) => {
                let text = format!("{what}: event {event} is not complete; synchronise it first");
                Err(Fault::new(acl::ACL_ERROR_RT_EVENT_NOT_COMPLETE, text))
            }
            (false, _) => {
                let text = format!("{what}: event {event} was not recorded");
                Err(Fault::new(acl::ACL_ERROR_RT_EVENT_TIMESTAMP_INVALID, text))
            }
        }
    }

    pub(crate) fn event_export(&mut self, session: u64, event: u32) -> Result<Reply, Fault> {
        const WHAT: &str = "aclrtIpcGetEventHandle";
        let known = self.tenant(session).0.events.get(&event).ok_or_else(|| Fault::no_event(WHAT, event))?;
        let private = || Fault::param(format!("{WHAT}: event {event} was not created with ACL_EVENT_IPC"));
        let number = known.shared.ok_or_else(private)?;
        let key = self.shared_events.export(session, number, || fresh_key(4));
        let key = key.map_err(|e| share_records::fault(WHAT, &e))?;
        Ok(Reply { payload: key, ..Reply::ok() })
    }

    pub(crate) fn event_import(&mut self, session: u64, event: u32, key: Key) -> Result<Reply, Fault> {
        const WHAT: &str = "aclrtIpcOpenEventHandle";
        self.room_for_event(WHAT, session, event)?;
        let asker = self.asker(session);
        let number = self.shared_events.import(asker, key).map_err(|e| share_records::fault(WHAT, &e))?;
        self.tenant(session).0.events.insert(event, Event { shared: Some(number), ..Event::default() });
        Ok(Reply::ok())
    }
}

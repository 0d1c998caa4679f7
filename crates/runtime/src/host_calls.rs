//! Streams that call the host, and flags that the host sets.
//!
//! A stream that gets to a [`wire::Record::HostCall`] tells its client the call's number through the one long call that the
//! client keeps open for this ([`wire::Record::HostWait`]), and waits, if it shall, for the flag of that number. The client
//! runs the callback in a thread of its own and releases the flag. The daemon waits for nobody: a client that never answers
//! has a stream that stands still, and nothing else.

use std::collections::VecDeque;

use acl_abi::values as acl;
use sched::{FlagKey, Item, StreamKey};
use wire::{Reply, ReplyTo};

use crate::core::Core;
use crate::fault::Fault;
use crate::items::Purpose;
use crate::port::Port;

/// Calls told in one answer: what a reply's payload has room for.
const CALLS_PER_REPLY: usize = 3;

/// Calls of one session that streams have got to. Bounded by the session's items.
#[derive(Debug, Default)]
pub struct HostCalls {
    reached: VecDeque<u32>,
    /// The client's open call.
    waiting: Option<ReplyTo>,
}

impl HostCalls {
    /// A stream has got to a call.
    pub fn reached(&mut self, call: u32, port: &Port) {
        self.reached.push_back(call);
        self.tell(port);
    }

    /// The client wants to know.
    fn wait(&mut self, reply: ReplyTo, port: &Port) {
        if let Some(earlier) = self.waiting.replace(reply) {
            port.tell(earlier, &Reply::ok());
        }
        self.tell(port);
    }

    fn tell(&mut self, port: &Port) {
        if self.reached.is_empty() {
            return;
        }
        let Some(reply) = self.waiting.take() else { return };
        let count = self.reached.len().min(CALLS_PER_REPLY);
        let mut payload = [count as u64, 0, 0, 0];
        for (word, call) in payload[1..].iter_mut().zip(self.reached.drain(..count)) {
            *word = u64::from(call);
        }
        port.tell(reply, &Reply { payload, ..Reply::ok() });
    }
}

impl Core {
    pub(crate) fn host_call(&mut self, session: u64, stream: u32, call: u32, block: bool) {
        const WHAT: &str = "aclrtLaunchCallback";
        if !self.tenant(session).0.streams.contains_key(&stream) {
            return self.fail(session, None, None, Fault::no_stream(WHAT, stream));
        }
        let token = self.items.insert(session, Purpose::HostCall(call), |_| {});
        self.count_item(session);
        let key = StreamKey { session, stream };
        if let Err(refused) = self.dispatcher.push(self.time, key, Item::Notify { token }) {
            return self.take_back(session, Some(stream), token, refused.to_string());
        }
        if block {
            self.flag_item(session, stream, call, WHAT, Item::AwaitFlag);
        } else if let Some(state) = self.tenant(session).0.streams.get_mut(&stream) {
            state.dirty = true;
        }
    }

    pub(crate) fn host_wait(&mut self, session: u64, reply: ReplyTo) {
        let (tenant, port) = self.tenant(session);
        tenant.host_calls.wait(reply, port);
    }

    pub(crate) fn flag_item(
        &mut self,
        session: u64,
        stream: u32,
        flag: u32,
        what: &str,
        item: impl Fn(FlagKey) -> Item,
    ) {
        let Some(state) = self.tenant(session).0.streams.get_mut(&stream) else {
            return self.fail(session, None, None, Fault::no_stream(what, stream));
        };
        state.dirty = true;
        let item = item(FlagKey { session, flag });
        if let Err(refused) = self.dispatcher.push(self.time, StreamKey { session, stream }, item) {
            let fault = Fault::new(acl::ACL_ERROR_RT_STREAM_TASK_FULL, format!("{what}: {refused}"));
            self.fail(session, Some(stream), None, fault);
        }
    }
}

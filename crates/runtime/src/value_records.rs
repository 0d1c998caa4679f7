//! What the records of single words of memory do: written in stream order, waited for in stream order.

use acl_abi::values as acl;
use device::{Command, Completion, Compute, HostBytes};
use sched::{FlagKey, Item, StreamKey};
use wire::ValueCondition;

use crate::core::{Core, give_back};
use crate::fault::Fault;
use crate::items::Purpose;
use crate::records::{Transfer, WORD_BYTES};
use crate::translate;
use crate::values::{Wait, WaitKey};

/// Words that a session writes on a device without memory.
pub const WORDS_MAX: usize = 65_536;

const WAIT: &str = "aclrtValueWait";

impl Core {
    fn computes(&self) -> bool {
        self.device.info().compute == Compute::Functional
    }

    /// What to remember of a transfer once it is complete: a device that computes nothing has no memory that a wait could look
    /// at, so the words that were written for that are kept here.
    pub(crate) fn word_written(&self, transfer: &Transfer<'_>) -> Option<(u64, u64)> {
        match *transfer {
            Transfer::Word { addr, value } if !self.computes() => Some((addr, value)),
            _ => None,
        }
    }

    pub(crate) fn value_wait(&mut self, session: u64, stream: u32, addr: u64, value: u64, until: ValueCondition) {
        let (tenant, _) = self.tenant(session);
        if !tenant.streams.contains_key(&stream) {
            return self.fail(session, None, None, Fault::no_stream(WAIT, stream));
        }
        let mut pins = Vec::new();
        let physical = match translate::operand(WAIT, "devAddr", addr, WORD_BYTES, &mut tenant.space, &mut pins) {
            Ok(physical) => device::PhysAddr(physical),
            Err(fault) => return self.fail(session, Some(stream), None, fault),
        };
        let flag = tenant.next_value_flag;
        tenant.next_value_flag -= 1;
        self.values.insert((session, flag), Wait { stream, addr, physical, value, until, pins });
        let token = self.items.insert(session, Purpose::ValueReached(flag), |_| {});
        self.count_item(session);
        if let Err(refused) = self.dispatcher.push(self.time, StreamKey { session, stream }, Item::Notify { token }) {
            self.end_wait((session, flag), None);
            return self.take_back(session, Some(stream), token, refused.to_string());
        }
        self.flag_item(session, stream, flag, WAIT, Item::AwaitFlag);
    }

    /// Looks at what streams wait for; true if one of them goes on.
    pub(crate) fn look_at_values(&mut self) -> bool {
        let mut released = false;
        while let Some((key, wait)) = self.values.next_due() {
            let (physical, addr) = (wait.physical, wait.addr);
            let (session, flag) = key;
            if !self.computes() {
                let word = self.tenants.get(&session).and_then(|(t, _)| t.words.get(&addr)).copied();
                released |= self.end_wait(key, Some(word.unwrap_or(0)));
                continue;
            }
            let Some((tenant, _)) = self.tenants.get(&session) else { continue };
            let internal = tenant.internal_physical;
            let dst = HostBytes::owned(vec![0; WORD_BYTES as usize]);
            let command = self.pool.copy(Command::CopyOut { dst, src: physical });
            let token = self.items.insert(session, Purpose::ValueLook(flag), |entry| {
                entry.command = Some(command);
                entry.physical = internal;
            });
            self.looks += 1;
            self.submit(token);
        }
        released
    }

    /// Takes the end of a look; gives any other completion back.
    pub(crate) fn unless_a_look(&mut self, completion: Completion) -> Option<Completion> {
        if self.looks == 0 {
            return Some(completion);
        }
        let looked = self.items.get_mut(completion.token).and_then(|e| match e.purpose {
            Purpose::ValueLook(flag) => Some((e.session, flag)),
            _ => None,
        });
        let Some((session, flag)) = looked else { return Some(completion) };
        let Completion { token, result, cmd, .. } = completion;
        self.in_flight -= 1;
        self.looks -= 1;
        self.meter_device();
        if let Some((phase, physical)) = self.items.finish(token, |entry| (entry.phase, entry.physical)) {
            self.occupancy.ends(self.time, phase);
            self.meter.ends(physical);
        }
        if let Some((tenant, _)) = self.tenants.get_mut(&session) {
            tenant.in_flight -= 1;
        }
        let memory = match &*cmd {
            Command::CopyOut { dst, .. } => dst.as_owned().and_then(|b| b.try_into().ok()).map(u64::from_le_bytes),
            _ => None,
        };
        self.pool.recycle(cmd);
        self.end_wait((session, flag), memory.filter(|_| result.is_ok()));
        None
    }

    /// Ends a wait if `memory` is as asked for, or cannot be known; true if it is over.
    fn end_wait(&mut self, key: WaitKey, memory: Option<u64>) -> bool {
        let Some(Wait { stream, mut pins, .. }) = self.values.found(key, memory) else { return false };
        let (session, flag) = key;
        let Self { tenants, device, shares, .. } = self;
        if let Some((tenant, _)) = tenants.get_mut(&session) {
            translate::unpin(&mut tenant.space, &mut pins, |r| give_back(&mut **device, shares, session, r));
        }
        if memory.is_none() {
            let text = format!("{WAIT}: the memory cannot be looked at");
            self.fail(session, Some(stream), None, Fault::new(acl::ACL_ERROR_RT_INTERNAL_ERROR, text));
        }
        self.dispatcher.release_flag(self.time, FlagKey { session, flag });
        true
    }

    /// A word was written on a device without memory.
    pub(crate) fn remember_word(&mut self, session: u64, stream: Option<u32>, (addr, value): (u64, u64)) {
        let Some((tenant, _)) = self.tenants.get_mut(&session) else { return };
        if tenant.words.len() >= WORDS_MAX && !tenant.words.contains_key(&addr) {
            let fault = Fault::over_limit(acl::ACL_ERROR_RT_RESOURCE_ALLOC_FAIL, "aclrtValueWrite", WORDS_MAX);
            return self.fail(session, stream, None, fault);
        }
        tenant.words.insert(addr, value);
    }
}

//! What the records of communicators do, and how their exchanges run on the device.
//!
//! An exchange stands in its stream as a wait for a value does: a notice when the stream gets there, then a flag that is
//! released when it is over. What moves its bytes is submitted to the device beside the streams, as synchronous copies are, on a
//! physical stream of the communicator's own. While a peer is at an exchange and this device is not, the stream that leads there
//! is pressed: no policy holds it back ([`sched::Dispatcher::press`]).

use std::time::Duration;

use acl_abi::values as acl;
use crossbeam_channel::{Receiver, Sender, unbounded};
use device::{Combine, Command, Completion, Compute, HostBytes, PhysAddr};
use sched::{FlagKey, Item, Label, Nanos, StreamKey, Work};
use session::peers::{Member, Peers};
use wire::{Exchange, RANKS_MAX, Reply, ReplyTo};

use crate::comm::{COMMS_MAX, Comm, CommKey, Move, Op, Over, Part, Reduction, Todo};
use crate::core::{Core, give_back};
use crate::fault::Fault;
use crate::items::Purpose;
use crate::port;
use crate::translate;

/// What a broken communicator's exchanges fail with.
const BROKEN: i32 = acl::ACL_ERROR_RT_SUSPECT_REMOTE_ERROR;
const WHAT: &str = "HcclCommInitRootInfo";

/// Ranks that are on their way into a communicator.
#[derive(Debug)]
pub struct Joins {
    come: Receiver<Joined>,
    told: Sender<Joined>,
    waiting: usize,
}

type Joined = (CommKey, ReplyTo, Nanos, Result<Member, String>);

impl Default for Joins {
    fn default() -> Self {
        let (told, come) = unbounded();
        Self { come, told, waiting: 0 }
    }
}

fn broken(why: String) -> Fault {
    Fault::new(BROKEN, format!("collective communication: {why}"))
}

impl Core {
    /// Lets the sessions of this device make communicators with those of other daemons.
    pub fn set_peers(&mut self, peers: Peers) {
        self.peers = Some(peers);
    }

    pub(crate) fn comm_root(&mut self) -> Result<Reply, Fault> {
        let key = match &self.peers {
            Some(peers) => peers.root().map_err(|e| {
                Fault::new(acl::ACL_ERROR_RT_INTERNAL_ERROR, format!("HcclGetRootInfo: no key can be made: {e}"))
            })?,
            // A communicator of one rank needs no key.
            None => [0; 4],
        };
        Ok(Reply { payload: key, ..Reply::ok() })
    }

    pub(crate) fn comm_init(
        &mut self,
        key: CommKey,
        (rank, ranks): (u32, u32),
        root: [u64; 4],
        (timeout_s, exec_timeout_s): (u32, u32),
        reply: ReplyTo,
    ) {
        let session = key.0;
        let own = self.comms.keys().filter(|(of, _)| *of == session).count();
        let fault = if ranks as usize > RANKS_MAX || rank >= ranks {
            Some(Fault::param(format!("{WHAT}: rank {rank} of {ranks}; at most {RANKS_MAX} ranks are allowed")))
        } else if self.comms.contains_key(&key) {
            Some(Fault::param(format!("{WHAT}: communicator {} exists already", key.1)))
        } else if own + self.joins.waiting >= COMMS_MAX {
            Some(Fault::over_limit(acl::ACL_ERROR_RT_RESOURCE_ALLOC_FAIL, WHAT, COMMS_MAX))
        } else {
            None
        };
        if let Some(fault) = fault {
            return self.answer(session, reply, Err(fault));
        }
        let Some(peers) = &self.peers else {
            let text = format!(
                "{WHAT}: ranks meet through daemons, and this device is hosted in the process itself; run the ranks with \
                 `vnpu run --socket …`, each device with a vnpu-daemon of its own"
            );
            return self.answer(session, reply, Err(Fault::new(acl::ACL_ERROR_RT_FEATURE_NOT_SUPPORT, text)));
        };
        let told = self.joins.told.clone();
        let patience = Nanos::from(exec_timeout_s) * 1_000_000_000;
        let done = move |result| drop(told.send((key, reply, patience, result)));
        peers.join(root, (rank as usize, ranks as usize), Duration::from_secs(timeout_s.into()), done);
        self.joins.waiting += 1;
    }

    /// Takes ranks in that have come.
    fn take_joined(&mut self) {
        while let Ok((key, reply, patience, result)) = self.joins.come.try_recv() {
            self.joins.waiting -= 1;
            if !self.tenants.contains_key(&key.0) {
                // The session ended meanwhile, and with the member the others learn that.
                continue;
            }
            let result = match result {
                Ok(member) => {
                    self.enter_comm(key.0, key.1, member, patience);
                    Ok(Reply::ok())
                }
                Err(why) => Err(Fault::new(acl::ACL_ERROR_RT_LINK_ERROR, format!("{WHAT}: {why}"))),
            };
            self.answer(key.0, reply, result);
        }
    }

    /// `member` becomes communicator number `comm` of the session, whose exchanges stand still for at most `patience` nanoseconds
    /// (0: for ever).
    pub fn enter_comm(&mut self, session: u64, comm: u32, member: Member, patience: Nanos) {
        let physical = self.new_physical();
        let mut entered = Comm::new(member, physical);
        entered.set_patience(patience);
        self.comms.insert((session, comm), entered);
    }

    /// When a rank's patience ends next.
    pub(crate) fn comm_deadline(&self) -> Option<Nanos> {
        self.comms.values().filter_map(Comm::deadline).min()
    }

    pub(crate) fn comm_destroy(&mut self, key: CommKey) {
        if let Some(comm) = self.comms.get_mut(&key) {
            comm.end();
        }
    }

    pub(crate) fn comm_status(&self, key: CommKey) -> Result<Reply, Fault> {
        match self.comms.get(&key).map(Comm::fault) {
            Some(None) => Ok(Reply::value(1)),
            Some(Some(why)) => Err(broken(why)),
            None => Err(broken("the communicator was destroyed".to_owned())),
        }
    }

    /// Queues an exchange, its addresses the client's.
    pub(crate) fn exchange(&mut self, session: u64, stream: u32, comm: u32, exchange: &Exchange) {
        let (tenant, _) = self.tenant(session);
        let Some(phase) = tenant.streams.get(&stream).map(|s| s.classifier.current()) else {
            return self.fail(session, None, None, Fault::no_stream("a collective", stream));
        };
        let mut pins = Vec::new();
        let mut place = |parameter, addr, len| {
            translate::operand("a collective", parameter, addr, len, &mut tenant.space, &mut pins).map(PhysAddr)
        };
        let mut parts = |parameter, parts: &[wire::exchange::Part]| {
            let part = |p: &wire::exchange::Part| -> Result<Part, Fault> {
                Ok(Part::new(usize::from(p.peer), place(parameter, p.addr, p.len)?, p.len))
            };
            parts.iter().map(part).collect::<Result<Vec<_>, Fault>>()
        };
        let addresses = parts("sendBuf", &exchange.sends).and_then(|s| Ok((s, parts("recvBuf", &exchange.receives)?)));
        let own_len = exchange.receives.first().map_or(0, |p| p.len);
        let reduction = exchange.combine.map(|c| -> Result<Reduction, Fault> {
            let own = place("sendBuf", c.own, own_len)?;
            Ok(Reduction { element: c.element, fold: c.fold, own })
        });
        let (sends, receives, reduction) = match (addresses, reduction.transpose()) {
            (Ok((sends, receives)), Ok(reduction)) => (sends, receives, reduction),
            (Err(fault), _) | (_, Err(fault)) => {
                self.unpin(session, &mut pins);
                return self.fail(session, Some(stream), None, fault);
            }
        };
        let flag = tenant.next_value_flag;
        tenant.next_value_flag -= 1;
        let op = Op::new((stream, flag), phase, pins, exchange.tag, reduction, sends, receives);
        let unknown = |op| (op, "there is no such communicator".to_owned());
        let pushed = match self.comms.get_mut(&(session, comm)) {
            Some(comm) => comm.push(op),
            None => Err(unknown(op)),
        };
        if let Err((mut op, why)) = pushed {
            self.unpin(session, &mut op.pins);
            return self.fail(session, Some(stream), None, broken(why));
        }
        let token = self.items.insert(session, Purpose::ExchangeReached { comm, flag }, |_| {});
        self.count_item(session);
        if let Err(refused) = self.dispatcher.push(self.time, StreamKey { session, stream }, Item::Notify { token }) {
            if let Some(comm) = self.comms.get_mut(&(session, comm)) {
                comm.break_off("the stream of an exchange is full".to_owned());
            }
            return self.take_back(session, Some(stream), token, refused.to_string());
        }
        self.flag_item(session, stream, flag, "a collective", Item::AwaitFlag);
    }

    fn unpin(&mut self, session: u64, pins: &mut Vec<crate::memory::BlockId>) {
        let Self { tenants, device, shares, .. } = self;
        if let Some((tenant, _)) = tenants.get_mut(&session) {
            translate::unpin(&mut tenant.space, pins, |r| give_back(&mut **device, shares, session, r));
        }
    }

    /// A stream has got to its exchange.
    pub(crate) fn exchange_reached(&mut self, key: CommKey, flag: u32) {
        let released = self.comms.get_mut(&key).and_then(|comm| comm.reached(flag));
        if let Some(stream) = released {
            self.dispatcher.press(self.time, StreamKey { session: key.0, stream }, false);
        }
    }

    /// A rank has come, or cannot.
    pub(crate) fn peers_moved(&self) -> bool {
        self.joins.waiting > 0 && !self.joins.come.is_empty()
    }

    /// True while exchanges of the session write memory beside its streams.
    pub(crate) fn is_exchanging(&self, session: u64) -> bool {
        self.comms.iter().any(|(&(of, _), comm)| of == session && comm.is_busy())
    }

    /// Lets communicators go on as far as their peers are; true if a stream goes on, and whether the device was given anything.
    pub(crate) fn look_at_comms(&mut self) -> (bool, bool) {
        if self.joins.waiting > 0 {
            self.take_joined();
        }
        if self.comms.is_empty() {
            return (false, false);
        }
        let busy: Vec<CommKey> = self.comms.iter().filter(|(_, c)| c.is_busy()).map(|(&key, _)| key).collect();
        let (mut released, mut submitted) = (false, false);
        for key in busy {
            submitted |= self.move_on(key);
            let now = self.time;
            if let Some(comm) = self.comms.get_mut(&key)
                && let Some(why) = comm.late(now)
            {
                comm.break_off(why);
            }
            while let Some(Over { mut op, fault }) = self.comms.get_mut(&key).and_then(Comm::over) {
                self.unpin(key.0, &mut op.pins);
                if let Some(why) = fault {
                    self.fail(key.0, Some(op.stream), None, broken(why));
                }
                self.dispatcher.press(self.time, StreamKey { session: key.0, stream: op.stream }, false);
                self.dispatcher.release_flag(self.time, FlagKey { session: key.0, flag: op.flag });
                released = true;
                submitted |= self.move_on(key);
            }
            if self.comms.get(&key).is_some_and(Comm::is_at_end)
                && let Some(comm) = self.comms.remove(&key)
            {
                comm.leave();
            }
        }
        (released, submitted)
    }

    /// Presses what peers wait for and gives the device what it can do; true if it was given anything.
    fn move_on(&mut self, key: CommKey) -> bool {
        let mut submitted = false;
        while let Some(comm) = self.comms.get_mut(&key) {
            while let Some(stream) = comm.awaited() {
                self.dispatcher.press(self.time, StreamKey { session: key.0, stream }, true);
            }
            match comm.next() {
                Ok(Some(todo)) => self.give_to_device(key, &todo),
                Ok(None) => break,
                Err(why) => {
                    comm.break_off(why);
                    break;
                }
            }
            submitted = true;
        }
        submitted
    }

    fn give_to_device(&mut self, key: CommKey, todo: &Todo) {
        let computes = self.device.info().compute == Compute::Functional;
        let Some(comm) = self.comms.get(&key) else { return };
        let (Some(op), Some(member)) = (comm.front(), comm.member()) else { return };
        let len = todo.what.bytes();
        let slot = |(from, to, chunk): (usize, usize, u64)| match computes {
            true => port::slot(member.segment(), (from, to, chunk), len as usize),
            // Nothing is computed, so nothing need be touched.
            false => HostBytes::owned(Vec::new()),
        };
        let at = |base: PhysAddr| PhysAddr(base.0 + todo.offset);
        let (command, work) = match todo.what {
            Move::Send { part, .. } => {
                let src = at(op.sends[usize::from(part)].physical);
                (Command::CopyOut { dst: slot(todo.slots[0]), src }, Work::link(len, todo.opens))
            }
            Move::Receive { part, .. } => {
                let dst = at(op.receives[usize::from(part)].physical);
                (Command::CopyIn { dst, source: slot(todo.slots[0]) }, Work::fill(len))
            }
            Move::Reduce { .. } => {
                let Some(Reduction { element, fold, own }) = op.reduced() else { return };
                let others = todo.slots.iter().map(|&s| slot(s)).collect();
                let (dst, place) = (at(op.receives[0].physical), op.place(comm.rank()));
                let combine = Combine { dst, own: at(own), place, others, len, element, fold };
                let pieces = todo.slots.len() as u64 + 1;
                let work = Work::combine(pieces, len, len / u64::from(element.bits() / 8));
                (Command::Combine(Box::new(combine)), work)
            }
        };
        let (physical, phase) = (comm.physical, op.phase);
        let solo = self.profile.solo(&work);
        let command = self.pool.copy(command);
        let purpose = Purpose::ExchangeMove { comm: key.1, what: todo.what };
        let token = self.items.insert(key.0, purpose, |entry| {
            entry.command = Some(command);
            (entry.physical, entry.work, entry.phase, entry.solo) = (physical, work, phase, solo);
            entry.label = Label::COLLECTIVE;
        });
        self.moves += 1;
        self.submit(token);
    }

    /// Takes the end of what an exchange moved; gives any other completion back.
    pub(crate) fn unless_a_move(&mut self, completion: Completion) -> Option<Completion> {
        if self.moves == 0 {
            return Some(completion);
        }
        let moved = self.items.get_mut(completion.token).and_then(|e| match e.purpose {
            Purpose::ExchangeMove { comm, what } => Some(((e.session, comm), what)),
            _ => None,
        });
        let Some((key, what)) = moved else { return Some(completion) };
        let Completion { token, at, result, cmd, .. } = completion;
        self.in_flight -= 1;
        self.moves -= 1;
        self.meter_device();
        self.pool.recycle(cmd);
        let entry = self.items.finish(token, |e| (e.phase, e.solo, e.label, e.submitted, e.physical, e.work));
        if let Some((phase, solo, label, submitted, physical, work)) = entry {
            self.occupancy.ends(self.time, phase);
            self.meter.ends(physical);
            let began = submitted.unwrap_or(at).min(at);
            let session = key.0;
            self.dispatcher.note_aside(|| sched::dispatch::Aside { session, label, phase, solo, began, ended: at });
            self.phases[phase.index()].add(solo, at - began);
            if let Some((tenant, _)) = self.tenants.get_mut(&key.0) {
                tenant.in_flight -= 1;
                tenant.phases[phase.index()].add(solo, at - began);
                if let Some(usage) = self.accounts.usage(tenant.account) {
                    crate::usage::book_bytes(usage, label, &work);
                }
            }
        }
        if let Some(comm) = self.comms.get_mut(&key) {
            comm.moved(what, result.map_err(|e| e.text));
        }
        None
    }

    /// The session has ended, and its ranks with it.
    pub(crate) fn forget_comms(&mut self, session: u64) {
        self.comms.retain(|&(of, _), _| of != session);
    }
}

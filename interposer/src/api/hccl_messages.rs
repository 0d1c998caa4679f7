//! HCCL's messages from one rank to another, alone and in groups.

use std::cell::RefCell;
use std::sync::Arc;

use acl_abi::values as acl;
use wire::Exchange;
use wire::exchange::Part;

use super::hccl::{Run, bytes, element, hccl};
use crate::abi::{In, Opaque};
use crate::collective::{Call, Piece, tag};
use crate::error::Failure;

/// `HcclSendRecvItem`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct SendRecvItem {
    kind: i32,
    buf: Opaque,
    count: u64,
    element: i32,
    remote: u32,
}

/// Messages of a thread between `HcclGroupStart` and `HcclGroupEnd`: they begin together, so that ranks which send to each other
/// first do not wait for each other.
#[derive(Default)]
struct Group {
    depth: usize,
    /// By communicator and stream, in the order in which they came up.
    runs: Vec<(Run, Exchange)>,
}

thread_local! {
    static GROUP: RefCell<Group> = RefCell::default();
}

/// Elements for another rank, which receives them.
#[unsafe(no_mangle)]
pub extern "C" fn HcclSend(
    sendBuf: Opaque,
    count: u64,
    dataType: i32,
    destRank: u32,
    comm: Opaque,
    stream: Opaque,
) -> i32 {
    let item = SendRecvItem { kind: acl::HCCL_SEND, buf: sendBuf, count, element: dataType, remote: destRank };
    hccl("HcclSend", || messages(&Run::new(comm, stream)?, &[item]))
}

/// Elements from another rank, which sends them.
#[unsafe(no_mangle)]
pub extern "C" fn HcclRecv(
    recvBuf: Opaque,
    count: u64,
    dataType: i32,
    srcRank: u32,
    comm: Opaque,
    stream: Opaque,
) -> i32 {
    let item = SendRecvItem { kind: acl::HCCL_RECV, buf: recvBuf, count, element: dataType, remote: srcRank };
    hccl("HcclRecv", || messages(&Run::new(comm, stream)?, &[item]))
}

/// Several messages at once, to and from several ranks.
#[unsafe(no_mangle)]
pub extern "C" fn HcclBatchSendRecv(sendRecvInfo: In<SendRecvItem>, itemNum: u32, comm: Opaque, stream: Opaque) -> i32 {
    hccl("HcclBatchSendRecv", || {
        let run = Run::new(comm, stream)?;
        let max = wire::EXCHANGE_PARTS_MAX;
        if itemNum as usize > max {
            return Err(Failure::invalid(format!("parameter itemNum: {itemNum}, at most {max} are allowed")));
        }
        let mut items = Vec::new();
        sendRecvInfo.append_to("sendRecvInfo", itemNum as usize, &mut items)?;
        messages(&run, &items)
    })
}

fn messages(run: &Run, items: &[SendRecvItem]) -> Result<(), Failure> {
    // A sender's type may differ from its receiver's as long as the bytes are as many.
    let tag = tag(Call::Message, 0, None, 0);
    let mut exchange = Exchange { tag, combine: None, sends: Vec::new(), receives: Vec::new() };
    for item in items {
        let remote = run.rank("remoteRank", item.remote)?;
        if remote == run.comm.place.rank {
            return Err(Failure::invalid(format!("parameter remoteRank: {remote} is this rank itself")));
        }
        let len = bytes(item.count, element(item.element)?.1)?;
        if len == 0 {
            continue;
        }
        let Piece { addr, len } = run.piece("buf", item.buf, 0, len)?;
        let part = Part { peer: remote as u16, addr, len };
        match item.kind {
            acl::HCCL_SEND => exchange.sends.push(part),
            acl::HCCL_RECV => exchange.receives.push(part),
            other => return Err(Failure::invalid(format!("parameter sendRecvType: {other} is no HcclSendRecvType"))),
        }
    }
    GROUP.with_borrow_mut(|group| {
        if group.depth == 0 {
            return run.exchange(&exchange);
        }
        let same =
            |(other, _): &&mut (Run, Exchange)| Arc::ptr_eq(&other.comm, &run.comm) && other.stream.id == run.stream.id;
        match group.runs.iter_mut().find(same) {
            Some((_, so_far)) => {
                so_far.sends.append(&mut exchange.sends);
                so_far.receives.append(&mut exchange.receives);
            }
            None => group.runs.push((run.clone(), exchange)),
        }
        Ok(())
    })
}

/// Messages of this thread begin with [`HcclGroupEnd`], together. Collectives do not wait for it.
#[unsafe(no_mangle)]
pub extern "C" fn HcclGroupStart() -> i32 {
    hccl("HcclGroupStart", || {
        GROUP.with_borrow_mut(|group| group.depth += 1);
        Ok(())
    })
}

/// See [`HcclGroupStart`].
#[unsafe(no_mangle)]
pub extern "C" fn HcclGroupEnd() -> i32 {
    hccl("HcclGroupEnd", || {
        let runs = GROUP.with_borrow_mut(|group| {
            group.depth =
                group.depth.checked_sub(1).ok_or_else(|| Failure::invalid("HcclGroupStart was not called"))?;
            Ok::<_, Failure>(if group.depth == 0 { std::mem::take(&mut group.runs) } else { Vec::new() })
        })?;
        runs.iter().try_for_each(|(run, exchange)| run.exchange(exchange))
    })
}

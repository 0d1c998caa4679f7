//! HCCL's collectives: what each rank moves and combines is worked out by [`crate::collective`].

use acl_abi::{DataType, Fold, values as acl};

use super::hccl::{Run, bytes, element, hccl, reduction};
use crate::abi::{In, Opaque};
use crate::collective::{Call, Piece, Place, tag};
use crate::error::Failure;
use crate::handle::lock;

/// Memory that barriers exchange.
const BARRIER_BYTES: u64 = 4;

/// Everyone gets the sum (or product, largest, smallest) of everyone's elements.
#[unsafe(no_mangle)]
pub extern "C" fn HcclAllReduce(
    sendBuf: Opaque,
    recvBuf: Opaque,
    count: u64,
    dataType: i32,
    op: i32,
    comm: Opaque,
    stream: Opaque,
) -> i32 {
    hccl("HcclAllReduce", || {
        let run = Run::new(comm, stream)?;
        let (how, each) = reduction(dataType, op)?;
        let len = bytes(count, each)?;
        let (send, recv) = (run.memory("sendBuf", sendBuf, len)?, run.memory("recvBuf", recvBuf, len)?);
        run.post(&run.comm.place.all_reduce(tag(Call::AllReduce, dataType, Some(how.1), 0), how, send, recv, len))
    })
}

/// The root gets the sum of everyone's elements.
#[unsafe(no_mangle)]
pub extern "C" fn HcclReduce(
    sendBuf: Opaque,
    recvBuf: Opaque,
    count: u64,
    dataType: i32,
    op: i32,
    root: u32,
    comm: Opaque,
    stream: Opaque,
) -> i32 {
    hccl("HcclReduce", || {
        let run = Run::new(comm, stream)?;
        let (how, each) = reduction(dataType, op)?;
        let (len, root) = (bytes(count, each)?, run.rank("root", root)?);
        let send = run.memory("sendBuf", sendBuf, len)?;
        let wanted = if run.comm.place.rank == root { len } else { 0 };
        let recv = run.memory("recvBuf", recvBuf, wanted)?;
        run.post(&run.comm.place.reduce(tag(Call::Reduce, dataType, Some(how.1), root), how, root, send, recv, len))
    })
}

/// Everyone gets the root's elements.
#[unsafe(no_mangle)]
pub extern "C" fn HcclBroadcast(
    buf: Opaque,
    count: u64,
    dataType: i32,
    root: u32,
    comm: Opaque,
    stream: Opaque,
) -> i32 {
    hccl("HcclBroadcast", || {
        let run = Run::new(comm, stream)?;
        let (len, root) = (bytes(count, element(dataType)?.1)?, run.rank("root", root)?);
        let buf = run.memory("buf", buf, len)?;
        run.post(&run.comm.place.broadcast(tag(Call::Broadcast, dataType, None, root), root, buf, len))
    })
}

/// Each rank gets its piece of the root's elements.
#[unsafe(no_mangle)]
pub extern "C" fn HcclScatter(
    sendBuf: Opaque,
    recvBuf: Opaque,
    recvCount: u64,
    dataType: i32,
    root: u32,
    comm: Opaque,
    stream: Opaque,
) -> i32 {
    hccl("HcclScatter", || {
        let run = Run::new(comm, stream)?;
        let (len, root) = (bytes(recvCount, element(dataType)?.1)?, run.rank("root", root)?);
        let place = run.comm.place;
        let wanted = if place.rank == root { bytes(len, u64::from(place.ranks))? } else { 0 };
        let (send, recv) = (run.memory("sendBuf", sendBuf, wanted)?, run.memory("recvBuf", recvBuf, len)?);
        run.post(&place.scatter(tag(Call::Scatter, dataType, None, root), root, send, recv, len))
    })
}

/// Everyone gets everyone's elements, in order of rank.
#[unsafe(no_mangle)]
pub extern "C" fn HcclAllGather(
    sendBuf: Opaque,
    recvBuf: Opaque,
    sendCount: u64,
    dataType: i32,
    comm: Opaque,
    stream: Opaque,
) -> i32 {
    hccl("HcclAllGather", || {
        let run = Run::new(comm, stream)?;
        let (len, place) = (bytes(sendCount, element(dataType)?.1)?, run.comm.place);
        let recv = run.memory("recvBuf", recvBuf, bytes(len, u64::from(place.ranks))?)?;
        let send = run.piece("sendBuf", sendBuf, 0, len)?;
        run.post(&place.all_gather(tag(Call::AllGather, dataType, None, 0), send, &place.pieces(recv, len)))
    })
}

/// As [`HcclAllGather`], with as many elements of each rank, at the places, that the caller says.
#[unsafe(no_mangle)]
pub extern "C" fn HcclAllGatherV(
    sendBuf: Opaque,
    sendCount: u64,
    recvBuf: Opaque,
    recvCounts: In<u64>,
    recvDispls: In<u64>,
    dataType: i32,
    comm: Opaque,
    stream: Opaque,
) -> i32 {
    hccl("HcclAllGatherV", || {
        let run = Run::new(comm, stream)?;
        let (_, each) = element(dataType)?;
        let receives = run.pieces(("recvBuf", recvBuf), &recvCounts, &recvDispls, each)?;
        let send = run.piece("sendBuf", sendBuf, 0, bytes(sendCount, each)?)?;
        let own = receives[run.comm.place.rank as usize].len;
        if own != send.len {
            let text = format!("parameter sendCount: {} bytes, recvCounts has {own} for this rank", send.len);
            return Err(Failure::invalid(text));
        }
        run.post(&run.comm.place.all_gather(tag(Call::AllGather, dataType, None, 0), send, &receives))
    })
}

/// Each rank gets the sum of everyone's piece for it.
#[unsafe(no_mangle)]
pub extern "C" fn HcclReduceScatter(
    sendBuf: Opaque,
    recvBuf: Opaque,
    recvCount: u64,
    dataType: i32,
    op: i32,
    comm: Opaque,
    stream: Opaque,
) -> i32 {
    hccl("HcclReduceScatter", || {
        let run = Run::new(comm, stream)?;
        let (how, each) = reduction(dataType, op)?;
        let (len, place) = (bytes(recvCount, each)?, run.comm.place);
        let send = run.memory("sendBuf", sendBuf, bytes(len, u64::from(place.ranks))?)?;
        let recv = run.memory("recvBuf", recvBuf, len)?;
        let tag = tag(Call::ReduceScatter, dataType, Some(how.1), 0);
        run.post(&place.reduce_pieces(tag, how, &place.pieces(send, len), recv, len))
    })
}

/// As [`HcclReduceScatter`], with as many elements for each rank, from the places, that the caller says.
#[unsafe(no_mangle)]
pub extern "C" fn HcclReduceScatterV(
    sendBuf: Opaque,
    sendCounts: In<u64>,
    sendDispls: In<u64>,
    recvBuf: Opaque,
    recvCount: u64,
    dataType: i32,
    op: i32,
    comm: Opaque,
    stream: Opaque,
) -> i32 {
    hccl("HcclReduceScatterV", || {
        let run = Run::new(comm, stream)?;
        let (how, each) = reduction(dataType, op)?;
        let pieces = run.pieces(("sendBuf", sendBuf), &sendCounts, &sendDispls, each)?;
        let len = bytes(recvCount, each)?;
        let own = pieces[run.comm.place.rank as usize].len;
        if own != len {
            let text = format!("parameter recvCount: {len} bytes, sendCounts has {own} for this rank");
            return Err(Failure::invalid(text));
        }
        let recv = run.memory("recvBuf", recvBuf, len)?;
        let tag = tag(Call::ReduceScatter, dataType, Some(how.1), 0);
        run.post(&run.comm.place.reduce_pieces(tag, how, &pieces, recv, len))
    })
}

/// Each rank gets its piece of everyone's elements; pieces are equally long.
#[unsafe(no_mangle)]
pub extern "C" fn HcclAlltoAll(
    sendBuf: Opaque,
    sendCount: u64,
    sendType: i32,
    recvBuf: Opaque,
    recvCount: u64,
    recvType: i32,
    comm: Opaque,
    stream: Opaque,
) -> i32 {
    hccl("HcclAlltoAll", || {
        let run = Run::new(comm, stream)?;
        let (send, recv) = (bytes(sendCount, element(sendType)?.1)?, bytes(recvCount, element(recvType)?.1)?);
        if send != recv {
            return Err(Failure::invalid(format!("parameter recvCount: {recv} bytes a rank, {send} are sent")));
        }
        let place = run.comm.place;
        let total = bytes(send, u64::from(place.ranks))?;
        let (from, to) = (run.memory("sendBuf", sendBuf, total)?, run.memory("recvBuf", recvBuf, total)?);
        let tag = tag(Call::AllToAll, sendType, None, 0);
        run.post(&place.all_to_all(tag, &place.pieces(from, send), &place.pieces(to, send)))
    })
}

/// As [`HcclAlltoAll`], with as many elements, from and to the places, that the caller says.
#[unsafe(no_mangle)]
pub extern "C" fn HcclAlltoAllV(
    sendBuf: Opaque,
    sendCounts: In<u64>,
    sdispls: In<u64>,
    sendType: i32,
    recvBuf: Opaque,
    recvCounts: In<u64>,
    rdispls: In<u64>,
    recvType: i32,
    comm: Opaque,
    stream: Opaque,
) -> i32 {
    hccl("HcclAlltoAllV", || {
        let run = Run::new(comm, stream)?;
        let sends = run.pieces(("sendBuf", sendBuf), &sendCounts, &sdispls, element(sendType)?.1)?;
        let receives = run.pieces(("recvBuf", recvBuf), &recvCounts, &rdispls, element(recvType)?.1)?;
        all_to_all(&run, sendType, &sends, &receives)
    })
}

/// As [`HcclAlltoAllV`], by the matrix of all counts (from the row's rank to the column's), pieces one behind the other.
#[unsafe(no_mangle)]
pub extern "C" fn HcclAlltoAllVC(
    sendBuf: Opaque,
    sendCountMatrix: In<u64>,
    sendType: i32,
    recvBuf: Opaque,
    recvType: i32,
    comm: Opaque,
    stream: Opaque,
) -> i32 {
    hccl("HcclAlltoAllVC", || {
        let run = Run::new(comm, stream)?;
        let Place { rank, ranks } = run.comm.place;
        let (rank, ranks) = (rank as usize, ranks as usize);
        let mut counts = Vec::new();
        sendCountMatrix.append_to("sendCountMatrix", ranks * ranks, &mut counts)?;
        let behind = |parameter, at, each: u64, counts: &mut dyn Iterator<Item = u64>| {
            let mut offset = 0;
            let mut pieces = Vec::new();
            for count in counts {
                let len = bytes(count, each)?;
                pieces.push(run.piece(parameter, at, offset, len)?);
                offset = bytes(offset + len, 1)?;
            }
            Ok(pieces)
        };
        let sends =
            behind("sendBuf", sendBuf, element(sendType)?.1, &mut (0..ranks).map(|r| counts[rank * ranks + r]))?;
        let receives =
            behind("recvBuf", recvBuf, element(recvType)?.1, &mut (0..ranks).map(|r| counts[r * ranks + rank]))?;
        all_to_all(&run, sendType, &sends, &receives)
    })
}

fn all_to_all(run: &Run, dtype: i32, sends: &[Piece], receives: &[Piece]) -> Result<(), Failure> {
    let rank = run.comm.place.rank as usize;
    let (own, back) = (sends[rank].len, receives[rank].len);
    if own != back {
        return Err(Failure::invalid(format!(
            "parameter recvCounts: {back} bytes from this rank itself, {own} are sent"
        )));
    }
    run.post(&run.comm.place.all_to_all(tag(Call::AllToAll, dtype, None, 0), sends, receives))
}

/// The stream goes on when every rank's has got here.
#[unsafe(no_mangle)]
pub extern "C" fn HcclBarrier(comm: Opaque, stream: Opaque) -> i32 {
    hccl("HcclBarrier", || {
        let run = Run::new(comm, stream)?;
        let place = run.comm.place;
        if place.ranks == 1 {
            return Ok(());
        }
        let mut held = lock(&run.comm.barrier);
        let memory = match *held {
            Some(addr) => addr,
            None => *held.insert(run.comm.link.malloc(BARRIER_BYTES)?),
        };
        drop(held);
        let element = acl::HCCL_DATA_TYPE_INT32;
        let tag = tag(Call::AllReduce, element, Some(Fold::Max), 0);
        run.post(&place.all_reduce(tag, (DataType::I32, Fold::Max), memory, memory, BARRIER_BYTES))
    })
}

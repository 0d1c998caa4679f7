//! HCCL: communicators and collectives. `HcclResult` in place of `aclError`; the text is `aclGetRecentErrMsg`'s.
//!
//! A communicator is made by the daemons ([`wire::Record::CommInit`]); what a collective does is worked out here
//! ([`crate::collective`]) and posted to the stream like an operator. What goes wrong later is the stream's error, and
//! `HcclGetCommAsyncError` tells that the communicator is broken.

use std::cell::RefCell;
use std::ffi::c_char;
use std::sync::{Arc, Mutex};

use acl_abi::{DataType, Fold, values as acl};
use wire::exchange::Part;
use wire::{Exchange, RANKS_MAX, Record};

use crate::abi::{In, Opaque, Out};
use crate::collective::{Call, Piece, Place, Plan, tag};
use crate::entry::status;
use crate::error::Failure;
use crate::handle::lock;
use crate::link::Link;
use crate::process::process;
use crate::stream::Stream;

/// What a root info begins with; the key follows.
const MAGIC: [u8; 8] = *b"FlexHccl";
const ROOT_INFO_BYTES: usize = acl::HCCL_ROOT_INFO_BYTES as usize;
const ROOT_INFO_USED: usize = 40;
/// Where `HcclCommConfig` has the communicator's name, and what it begins with.
const CONFIG_NAME: usize = 32;
const CONFIG_USED: usize = CONFIG_NAME + NAME_BYTES;
const CONFIG_MAGIC: u32 = 0xf0f0_f0f0;
const NAME_BYTES: usize = acl::COMM_NAME_MAX_LENGTH as usize;
/// How long ranks wait for each other, seconds: HCCL's own default, and its variable.
const CONNECT_TIMEOUT_S: u32 = 120;
const CONNECT_TIMEOUT: &str = "HCCL_CONNECT_TIMEOUT";
/// Memory that barriers exchange.
const BARRIER_BYTES: u64 = 4;

/// A communicator.
pub struct Comm {
    link: Arc<Link>,
    id: u32,
    place: Place,
    name: String,
    /// Memory for barriers, once there was one.
    barrier: Mutex<Option<u64>>,
}

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

/// The funnel, with HCCL's codes.
fn hccl(function: &'static str, body: impl FnOnce() -> Result<(), Failure>) -> i32 {
    match status(function, body) {
        0 => acl::HCCL_SUCCESS,
        acl::ACL_ERROR_RT_PARAM_INVALID | acl::ACL_ERROR_RT_INVALID_HANDLE | acl::ACL_ERROR_RT_INVALID_DEVICEID => {
            acl::HCCL_E_PARA
        }
        acl::ACL_ERROR_RT_FEATURE_NOT_SUPPORT => acl::HCCL_E_NOT_SUPPORT,
        acl::ACL_ERROR_RT_MEMORY_ALLOCATION | acl::ACL_ERROR_RT_RESOURCE_ALLOC_FAIL => acl::HCCL_E_MEMORY,
        acl::ACL_ERROR_RT_SUSPECT_REMOTE_ERROR => acl::HCCL_E_REMOTE,
        acl::ACL_ERROR_RT_LINK_ERROR => acl::HCCL_E_TCP_CONNECT,
        acl::ACL_ERROR_INTERNAL_ERROR => acl::HCCL_E_INTERNAL,
        _ => acl::HCCL_E_RUNTIME,
    }
}

fn comm_of(handle: Opaque) -> Result<Arc<Comm>, Failure> {
    let comm = process().comms.with(handle, "comm", |c| c.clone())?;
    comm.ok_or_else(|| Failure::new(acl::ACL_ERROR_RT_INVALID_HANDLE, "parameter comm: being destroyed"))
}

/// `HcclDataType`, with the bytes of one element; `None` for a type that can be moved and not reduced.
fn element(number: i32) -> Result<(Option<DataType>, u64), Failure> {
    use DataType as D;
    let known = match number {
        acl::HCCL_DATA_TYPE_INT8 => D::I8,
        acl::HCCL_DATA_TYPE_INT16 => D::I16,
        acl::HCCL_DATA_TYPE_INT32 => D::I32,
        acl::HCCL_DATA_TYPE_FP16 => D::F16,
        acl::HCCL_DATA_TYPE_FP32 => D::F32,
        acl::HCCL_DATA_TYPE_INT64 => D::I64,
        acl::HCCL_DATA_TYPE_UINT64 => D::U64,
        acl::HCCL_DATA_TYPE_UINT8 => D::U8,
        acl::HCCL_DATA_TYPE_UINT16 => D::U16,
        acl::HCCL_DATA_TYPE_UINT32 => D::U32,
        acl::HCCL_DATA_TYPE_FP64 => D::F64,
        acl::HCCL_DATA_TYPE_BFP16 => D::BF16,
        acl::HCCL_DATA_TYPE_INT128 => return Ok((None, 16)),
        other => return Err(Failure::unsupported(format!("parameter dataType: {other} is no type of this device"))),
    };
    Ok((Some(known), u64::from(known.bits() / 8)))
}

fn bytes(count: u64, each: u64) -> Result<u64, Failure> {
    let len = count.checked_mul(each).filter(|&len| len <= i64::MAX.cast_unsigned());
    len.ok_or_else(|| Failure::invalid(format!("{count} elements of {each} bytes are more than any memory")))
}

fn reduction(dtype: i32, op: i32) -> Result<((DataType, Fold), u64), Failure> {
    let (element, each) = element(dtype)?;
    let fold = Fold::of(op).ok_or_else(|| Failure::invalid(format!("parameter op: {op} is no HcclReduceOp")))?;
    let unsupported = || Failure::unsupported(format!("parameter dataType: type {dtype} is not reduced"));
    Ok(((element.ok_or_else(unsupported)?, fold), each))
}

/// One call on one rank.
#[derive(Clone)]
struct Run {
    comm: Arc<Comm>,
    stream: Stream,
}

impl Run {
    fn new(comm: Opaque, stream: Opaque) -> Result<Self, Failure> {
        let (comm, stream) = (comm_of(comm)?, process().stream(stream)?);
        if !Arc::ptr_eq(&comm.link, &stream.link) {
            let (of, on) = (stream.link.device, comm.link.device);
            return Err(Failure::invalid(format!(
                "parameter stream: it is of device {of}, the communicator of device {on}"
            )));
        }
        Ok(Self { comm, stream })
    }

    fn rank(&self, parameter: &str, rank: u32) -> Result<u32, Failure> {
        let Place { ranks, .. } = self.comm.place;
        if rank < ranks {
            return Ok(rank);
        }
        Err(Failure::invalid(format!("parameter {parameter}: rank {rank} of {ranks}")))
    }

    /// Memory of the communicator's device.
    fn memory(&self, parameter: &str, at: Opaque, len: u64) -> Result<u64, Failure> {
        self.piece(parameter, at, 0, len).map(|piece| piece.addr)
    }

    /// A piece of `len` bytes, `offset` behind `at`.
    fn piece(&self, parameter: &str, at: Opaque, offset: u64, len: u64) -> Result<Piece, Failure> {
        let addr = (at.addr() as u64).checked_add(offset);
        let addr =
            addr.ok_or_else(|| Failure::invalid(format!("parameter {parameter}: an offset of {offset} bytes")))?;
        if len > 0 {
            if at.is_null() {
                return Err(Failure::null(parameter));
            }
            self.comm.link.check_range(parameter, addr, len)?;
        }
        Ok(Piece { addr, len })
    }

    /// A piece a rank: counts and displacements in elements of `each` bytes, on the host.
    fn pieces(
        &self,
        (parameter, at): (&str, Opaque),
        counts: &In<u64>,
        displacements: &In<u64>,
        each: u64,
    ) -> Result<Vec<Piece>, Failure> {
        let ranks = self.comm.place.ranks as usize;
        let (mut lens, mut offsets) = (Vec::new(), Vec::new());
        counts.append_to("counts", ranks, &mut lens)?;
        displacements.append_to("displs", ranks, &mut offsets)?;
        let piece = |(&len, &offset)| self.piece(parameter, at, bytes(offset, each)?, bytes(len, each)?);
        lens.iter().zip(&offsets).map(piece).collect()
    }

    fn post(&self, plan: &Plan) -> Result<(), Failure> {
        let id = self.stream.id;
        for &(dst, src, len) in &plan.copies {
            self.stream.post(&Record::CopyDevice { dst, src, len, stream: Some(id), reply: None })?;
        }
        self.exchange(&plan.exchange)
    }

    fn exchange(&self, exchange: &Exchange) -> Result<(), Failure> {
        if exchange.sends.is_empty() && exchange.receives.is_empty() {
            return Ok(());
        }
        let mut body = Vec::new();
        exchange.encode(&mut body).map_err(|e| Failure::invalid(e.to_string()))?;
        self.stream.post(&Record::Exchange { stream: self.stream.id, comm: self.comm.id, body: &body })
    }
}

fn timeout_s() -> u32 {
    let asked = std::env::var(CONNECT_TIMEOUT).ok().and_then(|v| v.parse().ok());
    asked.unwrap_or(CONNECT_TIMEOUT_S).clamp(1, 86_400)
}

fn name_of(key: [u64; 4]) -> String {
    format!("flexnpu-{:016x}{:016x}", key[1], key[2])
}

/// Joins a communicator as one rank.
fn join(link: Arc<Link>, place: Place, key: [u64; 4], name: String) -> Result<Comm, Failure> {
    let id = link.next_comm()?;
    let Place { rank, ranks } = place;
    // A rank alone has nobody to meet.
    if ranks > 1 {
        let timeout_s = timeout_s();
        link.call(|reply| Record::CommInit { comm: id, rank, ranks, timeout_s, key, reply })?;
    }
    Ok(Comm { link, id, place, name, barrier: Mutex::default() })
}

fn hand_out(comm: Comm, out: Out<Opaque>) -> Result<(), Failure> {
    let handle = process().comms.insert(|slot| {
        *slot = Some(Arc::new(comm));
        Ok(())
    })?;
    out.set("comm", handle)
}

fn init(
    ranks: u32,
    root: &In<[u8; ROOT_INFO_USED]>,
    rank: u32,
    name: Option<String>,
    out: Out<Opaque>,
) -> Result<(), Failure> {
    out.check("comm")?;
    if rank >= ranks || ranks as usize > RANKS_MAX {
        return Err(Failure::invalid(format!(
            "parameter rank: {rank} of {ranks}; at most {RANKS_MAX} ranks are allowed"
        )));
    }
    let root = root.get("rootInfo")?;
    let (magic, key) = root.split_at(MAGIC.len());
    if magic != MAGIC {
        return Err(Failure::invalid("parameter rootInfo: it is not from HcclGetRootInfo of this library"));
    }
    let mut words = key.chunks_exact(8).filter_map(|c| c.try_into().ok()).map(u64::from_le_bytes);
    let key: [u64; 4] = std::array::from_fn(|_| words.next().unwrap_or(0));
    let comm = join(process().current_link()?, Place { rank, ranks }, key, name.unwrap_or_else(|| name_of(key)))?;
    hand_out(comm, out)
}

/// What the ranks of a new communicator meet by.
#[unsafe(no_mangle)]
pub extern "C" fn HcclGetRootInfo(rootInfo: Out<[u8; ROOT_INFO_BYTES]>) -> i32 {
    hccl("HcclGetRootInfo", || {
        rootInfo.check("rootInfo")?;
        let key = process().current_link()?.call(|reply| Record::CommRoot { reply })?;
        let mut info = [0; ROOT_INFO_BYTES];
        info[..MAGIC.len()].copy_from_slice(&MAGIC);
        for (place, word) in info[MAGIC.len()..ROOT_INFO_USED].chunks_exact_mut(8).zip(key) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        rootInfo.set("rootInfo", info)
    })
}

/// Joins a communicator; returns when all ranks have.
#[unsafe(no_mangle)]
pub extern "C" fn HcclCommInitRootInfo(
    nRanks: u32,
    rootInfo: In<[u8; ROOT_INFO_USED]>,
    rank: u32,
    comm: Out<Opaque>,
) -> i32 {
    hccl("HcclCommInitRootInfo", || init(nRanks, &rootInfo, rank, None, comm))
}

/// As [`HcclCommInitRootInfo`]. Of the configuration the name is used; buffer sizes and algorithms are the daemon's, and every
/// result is deterministic.
#[unsafe(no_mangle)]
pub extern "C" fn HcclCommInitRootInfoConfig(
    nRanks: u32,
    rootInfo: In<[u8; ROOT_INFO_USED]>,
    rank: u32,
    config: In<u8>,
    comm: Out<Opaque>,
) -> i32 {
    hccl("HcclCommInitRootInfoConfig", || {
        let mut bytes = Vec::new();
        config.append_to("config", CONFIG_NAME, &mut bytes)?;
        let word = |at: usize| bytes[at..at + 4].try_into().map_or(0, u32::from_le_bytes);
        if word(8) != CONFIG_MAGIC {
            return Err(Failure::invalid("parameter config: it was not made by HcclCommConfigInit"));
        }
        // The first word is how much of the structure the caller knows.
        if word(0) as usize >= CONFIG_USED {
            bytes.clear();
            config.append_to("config", CONFIG_USED, &mut bytes)?;
        }
        let name = bytes[CONFIG_NAME..].split(|&b| b == 0).next().filter(|n| !n.is_empty());
        init(nRanks, &rootInfo, rank, name.map(|n| String::from_utf8_lossy(n).into_owned()), comm)
    })
}

/// A communicator of this process's own devices, a rank each.
#[unsafe(no_mangle)]
pub extern "C" fn HcclCommInitAll(ndev: u32, devices: In<i32>, comms: Out<Opaque>) -> i32 {
    hccl("HcclCommInitAll", || {
        comms.check("comms")?;
        let mut numbers = Vec::new();
        devices.append_to("devices", ndev as usize, &mut numbers)?;
        let process = process();
        let links = numbers.iter().map(|&d| process.link(process.check_device(i64::from(d))?));
        let links = links.collect::<Result<Vec<_>, _>>()?;
        let first = links.first().ok_or_else(|| Failure::invalid("parameter ndev: no devices"))?;
        let key = first.call(|reply| Record::CommRoot { reply })?;
        // Each call returns when all ranks have come, so each needs a thread.
        let joined: Vec<Result<Comm, Failure>> = std::thread::scope(|scope| {
            let each = |(rank, link): (u32, Arc<Link>)| {
                scope.spawn(move || join(link, Place { rank, ranks: ndev }, key, name_of(key)))
            };
            let threads: Vec<_> = (0..).zip(links.iter().cloned()).map(each).collect();
            let lost = |_| Err(Failure::new(acl::ACL_ERROR_INTERNAL_ERROR, "a thread of the call panicked"));
            threads.into_iter().map(|t| t.join().unwrap_or_else(lost)).collect()
        });
        let joined = joined.into_iter().collect::<Result<Vec<_>, _>>()?;
        for (at, comm) in joined.into_iter().enumerate() {
            hand_out(comm, comms.at(at))?;
        }
        Ok(())
    })
}

/// Ends the communicator once what was issued on it is over; returns at once.
#[unsafe(no_mangle)]
pub extern "C" fn HcclCommDestroy(comm: Opaque) -> i32 {
    hccl("HcclCommDestroy", || {
        let process = process();
        let result = process.comms.remove(comm, "comm", Option::take).and_then(|gone| match gone {
            Some(comm) if comm.place.ranks > 1 => {
                if let Some(addr) = lock(&comm.barrier).take() {
                    comm.link.free(addr)?;
                }
                comm.link.post(&Record::CommDestroy { comm: comm.id })
            }
            _ => Ok(()),
        });
        process.forgive_after_finalise(result)
    })
}

/// Number of ranks.
#[unsafe(no_mangle)]
pub extern "C" fn HcclGetRankSize(comm: Opaque, rankSize: Out<u32>) -> i32 {
    hccl("HcclGetRankSize", || rankSize.set("rankSize", comm_of(comm)?.place.ranks))
}

/// This rank.
#[unsafe(no_mangle)]
pub extern "C" fn HcclGetRankId(comm: Opaque, rank: Out<u32>) -> i32 {
    hccl("HcclGetRankId", || rank.set("rank", comm_of(comm)?.place.rank))
}

/// Name, the same on all ranks; at most 127 bytes.
#[unsafe(no_mangle)]
pub extern "C" fn HcclGetCommName(comm: Opaque, commName: Out<c_char>) -> i32 {
    hccl("HcclGetCommName", || commName.set_text("commName", &comm_of(comm)?.name, NAME_BYTES))
}

/// `HCCL_SUCCESS` while the communicator is whole; `HCCL_E_REMOTE` once a rank is gone or exchanges have failed.
#[unsafe(no_mangle)]
pub extern "C" fn HcclGetCommAsyncError(comm: Opaque, asyncError: Out<i32>) -> i32 {
    hccl("HcclGetCommAsyncError", || {
        asyncError.check("asyncError")?;
        let comm = comm_of(comm)?;
        let whole =
            comm.place.ranks == 1 || comm.link.call(|reply| Record::CommStatus { comm: comm.id, reply }).is_ok();
        asyncError.set("asyncError", if whole { acl::HCCL_SUCCESS } else { acl::HCCL_E_REMOTE })
    })
}

/// Configuration that is understood, up to this number: communicators have names.
#[unsafe(no_mangle)]
pub extern "C" fn HcclGetCommConfigCapability() -> u32 {
    acl::HCCL_COMM_CONFIG_COMM_NAME as u32 + 1
}

/// Results are deterministic whether that is asked for or not.
#[unsafe(no_mangle)]
pub extern "C" fn HcclSetConfig(config: i32, configValue: i32) -> i32 {
    hccl("HcclSetConfig", || {
        let _ = configValue;
        match config {
            acl::HCCL_DETERMINISTIC => Ok(()),
            other => {
                Err(Failure::unsupported(format!("parameter config: {other}, known is {}", acl::HCCL_DETERMINISTIC)))
            }
        }
    })
}

/// What a code means.
#[unsafe(no_mangle)]
pub extern "C" fn HcclGetErrorString(code: i32) -> *const c_char {
    let text = match code {
        acl::HCCL_SUCCESS => c"no error",
        acl::HCCL_E_PARA => c"parameter error",
        acl::HCCL_E_PTR => c"null pointer",
        acl::HCCL_E_MEMORY => c"out of memory or of another resource",
        acl::HCCL_E_INTERNAL => c"internal error",
        acl::HCCL_E_NOT_SUPPORT => c"not supported",
        acl::HCCL_E_TIMEOUT => c"timeout",
        acl::HCCL_E_TCP_CONNECT => c"the ranks did not find each other",
        acl::HCCL_E_RUNTIME => c"an error of the runtime; aclGetRecentErrMsg says which",
        acl::HCCL_E_REMOTE => c"another rank is gone or disagrees",
        _ => c"another error; aclGetRecentErrMsg says which",
    };
    text.as_ptr()
}

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
    hccl("HcclSend", || {
        let run = Run::new(comm, stream)?;
        messages(
            &run,
            &[SendRecvItem { kind: acl::HCCL_SEND, buf: sendBuf, count, element: dataType, remote: destRank }],
        )
    })
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
    hccl("HcclRecv", || {
        let run = Run::new(comm, stream)?;
        messages(
            &run,
            &[SendRecvItem { kind: acl::HCCL_RECV, buf: recvBuf, count, element: dataType, remote: srcRank }],
        )
    })
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

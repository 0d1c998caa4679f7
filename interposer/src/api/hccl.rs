//! HCCL: communicators, and what [`super::hccl_collectives`] and [`super::hccl_messages`] share. `HcclResult` in place of `aclError`; the text is `aclGetRecentErrMsg`'s.
//!
//! A communicator is made by the daemons ([`wire::Record::CommInit`]); what a collective does is worked out here
//! ([`crate::collective`]) and posted to the stream like an operator. What goes wrong later is the stream's error, and
//! `HcclGetCommAsyncError` tells that the communicator is broken.

use std::ffi::c_char;
use std::sync::{Arc, Mutex};

use acl_abi::{DataType, Fold, values as acl};
use wire::{Exchange, RANKS_MAX, Record};

use crate::abi::{In, Opaque, Out};
use crate::collective::{Piece, Place, Plan};
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
/// How long ranks wait for each other to join, seconds: HCCL's variable, its default, and what it allows.
const CONNECT_TIMEOUT: (&str, u32, [u32; 2]) = ("HCCL_CONNECT_TIMEOUT", 120, [1, 86_400]);
/// How long an exchange may stand still, seconds, 0 for ever: likewise.
const EXEC_TIMEOUT: (&str, u32, [u32; 2]) = ("HCCL_EXEC_TIMEOUT", 1836, [0, i32::MAX as u32]);

/// A communicator.
pub struct Comm {
    pub(super) link: Arc<Link>,
    id: u32,
    pub(super) place: Place,
    name: String,
    /// Memory for barriers, once there was one.
    pub(super) barrier: Mutex<Option<u64>>,
}

/// The funnel, with HCCL's codes.
pub(super) fn hccl(function: &'static str, body: impl FnOnce() -> Result<(), Failure>) -> i32 {
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
pub(super) fn element(number: i32) -> Result<(Option<DataType>, u64), Failure> {
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

pub(super) fn bytes(count: u64, each: u64) -> Result<u64, Failure> {
    let len = count.checked_mul(each).filter(|&len| len <= i64::MAX.cast_unsigned());
    len.ok_or_else(|| Failure::invalid(format!("{count} elements of {each} bytes are more than any memory")))
}

pub(super) fn reduction(dtype: i32, op: i32) -> Result<((DataType, Fold), u64), Failure> {
    let (element, each) = element(dtype)?;
    let fold = Fold::of(op).ok_or_else(|| Failure::invalid(format!("parameter op: {op} is no HcclReduceOp")))?;
    let unsupported = || Failure::unsupported(format!("parameter dataType: type {dtype} is not reduced"));
    Ok(((element.ok_or_else(unsupported)?, fold), each))
}

/// One call on one rank.
#[derive(Clone)]
pub(super) struct Run {
    pub(super) comm: Arc<Comm>,
    pub(super) stream: Stream,
}

impl Run {
    pub(super) fn new(comm: Opaque, stream: Opaque) -> Result<Self, Failure> {
        let (comm, stream) = (comm_of(comm)?, process().stream(stream)?);
        if !Arc::ptr_eq(&comm.link, &stream.link) {
            let (of, on) = (stream.link.device, comm.link.device);
            return Err(Failure::invalid(format!(
                "parameter stream: it is of device {of}, the communicator of device {on}"
            )));
        }
        Ok(Self { comm, stream })
    }

    pub(super) fn rank(&self, parameter: &str, rank: u32) -> Result<u32, Failure> {
        let Place { ranks, .. } = self.comm.place;
        if rank < ranks {
            return Ok(rank);
        }
        Err(Failure::invalid(format!("parameter {parameter}: rank {rank} of {ranks}")))
    }

    /// Memory of the communicator's device.
    pub(super) fn memory(&self, parameter: &str, at: Opaque, len: u64) -> Result<u64, Failure> {
        self.piece(parameter, at, 0, len).map(|piece| piece.addr)
    }

    /// A piece of `len` bytes, `offset` behind `at`.
    pub(super) fn piece(&self, parameter: &str, at: Opaque, offset: u64, len: u64) -> Result<Piece, Failure> {
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
    pub(super) fn pieces(
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

    pub(super) fn post(&self, plan: &Plan) -> Result<(), Failure> {
        let id = self.stream.id;
        for &(dst, src, len) in &plan.copies {
            self.stream.post(&Record::CopyDevice { dst, src, len, stream: Some(id), reply: None })?;
        }
        self.exchange(&plan.exchange)
    }

    pub(super) fn exchange(&self, exchange: &Exchange) -> Result<(), Failure> {
        if exchange.sends.is_empty() && exchange.receives.is_empty() {
            return Ok(());
        }
        let mut body = Vec::new();
        exchange.encode(&mut body).map_err(|e| Failure::invalid(e.to_string()))?;
        self.stream.post(&Record::Exchange { stream: self.stream.id, comm: self.comm.id, body: &body })
    }
}

/// Seconds from a variable of the environment.
///
/// # Errors
/// What it says is no number that is allowed.
fn seconds((name, default, [least, most]): (&str, u32, [u32; 2])) -> Result<u32, Failure> {
    let Ok(text) = std::env::var(name) else { return Ok(default) };
    let number = text.trim().parse().ok().filter(|s| (least..=most).contains(s));
    number.ok_or_else(|| Failure::invalid(format!("{name}={text}: want a number of seconds from {least} to {most}")))
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
        let (timeout_s, exec_timeout_s) = (seconds(CONNECT_TIMEOUT)?, seconds(EXEC_TIMEOUT)?);
        link.call(|reply| Record::CommInit { comm: id, rank, ranks, timeout_s, exec_timeout_s, key, reply })?;
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

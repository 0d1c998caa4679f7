//! Generators and checkers, shared by property tests, fuzz targets and the corpus replay.
//!
//! A [`Source`] turns bytes into choices, so one generator serves a property test (random bytes, which shrink) and a
//! fuzzer (bytes that coverage shaped). The `check_*` functions take any bytes and panic where a promise of this crate is
//! broken.

use crate::control::{Answer, Greeting, Hello};
use crate::limits::{
    FLOATS_MAX, INLINE_COPY_BYTES_MAX, INTS_MAX, SCALARS_MAX, TENANT_BYTES_MAX, TENSORS_MAX, TEXT_BYTES_MAX,
};
use crate::ring::{Consumer, Memory, Producer, PushError, words_of};
use crate::{
    ArenaRange, DecodeError, Hint, HostSource, RECORD_BYTES_MAX, Record, ReplyTo, ValueCondition, decode, encode,
};
use acl_abi::{Arg, DataType, Kind, MAX_DIMS, OpCall, OpId, SIGNATURES, Scalar, TensorDesc};
use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

/// Bytes read as choices; zeros when they are used up, so that every input is some value.
#[derive(Clone, Debug)]
pub struct Source<'a> {
    rest: &'a [u8],
    base: u64,
}

impl<'a> Source<'a> {
    /// All of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, base: 0 }
    }

    /// All of `bytes`, for a client whose memory begins at `base`: most addresses lie a little behind it.
    pub fn near(base: u64, bytes: &'a [u8]) -> Self {
        Self { rest: bytes, base }
    }

    /// True when only zeros are left.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Up to `len` bytes.
    pub fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (head, rest) = self.rest.split_at(len.min(self.rest.len()));
        self.rest = rest;
        head
    }

    /// Any value, little endian.
    pub fn u64(&mut self) -> u64 {
        let mut word = [0; 8];
        let bytes = self.bytes(8);
        word[..bytes.len()].copy_from_slice(bytes);
        u64::from_le_bytes(word)
    }

    /// Any value.
    pub fn u32(&mut self) -> u32 {
        let bytes = self.bytes(4);
        bytes.iter().rev().fold(0, |v, &b| v << 8 | u32::from(b))
    }

    /// Any value.
    pub fn u8(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or(0)
    }

    /// A value below `n`, which is not 0; one or two bytes.
    pub fn below(&mut self, n: usize) -> usize {
        let v = if n <= 256 { usize::from(self.u8()) } else { usize::from(self.u8()) << 8 | usize::from(self.u8()) };
        v % n
    }

    /// A coin.
    pub fn bool(&mut self) -> bool {
        self.u8() & 1 == 1
    }

    /// A size or an integer: often small, sometimes at a boundary.
    pub fn integer(&mut self) -> i64 {
        const EDGES: [i64; 8] =
            [i64::MIN, i64::MAX, -1, 1 << 32, u32::MAX as i64, i32::MIN as i64, i8::MAX as i64, 1 << 40];
        match self.u8() {
            v @ 0..=199 => i64::from(v),
            v @ 200..=229 => EDGES[usize::from(v) % EDGES.len()],
            _ => self.u64() as i64,
        }
    }

    /// A device address: often that of a block which the client has, or a little behind its beginning.
    pub fn address(&mut self) -> u64 {
        match self.u8() {
            // Blocks are handed out in order, a page each and one between.
            v @ 0..=127 => self.base.wrapping_add(u64::from(v % 16) * 8192),
            v @ 128..=191 => self.base.wrapping_add(u64::from(v % 16) * 8192 + u64::from(self.u8()) * 32),
            v @ 192..=223 => self.base.wrapping_add(u64::from(v % 8) << 21),
            _ => self.u64(),
        }
    }

    /// A number of bytes: often a page or less, sometimes at a boundary.
    pub fn size(&mut self) -> u64 {
        match self.u8() {
            v @ 0..=159 => u64::from(v) * 64,
            v @ 160..=199 => u64::from(v - 159) << 21,
            _ => self.integer() as u64,
        }
    }

    /// A number by which the client names something: often small.
    fn name(&mut self) -> u32 {
        match self.u8() {
            v @ 0..=219 => u32::from(v % 8),
            _ => self.u32(),
        }
    }

    /// A float that equals itself.
    pub fn float(&mut self) -> f64 {
        const EDGES: [f64; 6] = [0.0, -0.0, f64::INFINITY, f64::NEG_INFINITY, f64::MIN_POSITIVE, 1e-5];
        let v = self.below(256);
        if v < 100 { EDGES[v % EDGES.len()] } else { self.u32() as i32 as f64 / 1024.0 }
    }

    fn dtype(&mut self) -> DataType {
        let start = i32::from(self.u8() & 31);
        (start..64).chain(0..).find_map(DataType::from_abi).unwrap_or(DataType::F32)
    }

    /// A view that the encoder accepts.
    pub fn tensor(&mut self) -> TensorDesc {
        let ndim = self.below(MAX_DIMS + 1);
        let mut dims = [0; MAX_DIMS];
        dims[..ndim].fill_with(|| self.integer().max(0));
        let mut t = TensorDesc::contiguous(self.address(), self.dtype(), &dims[..ndim]);
        let how = self.u8();
        if how & 1 != 0 {
            t.strides[..ndim].fill_with(|| self.integer());
        }
        if how & 2 != 0 {
            t.offset = self.integer();
        }
        if how & 4 != 0 {
            t.format = self.u32() as i32;
        }
        t
    }

    fn scalar(&mut self) -> Scalar {
        Scalar { dtype: self.dtype(), bits: self.u64() }
    }

    fn arg(&mut self, kind: Kind, call: &mut OpCall) {
        let optional = !matches!(
            kind,
            Kind::DType | Kind::Bool | Kind::I8 | Kind::I32 | Kind::I64 | Kind::U64 | Kind::F32 | Kind::F64
        );
        if optional && self.below(4) == 0 {
            call.push(Arg::Absent);
            return;
        }
        match kind {
            Kind::Tensor | Kind::TensorOut => {
                call.push_tensor(Some(self.tensor()));
            }
            Kind::TensorList | Kind::TensorListOut => {
                let list: Vec<_> = (0..self.below(6)).map(|_| self.tensor()).collect();
                call.push_tensor_list(&list);
            }
            Kind::Scalar => {
                call.push(Arg::Scalar(self.scalar()));
            }
            Kind::ScalarList => {
                let (start, len) = (call.scalars.len() as u16, self.below(6) as u16);
                call.scalars.extend((0..len).map(|_| self.scalar()));
                call.push(Arg::ScalarList { start, len });
            }
            Kind::IntArray => {
                let ints: Vec<_> = (0..self.below(9)).map(|_| self.integer()).collect();
                call.push_ints(Some(&ints));
            }
            Kind::BoolArray => {
                let ints: Vec<_> = (0..self.below(9)).map(|_| i64::from(self.bool())).collect();
                call.push_ints(Some(&ints));
            }
            Kind::FloatArray => {
                let (start, len) = (call.floats.len() as u32, self.below(9) as u32);
                call.floats.extend((0..len).map(|_| self.float() as f32));
                call.push(Arg::Floats { start, len });
            }
            Kind::Str => {
                let len = self.below(20);
                call.push_str(self.bytes(len));
            }
            Kind::DType => {
                call.push(Arg::DType(self.u32() as i32));
            }
            Kind::Bool => {
                call.push(Arg::Bool(self.bool()));
            }
            Kind::I8 => {
                call.push(Arg::Int(i64::from(self.u8() as i8)));
            }
            Kind::I32 => {
                call.push(Arg::Int(i64::from(self.u32() as i32)));
            }
            Kind::I64 => {
                call.push(Arg::Int(self.integer()));
            }
            Kind::U64 => {
                call.push(Arg::UInt(self.u64()));
            }
            Kind::F32 | Kind::F64 => {
                call.push(Arg::Float(self.float()));
            }
        }
    }

    /// A valid call of any operator.
    pub fn call(&mut self) -> OpCall {
        let op = OpId(self.below(SIGNATURES.len()) as u16);
        let mut call = OpCall::new(op);
        for param in op.signature().params {
            self.arg(param.kind, &mut call);
        }
        call
    }

    fn reply(&mut self) -> ReplyTo {
        ReplyTo { slot: self.integer() as u16, seq: self.u32() }
    }

    fn range(&mut self) -> ArenaRange {
        let offset = self.size();
        ArenaRange { offset, len: self.size() % (u64::MAX - offset).max(1) }
    }

    fn hint(&mut self) -> Hint {
        let request = self.u64();
        match self.below(6) {
            0 => {
                let len = self.below(TENANT_BYTES_MAX + 1);
                let tenant = self.bytes(len).iter().map(|b| char::from(b & 0x7f)).collect();
                Hint::Admitted {
                    request,
                    prompt_tokens: self.u32(),
                    max_tokens: self.u32(),
                    ttft_deadline_ms: self.u32(),
                    tpot_target_ms: self.u32(),
                    priority: self.u8(),
                    tenant,
                }
            }
            1 => Hint::PrefillStarted { request },
            2 => Hint::FirstToken { request },
            3 => Hint::Progress { request, tokens: self.u32() },
            4 => Hint::Finished { request },
            _ => Hint::Aborted { request },
        }
    }

    fn key(&mut self) -> [u64; 4] {
        std::array::from_fn(|_| self.u64())
    }

    /// A valid record, with its call if it is an operator.
    pub fn record(&mut self) -> (Record<'a>, Option<OpCall>) {
        let kind = self.below(80);
        let (a, b) = (self.name(), self.name());
        let stream = (b & 1 == 1).then_some(a);
        let reply = if b & 2 == 2 { Some(self.reply()) } else { None };
        let record = match kind {
            0 => Record::StreamCreate { stream: a, priority: b, flags: self.u32() },
            1 => Record::StreamDestroy { stream: a },
            2 => Record::StreamSync { stream: a, reply: self.reply() },
            3 => Record::StreamQuery { stream: a, reply: self.reply() },
            4 => Record::DeviceSync { reply: self.reply() },
            5 => Record::EventCreate { event: a, flags: b },
            6 => Record::EventDestroy { event: a },
            7 => Record::EventRecord { event: a, stream: b },
            8 => Record::EventReset { event: a, stream: b },
            9 => Record::StreamWaitEvent { stream: a, event: b },
            10 => Record::EventSync { event: a, reply: self.reply() },
            11 => Record::EventQuery { event: a, reply: self.reply() },
            12 => Record::EventElapsed { start: a, end: b, reply: self.reply() },
            13 => Record::Malloc { size: self.size(), reply: self.reply() },
            14 => Record::Free { addr: self.address(), reply: self.reply() },
            15 => Record::MemInfo { reply: self.reply() },
            16 => {
                let len = self.below(INLINE_COPY_BYTES_MAX + 1);
                Record::CopyIn { dst: self.address(), source: HostSource::Inline(self.bytes(len)), stream, reply }
            }
            17 => {
                let source = HostSource::Staging { block: self.u32(), len: self.u32() };
                Record::CopyIn { dst: self.address(), source, stream, reply }
            }
            18 => Record::CopyIn { dst: self.address(), source: HostSource::Pinned(self.range()), stream, reply },
            19 => Record::CopyOut { dst: self.range(), src: self.address(), stream, reply },
            20 => Record::CopyDevice { dst: self.address(), src: self.address(), len: self.size(), stream, reply },
            21 => Record::Memset { addr: self.address(), len: self.size(), value: self.u8(), stream, reply },
            22 => Record::Hint(self.hint()),
            30 => Record::Reserve { size: self.size(), reply: self.reply() },
            31 => Record::Release { addr: self.address(), reply: self.reply() },
            32 => Record::PhysicalAlloc { size: self.size(), reply: self.reply() },
            33 => Record::PhysicalFree { handle: self.u64(), reply: self.reply() },
            34 => Record::Map {
                addr: self.address(),
                size: self.size(),
                offset: self.size(),
                handle: self.u64(),
                reply: self.reply(),
            },
            35 => Record::Unmap { addr: self.address(), reply: self.reply() },
            36 => {
                let (handle, named_only) = (a & 1 == 1, a & 2 == 2);
                Record::Export { handle, subject: self.u64(), size: self.size(), named_only, reply: self.reply() }
            }
            37 => Record::ExportAllow { key: self.key(), pid: a, reply: self.reply() },
            38 => Record::ExportClose { key: self.key(), reply: self.reply() },
            39 => Record::Import { key: self.key(), handle: a & 1 == 1, reply: self.reply() },
            27 => Record::StreamFetch { stream: a, dst: self.range(), src: self.address(), reply: self.reply() },
            28 => Record::HostCall { stream: a, call: b, block: self.bool() },
            29 => Record::HostWait { reply: self.reply() },
            46 => Record::FlagWait { stream: a, flag: b },
            47 => Record::FlagSet { stream: a, flag: b },
            48 => Record::FlagClear { stream: a, flag: b },
            49 => Record::FlagRelease { flag: a },
            50 => Record::EventTime { event: a, reply: self.reply() },
            51 => Record::GraphBegin { graph: a, stream: b },
            52 => {
                let len = self.below(64);
                Record::GraphNode { graph: a, group: b, node: self.bytes(len) }
            }
            53 => Record::GraphEnd { graph: a, reply: self.reply() },
            54 => Record::GraphLaunch { graph: a, stream: b },
            55 => {
                let (index, len) = (self.u32(), self.below(64));
                Record::GraphUpdate { graph: a, group: b, index, node: self.bytes(len) }
            }
            56 => Record::GraphDestroy { graph: a },
            57 => Record::EventExport { event: a, reply: self.reply() },
            58 => Record::EventImport { event: a, key: self.key(), reply: self.reply() },
            59 => Record::ValueWrite { stream: a, addr: self.address(), value: self.u64() },
            60 => {
                let until = ValueCondition::ALL[self.below(ValueCondition::ALL.len())];
                Record::ValueWait { stream: a, addr: self.address(), value: self.u64(), until }
            }
            61 => Record::HintsRefused { lines: a },
            62 => Record::CommRoot { reply: self.reply() },
            63 => {
                let (ranks, timeout_s, exec_timeout_s) = (self.u32(), self.u32(), self.u32());
                let (key, reply) = (self.key(), self.reply());
                Record::CommInit { comm: a, rank: b, ranks, timeout_s, exec_timeout_s, key, reply }
            }
            64 => Record::CommDestroy { comm: a },
            65 => Record::CommStatus { comm: a, reply: self.reply() },
            66 => {
                let len = self.below(64);
                Record::Exchange { stream: a, comm: b, body: self.bytes(len) }
            }
            23..=26 => return (Record::OpAnswered { stream: a, reply: self.reply() }, Some(self.call())),
            _ => return (Record::Op { stream: a }, Some(self.call())),
        };
        (record, None)
    }
}

/// Runs `check` on every file of a corpus; how many there are.
///
/// # Panics
/// If the directory cannot be read, or a file in it.
pub fn replay(corpus: &Path, check: impl Fn(&[u8])) -> usize {
    let entries = std::fs::read_dir(corpus).unwrap_or_else(|e| panic!("{}: {e}", corpus.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("a directory entry").path()).collect();
    // In the same order everywhere.
    paths.sort();
    for path in &paths {
        println!("{}", path.display());
        check(&std::fs::read(path).expect("a file"));
    }
    paths.len()
}

/// The bytes of the record that `source` makes.
pub fn encoded_record(source: &[u8]) -> Vec<u8> {
    let (record, call) = Source::new(source).record();
    let mut bytes = Vec::new();
    encode(&record, call.as_ref(), &mut bytes).expect("a valid record");
    bytes
}

/// A valid record comes back equal, and its JSON too if it is a hint.
pub fn check_round_trip(source: &[u8]) {
    let (record, call) = Source::new(source).record();
    let mut bytes = Vec::new();
    encode(&record, call.as_ref(), &mut bytes).expect("a valid record");
    assert!(bytes.len() <= RECORD_BYTES_MAX);
    let mut scratch = OpCall::new(OpId(0));
    assert_eq!(decode(&bytes, &mut scratch).as_ref(), Ok(&record));
    if let Some(call) = call {
        assert_eq!(scratch, call);
    }
    if let Record::Hint(hint) = record {
        let line = hint.to_json().expect("a valid hint");
        assert_eq!(Hint::from_json(line.as_bytes()), Ok(hint));
    }
}

/// Any bytes decode or are refused, within the limits; what decodes encodes again, to the same bytes every time.
pub fn check_decode(bytes: &[u8]) {
    let mut call = OpCall::new(OpId(0));
    let result = decode(bytes, &mut call);
    // Growth doubles, so an allocation is at most twice the limit.
    assert!(call.tensors.capacity() <= 2 * TENSORS_MAX && call.scalars.capacity() <= 2 * SCALARS_MAX);
    assert!(call.ints.capacity() <= 2 * INTS_MAX && call.floats.capacity() <= 2 * FLOATS_MAX);
    assert!(call.text.capacity() <= 2 * TEXT_BYTES_MAX);
    let Ok(record) = result else { return };
    let is_op = record.has_call();
    let mut first = Vec::new();
    encode(&record, is_op.then_some(&call), &mut first).expect("what was decoded can be encoded");
    let mut again = OpCall::new(OpId(0));
    let record = decode(&first, &mut again).expect("what was encoded can be decoded");
    let mut second = Vec::new();
    encode(&record, is_op.then_some(&again), &mut second).expect("and encoded again");
    // Bytes and not values: a NaN differs from itself.
    assert_eq!(first, second);
}

/// Any bytes are a handshake message or are refused; a line is a hint or is refused.
pub fn check_control(bytes: &[u8]) {
    if let Ok(Greeting::Hello(hello)) = Hello::decode(bytes) {
        assert_eq!(hello.encode(), bytes);
    }
    if let Ok(answer) = Answer::decode(bytes) {
        assert_eq!(Answer::decode(&answer.encode()), Ok(answer));
    }
    if let Ok(hint) = Hint::from_json(bytes) {
        let line = hint.to_json().expect("what was read can be written");
        assert_eq!(Hint::from_json(line.as_bytes()), Ok::<_, DecodeError>(hint));
    }
}

/// A ring in ordinary memory. Clones share it.
#[derive(Clone, Debug)]
pub struct HeapRing(Arc<[AtomicU64]>);

impl HeapRing {
    /// A ring of `words` words whose positions are both `position`.
    pub fn new(words: usize, position: u64) -> Self {
        let ring = Self((0..words + 3).map(|_| AtomicU64::new(0)).collect());
        ring.head().store(position, Relaxed);
        ring.tail().store(position, Relaxed);
        ring
    }
}

impl Memory for HeapRing {
    type Word = AtomicU64;

    fn head(&self) -> &AtomicU64 {
        &self.0[0]
    }

    fn tail(&self) -> &AtomicU64 {
        &self.0[1]
    }

    fn sleeping(&self) -> &AtomicU64 {
        &self.0[2]
    }

    fn words(&self) -> &[AtomicU64] {
        &self.0[3..]
    }
}

/// Runs a script of pushes and pops against a plain queue; once the script turns hostile and scribbles over the shared
/// words, only that nothing panics and nothing is allocated beyond a record.
pub fn check_ring(script: &[u8]) {
    let mut source = Source::new(script);
    let words = 4usize << source.below(5);
    let position = if source.bool() { u64::MAX - source.u32() as u64 % 64 } else { u64::from(source.u32()) };
    let memory = HeapRing::new(words, position);
    let mut producer = Producer::starting_at(memory.clone(), position);
    let mut consumer = Consumer::starting_at(memory.clone(), position);
    let mut queue: VecDeque<Vec<u8>> = VecDeque::new();
    let mut used = 0;
    let mut hostile = false;
    let mut got = Vec::new();
    while !source.is_empty() {
        match source.u8() {
            0..=119 => {
                let len = source.below(words * 8);
                let fill = source.u8();
                let record: Vec<u8> = (0..len).map(|i| fill.wrapping_add(i as u8)).collect();
                let result = producer.try_push(&record);
                if hostile {
                    continue;
                }
                match result {
                    Ok(()) => {
                        used += words_of(len);
                        queue.push_back(record);
                    }
                    Err(PushError::Full) => assert!(used + words_of(len) > words, "full at {used} of {words}"),
                    Err(PushError::TooLong { .. }) => assert!(words_of(len) > words / 2),
                    Err(e) => panic!("{e}"),
                }
            }
            120..=239 => {
                let result = consumer.pop(&mut got);
                if hostile {
                    assert!(got.capacity() <= 2 * RECORD_BYTES_MAX);
                    continue;
                }
                match queue.pop_front() {
                    Some(record) => {
                        assert_eq!(result, Ok(true));
                        assert_eq!(got, record);
                        used -= words_of(record.len());
                    }
                    None => assert_eq!(result, Ok(false)),
                }
            }
            240..=247 => {
                let drained = producer.is_drained();
                assert!(hostile || drained == queue.is_empty());
            }
            _ => {
                hostile = true;
                let value = if source.bool() { source.u64() } else { u64::from(source.u8()) };
                match source.below(3) {
                    0 => memory.tail().store(value, Relaxed),
                    1 => memory.head().store(value, Relaxed),
                    _ => memory.words()[source.below(words)].store(value, Relaxed),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    #[test]
    fn corpus_replays() {
        let seeds = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds");
        type Check = fn(&[u8]);
        let targets: [(&str, Check); 4] = [
            ("decode", check_decode),
            ("round_trip", check_round_trip),
            ("ring", check_ring),
            ("control", check_control),
        ];
        for (target, check) in targets {
            let count = replay(&seeds.join(target), check);
            assert!(count >= 20, "{target}: {count} seeds");
        }
    }

    #[test]
    fn generator_reaches_every_record_and_a_lot_of_operators() {
        let (mut tags, mut ops) = (std::collections::BTreeSet::new(), std::collections::BTreeSet::new());
        let mut state = 1u64;
        for _ in 0..20_000 {
            let seed: Vec<u8> = (0..64)
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (state >> 56) as u8
                })
                .collect();
            let (_, call) = Source::new(&seed).record();
            tags.insert(encoded_record(&seed)[0]);
            ops.extend(call.map(|c| c.op));
        }
        assert_eq!(tags.len(), 57);
        assert!(ops.len() > SIGNATURES.len() / 2, "{} operators", ops.len());
    }
}

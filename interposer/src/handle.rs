//! Handles: what a client gets in place of a pointer, and the tables behind them.
//!
//! A handle looks like a pointer and is none: a tag, the kind of object, the generation of its slot and the slot's
//! index. Any other value (a null, a pointer of the client's, a handle of another kind, one that was destroyed) is
//! told apart by comparing numbers, so that a client's mistake is an error code and never a read of freed memory. The
//! tag makes handles addresses that no process can map, so that a client which dereferences one faults at once.
//!
//! Slots are kept and reused with their contents (a [`Table`] never shrinks), so that a steady stream of create and
//! destroy allocates nothing. Cost of `insert` or `remove`: two uncontended locks; of `with`: one.

use std::ffi::c_void;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use crate::error::{ACLNN_PARAM_INVALID, ACLNN_PARAM_NULL, Failure};

/// Live objects of one kind, at most. torch_npu keeps tens of thousands of events at worst; everything else is a few.
pub const OBJECTS_MAX: u32 = 1 << INDEX_BITS;
const INDEX_BITS: u32 = 20;
const GENERATION_BITS: u32 = 32;
const KIND_BITS: u32 = 5;
const TAG: u64 = 0x56;
const CHUNK: usize = 1024;

/// What a handle names. The order is part of the handle's bits and of nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// `aclTensor`.
    Tensor = 1,
    /// `aclTensorList`.
    TensorList,
    /// `aclScalar`.
    Scalar,
    /// `aclScalarList`.
    ScalarList,
    /// `aclIntArray`.
    IntArray,
    /// `aclBoolArray`.
    BoolArray,
    /// `aclFloatArray`.
    FloatArray,
    /// `aclOpExecutor`.
    Executor,
    /// `aclrtStream`.
    Stream,
    /// `aclrtEvent`.
    Event,
    /// `aclrtContext`.
    Context,
    /// `aclTensorDesc`.
    TensorDesc,
    /// `aclDataBuffer`.
    DataBuffer,
    /// `aclrtDrvMemHandle`.
    Physical,
    /// `aclmdlRI`.
    Graph,
    /// `aclrtTaskGrp`.
    TaskGroup,
    /// `aclrtBinHandle`.
    Binary,
    /// `HcclComm`.
    Communicator,
}

impl Kind {
    const ALL: [Self; 18] = [
        Self::Tensor,
        Self::TensorList,
        Self::Scalar,
        Self::ScalarList,
        Self::IntArray,
        Self::BoolArray,
        Self::FloatArray,
        Self::Executor,
        Self::Stream,
        Self::Event,
        Self::Context,
        Self::TensorDesc,
        Self::DataBuffer,
        Self::Physical,
        Self::Graph,
        Self::TaskGroup,
        Self::Binary,
        Self::Communicator,
    ];

    /// C type name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tensor => "aclTensor",
            Self::TensorList => "aclTensorList",
            Self::Scalar => "aclScalar",
            Self::ScalarList => "aclScalarList",
            Self::IntArray => "aclIntArray",
            Self::BoolArray => "aclBoolArray",
            Self::FloatArray => "aclFloatArray",
            Self::Executor => "aclOpExecutor",
            Self::Stream => "aclrtStream",
            Self::Event => "aclrtEvent",
            Self::Context => "aclrtContext",
            Self::TensorDesc => "aclTensorDesc",
            Self::DataBuffer => "aclDataBuffer",
            Self::Physical => "aclrtDrvMemHandle",
            Self::Graph => "aclmdlRI",
            Self::TaskGroup => "aclrtTaskGrp",
            Self::Binary => "aclrtBinHandle",
            Self::Communicator => "HcclComm",
        }
    }

    /// Codes of a null and of a wrong handle: the aclnn objects answer with aclnn's, the runtime's with the runtime's.
    const fn codes(self) -> (i32, i32) {
        use acl_abi::values::{ACL_ERROR_INVALID_PARAM, ACL_ERROR_RT_INVALID_HANDLE, ACL_ERROR_RT_PARAM_INVALID};
        match self {
            Self::Stream
            | Self::Event
            | Self::Context
            | Self::Physical
            | Self::Graph
            | Self::TaskGroup
            | Self::Binary
            | Self::Communicator => (ACL_ERROR_RT_PARAM_INVALID, ACL_ERROR_RT_INVALID_HANDLE),
            Self::TensorDesc | Self::DataBuffer => (ACL_ERROR_INVALID_PARAM, ACL_ERROR_INVALID_PARAM),
            _ => (ACLNN_PARAM_NULL, ACLNN_PARAM_INVALID),
        }
    }
}

/// The bits of a handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Parts {
    kind: Kind,
    generation: u32,
    index: u32,
}

impl Parts {
    fn bits(self) -> u64 {
        TAG << (INDEX_BITS + GENERATION_BITS + KIND_BITS)
            | (self.kind as u64) << (INDEX_BITS + GENERATION_BITS)
            | u64::from(self.generation) << INDEX_BITS
            | u64::from(self.index)
    }

    /// `None` for a number that was never a handle.
    fn of(bits: u64) -> Option<Self> {
        if bits >> (INDEX_BITS + GENERATION_BITS + KIND_BITS) != TAG {
            return None;
        }
        let kind = (bits >> (INDEX_BITS + GENERATION_BITS)) & ((1 << KIND_BITS) - 1);
        Some(Self {
            kind: *Kind::ALL.get((kind as usize).checked_sub(1)?)?,
            generation: (bits >> INDEX_BITS) as u32,
            index: (bits & u64::from(OBJECTS_MAX - 1)) as u32,
        })
    }
}

/// One place for an object.
#[derive(Default)]
struct Slot<T> {
    generation: u32,
    live: bool,
    value: T,
}

#[derive(Default)]
struct FreeList {
    indices: Vec<u32>,
    /// Slots from here on were never used.
    untouched: u32,
}

/// Slots made together, when the first of them is needed.
type Chunk<T> = OnceLock<Box<[Mutex<Slot<T>>]>>;

/// The objects of one kind.
pub struct Table<T> {
    kind: Kind,
    /// Generation of a slot's first object: differs between processes, so that a handle from before a fork is not
    /// taken for one of the child's.
    first_generation: u32,
    chunks: Box<[Chunk<T>]>,
    free: Mutex<FreeList>,
}

/// Locks, also after a panic of another holder: every holder leaves the data whole at each step.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T: Default> Table<T> {
    /// An empty table; `seed` makes its handles differ from another process's.
    pub fn new(kind: Kind, seed: u32) -> Self {
        let chunks = (0..OBJECTS_MAX as usize / CHUNK).map(|_| OnceLock::new()).collect();
        Self { kind, first_generation: seed, chunks, free: Mutex::default() }
    }

    fn slot(&self, index: u32) -> Option<&Mutex<Slot<T>>> {
        let index = index as usize;
        self.chunks.get(index / CHUNK)?.get()?.get(index % CHUNK)
    }

    fn fresh_slot(&self, index: u32) -> &Mutex<Slot<T>> {
        let index = index as usize;
        let chunk = self.chunks[index / CHUNK].get_or_init(|| {
            let slot = || Slot { generation: self.first_generation, live: false, value: T::default() };
            (0..CHUNK).map(|_| Mutex::new(slot())).collect()
        });
        &chunk[index % CHUNK]
    }

    /// Makes an object: `fill` gets what the slot held before (or the default) and leaves what it shall hold.
    ///
    /// # Errors
    /// `ACL_ERROR_BAD_ALLOC` with [`OBJECTS_MAX`] objects alive; what `fill` fails with (then there is no object).
    pub fn insert(&self, fill: impl FnOnce(&mut T) -> Result<(), Failure>) -> Result<*mut c_void, Failure> {
        let index = {
            let mut free = lock(&self.free);
            match free.indices.pop() {
                Some(index) => index,
                None if free.untouched < OBJECTS_MAX => {
                    free.untouched += 1;
                    free.untouched - 1
                }
                None => {
                    let text = format!("{OBJECTS_MAX} objects of type {} are alive; destroy some", self.kind.name());
                    return Err(Failure::new(acl_abi::values::ACL_ERROR_BAD_ALLOC, text));
                }
            }
        };
        let mut slot = lock(self.fresh_slot(index));
        if let Err(failure) = fill(&mut slot.value) {
            drop(slot);
            lock(&self.free).indices.push(index);
            return Err(failure);
        }
        slot.live = true;
        let bits = Parts { kind: self.kind, generation: slot.generation, index }.bits();
        Ok(std::ptr::without_provenance_mut(bits as usize))
    }

    /// Runs `f` on the object. The object is locked meanwhile: `f` must not wait for anything.
    ///
    /// # Errors
    /// For anything but a live handle of this kind; the text names `parameter`.
    pub fn with<R>(&self, handle: *const c_void, parameter: &str, f: impl FnOnce(&mut T) -> R) -> Result<R, Failure> {
        self.visit(handle, parameter, |value| (f(value), false))
    }

    /// Destroys the object; `f` sees it last, and leaves in it only what the slot's next object may reuse.
    ///
    /// # Errors
    /// As [`Table::with`].
    pub fn remove<R>(&self, handle: *const c_void, parameter: &str, f: impl FnOnce(&mut T) -> R) -> Result<R, Failure> {
        self.visit(handle, parameter, |value| (f(value), true))
    }

    /// Runs `f` on the object and destroys it if `f` says so with its second value.
    ///
    /// # Errors
    /// As [`Table::with`].
    pub fn visit<R>(
        &self,
        handle: *const c_void,
        parameter: &str,
        f: impl FnOnce(&mut T) -> (R, bool),
    ) -> Result<R, Failure> {
        let index = self.index(handle, parameter)?;
        let mut slot = self.live(handle, index, parameter)?;
        let (out, destroy) = f(&mut slot.value);
        if destroy {
            slot.live = false;
            slot.generation = slot.generation.wrapping_add(1);
            drop(slot);
            lock(&self.free).indices.push(index);
        }
        Ok(out)
    }

    /// Shows every object to `f`. Each is locked meanwhile.
    pub fn for_each(&self, mut f: impl FnMut(&T)) {
        let untouched = lock(&self.free).untouched;
        for slot in (0..untouched).filter_map(|index| self.slot(index)) {
            let slot = lock(slot);
            if slot.live {
                f(&slot.value);
            }
        }
    }

    /// Destroys every object.
    pub fn clear(&self, mut f: impl FnMut(&mut T)) {
        let untouched = lock(&self.free).untouched;
        for index in 0..untouched {
            let Some(slot) = self.slot(index) else { continue };
            let mut slot = lock(slot);
            if !slot.live {
                continue;
            }
            f(&mut slot.value);
            slot.live = false;
            slot.generation = slot.generation.wrapping_add(1);
            drop(slot);
            lock(&self.free).indices.push(index);
        }
    }

    fn index(&self, handle: *const c_void, parameter: &str) -> Result<u32, Failure> {
        let bits = handle.addr() as u64;
        let (null, wrong) = self.kind.codes();
        let want = self.kind.name();
        if bits == 0 {
            return Err(Failure::new(null, format!("parameter {parameter}: null, want an {want}")));
        }
        match Parts::of(bits) {
            Some(parts) if parts.kind == self.kind => Ok(parts.index),
            Some(parts) => {
                let text = format!("parameter {parameter}: an {} where an {want} is wanted", parts.kind.name());
                Err(Failure::new(wrong, text))
            }
            None => Err(Failure::new(wrong, format!("parameter {parameter}: {bits:#x} is not an {want}"))),
        }
    }

    fn live(&self, handle: *const c_void, index: u32, parameter: &str) -> Result<MutexGuard<'_, Slot<T>>, Failure> {
        let generation = Parts::of(handle.addr() as u64).map(|p| p.generation);
        if let Some(slot) = self.slot(index) {
            let slot = lock(slot);
            if slot.live && Some(slot.generation) == generation {
                return Ok(slot);
            }
        }
        let text = format!("parameter {parameter}: this {} was destroyed", self.kind.name());
        Err(Failure::new(self.kind.codes().1, text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table<Vec<u8>> {
        Table::new(Kind::IntArray, 7)
    }

    fn code<T>(result: Result<T, Failure>) -> i32 {
        result.map_or_else(|f| f.code, |_| 0)
    }

    #[test]
    fn objects_live_from_insert_to_remove() {
        let t = table();
        let filled = |v: &mut Vec<u8>| {
            v.extend([1, 2]);
            Ok(())
        };
        let h = t.insert(filled).unwrap();
        assert_eq!(t.with(h, "x", |v| v.len()), Ok(2));
        assert_eq!(t.remove(h, "x", std::mem::take), Ok(vec![1, 2]));
        assert_eq!(code(t.with(h, "x", |_| ())), ACLNN_PARAM_INVALID);
        assert_eq!(code(t.remove(h, "x", |_| ())), ACLNN_PARAM_INVALID, "double destroy");
        let again = t.insert(|_| Ok(())).unwrap();
        assert_ne!(again, h, "a reused slot makes another handle");
        assert_eq!(code(t.with(h, "x", |_| ())), ACLNN_PARAM_INVALID);
    }

    #[test]
    fn anything_else_is_refused_with_its_reason() {
        let t = table();
        let other = Table::<u8>::new(Kind::Tensor, 7);
        let wrong_kind = other.insert(|_| Ok(())).unwrap();
        let live = t.insert(|_| Ok(())).unwrap();
        let pointer = &raw const t as *mut c_void;
        for (handle, part) in [
            (std::ptr::null_mut(), "parameter self: null, want an aclIntArray"),
            (pointer, "is not an aclIntArray"),
            (wrong_kind, "an aclTensor where an aclIntArray is wanted"),
            (live.wrapping_byte_add(1), "was destroyed"),
            (live.wrapping_byte_add(1 << INDEX_BITS), "was destroyed"),
            (std::ptr::without_provenance_mut(usize::MAX), "is not an aclIntArray"),
            (std::ptr::without_provenance_mut(1), "is not an aclIntArray"),
        ] {
            let failure = t.with(handle, "self", |_| ()).unwrap_err();
            assert!(failure.text.contains(part), "{}", failure.text);
        }
    }

    #[test]
    fn failed_fill_leaves_no_object_and_no_hole() {
        let t = table();
        assert_eq!(code(t.insert(|_| Err(Failure::new(5, "no")))), 5);
        let h = t.insert(|_| Ok(())).unwrap();
        assert_eq!(lock(&t.free).untouched, 1);
        t.clear(|_| ());
        assert_eq!(code(t.with(h, "x", |_| ())), ACLNN_PARAM_INVALID);
    }

    #[test]
    fn another_process_does_not_know_the_handle() {
        let (parent, child) = (table(), Table::<Vec<u8>>::new(Kind::IntArray, 8));
        let h = parent.insert(|_| Ok(())).unwrap();
        let own = child.insert(|_| Ok(())).unwrap();
        assert_eq!(code(child.with(h, "x", |_| ())), ACLNN_PARAM_INVALID);
        assert_eq!(code(child.with(own, "x", |_| ())), 0);
    }

    #[test]
    fn threads_share_a_table() {
        let t = table();
        std::thread::scope(|scope| {
            for n in 0..4u8 {
                let t = &t;
                scope.spawn(move || {
                    for _ in 0..1000 {
                        let push = |v: &mut Vec<u8>| {
                            v.push(n);
                            Ok(())
                        };
                        let h = t.insert(push).unwrap();
                        assert_eq!(t.remove(h, "x", std::mem::take), Ok(vec![n]));
                    }
                });
            }
        });
    }
}

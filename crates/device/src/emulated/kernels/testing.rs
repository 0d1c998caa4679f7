//! Runs operators on small host data: what kernel tests are written with.

use acl_abi::{Arg, DataType, OpCall, OpId, Scalar, TensorDesc};
use half::{bf16, f16};

use super::lane::{Lane, with_elem};
use super::{Machine, run};
use crate::emulated::hbm::{Hbm, PHYS_BASE};
use crate::emulated::pool::Pool;
use crate::error::OpError;

/// Bytes of a test machine's memory.
pub const MEMORY_BYTES: u64 = 64 << 20;

/// One argument of a call.
#[derive(Clone, Debug)]
pub enum A {
    T(TensorDesc),
    Null,
    List(Vec<TensorDesc>),
    S(Scalar),
    I(i64),
    F(f64),
    B(bool),
    Ints(Vec<i64>),
    Str(&'static str),
    D(DataType),
}

/// A scalar of type `f32`.
pub fn real(value: f64) -> A {
    A::S(Scalar { dtype: DataType::F32, bits: u64::from((value as f32).to_bits()) })
}

/// A scalar of type `i64`.
pub fn whole(value: i64) -> A {
    A::S(Scalar { dtype: DataType::I64, bits: value as u64 })
}

/// A call with these arguments.
pub fn call(op: OpId, args: &[A]) -> OpCall {
    let mut call = OpCall::new(op);
    for arg in args {
        match arg {
            A::T(desc) => call.push_tensor(Some(*desc)),
            A::Null => call.push_tensor(None),
            A::List(list) => call.push_tensor_list(list),
            A::S(scalar) => call.push(Arg::Scalar(*scalar)),
            A::I(value) => call.push(Arg::Int(*value)),
            A::F(value) => call.push(Arg::Float(*value)),
            A::B(value) => call.push(Arg::Bool(*value)),
            A::Ints(values) => call.push_ints(Some(values)),
            A::Str(text) => call.push_str(text.as_bytes()),
            A::D(dtype) => call.push(Arg::DType(dtype.abi())),
        };
    }
    call
}

/// How a tensor lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lay {
    /// Row-major.
    Plain,
    /// Column-major: strides grow from the first dimension on.
    Reversed,
    /// Every second element of a larger tensor, from an offset on.
    Sliced,
}

/// All of them.
pub const LAYS: [Lay; 3] = [Lay::Plain, Lay::Reversed, Lay::Sliced];

/// A machine and a bump allocator over its memory.
pub struct Lab {
    pub machine: Machine,
    next: u64,
}

impl Lab {
    /// A machine that computes on one thread.
    pub fn new() -> Self {
        Self::with_helpers(0)
    }

    /// A machine with helper threads.
    pub fn with_helpers(helpers: usize) -> Self {
        let hbm = Hbm::new(MEMORY_BYTES).unwrap();
        Self { machine: Machine::new(hbm, Pool::with_helpers(helpers)), next: PHYS_BASE }
    }

    /// Room for a row-major tensor, filled with 0xA5 bytes.
    pub fn room(&mut self, dtype: DataType, dims: &[i64]) -> TensorDesc {
        self.room_as(dtype, dims, Lay::Plain)
    }

    /// Room for a tensor that lies like `lay`.
    pub fn room_as(&mut self, dtype: DataType, dims: &[i64], lay: Lay) -> TensorDesc {
        let mut desc = TensorDesc::contiguous(self.next, dtype, dims);
        let n = dims.len();
        match lay {
            Lay::Plain => {}
            Lay::Reversed => {
                let mut stride = 1;
                for (own, &size) in desc.strides.iter_mut().zip(dims) {
                    *own = stride;
                    stride *= size.max(1);
                }
            }
            Lay::Sliced => {
                desc.offset = 3;
                desc.strides[..n].iter_mut().for_each(|s| *s *= 2);
            }
        }
        let elements = desc.elements().max(1) * 2 + 4;
        let bytes = (elements * u64::from(dtype.bits() / 8)).next_multiple_of(64);
        let from = (self.next - PHYS_BASE) as usize;
        self.machine.hbm.bytes_mut()[from..from + bytes as usize].fill(0xA5);
        self.next += bytes;
        assert!(self.next <= PHYS_BASE + MEMORY_BYTES, "test memory is full");
        desc
    }

    /// A row-major tensor with these values, rounded to its type.
    pub fn tensor(&mut self, dtype: DataType, dims: &[i64], values: &[f64]) -> TensorDesc {
        self.tensor_as(dtype, dims, values, Lay::Plain)
    }

    /// A tensor that lies like `lay`; `values` are in row-major order all the same.
    pub fn tensor_as(&mut self, dtype: DataType, dims: &[i64], values: &[f64], lay: Lay) -> TensorDesc {
        let desc = self.room_as(dtype, dims, lay);
        assert_eq!(desc.elements() as usize, values.len());
        for (at, &value) in offsets(&desc).into_iter().zip(values) {
            with_elem!(dtype, E => self.machine.hbm.elements_mut::<E>()[at] = value.to(), else => panic!("{dtype:?}"));
        }
        desc
    }

    /// Every element in row-major order.
    pub fn read(&self, desc: &TensorDesc) -> Vec<f64> {
        let at = offsets(desc).into_iter();
        with_elem!(desc.dtype, E => at.map(|at| f64::of(self.machine.hbm.elements::<E>()[at])).collect(),
            else => panic!("{:?}", desc.dtype))
    }

    /// Runs an operator.
    pub fn run(&mut self, op: OpId, args: &[A]) -> Result<(), OpError> {
        run(&call(op, args), &mut self.machine)
    }

    /// Runs an operator that must work.
    #[track_caller]
    pub fn ok(&mut self, op: OpId, args: &[A]) {
        if let Err(error) = self.run(op, args) {
            panic!("{error}");
        }
    }

    /// Runs an operator that must be refused with a text that names it and contains `part`.
    #[track_caller]
    pub fn refused(&mut self, op: OpId, args: &[A], part: &str) {
        let error = self.run(op, args).expect_err("should be refused").text;
        assert!(error.starts_with(&format!("{}: ", op.name())) && error.contains(part), "{error:?} without {part:?}");
    }
}

/// Index in memory of every element, in row-major order.
fn offsets(desc: &TensorDesc) -> Vec<usize> {
    let base = ((desc.addr - PHYS_BASE) / u64::from(desc.dtype.bits() / 8)) as i64 + desc.offset;
    let mut all = vec![base];
    for (&d, &s) in desc.dims().iter().zip(desc.strides()) {
        all = all.iter().flat_map(|&at| (0..d).map(move |i| at + i * s)).collect();
    }
    all.into_iter().map(|at| at as usize).collect()
}

/// Rounds to `dtype` from single precision, as a kernel's last step does.
pub fn rounded(dtype: DataType, value: f32) -> f64 {
    match dtype {
        DataType::F16 => f16::from_f32(value).to_f64(),
        DataType::BF16 => bf16::from_f32(value).to_f64(),
        _ => f64::from(value),
    }
}

/// Pseudo-random numbers in −2..2 that every type holds exactly (multiples of 1/16).
pub struct Noise(u64);

impl Noise {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit.max(1)
    }

    /// One value.
    pub fn value(&mut self) -> f64 {
        self.below(65) as f64 / 16.0 - 2.0
    }

    /// Several values.
    pub fn values(&mut self, count: usize) -> Vec<f64> {
        (0..count).map(|_| self.value()).collect()
    }

    /// Values without a short binary form, as single precision.
    pub fn fractions(&mut self, count: usize) -> Vec<f64> {
        (0..count).map(|_| f64::from((self.below(1 << 24) as f32 / (1 << 23) as f32) - 1.0)).collect()
    }
}

/// Asserts that values agree to `tolerance`, relative to the larger of 1 and the wanted value.
#[track_caller]
pub fn close(got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len());
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= tolerance * w.abs().max(1.0), "element {i}: {g} instead of {w}");
    }
}

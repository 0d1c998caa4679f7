//! Properties that hold for every operator of the table.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

use acl_abi::{DataType, Kind, OpId, SIGNATURES, Scalar, TensorDesc, ops};

use super::super::testing::{A, Lab, Noise, real};
use super::super::{kernels, run};
use crate::emulated::hbm::PHYS_BASE;

#[test]
fn the_table_is_what_the_signatures_call_emulated() {
    let computed: BTreeSet<_> = kernels().map(|(id, _)| id.name()).collect();
    let promised: BTreeSet<_> = SIGNATURES.iter().filter(|s| s.emulated).map(|s| s.name).collect();
    assert_eq!(computed, promised);
    assert_eq!(computed.len(), kernels().count(), "an operator is listed twice");
}

#[test]
fn an_operator_outside_the_table_is_refused_by_name() {
    let mut lab = Lab::new();
    let other = (0..SIGNATURES.len() as u16).map(OpId).find(|id| !id.signature().emulated).unwrap();
    lab.refused(other, &[], "does not compute this operator");
    let mut unknown = super::super::testing::call(ops::aclnnAdd, &[]);
    unknown.op = OpId(u16::MAX);
    assert!(run(&unknown, &mut lab.machine).unwrap_err().text.contains("unknown operator"));
}

#[test]
fn a_call_without_arguments_is_refused_and_names_a_parameter() {
    let mut lab = Lab::new();
    for (op, _) in kernels() {
        let error = lab.run(op, &[]).unwrap_err().text;
        let named = op.signature().params.iter().any(|p| error.contains(p.name));
        assert!(error.starts_with(op.name()) && named, "{error}");
    }
}

/// Where random calls work: everything else of memory must stay as it was.
const ARENA: std::ops::Range<usize> = 4096..65536;

fn random_tensor(noise: &mut Noise) -> TensorDesc {
    const DTYPES: [DataType; 8] = [
        DataType::F32,
        DataType::F32,
        DataType::BF16,
        DataType::F16,
        DataType::I64,
        DataType::I32,
        DataType::Bool,
        DataType::F64,
    ];
    let dtype = DTYPES[noise.below(8) as usize];
    let ndim = noise.below(5) as usize;
    let dims: Vec<i64> = (0..ndim).map(|_| [0, 1, 2, 3, 4, 8][noise.below(6) as usize]).collect();
    let size = u64::from(dtype.bits() / 8);
    let first = ARENA.start as u64 + noise.below((ARENA.len() as u64 - 32768) / 8) * 8;
    let mut desc = TensorDesc::contiguous(PHYS_BASE + first, dtype, &dims);
    match noise.below(4) {
        0 if ndim >= 2 => {
            desc.dims.swap(0, 1);
            desc.strides.swap(0, 1);
        }
        1 if ndim >= 1 => desc.strides[noise.below(ndim as u64) as usize] = 0,
        _ => {}
    }
    match noise.below(20) {
        0 => desc.format = [3, 29][noise.below(2) as usize],
        1 => desc.offset = noise.below(4) as i64,
        // Hostile: outside of memory, misaligned, overflowing.
        2 => {
            let misaligned = if size > 1 { PHYS_BASE + size / 2 } else { 1 };
            desc.addr = [0, PHYS_BASE - size, misaligned, u64::MAX, PHYS_BASE + (64 << 20)][noise.below(5) as usize];
        }
        3 => desc.offset = [i64::MIN, i64::MAX, -1][noise.below(3) as usize],
        4 if ndim > 0 => desc.dims[0] = [-1, i64::MAX, 1 << 41][noise.below(3) as usize],
        5 if ndim > 0 => desc.strides[0] = [i64::MIN, i64::MAX, -1][noise.below(3) as usize],
        6 => desc.dtype = DataType::Complex64,
        7 => desc.dtype = DataType::I4,
        _ => {}
    }
    desc
}

fn random_argument(kind: Kind, noise: &mut Noise) -> A {
    let small = |noise: &mut Noise| [-2, -1, 0, 1, 2, 3, 4, 8, i64::MAX, i64::MIN][noise.below(10) as usize];
    match kind {
        Kind::Tensor | Kind::TensorOut if noise.below(8) == 0 => A::Null,
        Kind::Tensor | Kind::TensorOut => A::T(random_tensor(noise)),
        Kind::TensorList | Kind::TensorListOut => A::List((0..noise.below(3)).map(|_| random_tensor(noise)).collect()),
        Kind::Scalar | Kind::ScalarList => match noise.below(3) {
            0 => real(noise.value()),
            1 => A::S(Scalar { dtype: DataType::I64, bits: small(noise) as u64 }),
            _ => A::S(Scalar { dtype: DataType::F64, bits: f64::NAN.to_bits() }),
        },
        Kind::IntArray | Kind::BoolArray | Kind::FloatArray if noise.below(3) == 0 => A::Null,
        Kind::IntArray | Kind::BoolArray | Kind::FloatArray => {
            A::Ints((0..noise.below(4)).map(|_| small(noise)).collect())
        }
        Kind::Str => {
            A::Str(["TND", "BSND", "BNSD", "BSH", "half", "interleave", "Norm", "", "?"][noise.below(9) as usize])
        }
        Kind::F32 | Kind::F64 => A::F([1e-6, 0.0, -1.0, f64::NAN, 1e300][noise.below(5) as usize]),
        Kind::Bool => A::B(noise.below(2) == 0),
        Kind::DType => A::D([DataType::F32, DataType::BF16, DataType::I64][noise.below(3) as usize]),
        _ => A::I(small(noise)),
    }
}

/// Random arguments of the right and of the wrong shape, type and place: a call works or is refused by name; it never
/// panics and never writes outside of the tensors it was given.
#[test]
fn no_call_panics_or_writes_elsewhere() {
    let mut lab = Lab::with_helpers(1);
    let (mut worked, mut refused) = (BTreeSet::new(), 0u32);
    let fill = |at: usize| if ARENA.contains(&at) { (at % 7) as u8 } else { 0x5A };
    let end = ARENA.end + 8192;
    for seed in 0..300_000u64 {
        let mut noise = Noise::new(seed);
        let all: Vec<_> = kernels().collect();
        let (op, _) = all[(seed % all.len() as u64) as usize];
        let params = op.signature().params;
        let mut args: Vec<A> = params.iter().map(|p| random_argument(p.kind, &mut noise)).collect();
        // Half of the calls get one shape and type throughout, so that many pass the first checks.
        if seed % 2 == 0 {
            let model = random_tensor(&mut noise);
            for arg in args.iter_mut().filter(|_| noise.below(8) > 0) {
                if let A::T(desc) = arg
                    && desc.addr.checked_sub(PHYS_BASE).is_some_and(|at| ARENA.contains(&(at as usize)))
                {
                    *desc = TensorDesc { addr: desc.addr, ..model };
                }
            }
        }
        if seed % 256 == 0 {
            lab.machine.hbm.bytes_mut()[..end].iter_mut().enumerate().for_each(|(at, byte)| *byte = fill(at));
        }
        let outcome = catch_unwind(AssertUnwindSafe(|| lab.run(op, &args)));
        match outcome {
            Ok(Ok(())) => {
                worked.insert(op.name());
            }
            Ok(Err(error)) => {
                assert!(error.text.starts_with(op.name()), "{error}");
                refused += 1;
            }
            Err(_) => panic!("seed {seed}: {} panicked with {args:?}", op.name()),
        }
        if seed % 256 == 255 {
            let bytes = lab.machine.hbm.bytes();
            let strays = (0..end).filter(|at| !ARENA.contains(at) && bytes[*at] != 0x5A).count();
            assert_eq!(strays, 0, "up to seed {seed}");
        }
    }
    assert!(worked.len() > 15 && refused > 10_000, "the generator misses its aim: {worked:?}, {refused}");
}

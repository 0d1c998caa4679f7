//! Conversions and copies, and choosing between two tensors.

use acl_abi::{DataType, Scalar};

use super::super::Machine;
use super::super::args::Args;
use super::super::fault::{Fault, Outcome, ensure};
use super::super::lane::{self, Class, class};
use super::super::nest::{Nest, broadcast_shape, map1};
use super::super::view::View;
use super::number::Number;
use super::{Operand, Value, check_shape, number_of, operators};

operators! {
    custom cast => aclnnCast;
    custom inplace_copy => aclnnInplaceCopy;
    custom complex => aclnnComplex;
    custom real => aclnnReal;
    custom select => aclnnSWhere;
    custom masked_fill => aclnnInplaceMaskedFillScalar aclnnInplaceMaskedFillTensor;
}

/// `out = self` as type `dtype`.
pub fn cast(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (a, out) = (args.tensor(0)?, args.output(2)?);
    let want = args.int(1)?;
    ensure!(i64::from(out.dtype.abi()) == want, "dtype: {want}, but out has type {}", lane::name(out.dtype));
    ensure!(out.dims() == a.dims(), "out: shape {:?}, want {:?}", out.dims(), a.dims());
    copy(machine, &out, &a)
}

/// `selfRef = src`, with broadcasting and conversion.
pub fn inplace_copy(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let ((out, out_imaginary), (source, imaginary)) = (args.output_parts(0)?, args.parts(1)?);
    // One element goes anywhere, whatever dimensions it comes with.
    let single = |view: View| if view.elements() == 1 { view.single() } else { view };
    copy(machine, &out, &single(source)).map_err(|f| f.about("src"))?;
    // A real number has no imaginary part; one that is stored as a real number loses it.
    match (out_imaginary, imaginary) {
        (Some(out), Some(source)) => copy(machine, &out, &single(source)),
        (Some(out), None) => map1(machine, &out, &out, |_: f64| 0.0),
        (None, _) => Ok(()),
    }
}

/// `real imag → out`: a complex tensor of its parts.
pub fn complex(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (real, imaginary) = (args.tensor(0)?, args.tensor(1)?);
    let (out, Some(behind)) = args.output_parts(2)? else {
        return Err(Fault::new("out: want complex64 or complex128"));
    };
    let same = real.dtype == out.dtype && imaginary.dtype == out.dtype;
    ensure!(same, "real, imag: {} and {}", lane::name(real.dtype), lane::name(imaginary.dtype));
    copy(machine, &out, &real)?;
    copy(machine, &behind, &imaginary)
}

/// `self → out`: the real parts.
pub fn real(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let ((source, _), out) = (args.parts(0)?, args.output(1)?);
    ensure!(source.dtype == out.dtype, "out: type {}, want {}", lane::name(out.dtype), lane::name(source.dtype));
    ensure!(source.dims() == out.dims(), "out: shape {:?}, want {:?}", out.dims(), source.dims());
    copy(machine, &out, &source)
}

/// Copies with conversion. Values pass through the widest lane that either type needs, so integers stay exact.
pub fn copy(machine: &mut Machine, out: &View, source: &View) -> Outcome {
    if out.dtype == source.dtype {
        return copy_bits(machine, out, source);
    }
    match (class(source.dtype), class(out.dtype)) {
        (Class::Int, Class::Int) => map1(machine, out, source, |x: i64| x),
        (Class::Double, _) | (_, Class::Double) => map1(machine, out, source, |x: f64| x),
        _ => map1(machine, out, source, |x: f32| x),
    }
}

/// Copies between views of one type, bit for bit; a row that is contiguous on both sides is one block.
fn copy_bits(machine: &mut Machine, out: &View, source: &View) -> Outcome {
    let nest = Nest::new(out.dims(), [out, source])?;
    nest.rows(|[out, source]| out.copy_from(&mut machine.hbm, &source));
    Ok(())
}

fn choose<T: Number>([condition, a, b]: [T; 3]) -> T {
    if condition.holds() { a } else { b }
}

/// `out = condition ? self : other`.
fn select(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let condition = args.tensor(0)?;
    let (a, b, out) = (args.tensor(1)?, args.tensor(2)?, args.output(3)?);
    let operands = [Operand::condition(condition), Operand::tensor(a), Operand::tensor(b)];
    number_of(machine, &out, &operands, "out", choose, choose, choose)
}

/// `selfRef[i] = value` where `mask[i]`; the value is converted to the tensor's type.
fn masked_fill(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (out, mask) = (args.output(0)?, args.tensor(1)?);
    let whole = class(out.dtype) == Class::Int;
    let value = match args.scalar(2) {
        Ok(scalar) if whole => Value::Scalar(Scalar { dtype: DataType::I64, bits: scalar.as_i64() as u64 }),
        Ok(scalar) => Value::Scalar(scalar),
        Err(_) => {
            let value = args.tensor(2)?;
            ensure!(value.ndim() == 0, "value: shape {:?}, want a single value", value.dims());
            Value::Tensor(value)
        }
    };
    check_shape("mask", &out, broadcast_shape(out.dims(), mask.dims())?.dims())?;
    let operands = [Operand::condition(mask), Operand { value, promotes: false }, Operand::tensor(out)];
    number_of(machine, &out, &operands, "selfRef", choose, choose, choose)
}

//! Numbers as int8: AscendQuant with scales that are given, DynamicQuant with one that each row gets.
//!
//! In single precision, rounded to the nearest whole number, ties to even, unless `roundMode` says another way, and held within
//! −128 to 127.

use acl_abi::{DataType, ops};

use super::args::Args;
use super::fault::{Outcome, ensure};
use super::lane::{self, Class, class};
use super::nest::lines;
use super::real::{read_as, shaped};
use super::view::View;
use super::{Family, Machine, sized};

/// Operators of this file.
pub const KERNELS: Family = &[
    (ops::aclnnAscendQuant, |args, machine| with_scales(args, machine, None)),
    (ops::aclnnAscendQuantV3, |args, machine| with_scales(args, machine, Some(6))),
    (ops::aclnnDynamicQuant, dynamic),
];

/// Least and largest int8.
const RANGE: (f32, f32) = (-128.0, 127.0);

/// `x scale offset sqrtMode roundMode dstType [axis] → y`: `y = round(x · scale + offset)`, the scales squared with `sqrtMode`. Scales and
/// offsets are one, or as many as `x` has elements along `axis`: the last dimension where the operator has no such parameter.
fn with_scales(args: &Args<'_>, machine: &mut Machine, axis: Option<usize>) -> Outcome {
    let (x, y) = (args.tensor(0)?, args.output(if axis.is_some() { 7 } else { 6 })?);
    check(&x, &y, "y")?;
    let wanted = args.int(5)?;
    ensure!(wanted == i64::from(DataType::I8.abi()), "dstType: {wanted}, want 2, int8");
    let last = x.ndim() - 1;
    let axis = match axis {
        Some(position) => args.dim(position, x.ndim())?,
        None => last,
    };
    let round = rounding(args.text(4)?)?;
    let count = x.dim(axis);
    let factors = |position: usize, view: &View| -> Outcome<Vec<f32>> {
        let name = args.name(position);
        ensure!(class(view.dtype) == Class::Single, "{name}: type {} is not supported", lane::name(view.dtype));
        read_as(machine, view, &[count]).map_err(|fault| fault.about(name))
    };
    let mut scales = factors(1, &args.tensor(1)?)?;
    if args.int(3)? != 0 {
        scales.iter_mut().for_each(|scale| *scale *= *scale);
    }
    let offsets = match &args.optional(2)? {
        Some(view) => factors(2, view)?,
        None => vec![0.0; count],
    };
    let (x, y) = (x.transpose(axis, last), y.transpose(axis, last));
    let Machine { hbm, scratch, .. } = machine;
    let values = sized(&mut scratch.operand, count)?;
    lines(&x.dims()[..last], [&x, &y], |[x, y]| {
        x.load(hbm, 0, values);
        for ((value, scale), offset) in values.iter_mut().zip(&scales).zip(&offsets) {
            *value = round(*value * *scale + *offset).clamp(RANGE.0, RANGE.1);
        }
        y.store(hbm, 0, values);
    })
}

/// `x smoothScalesOptional → yOut scaleOut`: each row, after its elements are multiplied by the smooth scales, as int8 times a scale of its
/// own: `scaleOut = max|row| / 127`, `yOut = round(row / scaleOut)`. A row of zeros gets scale 0 and stays zeros.
fn dynamic(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (x, y, scale) = (args.tensor(0)?, args.output(2)?, args.output(3)?);
    check(&x, &y, "yOut")?;
    let last = x.ndim() - 1;
    let width = x.dim(last);
    ensure!(scale.dtype == DataType::F32, "scaleOut: type {}, want float32", lane::name(scale.dtype));
    shaped(&scale, &x.dims()[..last], "scaleOut")?;
    let smooth = match args.optional(1)? {
        Some(view) => {
            shaped(&view, &[width], "smoothScalesOptional")?;
            ensure!(class(view.dtype) == Class::Single, "smoothScalesOptional: type {}", lane::name(view.dtype));
            read_as(machine, &view, &[width])?
        }
        None => vec![1.0_f32; width],
    };
    let scale = scale.unsqueeze(last);
    let Machine { hbm, scratch, .. } = machine;
    let values = sized(&mut scratch.operand, width)?;
    lines(&x.dims()[..last], [&x, &y, &scale], |[x, y, scale]| {
        x.load(hbm, 0, values);
        values.iter_mut().zip(&smooth).for_each(|(value, smooth)| *value *= *smooth);
        let largest = values.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        let step = largest / RANGE.1;
        if largest > 0.0 {
            values.iter_mut().for_each(|value| *value = (*value / step).round_ties_even().clamp(RANGE.0, RANGE.1));
        }
        y.store(hbm, 0, values);
        scale.store(hbm, 0, &[step]);
    })
}

/// `x` of single or half precision with a dimension at least, `y` of its shape as int8.
fn check(x: &View, y: &View, name: &str) -> Outcome {
    ensure!(class(x.dtype) == Class::Single, "x: type {} is not supported", lane::name(x.dtype));
    ensure!(x.ndim() >= 1, "x: at least one dimension is required");
    ensure!(y.dtype == DataType::I8, "{name}: type {}, want int8", lane::name(y.dtype));
    shaped(y, x.dims(), name)
}

/// What `roundMode` asks for.
fn rounding(mode: &str) -> Outcome<fn(f32) -> f32> {
    Ok(match mode {
        "" | "round" => f32::round_ties_even,
        "floor" => f32::floor,
        "ceil" => f32::ceil,
        "trunc" => f32::trunc,
        other => {
            return Err(super::fault::Fault::new(format!("roundMode: {other:?}, want round, floor, ceil or trunc")));
        }
    })
}

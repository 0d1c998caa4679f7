//! Operations element by element: broadcasting, torch's type promotion, one rounding.
//!
//! Every operator here is a function of as many values as its signature has parameters besides the output, in the order
//! of the signature, whatever brings them: a tensor, a host scalar, a C number, element `i` of a list. One function so
//! serves an operator, its in-place form (the first parameter is the output too), its form with a scalar and its form
//! over lists. The tables name a *form*, which says in which lanes the function exists and what becomes of the result:
//!
//! | form | computes in | result |
//! |---|---|---|
//! | `number`, `number1` | the lane of the common type | of that type |
//! | `exact` | the same, scalars unrounded | of that type |
//! | `real`, `real1` | floating point, integers as single precision | floating point |
//! | `ratio` | the same, scalars unrounded | floating point |
//! | `test`, `test1` | the lane of the common type | 0 or 1 of any type |
//! | `real_test` | floating point, integers as double precision | 0 or 1 of any type |
//! | `bits` | integers and bools | of the common type |
//!
//! Operands are converted to the common type first, as torch does (`bfloat16 > 0.3` compares with the bfloat16 next to
//! 0.3); the arithmetic of `exact` and `ratio` takes scalars as they are, as torch does too. A float result is never stored as
//! an integer; Cast and InplaceCopy ([`convert`]) convert as asked.

pub mod activation;
pub mod arithmetic;
pub mod compare;
pub mod convert;
pub mod foreach;
pub mod functions;
pub mod gradient;
mod loops;
mod number;
pub mod optimizer;
mod promote;

pub use convert::copy;

use acl_abi::{DataType, Kind, Scalar};

use super::Machine;
use super::args::Args;
use super::fault::{Fault, Outcome, ensure};
use super::lane::{self, Class, class};
use super::nest::{Shape, broadcast_shape};
use super::view::View;
use loops::{Piece, Source, map, piece};
use number::Number;
use promote::{Weight, result_type};

/// A table of operators: `form function => operators;`.
macro_rules! operators {
    ($($form:ident $function:expr => $($name:ident)+;)+) => {
        /// Operators of this file.
        pub const KERNELS: $crate::emulated::kernels::Family = &[$($(
            (acl_abi::ops::$name, $crate::emulated::kernels::elementwise::kernel!($form, $function)),
        )+)+];
    };
}
pub(crate) use operators;

/// The kernel of one operator of a table.
macro_rules! kernel {
    (custom, $function:expr) => { $function };
    (bits, $function:expr) => { |args, machine| $crate::emulated::kernels::elementwise::bits(args, machine, $function) };
    (real, $function:expr) => { $crate::emulated::kernels::elementwise::kernel!(@2 real, $function) };
    (real1, $function:expr) => { $crate::emulated::kernels::elementwise::kernel!(@2 real1, $function) };
    (ratio, $function:expr) => { $crate::emulated::kernels::elementwise::kernel!(@2 ratio, $function) };
    (real_test, $function:expr) => { $crate::emulated::kernels::elementwise::kernel!(@2 real_test, $function) };
    (@2 $form:ident, $function:expr) => {
        |args, machine| $crate::emulated::kernels::elementwise::$form(args, machine, $function, $function)
    };
    ($form:ident, $function:expr) => {
        |args, machine| $crate::emulated::kernels::elementwise::$form(args, machine, $function, $function, $function)
    };
}
pub(crate) use kernel;

/// A value of an operand.
#[derive(Clone, Copy, Debug)]
pub enum Value {
    /// A tensor, broadcast to the output.
    Tensor(View),
    /// A host scalar or number.
    Scalar(Scalar),
}

/// One operand of an operation.
#[derive(Clone, Copy, Debug)]
pub struct Operand {
    /// Where its values come from.
    pub value: Value,
    /// True if its type takes part in choosing the common one.
    pub promotes: bool,
}

impl Operand {
    /// A tensor whose type counts.
    pub fn tensor(view: View) -> Self {
        Self { value: Value::Tensor(view), promotes: true }
    }

    /// A tensor whose type does not count: conditions.
    pub fn condition(view: View) -> Self {
        Self { value: Value::Tensor(view), promotes: false }
    }

    /// A scalar whose type does not count: factors, bounds of an activation.
    pub fn factor(scalar: Scalar) -> Self {
        Self { value: Value::Scalar(scalar), promotes: false }
    }

    /// A number whose type does not count.
    pub fn number(value: f64) -> Self {
        Self::factor(Scalar { dtype: DataType::F64, bits: value.to_bits() })
    }
}

/// What an operation does with types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rule {
    /// Integers are computed as single precision.
    real: bool,
    /// The result is a truth value, which any type holds.
    test: bool,
    /// Scalars are used as they are, not as the common type holds them.
    exact: bool,
}

const NUMBER: Rule = Rule { real: false, test: false, exact: false };
const EXACT: Rule = Rule { exact: true, ..NUMBER };
const REAL: Rule = Rule { real: true, ..NUMBER };
const RATIO: Rule = Rule { exact: true, ..REAL };
const TEST: Rule = Rule { test: true, ..NUMBER };
const REAL_TEST: Rule = Rule { real: true, ..TEST };

/// The functions of an operation, one a lane that it has.
struct Lanes<'a, const N: usize> {
    single: Option<Piece<'a, f32, N>>,
    double: Option<Piece<'a, f64, N>>,
    int: Option<Piece<'a, i64, N>>,
}

/// Names of scalar parameters whose type takes part in promotion, as the operands that they stand for would.
const PROMOTING: [&str; 9] =
    ["self", "other", "exponent", "scalar", "scalars", "clipValueMin", "clipValueMax", "min", "max"];

/// Names of tensor parameters that do not.
const CONDITIONS: [&str; 3] = ["condition", "mask", "alpha"];

/// Calls `body` with the output and the operands of `args`: once, or once an element of its lists.
fn each<const N: usize>(
    args: &Args<'_>,
    machine: &mut Machine,
    mut body: impl FnMut(&mut Machine, &View, &[Operand; N], &str) -> Outcome,
) -> Outcome {
    let params = args.params();
    let is_tensor = |kind| matches!(kind, Kind::Tensor | Kind::TensorOut | Kind::TensorList | Kind::TensorListOut);
    let last = params.iter().rposition(|p| is_tensor(p.kind)).unwrap_or(0);
    let (out, in_place) = if args.is_in_place() { (0, true) } else { (last, false) };
    let mut positions = (0..params.len()).filter(|&p| in_place || p != out);
    let positions: [usize; N] = std::array::from_fn(|_| positions.next().unwrap_or(usize::MAX));
    let name = params[out].name;
    let run = |machine: &mut Machine, index, body: &mut dyn FnMut(&mut Machine, &View, &[Operand; N], &str) -> _| {
        let out = match index {
            None => args.output(out)?,
            Some(_) => args.writable(out, nth(args, out, index)?)?,
        };
        let mut operands = [Operand::number(0.0); N];
        for (operand, &position) in operands.iter_mut().zip(&positions) {
            *operand = self::operand(args, position, index)?;
        }
        body(machine, &out, &operands, name)
    };
    if !matches!(params[out].kind, Kind::TensorList | Kind::TensorListOut) {
        return run(machine, None, &mut body);
    }
    let len = args.tensors(out)?.len();
    for &position in &positions {
        let own = match params[position].kind {
            Kind::TensorList | Kind::TensorListOut => args.tensors(position)?.len(),
            Kind::ScalarList => args.scalars(position)?.len(),
            _ => len,
        };
        ensure!(own == len, "{}: {own} elements, but {name} has {len}", args.name(position));
    }
    (0..len).try_for_each(|index| run(machine, Some(index), &mut body))
}

/// Element `index` of a list.
fn nth(args: &Args<'_>, position: usize, index: Option<usize>) -> Outcome<View> {
    let index = index.unwrap_or(0);
    let missing = || Fault::new(format!("no element {index}")).about(args.name(position));
    args.tensors(position)?.nth(index).ok_or_else(missing)?
}

/// The operand at `position`; `index` where the operator works on lists.
fn operand(args: &Args<'_>, position: usize, index: Option<usize>) -> Outcome<Operand> {
    let Some(param) = args.params().get(position) else {
        return Err(Fault::new("the operator has fewer parameters than its function"));
    };
    let promotes = PROMOTING.contains(&param.name);
    Ok(match param.kind {
        Kind::TensorList | Kind::TensorListOut => Operand::tensor(nth(args, position, index)?),
        Kind::Tensor | Kind::TensorOut => {
            let view = args.tensor(position)?;
            // Factors of an operator over lists: one for all, or one an element.
            let view = match index {
                Some(index) if view.ndim() == 1 && view.dim(0) > 1 => {
                    let have = view.dim(0);
                    ensure!(index < have, "{}: no element {index} of {have}", param.name);
                    view.select(0, index)
                }
                Some(_) if view.ndim() == 1 && view.dim(0) == 1 => view.select(0, 0),
                _ => view,
            };
            Operand { value: Value::Tensor(view), promotes: !CONDITIONS.contains(&param.name) }
        }
        Kind::Scalar => Operand { value: Value::Scalar(args.scalar(position)?), promotes },
        Kind::ScalarList => {
            let list = args.scalars(position)?;
            let scalar = list.get(index.unwrap_or(0)).copied();
            let scalar = scalar.ok_or_else(|| Fault::new("too short a list").about(param.name))?;
            Operand { value: Value::Scalar(scalar), promotes }
        }
        Kind::F32 | Kind::F64 => Operand::number(args.float(position)?),
        Kind::Str => match args.text(position)? {
            "tanh" => Operand::number(1.0),
            "none" | "" => Operand::number(0.0),
            other => return Err(Fault::new(format!("{other:?} is neither none nor tanh")).about(param.name)),
        },
        _ => Operand::factor(Scalar { dtype: DataType::I64, bits: args.int(position)? as u64 }),
    })
}

/// Refuses an output of another shape than `want`.
pub fn check_shape(name: &str, out: &View, want: &[usize]) -> Outcome {
    ensure!(out.dims() == want, "{name}: shape {:?}, want {want:?}", out.dims());
    Ok(())
}

/// Refuses an output type that would lose the result's kind.
fn check_type(name: &str, out: DataType, computed: DataType) -> Outcome {
    let fits = match (class(computed), class(out)) {
        (Class::Single | Class::Double, Class::Int) => false,
        (Class::Int, Class::Int) => out != DataType::Bool || computed == DataType::Bool,
        _ => true,
    };
    ensure!(fits, "{name}: a {} result cannot be stored as {}", lane::name(computed), lane::name(out));
    Ok(())
}

/// The shape that the tensors among `operands` broadcast to.
fn common_shape(operands: &[Operand]) -> Outcome<Shape> {
    let mut shape = broadcast_shape(&[], &[])?;
    for operand in operands {
        if let Value::Tensor(view) = operand.value {
            shape = broadcast_shape(shape.dims(), view.dims())?;
        }
    }
    Ok(shape)
}

/// The type that `operands` compute in.
fn common_type(operands: &[Operand], out: DataType) -> DataType {
    let weighed = operands.iter().filter(|o| o.promotes).map(|o| match o.value {
        Value::Tensor(view) if view.ndim() == 0 => (Weight::ZeroDim, view.dtype),
        Value::Tensor(view) => (Weight::Tensor, view.dtype),
        Value::Scalar(scalar) => (Weight::Scalar, scalar.dtype),
    });
    result_type(weighed).unwrap_or(out)
}

/// `operand` as lane `L` takes it, in an operation that computes in type `dtype`.
fn source<L: Number>(machine: &Machine, operand: &Operand, dtype: DataType, exact: bool) -> Outcome<Source<L>> {
    let convert = |value: L, own: DataType| {
        let mut value = [value];
        if own != dtype && operand.promotes && !exact {
            L::through(dtype, &mut value);
        }
        Source::Constant(value[0])
    };
    Ok(match operand.value {
        Value::Scalar(scalar) => {
            let fraction = class(scalar.dtype) != Class::Int && scalar.as_f64().fract() != 0.0;
            ensure!(class(dtype) != Class::Int || !fraction, "a fraction ({}) cannot scale integers", scalar.as_f64());
            convert(L::constant(&scalar), scalar.dtype)
        }
        Value::Tensor(view) if view.ndim() == 0 => {
            let mut value = [L::default()];
            view.unsqueeze(0).row().load(&machine.hbm, 0, &mut value);
            convert(value[0], view.dtype)
        }
        Value::Tensor(view) => {
            // Types that the lane holds, but not the common type.
            let narrows = match (class(dtype), class(view.dtype)) {
                (Class::Single, Class::Int | Class::Double) => matches!(dtype, DataType::F16 | DataType::BF16),
                (Class::Int, _) => view.dtype != dtype && view.dtype.bits() > dtype.bits(),
                _ => false,
            };
            Source::View(view, (narrows && operand.promotes).then_some(dtype))
        }
    })
}

/// Runs an operation: `out = f(operands…)`.
fn apply<const N: usize>(
    machine: &mut Machine,
    out: &View,
    operands: &[Operand; N],
    name: &str,
    rule: Rule,
    lanes: &Lanes<'_, N>,
) -> Outcome {
    fn lane<L: Number, const N: usize>(
        machine: &mut Machine,
        out: &View,
        operands: &[Operand; N],
        (dtype, rule): (DataType, Rule),
        piece: Option<Piece<'_, L, N>>,
    ) -> Outcome {
        let Some(piece) = piece else {
            return Err(Fault::new(format!("type {} is not supported", lane::name(dtype))));
        };
        let mut sources = [Source::Constant(L::default()); N];
        for (into, operand) in sources.iter_mut().zip(operands) {
            *into = source(machine, operand, dtype, rule.exact)?;
        }
        map(machine, out, &sources, piece)
    }
    check_shape(name, out, common_shape(operands)?.dims())?;
    let dtype = match common_type(operands, out.dtype) {
        dtype if rule.real && class(dtype) == Class::Int => match out.dtype {
            // Conditions have no result that the precision would be wasted on.
            _ if rule.test => DataType::F64,
            DataType::F64 => DataType::F64,
            _ => DataType::F32,
        },
        dtype => dtype,
    };
    if !rule.test {
        check_type(name, out.dtype, dtype)?;
    }
    match class(dtype) {
        Class::Int => lane(machine, out, operands, (dtype, rule), lanes.int),
        Class::Single => lane(machine, out, operands, (dtype, rule), lanes.single),
        Class::Double => lane(machine, out, operands, (dtype, rule), lanes.double),
    }
}

macro_rules! forms {
    ($($(#[$doc:meta])* $name:ident = $rule:ident;)+) => {$(
        $(#[$doc])*
        pub fn $name<const N: usize>(
            args: &Args<'_>,
            machine: &mut Machine,
            single: impl Fn([f32; N]) -> f32 + Sync,
            double: impl Fn([f64; N]) -> f64 + Sync,
            int: impl Fn([i64; N]) -> i64 + Sync,
        ) -> Outcome {
            let (single, double, int) = (piece(single), piece(double), piece(int));
            let lanes = Lanes { single: Some(&single), double: Some(&double), int: Some(&int) };
            each(args, machine, |machine, out, operands, name| apply(machine, out, operands, name, $rule, &lanes))
        }
    )+};
}
forms! {
    /// A function of numbers.
    number = NUMBER;
    /// Arithmetic that takes scalars as they are.
    exact = EXACT;
    /// A condition: 1 where it holds, 0 elsewhere.
    test = TEST;
}

macro_rules! real_forms {
    ($($(#[$doc:meta])* $name:ident = $rule:ident;)+) => {$(
        $(#[$doc])*
        pub fn $name<const N: usize>(
            args: &Args<'_>,
            machine: &mut Machine,
            single: impl Fn([f32; N]) -> f32 + Sync,
            double: impl Fn([f64; N]) -> f64 + Sync,
        ) -> Outcome {
            let (single, double) = (piece(single), piece(double));
            let lanes = Lanes { single: Some(&single), double: Some(&double), int: None };
            each(args, machine, |machine, out, operands, name| apply(machine, out, operands, name, $rule, &lanes))
        }
    )+};
}
real_forms! {
    /// A function of real numbers.
    real = REAL;
    /// Arithmetic of real numbers that takes scalars as they are.
    ratio = RATIO;
    /// A condition of real numbers: 1 where it holds, 0 elsewhere.
    real_test = REAL_TEST;
}

/// [`number`] of these operands.
pub fn number_of<const N: usize>(
    machine: &mut Machine,
    out: &View,
    operands: &[Operand; N],
    name: &str,
    single: impl Fn([f32; N]) -> f32 + Sync,
    double: impl Fn([f64; N]) -> f64 + Sync,
    int: impl Fn([i64; N]) -> i64 + Sync,
) -> Outcome {
    let (single, double, int) = (piece(single), piece(double), piece(int));
    let lanes = Lanes { single: Some(&single), double: Some(&double), int: Some(&int) };
    apply(machine, out, operands, name, NUMBER, &lanes)
}

/// [`real`] of these operands.
pub fn real_of<const N: usize>(
    machine: &mut Machine,
    out: &View,
    operands: &[Operand; N],
    name: &str,
    single: impl Fn([f32; N]) -> f32 + Sync,
    double: impl Fn([f64; N]) -> f64 + Sync,
) -> Outcome {
    let (single, double) = (piece(single), piece(double));
    let lanes = Lanes { single: Some(&single), double: Some(&double), int: None };
    apply(machine, out, operands, name, REAL, &lanes)
}

/// A function of one number.
pub fn number1(
    args: &Args<'_>,
    machine: &mut Machine,
    single: impl Fn(f32) -> f32 + Sync,
    double: impl Fn(f64) -> f64 + Sync,
    int: impl Fn(i64) -> i64 + Sync,
) -> Outcome {
    number(args, machine, |[x]| single(x), |[x]| double(x), |[x]| int(x))
}

/// A condition of one number.
pub fn test1(
    args: &Args<'_>,
    machine: &mut Machine,
    single: impl Fn(f32) -> f32 + Sync,
    double: impl Fn(f64) -> f64 + Sync,
    int: impl Fn(i64) -> i64 + Sync,
) -> Outcome {
    test(args, machine, |[x]| single(x), |[x]| double(x), |[x]| int(x))
}

/// A function of one real number.
pub fn real1(
    args: &Args<'_>,
    machine: &mut Machine,
    single: impl Fn(f32) -> f32 + Sync,
    double: impl Fn(f64) -> f64 + Sync,
) -> Outcome {
    real(args, machine, |[x]| single(x), |[x]| double(x))
}

/// A function of the bits of integers and bools.
pub fn bits<const N: usize>(args: &Args<'_>, machine: &mut Machine, int: impl Fn([i64; N]) -> i64 + Sync) -> Outcome {
    let int = piece(int);
    let lanes = Lanes { single: None, double: None, int: Some(&int) };
    each(args, machine, |machine, out, operands, name| apply(machine, out, operands, name, NUMBER, &lanes))
}

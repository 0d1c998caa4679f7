//! Row arithmetic in the lane of the operands: single precision with the vector code of [`super::math`], double with
//! the standard library's. And whole tensors on the host, for operators whose time does not matter.

use std::ops::{Add, AddAssign, Div, Mul, Sub};

use super::fault::{Outcome, ensure};
use super::lane::{self, Class, Lane, class};
use super::nest::{Nest, store_all};
use super::view::View;
use super::{INTERMEDIATE_MAX, Machine, math};
use crate::emulated::hbm::Hbm;

/// A floating-point lane.
pub trait Real:
    Lane + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self> + AddAssign + 'static
{
    /// Nearest value.
    fn from_f64(value: f64) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
    /// `eˣ`.
    fn exp(self) -> Self;
    /// Sum in a fixed order.
    fn sum(values: &[Self]) -> Self;
    /// Sum of squares in a fixed order.
    fn sum_of_squares(values: &[Self]) -> Self;
    /// Largest value, −∞ of none; NaN if any is.
    fn largest(values: &[Self]) -> Self;
    /// Replaces every value by `e^(value − shift)`.
    fn exp_shifted(values: &mut [Self], shift: Self);
}

impl Real for f32 {
    fn from_f64(value: f64) -> Self {
        value as Self
    }
    fn sqrt(self) -> Self {
        self.sqrt()
    }
    fn exp(self) -> Self {
        math::exp(self)
    }
    fn sum(values: &[Self]) -> Self {
        math::sum(values)
    }
    fn sum_of_squares(values: &[Self]) -> Self {
        math::sum_of_squares(values)
    }
    fn largest(values: &[Self]) -> Self {
        math::max(values)
    }
    fn exp_shifted(values: &mut [Self], shift: Self) {
        math::exp_shifted(values, shift);
    }
}

impl Real for f64 {
    fn from_f64(value: f64) -> Self {
        value
    }
    fn sqrt(self) -> Self {
        self.sqrt()
    }
    fn exp(self) -> Self {
        self.exp()
    }
    fn sum(values: &[Self]) -> Self {
        values.iter().sum()
    }
    fn sum_of_squares(values: &[Self]) -> Self {
        values.iter().map(|v| v * v).sum()
    }
    fn largest(values: &[Self]) -> Self {
        let larger = |a: Self, b: Self| if b > a || b.is_nan() { b } else { a };
        values.iter().copied().fold(Self::NEG_INFINITY, larger)
    }
    fn exp_shifted(values: &mut [Self], shift: Self) {
        values.iter_mut().for_each(|v| *v = (*v - shift).exp());
    }
}

/// Runs `$body` with `$R` bound to the lane of floating-point type `$dtype`: double for doubles, else single.
macro_rules! with_real {
    ($dtype:expr, $R:ident => $body:expr) => {
        if $dtype == acl_abi::DataType::F64 {
            type $R = f64;
            $body
        } else {
            type $R = f32;
            $body
        }
    };
}
pub(crate) use with_real;

/// Refuses types that are not floating point.
pub fn float(view: &View, name: &str) -> Outcome {
    ensure!(class(view.dtype) != Class::Int, "{name}: type {} is not supported", lane::name(view.dtype));
    Ok(())
}

/// Refuses a shape other than `dims`.
pub fn shaped(view: &View, dims: &[usize], name: &str) -> Outcome {
    ensure!(view.dims() == dims, "{name}: shape {:?}, want {dims:?}", view.dims());
    Ok(())
}

/// The part of a view at flat index `index` of its first `lead` dimensions.
///
/// # Panics
/// If there is no such index.
pub fn leading(view: &View, lead: usize, index: usize) -> View {
    let (mut part, mut rest) = (*view, index);
    for dim in (0..lead).rev() {
        let size = view.dim(dim);
        part = part.select(dim, rest % size);
        rest /= size;
    }
    part
}

/// Loads every element in row-major order.
///
/// # Panics
/// If `out` does not have the view's size.
pub fn load<L: Lane>(hbm: &Hbm, view: &View, out: &mut [L]) -> Outcome {
    assert_eq!(out.len(), view.elements());
    let mut done = 0;
    Nest::new(view.dims(), [view])?.rows(|[row]| {
        row.load(hbm, 0, &mut out[done..done + row.len]);
        done += row.len;
    });
    Ok(())
}

/// Stores every element in row-major order.
///
/// # Panics
/// If `values` does not have the view's size.
pub fn store<L: Lane>(hbm: &mut Hbm, view: &View, values: &[L]) -> Outcome {
    assert_eq!(values.len(), view.elements());
    let mut done = 0;
    Nest::new(view.dims(), [view])?.rows(|[row]| {
        row.store(hbm, 0, &values[done..done + row.len]);
        done += row.len;
    });
    Ok(())
}

/// Every element in row-major order.
pub fn read<L: Lane>(machine: &Machine, view: &View) -> Outcome<Vec<L>> {
    let count = view.elements();
    ensure!(count <= INTERMEDIATE_MAX, "{count} elements, at most {INTERMEDIATE_MAX} are supported");
    let mut out = vec![L::default(); count];
    load(&machine.hbm, view, &mut out)?;
    Ok(out)
}

/// Every element of a view broadcast to `dims`.
pub fn read_as<L: Lane>(machine: &Machine, view: &View, dims: &[usize]) -> Outcome<Vec<L>> {
    read(machine, &view.broadcast(dims)?)
}

/// Writes values in row-major order.
///
/// # Panics
/// If there are not as many as elements.
pub fn write<L: Lane>(machine: &mut Machine, view: &View, values: &[L]) -> Outcome {
    assert_eq!(values.len(), view.elements());
    store_all(machine, view, |from, piece: &mut [L]| piece.copy_from_slice(&values[from..from + piece.len()]))
}

//! Sliding windows: Im2col, its gradient, and the gradient of unfold.

use acl_abi::ops;

use super::args::Args;
use super::elementwise::copy;
use super::fault::{Fault, Outcome, ensure};
use super::lane::{self, Class, class};
use super::nest::map2;
use super::view::View;
use super::{Family, Machine};

/// Operators of this file.
pub const KERNELS: Family =
    &[(ops::aclnnIm2col, im2col), (ops::aclnnIm2colBackward, im2col_backward), (ops::aclnnUnfoldGrad, unfold_grad)];

/// `out += x`.
fn add(machine: &mut Machine, out: &View, x: &View) -> Outcome {
    if class(out.dtype) == Class::Double {
        return map2(machine, out, out, x, |a: f64, b: f64| a + b);
    }
    map2(machine, out, out, x, |a: f32, b: f32| a + b)
}

/// How windows slide over one dimension.
#[derive(Clone, Copy)]
struct Slide {
    kernel: usize,
    dilation: usize,
    padding: usize,
    stride: usize,
}

impl Slide {
    /// Windows over `size` elements; `None` where not one fits.
    fn count(&self, size: usize) -> Option<usize> {
        let reach = self.dilation * (self.kernel - 1) + 1;
        (size + 2 * self.padding).checked_sub(reach).map(|room| room / self.stride + 1)
    }

    /// Of `count` windows over `size` elements, those whose place `tap` is not padding: the first window, its element,
    /// and how many.
    fn inside(&self, tap: usize, size: usize, count: usize) -> (usize, usize, usize) {
        let shift = tap * self.dilation;
        let first = self.padding.saturating_sub(shift).div_ceil(self.stride);
        let from = first * self.stride + shift;
        if first >= count || from < self.padding || from - self.padding >= size {
            return (0, 0, 0);
        }
        let from = from - self.padding;
        (first, from, (count - first).min((size - from - 1) / self.stride + 1))
    }
}

/// Two numbers of the int array at `position`, each from `low` to a bound that keeps sums in range.
fn pair(args: &Args<'_>, position: usize, low: i64) -> Outcome<[usize; 2]> {
    let (given, name) = (args.ints(position).unwrap_or_default(), args.name(position));
    let [a, b] = given.try_into().map_err(|_| Fault::new(format!("{name}: {given:?}, want two numbers")))?;
    let fits = |n: i64| (low..1 << 31).contains(&n);
    ensure!(fits(a) && fits(b), "{name}: {given:?} is out of range");
    Ok([a as usize, b as usize])
}

/// The matching parts of an image `[C, H, W]` or `[N, C, H, W]` and its columns, for each place of the kernel. `first` is the
/// position of `kernelSize`, which dilation, padding and stride follow.
fn parts(args: &Args<'_>, image: View, columns: View, first: usize) -> Outcome<Vec<(View, View)>> {
    let batched = |view: View, ndim: usize| if view.ndim() + 1 == ndim { view.unsqueeze(0) } else { view };
    let (image, columns) = (batched(image, 4), batched(columns, 3));
    ensure!(image.ndim() == 4 && columns.ndim() == 3, "shapes {:?} and {:?} do not fit", image.dims(), columns.dims());
    let (kernel, dilation) = (pair(args, first, 1)?, pair(args, first + 1, 1)?);
    let (padding, stride) = (pair(args, first + 2, 0)?, pair(args, first + 3, 1)?);
    let slides: [Slide; 2] = std::array::from_fn(|i| Slide {
        kernel: kernel[i],
        dilation: dilation[i],
        padding: padding[i],
        stride: stride[i],
    });
    let (channels, sizes) = (image.dim(1), [image.dim(2), image.dim(3)]);
    let counts = [slides[0].count(sizes[0]), slides[1].count(sizes[1])];
    let [Some(rows), Some(across)] = counts else {
        return Err(Fault::new(format!("kernelSize: {kernel:?} does not fit into {sizes:?}")));
    };
    let want = [image.dim(0), channels * kernel[0] * kernel[1], rows * across];
    ensure!(columns.dims() == want, "shape {:?} of columns, want {want:?}", columns.dims());
    // [N, C, kh, kw, rows, across]
    let columns =
        columns.split(2, rows, across).split(1, channels * kernel[0], kernel[1]).split(1, channels, kernel[0]);
    let mut parts = Vec::with_capacity(kernel[0] * kernel[1]);
    for i in 0..kernel[0] {
        let (to_row, from_row, many_rows) = slides[0].inside(i, sizes[0], rows);
        for j in 0..kernel[1] {
            let (to, from, many) = slides[1].inside(j, sizes[1], across);
            let column = columns.select(2, i).select(2, j).narrow(2, to_row, many_rows).narrow(3, to, many);
            let pixels = image.step(2, from_row, stride[0] as isize, many_rows).step(3, from, stride[1] as isize, many);
            parts.push((pixels, column));
        }
    }
    Ok(parts)
}

/// `self kernelSize dilation padding stride → out`: each window of the image as a column.
fn im2col(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (x, out) = (args.tensor(0)?, args.output(5)?);
    ensure!(out.dtype == x.dtype, "out: type {}, want {}", lane::name(out.dtype), lane::name(x.dtype));
    let parts = parts(args, x, out, 1).map_err(|f| f.about("self"))?;
    super::fill::zero(machine, &out)?;
    parts.iter().try_for_each(|(pixels, column)| copy(machine, column, pixels))
}

/// `gradOutput inputSize kernelSize dilation padding stride → out`: the sum of what the windows say about each pixel.
fn im2col_backward(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (grad, out) = (args.tensor(0)?, args.output(6)?);
    ensure!(class(out.dtype) != Class::Int, "out: type {} holds no gradient", lane::name(out.dtype));
    let size = args.ints(1).unwrap_or_default();
    let fits = out.ndim() >= 2 && size.len() == 2 && (0..2).all(|i| out.dim(out.ndim() - 2 + i) as i64 == size[i]);
    ensure!(fits, "out: shape {:?}, want [… {size:?}]", out.dims());
    let parts = parts(args, out, grad, 2).map_err(|f| f.about("gradOutput"))?;
    super::fill::zero(machine, &out)?;
    parts.iter().try_for_each(|(pixels, column)| add(machine, pixels, column))
}

/// `gradOut inputSizes dim size step → gradIn`: the sum of what the windows, whose elements are gradOut's last dimension, say
/// about each element.
fn unfold_grad(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (grad, out) = (args.tensor(0)?, args.output(5)?);
    let (size, step) = (args.int(3)?, args.int(4)?);
    ensure!(class(out.dtype) != Class::Int, "gradIn: type {} holds no gradient", lane::name(out.dtype));
    ensure!(out.ndim() > 0 && grad.ndim() == out.ndim() + 1, "gradOut: shape {:?} for {:?}", grad.dims(), out.dims());
    let dim = args.dim(2, out.ndim())?;
    let last = out.ndim();
    ensure!((1..1 << 40).contains(&step), "step: {step}");
    ensure!(grad.dim(last) as i64 == size, "gradOut: windows of {}, want {size}", grad.dim(last));
    let windows = grad.dim(dim);
    let reach = windows.saturating_sub(1).saturating_mul(step as usize).saturating_add(size as usize);
    let fits = (windows == 0 || size == 0 || reach <= out.dim(dim))
        && (0..out.ndim()).all(|d| d == dim || grad.dim(d) == out.dim(d));
    ensure!(fits, "gradOut: shape {:?} does not fit {:?}", grad.dims(), out.dims());
    super::fill::zero(machine, &out)?;
    if windows == 0 {
        return Ok(());
    }
    (0..size as usize).try_for_each(|i| add(machine, &out.step(dim, i, step as isize, windows), &grad.select(last, i)))
}

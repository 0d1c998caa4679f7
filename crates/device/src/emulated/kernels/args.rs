//! The arguments of one call, by position, with errors that name the parameter.

use acl_abi::{Arg, DataType, OpCall, OpId, Param, Scalar, TensorDesc};

use super::fault::{Fault, Outcome, ensure};
use super::lane;
use super::view::View;

/// Typed access to a call's arguments.
#[derive(Clone, Copy)]
pub struct Args<'a> {
    call: &'a OpCall,
    total: u64,
}

impl<'a> Args<'a> {
    /// Arguments of `call`, for a device with `total` bytes of memory.
    pub fn new(call: &'a OpCall, total: u64) -> Self {
        Self { call, total }
    }

    /// The operator.
    pub fn op(&self) -> OpId {
        self.call.op
    }

    /// Name of the parameter at `position`.
    pub fn name(&self, position: usize) -> &'static str {
        self.call.op.signature().params.get(position).map_or("?", |p| p.name)
    }

    /// The operator's parameters.
    pub fn params(&self) -> &'static [Param] {
        self.call.op.signature().params
    }

    /// True for the form of an operator that writes over its first parameter.
    pub fn is_in_place(&self) -> bool {
        self.call.op.name().starts_with("aclnnInplace")
    }

    /// A tensor that must be there.
    pub fn tensor(&self, position: usize) -> Outcome<View> {
        self.optional(position)?.ok_or_else(|| Fault::new("a tensor is required").about(self.name(position)))
    }

    /// A tensor or null.
    pub fn optional(&self, position: usize) -> Outcome<Option<View>> {
        let desc = self.desc(position)?;
        desc.map(|desc| plain(desc, self.total).map_err(|f| f.about(self.name(position)))).transpose()
    }

    /// A tensor, which may lie in FRACTAL_NZ: for operators that read it by its pieces ([`View::pieces`]).
    pub fn matrix(&self, position: usize) -> Outcome<View> {
        let about = |fault: Fault| fault.about(self.name(position));
        let desc = self.desc(position)?.ok_or_else(|| about(Fault::new("a tensor is required")))?;
        View::new(desc, self.total).map_err(about)
    }

    /// How a tensor is described; nothing of it is checked.
    pub fn desc(&self, position: usize) -> Outcome<Option<&'a TensorDesc>> {
        let about = |fault: Fault| fault.about(self.name(position));
        match self.call.args.get(position) {
            Some(Arg::Absent) => Ok(None),
            Some(Arg::Tensor(_)) => {
                let desc = self.call.tensor(position);
                desc.map(Some).ok_or_else(|| about(Fault::new("tensor index out of range")))
            }
            _ => Err(about(Fault::new("a tensor is required"))),
        }
    }

    /// Bytes of device memory.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The real and the imaginary parts of a tensor, as tensors of their own; the latter only of a complex one.
    pub fn parts(&self, position: usize) -> Outcome<(View, Option<View>)> {
        let part = match self.call.tensor(position).map(|desc| desc.dtype) {
            Some(DataType::Complex64) => DataType::F32,
            Some(DataType::Complex128) => DataType::F64,
            _ => return Ok((self.tensor(position)?, None)),
        };
        let view = |second: i64| {
            // Pairs of numbers: every step is two, and the imaginary part lies behind the real one.
            let mut desc = *self.call.tensor(position).expect("checked above");
            let twice = |step: i64| step.checked_mul(2).ok_or_else(|| Fault::new("strides overflow"));
            desc.dtype = part;
            desc.offset = twice(desc.offset)?.wrapping_add(second);
            for stride in &mut desc.strides {
                *stride = twice(*stride)?;
            }
            View::new(&desc, self.total)
        };
        let about = |fault: Fault| fault.about(self.name(position));
        Ok((view(0).map_err(about)?, Some(view(1).map_err(about)?)))
    }

    /// The same of a tensor that is written.
    pub fn output_parts(&self, position: usize) -> Outcome<(View, Option<View>)> {
        let (real, imaginary) = self.parts(position)?;
        Ok((self.writable(position, real)?, imaginary))
    }

    /// A tensor that is written.
    pub fn output(&self, position: usize) -> Outcome<View> {
        let view = self.tensor(position)?;
        self.writable(position, view)
    }

    /// A tensor that is written, or null.
    pub fn optional_output(&self, position: usize) -> Outcome<Option<View>> {
        self.optional(position)?.map(|view| self.writable(position, view)).transpose()
    }

    /// `view`, the argument at `position`, if it can be written.
    pub fn writable(&self, position: usize, view: View) -> Outcome<View> {
        ensure!(
            !view.repeats(),
            "{}: several indices name one element; an output cannot be expanded",
            self.name(position)
        );
        Ok(view)
    }

    /// Tensors of a list.
    pub fn tensors(&self, position: usize) -> Outcome<impl ExactSizeIterator<Item = Outcome<View>> + Clone + use<'a>> {
        let (name, total) = (self.name(position), self.total);
        Ok(self.list(position)?.iter().map(move |desc| plain(desc, total).map_err(|f| f.about(name))))
    }

    /// Tensors of a list, which may lie in FRACTAL_NZ: as [`Self::matrix`].
    pub fn matrices(&self, position: usize) -> Outcome<Vec<View>> {
        let list = self.list(position)?.iter();
        list.map(|desc| View::new(desc, self.total).map_err(|f| f.about(self.name(position)))).collect()
    }

    fn list(&self, position: usize) -> Outcome<&'a [TensorDesc]> {
        let list = self.call.tensor_list(position);
        list.ok_or_else(|| Fault::new("a tensor list is required").about(self.name(position)))
    }

    /// The only tensor of a list, or a tensor.
    pub fn only(&self, position: usize) -> Outcome<View> {
        if let Some(Arg::Tensor(_)) = self.call.args.get(position) {
            return self.tensor(position);
        }
        let mut list = self.tensors(position)?;
        let (count, name) = (list.len(), self.name(position));
        match list.next() {
            Some(view) if count == 1 => view,
            _ => Err(Fault::new(format!("{name}: a list of {count} tensors is not supported (1)"))),
        }
    }

    /// Entries of a list of tensors, of which some may be absent.
    pub fn optional_tensors(&self, position: usize) -> Outcome<Vec<Option<View>>> {
        self.tensors(position)?.map(|view| view.map(Some)).collect()
    }

    /// Tensors of a list that are written.
    pub fn outputs(&self, position: usize) -> Outcome<Vec<View>> {
        self.tensors(position)?.map(|view| self.writable(position, view?)).collect()
    }

    /// A scalar of a type that kernels compute with.
    pub fn scalar(&self, position: usize) -> Outcome<Scalar> {
        let name = self.name(position);
        let scalar = self.call.scalar(position).ok_or_else(|| Fault::new("a scalar is required").about(name))?;
        ensure!(lane::is_supported(scalar.dtype), "{name}: type {} is not supported", lane::name(scalar.dtype));
        Ok(scalar)
    }

    /// Scalars of a list, each of a type that kernels compute with.
    pub fn scalars(&self, position: usize) -> Outcome<&'a [Scalar]> {
        let name = self.name(position);
        let list = self.call.scalar_list(position);
        let list = list.ok_or_else(|| Fault::new("a scalar list is required").about(name))?;
        for scalar in list {
            ensure!(lane::is_supported(scalar.dtype), "{name}: type {} is not supported", lane::name(scalar.dtype));
        }
        Ok(list)
    }

    /// An integer, bool or data type.
    pub fn int(&self, position: usize) -> Outcome<i64> {
        self.call.int(position).ok_or_else(|| Fault::new("an integer is required").about(self.name(position)))
    }

    /// The bits of a 64-bit integer, signed or not: a seed.
    pub fn bits(&self, position: usize) -> Outcome<u64> {
        match self.call.args.get(position) {
            Some(Arg::UInt(value)) => Ok(*value),
            _ => self.int(position).map(|value| value as u64),
        }
    }

    /// A floating-point number.
    pub fn float(&self, position: usize) -> Outcome<f64> {
        self.call.float(position).ok_or_else(|| Fault::new("a number is required").about(self.name(position)))
    }

    /// An int array, or null.
    pub fn ints(&self, position: usize) -> Option<&'a [i64]> {
        self.call.ints(position)
    }

    /// A string; empty where null.
    pub fn text(&self, position: usize) -> Outcome<&'a str> {
        let bytes = self.call.str(position).unwrap_or_default();
        std::str::from_utf8(bytes).map_err(|_| Fault::new("not UTF-8").about(self.name(position)))
    }

    /// True where the argument is null.
    pub fn is_absent(&self, position: usize) -> bool {
        matches!(self.call.args.get(position), Some(Arg::Absent))
    }

    /// A dimension index of a tensor with `ndim` dimensions; negative ones count from the end.
    pub fn dim(&self, position: usize, ndim: usize) -> Outcome<usize> {
        wrap_dim(self.name(position), self.int(position)?, ndim)
    }
}

/// A view that is addressed by its strides.
fn plain(desc: &TensorDesc, total: u64) -> Outcome<View> {
    let view = View::new(desc, total)?;
    ensure!(
        view.strip_dim().is_none(),
        "format FRACTAL_NZ is only for weights of products and for NpuFormatCast, which makes it plain"
    );
    Ok(view)
}

/// Dimension `dim` of a tensor with `ndim` dimensions (0-d counts as one); negative ones count from the end.
pub fn wrap_dim(name: &str, dim: i64, ndim: usize) -> Outcome<usize> {
    let ndim = ndim.max(1) as i64;
    ensure!((-ndim..ndim).contains(&dim), "{name}: dimension {dim} of a tensor with {ndim}");
    Ok(dim.rem_euclid(ndim) as usize)
}

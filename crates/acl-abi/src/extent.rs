//! Operators whose output has a data-dependent size: which dimension of which output the data decide.
//!
//! A caller allocates the output for the worst case, waits for the operator, and reads the size that was found with
//! `aclGetViewShape`. A device that computes the operator reports one number, the *extent*: the size of each dimension
//! listed here. Operators that are given their output's size (`aclnnRepeatInterleave` with `outputSize`) are not listed.

use crate::{Arg, OpCall, OpId, ops};

/// `dim` of `aclnnUniqueConsecutive` that means "of the flattened tensor", as torch_npu passes it.
pub const NO_DIM: i64 = 1000;

/// Which dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axis {
    /// This one.
    Fixed(usize),
    /// The one that the parameter `dim` names; below zero counts from the last, [`NO_DIM`] is the first.
    Dim,
}

/// One output of a data-dependent size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Parameter of the output.
    pub output: &'static str,
    /// Its dimension.
    pub axis: Axis,
}

const fn at(output: &'static str, axis: usize) -> Extent {
    Extent { output, axis: Axis::Fixed(axis) }
}

const fn along_dim(output: &'static str) -> Extent {
    Extent { output, axis: Axis::Dim }
}

/// Every operator with such outputs.
pub const TABLE: &[(OpId, &[Extent])] = &[
    (ops::aclnnMaskedSelect, &[at("out", 0)]),
    (ops::aclnnNonMaxSuppression, &[at("selectedIndices", 0)]),
    (ops::aclnnNonzero, &[at("out", 0)]),
    (ops::aclnnNonzeroV2, &[at("out", 1)]),
    (ops::aclnnUnique, &[at("valueOut", 0)]),
    (ops::aclnnUnique2, &[at("valueOut", 0), at("countsOut", 0)]),
    (ops::aclnnUniqueConsecutive, &[along_dim("valueOut"), at("countsOut", 0)]),
    (ops::aclnnUniqueDim, &[along_dim("valueOut"), at("countsOut", 0)]),
];

/// The outputs of `op` that have a data-dependent size; empty for most operators.
pub fn of(op: OpId) -> &'static [Extent] {
    TABLE.iter().find(|(id, _)| *id == op).map_or(&[], |(_, extents)| extents)
}

impl Extent {
    /// The dimension of the output, which has `ndim`; `None` where the call names none that it has.
    pub fn axis_of(&self, call: &OpCall, ndim: usize) -> Option<usize> {
        let axis = match self.axis {
            Axis::Fixed(axis) => axis,
            Axis::Dim => match call.args.get(call.op.signature().position("dim")?)? {
                Arg::Int(NO_DIM) => 0,
                Arg::Int(dim) if *dim < 0 => usize::try_from(dim + ndim as i64).ok()?,
                Arg::Int(dim) => usize::try_from(*dim).ok()?,
                _ => return None,
            },
        };
        (axis < ndim).then_some(axis)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DataType, Kind, TensorDesc};

    #[test]
    fn every_entry_names_an_output_and_its_dim() {
        for (op, extents) in TABLE {
            let signature = op.signature();
            for extent in *extents {
                let output = signature.params.iter().find(|p| p.name == extent.output).expect(extent.output);
                assert_eq!(output.kind, Kind::TensorOut, "{}", signature.name);
                let dim = signature.params.iter().find(|p| p.name == "dim");
                assert!(extent.axis != Axis::Dim || dim.is_some_and(|p| p.kind == Kind::I64), "{}", signature.name);
            }
        }
        assert!(of(ops::aclnnMatmul).is_empty());
    }

    #[test]
    fn axis_follows_dim() {
        let t = TensorDesc::contiguous(0, DataType::F32, &[2, 3, 4]);
        let call = |dim| {
            let mut call = OpCall::new(ops::aclnnUniqueConsecutive);
            call.push_tensor(Some(t)).push(Arg::Bool(false)).push(Arg::Bool(false)).push(Arg::Int(dim));
            call.push_tensor(Some(t)).push_tensor(None).push_tensor(None);
            call
        };
        let value = of(ops::aclnnUniqueConsecutive)[0];
        for (dim, want) in [(0, Some(0)), (2, Some(2)), (3, None), (-1, Some(2)), (-4, None), (NO_DIM, Some(0))] {
            assert_eq!(value.axis_of(&call(dim), 3), want, "dim {dim}");
        }
        assert_eq!(of(ops::aclnnNonzeroV2)[0].axis_of(&call(0), 2), Some(1));
        assert_eq!(of(ops::aclnnNonzeroV2)[0].axis_of(&call(0), 1), None);
    }
}

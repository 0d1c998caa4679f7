//! What one operator says about the step it belongs to, from its shapes and host-side arrays.

use super::plan::{self, Compute};
use super::{AttentionBatch, attention, formulas::tensors};
use acl_abi::{OpCall, TensorDesc};

/// What an operator shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Evidence {
    /// Nothing.
    None,
    /// Embeddings of so many tokens are looked up; `each` a sequence where the indices have a row for each.
    LookUp { tokens: u64, each: Option<u64> },
    /// Attention over this batch.
    Attention(AttentionBatch),
    /// A product of so many rows with one matrix.
    Rows(u64),
    /// Products of many pairs of matrices, each with a result of `queries` rows and `keys` columns: scores, perhaps.
    Scores { queries: u64, keys: u64 },
    /// Lines of `keys` elements are normalised, `queries` of them a matrix, of `sequences` sequences. Attention that is
    /// spelt out in single operators, if scores of this shape came before.
    Softmax { sequences: u64, queries: u64, keys: u64 },
}

/// The last two dimensions.
fn matrix(t: &TensorDesc) -> Option<(u64, u64)> {
    let [.., rows, columns] = t.dims() else { return None };
    Some(((*rows).max(0) as u64, (*columns).max(0) as u64))
}

/// Reads `call`.
pub(crate) fn evidence(call: &OpCall) -> Evidence {
    read(call).unwrap_or(Evidence::None)
}

fn read(call: &OpCall) -> Option<Evidence> {
    let plan = plan::of(call.op);
    if let Some(indices) = plan.lookup {
        let indices = call.tensor(indices.into())?;
        let each = if let [_, each] = indices.dims() { Some((*each).max(0) as u64) } else { None };
        return Some(Evidence::LookUp { tokens: indices.elements(), each });
    }
    if let Some(input) = plan.softmax {
        let t = call.tensor(input.into())?;
        let (queries, keys) = matrix(t).filter(|_| t.ndim >= 3)?;
        let sequences = if t.ndim == 4 { t.dims()[0].max(0) as u64 } else { 1 };
        return Some(Evidence::Softmax { sequences, queries, keys });
    }
    match &plan.compute {
        Compute::Attention(params) => attention::batch(call, params, |_, _| ()).map(Evidence::Attention),
        Compute::Product { a, b, out, .. } => {
            let left = tensors(call, (*a).into()).first()?;
            let right = tensors(call, (*b).into());
            if let [right] = right
                && right.ndim >= 3
                && left.ndim >= 3
            {
                let (queries, keys) = matrix(tensors(call, (*out)?.into()).first()?)?;
                return Some(Evidence::Scores { queries, keys });
            }
            let (_, rest) = left.dims().split_last()?;
            Some(Evidence::Rows(rest.iter().fold(1u64, |n, &d| n.saturating_mul(d.max(0) as u64))))
        }
        _ => None,
    }
}

/// Hands out the query and key tokens of every sequence of an attention operator.
pub(crate) fn sequences(call: &OpCall, each: impl FnMut(u64, u64)) {
    if let Compute::Attention(params) = &plan::of(call.op).compute {
        attention::batch(call, params, each);
    }
}

//! How queries, keys, values and results of attention lie, brought into one form: tokens, heads, width.

use super::super::fault::{Fault, Outcome, ensure};
use super::super::view::View;
use super::plan::Sequence;
use crate::emulated::hbm::Hbm;

/// Order of the dimensions, in the operators' letters: T tokens of all sequences, B sequences, S tokens of one, N heads,
/// D width, H = N·D.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Layout {
    Tnd,
    Ntd,
    Bsnd,
    Bnsd,
    Bsh,
    Sbh,
}

impl Layout {
    /// The layout of this name.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "TND" => Self::Tnd,
            "NTD" => Self::Ntd,
            "BSND" => Self::Bsnd,
            "BNSD" => Self::Bnsd,
            "BSH" => Self::Bsh,
            "SBH" => Self::Sbh,
            _ => return None,
        })
    }

    /// True where all sequences lie one after another in one dimension.
    pub fn is_packed(self) -> bool {
        matches!(self, Self::Tnd | Self::Ntd)
    }

    /// The view with dimensions in the order tokens, heads, width; sequences before them except in packed layouts.
    pub fn tokens(self, view: View, heads: usize) -> Outcome<View> {
        let (ndim, order, head_dim) = match self {
            Self::Tnd => (3, "[tokens, heads, size]", 1),
            Self::Ntd => (3, "[heads, tokens, size]", 0),
            Self::Bsnd => (4, "[sequences, tokens, heads, size]", 2),
            Self::Bnsd => (4, "[sequences, heads, tokens, size]", 1),
            Self::Bsh => (3, "[sequences, tokens, heads·size]", 2),
            Self::Sbh => (3, "[tokens, sequences, heads·size]", 2),
        };
        ensure!(view.ndim() == ndim, "shape {:?}, want {order}", view.dims());
        if matches!(self, Self::Bsh | Self::Sbh) {
            let merged = view.dim(2);
            ensure!(merged.is_multiple_of(heads), "last dimension {merged} is not a multiple of {heads} heads");
            let view = if self == Self::Sbh { view.transpose(0, 1) } else { view };
            return Ok(view.split(2, heads, merged / heads));
        }
        ensure!(view.dim(head_dim) == heads, "shape {:?}, want {order} with {heads} heads", view.dims());
        Ok(match self {
            Self::Bnsd => view.transpose(1, 2),
            Self::Ntd => view.transpose(0, 1),
            _ => view,
        })
    }
}

/// Keys, or values.
#[derive(Clone, Copy)]
pub enum Tokens {
    /// `[tokens, heads, width]` of all sequences together.
    Packed(View),
    /// `[sequences, tokens, heads, width]`.
    Batched(View),
    /// `[blocks, block size, heads, width]` and the block table.
    Paged(View, View),
}

impl Tokens {
    fn view(&self) -> &View {
        match self {
            Self::Packed(view) | Self::Batched(view) | Self::Paged(view, _) => view,
        }
    }

    /// Width of a head.
    pub fn width(&self) -> usize {
        self.view().dim(self.view().ndim() - 1)
    }

    /// Sizes of all but the head dimension and the width.
    pub fn counts(&self) -> &[usize] {
        &self.view().dims()[..self.view().ndim() - 2]
    }

    /// Tokens of a head from `from` on, as far as they lie together and at most `limit`: `[tokens, width]`.
    pub fn piece(&self, hbm: &Hbm, sequence: &Sequence, head: usize, from: usize, limit: usize) -> Outcome<View> {
        let left = limit.min(sequence.keys - from);
        Ok(match self {
            Self::Packed(view) => view.select(1, head).narrow(0, sequence.first_key + from, left),
            Self::Batched(view) => view.select(0, sequence.index).select(1, head).narrow(0, from, left),
            Self::Paged(cache, table) => {
                let size = cache.dim(1);
                let block = table.select(0, sequence.index).row().integer(hbm, from / size);
                let block = usize::try_from(block).ok().filter(|&b| b < cache.dim(0));
                let block = block.ok_or_else(|| Fault::new("block table: changed while in use"))?;
                let inside = from % size;
                cache.select(0, block).select(1, head).narrow(0, inside, left.min(size - inside))
            }
        })
    }
}

/// A paged cache as `[blocks, block size, heads, width]`.
pub fn cache(view: View, block_size: i64, heads: usize) -> Outcome<View> {
    let size = usize::try_from(block_size).ok().filter(|&size| size > 0);
    let size = size.ok_or_else(|| Fault::new(format!("blockSize {block_size} is not positive")))?;
    let wrong = || {
        Fault::new(format!(
            "shape {:?} is not a cache with blocks of {size} and {heads} heads: want [blocks, {size}, {heads}·size], \
             [blocks, {size}, {heads}, size] or [blocks, {heads}, {size}, size]",
            view.dims()
        ))
    };
    match view.ndim() {
        3 if view.dim(1) == size && view.dim(2).is_multiple_of(heads) => Ok(view.split(2, heads, view.dim(2) / heads)),
        4 if view.dim(1) == size && view.dim(2) == heads => {
            let clear = size != heads || size == 1;
            ensure!(
                clear,
                "blockSize: {size} equals the number of heads, so the order of dimensions is ambiguous; pass three"
            );
            Ok(view)
        }
        4 if view.dim(1) == heads && view.dim(2) == size => Ok(view.transpose(1, 2)),
        _ => Err(wrong()),
    }
}

/// Start and length of entry `index` of cumulative ends.
pub fn range(ends: &[i64], index: usize) -> (usize, usize) {
    let start = if index == 0 { 0 } else { ends[index - 1] };
    (start as usize, (ends[index] - start) as usize)
}

/// Length `index`, the one for all, or `otherwise`.
pub fn per_sequence(lengths: Option<&[i64]>, index: usize, otherwise: usize) -> usize {
    match lengths {
        Some([all]) => *all as usize,
        Some(lengths) => lengths[index] as usize,
        None => otherwise,
    }
}

/// Refuses ends that fall, or reach past `limit` tokens.
pub fn check_ends(ends: &[i64], limit: usize) -> Outcome {
    let mut last = 0;
    for &end in ends {
        ensure!(end >= last, "{end} after {last}: cumulative lengths cannot fall");
        last = end;
    }
    ensure!(last as u64 <= limit as u64, "{last} tokens, the tensor has {limit}");
    Ok(())
}

/// Refuses lengths above `limit`, or not one a sequence (or one for all).
pub fn check_each(lengths: &[i64], sequences: usize, limit: usize, one_for_all: bool) -> Outcome {
    let fits = lengths.len() == sequences || one_for_all && lengths.len() == 1;
    ensure!(fits, "{} entries for {sequences} sequences", lengths.len());
    for (i, &length) in lengths.iter().enumerate() {
        let inside = u64::try_from(length).is_ok_and(|length| length <= limit as u64);
        ensure!(inside, "{length} of sequence {i} is not in 0..={limit}");
    }
    Ok(())
}

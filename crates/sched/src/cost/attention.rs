//! Attention operators: what their shapes and length arrays say about the batch.
//!
//! One pass over the host-side length arrays gives everything that the cost and the phase depend on. Conventions, as
//! unmodified engines use them (observed):
//!
//! - layout `TND`: the query lengths are cumulative; the key lengths are cumulative too, unless a block table is given,
//!   then they are one a sequence;
//! - other layouts: one length a sequence, one length for all, or none (the padded length counts);
//! - the incremental operators have one query token a sequence and pass key lengths as `actualSeqLengths`;
//! - a sequence without keys is padding of a captured graph and costs nothing.

use super::plan::AttentionParams;
use acl_abi::{OpCall, TensorDesc};

/// What an attention operator works on, summed over its sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct AttentionBatch {
    /// Sequences with one query token and keys before it. A batch in which no sequence has more than a key counts as
    /// prompts of one token.
    pub decoding: u64,
    /// Other sequences.
    pub prefilling: u64,
    /// Query tokens of all sequences.
    pub query_tokens: u64,
    /// Key tokens that are read, of all sequences.
    pub key_tokens: u64,
    /// Query-key pairs that are computed (a head), the causal half left out where the operator skips it.
    pub scores: u64,
    /// Query heads.
    pub heads: u64,
    /// Key heads.
    pub kv_heads: u64,
    /// Elements of a head.
    pub head_dim: u64,
    /// Elements of the separate rotary part of a head, 0 without one.
    pub rope_dim: u64,
}

/// Sequences looked at. Sizes come from the client and nothing has checked them against memory yet; no engine batches
/// as many.
const SEQUENCES_MAX: u64 = 1 << 16;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Layout {
    Tnd,
    Ntd,
    Bsnd,
    Bnsd,
    Bsh,
    Sbh,
}

impl Layout {
    fn of(name: &[u8], ndim: u8) -> Option<Self> {
        let name = name.split(|&b| b == b'_').next().unwrap_or(name);
        Some(match (name, ndim) {
            (b"TND", 3) => Self::Tnd,
            (b"NTD", 3) => Self::Ntd,
            (b"BSND", 4) => Self::Bsnd,
            (b"BNSD", 4) => Self::Bnsd,
            (b"BSH", 3) => Self::Bsh,
            (b"SBH", 3) => Self::Sbh,
            _ => return None,
        })
    }

    fn packed(self) -> bool {
        matches!(self, Self::Tnd | Self::Ntd)
    }

    /// (sequences, tokens a sequence, heads if the layout shows them, last dimension); packed: one sequence of all tokens.
    fn split(self, t: &TensorDesc) -> (u64, u64, Option<u64>, u64) {
        let d: [u64; 4] = std::array::from_fn(|i| t.dims()[..].get(i).map_or(1, |&d| d.max(0) as u64));
        match self {
            Self::Tnd => (1, d[0], Some(d[1]), d[2]),
            Self::Ntd => (1, d[1], Some(d[0]), d[2]),
            Self::Bsnd => (d[0], d[1], Some(d[2]), d[3]),
            Self::Bnsd => (d[0], d[2], Some(d[1]), d[3]),
            Self::Bsh => (d[0], d[1], None, d[2]),
            Self::Sbh => (d[1], d[0], None, d[2]),
        }
    }
}

/// First tensor of a tensor or tensor list argument.
fn first(call: &OpCall, position: usize) -> Option<&TensorDesc> {
    call.tensor(position).or_else(|| call.tensor_list(position)?.first())
}

/// Reads the batch out of `call`; `None` where the shapes do not fit the layout. `each` gets the query and key tokens of
/// every sequence that is no padding.
pub(super) fn batch(call: &OpCall, p: &AttentionParams, mut each: impl FnMut(u64, u64)) -> Option<AttentionBatch> {
    let query = call.tensor(p.query.into())?;
    let key = first(call, p.key.into())?;
    let layout = Layout::of(call.str(p.layout.into())?, query.ndim)?;
    let (batch, seq, shown_heads, last) = layout.split(query);
    let heads = p.heads.and_then(|i| call.int(i.into())).filter(|&h| h > 0).map(|h| h as u64).or(shown_heads)?;
    let head_dim = if shown_heads.is_some() { last } else { last / heads.max(1) };
    let rope_dim = match p.query_rope.and_then(|i| call.tensor(i.into())) {
        Some(rope) => layout.split(rope).3 / if shown_heads.is_some() { 1 } else { heads.max(1) },
        None => 0,
    };
    let table = p.block_table.and_then(|i| call.tensor(i.into()));
    let key_split = (table.is_none() && key.ndim == query.ndim).then(|| layout.split(key));
    let kv_heads = p
        .kv_heads
        .and_then(|i| call.int(i.into()))
        .filter(|&h| h > 0)
        .map(|h| h as u64)
        .or(match key_split {
            Some((_, _, Some(shown), _)) => Some(shown),
            Some((_, _, None, last)) => Some(last / head_dim.max(1)),
            None => None,
        })
        .unwrap_or(heads);
    // Without a length: the padded key length, or all the blocks that a row of the table names.
    let block_size = p.block_size.and_then(|i| call.int(i.into())).unwrap_or(0).max(0) as u64;
    let key_len_max = match table {
        Some(t) => t.dims().last().map_or(0, |&d| d.max(0) as u64).saturating_mul(block_size),
        None => key_split.map_or(0, |s| s.1),
    };

    let q_lens = p.query_lens.and_then(|i| call.ints(i.into())).filter(|l| !l.is_empty());
    let kv_lens = p.key_lens.and_then(|i| call.ints(i.into())).filter(|l| !l.is_empty());
    let packed = layout.packed();
    let sequences = match (packed, q_lens, table) {
        (true, Some(l), _) => l.len() as u64,
        // One query token a row of the block table: a decode batch that passes no query lengths.
        (true, None, Some(t)) if t.dims().first() == Some(&(seq as i64)) => seq,
        (true, None, _) => 1,
        (false, _, _) => batch,
    };
    let mut sum = AttentionBatch { heads, kv_heads, head_dim, rope_dim, ..AttentionBatch::default() };
    let mask = Mask::of(call, p);
    let (mut q_before, mut kv_before) = (0i64, 0i64);
    let mut first_tokens = 0;
    for i in 0..sequences.min(SEQUENCES_MAX) as usize {
        let q = match q_lens {
            _ if p.one_query_token => 1,
            Some(l) if packed => {
                let q = l[i].saturating_sub(q_before).max(0) as u64;
                q_before = l[i];
                q
            }
            Some(l) => (l[if l.len() == 1 { 0 } else { i.min(l.len() - 1) }].max(0) as u64).min(seq),
            None if packed => seq / sequences,
            None => seq,
        };
        let kv = match kv_lens {
            Some(l) if packed && table.is_none() => {
                let end = l.get(i).copied().unwrap_or(kv_before);
                let kv = end.saturating_sub(kv_before).max(0) as u64;
                kv_before = end;
                kv
            }
            Some(l) => l[if l.len() == 1 { 0 } else { i.min(l.len() - 1) }].max(0) as u64,
            // Self-attention without key lengths: as many keys as queries.
            None if packed && table.is_none() => q_lens.map_or(key_len_max, |_| q),
            None => key_len_max,
        };
        if q == 0 || kv == 0 {
            continue;
        }
        each(q, kv);
        match (q, kv) {
            (1, 1) if !p.one_query_token => first_tokens += 1,
            (1, _) => sum.decoding += 1,
            _ => sum.prefilling += 1,
        }
        sum.query_tokens = sum.query_tokens.saturating_add(q);
        sum.key_tokens = sum.key_tokens.saturating_add(kv);
        sum.scores = sum.scores.saturating_add(mask.scores(q, kv));
    }
    // Beside others that decode, a sequence with one key is the padding of a captured graph.
    let fresh = if sum.decoding == 0 { &mut sum.prefilling } else { &mut sum.decoding };
    *fresh += first_tokens;
    Some(sum)
}

/// Which query-key pairs the operator leaves out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mask {
    /// None: a mask tensor, if any, is added to scores that are computed all the same.
    Dense,
    /// Query i sees keys 0..=i.
    LeftUp,
    /// The last query sees every key, each earlier one a key less.
    RightDown,
}

impl Mask {
    fn of(call: &OpCall, p: &AttentionParams) -> Self {
        let int = |p: Option<u8>| p.and_then(|i| call.int(i.into()));
        match int(p.sparse_mode) {
            Some(2) => Self::LeftUp,
            Some(3 | 4) => Self::RightDown,
            Some(0) | None if int(p.next_tokens) == Some(0) => Self::LeftUp,
            _ => Self::Dense,
        }
    }

    fn scores(self, q: u64, kv: u64) -> u64 {
        let triangle = |n: u64| n.saturating_mul(n + 1) / 2;
        match self {
            Self::Dense => q.saturating_mul(kv),
            Self::LeftUp if q <= kv => triangle(q),
            Self::LeftUp => triangle(kv).saturating_add((q - kv).saturating_mul(kv)),
            Self::RightDown if q <= kv => triangle(kv) - triangle(kv - q),
            Self::RightDown => triangle(kv),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Mask;

    #[test]
    fn causal_pairs_match_counting_them() {
        for (q, kv) in [(1u64, 1u64), (1, 9), (4, 4), (3, 7), (7, 3)] {
            let count = |sees: &dyn Fn(i64, i64) -> bool| {
                (0..q as i64).flat_map(|i| (0..kv as i64).map(move |j| (i, j))).filter(|&(i, j)| sees(i, j)).count()
                    as u64
            };
            assert_eq!(Mask::Dense.scores(q, kv), q * kv);
            assert_eq!(Mask::LeftUp.scores(q, kv), count(&|i, j| j <= i), "left-up {q}×{kv}");
            let shift = kv as i64 - q as i64;
            assert_eq!(Mask::RightDown.scores(q, kv), count(&|i, j| j <= i + shift), "right-down {q}×{kv}");
        }
    }
}

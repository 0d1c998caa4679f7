//! What one call of FusedInferAttentionScoreV3 asks for: arguments checked and brought into one form.
//!
//! Whatever the layout, a sequence's queries and results are views `[tokens, heads, size]`, its keys and values views
//! `[tokens, kv heads, size]` in one piece or in blocks of a paged cache.
//!
//! | | query, attentionOut | key, value | actualSeqLengths | actualSeqLengthsKv |
//! |---|---|---|---|---|
//! | TND | `[T, N, D]` | `[T', Nkv, D]` | cumulative | cumulative; per sequence where paged |
//! | BSND | `[B, S, N, D]` | `[B, S', Nkv, D]` | per sequence, one for all, or null | the same |
//! | BNSD | `[B, N, S, D]` | `[B, Nkv, S', D]` | the same | the same |
//! | BSH | `[B, S, N·D]` | `[B, S', Nkv·D]` | the same | the same |
//! | any, with blockTable `[B, max]` | as above | `[blocks, size, Nkv·D]`, `[blocks, size, Nkv, D]` or `[blocks, Nkv, size, D]` | as above | per sequence, required |
//!
//! Sparse mode 0 sees every key token, less what `attenMask` marks with a value other than 0. Mode 3 is causal, aligned at
//! the end: of `q` queries and `kv` keys, query `i` sees the first `kv − q + i + 1`. Its mask is the fixed compressed
//! triangle, so only the type is looked at, and null does as well. `innerPrecise` chooses among speeds of one result and is not looked at.

use acl_abi::DataType;

use super::args::Args;
use super::fault::{Fault, Outcome, ensure};
use super::gemm;
use super::lane::{self, Class, class};
use super::view::View;
use crate::emulated::hbm::Hbm;

/// Most heads that are accepted.
pub const HEADS_MAX: i64 = 4096;

/// Positions of the parameters; a test holds them against the signature table.
pub mod at {
    #![allow(missing_docs)]
    pub const QUERY: usize = 0;
    pub const KEY: usize = 1;
    pub const VALUE: usize = 2;
    pub const ATTEN_MASK: usize = 4;
    pub const LENGTHS_Q: usize = 5;
    pub const LENGTHS_KV: usize = 6;
    pub const BLOCK_TABLE: usize = 14;
    pub const NUM_HEADS: usize = 27;
    pub const SCALE: usize = 28;
    pub const PRE_TOKENS: usize = 29;
    pub const NEXT_TOKENS: usize = 30;
    pub const LAYOUT: usize = 31;
    pub const NUM_KV_HEADS: usize = 32;
    pub const SPARSE_MODE: usize = 33;
    pub const BLOCK_SIZE: usize = 35;
    pub const ANTIQUANT_MODE: usize = 36;
    pub const LSE_FLAG: usize = 37;
    pub const KEY_ANTIQUANT_MODE: usize = 38;
    pub const VALUE_ANTIQUANT_MODE: usize = 39;
    pub const OUT: usize = 40;
    pub const LSE: usize = 41;
    /// Parameters that must be null: quantisation, padding, shared prefixes, separate rotary parts, position shift.
    pub const UNSUPPORTED: [usize; 19] = [3, 7, 8, 9, 10, 11, 12, 13, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25];
    /// The same, of the last group.
    pub const KEY_ROPE_SCALE: usize = 26;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    Tnd,
    Bsnd,
    Bnsd,
    Bsh,
}

/// A checked call.
pub struct Plan<'a> {
    layout: Layout,
    query: View,
    out: View,
    lse: Option<View>,
    keys: Tokens,
    values: Tokens,
    mask: Option<View>,
    lengths_q: Option<&'a [i64]>,
    lengths_kv: Option<&'a [i64]>,
    /// Number of sequences.
    pub sequences: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of queries and keys.
    pub width: usize,
    /// Width of values and results.
    pub value_width: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// Query `i` sees the first `kv − q + i + 1` tokens.
    pub causal: bool,
}

/// Keys, or values.
#[derive(Clone, Copy)]
enum Tokens {
    /// `[tokens, heads, width]` of all sequences together.
    Packed(View),
    /// `[sequences, tokens, heads, width]`.
    Batched(View),
    /// `[blocks, block size, heads, width]` and the block table.
    Paged(View, View),
}

/// One sequence of a call.
#[derive(Clone, Copy)]
pub struct Sequence {
    /// Index.
    pub index: usize,
    /// `[tokens, heads, width]`.
    pub query: View,
    /// `[tokens, heads, value width]`.
    pub out: View,
    /// `[tokens, heads]`, single precision.
    pub lse: Option<View>,
    /// `[queries, keys]` or larger; other than 0 hides a key.
    pub mask: Option<View>,
    /// First key token, where sequences are packed.
    first_key: usize,
    /// Key tokens.
    pub keys: usize,
}

impl Sequence {
    /// Query tokens.
    pub fn queries(&self) -> usize {
        self.query.dim(0)
    }
}

impl<'a> Plan<'a> {
    /// Checks everything but the contents of the block table.
    pub fn new(args: &Args<'a>) -> Outcome<Self> {
        for position in at::UNSUPPORTED.into_iter().chain([at::KEY_ROPE_SCALE]) {
            ensure!(args.is_absent(position), "{}: not supported, pass null", args.name(position));
        }
        for position in [at::ANTIQUANT_MODE, at::KEY_ANTIQUANT_MODE, at::VALUE_ANTIQUANT_MODE] {
            let mode = args.int(position)?;
            ensure!(mode == 0, "{}: {mode} is not supported (0)", args.name(position));
        }
        let layout = match args.text(at::LAYOUT)? {
            "TND" => Layout::Tnd,
            "BSND" => Layout::Bsnd,
            "BNSD" => Layout::Bnsd,
            "BSH" => Layout::Bsh,
            other => return Err(Fault::new(format!("inputLayout: {other:?} is not supported (TND, BSND, BNSD, BSH)"))),
        };
        let heads = heads(args, at::NUM_HEADS, 0)?;
        let kv_heads = self::heads(args, at::NUM_KV_HEADS, heads)?;
        ensure!(heads % kv_heads == 0, "numKeyValueHeads: {kv_heads} does not divide numHeads {heads}");
        let query = float(args, at::QUERY, args.tensor(at::QUERY)?)?;
        let query = layout.tokens(query, heads).map_err(|f| f.about("query"))?;
        let out = float(args, at::OUT, args.output(at::OUT)?)?;
        let out = layout.tokens(out, heads).map_err(|f| f.about("attentionOut"))?;
        let paged = args.optional(at::BLOCK_TABLE)?;
        let block_size = args.int(at::BLOCK_SIZE)?;
        let key = only(args, at::KEY)?;
        let value = only(args, at::VALUE)?;
        let tokens = |view: View, name: &str| -> Outcome<Tokens> {
            let tokens = match paged {
                Some(table) => cache(view, block_size, kv_heads).map(|view| Tokens::Paged(view, table)),
                None => layout.tokens(view, kv_heads).map(|view| match layout {
                    Layout::Tnd => Tokens::Packed(view),
                    _ => Tokens::Batched(view),
                }),
            };
            tokens.map_err(|f| f.about(name))
        };
        let (keys, values) = (tokens(key, "key")?, tokens(value, "value")?);
        let (width, value_width) = (keys.width(), values.width());
        let last = query.ndim() - 1;
        ensure!(query.dim(last) == width, "key: head size {width}, but query has {}", query.dim(last));
        ensure!(out.dim(last) == value_width, "attentionOut: head size {}, but value has {value_width}", out.dim(last));
        ensure!(
            out.dims()[..last] == query.dims()[..last],
            "attentionOut: shape {:?} does not fit query's {:?}",
            out.dims(),
            query.dims()
        );
        ensure!(keys.counts() == values.counts(), "value: {:?}, but key has {:?}", values.counts(), keys.counts());
        let lengths_q = args.ints(at::LENGTHS_Q);
        let lengths_kv = args.ints(at::LENGTHS_KV);
        let sequences = match (layout, lengths_q) {
            (Layout::Tnd, Some(lengths)) => lengths.len(),
            (Layout::Tnd, None) => return Err(Fault::new("actualSeqLengthsOptional: required for layout TND")),
            _ => query.dim(0),
        };
        let mut plan = Self {
            layout,
            query,
            out,
            lse: None,
            keys,
            values,
            mask: None,
            lengths_q,
            lengths_kv,
            sequences,
            heads,
            kv_heads,
            width,
            value_width,
            scale: args.float(at::SCALE)? as f32,
            causal: false,
        };
        plan.check_lengths()?;
        plan.set_mask(args)?;
        plan.set_lse(args)?;
        Ok(plan)
    }

    /// Sequence `index`.
    pub fn sequence(&self, index: usize) -> Sequence {
        let (from, queries) = self.queries(index);
        let (first_key, keys) = self.key_range(index);
        let pick = |view: &View| match self.layout {
            Layout::Tnd => view.narrow(0, from, queries),
            _ => view.select(0, index).narrow(0, 0, queries),
        };
        let mask = self.mask.map(|mask| mask.select(0, if mask.dim(0) == 1 { 0 } else { index }));
        let lse = self.lse.as_ref().map(pick);
        Sequence { index, query: pick(&self.query), out: pick(&self.out), lse, mask, first_key, keys }
    }

    /// Parts of the results that belong to no query token.
    pub fn padding(&self, mut visit: impl FnMut(View)) {
        match self.layout {
            Layout::Tnd => {
                let used = self.lengths_q.and_then(|l| l.last()).map_or(0, |&end| end as usize);
                for view in [Some(self.out), self.lse].into_iter().flatten() {
                    visit(view.narrow(0, used, view.dim(0) - used));
                }
            }
            _ => {
                for index in 0..self.sequences {
                    let (_, used) = self.queries(index);
                    for view in [Some(self.out), self.lse].into_iter().flatten() {
                        let view = view.select(0, index);
                        visit(view.narrow(0, used, view.dim(0) - used));
                    }
                }
            }
        }
    }

    /// Keys of kv head `head` from token `from` on, as far as they lie together and at most `limit`: `[tokens, width]`.
    pub fn keys(&self, hbm: &Hbm, sequence: &Sequence, head: usize, from: usize, limit: usize) -> Outcome<View> {
        self.keys.piece(hbm, sequence, head, from, limit)
    }

    /// Values, like [`Self::keys`].
    pub fn values(&self, hbm: &Hbm, sequence: &Sequence, head: usize, from: usize, limit: usize) -> Outcome<View> {
        self.values.piece(hbm, sequence, head, from, limit)
    }

    /// Checks the entries of the block table that sequences use.
    pub fn check_table(&self, hbm: &Hbm) -> Outcome {
        let Tokens::Paged(cache, table) = self.keys else { return Ok(()) };
        for index in 0..self.sequences {
            let (_, keys) = self.key_range(index);
            let row = table.select(0, index).row();
            for entry in 0..keys.div_ceil(cache.dim(1)) {
                let block = row.integer(hbm, entry);
                ensure!(
                    (0..cache.dim(0) as i64).contains(&block),
                    "blockTableOptional: block {block} at [{index}, {entry}] is not in the cache's {} blocks",
                    cache.dim(0)
                );
            }
        }
        Ok(())
    }

    /// First query token, where sequences are packed, and number of query tokens.
    fn queries(&self, index: usize) -> (usize, usize) {
        match (self.layout, self.lengths_q) {
            (Layout::Tnd, Some(ends)) => range(ends, index),
            (_, lengths) => {
                (0, per_sequence(lengths, index, self.query.ndim().checked_sub(3).map_or(0, |d| self.query.dim(d))))
            }
        }
    }

    /// First key token, where sequences are packed, and number of key tokens.
    fn key_range(&self, index: usize) -> (usize, usize) {
        match (&self.keys, self.lengths_kv) {
            (Tokens::Packed(_), Some(ends)) => range(ends, index),
            (Tokens::Packed(view), None) => (0, view.dim(0)),
            (Tokens::Batched(view), lengths) => (0, per_sequence(lengths, index, view.dim(1))),
            (Tokens::Paged(..), lengths) => (0, per_sequence(lengths, index, 0)),
        }
    }

    fn check_lengths(&self) -> Outcome {
        let (name_q, name_kv) = ("actualSeqLengthsOptional", "actualSeqLengthsKvOptional");
        match (self.layout, self.lengths_q) {
            (Layout::Tnd, Some(ends)) => cumulative(ends, self.query.dim(0)).map_err(|f| f.about(name_q))?,
            (_, Some(lengths)) => {
                each(lengths, self.sequences, self.query.dim(1), true).map_err(|f| f.about(name_q))?;
            }
            (_, None) => {}
        }
        let check = match (&self.keys, self.lengths_kv) {
            (Tokens::Packed(view), Some(ends)) => {
                ensure!(
                    ends.len() == self.sequences,
                    "{name_kv}: {} entries for {} sequences",
                    ends.len(),
                    self.sequences
                );
                cumulative(ends, view.dim(0))
            }
            (Tokens::Packed(_), None) => Err(Fault::new("required for layout TND")),
            (Tokens::Batched(view), lengths) => {
                ensure!(
                    view.dim(0) == self.sequences,
                    "key: {} sequences, but query has {}",
                    view.dim(0),
                    self.sequences
                );
                lengths.map_or(Ok(()), |lengths| each(lengths, self.sequences, view.dim(1), true))
            }
            (Tokens::Paged(cache, table), lengths) => {
                let integers = class(table.dtype) == Class::Int && table.ndim() == 2;
                ensure!(
                    integers && table.dim(0) == self.sequences,
                    "blockTableOptional: {:?} {}, want int32 or int64 with [{}, blocks]",
                    table.dims(),
                    lane::name(table.dtype),
                    self.sequences
                );
                let capacity = table.dim(1).saturating_mul(cache.dim(1));
                match lengths {
                    Some(lengths) => each(lengths, self.sequences, capacity, false),
                    None => Err(Fault::new("required with a block table")),
                }
            }
        };
        check.map_err(|f| f.about(name_kv))
    }

    fn set_mask(&mut self, args: &Args<'_>) -> Outcome {
        let mask = args.optional(at::ATTEN_MASK)?;
        if let Some(mask) = &mask {
            let known = matches!(mask.dtype, DataType::Bool | DataType::I8 | DataType::U8);
            ensure!(known, "attenMaskOptional: type {}, want bool or int8", lane::name(mask.dtype));
        }
        match (args.int(at::SPARSE_MODE)?, mask) {
            (3, _) => self.causal = true,
            (0, None) => {}
            (0, Some(mask)) => {
                ensure!(
                    self.layout != Layout::Tnd,
                    "attenMaskOptional: not supported for layout TND with sparseMode 0"
                );
                let keys = (0..self.sequences).map(|i| self.key_range(i).1).max().unwrap_or(0);
                let queries = self.query.dim(1);
                for position in [at::PRE_TOKENS, at::NEXT_TOKENS] {
                    let tokens = args.int(position)?;
                    let all = tokens >= queries.max(keys) as i64;
                    ensure!(all, "{}: {tokens} restricts the mask, which is not supported", args.name(position));
                }
                let mask = match mask.ndim() {
                    2 => mask.unsqueeze(0),
                    3 => mask,
                    4 if mask.dim(1) == 1 => mask.select(1, 0),
                    _ => {
                        return Err(Fault::new(format!("attenMaskOptional: shape {:?} is not supported", mask.dims())));
                    }
                };
                let fits = (mask.dim(0) == 1 || mask.dim(0) == self.sequences)
                    && mask.dim(1) >= queries
                    && mask.dim(2) >= keys;
                ensure!(
                    fits,
                    "attenMaskOptional: shape {:?} does not cover {} sequences of {queries} queries and {keys} keys",
                    mask.dims(),
                    self.sequences
                );
                self.mask = Some(mask);
            }
            (mode, _) => return Err(Fault::new(format!("sparseMode: {mode} is not supported (0, 3)"))),
        }
        Ok(())
    }

    fn set_lse(&mut self, args: &Args<'_>) -> Outcome {
        if args.int(at::LSE_FLAG)? == 0 {
            return Ok(());
        }
        let lse = args.output(at::LSE)?;
        ensure!(lse.dtype == DataType::F32, "softmaxLse: type {}, want float32", lane::name(lse.dtype));
        // [T, N, 1] for TND, [B, N, S, 1] for the others.
        let last = self.query.ndim() - 1;
        let view = match self.layout {
            Layout::Tnd => (lse.ndim() == 3).then_some(lse),
            _ => (lse.ndim() == 4).then(|| lse.transpose(1, 2)),
        };
        match view {
            Some(view) if view.dims()[..last] == self.query.dims()[..last] && view.dim(last) == 1 => {
                self.lse = Some(view.select(last, 0));
                Ok(())
            }
            _ => Err(Fault::new(format!("softmaxLse: shape {:?} does not fit the query", lse.dims()))),
        }
    }
}

impl Layout {
    /// The view with dimensions in the order tokens, heads, width; sequences before them except in TND.
    fn tokens(self, view: View, heads: usize) -> Outcome<View> {
        let (ndim, order, head_dim) = match self {
            Self::Tnd => (3, "[tokens, heads, size]", 1),
            Self::Bsnd => (4, "[sequences, tokens, heads, size]", 2),
            Self::Bnsd => (4, "[sequences, heads, tokens, size]", 1),
            Self::Bsh => (3, "[sequences, tokens, heads·size]", 2),
        };
        ensure!(view.ndim() == ndim, "shape {:?}, want {order}", view.dims());
        let view = match self {
            Self::Bsh => {
                let merged = view.dim(2);
                ensure!(merged.is_multiple_of(heads), "last dimension {merged} is not a multiple of {heads} heads");
                return Ok(view.split(2, heads, merged / heads));
            }
            _ => view,
        };
        ensure!(view.dim(head_dim) == heads, "shape {:?}, want {order} with {heads} heads", view.dims());
        Ok(if self == Self::Bnsd { view.transpose(1, 2) } else { view })
    }
}

impl Tokens {
    fn view(&self) -> &View {
        match self {
            Self::Packed(view) | Self::Batched(view) | Self::Paged(view, _) => view,
        }
    }

    fn width(&self) -> usize {
        self.view().dim(self.view().ndim() - 1)
    }

    /// Sizes of all but the head dimension and the width.
    fn counts(&self) -> &[usize] {
        &self.view().dims()[..self.view().ndim() - 2]
    }

    fn piece(&self, hbm: &Hbm, sequence: &Sequence, head: usize, from: usize, limit: usize) -> Outcome<View> {
        let left = limit.min(sequence.keys - from);
        Ok(match self {
            Self::Packed(view) => view.select(1, head).narrow(0, sequence.first_key + from, left),
            Self::Batched(view) => view.select(0, sequence.index).select(1, head).narrow(0, from, left),
            Self::Paged(cache, table) => {
                let size = cache.dim(1);
                let block = table.select(0, sequence.index).row().integer(hbm, from / size);
                let block = usize::try_from(block).ok().filter(|&b| b < cache.dim(0));
                let block = block.ok_or_else(|| Fault::new("blockTableOptional: changed while in use"))?;
                let inside = from % size;
                cache.select(0, block).select(1, head).narrow(0, inside, left.min(size - inside))
            }
        })
    }
}

/// A number of heads; `or` where 0 is given and that is not 0.
fn heads(args: &Args<'_>, position: usize, or: usize) -> Outcome<usize> {
    match args.int(position)? {
        0 if or > 0 => Ok(or),
        heads @ 1..=HEADS_MAX => Ok(heads as usize),
        heads => Err(Fault::new(format!("{}: {heads} is not in 1..={HEADS_MAX}", args.name(position)))),
    }
}

fn float(args: &Args<'_>, position: usize, view: View) -> Outcome<View> {
    let name = args.name(position);
    ensure!(gemm::is_operand(view.dtype), "{name}: element type {} is not supported", lane::name(view.dtype));
    Ok(view)
}

/// The only tensor of a list.
fn only(args: &Args<'_>, position: usize) -> Outcome<View> {
    let mut list = args.tensors(position)?;
    let (count, name) = (list.len(), args.name(position));
    match list.next() {
        Some(view) if count == 1 => float(args, position, view?),
        _ => Err(Fault::new(format!("{name}: a list of {count} tensors is not supported (1)"))),
    }
}

/// A paged cache as `[blocks, block size, heads, width]`.
fn cache(view: View, block_size: i64, heads: usize) -> Outcome<View> {
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
fn range(ends: &[i64], index: usize) -> (usize, usize) {
    let start = if index == 0 { 0 } else { ends[index - 1] };
    (start as usize, (ends[index] - start) as usize)
}

/// Length `index`, the one for all, or `otherwise`.
fn per_sequence(lengths: Option<&[i64]>, index: usize, otherwise: usize) -> usize {
    match lengths {
        Some([all]) => *all as usize,
        Some(lengths) => lengths[index] as usize,
        None => otherwise,
    }
}

fn cumulative(ends: &[i64], limit: usize) -> Outcome {
    let mut last = 0;
    for &end in ends {
        ensure!(end >= last, "{end} after {last}: cumulative lengths cannot fall");
        last = end;
    }
    ensure!(last as u64 <= limit as u64, "{last} tokens, the tensor has {limit}");
    Ok(())
}

fn each(lengths: &[i64], sequences: usize, limit: usize, one_for_all: bool) -> Outcome {
    let fits = lengths.len() == sequences || one_for_all && lengths.len() == 1;
    ensure!(fits, "{} entries for {sequences} sequences", lengths.len());
    for (i, &length) in lengths.iter().enumerate() {
        let inside = u64::try_from(length).is_ok_and(|length| length <= limit as u64);
        ensure!(inside, "{length} of sequence {i} is not in 0..={limit}");
    }
    Ok(())
}

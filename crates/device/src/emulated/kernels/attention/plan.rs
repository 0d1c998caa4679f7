//! One call of attention in one form, whatever operator and layout it came in.
//!
//! A sequence's queries and results are views `[tokens, heads, size]`, its keys and values views `[tokens, kv heads, size]`
//! in one piece or in blocks of a paged cache. What a query sees is a band of keys ([`Band`]), less what a mask hides.

use acl_abi::DataType;

use super::super::args::Args;
use super::super::fault::{Fault, Outcome, ensure};
use super::super::gemm;
use super::super::lane::{self, Class, class};
use super::super::view::View;
use super::layout::{Layout, Tokens, check_each, check_ends, per_sequence, range};
use crate::emulated::hbm::Hbm;

/// Most heads that are accepted.
pub const HEADS_MAX: i64 = 4096;

/// Which keys a query sees: of a sequence with `q` queries and `kv` keys, query `i` sees keys
/// `i + s − before ..= i + s + after`, where `s` is `kv − q` with `at_end` and 0 without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Band {
    /// Keys before the diagonal; [`i64::MAX`]: all.
    pub before: i64,
    /// Keys after the diagonal; [`i64::MAX`]: all.
    pub after: i64,
    /// The diagonal ends at the last query and the last key, rather than begin at the first ones.
    pub at_end: bool,
}

impl Band {
    /// Every key.
    pub const ALL: Self = Self { before: i64::MAX, after: i64::MAX, at_end: false };

    /// The band of sparse mode `mode`, or `None` of one that is not supported; the second is true where the mode reads its
    /// mask (modes 2 to 4 come with a compressed triangle that says nothing new).
    ///
    /// 0: the mask decides, inside of `pre` and `next` tokens, which count only where there is a mask. 1: the mask alone.
    /// 2: causal from the first key. 3: causal up to the last key. 4: `pre` and `next` tokens around the diagonal at the end.
    pub fn of_mode(mode: i64, masked: bool, pre: i64, next: i64) -> Option<(Self, bool)> {
        let band = |before, after, at_end| Self { before, after, at_end };
        Some(match mode {
            0 if masked => (band(whole(pre), whole(next), false), true),
            0 => (Self::ALL, true),
            1 => (Self::ALL, true),
            2 => (band(i64::MAX, 0, false), false),
            3 => (band(i64::MAX, 0, true), false),
            4 => (band(whole(pre), whole(next), true), false),
            _ => return None,
        })
    }

    /// First key and end of the keys that query `index` sees.
    pub fn seen(&self, index: usize, queries: usize, keys: usize) -> (usize, usize) {
        let diagonal = index as i128 + if self.at_end { keys as i128 - queries as i128 } else { 0 };
        let limit = keys as i128;
        let from = if self.before == i64::MAX { 0 } else { diagonal - i128::from(self.before) };
        let end = if self.after == i64::MAX { limit } else { diagonal + i128::from(self.after) + 1 };
        let (from, end) = (from.clamp(0, limit), end.clamp(0, limit));
        (from.min(end) as usize, end as usize)
    }
}

/// `2³¹ − 1` and above say "all".
fn whole(tokens: i64) -> i64 {
    if tokens >= i64::from(i32::MAX) { i64::MAX } else { tokens }
}

/// Terms added to the scores.
#[derive(Clone, Copy)]
pub struct Bias {
    /// `[sequences or 1, heads or 1, queries or 1, keys]`.
    pub view: View,
    /// Added before the scores are scaled, rather than after.
    pub before_scale: bool,
}

/// Dropout of weights that the caller drew: one bit a weight, 1 keeps it, the lowest bit of a byte first, for
/// `[sequences, heads, queries, keys]` in this order.
#[derive(Clone, Copy)]
pub struct Dropout {
    /// Bytes.
    pub bits: View,
    /// Probability that a weight is kept; what is kept is divided by it.
    pub keep: f64,
}

/// A checked call.
pub struct Plan<'a> {
    layout: Layout,
    query: View,
    out: View,
    /// Keys.
    pub keys: Tokens,
    /// Values.
    pub values: Tokens,
    /// `[sequences or 1, heads or 1, queries, keys]` or larger; other than 0 hides a key.
    pub mask: Option<View>,
    /// Terms added to the scores.
    pub bias: Option<Bias>,
    /// Dropout of weights.
    pub dropout: Option<Dropout>,
    /// Log-sum-exp, in the query's form without its width, single precision.
    pub lse: Option<View>,
    /// Maximum and sum of every row's weights, in the query's form without its width, and 8 copies: single precision.
    pub statistics: Option<[View; 2]>,
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
    /// What a query sees.
    pub band: Band,
}

/// One sequence of a call.
#[derive(Clone, Copy)]
pub struct Sequence {
    /// Index.
    pub index: usize,
    /// First query token, where sequences are packed.
    pub first_query: usize,
    /// `[tokens, heads, width]`.
    pub query: View,
    /// `[tokens, heads, value width]`.
    pub out: View,
    /// `[heads or 1, queries, keys]` or larger; other than 0 hides a key.
    pub mask: Option<View>,
    /// `[heads or 1, queries or 1, keys]` or larger.
    pub bias: Option<View>,
    /// First key token, where sequences are packed.
    pub first_key: usize,
    /// Key tokens.
    pub keys: usize,
}

impl Sequence {
    /// Query tokens.
    pub fn queries(&self) -> usize {
        self.query.dim(0)
    }
}

/// The tensors and lengths of a call, and what their parameters are called, before they are checked.
pub struct Parts<'a> {
    pub layout: Layout,
    /// Layout of the result.
    pub out_layout: Layout,
    pub query: View,
    pub key: View,
    pub value: View,
    pub out: View,
    /// Block table and block size.
    pub paged: Option<(View, i64)>,
    pub heads: usize,
    pub kv_heads: usize,
    pub scale: f64,
    pub lengths_q: Option<&'a [i64]>,
    pub lengths_kv: Option<&'a [i64]>,
    pub names: Names,
}

/// Names of parameters in error texts.
#[derive(Clone, Copy)]
pub struct Names {
    pub out: &'static str,
    pub lengths_q: &'static str,
    pub lengths_kv: &'static str,
    pub table: &'static str,
    pub mask: &'static str,
}

impl<'a> Plan<'a> {
    /// Checks everything but the contents of the block table. Without mask, bias, statistics and log-sum-exp.
    pub fn new(parts: Parts<'a>) -> Outcome<Self> {
        let Parts { layout, out_layout, heads, kv_heads, names, .. } = parts;
        ensure!(heads % kv_heads == 0, "numKeyValueHeads: {kv_heads} does not divide numHeads {heads}");
        let query = layout.tokens(parts.query, heads).map_err(|f| f.about("query"))?;
        let out = out_layout.tokens(parts.out, heads).map_err(|f| f.about(names.out))?;
        let tokens = |view: View, name: &str| -> Outcome<Tokens> {
            let tokens = match parts.paged {
                Some((table, size)) => {
                    super::layout::cache(view, size, kv_heads).map(|view| Tokens::Paged(view, table))
                }
                None if layout.is_packed() => layout.tokens(view, kv_heads).map(Tokens::Packed),
                None => layout.tokens(view, kv_heads).map(Tokens::Batched),
            };
            tokens.map_err(|f| f.about(name))
        };
        let (keys, values) = (tokens(parts.key, "key")?, tokens(parts.value, "value")?);
        let (width, value_width) = (keys.width(), values.width());
        let last = query.ndim() - 1;
        ensure!(query.dim(last) == width, "key: head size {width}, but query has {}", query.dim(last));
        ensure!(
            out.dim(last) == value_width,
            "{}: head size {}, but value has {value_width}",
            names.out,
            out.dim(last)
        );
        ensure!(
            out.dims()[..last] == query.dims()[..last],
            "{}: shape {:?} does not fit query's {:?}",
            names.out,
            out.dims(),
            query.dims()
        );
        ensure!(keys.counts() == values.counts(), "value: {:?}, but key has {:?}", values.counts(), keys.counts());
        let sequences = match (layout.is_packed(), parts.lengths_q) {
            (true, Some(lengths)) => lengths.len(),
            (true, None) => return Err(Fault::new(format!("{}: required for layout TND", names.lengths_q))),
            _ => query.dim(0),
        };
        let plan = Self {
            layout,
            query,
            out,
            lse: None,
            statistics: None,
            keys,
            values,
            mask: None,
            bias: None,
            dropout: None,
            lengths_q: parts.lengths_q,
            lengths_kv: parts.lengths_kv,
            sequences,
            heads,
            kv_heads,
            width,
            value_width,
            scale: parts.scale as f32,
            band: Band::ALL,
        };
        plan.check_lengths(&names)?;
        Ok(plan)
    }

    /// Sets what queries see.
    pub fn set_mask(&mut self, mode: i64, mask: Option<View>, pre: i64, next: i64, names: &Names) -> Outcome {
        if let Some(mask) = &mask {
            let known = matches!(mask.dtype, DataType::Bool | DataType::I8 | DataType::U8);
            ensure!(known, "{}: type {}, want bool, int8 or uint8", names.mask, lane::name(mask.dtype));
        }
        let band = Band::of_mode(mode, mask.is_some(), pre, next);
        let (band, read) = band.ok_or_else(|| Fault::new(format!("sparseMode: {mode} is not supported (0 to 4)")))?;
        self.band = band;
        if mode == 1 {
            ensure!(mask.is_some(), "{}: required with sparseMode 1", names.mask);
        }
        self.mask = mask
            .filter(|_| read)
            .map(|mask| self.per_head(mask, false))
            .transpose()
            .map_err(|f| f.about(names.mask))?;
        Ok(())
    }

    /// A mask or bias as `[sequences or 1, heads or 1, queries, keys]`; three dimensions are sequences first. Sizes that
    /// are 1 serve all; one row serves all queries only `with_one_row`.
    pub fn per_head(&self, view: View, with_one_row: bool) -> Outcome<View> {
        let view = match view.ndim() {
            2 => view.unsqueeze(0).unsqueeze(1),
            3 => view.unsqueeze(1),
            4 => view,
            _ => return Err(Fault::new(format!("shape {:?} is not supported", view.dims()))),
        };
        let most = |length: &dyn Fn(usize) -> usize| (0..self.sequences).map(length).max().unwrap_or(0);
        let (queries, keys) = (most(&|i| self.queries(i).1), most(&|i| self.key_range(i).1));
        let fits = (view.dim(0) == 1 || view.dim(0) == self.sequences)
            && (view.dim(1) == 1 || view.dim(1) == self.heads)
            && (view.dim(2) >= queries || with_one_row && view.dim(2) == 1)
            && view.dim(3) >= keys;
        ensure!(
            fits,
            "shape {:?} does not cover {} sequences, {} heads, {queries} queries and {keys} keys",
            view.dims(),
            self.sequences,
            self.heads
        );
        Ok(view)
    }

    /// Sequence `index`.
    pub fn sequence(&self, index: usize) -> Sequence {
        let (first_query, queries) = self.queries(index);
        let (first_key, keys) = self.key_range(index);
        let own = |view: View| view.select(0, if view.dim(0) == 1 { 0 } else { index });
        Sequence {
            index,
            first_query,
            query: self.pick(&self.query, index, first_query, queries),
            out: self.pick(&self.out, index, first_query, queries),
            mask: self.mask.map(own),
            bias: self.bias.map(|bias| own(bias.view)),
            first_key,
            keys,
        }
    }

    /// The part of a view in the query's form that belongs to a sequence.
    pub fn of_sequence(&self, view: &View, sequence: &Sequence) -> View {
        self.pick(view, sequence.index, sequence.first_query, sequence.queries())
    }

    /// A tensor that lies like the query (or, with as many heads, the key) in the common form.
    pub fn in_form(&self, view: View, heads: usize) -> Outcome<View> {
        self.layout.tokens(view, heads)
    }

    /// The part of a view in the keys' form that belongs to a sequence.
    pub fn of_keys(&self, view: &View, sequence: &Sequence) -> View {
        let (from, keys) = (sequence.first_key, sequence.keys);
        if self.layout.is_packed() {
            view.narrow(0, from, keys)
        } else {
            view.select(0, sequence.index).narrow(0, from, keys)
        }
    }

    fn pick(&self, view: &View, index: usize, from: usize, queries: usize) -> View {
        if self.layout.is_packed() {
            view.narrow(0, from, queries)
        } else {
            view.select(0, index).narrow(0, 0, queries)
        }
    }

    /// Parts of the results that belong to no query token.
    pub fn padding(&self, mut visit: impl FnMut(View)) {
        let views = [Some(self.out), self.lse];
        if self.layout.is_packed() {
            let used = self.lengths_q.and_then(|l| l.last()).map_or(0, |&end| end as usize);
            for view in views.into_iter().flatten() {
                visit(view.narrow(0, used, view.dim(0) - used));
            }
            return;
        }
        for index in 0..self.sequences {
            let (_, used) = self.queries(index);
            for view in views.into_iter().flatten() {
                let view = view.select(0, index);
                visit(view.narrow(0, used, view.dim(0) - used));
            }
        }
    }

    /// Checks the entries of the block table that sequences use.
    pub fn check_table(&self, hbm: &Hbm, name: &str) -> Outcome {
        let Tokens::Paged(cache, table) = self.keys else { return Ok(()) };
        for index in 0..self.sequences {
            let (_, keys) = self.key_range(index);
            let row = table.select(0, index).row();
            for entry in 0..keys.div_ceil(cache.dim(1)) {
                let block = row.integer(hbm, entry);
                ensure!(
                    (0..cache.dim(0) as i64).contains(&block),
                    "{name}: block {block} at [{index}, {entry}] is not in the cache's {} blocks",
                    cache.dim(0)
                );
            }
        }
        Ok(())
    }

    /// First query token, where sequences are packed, and number of query tokens.
    fn queries(&self, index: usize) -> (usize, usize) {
        match self.lengths_q {
            Some(ends) if self.layout.is_packed() => range(ends, index),
            lengths => {
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

    fn check_lengths(&self, names: &Names) -> Outcome {
        match self.lengths_q {
            Some(ends) if self.layout.is_packed() => {
                check_ends(ends, self.query.dim(0)).map_err(|f| f.about(names.lengths_q))?;
            }
            Some(lengths) => {
                check_each(lengths, self.sequences, self.query.dim(1), true).map_err(|f| f.about(names.lengths_q))?;
            }
            None => {}
        }
        let check = match (&self.keys, self.lengths_kv) {
            (Tokens::Packed(view), Some(ends)) => {
                ensure!(
                    ends.len() == self.sequences,
                    "{}: {} entries for {} sequences",
                    names.lengths_kv,
                    ends.len(),
                    self.sequences
                );
                check_ends(ends, view.dim(0))
            }
            (Tokens::Packed(_), None) => Err(Fault::new("required for layout TND")),
            (Tokens::Batched(view), lengths) => {
                ensure!(
                    view.dim(0) == self.sequences,
                    "key: {} sequences, but query has {}",
                    view.dim(0),
                    self.sequences
                );
                lengths.map_or(Ok(()), |lengths| check_each(lengths, self.sequences, view.dim(1), true))
            }
            (Tokens::Paged(cache, table), lengths) => {
                let integers = class(table.dtype) == Class::Int && table.ndim() == 2;
                ensure!(
                    integers && table.dim(0) == self.sequences,
                    "{}: {:?} {}, want int32 or int64 with [{}, blocks]",
                    names.table,
                    table.dims(),
                    lane::name(table.dtype),
                    self.sequences
                );
                let capacity = table.dim(1).saturating_mul(cache.dim(1));
                match lengths {
                    Some(lengths) => check_each(lengths, self.sequences, capacity, false),
                    None => Err(Fault::new("required with a block table")),
                }
            }
        };
        check.map_err(|f| f.about(names.lengths_kv))
    }

    /// A per-row result in the query's form without its width; `[T, N, 1]`, or `[B, N, S, 1]` for padded layouts.
    pub fn rows(&self, view: View, copies: usize, name: &str) -> Outcome<View> {
        ensure!(view.dtype == DataType::F32, "{name}: type {}, want float32", lane::name(view.dtype));
        let last = self.query.ndim() - 1;
        let turned = match self.layout.is_packed() {
            true => (view.ndim() == 3).then_some(view),
            false => (view.ndim() == 4).then(|| view.transpose(1, 2)),
        };
        match turned {
            Some(turned) if turned.dims()[..last] == self.query.dims()[..last] && turned.dim(last) == copies => {
                Ok(turned)
            }
            _ => Err(Fault::new(format!("{name}: shape {:?} does not fit the query", view.dims()))),
        }
    }
}

/// A number of heads; `or` where 0 is given and that is not 0.
pub fn heads(args: &Args<'_>, position: usize, or: usize) -> Outcome<usize> {
    match args.int(position)? {
        0 if or > 0 => Ok(or),
        heads @ 1..=HEADS_MAX => Ok(heads as usize),
        heads => Err(Fault::new(format!("{}: {heads} is not in 1..={HEADS_MAX}", args.name(position)))),
    }
}

/// The view, of a type that products take.
pub fn float(args: &Args<'_>, position: usize, view: View) -> Outcome<View> {
    let name = args.name(position);
    ensure!(gemm::is_operand(view.dtype), "{name}: element type {} is not supported", lane::name(view.dtype));
    Ok(view)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bands_match_their_definition() {
        for (mode, masked) in [(0, true), (0, false), (1, true), (2, false), (3, false), (4, true)] {
            for (pre, next) in
                [(1, 0), (2, 1), (-1, 3), (3, -1), (i64::MAX, i64::MAX), (i64::MIN, i64::MIN), (2147483647, 0)]
            {
                let (band, _) = Band::of_mode(mode, masked, pre, next).unwrap();
                for (queries, keys) in [(4usize, 4usize), (2, 5), (5, 2), (3, 0)] {
                    for i in 0..queries {
                        let (from, end) = band.seen(i, queries, keys);
                        for j in 0..keys {
                            let (i, j, shift) = (i as i128, j as i128, keys as i128 - queries as i128);
                            let (pre, next) = (i128::from(pre), i128::from(next));
                            let inside = |s: i128| j >= i + s - pre && j <= i + s + next;
                            let want = match mode {
                                0 if masked => inside(0),
                                0 | 1 => true,
                                2 => j <= i,
                                3 => j <= i + shift,
                                _ => inside(shift),
                            };
                            let got = (from as i128..end as i128).contains(&j);
                            assert_eq!(got, want, "mode {mode} {pre} {next}: {i}, {j} of {queries}×{keys}");
                        }
                    }
                }
            }
        }
        assert_eq!(Band::of_mode(5, true, 0, 0), None);
    }
}

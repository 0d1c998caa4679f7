//! Mixture of experts: which experts a token goes to, rows brought into the experts' order, and back.
//!
//! `N` tokens of width `H` with `K` experts each make `N·K` pairs, in row-major order. Pairs are sorted by expert, those of
//! one expert in their own order; the *position* of a pair is its place in that order. Every index from device memory is
//! checked before anything is written.

use acl_abi::ops;

use super::args::Args;
use super::elementwise::copy;
use super::fault::{Fault, Outcome, ensure};
use super::lane::{self, Class, class};
use super::nest::store_all;
use super::real::{float, read, shaped, write};
use super::view::View;
use super::{Family, INTERMEDIATE_MAX, Machine};

/// Operators of this file.
pub const KERNELS: Family = &[
    (ops::aclnnMoeFinalizeRoutingV2, finalize_routing),
    (ops::aclnnMoeGatingTopK, gating_top_k),
    (ops::aclnnMoeInitRoutingCustom, init_routing_v3),
    (ops::aclnnMoeInitRoutingV2, init_routing_v2),
    (ops::aclnnMoeInitRoutingV3, init_routing_v3),
    (ops::aclnnMoeTokenPermute, token_permute),
    (ops::aclnnMoeTokenPermuteGrad, token_permute_grad),
    (ops::aclnnMoeTokenUnpermute, token_unpermute),
    (ops::aclnnMoeTokenUnpermuteGrad, token_unpermute_grad),
];

/// Most experts.
const EXPERTS_MAX: i64 = 1 << 16;

/// `x bias k kGroup groupCount groupSelectMode renorm normType outFlag factor eps → y expertIdx out`.
///
/// Scores are the softmax (normType 0) or sigmoid (1) of `x`. Experts are chosen by score plus bias: first `kGroup` of the
/// `groupCount` groups, by their largest member (mode 0) or the sum of their two largest (mode 1), then `k` experts of
/// those; of equals the first. `y` are the scores of the chosen, divided by their sum with sigmoid or renorm, times factor.
pub fn gating_top_k(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (x, y, chosen) = (args.tensor(0)?, args.output(11)?, args.output(12)?);
    float(&x, args.name(0))?;
    ensure!(x.ndim() == 2, "x: shape {:?}, want [N, E]", x.dims());
    let (rows, experts) = (x.dim(0), x.dim(1));
    let number = |position: usize, most: usize| -> Outcome<usize> {
        let value = args.int(position)?;
        let fits = usize::try_from(value).ok().filter(|v| (1..=most).contains(v));
        fits.ok_or_else(|| Fault::new(format!("{}: {value} is not in 1..={most}", args.name(position))))
    };
    let k = number(2, experts)?;
    let groups = number(4, experts)?;
    let group_k = number(3, groups)?;
    ensure!(experts.is_multiple_of(groups), "groupCount: {groups} does not divide {experts} experts");
    let each = experts / groups;
    ensure!(k <= group_k * each, "k: {k} of {group_k} groups of {each}");
    let (pairs, softmax) = match (args.int(5)?, args.int(7)?) {
        (mode @ 0..=1, norm @ 0..=1) => (mode == 1, norm == 0),
        (mode, norm) => return Err(Fault::new(format!("groupSelectMode, normType: {mode}, {norm} (0 or 1)"))),
    };
    let divides = !softmax || args.int(6)? != 0;
    let (factor, eps) = (args.float(9)?, args.float(10)?);
    shaped(&y, &[rows, k], args.name(11))?;
    shaped(&chosen, &[rows, k], args.name(12))?;
    float(&y, args.name(11))?;
    let biases: Vec<f64> = match args.optional(1)? {
        Some(bias) => {
            shaped(&bias, &[experts], args.name(1))?;
            read(machine, &bias)?
        }
        None => vec![0.0; experts],
    };
    let mut scores: Vec<f64> = read(machine, &x)?;
    let (mut ys, mut ids) = (Vec::with_capacity(rows * k), Vec::with_capacity(rows * k));
    for row in scores.chunks_exact_mut(experts) {
        if softmax {
            let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            row.iter_mut().for_each(|x| *x = (*x - largest).exp());
            let sum: f64 = row.iter().sum();
            row.iter_mut().for_each(|x| *x /= sum);
        } else {
            row.iter_mut().for_each(|x| *x = 1.0 / (1.0 + (-*x).exp()));
        }
        let biased: Vec<f64> = row.iter().zip(&biases).map(|(x, bias)| x + bias).collect();
        let group_score = |group: usize| {
            let mut own = biased[group * each..][..each].to_vec();
            own.sort_by(|a, b| b.total_cmp(a));
            if pairs { own.iter().take(2).sum() } else { own[0] }
        };
        let group_scores: Vec<f64> = (0..groups).map(group_score).collect();
        let mut kept = largest_first(&group_scores);
        kept.truncate(group_k);
        let order = largest_first(&biased);
        let best: Vec<usize> = order.into_iter().filter(|expert| kept.contains(&(expert / each))).take(k).collect();
        let sum: f64 = best.iter().map(|&expert| row[expert]).sum();
        let divisor = if divides { sum + eps } else { 1.0 };
        ys.extend(best.iter().map(|&expert| row[expert] / divisor * factor));
        ids.extend(best.iter().map(|&expert| expert as i64));
    }
    write(machine, &y, &ys)?;
    write(machine, &chosen, &ids)?;
    if args.int(8)? != 0 {
        let out = args.output(13)?;
        shaped(&out, &[rows, experts], args.name(13))?;
        float(&out, args.name(13))?;
        write(machine, &out, &scores)?;
    }
    Ok(())
}

/// Indices in falling order of value, of equals the first one first.
fn largest_first(values: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
    order
}

/// Pairs of tokens and experts.
struct Pairs {
    experts: Vec<i64>,
    /// Experts a token.
    each: usize,
}

impl Pairs {
    /// Of `[N, K]` (or `[N]`) at `position`, for `rows` tokens.
    fn read(args: &Args<'_>, machine: &Machine, position: usize, rows: usize) -> Outcome<Self> {
        let (view, name) = (args.tensor(position)?, args.name(position));
        ensure!(class(view.dtype) == Class::Int, "{name}: type {}, want int32", lane::name(view.dtype));
        let fits = matches!(view.ndim(), 1 | 2) && view.dim(0) == rows;
        ensure!(fits, "{name}: shape {:?}, want [{rows}, K]", view.dims());
        let each = if view.ndim() == 2 { view.dim(1) } else { 1 };
        Ok(Self { experts: read(machine, &view)?, each })
    }

    /// Pairs in the order of their experts, those in `range` only.
    fn sorted(&self, range: std::ops::Range<i64>) -> Vec<usize> {
        let mut order: Vec<usize> =
            (0..self.experts.len()).filter(|&pair| range.contains(&self.experts[pair])).collect();
        order.sort_by_key(|&pair| self.experts[pair]);
        order
    }

    /// How many pairs each of `range`'s experts has.
    fn counts(&self, range: std::ops::Range<i64>) -> Vec<i64> {
        let mut counts = vec![0; (range.end - range.start) as usize];
        for expert in self.experts.iter().filter(|expert| range.contains(expert)) {
            counts[(expert - range.start) as usize] += 1;
        }
        counts
    }
}

fn sums(mut counts: Vec<i64>) -> Vec<i64> {
    let mut sum = 0;
    counts.iter_mut().for_each(|count| {
        sum += *count;
        *count = sum;
    });
    counts
}

/// `x [N, H]`, checked.
fn tokens(args: &Args<'_>, position: usize) -> Outcome<View> {
    let view = args.tensor(position)?;
    ensure!(view.ndim() == 2, "{}: shape {:?}, want [N, H]", args.name(position), view.dims());
    Ok(view)
}

/// Refuses an output that is not `[rows or more, width]` of the type of `x`.
fn rows_like(view: &View, x: &View, least: usize, name: &str) -> Outcome {
    let fits = view.ndim() == 2 && view.dim(1) == x.dim(1) && view.dim(0) >= least && view.dtype == x.dtype;
    ensure!(
        fits,
        "{name}: {:?} {}, want [{least}, {}] {}",
        view.dims(),
        lane::name(view.dtype),
        x.dim(1),
        lane::name(x.dtype)
    );
    Ok(())
}

fn experts(args: &Args<'_>, position: usize) -> Outcome<i64> {
    let count = args.int(position)?;
    ensure!((0..=EXPERTS_MAX).contains(&count), "{}: {count} is not in 0..={EXPERTS_MAX}", args.name(position));
    Ok(count)
}

/// `x expertIdx activeNum expertCapacity expertNum dropPadMode countFlag beforeCapacityFlag → expandedX expandedRowIdx
/// counts beforeCapacity`.
///
/// Mode 0: `expandedX` is the first rows in the experts' order, `expandedRowIdx` the position of every pair. Mode 1:
/// `expandedX` is `[E, capacity, H]`, zeros where an expert has fewer pairs; pairs beyond the capacity have index −1.
pub fn init_routing_v2(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (x, expanded, index) = (tokens(args, 0)?, args.output(8)?, args.output(9)?);
    let pairs = Pairs::read(args, machine, 1, x.dim(0))?;
    let count = pairs.experts.len();
    let expert_num = experts(args, 4)?;
    shaped(&index, &[count], args.name(9))?;
    let (flag, drops) = (args.int(6)?, args.int(5)? != 0);
    ensure!((0..=2).contains(&flag), "{}: {flag} is not supported (0 to 2)", args.name(6));
    let known = expert_num > 0 || (!drops && flag == 0);
    ensure!(known, "{}: {expert_num}, want the number of experts", args.name(4));
    if drops || flag > 0 {
        let outside = pairs.experts.iter().find(|expert| !(0..expert_num).contains(*expert));
        ensure!(outside.is_none(), "{}: expert {outside:?} is not in 0..{expert_num}", args.name(1));
    }
    let order = pairs.sorted(0..i64::MAX);
    ensure!(order.len() == count, "{}: negative experts", args.name(1));
    let mut positions = vec![-1i64; count];
    if drops {
        let capacity = usize::try_from(args.int(3)?).unwrap_or(0);
        let fits = expanded.dims() == [expert_num as usize, capacity, x.dim(1)] && expanded.dtype == x.dtype;
        ensure!(fits, "{}: shape {:?}, want [{expert_num}, {capacity}, H]", args.name(8), expanded.dims());
        let mut used = vec![0; expert_num as usize];
        for expert in 0..expert_num as usize {
            store_all(machine, &expanded.select(0, expert), |_, piece: &mut [f32]| piece.fill(0.0))?;
        }
        for pair in order {
            let expert = pairs.experts[pair] as usize;
            if used[expert] < capacity {
                let to = expanded.select(0, expert).select(0, used[expert]);
                copy(machine, &to, &x.select(0, pair / pairs.each))?;
                positions[pair] = (expert * capacity + used[expert]) as i64;
                used[expert] += 1;
            }
        }
        if args.int(7)? != 0 {
            write_counts(args, machine, 11, &pairs.counts(0..expert_num))?;
        }
    } else {
        let active = usize::try_from(args.int(2)?).unwrap_or(0);
        let rows = if active == 0 { count } else { active.min(count) };
        rows_like(&expanded, &x, rows, args.name(8))?;
        for (position, &pair) in order.iter().enumerate() {
            positions[pair] = position as i64;
            if position < rows {
                copy(machine, &expanded.select(0, position), &x.select(0, pair / pairs.each))?;
            }
        }
        let counts = || pairs.counts(0..expert_num);
        match flag {
            1 => write_counts(args, machine, 10, &sums(counts()))?,
            2 => write_counts(args, machine, 10, &counts())?,
            _ => {}
        }
    }
    write(machine, &index, &positions)
}

fn write_counts(args: &Args<'_>, machine: &mut Machine, position: usize, counts: &[i64]) -> Outcome {
    let view = args.output(position)?;
    shaped(&view, &[counts.len()], args.name(position))?;
    write(machine, &view, counts)
}

/// `x expertIdx scale offset activeNum expertCapacity expertNum dropPadMode tokensNumType tokensNumFlag quantMode range
/// rowIdxType → expandedX expandedRowIdx counts expandedScale`, unquantised (mode −1), without dropping (mode 0).
///
/// Only pairs with an expert in `range` take part; their rows come first. `expandedRowIdx` holds the position of every
/// pair (type 0) or the pair at every position (type 1), −1 elsewhere. Counts: ends (0), sizes (1), or pairs of expert
/// and size of those that have any (2), zeros behind. vllm_ascend's own library has the same operator under another name.
pub fn init_routing_v3(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (x, expanded, index) = (tokens(args, 0)?, args.output(13)?, args.output(14)?);
    for (position, want) in [(7, 0), (10, -1)] {
        let value = args.int(position)?;
        ensure!(value == want, "{}: {value} is not supported ({want})", args.name(position));
    }
    let expert_num = experts(args, 6)?;
    let range = match args.ints(11) {
        Some(&[from, end]) if (0..=end).contains(&from) && end <= EXPERTS_MAX => from..end,
        None | Some([]) => 0..expert_num,
        Some(range) => return Err(Fault::new(format!("{}: {range:?} is not a range of experts", args.name(11)))),
    };
    let pairs = Pairs::read(args, machine, 1, x.dim(0))?;
    let order = pairs.sorted(range.clone());
    rows_like(&expanded, &x, order.len(), args.name(13))?;
    shaped(&index, &[pairs.experts.len()], args.name(14))?;
    let mut places = vec![-1i64; pairs.experts.len()];
    for (position, &pair) in order.iter().enumerate() {
        copy(machine, &expanded.select(0, position), &x.select(0, pair / pairs.each))?;
        match args.int(12)? {
            0 => places[pair] = position as i64,
            1 => places[position] = pair as i64,
            kind => return Err(Fault::new(format!("{}: {kind} is not supported (0, 1)", args.name(12)))),
        }
    }
    write(machine, &index, &places)?;
    if args.int(9)? != 0 {
        let counts = pairs.counts(range.clone());
        match args.int(8)? {
            0 => write_counts(args, machine, 15, &sums(counts))?,
            1 => write_counts(args, machine, 15, &counts)?,
            2 => {
                let view = args.output(15)?;
                shaped(&view, &[expert_num as usize, 2], args.name(15))?;
                let some = range.zip(counts).filter(|(_, count)| *count > 0);
                let mut table: Vec<i64> = some.flat_map(|(expert, count)| [expert, count]).collect();
                table.resize(view.elements().max(table.len()), 0);
                ensure!(table.len() == view.elements(), "{}: too many experts", args.name(15));
                write(machine, &view, &table)?;
            }
            kind => return Err(Fault::new(format!("{}: {kind} is not supported (0 to 2)", args.name(8)))),
        }
    }
    if let Some(scale) = args.optional(2)? {
        float(&scale, args.name(2))?;
        shaped(&scale, &[x.dim(0)], args.name(2))?;
        let (scales, out): (Vec<f64>, View) = (read(machine, &scale)?, args.output(16)?);
        float(&out, args.name(16))?;
        ensure!(out.ndim() == 1 && out.dim(0) >= order.len(), "{}: shape {:?}", args.name(16), out.dims());
        let values: Vec<f64> = order.iter().map(|&pair| scales[pair / pairs.each]).collect();
        write(machine, &out.narrow(0, 0, values.len()), &values)?;
    }
    Ok(())
}

/// `expandedX expandedRowIdx x1 x2 bias scales expertIdx dropPadMode → out`:
/// `out[i] = x1[i] + x2[i] + Σₖ scales[i, k]·(expandedX[row(i, k)] + bias[expertIdx[i, k]])`.
///
/// `row(i, k)` is `expandedRowIdx` at `k·N + i` (modes 0 and 1) or `i·K + k` (modes 2 and 3); a row of −1, or one that
/// `expandedX` was cut before, is zero.
pub fn finalize_routing(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (x, out) = (args.tensor(0)?, args.output(8)?);
    float(&x, args.name(0))?;
    float(&out, args.name(8))?;
    ensure!(out.ndim() == 2, "out: shape {:?}, want [N, H]", out.dims());
    let (rows, width) = (out.dim(0), out.dim(1));
    ensure!(x.ndim() >= 2 && x.dim(x.ndim() - 1) == width, "expandedX: shape {:?}, want [.., {width}]", x.dims());
    let index = args.tensor(1)?;
    ensure!(class(index.dtype) == Class::Int && index.ndim() == 1, "expandedRowIdx: shape {:?}", index.dims());
    let count = index.dim(0);
    ensure!(rows > 0 && count.is_multiple_of(rows), "expandedRowIdx: {count} rows for {rows} tokens");
    let each = count / rows;
    let mode = args.int(7)?;
    ensure!((0..=3).contains(&mode), "dropPadMode: {mode} is not supported (0 to 3)");
    let (places, values): (Vec<i64>, Vec<f64>) = (read(machine, &index)?, read(machine, &x)?);
    let most = (values.len() / width.max(1)).max(count) as i64;
    let outside = places.iter().find(|place| !(-1..most).contains(*place));
    ensure!(outside.is_none(), "expandedRowIdx: row {outside:?} is not in -1..{most}");
    let optional = |position: usize, dims: Option<[usize; 2]>| -> Outcome<Option<Vec<f64>>> {
        let Some(view) = args.optional(position)? else { return Ok(None) };
        float(&view, args.name(position))?;
        if let Some(dims) = dims {
            shaped(&view, &dims, args.name(position))?;
        }
        Ok(Some(read(machine, &view)?))
    };
    let mut sum = vec![0.0; rows * width];
    for position in [2, 3] {
        for (sum, term) in sum.iter_mut().zip(optional(position, Some([rows, width]))?.unwrap_or_default()) {
            *sum += term;
        }
    }
    let (bias, scales) = (optional(4, None)?, optional(5, Some([rows, each]))?);
    let chosen: Vec<i64> = match &bias {
        Some(bias) => {
            let view = args.tensor(6)?;
            shaped(&view, &[rows, each], args.name(6))?;
            let chosen: Vec<i64> = read(machine, &view)?;
            let experts = (bias.len() / width.max(1)) as i64;
            let outside = chosen.iter().find(|expert| !(0..experts).contains(*expert));
            ensure!(outside.is_none(), "{}: expert {outside:?} is not in 0..{experts}", args.name(6));
            chosen
        }
        None => Vec::new(),
    };
    for (i, out) in sum.chunks_exact_mut(width.max(1)).enumerate().take(rows) {
        for k in 0..each {
            let place = places[if mode < 2 { k * rows + i } else { i * each + k }];
            let row = usize::try_from(place).ok().and_then(|place| values.chunks_exact(width.max(1)).nth(place));
            let scale = scales.as_ref().map_or(1.0, |scales| scales[i * each + k]);
            for (j, out) in out.iter_mut().enumerate() {
                let term = bias.as_ref().map_or(0.0, |bias| bias[chosen[i * each + k] as usize * width + j]);
                *out += scale * (row.map_or(0.0, |row| row[j]) + term);
            }
        }
    }
    write(machine, &out, &sum)
}

/// `tokens indices numOutTokens paddedMode → permuteTokens sortedIndices`: rows in the experts' order, as many as the
/// output has, and the position of every pair.
pub fn token_permute(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (x, out, index) = (tokens(args, 0)?, args.output(4)?, args.output(5)?);
    ensure!(args.int(3)? == 0, "paddedMode: not supported");
    let pairs = Pairs::read(args, machine, 1, x.dim(0))?;
    let count = pairs.experts.len() as i64;
    let wanted = match args.int(2)? {
        0 => count,
        some @ 1.. => some.min(count),
        from_end => count.saturating_add(from_end).max(0),
    };
    rows_like(&out, &x, wanted as usize, args.name(4))?;
    shaped(&index, &[pairs.experts.len()], args.name(5))?;
    let mut positions = vec![0i64; pairs.experts.len()];
    for (position, pair) in pairs.sorted(i64::MIN..i64::MAX).into_iter().enumerate() {
        positions[pair] = position as i64;
        if (position as i64) < wanted {
            copy(machine, &out.select(0, position), &x.select(0, pair / pairs.each))?;
        }
    }
    write(machine, &index, &positions)
}

/// Rows gathered back: pairs of `each` a token, the position of each, and the weight of each.
struct Gather {
    each: usize,
    positions: Vec<usize>,
    weights: Option<Vec<f64>>,
}

impl Gather {
    fn read(args: &Args<'_>, machine: &Machine, positions: usize, each: usize, weights: Option<View>) -> Outcome<Self> {
        let (view, name) = (args.tensor(positions)?, args.name(positions));
        ensure!(class(view.dtype) == Class::Int && view.ndim() == 1, "{name}: shape {:?}, want 1-d", view.dims());
        let count = view.dim(0);
        ensure!(each > 0 && count.is_multiple_of(each), "{name}: {count} pairs of {each} a token");
        let place = |value: i64| usize::try_from(value).ok().filter(|&place| place < count);
        let places = read::<i64>(machine, &view)?.into_iter().map(|value| {
            place(value).ok_or_else(|| Fault::new(format!("{name}: position {value} is not in 0..{count}")))
        });
        let weights: Option<Vec<f64>> = match weights {
            Some(view) => {
                ensure!(view.elements() == count, "probsOptional: shape {:?} for {count} pairs", view.dims());
                Some(read(machine, &view)?)
            }
            None => None,
        };
        Ok(Self { each, positions: places.collect::<Outcome<_>>()?, weights })
    }

    fn tokens(&self) -> usize {
        self.positions.len() / self.each
    }

    fn weight(&self, pair: usize) -> f64 {
        self.weights.as_ref().map_or(1.0, |weights| weights[pair])
    }

    /// Sums the rows of every token into `out`.
    fn sum(&self, args: &Args<'_>, machine: &mut Machine, x: &View, out_at: usize) -> Outcome {
        let out = args.output(out_at)?;
        float(x, args.name(0))?;
        float(&out, args.name(out_at))?;
        let width = x.dim(1);
        shaped(&out, &[self.tokens(), width], args.name(out_at))?;
        let values: Vec<f64> = read(machine, x)?;
        let mut sums = vec![0.0; out.elements()];
        for (pair, &position) in self.positions.iter().enumerate() {
            // Rows that were cut are not there.
            let Some(row) = values.get(position * width..(position + 1) * width) else { continue };
            for (sum, value) in sums[pair / self.each * width..].iter_mut().zip(row) {
                *sum += value * self.weight(pair);
            }
        }
        write(machine, &out, &sums)
    }
}

/// `permutedOutputGrad sortedIndices numTopk paddedMode → out`.
pub fn token_permute_grad(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let x = tokens(args, 0)?;
    ensure!(args.int(3)? == 0, "paddedMode: not supported");
    let each = usize::try_from(args.int(2)?).ok().filter(|&each| each <= INTERMEDIATE_MAX).unwrap_or(0);
    Gather::read(args, machine, 1, each, None)?.sum(args, machine, &x, 4)
}

/// `permutedTokens sortedIndices probs paddedMode restoreShape → out`.
pub fn token_unpermute(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let x = tokens(args, 0)?;
    ensure!(args.int(3)? == 0, "paddedMode: not supported");
    let (each, weights) = probabilities(args, 2)?;
    Gather::read(args, machine, 1, each, weights)?.sum(args, machine, &x, 5)
}

/// Experts a token and the weights of pairs, from `[N, K]` or null.
fn probabilities(args: &Args<'_>, position: usize) -> Outcome<(usize, Option<View>)> {
    let Some(view) = args.optional(position)? else { return Ok((1, None)) };
    float(&view, args.name(position))?;
    ensure!(view.ndim() == 2, "{}: shape {:?}, want [N, K]", args.name(position), view.dims());
    Ok((view.dim(1), Some(view)))
}

/// `permuteTokens unpermutedTokensGrad sortedIndices probs paddedMode restoreShape → permutedTokensGrad probsGrad`.
pub fn token_unpermute_grad(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (x, dy, dx) = (tokens(args, 0)?, tokens(args, 1)?, args.output(6)?);
    ensure!(args.int(4)? == 0, "paddedMode: not supported");
    let (each, weights) = probabilities(args, 3)?;
    let gather = Gather::read(args, machine, 2, each, weights)?;
    let width = x.dim(1);
    for (position, view) in [(0, &x), (1, &dy), (6, &dx)] {
        float(view, args.name(position))?;
    }
    shaped(&dy, &[gather.tokens(), width], args.name(1))?;
    shaped(&dx, x.dims(), args.name(6))?;
    let (values, slopes): (Vec<f64>, Vec<f64>) = (read(machine, &x)?, read(machine, &dy)?);
    let (mut gradients, mut of_weights) = (vec![0.0; values.len()], vec![0.0; gather.positions.len()]);
    for (pair, &position) in gather.positions.iter().enumerate() {
        let Some(row) = values.get(position * width..(position + 1) * width) else { continue };
        let slope = &slopes[pair / gather.each * width..][..width];
        for (j, (value, slope)) in row.iter().zip(slope).enumerate() {
            gradients[position * width + j] = slope * gather.weight(pair);
            of_weights[pair] += slope * value;
        }
    }
    write(machine, &dx, &gradients)?;
    if let (Some(weights), Some(view)) = (args.optional(3)?, args.optional_output(7)?) {
        float(&view, args.name(7))?;
        shaped(&view, weights.dims(), args.name(7))?;
        write(machine, &view, &of_weights)?;
    }
    Ok(())
}

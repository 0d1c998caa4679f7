//! The attention operators of training, forward: FlashAttentionScore and, for packed sequences, FlashAttentionVarLenScore.
//!
//! Layouts BNSD, BSND, BSH and SBH without lengths; TND with cumulative `actualSeqQLen` and `actualSeqKvLen`. There are as
//! many kv heads as the key has; they divide `headNum`. What a query sees: [`super::plan::Band::of_mode`]; `attenMask` hides
//! keys where it is not 0. `realShift` is added to the products before they are scaled (pseType 1, and operators without
//! the parameter) or to the scaled ones (pseType 0). Dropout takes the bits that the caller drew.
//!
//! `softmaxMax` and `softmaxSum` are `[B, N, S, 8]` (`[T, N, 8]` packed) in single precision, eight copies of one value;
//! `softmaxOut` and `innerPrecise` are not looked at.

use std::sync::LazyLock;

use acl_abi::{DataType, SIGNATURES, Signature, ops};

use super::super::args::Args;
use super::super::fault::{Fault, Outcome, ensure};
use super::super::lane;
use super::super::view::View;
use super::super::{Family, Machine};
use super::layout::Layout;
use super::plan::{Bias, Dropout, Names, Parts, Plan, float, heads};

/// Operators of this file.
pub const KERNELS: Family = &[
    (ops::aclnnFlashAttentionScore, score),
    (ops::aclnnFlashAttentionScoreV2, score),
    (ops::aclnnFlashAttentionVarLenScore, score),
    (ops::aclnnFlashAttentionVarLenScoreV2, score),
];

/// Where an operator has its parameters.
#[derive(Clone, Debug)]
pub struct At {
    pub query: usize,
    pub key: usize,
    pub value: usize,
    bias: usize,
    drop: usize,
    padding: usize,
    mask: usize,
    lengths_q: Option<usize>,
    lengths_kv: Option<usize>,
    starts: [Option<usize>; 2],
    scale: usize,
    keep: usize,
    pre: usize,
    next: usize,
    heads: usize,
    layout: usize,
    mode: usize,
    bias_type: Option<usize>,
    /// The result, or its gradient.
    pub out: usize,
}

impl At {
    /// Of a signature; parameters that are missing get positions that no call has.
    pub fn of(signature: &Signature) -> Self {
        let find = |names: &[&str]| names.iter().find_map(|name| signature.position(name));
        let must = |names: &[&str]| find(names).unwrap_or(usize::MAX);
        Self {
            query: must(&["query"]),
            key: must(&["key", "keyIn"]),
            value: must(&["value"]),
            bias: must(&["realShiftOptional", "pseShiftOptional"]),
            drop: must(&["dropMaskOptional"]),
            padding: must(&["paddingMaskOptional"]),
            mask: must(&["attenMaskOptional"]),
            lengths_q: find(&["actualSeqQLenOptional"]),
            lengths_kv: find(&["actualSeqKvLenOptional"]),
            starts: [find(&["qStartIdxOptional"]), find(&["kvStartIdxOptional"])],
            scale: must(&["scaleValue"]),
            keep: must(&["keepProb"]),
            pre: must(&["preTokens"]),
            next: must(&["nextTokens"]),
            heads: must(&["headNum"]),
            layout: must(&["inputLayout"]),
            mode: must(&["sparseMode"]),
            bias_type: find(&["pseType"]),
            out: must(&["dy", "attentionOutOut"]),
        }
    }
}

/// By operator id.
static AT: LazyLock<Vec<Option<At>>> = LazyLock::new(|| {
    let mut all = vec![None; SIGNATURES.len()];
    for (op, _) in KERNELS.iter().chain(super::grad::KERNELS) {
        all[usize::from(op.0)] = Some(At::of(op.signature()));
    }
    all
});

/// Where the operator of this call has its parameters.
pub fn at(args: &Args<'_>) -> Outcome<&'static At> {
    let known = AT.get(usize::from(args.op().0)).and_then(Option::as_ref);
    known.ok_or_else(|| Fault::new("query: unknown operator"))
}

/// Any operator of this file.
pub fn score(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let at = at(args)?;
    let out = args.output(at.out)?;
    let mut plan = plan(args, at, out)?;
    let position = |name: &str| args.op().signature().position(name).unwrap_or(usize::MAX);
    let (largest, sum) = (position("softmaxMaxOut"), position("softmaxSumOut"));
    let rows = |position| -> Outcome<View> { plan.rows(args.output(position)?, 8, args.name(position)) };
    plan.statistics = match (args.is_absent(largest), args.is_absent(sum)) {
        (true, true) => None,
        _ => Some([rows(largest)?, rows(sum)?]),
    };
    super::run(machine, &plan)
}

/// The call in the common form, with `out` as the tensor that has the result's shape.
pub fn plan<'a>(args: &Args<'a>, at: &At, out: View) -> Outcome<Plan<'a>> {
    let text = args.text(at.layout)?;
    let packed = at.lengths_q.is_some();
    let layout = Layout::named(text).filter(|layout| layout.is_packed() == packed && *layout != Layout::Ntd);
    let known = if packed { "TND" } else { "BNSD, BSND, BSH, SBH" };
    let layout = layout.ok_or_else(|| Fault::new(format!("inputLayout: {text:?} is not supported ({known})")))?;
    for position in [at.padding].into_iter().chain(at.starts.into_iter().flatten()) {
        let empty = args.is_absent(position) || args.ints(position).is_some_and(<[i64]>::is_empty);
        ensure!(empty, "{}: not supported, pass null", args.name(position));
    }
    let count = heads(args, at.heads, 0)?;
    let query = float(args, at.query, args.tensor(at.query)?)?;
    let key = float(args, at.key, args.tensor(at.key)?)?;
    let value = float(args, at.value, args.tensor(at.value)?)?;
    let out = float(args, at.out, out)?;
    let names = Names {
        out: args.name(at.out),
        lengths_q: at.lengths_q.map_or("", |position| args.name(position)),
        lengths_kv: at.lengths_kv.map_or("", |position| args.name(position)),
        table: "",
        mask: args.name(at.mask),
    };
    let lengths = |position: Option<usize>| position.and_then(|position| args.ints(position));
    let mut plan = Plan::new(Parts {
        layout,
        out_layout: layout,
        query,
        key,
        value,
        out,
        paged: None,
        heads: count,
        kv_heads: kv_heads(layout, &query, &key, count)?,
        scale: args.float(at.scale)?,
        lengths_q: lengths(at.lengths_q),
        lengths_kv: lengths(at.lengths_kv),
        names,
    })?;
    plan.set_mask(args.int(at.mode)?, args.optional(at.mask)?, args.int(at.pre)?, args.int(at.next)?, &names)?;
    if let Some(view) = args.optional(at.bias)? {
        let before_scale = match at.bias_type.map_or(Ok(1), |position| args.int(position))? {
            0 => false,
            1 => true,
            kind => return Err(Fault::new(format!("pseType: {kind} is not supported (0, 1)"))),
        };
        let view = float(args, at.bias, view)?;
        let view = plan.per_head(view, true).map_err(|f| f.about(args.name(at.bias)))?;
        plan.bias = Some(Bias { view, before_scale });
    }
    plan.dropout = dropout(args, at, &plan, packed)?;
    Ok(plan)
}

/// Heads of the key: shown by the layout, or as wide as the query's.
fn kv_heads(layout: Layout, query: &View, key: &View, heads: usize) -> Outcome<usize> {
    let size = |view: &View, dim: usize| view.dims().get(dim).copied().unwrap_or(0);
    let count = match layout {
        Layout::Tnd | Layout::Bnsd => size(key, 1),
        Layout::Ntd => size(key, 0),
        Layout::Bsnd => size(key, 2),
        Layout::Bsh | Layout::Sbh => size(key, 2).checked_div(size(query, 2) / heads).unwrap_or(0),
    };
    ensure!(count > 0 && heads.is_multiple_of(count), "key: {count} heads do not divide headNum {heads}");
    Ok(count)
}

fn dropout(args: &Args<'_>, at: &At, plan: &Plan<'_>, packed: bool) -> Outcome<Option<Dropout>> {
    let keep = args.float(at.keep)?;
    if keep == 1.0 {
        return Ok(None);
    }
    ensure!(keep > 0.0 && keep < 1.0, "keepProb: {keep} is not in 0..=1");
    ensure!(!packed, "keepProb: dropout is not supported for layout TND");
    let name = args.name(at.drop);
    let bits = args.optional(at.drop)?;
    let bits = bits.ok_or_else(|| Fault::new(format!("{name}: required with keepProb {keep}")))?;
    let weights = (0..plan.sequences).map(|i| plan.sequence(i)).fold(0usize, |sum, sequence| {
        let pairs = sequence.queries().saturating_mul(sequence.keys);
        sum.saturating_add(pairs.saturating_mul(plan.heads))
    });
    ensure!(
        bits.ndim() == 1 && matches!(bits.dtype, DataType::U8 | DataType::I8) && bits.dim(0) >= weights.div_ceil(8),
        "{name}: {:?} {}, want uint8 with a bit for each of {weights} weights",
        bits.dims(),
        lane::name(bits.dtype)
    );
    Ok(Some(Dropout { bits, keep }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_parameter_is_found() {
        for (op, _) in KERNELS.iter().chain(super::super::grad::KERNELS) {
            let at = At::of(op.signature());
            assert!(!format!("{at:?}").contains(&usize::MAX.to_string()), "{}: {at:?}", op.name());
            assert_eq!(at.lengths_q.is_some(), op.name().contains("VarLen") || op.name().contains("Unpadding"));
        }
    }
}

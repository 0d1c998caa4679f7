//! The attention operators of inference: FusedInferAttentionScoreV2 to V4, PromptFlashAttentionV3, IncreFlashAttentionV4.
//!
//! | | query, attentionOut | key, value | actualSeqLengths | actualSeqLengthsKv |
//! |---|---|---|---|---|
//! | TND, NTD | `[T, N, D]`, `[N, T, D]` | `[T', Nkv, D]` or turned | cumulative | cumulative; per sequence where paged |
//! | BSND | `[B, S, N, D]` | `[B, S', Nkv, D]` | per sequence, one for all, or null | the same |
//! | BNSD | `[B, N, S, D]` | `[B, Nkv, S', D]` | the same | the same |
//! | BSH | `[B, S, N·D]` | `[B, S', Nkv·D]` | the same | the same |
//! | any, with blockTable `[B, max]` | as above | `[blocks, size, Nkv·D]`, `[blocks, size, Nkv, D]` or `[blocks, Nkv, size, D]` | as above | per sequence, required |
//!
//! A layout of the form `BNSD_BSND` names another one for the result. What a query sees: [`Band::of_mode`];
//! `attenMask` hides keys where it is not 0, `pseShift` is added to the scaled scores. The incremental operator has one
//! query a sequence, and its `actualSeqLengths` are those of the keys. `innerPrecise` chooses among speeds of one result
//! and is not looked at. Everything else (quantisation, padding, shared prefixes, separate rotary parts) must be null or 0.

use std::sync::LazyLock;

use acl_abi::{Kind, OpId, SIGNATURES, Signature, ops};

use super::super::args::Args;
use super::super::fault::{Fault, Outcome, ensure};
use super::super::{Family, Machine};
use super::layout::Layout;
#[allow(unused_imports, reason = "named in the description above")]
use super::plan::Band;
use super::plan::{Bias, Names, Parts, Plan, float, heads};

/// Operators of this file.
pub const KERNELS: Family = &[
    (ops::aclnnFusedInferAttentionScoreV2, infer),
    (ops::aclnnFusedInferAttentionScoreV3, infer),
    (ops::aclnnFusedInferAttentionScoreV4, infer),
    (ops::aclnnIncreFlashAttentionV4, infer),
    (ops::aclnnPromptFlashAttentionV3, infer),
];

/// Where an operator has the parameters that are looked at.
#[derive(Clone, Debug)]
struct At {
    query: usize,
    key: usize,
    value: usize,
    bias: Option<usize>,
    mask: Option<usize>,
    lengths_q: Option<usize>,
    lengths_kv: Option<usize>,
    table: Option<usize>,
    heads: usize,
    kv_heads: usize,
    scale: usize,
    pre: Option<usize>,
    next: Option<usize>,
    layout: usize,
    sparse_mode: Option<usize>,
    block_size: Option<usize>,
    lse_flag: Option<usize>,
    out: usize,
    lse: Option<usize>,
    /// Tensors, lists and arrays that must be null, and numbers that must be 0.
    unsupported: Vec<usize>,
    one_query: bool,
}

/// By operator id.
static AT: LazyLock<Vec<Option<At>>> = LazyLock::new(|| {
    let mut all = vec![None; SIGNATURES.len()];
    for (op, _) in KERNELS {
        all[usize::from(op.0)] = Some(At::of(op.signature()));
    }
    all
});

impl At {
    fn of(signature: &Signature) -> Self {
        let find = |names: &[&str]| names.iter().find_map(|name| signature.position(name));
        let must = |name: &str| signature.position(name).unwrap_or(usize::MAX);
        let one_query = signature.name.starts_with("aclnnIncre");
        let lengths = find(&["actualSeqLengthsOptional", "actualSeqLengths"]);
        let mut at = Self {
            query: must("query"),
            key: must("key"),
            value: must("value"),
            bias: find(&["pseShiftOptional", "pseShift"]),
            mask: find(&["attenMaskOptional", "attenMask"]),
            lengths_q: lengths.filter(|_| !one_query),
            lengths_kv: if one_query { lengths } else { find(&["actualSeqLengthsKvOptional", "actualSeqLengthsKv"]) },
            table: find(&["blockTableOptional", "blocktable"]),
            heads: must("numHeads"),
            kv_heads: must("numKeyValueHeads"),
            scale: must("scaleValue"),
            pre: find(&["preTokens"]),
            next: find(&["nextTokens"]),
            layout: must("inputLayout"),
            sparse_mode: find(&["sparseMode"]),
            block_size: find(&["blockSize"]),
            lse_flag: find(&["softmaxLseFlag"]),
            out: must("attentionOut"),
            lse: find(&["softmaxLse"]),
            unsupported: Vec::new(),
            one_query,
        };
        let known = [at.query, at.key, at.value, at.heads, at.kv_heads, at.scale, at.layout, at.out];
        let optional = [
            at.bias,
            at.mask,
            lengths,
            at.lengths_kv,
            at.table,
            at.pre,
            at.next,
            at.sparse_mode,
            at.block_size,
            at.lse_flag,
            at.lse,
            signature.position("innerPrecise"),
        ];
        at.unsupported =
            (0..signature.params.len()).filter(|i| !known.contains(i) && !optional.contains(&Some(*i))).collect();
        at
    }

    fn refuse_the_rest(&self, args: &Args<'_>, op: OpId) -> Outcome {
        for &position in &self.unsupported {
            let name = args.name(position);
            match op.signature().params[position].kind {
                Kind::Tensor | Kind::TensorOut | Kind::TensorList | Kind::IntArray => {
                    ensure!(args.is_absent(position), "{name}: not supported, pass null");
                }
                _ => {
                    let mode = args.int(position)?;
                    ensure!(mode == 0, "{name}: {mode} is not supported (0)");
                }
            }
        }
        Ok(())
    }
}

/// Any operator of this file.
pub fn infer(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let op = args.op();
    let at = AT.get(usize::from(op.0)).and_then(Option::as_ref).ok_or_else(|| Fault::new("query: unknown operator"))?;
    at.refuse_the_rest(args, op)?;
    let (plan, names) = plan(args, at)?;
    plan.check_table(&machine.hbm, names.table)?;
    super::run(machine, &plan)
}

fn plan<'a>(args: &Args<'a>, at: &At) -> Outcome<(Plan<'a>, Names)> {
    let int = |position: Option<usize>, otherwise: i64| position.map_or(Ok(otherwise), |position| args.int(position));
    let optional = |position: Option<usize>| position.map_or(Ok(None), |position| args.optional(position));
    let name = |position: Option<usize>| position.map_or("", |position| args.name(position));
    let text = args.text(at.layout)?;
    let (layout, out_layout) = text.split_once('_').unwrap_or((text, text));
    let known = |name: &str| {
        let layout = Layout::named(name).filter(|&layout| layout != Layout::Sbh);
        layout.ok_or_else(|| {
            Fault::new(format!("inputLayout: {text:?} is not supported (TND, NTD, BSND, BNSD, BSH, or two of them)"))
        })
    };
    let (layout, out_layout) = (known(layout)?, known(out_layout)?);
    ensure!(
        layout.is_packed() == out_layout.is_packed(),
        "inputLayout: {text:?} is not supported: only one of the two is packed"
    );
    let count = heads(args, at.heads, 0)?;
    let kv_heads = heads(args, at.kv_heads, count)?;
    let names = Names {
        out: args.name(at.out),
        lengths_q: name(at.lengths_q),
        lengths_kv: name(at.lengths_kv),
        table: name(at.table),
        mask: name(at.mask),
    };
    let query = float(args, at.query, args.tensor(at.query)?)?;
    let out = float(args, at.out, args.output(at.out)?)?;
    let table = optional(at.table)?;
    let block_size = int(at.block_size, 0)?;
    // No entries are no lengths: what torch_npu passes for those that its caller left out.
    let lengths = |position: Option<usize>| position.and_then(|at| args.ints(at)).filter(|list| !list.is_empty());
    let mut plan = Plan::new(Parts {
        layout,
        out_layout,
        query,
        key: float(args, at.key, args.only(at.key)?)?,
        value: float(args, at.value, args.only(at.value)?)?,
        out,
        paged: table.map(|table| (table, block_size)),
        heads: count,
        kv_heads,
        scale: args.float(at.scale)?,
        lengths_q: lengths(at.lengths_q),
        lengths_kv: lengths(at.lengths_kv),
        names,
    })?;
    if at.one_query {
        let queries = query_tokens(&plan);
        ensure!(queries == 1, "query: {queries} tokens a sequence, the incremental operator has 1");
    }
    let (pre, next) = (int(at.pre, i64::MAX)?, int(at.next, i64::MAX)?);
    plan.set_mask(int(at.sparse_mode, 0)?, optional(at.mask)?, pre, next, &names)?;
    if let Some(view) = optional(at.bias)? {
        let view = float(args, at.bias.unwrap_or(0), view)?;
        let view = plan.per_head(view, true).map_err(|f| f.about(name(at.bias)))?;
        plan.bias = Some(Bias { view, before_scale: false });
    }
    if let Some(position) = at.lse
        && int(at.lse_flag, 0)? != 0
    {
        plan.lse = Some(plan.rows(args.output(position)?, 1, args.name(position))?);
    }
    Ok((plan, names))
}

/// Most query tokens of a sequence.
fn query_tokens(plan: &Plan<'_>) -> usize {
    (0..plan.sequences).map(|i| plan.sequence(i).queries()).max().unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_parameter_is_found_or_refused() {
        for (op, _) in KERNELS {
            let at = At::of(op.signature());
            let must = [at.query, at.key, at.value, at.heads, at.kv_heads, at.scale, at.layout, at.out];
            assert!(!must.contains(&usize::MAX), "{}: {at:?}", op.name());
            let names: Vec<_> = at.unsupported.iter().map(|&i| op.signature().params[i].name).collect();
            assert!(at.lengths_kv.is_some() && at.mask.is_some() && at.bias.is_some());
            for refused in ["quantScale1Optional", "queryRopeOptional", "queryQuantMode", "learnableSinkOptional"] {
                assert_eq!(op.signature().position(refused).is_some(), names.contains(&refused), "{}", op.name());
            }
            assert!(!names.contains(&"innerPrecise"));
        }
    }
}

//! GroupedMatmul: a product for every expert, in one operator. Unquantised forms only.
//!
//! | groupType | x | weight | result |
//! |---|---|---|---|
//! | −1 | a tensor a group | a tensor a group | a tensor a group |
//! | 0, rows | `[M, K]`, its rows by group, or a tensor a group | `[E, K, N]`, or a tensor a group | `[M, N]`, or a tensor a group |
//! | 2, depth | `[M, K]`, its columns by group | `[K, N]`, its rows by group | `[E, M, N]` |
//!
//! `groupList` holds the ends of the groups (type 0) or their sizes (type 1). Rows behind the last group stay as they
//! were. Each row's bits are those of a plain product ([`super::product`]).

use acl_abi::ops;

use super::args::Args;
use super::fault::{Fault, Outcome, ensure};
use super::lane::{self, Class, class};
use super::product::{Addend, batched};
use super::real::read;
use super::view::View;
use super::{Family, Machine};

/// Operators of this file.
pub const KERNELS: Family = &[
    (ops::aclnnGroupedMatmul, grouped_matmul),
    (ops::aclnnGroupedMatmulV4, grouped_matmul_v4),
    (ops::aclnnGroupedMatmulV5, grouped_matmul_v5),
    (ops::aclnnGroupedMatmulWeightNz, grouped_matmul_weight_nz),
];

/// Most groups.
const GROUPS_MAX: usize = 1 << 16;

/// `x weight bias scale offset antiquantScale antiquantOffset groupList splitItem → y`: the ends of the rows' groups are on
/// the host; without them, a tensor a group.
pub fn grouped_matmul(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    absent(args, 3..7)?;
    let groups = args.ints(7).filter(|ends| !ends.is_empty());
    let kind = if groups.is_some() { 0 } else { -1 };
    let sizes = groups.map(|ends| sizes(ends, 0)).transpose().map_err(|f| f.about(args.name(7)))?;
    run(args, machine, kind, sizes, 9)
}

/// `x weight bias (quantisation) groupList (activation) splitItem groupType groupListType actType → out`.
pub fn grouped_matmul_v4(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    on_device(args, machine, 16)
}

/// The same with a hint of how to tile, which is not looked at.
pub fn grouped_matmul_v5(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    on_device(args, machine, 17)
}

/// The same for weights in FRACTAL_NZ.
pub fn grouped_matmul_weight_nz(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    on_device(args, machine, 18)
}

fn on_device(args: &Args<'_>, machine: &mut Machine, out: usize) -> Outcome {
    absent(args, 3..8)?;
    absent(args, 9..12)?;
    let activation = args.int(15)?;
    ensure!(activation == 0, "actType: {activation} is not supported (0)");
    let sizes = match args.optional(8)? {
        Some(list) if list.elements() > 0 => {
            let integers = class(list.dtype) == Class::Int && list.ndim() == 1 && list.elements() <= GROUPS_MAX;
            ensure!(integers, "{}: {:?} {}, want 1-d int64", args.name(8), list.dims(), lane::name(list.dtype));
            let values: Vec<i64> = read(machine, &list)?;
            Some(sizes(&values, args.int(14)?).map_err(|f| f.about(args.name(8)))?)
        }
        _ => None,
    };
    run(args, machine, args.int(13)?, sizes, out)
}

/// Refuses lists that hold anything.
fn absent(args: &Args<'_>, positions: std::ops::Range<usize>) -> Outcome {
    for position in positions {
        ensure!(list(args, position)?.is_empty(), "{}: not supported, pass null", args.name(position));
    }
    Ok(())
}

/// Tensors of a list; none of null, and none of a list of empty tensors, which stands for null too.
fn list(args: &Args<'_>, position: usize) -> Outcome<Vec<View>> {
    if args.is_absent(position) {
        return Ok(Vec::new());
    }
    let all = args.tensors(position)?.collect::<Outcome<Vec<View>>>()?;
    Ok(if all.iter().all(|view| view.elements() == 0) { Vec::new() } else { all })
}

/// Sizes of groups from a group list.
fn sizes(list: &[i64], kind: i64) -> Outcome<Vec<usize>> {
    let mut last = 0;
    let size = |&value: &i64| {
        let size = match kind {
            0 => value.checked_sub(last),
            1 => Some(value),
            _ => return Err(Fault::new(format!("groupListType: {kind} is not supported (0 ends, 1 sizes)"))),
        };
        last = value;
        size.and_then(|size| usize::try_from(size).ok())
            .ok_or_else(|| Fault::new(format!("{list:?} are not the {} of groups", ["ends", "sizes"][kind as usize])))
    };
    list.iter().map(size).collect()
}

fn run(args: &Args<'_>, machine: &mut Machine, kind: i64, sizes: Option<Vec<usize>>, out_at: usize) -> Outcome {
    let all = |position: usize| args.tensors(position)?.collect::<Outcome<Vec<View>>>();
    let (xs, weights, biases) = (all(0)?, args.matrices(1)?, list(args, 2)?);
    let out_name = args.name(out_at);
    let outs = all(out_at)?;
    for out in &outs {
        ensure!(!out.repeats(), "{out_name}: an output cannot be expanded");
    }
    ensure!(!xs.is_empty() && !weights.is_empty() && !outs.is_empty(), "x, weight, {out_name}: empty lists");
    let group = Grouped { xs, weights, biases, outs, out_name };
    match (kind, sizes) {
        (-1, _) => group.separate(machine),
        (0, Some(sizes)) => group.by_rows(machine, &sizes),
        (0, None) => Err(Fault::new("groupList: required with groupType 0")),
        (2, Some(sizes)) => group.by_depth(machine, &sizes),
        (2, None) => Err(Fault::new("groupList: required with groupType 2")),
        _ => Err(Fault::new(format!("groupType: {kind} is not supported (-1, 0, 2)"))),
    }
}

struct Grouped {
    xs: Vec<View>,
    weights: Vec<View>,
    biases: Vec<View>,
    outs: Vec<View>,
    out_name: &'static str,
}

impl Grouped {
    /// The bias of a group: a tensor of its own, or a row of the only one.
    fn bias(&self, group: usize) -> Outcome<Option<Addend>> {
        let view = match self.biases.as_slice() {
            [] => return Ok(None),
            [all] if all.ndim() == 2 => {
                ensure!(group < all.dim(0), "bias: shape {:?} has no row {group}", all.dims());
                all.select(0, group)
            }
            list => *list.get(group).ok_or_else(|| Fault::new(format!("bias: no tensor for group {group}")))?,
        };
        Ok(Some(Addend { view, beta: 1.0, alpha: 1.0 }))
    }

    /// The weights of a group: a tensor of its own, or a matrix of the only one.
    fn weight(&self, group: usize, groups: usize) -> Outcome<View> {
        match self.weights.as_slice() {
            [all] if all.ndim() == 3 => {
                ensure!(all.dim(0) == groups, "weight: shape {:?} for {groups} groups", all.dims());
                Ok(all.select(0, group))
            }
            list => {
                ensure!(list.len() == groups, "weight: {} tensors for {groups} groups", list.len());
                ensure!(list[group].ndim() == 2, "weight: shape {:?}, want [K, N]", list[group].dims());
                Ok(list[group])
            }
        }
    }

    fn multiply(&self, machine: &mut Machine, group: usize, x: &View, weight: &View, out: &View) -> Outcome {
        ensure!(x.ndim() >= 2 && weight.ndim() >= 2, "x: {:?} · weight {:?}", x.dims(), weight.dims());
        batched(machine, x, weight, out, self.bias(group)?).map_err(|f| f.about(&format!("group {group}")))
    }

    fn separate(&self, machine: &mut Machine) -> Outcome {
        let groups = self.xs.len();
        ensure!(self.outs.len() == groups, "{}: {} tensors for {groups} groups", self.out_name, self.outs.len());
        for group in 0..groups {
            let weight = self.weight(group, groups)?;
            self.multiply(machine, group, &self.xs[group], &weight, &self.outs[group])?;
        }
        Ok(())
    }

    fn by_rows(&self, machine: &mut Machine, sizes: &[usize]) -> Outcome {
        let groups = sizes.len();
        let (mut from, mut parts) = (0usize, Vec::new());
        for (group, &size) in sizes.iter().enumerate() {
            let part = |views: &[View], name: &str| -> Outcome<View> {
                let (view, from) = match views {
                    [only] => (only, from),
                    list => {
                        ensure!(list.len() == groups, "{name}: {} tensors for {groups} groups", list.len());
                        (&list[group], 0)
                    }
                };
                let fits = view.ndim() == 2 && from.checked_add(size).is_some_and(|end| end <= view.dim(0));
                ensure!(fits, "{name}: shape {:?} has no rows {from}+{size} for group {group}", view.dims());
                Ok(view.narrow(0, from, size))
            };
            parts.push((part(&self.xs, "x")?, self.weight(group, groups)?, part(&self.outs, self.out_name)?));
            from = from.saturating_add(size);
        }
        for (group, (x, weight, out)) in parts.iter().enumerate() {
            self.multiply(machine, group, x, weight, out)?;
        }
        Ok(())
    }

    fn by_depth(&self, machine: &mut Machine, sizes: &[usize]) -> Outcome {
        let ([x], [weight], [out]) = (self.xs.as_slice(), self.weights.as_slice(), self.outs.as_slice()) else {
            return Err(Fault::new("x, weight: groupType 2 takes one tensor each"));
        };
        let fits = x.ndim() == 2 && weight.ndim() == 2 && out.ndim() == 3 && out.dim(0) == sizes.len();
        ensure!(fits, "{}: {:?} · {:?} → {:?}", self.out_name, x.dims(), weight.dims(), out.dims());
        let mut from = 0usize;
        for (group, &size) in sizes.iter().enumerate() {
            let end = from.saturating_add(size);
            ensure!(end <= x.dim(1) && end <= weight.dim(0), "groupList: {from}+{size} of depth {}", x.dim(1));
            let (x, weight) = (x.narrow(1, from, size), weight.narrow(0, from, size));
            self.multiply(machine, group, &x, &weight, &out.select(0, group))?;
            from = end;
        }
        Ok(())
    }
}

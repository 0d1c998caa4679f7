//! ScatterPaKvCache: writes the keys and values of new tokens into a paged cache.

use acl_abi::ops;

use super::args::Args;
use super::elementwise::copy;
use super::fault::{Fault, Outcome, ensure};
use super::lane::{self, Class, class};
use super::view::View;
use super::{Family, Machine};

/// Operators of this file.
pub const KERNELS: Family = &[(ops::aclnnScatterPaKvCache, scatter_pa_kv_cache)];

const SLOT_MAPPING: usize = 2;
const CACHE_MODE: usize = 8;
const SCATTER_MODE: usize = 9;

/// Cache mode "Norm": token `t` of `key [T, H, D]` goes to `keyCacheRef [blocks, block_size, H, D]` at block
/// `slot / block_size`, offset `slot mod block_size`, where `slot = slotMapping[t]`; −1 skips the token. The same for
/// values, whose head size may differ.
///
/// Every slot is checked before anything is written. Of two tokens with one slot the later wins.
pub fn scatter_pa_kv_cache(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    for position in [5, 6, 7, 10, 11] {
        ensure!(args.is_absent(position), "{}: not supported, pass null", args.name(position));
    }
    let cache_mode = args.text(CACHE_MODE)?;
    ensure!(matches!(cache_mode, "" | "Norm"), "cacheModeOptional: {cache_mode:?} is not supported (\"Norm\")");
    let scatter_mode = args.text(SCATTER_MODE)?;
    ensure!(matches!(scatter_mode, "" | "None"), "scatterModeOptional: {scatter_mode:?} is not supported (\"None\")");
    let slots = args.tensor(SLOT_MAPPING)?;
    ensure!(
        slots.ndim() == 1 && class(slots.dtype) == Class::Int,
        "slotMapping: {:?} {}, want one dimension of int32 or int64",
        slots.dims(),
        lane::name(slots.dtype)
    );
    let pairs = [Pair::new(args, 0, 1, &slots)?, Pair::new(args, 3, 4, &slots)?];
    let row = slots.row();
    for token in 0..row.len {
        let slot = row.integer(&machine.hbm, token);
        for pair in &pairs {
            let limit = pair.slots as i64;
            ensure!(
                (-1..limit).contains(&slot),
                "slotMapping: slot {slot} of token {token} is not in the cache's {limit} slots"
            );
        }
    }
    for token in 0..row.len {
        let Ok(slot) = usize::try_from(row.integer(&machine.hbm, token)) else { continue };
        for pair in &pairs {
            let to = pair.cache.select(0, slot / pair.block_size).select(0, slot % pair.block_size);
            copy(machine, &to, &pair.tokens.select(0, token))?;
        }
    }
    Ok(())
}

/// New tokens and the cache they go to.
struct Pair {
    tokens: View,
    cache: View,
    block_size: usize,
    slots: usize,
}

impl Pair {
    fn new(args: &Args<'_>, tokens: usize, cache: usize, slots: &View) -> Outcome<Self> {
        let (name, cache_name) = (args.name(tokens), args.name(cache));
        let (tokens, cache) = (args.tensor(tokens)?, args.output(cache)?);
        ensure!(tokens.ndim() == 3, "{name}: shape {:?}, want [tokens, heads, head size]", tokens.dims());
        ensure!(
            cache.ndim() == 4 && cache.dims()[2..] == tokens.dims()[1..],
            "{cache_name}: shape {:?}, want [blocks, block size, {}, {}]",
            cache.dims(),
            tokens.dim(1),
            tokens.dim(2)
        );
        ensure!(
            cache.dtype == tokens.dtype,
            "{cache_name}: type {}, but {name} has {}",
            lane::name(cache.dtype),
            lane::name(tokens.dtype)
        );
        ensure!(
            slots.dim(0) == tokens.dim(0),
            "slotMapping: {} slots for the {} tokens of {name}",
            slots.dim(0),
            tokens.dim(0)
        );
        let (blocks, block_size) = (cache.dim(0), cache.dim(1));
        let count = blocks.checked_mul(block_size).ok_or_else(|| Fault::new("too many slots").about(cache_name))?;
        Ok(Self { tokens, cache, block_size, slots: count })
    }
}

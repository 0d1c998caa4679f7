//! The loop that every operation runs in: pieces of every operand are loaded, one function computes them, the result is
//! stored.
//!
//! Only the function over a piece ([`Piece`]) is compiled for each operation; the loop around it exists once a lane
//! and number of operands. A piece is loaded completely before its result is stored, so an output may be one of the
//! operands. Operations over [`SHARED_ELEMENTS_MIN`] elements or more are computed by all threads of the pool.

use acl_abi::DataType;

use super::super::Machine;
use super::super::fault::{Outcome, ensure};
use super::super::nest::{CHUNK, Nest};
use super::super::view::{Row, View};
use super::number::Number;
use crate::emulated::hbm::Hbm;

/// From so many elements on, threads share an operation: waking one costs what 100,000 additions cost.
pub const SHARED_ELEMENTS_MIN: usize = 1 << 20;

/// Elements that threads compute before the results are stored: one or two MiB, inside the second-level cache.
const BLOCK: usize = 1 << 18;

/// Elements that one thread takes at a time.
const SHARE: usize = 1 << 14;

/// Rows shorter than this are not worth handing out.
const SHARED_ROW_MIN: usize = 256;

/// Most operands that are tensors.
pub const TENSORS_MAX: usize = 3;

/// Where the values of one operand come from.
#[derive(Clone, Copy, Debug)]
pub enum Source<L> {
    /// Memory, broadcast to the output; converted to a type on the way if one is given.
    View(View, Option<DataType>),
    /// One value for all.
    Constant(L),
}

/// Computes a piece: `result[i]` from the `i`-th value of every operand.
pub type Piece<'a, L, const N: usize> = &'a (dyn Fn(&[[L; CHUNK]; N], &mut [L]) + Sync);

/// A function of one element as one of a piece, compiled for the widest vectors there are: the same operations on every
/// element, so the same bits.
pub fn piece<L: Number, const N: usize>(f: impl Fn([L; N]) -> L + Sync) -> impl Fn(&[[L; CHUNK]; N], &mut [L]) + Sync {
    move |operands, result| {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2, checked just now.
            return unsafe { piece_avx2(&f, operands, result) };
        }
        piece_any(&f, operands, result);
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn piece_avx2<L: Number, const N: usize>(f: &impl Fn([L; N]) -> L, operands: &[[L; CHUNK]; N], result: &mut [L]) {
    piece_any(f, operands, result);
}

#[inline(always)]
fn piece_any<L: Number, const N: usize>(f: &impl Fn([L; N]) -> L, operands: &[[L; CHUNK]; N], result: &mut [L]) {
    assert!(result.len() <= CHUNK);
    for (i, result) in result.iter_mut().enumerate() {
        *result = f(std::array::from_fn(|k| operands[k][i]));
    }
}

/// What is done with every row of the nest: which of its views an operand is.
struct Plan<'a, L, const N: usize> {
    slots: [Option<(usize, Option<DataType>)>; N],
    constants: [Option<L>; N],
    compute: Piece<'a, L, N>,
}

impl<L: Number, const N: usize> Plan<'_, L, N> {
    /// Buffers of all operands, those of constants filled for pieces of up to `len`.
    fn buffers(&self, len: usize) -> [[L; CHUNK]; N] {
        let mut buffers = [[L::default(); CHUNK]; N];
        for (buffer, constant) in buffers.iter_mut().zip(self.constants) {
            if let Some(value) = constant {
                buffer[..len.min(CHUNK)].fill(value);
            }
        }
        buffers
    }

    /// Computes `result`, the elements of a row from `from` on; at most [`CHUNK`].
    fn compute(&self, hbm: &Hbm, rows: &[Row], from: usize, buffers: &mut [[L; CHUNK]; N], result: &mut [L]) {
        for (buffer, slot) in buffers.iter_mut().zip(self.slots) {
            if let Some((slot, through)) = slot {
                let buffer = &mut buffer[..result.len()];
                rows[slot].load(hbm, from, buffer);
                if let Some(dtype) = through {
                    L::through(dtype, buffer);
                }
            }
        }
        (self.compute)(buffers, result);
    }
}

/// `out = f(sources…)`, element by element.
pub fn map<L: Number, const N: usize>(
    machine: &mut Machine,
    out: &View,
    sources: &[Source<L>; N],
    compute: Piece<'_, L, N>,
) -> Outcome {
    let mut plan = Plan { slots: [None; N], constants: [None; N], compute };
    // Views that no operand needs stand in as the output: they change nothing about the rows.
    let mut views = [out; 1 + TENSORS_MAX];
    let mut used = 1;
    for (i, source) in sources.iter().enumerate() {
        match source {
            Source::Constant(value) => plan.constants[i] = Some(*value),
            Source::View(view, through) => {
                ensure!(used < views.len(), "more than {TENSORS_MAX} operands are tensors");
                plan.slots[i] = Some((used, *through));
                views[used] = view;
                used += 1;
            }
        }
    }
    let nest = Nest::new(out.dims(), views)?;
    let elements = out.elements();
    if elements >= SHARED_ELEMENTS_MIN && nest.inner() >= SHARED_ROW_MIN && machine.pool.threads() > 1 {
        shared(machine, &nest, &plan);
        return Ok(());
    }
    let mut buffers = plan.buffers(elements);
    let mut result = [L::default(); CHUNK];
    nest.rows(|rows| {
        for from in (0..rows[0].len).step_by(CHUNK) {
            let result = &mut result[..CHUNK.min(rows[0].len - from)];
            plan.compute(&machine.hbm, &rows, from, &mut buffers, result);
            rows[0].store(&mut machine.hbm, from, result);
        }
    });
    Ok(())
}

/// [`map`] by all threads: they compute a block, this one stores it.
fn shared<L: Number, const N: usize>(machine: &mut Machine, nest: &Nest<{ 1 + TENSORS_MAX }>, plan: &Plan<'_, L, N>) {
    struct Share {
        rows: [Row; 1 + TENSORS_MAX],
        from: usize,
        len: usize,
    }
    let Machine { hbm, pool, .. } = machine;
    let mut block = Vec::new();
    block.resize(BLOCK, L::default());
    let mut finish = |shares: &mut Vec<Share>| {
        let mut rest = &mut block[..];
        let mut tasks = Vec::with_capacity(shares.len());
        for share in shares.drain(..) {
            let (values, after) = rest.split_at_mut(share.len);
            rest = after;
            tasks.push((share, values));
        }
        let memory = &*hbm;
        pool.for_each(&mut tasks, |_, (share, values)| {
            let mut buffers = plan.buffers(CHUNK);
            for (i, values) in values.chunks_mut(CHUNK).enumerate() {
                plan.compute(memory, &share.rows, share.from + i * CHUNK, &mut buffers, values);
            }
        });
        for (share, values) in tasks {
            share.rows[0].store(hbm, share.from, values);
        }
    };
    let (mut shares, mut elements) = (Vec::new(), 0);
    nest.rows(|rows| {
        for from in (0..rows[0].len).step_by(SHARE) {
            let len = SHARE.min(rows[0].len - from);
            if elements + len > BLOCK {
                finish(&mut shares);
                elements = 0;
            }
            shares.push(Share { rows, from, len });
            elements += len;
        }
    });
    finish(&mut shares);
}

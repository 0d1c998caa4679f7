//! Reductions of collectives: pieces of several ranks, element by element, always in order of rank.

use acl_abi::{DataType, Fold};
use bytemuck::{Pod, Zeroable};
use half::{bf16, f16};

use super::hbm::{Hbm, OutOfBounds};
use crate::command::Combine;

/// An element, and what it is reduced in.
trait Number: Pod {
    /// Wide enough that nothing is rounded before the end where an element has 16 bits.
    type Sum: Copy;
    fn load(self) -> Self::Sum;
    fn store(sum: Self::Sum) -> Self;
    fn add(a: Self::Sum, b: Self::Sum) -> Self::Sum;
    fn multiply(a: Self::Sum, b: Self::Sum) -> Self::Sum;
    fn larger(a: Self::Sum, b: Self::Sum) -> Self::Sum;
    fn smaller(a: Self::Sum, b: Self::Sum) -> Self::Sum;
}

macro_rules! integers {
    ($($t:ty)*) => {$(impl Number for $t {
        type Sum = Self;
        fn load(self) -> Self { self }
        fn store(sum: Self) -> Self { sum }
        fn add(a: Self, b: Self) -> Self { a.wrapping_add(b) }
        fn multiply(a: Self, b: Self) -> Self { a.wrapping_mul(b) }
        fn larger(a: Self, b: Self) -> Self { a.max(b) }
        fn smaller(a: Self, b: Self) -> Self { a.min(b) }
    })*};
}
integers!(i8 i16 i32 i64 u8 u16 u32 u64);

macro_rules! floats {
    ($($t:ty, $sum:ty, $value:ident => $load:expr, $store:expr;)*) => {$(impl Number for $t {
        type Sum = $sum;
        fn load(self) -> $sum { let $value = self; $load }
        fn store($value: $sum) -> Self { $store }
        fn add(a: $sum, b: $sum) -> $sum { a + b }
        fn multiply(a: $sum, b: $sum) -> $sum { a * b }
        fn larger(a: $sum, b: $sum) -> $sum { if b > a || b.is_nan() { b } else { a } }
        fn smaller(a: $sum, b: $sum) -> $sum { if b < a || b.is_nan() { b } else { a } }
    })*};
}
floats! {
    f32, f32, v => v, v;
    f64, f64, v => v, v;
    f16, f32, v => v.to_f32(), f16::from_f32(v);
    bf16, f32, v => v.to_f32(), bf16::from_f32(v);
}

/// Runs `combine`.
///
/// # Errors
/// Pieces outside of memory.
///
/// # Panics
/// An element type that nothing reduces: a bug of the caller.
pub fn run(combine: &Combine, hbm: &mut Hbm) -> Result<(), OutOfBounds> {
    match combine.element {
        DataType::I8 => reduce::<i8>(combine, hbm),
        DataType::I16 => reduce::<i16>(combine, hbm),
        DataType::I32 => reduce::<i32>(combine, hbm),
        DataType::I64 => reduce::<i64>(combine, hbm),
        DataType::U8 => reduce::<u8>(combine, hbm),
        DataType::U16 => reduce::<u16>(combine, hbm),
        DataType::U32 => reduce::<u32>(combine, hbm),
        DataType::U64 => reduce::<u64>(combine, hbm),
        DataType::F16 => reduce::<f16>(combine, hbm),
        DataType::BF16 => reduce::<bf16>(combine, hbm),
        DataType::F32 => reduce::<f32>(combine, hbm),
        DataType::F64 => reduce::<f64>(combine, hbm),
        other => unreachable!("{other:?} is not reduced"),
    }
}

fn reduce<E: Number + Zeroable>(combine: &Combine, hbm: &mut Hbm) -> Result<(), OutOfBounds> {
    let Combine { dst, own, place, ref others, len, fold, .. } = *combine;
    let (to, own) = (hbm.locate(dst, len)?, hbm.locate(own, len)?);
    let len = len as usize;
    let mut piece = vec![E::zeroed(); len / size_of::<E>()];
    let mut sums: Vec<E::Sum> = Vec::with_capacity(piece.len());
    for rank in 0..=others.len() {
        let bytes = bytemuck::cast_slice_mut(&mut piece);
        match rank.cmp(&place) {
            std::cmp::Ordering::Less => others[rank].read(bytes),
            std::cmp::Ordering::Equal => bytes.copy_from_slice(&hbm.bytes()[own..own + len]),
            std::cmp::Ordering::Greater => others[rank - 1].read(bytes),
        }
        if rank == 0 {
            sums.extend(piece.iter().map(|e| e.load()));
            continue;
        }
        let pairs = sums.iter_mut().zip(&piece);
        // One loop an operation, so that each is a vector loop.
        match fold {
            Fold::Sum => pairs.for_each(|(s, e)| *s = E::add(*s, e.load())),
            Fold::Product => pairs.for_each(|(s, e)| *s = E::multiply(*s, e.load())),
            Fold::Max => pairs.for_each(|(s, e)| *s = E::larger(*s, e.load())),
            Fold::Min => pairs.for_each(|(s, e)| *s = E::smaller(*s, e.load())),
        }
    }
    for (e, sum) in piece.iter_mut().zip(sums) {
        *e = E::store(sum);
    }
    hbm.bytes_mut()[to..to + len].copy_from_slice(bytemuck::cast_slice(&piece));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::HostBytes;
    use crate::emulated::hbm::PHYS_BASE;
    use crate::interface::PhysAddr;

    /// What three ranks get, the device's own piece being that of rank `place`.
    fn three<E: Pod>(element: DataType, fold: Fold, pieces: [&[E]; 3], place: usize) -> Vec<E> {
        let mut hbm = Hbm::new(1 << 16).unwrap();
        let at = |offset: u64| PhysAddr(PHYS_BASE + offset);
        hbm.copy_in(at(64), &HostBytes::owned(bytemuck::cast_slice(pieces[place]).to_vec())).unwrap();
        let others = (0..3).filter(|&r| r != place);
        let others = others.map(|r| HostBytes::owned(bytemuck::cast_slice(pieces[r]).to_vec())).collect();
        let len = size_of_val(pieces[0]) as u64;
        run(&Combine { dst: at(64), own: at(64), place, others, len, element, fold }, &mut hbm).unwrap();
        let mut out = HostBytes::owned(vec![0; len as usize]);
        hbm.copy_out(&mut out, at(64)).unwrap();
        out.as_owned().unwrap().chunks_exact(size_of::<E>()).map(bytemuck::pod_read_unaligned).collect()
    }

    #[test]
    fn integers_wrap_and_compare_in_their_own_type() {
        let pieces: [&[u64]; 3] = [&[1, u64::MAX, 5], &[2, 2, 7], &[3, 1, 6]];
        for (fold, want) in [
            (Fold::Sum, [6, 2, 18]),
            (Fold::Product, [6, u64::MAX - 1, 210]),
            (Fold::Max, [3, u64::MAX, 7]),
            (Fold::Min, [1, 1, 5]),
        ] {
            assert_eq!(three(DataType::U64, fold, pieces, 1), want, "{fold:?}");
        }
        assert_eq!(three::<i8>(DataType::I8, Fold::Sum, [&[100], &[100], &[1]], 0), [-55]);
        assert_eq!(three::<i8>(DataType::I8, Fold::Min, [&[-3], &[100], &[1]], 0), [-3]);
    }

    #[test]
    fn every_rank_gets_the_same_bits() {
        // Sums that depend on their order.
        let pieces: [&[f32]; 3] = [&[1e8, 0.1], &[-1e8, 0.2], &[1.0, 0.3]];
        let first = three(DataType::F32, Fold::Sum, pieces, 0);
        assert_eq!(first, [1.0, 0.1 + 0.2 + 0.3]);
        for place in [1, 2] {
            assert_eq!(three(DataType::F32, Fold::Sum, pieces, place), first);
        }
    }

    #[test]
    fn halves_are_rounded_once_and_nan_wins() {
        let h = |v: f32| f16::from_f32(v);
        // 2048 + 1 is no half, but 2048 + 1 + 1 is.
        let pieces: [&[f16]; 3] = [&[h(2048.0)], &[h(1.0)], &[h(1.0)]];
        assert_eq!(three(DataType::F16, Fold::Sum, pieces, 2), [h(2050.0)]);
        let pieces: [&[f32]; 3] = [&[1.0], &[f32::NAN], &[2.0]];
        for fold in Fold::ALL {
            assert!(three(DataType::F32, fold, pieces, 0)[0].is_nan(), "{fold:?}");
        }
    }
}

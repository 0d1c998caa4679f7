//! FRACTAL_NZ: where elements lie, the way in and out, and products with what lies so.

use acl_abi::{DataType, TensorDesc, nz, ops};

use super::super::testing::{A, Lab, Lay, Noise, real};
use crate::emulated::hbm::PHYS_BASE;
use DataType::{BF16, F16, F32, I8, I64};

/// Room for a tensor tagged FRACTAL_NZ.
fn private(lab: &mut Lab, dtype: DataType, dims: &[i64]) -> TensorDesc {
    let storage = nz::storage_dims(dtype, dims).unwrap();
    let addr = lab.room(dtype, &storage).addr;
    TensorDesc { format: 29, ..TensorDesc::contiguous(addr, dtype, dims) }
}

/// The same elements with the last two dimensions exchanged.
fn turned(mut desc: TensorDesc) -> TensorDesc {
    let n = usize::from(desc.ndim);
    desc.dims.swap(n - 2, n - 1);
    desc.strides.swap(n - 2, n - 1);
    desc
}

/// The storage of `desc`, element by element.
fn raw(lab: &Lab, desc: &TensorDesc, dims: &[i64]) -> Vec<f64> {
    lab.read(&TensorDesc::contiguous(desc.addr, desc.dtype, &nz::storage_dims(desc.dtype, dims).unwrap()))
}

/// What CANN documents: sizes `[strips, ⌈rows / 16⌉, 16, width]`, padding zero.
fn laid_out(values: &[f64], rows: usize, columns: usize, width: usize) -> Vec<f64> {
    let (strips, blocks) = (columns.div_ceil(width), rows.div_ceil(16));
    let mut out = vec![0.0; strips * blocks * 16 * width];
    for (at, &value) in values.iter().enumerate() {
        let (r, c) = (at / columns, at % columns);
        out[(((c / width) * blocks + r / 16) * 16 + r % 16) * width + c % width] = value;
    }
    out
}

#[test]
fn a_cast_lays_elements_out_in_strips_and_back() {
    let mut noise = Noise::new(3);
    for (dtype, width) in [(F32, 8), (F16, 16), (BF16, 16), (I8, 32)] {
        for (rows, columns) in [(3, 5), (16, 32), (20, 33), (1, 70), (70, 1)] {
            for lay in [Lay::Plain, Lay::Reversed, Lay::Sliced] {
                let mut lab = Lab::new();
                let dims = [rows as i64, columns as i64];
                let values: Vec<f64> = noise.values(rows * columns).iter().map(|v| (v * 8.0).trunc()).collect();
                let plain = lab.tensor_as(dtype, &dims, &values, lay);
                let strips = private(&mut lab, dtype, &dims);
                lab.ok(ops::aclnnNpuFormatCast, &[A::T(plain), A::T(strips)]);
                assert_eq!(raw(&lab, &strips, &dims), laid_out(&values, rows, columns, width), "{dtype:?} {dims:?}");
                let back = lab.room_as(dtype, &dims, lay);
                lab.ok(ops::aclnnNpuFormatCast, &[A::T(strips), A::T(back)]);
                assert_eq!(lab.read(&back), values);
                // Transposed on the way, and from one such tensor to another. One column cannot be told from one row then.
                if columns == 1 {
                    continue;
                }
                let turned_dims = [dims[1], dims[0]];
                let (across, again) = (lab.room(dtype, &turned_dims), private(&mut lab, dtype, &turned_dims));
                lab.ok(ops::aclnnNpuFormatCast, &[A::T(turned(strips)), A::T(across)]);
                lab.ok(ops::aclnnNpuFormatCast, &[A::T(turned(strips)), A::T(again)]);
                let swapped = lab.read(&across);
                let want: Vec<f64> = (0..rows * columns).map(|i| values[i % rows * columns + i / rows]).collect();
                assert_eq!(swapped, want);
                assert_eq!(raw(&lab, &again, &turned_dims), laid_out(&swapped, columns, rows, width));
            }
        }
    }
}

#[test]
fn weights_are_laid_out_in_place() {
    let mut noise = Noise::new(4);
    for (dtype, dims, width) in [(F16, vec![20i64, 33], 16), (F32, vec![33, 16], 8), (I8, vec![2, 20, 33], 32)] {
        let mut lab = Lab::new();
        let (rows, columns) = (dims[dims.len() - 2] as usize, dims[dims.len() - 1] as usize);
        let count = dims.iter().product::<i64>() as usize;
        let values: Vec<f64> = noise.values(count).iter().map(|v| (v * 8.0).trunc()).collect();
        let weight = private(&mut lab, dtype, &dims);
        let behind = lab.tensor(dtype, &[4], &[1.0, 2.0, 3.0, 4.0]);
        let plain = TensorDesc { format: 2, ..weight };
        let source = lab.tensor(dtype, &dims, &values);
        lab.ok(ops::aclnnInplaceCopy, &[A::T(plain), A::T(source)]);
        lab.ok(ops::aclnnTransMatmulWeight, &[A::T(weight)]);
        let want: Vec<f64> =
            values.chunks_exact(rows * columns).flat_map(|m| laid_out(m, rows, columns, width)).collect();
        assert_eq!(raw(&lab, &weight, &dims), want, "{dtype:?} {dims:?}");
        assert_eq!(lab.read(&behind), [1.0, 2.0, 3.0, 4.0], "nothing behind the padding is touched");
    }
    let mut lab = Lab::new();
    let plain = lab.room(F16, &[4, 4]);
    lab.refused(ops::aclnnTransMatmulWeight, &[A::T(plain)], "mmWeightRef: a matrix with elements that is tagged");
    let mut part = private(&mut lab, F16, &[4, 4]);
    part.offset = 4;
    lab.refused(ops::aclnnTransMatmulWeight, &[A::T(part)], "mmWeightRef: FRACTAL_NZ: sizes, strides and offset");
    part.offset = 16;
    lab.refused(ops::aclnnTransMatmulWeight, &[A::T(part)], "mmWeightRef: offset 16, want 0");
}

/// The bits of a product do not depend on how the second matrix lies.
#[test]
fn products_read_either_orientation_like_plain_matrices() {
    let mut noise = Noise::new(5);
    for dtype in [F16, BF16, F32] {
        for (m, k, n) in [(1, 5, 7), (3, 16, 16), (2, 33, 40), (9, 130, 70), (1, 600, 1100)] {
            let mut lab = Lab::new();
            let a = lab.tensor(F32, &[m, k], &noise.values((m * k) as usize));
            let b = noise.values((k * n) as usize);
            let plain = lab.tensor(dtype, &[k, n], &b);
            let want = lab.room(F32, &[m, n]);
            lab.ok(ops::aclnnMm, &[A::T(a), A::T(plain), A::T(want), A::I(2)]);
            let along = private(&mut lab, dtype, &[k, n]);
            lab.ok(ops::aclnnNpuFormatCast, &[A::T(plain), A::T(along)]);
            let across = private(&mut lab, dtype, &[n, k]);
            lab.ok(ops::aclnnNpuFormatCast, &[A::T(turned(plain)), A::T(across)]);
            for weight in [along, turned(across)] {
                for op in [ops::aclnnMm, ops::aclnnMatmul, ops::aclnnMatmulWeightNz] {
                    let out = lab.room(F32, &[m, n]);
                    lab.ok(op, &[A::T(a), A::T(weight), A::T(out), A::I(2)]);
                    assert_eq!(lab.read(&out), lab.read(&want), "{dtype:?} {m}·{k}·{n} {}", op.name());
                }
            }
        }
    }
}

#[test]
fn batches_addends_and_groups_read_strips() {
    let mut lab = Lab::new();
    let mut noise = Noise::new(6);
    let (a, values) = (lab.tensor(F32, &[3, 4, 20], &noise.values(240)), noise.values(3 * 20 * 33));
    let plain = lab.tensor(F16, &[3, 20, 33], &values);
    let strips = private(&mut lab, F16, &[3, 20, 33]);
    lab.ok(ops::aclnnNpuFormatCast, &[A::T(plain), A::T(strips)]);
    let both = |lab: &mut Lab, op: acl_abi::OpId, dims: &[i64], args: &dyn Fn(TensorDesc, TensorDesc) -> Vec<A>| {
        let outs = [plain, strips].map(|weight| {
            let out = lab.room(F32, dims);
            lab.ok(op, &args(weight, out));
            lab.read(&out)
        });
        assert_eq!(outs[0], outs[1], "{}", op.name());
    };
    both(&mut lab, ops::aclnnBatchMatMul, &[3, 4, 33], &|w, out| vec![A::T(a), A::T(w), A::T(out), A::I(0)]);
    // One matrix of several, by its offset.
    let second = |w: TensorDesc| TensorDesc { ndim: 2, dims: cut(w.dims), strides: cut(w.strides), offset: 660, ..w };
    let (row, own) = (TensorDesc { ndim: 2, dims: cut(a.dims), strides: cut(a.strides), ..a }, lab.room(F32, &[33]));
    lab.ok(ops::aclnnInplaceFillScalar, &[A::T(own), real(0.5)]);
    both(&mut lab, ops::aclnnAddmm, &[4, 33], &|w, out| {
        vec![A::T(own), A::T(row), A::T(second(w)), real(1.0), real(2.0), A::T(out), A::I(0)]
    });
    let groups = lab.tensor(I64, &[3], &[1.0, 3.0, 4.0]);
    both(&mut lab, ops::aclnnGroupedMatmulV4, &[4, 33], &|w, out| {
        let mut args = vec![A::List(vec![row]), A::List(vec![w])];
        args.extend((0..6).map(|_| A::List(vec![])));
        args.push(A::T(groups));
        args.extend((0..3).map(|_| A::List(vec![])));
        args.extend([A::I(3), A::I(0), A::I(0), A::I(0), A::List(vec![out]), A::List(vec![]), A::List(vec![])]);
        args
    });
}

/// Sizes or strides without the first dimension.
fn cut(mut all: [i64; 8]) -> [i64; 8] {
    all.copy_within(1.., 0);
    all[7] = 0;
    all
}

#[test]
fn operators_that_look_at_elements_refuse_strips() {
    let mut lab = Lab::new();
    let (x, out) = (private(&mut lab, F16, &[4, 40]), lab.room(F16, &[4, 40]));
    let only = "format FRACTAL_NZ is only for weights of products";
    lab.refused(ops::aclnnAdd, &[A::T(out), A::T(x), real(1.0), A::T(out)], only);
    lab.refused(ops::aclnnInplaceCopy, &[A::T(out), A::T(x)], only);
    lab.refused(ops::aclnnCat, &[A::List(vec![x, out]), A::I(0), A::T(out)], only);
    let square = lab.room(F16, &[4, 4]);
    lab.refused(ops::aclnnMm, &[A::T(x), A::T(turned(out)), A::T(square), A::I(0)], only);
    let (bytes, columns) = (private(&mut lab, I8, &[40, 40]), lab.room(I8, &[4, 40]));
    let exact = [A::T(columns), A::T(bytes), A::T(columns), A::I(0)];
    lab.refused(ops::aclnnMm, &exact, "FRACTAL_NZ of int8 is not supported");
    // One strip is a matrix like any other: rows that lie apart.
    let (narrow, doubled) = (private(&mut lab, F16, &[4, 16]), lab.room(F16, &[4, 16]));
    let plain = lab.tensor(F16, &[4, 16], &(0..64).map(f64::from).collect::<Vec<_>>());
    lab.ok(ops::aclnnNpuFormatCast, &[A::T(plain), A::T(narrow)]);
    lab.ok(ops::aclnnAdd, &[A::T(narrow), A::T(plain), real(1.0), A::T(doubled)]);
    assert_eq!(lab.read(&doubled), (0..64).map(|i| f64::from(2 * i)).collect::<Vec<_>>());
    let bytes = lab.machine.hbm.bytes().len() as u64;
    let outside = TensorDesc { addr: PHYS_BASE + bytes - 64, ..narrow };
    assert!(lab.run(ops::aclnnTransMatmulWeight, &[A::T(outside)]).is_err(), "padding is inside memory too");
}

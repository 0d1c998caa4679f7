//! Convolutions against a naive sum, and gradients against the same sum read the other way.

use acl_abi::{DataType, ops};

use super::super::testing::{A, LAYS, Lab, Noise, close};

use DataType::{BF16, F32};

/// One convolution: channels, sizes and attributes; spatial numbers one a dimension.
struct Case {
    samples: usize,
    groups: usize,
    /// Channels of one group, of the side under the kernel and of the other.
    channels: [usize; 2],
    big: Vec<usize>,
    kernel: Vec<usize>,
    stride: Vec<usize>,
    padding: Vec<usize>,
    dilation: Vec<usize>,
}

impl Case {
    fn small(&self) -> Vec<usize> {
        (0..self.big.len())
            .map(|d| {
                (self.big[d] + 2 * self.padding[d] - self.dilation[d] * (self.kernel[d] - 1) - 1) / self.stride[d] + 1
            })
            .collect()
    }

    /// What lies behind the last window of the big side.
    fn behind(&self) -> Vec<usize> {
        let room = |d: usize| self.big[d] + 2 * self.padding[d] - self.dilation[d] * (self.kernel[d] - 1) - 1;
        (0..self.big.len()).map(|d| room(d) % self.stride[d]).collect()
    }

    /// Calls `visit(big index, weight index, small index)` for every product.
    fn products(&self, mut visit: impl FnMut(usize, usize, usize)) {
        let (small, [cb, cs]) = (self.small(), self.channels);
        let count = |dims: &[usize]| dims.iter().product::<usize>();
        let index = |dims: &[usize], mut flat: usize| {
            let mut at = vec![0; dims.len()];
            for d in (0..dims.len()).rev() {
                at[d] = flat % dims[d];
                flat /= dims[d];
            }
            at
        };
        for n in 0..self.samples {
            for g in 0..self.groups {
                for q in 0..cs {
                    for c in 0..cb {
                        for p in 0..count(&small) {
                            for k in 0..count(&self.kernel) {
                                let (at, tap) = (index(&small, p), index(&self.kernel, k));
                                let mut flat = Some(0usize);
                                for d in 0..small.len() {
                                    let place = (at[d] * self.stride[d] + tap[d] * self.dilation[d])
                                        .checked_sub(self.padding[d])
                                        .filter(|&i| i < self.big[d]);
                                    flat = flat.zip(place).map(|(flat, i)| flat * self.big[d] + i);
                                }
                                if let Some(flat) = flat {
                                    let big = ((n * self.groups + g) * cb + c) * count(&self.big) + flat;
                                    let weight = ((g * cs + q) * cb + c) * count(&self.kernel) + k;
                                    visit(big, weight, ((n * self.groups + g) * cs + q) * count(&small) + p);
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn cases() -> Vec<Case> {
    let case =
        |samples, groups, channels, big: &[usize], kernel: &[usize], stride: &[usize], pad: &[usize], dil: &[usize]| {
            Case {
                samples,
                groups,
                channels,
                big: big.to_vec(),
                kernel: kernel.to_vec(),
                stride: stride.to_vec(),
                padding: pad.to_vec(),
                dilation: dil.to_vec(),
            }
        };
    vec![
        case(2, 1, [3, 4], &[9], &[3], &[2], &[1], &[1]),
        case(2, 2, [2, 3], &[6, 7], &[3, 2], &[1, 2], &[1, 0], &[2, 1]),
        case(1, 4, [1, 1], &[5, 5], &[3, 3], &[1, 1], &[1, 1], &[1, 1]),
        case(1, 1, [2, 2], &[4, 5, 3], &[2, 3, 1], &[1, 2, 1], &[0, 1, 0], &[1, 1, 1]),
        case(0, 1, [2, 2], &[4, 4], &[2, 2], &[1, 1], &[0, 0], &[1, 1]),
        case(3, 1, [2, 5], &[1, 1], &[1, 1], &[1, 1], &[0, 0], &[1, 1]),
    ]
}

#[test]
fn convolutions_and_their_gradients_match_a_naive_sum() {
    let mut noise = Noise::new(100);
    for case in cases() {
        let (small, [cb, cs]) = (case.small(), case.channels);
        let dims = |channels: usize, spatial: &[usize]| -> Vec<i64> {
            [case.samples, channels * case.groups].iter().chain(spatial).map(|&d| d as i64).collect()
        };
        let (big_dims, small_dims) = (dims(cb, &case.big), dims(cs, &small));
        let weight_dims: Vec<i64> = [cs * case.groups, cb].iter().chain(&case.kernel).map(|&d| d as i64).collect();
        let count = |dims: &[i64]| dims.iter().product::<i64>() as usize;
        let (vb, vs) = (noise.values(count(&big_dims)), noise.values(count(&small_dims)));
        let vw = noise.values(count(&weight_dims));
        let (mut gathered, mut spread, mut correlated) =
            (vec![0.0; vs.len()], vec![0.0; vb.len()], vec![0.0; vw.len()]);
        case.products(|b, w, s| {
            gathered[s] += vw[w] * vb[b];
            spread[b] += vw[w] * vs[s];
            correlated[w] += vs[s] * vb[b];
        });
        for (dtype, lay) in [(F32, LAYS[0]), (F32, LAYS[1]), (F32, LAYS[2]), (BF16, LAYS[0])] {
            let tolerance = if dtype == F32 { 1e-5 } else { 1e-2 };
            let mut lab = Lab::with_helpers(1);
            let (tb, ts) = (lab.tensor_as(dtype, &big_dims, &vb, lay), lab.tensor_as(dtype, &small_dims, &vs, lay));
            let tw = lab.tensor_as(dtype, &weight_dims, &vw, lay);
            let spatial = |v: &[usize]| A::Ints(v.iter().map(|&d| d as i64).collect());
            for transposed in [false, true] {
                let (input, in_dims, out_dims, out_channels) = match transposed {
                    false => (tb, &big_dims, &small_dims, cs * case.groups),
                    true => (ts, &small_dims, &big_dims, cb * case.groups),
                };
                let bias = noise.values(out_channels);
                let out = lab.room_as(dtype, out_dims, lay);
                let attributes = [
                    spatial(&case.stride),
                    spatial(&case.padding),
                    spatial(&case.dilation),
                    A::B(transposed),
                    spatial(&if transposed { case.behind() } else { vec![0; small.len()] }),
                    A::I(case.groups as i64),
                ];
                let mut args = vec![A::T(input), A::T(tw), A::T(lab.tensor(dtype, &[out_channels as i64], &bias))];
                args.extend(attributes.clone());
                args.extend([A::T(out), A::I(0)]);
                lab.ok(ops::aclnnConvolution, &args);
                let plain = if transposed { &spread } else { &gathered };
                let inner = count(&out_dims[2..]);
                let want: Vec<f64> =
                    plain.iter().enumerate().map(|(i, v)| v + bias[i / inner % out_channels]).collect();
                close(&lab.read(&out), &want, tolerance);

                let dy = if transposed { tb } else { ts };
                let outs = [
                    lab.room_as(dtype, in_dims, lay),
                    lab.room(dtype, &weight_dims),
                    lab.room(dtype, &[out_channels as i64]),
                ];
                let mut args = vec![A::T(dy), A::T(input), A::T(tw), A::Null];
                args.extend(attributes);
                args.extend([A::Ints(vec![1, 1, 1]), A::I(0)]);
                args.extend(outs.map(A::T));
                lab.ok(ops::aclnnConvolutionBackward, &args);
                let back = if transposed { &gathered } else { &spread };
                let dy = if transposed { &vb } else { &vs };
                let sums: Vec<f64> = (0..out_channels)
                    .map(|c| dy.iter().enumerate().filter(|(i, _)| i / inner % out_channels == c).map(|(_, v)| v).sum())
                    .collect();
                for (view, want) in outs.iter().zip([back, &correlated, &sums]) {
                    close(&lab.read(view), want, tolerance);
                }
            }
        }
    }
}

#[test]
fn a_result_larger_than_a_piece_of_columns_and_a_single_sample() {
    let mut noise = Noise::new(101);
    let (x, w) = (noise.values(4 * 200 * 200), noise.values(2 * 4 * 9));
    let mut lab = Lab::with_helpers(1);
    let (tx, tw) = (lab.tensor(F32, &[4, 200, 200], &x), lab.tensor(F32, &[2, 4, 3, 3], &w));
    let out = lab.room(F32, &[2, 198, 198]);
    let pair = |v: i64| A::Ints(vec![v, v]);
    let args =
        [A::T(tx), A::T(tw), A::Null, pair(1), pair(0), pair(1), A::B(false), pair(0), A::I(1), A::T(out), A::I(0)];
    lab.ok(ops::aclnnConvolution, &args);
    let got = lab.read(&out);
    for at in (0..got.len()).step_by(997) {
        let (q, i, j) = (at / 198 / 198, at / 198 % 198, at % 198);
        let tap = |t: usize| {
            let (c, a, b) = (t / 9, t / 3 % 3, t % 3);
            w[q * 36 + t] * x[(c * 200 + i + a) * 200 + j + b]
        };
        let want: f64 = (0..36).map(tap).sum();
        assert!((got[at] - want).abs() < 1e-4, "{at}: {} instead of {want}", got[at]);
    }
    let wrong = lab.room(F32, &[2, 198, 197]);
    let mut args = args.to_vec();
    args[9] = A::T(wrong);
    lab.refused(ops::aclnnConvolution, &args, "197 positions of 200 with a kernel of 3, want 198");
}

#[test]
fn a_transposed_result_may_reach_beyond_the_stride_where_the_kernel_is_dilated() {
    let mut lab = Lab::new();
    let (x, w) = (lab.tensor(F32, &[1, 1, 2], &[2.0, 3.0]), lab.tensor(F32, &[1, 1, 2], &[5.0, 7.0]));
    let (out, short) = (lab.room(F32, &[1, 1, 6]), lab.room(F32, &[1, 1, 5]));
    let one = |v: i64| A::Ints(vec![v]);
    let call =
        |out| [A::T(x), A::T(w), A::Null, one(1), one(0), one(3), A::B(true), one(1), A::I(1), A::T(out), A::I(0)];
    lab.ok(ops::aclnnConvolution, &call(out));
    assert_eq!(lab.read(&out), [10.0, 15.0, 0.0, 14.0, 21.0, 0.0]);
    lab.refused(ops::aclnnConvolution, &call(short), "5 positions of 2 with a kernel of 2, want 6");
}

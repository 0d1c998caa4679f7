//! Functions of one number: roundings, roots, exponentials, logarithms, trigonometry; a few of two.

use super::number::{Number, Real};
use super::operators;

operators! {
    number1 Number::abs => aclnnAbs aclnnForeachAbs;
    number1 negative => aclnnNeg aclnnForeachNeg;
    number1 Number::sign => aclnnSign aclnnForeachSign;
    number1 Number::ceil => aclnnCeil aclnnInplaceCeil;
    number1 Number::floor => aclnnFloor aclnnInplaceFloor;
    number1 Number::round => aclnnRound aclnnInplaceRound;
    number1 Number::trunc => aclnnTrunc aclnnInplaceTrunc;
    number1 fraction => aclnnFrac aclnnInplaceFrac;
    real round_decimals => aclnnRoundDecimals aclnnInplaceRoundDecimals;
    real1 reciprocal => aclnnReciprocal aclnnInplaceReciprocal aclnnForeachReciprocal;
    real1 Real::sqrt => aclnnSqrt aclnnInplaceSqrt aclnnForeachSqrt;
    real1 rsqrt => aclnnRsqrt aclnnInplaceRsqrt;
    real1 Real::exp => aclnnExp aclnnInplaceExp aclnnForeachExp;
    real1 exp2 => aclnnExp2 aclnnInplaceExp2;
    real1 expm1 => aclnnExpm1 aclnnInplaceExpm1 aclnnForeachExpm1;
    real1 log => aclnnLog aclnnInplaceLog aclnnForeachLog;
    real1 log10 => aclnnLog10 aclnnInplaceLog10 aclnnForeachLog10;
    real1 log1p => aclnnLog1p aclnnInplaceLog1p aclnnForeachLog1p;
    real1 log2 => aclnnLog2 aclnnInplaceLog2 aclnnForeachLog2;
    real1 cos => aclnnCos aclnnInplaceCos aclnnForeachCos;
    real1 sin => aclnnSin aclnnInplaceSin aclnnForeachSin;
    real1 tan => aclnnTan aclnnInplaceTan aclnnForeachTan;
    real1 acos => aclnnAcos aclnnInplaceAcos aclnnForeachAcos;
    real1 asin => aclnnAsin aclnnInplaceAsin aclnnForeachAsin;
    real1 atan => aclnnAtan aclnnInplaceAtan aclnnForeachAtan;
    real1 cosh => aclnnCosh aclnnInplaceCosh aclnnForeachCosh;
    real1 sinh => aclnnSinh aclnnInplaceSinh aclnnForeachSinh;
    real1 Real::tanh => aclnnTanh aclnnInplaceTanh aclnnForeachTanh;
    real1 acosh => aclnnAcosh aclnnInplaceAcosh;
    real1 asinh => aclnnAsinh aclnnInplaceAsinh;
    real1 atanh => aclnnAtanh aclnnInplaceAtanh;
    real1 Real::erf => aclnnErf aclnnInplaceErf aclnnForeachErf;
    real1 erfc => aclnnErfc aclnnInplaceErfc aclnnForeachErfc;
    real1 erf_inverse => aclnnErfinv aclnnInplaceErfinv;
    real1 sinc => aclnnSinc aclnnInplaceSinc;
    number nan_to_num => aclnnNanToNum aclnnInplaceNanToNum;
    real logit => aclnnLogit;
    real1 angle => aclnnAngleV2;
    real atan2 => aclnnAtan2 aclnnInplaceAtan2;
    real log_add_exp => aclnnLogAddExp;
    real log_add_exp2 => aclnnLogAddExp2;
    real x_log_y => aclnnXLogYTensor aclnnXLogYScalarOther aclnnXLogYScalarSelf aclnnInplaceXLogYScalarOther;
}

fn negative<T: Number>(x: T) -> T {
    // Not 0 − x, which gives +0 of +0.
    x.times(T::lit(-1))
}

fn fraction<T: Number>(x: T) -> T {
    x.minus(x.trunc())
}

/// To `decimals` digits after the point, before it if negative; ties to even.
fn round_decimals<T: Real>([x, decimals]: [T; 2]) -> T {
    let scale = T::real(10.0).pow(Number::abs(decimals));
    if decimals < T::default() { (x / scale).round() * scale } else { (x * scale).round() / scale }
}

fn reciprocal<T: Real>(x: T) -> T {
    T::real(1.0) / x
}
macro_rules! elementary {
    ($($name:ident = $single:path, $double:path;)+) => {$(
        fn $name<T: Real>(x: T) -> T {
            x.by_either($single, $double)
        }
    )+};
}
elementary! {
    exp2 = libm::exp2f, libm::exp2;
    expm1 = libm::expm1f, libm::expm1;
    log = libm::logf, libm::log;
    log10 = libm::log10f, libm::log10;
    log1p = libm::log1pf, libm::log1p;
    log2 = libm::log2f, libm::log2;
    cos = libm::cosf, libm::cos;
    sin = libm::sinf, libm::sin;
    tan = libm::tanf, libm::tan;
    acos = libm::acosf, libm::acos;
    asin = libm::asinf, libm::asin;
    atan = libm::atanf, libm::atan;
    cosh = libm::coshf, libm::cosh;
    sinh = libm::sinhf, libm::sinh;
    acosh = libm::acoshf, libm::acosh;
    asinh = libm::asinhf, libm::asinh;
    atanh = libm::atanhf, libm::atanh;
    erfc = libm::erfcf, libm::erfc;
}

fn erf_inverse<T: Real>(x: T) -> T {
    x.by(inverse_of_erf)
}

fn sinc<T: Real>(x: T) -> T {
    x.by(sin_over_x)
}

fn rsqrt<T: Real>(x: T) -> T {
    T::real(1.0) / x.sqrt()
}

/// `sin πx / πx`, 1 at 0.
fn sin_over_x(x: f64) -> f64 {
    let angle = std::f64::consts::PI * x;
    if angle == 0.0 { 1.0 } else { libm::sin(angle) / angle }
}

/// The `x` with `erf x = y`: a rough start by Winitzki's formula, then Newton's method in the third order, where
/// `f/f' = (erf x − y)·√π/2·eˣ²`.
fn inverse_of_erf(y: f64) -> f64 {
    if y.is_nan() || y.abs() >= 1.0 {
        return if y.abs() == 1.0 { y * f64::INFINITY } else { f64::NAN };
    }
    const A: f64 = 0.147;
    let log = libm::log1p(-y * y);
    let half = 2.0 / (std::f64::consts::PI * A) + log / 2.0;
    let mut x = ((half * half - log / A).sqrt() - half).max(0.0).sqrt().copysign(y);
    for _ in 0..3 {
        // Near ±1 the complement keeps the digits that the difference loses.
        let error = if x.abs() < 1.0 { libm::erf(x) - y } else { (1.0 - y.abs() - libm::erfc(x.abs())) * y.signum() };
        let step = error * libm::exp(x * x) / std::f64::consts::FRAC_2_SQRT_PI;
        x -= step / (1.0 + x * step);
    }
    x
}

/// `ln(x / (1 − x))`, with `x` moved to `eps..1 − eps` where `eps` is not negative: up first, and what was moved stays, which
/// matters where `eps` exceeds a half.
fn logit<T: Real>([x, eps]: [T; 2]) -> T {
    let low = if eps < T::default() { x } else { eps };
    let high = if eps < T::default() { x } else { T::real(1.0) - eps };
    let x = if x < low {
        low
    } else if x > high {
        high
    } else {
        x
    };
    log(x / (T::real(1.0) - x))
}

/// `x`, or what stands for NaN and the infinities.
fn nan_to_num<T: Number>([x, nan, positive, negative]: [T; 4]) -> T {
    if x.is_nan() {
        nan
    } else if x.is_finite() {
        x
    } else if x > T::default() {
        positive
    } else {
        negative
    }
}

/// Angle of a real number in the complex plane: 0 or π.
fn angle<T: Real>(x: T) -> T {
    if x.is_nan() {
        x
    } else if x < T::default() {
        T::real(std::f64::consts::PI)
    } else {
        T::default()
    }
}

fn atan2<T: Real>([y, x]: [T; 2]) -> T {
    y.by2(x, libm::atan2)
}

/// `ln(eᵃ + eᵇ)`.
fn log_add_exp<T: Real>([a, b]: [T; 2]) -> T {
    a.by2(b, |a, b| log_sum(a, b, libm::exp, libm::log1p))
}

/// `log₂(2ᵃ + 2ᵇ)`.
fn log_add_exp2<T: Real>([a, b]: [T; 2]) -> T {
    a.by2(b, |a, b| log_sum(a, b, libm::exp2, |x| libm::log1p(x) * std::f64::consts::LOG2_E))
}

fn log_sum(a: f64, b: f64, exp: impl Fn(f64) -> f64, log1p: impl Fn(f64) -> f64) -> f64 {
    // Two equal infinities have no difference.
    if a == b && a.is_infinite() { a } else { a.larger(b) + log1p(exp(-(a - b).abs())) }
}

/// `x · ln y`, 0 where `x` is 0 and `y` a number.
fn x_log_y<T: Real>([x, y]: [T; 2]) -> T {
    if y.is_nan() {
        y
    } else if x == T::default() {
        x
    } else {
        x * log(y)
    }
}

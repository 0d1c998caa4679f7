"""Operators against CPU torch: dtypes × shapes × layouts, broadcasting, in place, `out=`, type promotion.

The tables name the operators; the inputs come from a generator with a fixed seed per case, which the failure prints. A case that
CPU torch refuses is left out. Everything here must compute: a refusal of the device is a failure.
"""

import itertools
import os
import zlib

# With the queue on, an error appears at a later call; here each case must tell by itself.
os.environ["TASK_QUEUE_ENABLE"] = "0"

import support
import torch
import torch.nn.functional as F

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
FLOATS = (F32, F16, BF16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
NUMBERS = FLOATS + INTEGERS
ALL = NUMBERS + (torch.bool,)
BITS = INTEGERS + (torch.bool,)

SHAPES = [(), (1,), (7,), (0,), (4, 6), (3, 0), (2, 3, 5), (65, 33), (2, 1, 3, 4)]
# Pairs that broadcast.
PAIRS = [((), ()), ((5,), ()), ((3, 1), (1, 4)), ((2, 3, 4), (4,)), ((2, 3, 4), (3, 1)), ((0, 3), (1, 3)), ((64, 33), (64, 33))]


def contiguous(x):
    return x


def transposed(x):
    return x.transpose(-1, -2) if x.dim() > 1 else x


def sliced(x):
    return x[..., ::2] if x.dim() else x


def offset(x):
    return x[1:] if x.dim() and x.shape[0] > 1 else x


def expanded(x):
    return x[..., None].expand(*x.shape, 3)


def flipped_out(x):
    return x.unfold(0, 2, 1) if x.dim() and x.shape[0] > 2 else x


LAYOUTS = [contiguous, transposed, sliced, offset, expanded, flipped_out]


def values(shape, dtype, g, low=-3.0, high=3.0):
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=g).bool()
    if dtype.is_floating_point:
        return (torch.rand(shape, generator=g) * (high - low) + low).to(dtype)
    lowest = max(int(low * 3), 0 if dtype == torch.uint8 else -100)
    return torch.randint(lowest, max(int(high * 3), lowest + 1) + 1, shape, generator=g).to(dtype)


class Case:
    """Counts the cases of one operator and names the one that fails."""

    def __init__(self, name):
        self.name, self.count, self.left_out = name, 0, 0

    def seed(self, *key):
        return zlib.crc32(repr((self.name, *key)).encode())

    def check(self, key, function, *tensors, factor=4.0):
        """`function` on CPU tensors and on their device copies, which keep the layout, gives the same."""
        try:
            want = function(*[t.clone() if t.is_contiguous() else relaid(t) for t in tensors])
        except Exception:
            self.left_out += 1
            return
        try:
            got = function(*[relaid(t, "npu") for t in tensors])
            torch.npu.synchronize()
        except Exception as error:
            raise AssertionError(f"{self.name} {key}: the device refuses: {support.failure(error)}") from None
        for g, w in zip(flat(got), flat(want), strict=True):
            support.close(g, w, f"{self.name} {key}", factor)
        self.count += 1

    def inputs(self, dtypes, shapes, layouts, low=-3.0, high=3.0):
        """One tensor for each type, shape and layout, with what names it."""
        for dtype, shape, layout in itertools.product(dtypes, shapes, layouts):
            key = (str(dtype)[6:], shape, layout.__name__)
            yield key, layout(values(shape, dtype, support.seeded(self.seed(*key)), low, high))

    def note(self):
        assert self.count, "no case ran"
        return f"{self.count} cases"


def relaid(t, device="cpu"):
    """A copy of `t` on `device` with the same strides, offset and hidden elements."""
    base = torch.empty(0, dtype=t.dtype).set_(t.untyped_storage()).clone().to(device)
    return base.as_strided(t.shape, t.stride(), t.storage_offset())


def flat(result):
    return [x for r in result for x in flat(r)] if isinstance(result, (tuple, list)) else [result]


# name → function, dtypes, range of floating inputs
UNARY = {
    "abs": (torch.abs, NUMBERS, (-3, 3)),
    "neg": (torch.neg, NUMBERS, (-3, 3)),
    "exp": (torch.exp, FLOATS, (-3, 3)),
    "exp2": (torch.exp2, FLOATS, (-3, 3)),
    "expm1": (torch.expm1, FLOATS, (-3, 3)),
    "log": (torch.log, FLOATS, (0.1, 9)),
    "log2": (torch.log2, FLOATS, (0.1, 9)),
    "log10": (torch.log10, FLOATS, (0.1, 9)),
    "log1p": (torch.log1p, FLOATS, (-0.5, 9)),
    "sqrt": (torch.sqrt, FLOATS, (0, 9)),
    "rsqrt": (torch.rsqrt, FLOATS, (0.1, 9)),
    "reciprocal": (torch.reciprocal, FLOATS, (0.2, 5)),
    "sin": (torch.sin, FLOATS, (-6, 6)),
    "cos": (torch.cos, FLOATS, (-6, 6)),
    "tan": (torch.tan, FLOATS, (-1.2, 1.2)),
    "tanh": (torch.tanh, FLOATS, (-3, 3)),
    "asin": (torch.asin, FLOATS, (-0.9, 0.9)),
    "acos": (torch.acos, FLOATS, (-0.9, 0.9)),
    "atan": (torch.atan, FLOATS, (-3, 3)),
    "sinh": (torch.sinh, FLOATS, (-2, 2)),
    "cosh": (torch.cosh, FLOATS, (-2, 2)),
    "erf": (torch.erf, FLOATS, (-2, 2)),
    "sigmoid": (torch.sigmoid, FLOATS, (-6, 6)),
    "ceil": (torch.ceil, FLOATS, (-3, 3)),
    "floor": (torch.floor, FLOATS, (-3, 3)),
    "round": (torch.round, FLOATS, (-3, 3)),
    "trunc": (torch.trunc, FLOATS, (-3, 3)),
    "sign": (torch.sign, NUMBERS, (-3, 3)),
    "square": (torch.square, FLOATS, (-3, 3)),
    "isfinite": (torch.isfinite, FLOATS, (-3, 3)),
    "isnan": (torch.isnan, FLOATS, (-3, 3)),
    "isinf": (torch.isinf, FLOATS, (-3, 3)),
    "logical_not": (torch.logical_not, ALL, (-1, 1)),
    "bitwise_not": (torch.bitwise_not, BITS, (-3, 3)),
    "relu": (torch.relu, FLOATS, (-3, 3)),
    "silu": (F.silu, FLOATS, (-6, 6)),
    "softplus": (F.softplus, FLOATS, (-6, 6)),
    "leaky_relu": (F.leaky_relu, FLOATS, (-3, 3)),
    "elu": (F.elu, FLOATS, (-3, 3)),
    "hardtanh": (F.hardtanh, FLOATS, (-3, 3)),
    "clamp": (lambda x: torch.clamp(x, -1, 2), NUMBERS, (-3, 3)),
    "clamp_min": (lambda x: torch.clamp_min(x, 1), NUMBERS, (-3, 3)),
    "pow_2": (lambda x: torch.pow(x, 2), NUMBERS, (-3, 3)),
    "pow_scalar_base": (lambda x: torch.pow(2.0, x), FLOATS, (-3, 3)),
    "add_scalar": (lambda x: x + 3, NUMBERS, (-3, 3)),
    "add_alpha": (lambda x: torch.add(x, 2, alpha=3), NUMBERS, (-3, 3)),
    "sub_scalar": (lambda x: x - 3, NUMBERS, (-3, 3)),
    "rsub": (lambda x: 3 - x, NUMBERS, (-3, 3)),
    "mul_scalar": (lambda x: x * 3, NUMBERS, (-3, 3)),
    "mul_float": (lambda x: x * 0.5, NUMBERS, (-3, 3)),
    "div_scalar": (lambda x: x / 4, NUMBERS, (-3, 3)),
    "eq_scalar": (lambda x: x == 1, ALL, (-3, 3)),
    "ne_scalar": (lambda x: x != 1, ALL, (-3, 3)),
    "lt_scalar": (lambda x: x < 1, ALL, (-3, 3)),
    "le_scalar": (lambda x: x <= 1, ALL, (-3, 3)),
    "gt_scalar": (lambda x: x > 1, ALL, (-3, 3)),
    "ge_scalar": (lambda x: x >= 1, ALL, (-3, 3)),
    "clone": (torch.clone, ALL, (-3, 3)),
    "contiguous": (lambda x: x.contiguous(), ALL, (-3, 3)),
    "zeros_like": (torch.zeros_like, ALL, (-3, 3)),
    "ones_like": (torch.ones_like, ALL, (-3, 3)),
    "full_like": (lambda x: torch.full_like(x, 1), ALL, (-3, 3)),
    "nan_to_num": (torch.nan_to_num, FLOATS, (-3, 3)),
}

BINARY = {
    "add": (torch.add, ALL, (-3, 3)),
    "sub": (torch.sub, NUMBERS, (-3, 3)),
    "mul": (torch.mul, ALL, (-3, 3)),
    "div": (torch.div, FLOATS, (0.5, 3)),
    "floor_divide": (torch.floor_divide, (F32,), (0.5, 3)),
    "pow": (torch.pow, FLOATS, (0.2, 3)),
    "maximum": (torch.maximum, NUMBERS, (-3, 3)),
    "minimum": (torch.minimum, NUMBERS, (-3, 3)),
    "eq": (torch.eq, ALL, (-3, 3)),
    "ne": (torch.ne, ALL, (-3, 3)),
    "lt": (torch.lt, ALL, (-3, 3)),
    "le": (torch.le, ALL, (-3, 3)),
    "gt": (torch.gt, ALL, (-3, 3)),
    "ge": (torch.ge, ALL, (-3, 3)),
    "logical_and": (torch.logical_and, ALL, (-1, 1)),
    "logical_or": (torch.logical_or, ALL, (-1, 1)),
    "logical_xor": (torch.logical_xor, ALL, (-1, 1)),
    "bitwise_and": (torch.bitwise_and, BITS, (-3, 3)),
    "bitwise_or": (torch.bitwise_or, BITS, (-3, 3)),
    "bitwise_xor": (torch.bitwise_xor, BITS, (-3, 3)),
    "atan2": (torch.atan2, FLOATS, (0.5, 3)),
    "where": (lambda a, b: torch.where(a > 0, a, b), NUMBERS, (-3, 3)),
}

# name → function of a tensor and one of its dimensions, dtypes
REDUCTIONS = {
    "sum": (lambda x, d: x.sum(d), ALL),
    "sum_keepdim": (lambda x, d: x.sum(d, keepdim=True), FLOATS),
    "sum_dtype": (lambda x, d: x.sum(d, dtype=F32), NUMBERS),
    "mean": (lambda x, d: x.mean(d), FLOATS),
    "amax": (lambda x, d: x.amax(d), NUMBERS),
    "amin": (lambda x, d: x.amin(d), NUMBERS),
    "max": (lambda x, d: x.max(d).values, NUMBERS),
    "min": (lambda x, d: x.min(d).values, NUMBERS),
    "argmax": (lambda x, d: x.argmax(d), (F32, torch.int64, torch.int32)),
    "argmin": (lambda x, d: x.argmin(d), (F32, torch.int64, torch.int32)),
    "all": (lambda x, d: x.all(d), (torch.bool, F32, torch.int64)),
    "any": (lambda x, d: x.any(d), (torch.bool, F32, torch.int64)),
    "prod": (lambda x, d: x.prod(d), (F32, torch.int64)),
    "cumsum": (lambda x, d: x.cumsum(d), (F32, F16, torch.int64, torch.int32)),
    "var": (lambda x, d: x.var(d), FLOATS),
    "std": (lambda x, d: x.std(d), FLOATS),
    "norm": (lambda x, d: x.norm(dim=d), FLOATS),
    "logsumexp": (lambda x, d: x.logsumexp(d), FLOATS),
    "softmax": (lambda x, d: x.softmax(d), FLOATS),
    "log_softmax": (lambda x, d: x.log_softmax(d), FLOATS),
    "sort": (lambda x, d: x.sort(dim=d, stable=True), (F32, torch.int64)),
    "flip": (lambda x, d: x.flip(d), NUMBERS),
    "roll": (lambda x, d: x.roll(2, d), (F32, torch.int64)),
    "cat": (lambda x, d: torch.cat([x, x * 2, x], d), ALL),
    "stack": (lambda x, d: torch.stack([x, x], d), ALL),
    "index_select": (lambda x, d: x.index_select(d, torch.tensor([0, 2, 0, 1], device=x.device)), ALL),
    "gather": (lambda x, d: x.gather(d, (x.argsort(dim=d, stable=True) % x.shape[d])), (F32,)),
    "narrow": (lambda x, d: x.narrow(d, 1, 2).clone(), ALL),
    "repeat_interleave": (lambda x, d: x.repeat_interleave(2, d), (F32, torch.int64)),
}

WHOLE = {
    "sum_all": (lambda x: x.sum(), ALL),
    "mean_all": (lambda x: x.mean(), FLOATS),
    "max_all": (lambda x: x.max(), NUMBERS),
    "min_all": (lambda x: x.min(), NUMBERS),
    "all_all": (lambda x: x.all(), (torch.bool,)),
    "any_all": (lambda x: x.any(), (torch.bool,)),
    "nonzero": (torch.nonzero, (F32, torch.int64, torch.bool)),
    "masked_select": (lambda x: x.masked_select(x > 0), (F32, torch.int64)),
    "masked_fill": (lambda x: x.masked_fill(x > 0, -1), (F32, F16, BF16, torch.int64)),
    "unique": (lambda x: x.flatten().unique(), (torch.int64, torch.int32)),
    "triu": (lambda x: torch.triu(x, 1), NUMBERS),
    "tril": (lambda x: torch.tril(x, -1), NUMBERS),
    "repeat": (lambda x: x.repeat(2, *([1] * x.dim())), ALL),
    "permute": (lambda x: x.permute(*reversed(range(x.dim()))).contiguous(), ALL),
    "pad": (lambda x: F.pad(x, (1, 2), value=3), (F32, F16, BF16)),
    "index_mask": (lambda x: x[x > 0], (F32, torch.int64)),
    "index_put": (lambda x: x.flatten().index_put((torch.tensor([0, 1], device=x.device),), x.flatten()[:2] * 0 + 5), (F32, torch.int64)),
    "linspace": (lambda x: torch.linspace(0, 1, 7, device=x.device), (F32,)),
    "arange": (lambda x: torch.arange(2, 20, 3, device=x.device), (F32,)),
    "one_hot": (lambda x: F.one_hot(x.abs().flatten() % 5, 5), (torch.int64,)),
}


def unary(name, entry):
    function, dtypes, (low, high) = entry

    def test():
        case = Case(name)
        for key, x in case.inputs(dtypes, SHAPES, LAYOUTS, low, high):
            case.check(key, function, x)
        # out= and in place, where torch has them
        for dtype in dtypes:
            x = values((4, 6), dtype, support.seeded(case.seed("out", str(dtype))), low, high)
            if function in IN_PLACE:
                case.check(("in place", dtype), lambda t: getattr(t, name + "_")(), x)
                case.check(("in place, transposed", dtype), lambda t: getattr(t, name + "_")(), x.t())
                case.check(("out=", dtype), lambda t: function(t, out=torch.empty(t.shape, dtype=t.dtype, device=t.device)), x)
        return case.note()

    return test


# With `out=` and in place; relu has no `out=`.
IN_PLACE = {torch.abs, torch.neg, torch.exp, torch.sqrt, torch.rsqrt, torch.sin, torch.cos, torch.tanh, torch.sigmoid, torch.ceil, torch.floor}


def binary(name, entry):
    function, dtypes, (low, high) = entry

    def test():
        case = Case(name)
        both_ways = [(a, b) for pair in PAIRS for a, b in (pair, pair[::-1])]
        for dtype, (a, b), layout in itertools.product(dtypes, both_ways, (contiguous, transposed, sliced)):
            key = (str(dtype)[6:], a, b, layout.__name__)
            g = support.seeded(case.seed(*key))
            x, y = values(a, dtype, g, low, high), values(b, dtype, g, low, high)
            case.check(key, function, layout(x), layout(y))
        if name in ("add", "sub", "mul", "div", "maximum", "eq", "lt"):
            for a, b in itertools.product(dtypes, dtypes):
                g = support.seeded(case.seed(str(a), str(b)))
                x, y = values((3, 4), a, g, low, high), values((4,), b, g, low, high)
                case.check(("promotion", str(a), str(b)), function, x, y)
                case.check(("promotion with a 0-d tensor", str(a), str(b)), function, x, values((), b, g, low, high))
        if name in ("add", "sub", "mul", "div"):
            for dtype in dtypes:
                g = support.seeded(case.seed("in place", str(dtype)))
                x, y = values((3, 4), dtype, g, low, high), values((4,), dtype, g, low, high)
                case.check(("in place", str(dtype)), lambda s, t: getattr(s, name + "_")(t), x, y)
                case.check(("in place on itself", str(dtype)), lambda s: getattr(s, name + "_")(s), x)
                case.check(("out=", str(dtype)), lambda s, t: function(s, t, out=torch.empty((3, 4), dtype=dtype, device=s.device)), x, y)
                case.check(("out= transposed", str(dtype)), lambda s, t: function(s, t, out=torch.empty((4, 3), dtype=dtype, device=s.device).t()), x, y)
        return case.note()

    return test


def reduction(name, entry):
    function, dtypes = entry

    def test():
        case = Case(name)
        for key, x in case.inputs(dtypes, [(7,), (4, 6), (3, 5, 4), (65, 33), (2, 3, 1, 5)], LAYOUTS):
            for dim in range(-1, len(key[1]) - 1):
                case.check((*key, dim), lambda t: function(t, dim), x, factor=8)
        return case.note()

    return test


def whole(name, entry):
    function, dtypes = entry

    def test():
        case = Case(name)
        for key, x in case.inputs(dtypes, SHAPES, LAYOUTS):
            case.check(key, function, x, factor=8)
        return case.note()

    return test


def matrices(name, function, *shapes, dtypes=FLOATS):
    def test():
        case = Case(name)
        for dtype in dtypes:
            for number, sizes in enumerate(shapes):
                g = support.seeded(case.seed(str(dtype), number))
                # Small integers: products and sums are exact in float32, so order does not matter; the rounding at the end does.
                xs = [torch.randint(-4, 5, s, generator=g).to(dtype) for s in sizes]
                turned = [x.transpose(-1, -2).contiguous().transpose(-1, -2) if x.dim() > 1 else x for x in xs]
                wide = [torch.stack([x, x * 0 + 9], -1)[..., 0] for x in xs]
                for layout, inputs in (("contiguous", xs), ("transposed", turned), ("sliced", wide)):
                    case.check((str(dtype)[6:], sizes, layout), function, *inputs)
        return case.note()

    return test


MATRICES = {
    "matmul": matrices("matmul", torch.matmul, [(3, 4), (4, 5)], [(65, 130), (130, 33)], [(4,), (4,)], [(4,), (4, 5)], [(3, 4), (4,)], [(2, 3, 4), (4, 5)], [(2, 3, 4), (2, 4, 5)], [(2, 1, 3, 4), (5, 4, 3)], [(0, 4), (4, 5)], [(3, 0), (0, 5)]),
    "mm": matrices("mm", torch.mm, [(3, 4), (4, 5)], [(1, 128), (128, 257)], [(0, 4), (4, 5)], [(3, 0), (0, 5)]),
    "bmm": matrices("bmm", torch.bmm, [(2, 3, 4), (2, 4, 5)], [(1, 33, 65), (1, 65, 17)], [(0, 3, 4), (0, 4, 5)]),
    "addmm": matrices("addmm", torch.addmm, [(5,), (3, 4), (4, 5)], [(3, 5), (3, 4), (4, 5)], [(3, 1), (3, 4), (4, 5)]),
    "addmm_scaled": matrices("addmm_scaled", lambda c, a, b: torch.addmm(c, a, b, beta=2, alpha=3), [(3, 5), (3, 4), (4, 5)]),
    "baddbmm": matrices("baddbmm", torch.baddbmm, [(2, 3, 5), (2, 3, 4), (2, 4, 5)], [(2, 1, 5), (2, 3, 4), (2, 4, 5)]),
    "linear": matrices("linear", F.linear, [(3, 4), (5, 4), (5,)], [(2, 3, 4), (5, 4), (5,)], [(2, 3, 4), (5, 4)]),
    "mv": matrices("mv", torch.mv, [(3, 4), (4,)]),
    "outer": matrices("outer", torch.outer, [(3,), (4,)]),
    "dot": matrices("dot", torch.dot, [(33,), (33,)]),
}


def conversions():
    case = Case("to")
    for b in ALL:
        for key, x in case.inputs(ALL, [(4, 6)], LAYOUTS, 0, 3):
            case.check((*key, str(b)), lambda t: t.to(b), x)
    return case.note()


def special_values():
    """Infinities, NaN, zeros of both signs and denormal numbers go through as on the CPU."""
    case = Case("special values")
    x = torch.tensor([float("inf"), float("-inf"), float("nan"), 0.0, -0.0, 1e-40, 3.4e38, -1.0])
    for dtype in FLOATS:
        t = x.to(dtype)
        for name in ("abs", "neg", "exp", "sqrt", "rsqrt", "sigmoid", "tanh", "relu", "floor", "sign", "isfinite", "isnan", "silu"):
            case.check((name, str(dtype)), UNARY[name][0], t)
        for name in ("add", "mul", "div", "maximum", "minimum", "eq", "lt", "ne", "pow"):
            case.check((name, str(dtype)), BINARY[name][0], t[:, None], t[None, :])
        for name in ("sum", "amax", "argmax", "softmax"):
            case.check((name, str(dtype)), lambda v: REDUCTIONS[name][0](v, -1), t[[0, 3, 7]])
    return case.note()


TABLE = {
    **{name: unary(name, entry) for name, entry in UNARY.items()},
    **{name: binary(name, entry) for name, entry in BINARY.items()},
    **{name: reduction(name, entry) for name, entry in REDUCTIONS.items()},
    **{name: whole(name, entry) for name, entry in WHOLE.items()},
    **MATRICES,
    "to": conversions,
    "special_values": special_values,
}

if __name__ == "__main__":
    support.main(TABLE)

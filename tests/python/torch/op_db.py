"""Every operator of PyTorch's own test data (`op_db`), on the device and on the CPU. Of each sample one of these must be true:

- *equal*: the device computes what the CPU computes;
- *random*: the CPU computes something else each time; the device's result has the same shapes and dtypes;
- *refused*: the device says that it does not compute this, and which operator;
- *different*, for a reason that is in the table below.

Anything else fails. `op_db_refused.txt` lists the operators of which samples are refused, with the version of PyTorch where that is
not all versions; a refusal of any other operator fails, and so does a line there of an operator that refuses nothing any more.

Samples are the same on every run; `python op_db.py NAME` replays one operator.
"""

import collections
import itertools
import os
import pathlib
import re
import sys

# With the queue on, an error appears at a later call; here each sample must tell by itself.
os.environ["TASK_QUEUE_ENABLE"] = "0"

import support
import torch
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils._pytree import tree_leaves, tree_map

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool)
HALVES = (torch.float16, torch.bfloat16)
SAMPLES_MAX = int(os.environ.get("OP_DB_SAMPLES_MAX", "10"))

# An error that comes from the device, or from not finding its function, must name an operator; torch's and torch_npu's own checks,
# made before, speak for themselves.
FROM_DEVICE = re.compile(r"error code|[Ss]ynchronize failed|Failed to find function")
NAMED = re.compile(r"aclnn[A-Z]\w+: \w+|acl\w+ or acl\w+ not in|OPS function error: \w+")

# Samples whose CPU result is no model: what torch_npu decides on the host, before any call into the device, or what the CPU leaves
# open or computes otherwise. Each with the condition on the sample.
def arguments(sample):
    return [*sample.args, *sample.kwargs.values()]


def fractional(sample):
    return any(isinstance(v, float) and v != int(v) for v in arguments(sample))


def by_a_tiny_number(sample):
    return any(isinstance(v, torch.Tensor) and bool((v.abs() < 1e-37).any()) for v in arguments(sample))


def unscaled(sample):
    return sample.args[1] in (0.0, 1.0)


DIFFERENT = {
    "native_dropout_backward": (unscaled, "torch_npu does not look at the mask where the scale is 1 or 0: nothing, or all, was dropped"),
    "nn.functional.gelu": (lambda s: "tanh" in arguments(s), "torch_npu calls one operator for both values of `approximate`"),
    "var": (fractional, "torch_npu cuts a fractional correction to a whole number"),
    "std": (fractional, "as var"),
    "var_mean": (fractional, "as var"),
    "std_mean": (fractional, "as var"),
    "fmod": (by_a_tiny_number, "the CPU's vector code takes the smallest normal number for zero"),
    "remainder": (by_a_tiny_number, "as fmod"),
}

# Results that are random, where op_db sets the seed itself, so that the CPU repeats its own; or uninitialised.
RANDOM = {
    "bernoulli", "cauchy", "empty", "empty_like", "empty_permuted", "empty_strided", "exponential", "geometric", "log_normal",
    "multinomial", "new_empty", "new_empty_strided", "nn.functional.alpha_dropout", "nn.functional.dropout",
    "nn.functional.dropout2d", "nn.functional.dropout3d", "nn.functional.feature_alpha_dropout",
    "nn.functional.fractional_max_pool2d", "nn.functional.fractional_max_pool3d", "nn.functional.rrelu", "normal", "rand_like",
    "randint", "randint_like", "randn", "randn_like", "uniform",
}
# The same where a sample's probability of dropping is neither 0 nor 1.
DROPPING = {"nn.functional.scaled_dot_product_attention", "nn.functional.multi_head_attention_forward"}

# What is determined of a result where its order or its signs are free: a function of the result and of the sample.
INVARIANT = {}


def invariant(*names):
    def keep(function):
        INVARIANT.update(dict.fromkeys(names, function))
        return function

    return keep


@invariant("sort", "topk", "kthvalue")
def _chosen(result, sample):
    """Values, and what the indices beside them lead to: which of equal elements that is, is free."""
    values, indices = result
    if sample.kwargs.get("stable"):
        return result
    x = sample.input
    numbers = [v for v in (*sample.args, *sample.kwargs.values()) if isinstance(v, int) and not isinstance(v, bool)]
    for dim in {-1, *numbers}:
        try:
            led = picked(x, indices, dim)
        except (RuntimeError, IndexError):
            continue
        if led.shape == values.shape and torch.equal(torch.nan_to_num(led), torch.nan_to_num(values)):
            return values, led
    return result


def picked(x, indices, dim):
    if x.dim() == 0:
        return x.expand(indices.shape)
    return x.gather(dim, indices) if indices.dim() == x.dim() else x.gather(dim, indices.unsqueeze(dim)).squeeze(dim)


@invariant("argsort")
def _sorted(result, sample):
    dim = sample.kwargs.get("dim", sample.args[0] if sample.args else -1)
    return sample.input.gather(dim, result) if sample.input.dim() else result


@invariant("nn.functional.max_pool1d", "nn.functional.max_pool2d")
def _largest(result, _):
    """What is largest: where it was, torch_npu tells by a mask of the device's own."""
    return result if isinstance(result, torch.Tensor) else result[0]


@invariant("native_batch_norm", "_native_batch_norm_legit")
def _normalised(result, sample):
    """In inference only what is normalised: torch_npu 2.14 hands out statistics where the CPU has none."""
    training = next(v for v in arguments(sample) if isinstance(v, bool))
    return result if training else result[0]


@invariant("svd", "linalg.svd")
def _spectrum(result, _):
    """Singular values: signs of vectors are free."""
    return result[1]


@invariant("linalg.eig", "eig", "linalg.eigh")
def _eigenvalues(result, _):
    values = result[0]
    return torch.view_as_real(values).sort(-2).values if values.is_complex() else values


@invariant("linalg.qr", "qr", "geqrf", "lu", "linalg.lu", "svd_lowrank", "pca_lowrank", "linalg.lu_factor", "linalg.ldl_factor")
def _shapes(result, _):
    """Only shapes and dtypes: factors are not unique."""
    return [torch.zeros_like(t) for t in tree_leaves(result) if isinstance(t, torch.Tensor)]


REFUSED = {}
for line in (pathlib.Path(__file__).parent / "op_db_refused.txt").read_text().splitlines():
    if line and not line.startswith("#"):
        name, *versions = line.split()
        REFUSED[name] = versions


def device(tree):
    return tree_map(lambda t: t.npu() if isinstance(t, torch.Tensor) else t, tree)


def leaves(result):
    return [t.resolve_conj().resolve_neg() if isinstance(t, torch.Tensor) else t for t in tree_leaves(result)]


def same(got, want, name):
    """Equal structure and values. torch_npu decides the dtype of a result on the host; where it has no float64, or keeps statistics
    of half-precision inputs in float32, or indices in 32 bits, the values count."""
    for g, w in zip(leaves(got), leaves(want), strict=True):
        if not isinstance(w, torch.Tensor):
            assert g == w or (g != g and w != w), f"{name}: {g} is not {w}"
            continue
        if g.dtype != w.dtype and g.is_floating_point() and w.is_floating_point():
            coarse = min((g.dtype, w.dtype), key=lambda d: -torch.finfo(d).eps)
            g, w = g.to(coarse), w.to(coarse)
        if {g.dtype, w.dtype} == {torch.int32, torch.int64}:
            g, w = g.long(), w.long()
        support.close(g, w, name, factor=4)


class Operator:
    """One entry of op_db: what its samples came to."""

    def __init__(self, op):
        self.op, self.counts, self.refused, self.wrong = op, collections.Counter(), [], []
        self.name = op.name + ("." + op.variant_test_name if op.variant_test_name else "")

    def run(self):
        for dtype in DTYPES:
            if dtype in self.op.dtypes:
                self.run_dtype(dtype)
        TOTAL.update(self.counts)
        note = ", ".join(f"{count} {verdict}" for verdict, count in self.counts.items()) or "no sample"
        if self.refused:
            note += f": {self.refused[0]}"
        assert not self.wrong, f"{len(self.wrong)} wrong; {note}\n" + "\n".join(self.wrong[:8])
        unnamed = [text for text in self.refused if FROM_DEVICE.search(text) and not NAMED.search(text)]
        assert not unnamed, "no operator is named: " + unnamed[0]
        versions = REFUSED.get(self.name)
        listed = versions is not None and (not versions or torch.__version__.split("+")[0] in versions)
        assert listed or not self.refused, f"refused, and not listed in op_db_refused.txt; {note}"
        assert self.refused or not listed, f"listed in op_db_refused.txt, and refuses nothing; {note}"
        return note

    def run_dtype(self, dtype):
        torch.manual_seed(20)
        try:
            samples = list(itertools.islice(self.op.sample_inputs("cpu", dtype), SAMPLES_MAX))
        except Exception:
            return  # the generator of samples has no such dtype
        for number, sample in enumerate(samples):
            try:
                want = self.on_cpu(sample, 1)
            except Exception:
                continue  # CPU torch refuses it
            self.run_sample(f"{self.name} {str(dtype)[6:]} sample {number}", dtype, sample, want)

    def on_cpu(self, sample, seed):
        torch.manual_seed(seed)
        sample = tree_map(lambda t: t.clone() if isinstance(t, torch.Tensor) else t, (sample.input, sample.args, sample.kwargs))
        value, arguments, named = sample
        return self.op(value, *arguments, **named)

    def run_sample(self, name, dtype, sample, want):
        try:
            value, arguments, named = device((sample.input, sample.args, sample.kwargs))
            got = self.op(value, *arguments, **named)
            torch.npu.synchronize()
            got = tree_map(lambda t: t.detach().cpu() if isinstance(t, torch.Tensor) else t, got)
        except Exception as error:
            self.counts["refused"] += 1
            self.refused.append(f"{name}: {support.failure(error)}")
            return
        verdict, difference = self.verdict(name, dtype, sample, got, want)
        self.counts[verdict] += 1
        if verdict == "wrong":
            self.wrong.append(difference)

    def verdict(self, name, dtype, sample, got, want):
        determined = INVARIANT.get(self.name, INVARIANT.get(self.op.name, lambda result, _: result))
        difference = differs(determined(got, sample), determined(want, sample), name)
        if not difference:
            return "equal", ""
        if dtype in HALVES:
            # The CPU's kernels for 16 bits round in between, some of them; the device does not. What the CPU computes in 32 bits
            # then decides.
            try:
                fine = determined(self.on_cpu(sample.transform(widened), 1), sample)
            except Exception:
                fine = None
            if fine is not None and not differs(determined(got, sample), narrowed(fine, want), name):
                return "equal", ""
        drops = self.op.name in DROPPING and fractional(sample)
        random = drops or self.op.name in RANDOM or self.is_random(sample, want, name)
        if random and not differs(_shapes(got, None), _shapes(want, None), name):
            return "random", ""
        condition, _ = DIFFERENT.get(self.op.name, (None, ""))
        if condition and condition(sample):
            return "different", ""
        return "wrong", difference

    def is_random(self, sample, want, name):
        try:
            return any(differs(self.on_cpu(sample, seed), want, name) for seed in (2, 3))
        except Exception:
            return False


def differs(got, want, name):
    """Why the two are not the same; nothing if they are."""
    try:
        same(got, want, name)
    except Exception as error:
        return support.failure(error)
    return ""


def widened(value):
    if isinstance(value, torch.Tensor) and value.dtype in HALVES:
        return value.float()
    return torch.float32 if isinstance(value, torch.dtype) and value in HALVES else value


def narrowed(fine, want):
    """`fine`, with the dtypes of `want`."""
    return [f.to(w.dtype) if isinstance(w, torch.Tensor) else f for f, w in zip(leaves(fine), leaves(want), strict=True)]


TOTAL = collections.Counter()


def total():
    return ", ".join(f"{count} samples {verdict}" for verdict, count in sorted(TOTAL.items()))


def known(tests):
    unknown = sorted(name for name, versions in REFUSED.items() if name not in tests and not versions)
    assert not unknown, f"not in op_db: {unknown}"


if __name__ == "__main__":
    tests = {entry.name: entry.run for entry in map(Operator, op_db)}
    if len(sys.argv) == 1:
        tests["the_table_of_refusals_names_operators"] = lambda: known(tests)
        tests["total"] = total
    support.main(tests)

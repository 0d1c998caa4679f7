"""Operators on PyTorch's own test data (`op_db`): the device computes what the CPU computes.

The operators of `op_db_computed.txt` must compute every sample of every dtype that CPU torch computes; without an argument these run.
Any other operator runs when it is named: a wrong value is a failure then too, and so is a refusal that names no operator.

Failures carry the sample's number: `python op_db.py NAME` replays one operator; the samples are the same on every run.
"""

import itertools
import os
import pathlib
import sys

# With the queue on, an error appears at a later call; here each sample must tell by itself.
os.environ["TASK_QUEUE_ENABLE"] = "0"

import support
import torch
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils._pytree import tree_leaves, tree_map

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool)
SAMPLES_MAX = 10

# Results that are random, uninitialised, or not determined by the inputs.
UNDETERMINED = {
    "bernoulli", "cauchy", "empty", "empty_like", "empty_permuted", "empty_strided", "exponential", "geometric", "log_normal",
    "multinomial", "native_dropout_backward", "new_empty", "new_empty_strided", "nn.functional.alpha_dropout",
    "nn.functional.dropout", "nn.functional.dropout2d", "nn.functional.dropout3d", "nn.functional.feature_alpha_dropout",
    "nn.functional.fractional_max_pool2d", "nn.functional.fractional_max_pool3d", "nn.functional.rrelu", "normal", "rand_like",
    "randint", "randint_like", "randn", "randn_like", "uniform", "svd_lowrank", "pca_lowrank", "resize_", "resize_as_",
    # signs and order of vectors and factors are free
    "eig", "linalg.eig", "linalg.eigh", "linalg.svd", "linalg.qr", "qr", "svd", "geqrf", "lu", "linalg.lu",
    # order among equal keys is free
    "argsort", "topk",
}

# torch_npu decides these on the host, before any call into the device: the CPU's results are no model for them.
DIFFERENT = {
    "as_strided": "the samples read storage beyond the tensor, which a copy to the device does not bring along",
    "as_strided_copy": "as as_strided",
    "as_strided_scatter": "as as_strided",
    "native_layer_norm": "the statistics of an empty input have another shape",
    "nn.functional.gelu": "torch_npu calls one operator for both values of `approximate`",
    "_upsample_bilinear2d_aa": "bytes are rounded by a float32 kernel",
}

COMPUTED = set((pathlib.Path(__file__).parent / "op_db_computed.txt").read_text().split())


def device(tree):
    return tree_map(lambda t: t.npu() if isinstance(t, torch.Tensor) else t, tree)


def same(got, want, name):
    """Equal structure and values. torch_npu decides the dtype of a result on the host; where it has no float64, or keeps statistics
    of half-precision inputs in float32, the values count."""
    for g, w in zip(tree_leaves(got), tree_leaves(want), strict=True):
        if not isinstance(w, torch.Tensor):
            assert g == w or (g != g and w != w), f"{name}: {g} is not {w}"
            continue
        w = w.resolve_conj().resolve_neg()
        if g.dtype != w.dtype and g.is_floating_point() and w.is_floating_point():
            coarse = min((g.dtype, w.dtype), key=lambda d: -torch.finfo(d).eps)
            g, w = g.to(coarse), w.to(coarse)
        support.close(g, w, name, factor=4)


class Operator:
    """One entry of op_db: what its samples came to."""

    def __init__(self, op):
        self.op, self.equal, self.refused, self.wrong = op, 0, [], []
        self.name = op.name + ("." + op.variant_test_name if op.variant_test_name else "")

    def run(self):
        for dtype in DTYPES:
            if dtype in self.op.dtypes:
                self.run_dtype(dtype)
        note = f"{self.equal} samples equal" + (f", {len(self.refused)} refused: {self.refused[0]}" if self.refused else "")
        unclear = [text for text in self.refused if "Failed to find function" in text]
        assert not self.wrong, f"{len(self.wrong)} wrong of {self.equal + len(self.wrong)}\n" + "\n".join(self.wrong[:8])
        assert not unclear, "no operator is named: " + unclear[0]
        if self.name in COMPUTED:
            assert not self.refused, note
            assert self.equal, "no sample ran"
        return note

    def run_dtype(self, dtype):
        torch.manual_seed(20)
        try:
            samples = list(itertools.islice(self.op.sample_inputs("cpu", dtype), SAMPLES_MAX))
        except Exception:
            return  # the generator of samples has no such dtype
        for number, sample in enumerate(samples):
            try:
                want = self.op(sample.input, *sample.args, **sample.kwargs)
            except Exception:
                continue  # CPU torch refuses it
            self.run_sample(f"{self.name} {str(dtype)[6:]} sample {number}", sample, want)

    def run_sample(self, name, sample, want):
        try:
            value, arguments, named = device((sample.input, sample.args, sample.kwargs))
            got = self.op(value, *arguments, **named)
            got = tree_map(lambda t: t.detach().cpu() if isinstance(t, torch.Tensor) else t, got)
            torch.npu.synchronize()
        except Exception as error:
            self.refused.append(f"{name}: {support.failure(error)}")
            return
        try:
            same(got, want, name)
            self.equal += 1
        except Exception as error:
            self.wrong.append(support.failure(error))


if __name__ == "__main__":
    entries = [Operator(op) for op in op_db if op.name not in UNDETERMINED and op.name not in DIFFERENT]
    if len(sys.argv) == 1:
        entries = [entry for entry in entries if entry.name in COMPUTED]
    support.main({entry.name: entry.run for entry in entries})

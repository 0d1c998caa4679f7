"""What the suites share: a runner with one line a test and a summary, tolerances, and seeds.

A suite is an ordinary program that uses torch, torch_npu and nothing of this project. `python SUITE.py` runs all of it,
`python SUITE.py NAME...` the tests whose name contains one of the names.
"""

import os
import sys
import warnings

warnings.filterwarnings("ignore")

import torch
import torch_npu  # noqa: F401  (registers the device)

sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from runner import Runner, main  # noqa: E402,F401  (the suites take it from here)

# Relative and absolute tolerance against CPU torch, whose own sums are blocked and vectorised in another order. Element-wise
# results differ by an ulp or two (functions such as exp and tanh); sums of some hundred terms by a few more. An ulp is 1.2e-7 of
# the value in float32, 9.8e-4 in float16, 7.8e-3 in bfloat16; both sides round once from at least float32. Integers and
# booleans are exact.
TOLERANCE = {
    torch.float64: (1e-7, 1e-7),
    torch.float32: (2e-5, 2e-5),
    torch.float16: (4e-3, 2e-3),
    torch.bfloat16: (2e-2, 1.6e-2),
    torch.complex64: (2e-5, 2e-5),
    torch.complex128: (1e-7, 1e-7),
}

# Longest that another process may take: on a loaded machine importing torch alone takes a minute.
PATIENCE_S = 300


def close(got, want, what="", factor=1.0):
    """Fails unless `got`, a device tensor, has the shape, dtype and values of `want`, a CPU tensor."""
    rtol, atol = TOLERANCE.get(want.dtype, (0.0, 0.0))
    torch.testing.assert_close(
        got.detach().cpu(),
        want.detach(),
        rtol=rtol * factor,
        atol=atol * factor,
        equal_nan=True,
        check_stride=False,
        msg=lambda m: f"{what}: {m}",
    )


def qwen2(attention="sdpa", **changes):
    """A tiny Qwen2 with weights from PyTorch's generator as it stands, on the CPU; `changes` are values of its configuration."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import transformers

    sizes = {
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    config = transformers.Qwen2Config(**sizes | changes)
    config._attn_implementation = attention
    return transformers.Qwen2ForCausalLM(config)


def seeded(seed):
    """A CPU generator with this seed."""
    return torch.Generator("cpu").manual_seed(seed)


def failure(error):
    """An error in one line."""
    return " ".join(str(error).split())[:600]


def child(source, *arguments, seconds=PATIENCE_S, **variables):
    """Starts `source` as a Python program of its own, on the same devices; `seconds` bounds it. Ends with (status, output)."""
    import subprocess

    done = subprocess.run(
        [sys.executable, "-B", "-c", source, *map(str, arguments)],
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
    )
    return done.returncode, done.stdout

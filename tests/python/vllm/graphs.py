"""ACL graphs, which vLLM uses unless it is told not to: captured once for each size of a batch, replayed with the attention's
arguments put in behind the launch. Tokens against transformers on the CPU.
"""

import tempfile

from drive import generate, near_in_half_precision, right, run, same_tokens
from models import checkpoint, prompt

import runner
import torch

# Sizes of batches that are captured; other batches are padded to the next one.
SIZES = {"cudagraph_capture_sizes": [1, 2, 4, 8]}


def tokens(family, want, processes=1, mode=None):
    settings = SIZES if mode is None else SIZES | {"cudagraph_mode": mode}
    facts = same_tokens(family, processes, compilation_config=settings)
    assert facts["mode"] == want, facts
    if processes == 1:
        assert facts["graphs"] >= len(SIZES["cudagraph_capture_sizes"]), facts
    return f"{facts['mode']}, {facts['graphs']} graphs"


def padded_batches():
    """Batches of three and five sequences, between the captured sizes; then the same again, alone and together."""
    given = [prompt(length, length) for length in (9, 140, 33, 2, 64)]
    with tempfile.TemporaryDirectory() as path:
        model = checkpoint("qwen2", torch.float32, path)
        steps = [generate(given[:3]), generate(given), generate(given[3:4])]
        answers, _ = run(path, steps, dtype="float32", compilation_config=SIZES, enable_prefix_caching=False)
        for step, answer in zip(steps, answers, strict=True):
            right(model, step["generate"], answer)


def sequences_that_come_and_go():
    """More than the engine has places, of different lengths: batches of every size, prompts in pieces beside them."""
    given = [prompt(3 + 29 * i, 60 + i) for i in range(14)]
    with tempfile.TemporaryDirectory() as path:
        model = checkpoint("qwen2", torch.float32, path)
        step = generate(given)
        [answers], _ = run(path, [step], dtype="float32", compilation_config=SIZES, max_num_batched_tokens=128)
        right(model, given, answers)


def prefix_cache():
    first = prompt(300, 7)
    second = first[:270] + prompt(31, 8)
    with tempfile.TemporaryDirectory() as path:
        model = checkpoint("qwen2", torch.float32, path)
        steps = [generate([first]), generate([second, first])]
        answers, _ = run(path, steps, dtype="float32", compilation_config=SIZES)
        assert [answer["cached"] for answer in answers[1]] == [256, 256], answers[1]
        right(model, [second, first], answers[1])


TESTS = {
    "qwen2_tokens": lambda: tokens("qwen2", "FULL_AND_PIECEWISE"),
    "qwen2_tokens_engine_in_its_own_process": lambda: tokens("qwen2", "FULL_AND_PIECEWISE", 2),
    "qwen2_tokens_full_decode_only": lambda: tokens("qwen2", "FULL_DECODE_ONLY", mode="FULL_DECODE_ONLY"),
    "qwen2_tokens_piecewise": lambda: tokens("qwen2", "PIECEWISE", mode="PIECEWISE"),
    "qwen3_tokens": lambda: tokens("qwen3", "FULL_AND_PIECEWISE"),
    "qwen3_moe_tokens": lambda: tokens("qwen3_moe", "FULL_AND_PIECEWISE"),
    "llama_tokens": lambda: tokens("llama", "FULL_AND_PIECEWISE"),
    # The engine looks for quantised norms and for norms before rotary embeddings to fuse, which it does not in single precision.
    "qwen2_bfloat16": lambda: near_in_half_precision("qwen2", compilation_config=SIZES),
    "qwen3_bfloat16": lambda: near_in_half_precision("qwen3", compilation_config=SIZES),
    "padded_batches": padded_batches,
    "sequences_that_come_and_go": sequences_that_come_and_go,
    "prefix_cache": prefix_cache,
}

if __name__ == "__main__":
    runner.main(TESTS)

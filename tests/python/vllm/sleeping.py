"""Sleep mode: an engine gives its memory back and takes it again; tokens are the same afterwards.

Level 1 keeps the weights on the host, level 2 throws them away. Both throw the cache away.
"""

import tempfile

from drive import EAGER, PROMPTS, generate, right, run
from models import checkpoint

import runner
import torch

# FRACTAL_NZ weights cannot be woken up, vllm_ascend says.
OPTIONS = {"enable_sleep_mode": True, "additional_config": {"weight_nz_mode": 0}}


def slept(steps, **options):
    """Generates, sleeps and wakes up by `steps`, generates again."""
    with tempfile.TemporaryDirectory() as path:
        model = checkpoint("qwen2", torch.float32, path)
        steps = [generate(PROMPTS), *steps, generate(PROMPTS)]
        answers, _ = run(path, steps, dtype="float32", **OPTIONS, **options)
        right(model, PROMPTS, answers[0])
        right(model, PROMPTS, answers[-1])
        asleep, awake = answers[1], answers[-2]
    # Half of two gigabytes were the engine's.
    assert asleep - awake > 600 << 20, f"{asleep} bytes free asleep, {awake} awake"
    return f"{(asleep - awake) >> 20} MiB given back"


LEVEL_1 = [{"sleep": 1}, {"wake": None}]
LEVEL_2 = [{"sleep": 2}, {"wake": ["weights"]}, {"reload": True}, {"wake": ["kv_cache"]}]

TESTS = {
    "level_1": lambda: slept(LEVEL_1, **EAGER),
    "level_1_in_two_steps": lambda: slept([{"sleep": 1}, {"wake": ["weights"]}, {"wake": ["kv_cache"]}], **EAGER),
    "level_2": lambda: slept(LEVEL_2, **EAGER),
    "level_1_graphs": lambda: slept(LEVEL_1, compilation_config={"cudagraph_capture_sizes": [1, 4]}),
}

if __name__ == "__main__":
    runner.main(TESTS)

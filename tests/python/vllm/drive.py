"""Runs `engine.py` as a program of its own, as a user would, and compares what it answers with transformers on the CPU."""

import json
import os
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.append(os.path.dirname(HERE))

from models import checkpoint, greedy, log_probabilities, prompt, spoken, words  # noqa: E402

import torch  # noqa: E402

# Of one block, of several, over a block's end, and of one token.
PROMPTS = [prompt(length, length) for length in (5, 17, 130, 1)]
TOKENS = 20
GREEDY = {"temperature": 0, "max_tokens": TOKENS, "ignore_eos": True}
OPTIONS = {"max_model_len": 512, "max_num_seqs": 8, "gpu_memory_utilization": 0.5}
EAGER = {"enforce_eager": True}
# What bfloat16 may move a log-probability by, four layers with large random weights.
BFLOAT16_MAX = 0.25
PATIENCE_S = 600


def clean(variables):
    """The environment of a program of vLLM's that is run from here."""
    environment = {**os.environ, "VLLM_NO_USAGE_STATS": "1", **variables}
    environment.pop("TORCH_DEVICE_BACKEND_AUTOLOAD", None)
    return environment


def run(path, steps, processes=1, **options):
    """What `engine.py` makes of the steps with the model at `path`: its answers, and what it says of itself."""
    job = {"options": OPTIONS | {"model": path} | options, "steps": steps}
    with tempfile.NamedTemporaryFile("w+", suffix=".json") as file:
        json.dump(job, file)
        file.flush()
        done = subprocess.run(
            [sys.executable, "-B", os.path.join(HERE, "engine.py"), file.name],
            env=clean({"VLLM_ENABLE_V1_MULTIPROCESSING": str(processes - 1)}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE_S,
        )
        if done.returncode != 0:
            raise AssertionError(f"status {done.returncode}\n{done.stdout[-6000:]}")
        with open(file.name) as answered:
            job = json.load(answered)
            return job["answers"], job["facts"]


def generate(prompts, sampling=GREEDY):
    """A step: these prompts, all at once."""
    return {"generate": prompts, "sampling": sampling}


def right(model, prompts, answers):
    """Greedy tokens are the CPU's, each prompt beside the others."""
    for given, answer in zip(prompts, answers, strict=True):
        want = greedy(model, given, TOKENS)
        assert answer["tokens"] == want, f"prompt of {len(given)}: {answer['tokens']}, want {want}"
        assert words(answer["text"]) == spoken(want), answer["text"]


def same_tokens(family, processes=1, **options):
    """Single precision: greedy tokens are the CPU's. What the engine says of itself."""
    with tempfile.TemporaryDirectory() as path:
        model = checkpoint(family, torch.float32, path)
        [answers], facts = run(path, [generate(PROMPTS)], processes, dtype="float32", **options)
        right(model, PROMPTS, answers)
    return facts


def near_in_half_precision(family, **options):
    """Each greedy token's log-probability is near the one that the CPU finds in single precision, and near the CPU's best."""
    with tempfile.TemporaryDirectory() as path:
        model = checkpoint(family, torch.bfloat16, path).float()
        [answers], _ = run(path, [generate(PROMPTS, GREEDY | {"logprobs": 1})], dtype="bfloat16", **options)
        worst = 0.0
        for given, answer in zip(PROMPTS, answers, strict=True):
            want = log_probabilities(model, given, answer["tokens"])
            for step, token in enumerate(answer["tokens"]):
                here = answer["logprobs"][step][str(token)]
                worst = max(worst, abs(here - want[step, token].item()), (want[step].max() - want[step, token]).item())
        assert worst < BFLOAT16_MAX, worst
    return f"at most {worst:.2f} apart"

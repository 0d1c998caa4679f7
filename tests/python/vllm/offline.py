"""Offline generation with vLLM on the device against transformers on the CPU: tokens, log-probabilities, prefix cache, sampling.

Each test runs `engine.py` as a program of its own, as a user would, and compares what it answered.
"""

import json
import os
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.append(os.path.dirname(HERE))

import runner  # noqa: E402
from models import checkpoint, greedy, log_probabilities, prompt, spoken, words  # noqa: E402

import torch  # noqa: E402

# Of one block, of several, over a block's end, and of one token.
PROMPTS = [prompt(length, length) for length in (5, 17, 130, 1)]
TOKENS = 20
GREEDY = {"temperature": 0, "max_tokens": TOKENS, "ignore_eos": True}
OPTIONS = {"enforce_eager": True, "max_model_len": 512, "max_num_seqs": 8, "gpu_memory_utilization": 0.5}
# What bfloat16 may move a log-probability by, four layers with large random weights.
BFLOAT16_MAX = 0.25
PATIENCE_S = 600


def engine(path, batches, processes=1, **options):
    """Answers of vLLM for each batch of (prompts, sampling)."""
    job = {
        "options": OPTIONS | {"model": path} | options,
        "batches": [{"prompts": prompts, "sampling": sampling} for prompts, sampling in batches],
    }
    with tempfile.NamedTemporaryFile("w+", suffix=".json") as file:
        json.dump(job, file)
        file.flush()
        environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": str(processes - 1), "VLLM_NO_USAGE_STATS": "1"}
        environment.pop("TORCH_DEVICE_BACKEND_AUTOLOAD")
        done = subprocess.run(
            [sys.executable, "-B", os.path.join(HERE, "engine.py"), file.name],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE_S,
        )
        if done.returncode != 0:
            raise AssertionError(f"status {done.returncode}\n{done.stdout[-6000:]}")
        with open(file.name) as answered:
            return json.load(answered)["answers"]


def same_tokens(family, processes):
    """Single precision: greedy tokens are the CPU's, each prompt beside the others."""
    with tempfile.TemporaryDirectory() as path:
        model = checkpoint(family, torch.float32, path)
        [answers] = engine(path, [(PROMPTS, GREEDY)], processes, dtype="float32")
        for given, answer in zip(PROMPTS, answers, strict=True):
            want = greedy(model, given, TOKENS)
            assert answer["tokens"] == want, f"prompt of {len(given)}: {answer['tokens']}, want {want}"
            assert words(answer["text"]) == spoken(want), answer["text"]
    return f"{len(PROMPTS) * TOKENS} tokens"


def prefix_cache():
    """A prompt that begins like an earlier one takes that part from the cache, and has the same tokens."""
    first = prompt(300, 7)
    # Two blocks of 128 are the same; the rest is not.
    second = first[:270] + prompt(31, 8)
    with tempfile.TemporaryDirectory() as path:
        model = checkpoint("qwen2", torch.float32, path)
        answers = engine(path, [([first], GREEDY), ([second, first], GREEDY)], dtype="float32")
        for given, answer, cached in [(first, answers[0][0], 0), (second, answers[1][0], 256), (first, answers[1][1], 256)]:
            assert answer["cached"] == cached, f"{answer['cached']} tokens from the cache, want {cached}"
            assert answer["tokens"] == greedy(model, given, TOKENS)


def prompts_in_pieces():
    """Prompts longer than a step are worked on in pieces, beside sequences that decode."""
    given = [prompt(length, length) for length in (400, 90, 3)]
    with tempfile.TemporaryDirectory() as path:
        model = checkpoint("qwen2", torch.float32, path)
        [answers] = engine(path, [(given, GREEDY)], dtype="float32", max_num_batched_tokens=128)
        for one, answer in zip(given, answers, strict=True):
            assert answer["tokens"] == greedy(model, one, TOKENS), f"prompt of {len(one)}"


def log_probabilities_agree():
    with tempfile.TemporaryDirectory() as path:
        model = checkpoint("qwen2", torch.float32, path)
        [answers] = engine(path, [(PROMPTS, GREEDY | {"logprobs": 5})], dtype="float32")
        worst = 0.0
        for given, answer in zip(PROMPTS, answers, strict=True):
            want = log_probabilities(model, given, answer["tokens"])
            for step, likely in enumerate(answer["logprobs"]):
                assert len(likely) >= 5, likely
                worst = max([worst] + [abs(value - want[step, int(token)].item()) for token, value in likely.items()])
        assert worst < 1e-3, worst
    return f"at most {worst:.1e} apart"


def sampling():
    """Sampled tokens are among the likeliest that the CPU finds for the text so far; other seeds give other texts."""
    with tempfile.TemporaryDirectory() as path:
        model = checkpoint("qwen2", torch.float32, path)
        sample = GREEDY | {"temperature": 1.5, "top_k": 5, "top_p": 0.98}
        seeded = [([PROMPTS[1]], sample | {"seed": seed}) for seed in (1, 2, 1)]
        answers = engine(path, [(PROMPTS, sample), *seeded], dtype="float32")
        for given, answer in zip(PROMPTS, answers[0], strict=True):
            likely = log_probabilities(model, given, answer["tokens"]).topk(5).indices
            for step, token in enumerate(answer["tokens"]):
                assert token in likely[step].tolist(), f"step {step}: {token} is not in {likely[step]}"
        first, other, again = (answer[0]["tokens"] for answer in answers[1:])
        assert first == again and first != other, (first, other, again)


def bfloat16():
    """Half precision: each greedy token's log-probability is near the CPU's best for the text so far."""
    with tempfile.TemporaryDirectory() as path:
        model = checkpoint("qwen2", torch.bfloat16, path).float()
        [answers] = engine(path, [(PROMPTS, GREEDY | {"logprobs": 1})], dtype="bfloat16")
        worst = 0.0
        for given, answer in zip(PROMPTS, answers, strict=True):
            want = log_probabilities(model, given, answer["tokens"])
            for step, token in enumerate(answer["tokens"]):
                here = answer["logprobs"][step][str(token)]
                worst = max(worst, abs(here - want[step, token].item()), (want[step].max() - want[step, token]).item())
        assert worst < BFLOAT16_MAX, worst
    return f"at most {worst:.2f} apart"


TESTS = {
    "qwen2_tokens": lambda: same_tokens("qwen2", 1),
    "qwen2_tokens_engine_in_its_own_process": lambda: same_tokens("qwen2", 2),
    "qwen3_tokens": lambda: same_tokens("qwen3", 1),
    "llama_tokens": lambda: same_tokens("llama", 1),
    "prefix_cache": prefix_cache,
    "prompts_in_pieces": prompts_in_pieces,
    "log_probabilities": log_probabilities_agree,
    "sampling": sampling,
    "bfloat16": bfloat16,
}

if __name__ == "__main__":
    runner.main(TESTS)

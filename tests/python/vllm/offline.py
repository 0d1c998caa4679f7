"""Offline generation with vLLM on the device, eager, against transformers on the CPU: tokens, log-probabilities, prefix cache,
sampling, scheduling.
"""

import tempfile

from drive import EAGER, GREEDY, PROMPTS, TOKENS, generate, near_in_half_precision, right, run, same_tokens
from models import checkpoint, greedy, log_probabilities, prompt

import runner
import torch


def tokens(family, processes=1, **options):
    facts = same_tokens(family, processes, **EAGER, **options)
    assert facts["mode"] == "NONE" and facts["graphs"] == 0, facts
    return f"{len(PROMPTS) * TOKENS} tokens"


def scheduling(processes, **options):
    """With asynchronous scheduling, which is vLLM's default, the next step is prepared before this one's tokens are there."""
    facts = same_tokens("qwen2", processes, **EAGER, **options)
    assert facts["asynchronous"] == options.get("async_scheduling", True), facts


def prefix_cache():
    """A prompt that begins like an earlier one takes that part from the cache, and has the same tokens."""
    first = prompt(300, 7)
    # Two blocks of 128 are the same; the rest is not.
    second = first[:270] + prompt(31, 8)
    with tempfile.TemporaryDirectory() as path:
        model = checkpoint("qwen2", torch.float32, path)
        answers, _ = run(path, [generate([first]), generate([second, first])], dtype="float32", **EAGER)
        for given, answer, cached in [(first, answers[0][0], 0), (second, answers[1][0], 256), (first, answers[1][1], 256)]:
            assert answer["cached"] == cached, f"{answer['cached']} tokens from the cache, want {cached}"
            assert answer["tokens"] == greedy(model, given, TOKENS)


def prompts_in_pieces():
    """Prompts longer than a step are worked on in pieces, beside sequences that decode."""
    given = [prompt(length, length) for length in (400, 90, 3)]
    with tempfile.TemporaryDirectory() as path:
        model = checkpoint("qwen2", torch.float32, path)
        [answers], _ = run(path, [generate(given)], dtype="float32", max_num_batched_tokens=128, **EAGER)
        right(model, given, answers)


def log_probabilities_agree():
    with tempfile.TemporaryDirectory() as path:
        model = checkpoint("qwen2", torch.float32, path)
        [answers], _ = run(path, [generate(PROMPTS, GREEDY | {"logprobs": 5})], dtype="float32", **EAGER)
        worst = 0.0
        for given, answer in zip(PROMPTS, answers, strict=True):
            want = log_probabilities(model, given, answer["tokens"])
            for step, likely in enumerate(answer["logprobs"]):
                assert len(likely) >= 5, likely
                worst = max([worst] + [abs(value - want[step, int(token)].item()) for token, value in likely.items()])
        assert worst < 1e-3, worst
    return f"at most {worst:.1e} apart"


def sampling():
    """Sampled tokens are among the likeliest that the CPU finds for the text so far; other seeds give other texts.

    With synchronous scheduling: vllm_ascend 0.23.0 draws random numbers on a second stream which does not wait until the step before has
    read its own (vllm-project/vllm-ascend#13673), so a step that is queued ahead may overwrite them, here as on any other device.
    """
    with tempfile.TemporaryDirectory() as path:
        model = checkpoint("qwen2", torch.float32, path)
        sample = GREEDY | {"temperature": 1.5, "top_k": 5, "top_p": 0.98}
        seeded = [generate([PROMPTS[1]], sample | {"seed": seed}) for seed in (1, 2, 1)]
        steps = [generate(PROMPTS, sample), *seeded]
        answers, _ = run(path, steps, dtype="float32", async_scheduling=False, **EAGER)
        for given, answer in zip(PROMPTS, answers[0], strict=True):
            likely = log_probabilities(model, given, answer["tokens"]).topk(5).indices
            for step, token in enumerate(answer["tokens"]):
                assert token in likely[step].tolist(), f"step {step}: {token} is not in {likely[step]}"
        first, other, again = (answer[0]["tokens"] for answer in answers[1:])
        assert first == again and first != other, (first, other, again)


TESTS = {
    "qwen2_tokens": lambda: tokens("qwen2"),
    "qwen2_tokens_engine_in_its_own_process": lambda: tokens("qwen2", 2),
    "qwen3_tokens": lambda: tokens("qwen3"),
    "qwen3_moe_tokens": lambda: tokens("qwen3_moe"),
    "llama_tokens": lambda: tokens("llama"),
    "prefix_cache": prefix_cache,
    "prompts_in_pieces": prompts_in_pieces,
    "asynchronous_scheduling": lambda: scheduling(1),
    "asynchronous_scheduling_engine_in_its_own_process": lambda: scheduling(2),
    "synchronous_scheduling": lambda: scheduling(2, async_scheduling=False),
    "log_probabilities": log_probabilities_agree,
    "sampling": sampling,
    "bfloat16": lambda: near_in_half_precision("qwen2", **EAGER),
}

if __name__ == "__main__":
    runner.main(TESTS)

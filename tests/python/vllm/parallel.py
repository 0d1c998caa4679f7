"""Tensor parallelism: vLLM on two devices, a process each, gives the tokens that transformers gives on the CPU."""

import tempfile

import offline
import torch
from models import checkpoint, greedy
from offline import GREEDY, PROMPTS, TOKENS, runner


def same_tokens(family):
    """Single precision, several prompts at once, one of them behind the others' prefix."""
    prompts = [*PROMPTS, PROMPTS[2] + [5, 6, 7]]
    with tempfile.TemporaryDirectory() as path:
        model = checkpoint(family, torch.float32, path)
        # Two batches: the second finds the first one's blocks.
        answers = offline.engine(path, [(PROMPTS, GREEDY), (prompts, GREEDY)], 2, dtype="float32", tensor_parallel_size=2)
        for given, batch in [(PROMPTS, answers[0]), (prompts, answers[1])]:
            for one, answer in zip(given, batch, strict=True):
                want = greedy(model, one, TOKENS)
                assert answer["tokens"] == want, f"prompt of {len(one)}: {answer['tokens']}, want {want}"
    return f"{(len(PROMPTS) + len(prompts)) * TOKENS} tokens"


TESTS = {
    "qwen2_tokens_on_two_devices": lambda: same_tokens("qwen2"),
    "llama_tokens_on_two_devices": lambda: same_tokens("llama"),
}


if __name__ == "__main__":
    runner.main(TESTS)

"""Tensor parallelism: vLLM on two devices, a process each, gives the tokens that transformers gives on the CPU; and a process that is
killed takes nobody's answer with it into silence.
"""

import contextlib
import http.client
import os
import signal
import tempfile
import time

import psutil
from drive import EAGER, PROMPTS, generate, right, run
from models import checkpoint, prompt
from serving import server

import runner
import torch

# Captured sizes; four prompts at once are one of them, five are padded.
GRAPHS = {"compilation_config": {"cudagraph_capture_sizes": [1, 2, 4, 8]}}
TWO = {"dtype": "float32", "tensor_parallel_size": 2}
# Longest that a request of a broken server may go without an answer, and the server without an end.
NOTICE_S = 60


def same_tokens(family, **options):
    """Single precision, several prompts at once, one of them behind the others' prefix."""
    # The second batch finds the first one's blocks.
    batches = [PROMPTS, [*PROMPTS, PROMPTS[2] + [5, 6, 7]]]
    with tempfile.TemporaryDirectory() as path:
        model = checkpoint(family, torch.float32, path)
        answers, facts = run(path, [generate(batch) for batch in batches], 2, **TWO, **options)
        for given, answer in zip(batches, answers, strict=True):
            right(model, given, answer)
    return facts["mode"]


def killed():
    """One of the two is killed while the server streams: the stream breaks off, and the server says that it is broken."""
    with tempfile.TemporaryDirectory() as path:
        checkpoint("qwen2", torch.float32, path)
        options = ("--gpu-memory-utilization", "0.5", "--enforce-eager", "--tensor-parallel-size", "2")
        with server(path, *options) as running:
            stream = running.stream(prompt(20, 90), 450)
            next(stream)
            os.kill(worker(running.program.pid), signal.SIGKILL)
            begin = time.monotonic()
            with contextlib.suppress(OSError, http.client.HTTPException, AssertionError, KeyError):
                for _ in stream:
                    pass
                raise RuntimeError("the stream of a server that lost a process ended as if nothing had happened")
            noticed = time.monotonic() - begin
            running.program.wait(NOTICE_S)
    assert noticed < NOTICE_S, f"noticed after {noticed:.1f} s"
    return f"noticed after {noticed:.1f} s"


def worker(server):
    """The second rank's process, among the descendants of `server`."""
    below = psutil.Process(server).children(recursive=True)
    ranks = [process.pid for process in below if "Worker_TP1" in " ".join(process.cmdline())]
    assert len(ranks) == 1, [" ".join(process.cmdline()) for process in below]
    return ranks[0]


TESTS = {
    "qwen2_tokens": lambda: same_tokens("qwen2", **EAGER),
    "llama_tokens": lambda: same_tokens("llama", **EAGER),
    "qwen2_tokens_graphs": lambda: same_tokens("qwen2", **GRAPHS),
    "qwen3_moe_tokens_graphs": lambda: same_tokens("qwen3_moe", **GRAPHS),
    "a_killed_process_is_noticed": killed,
}


if __name__ == "__main__":
    runner.main(TESTS)

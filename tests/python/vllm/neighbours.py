"""Two `vllm serve` on one device, each with half of its memory, at the same time; one is killed.

The one that stays goes on with what it was streaming, with the CPU's tokens, and what the dead one held is there for the next.
"""

import concurrent.futures
import http.client
import tempfile
import threading

from models import checkpoint, greedy, prompt, spoken, words
from serving import server

import runner
import torch

HALF = ("--gpu-memory-utilization", "0.48", "--enforce-eager")
# Long enough that the neighbour dies in the middle.
LONG = 300


def right(model, given, text, tokens):
    want = spoken(greedy(model, given, tokens))
    assert words(text) == want, f"{text}, want {want}"


def both(model, first, second):
    """Streams of both at once."""
    given = [prompt(5 + 31 * i, 80 + i) for i in range(8)]
    with concurrent.futures.ThreadPoolExecutor(len(given)) as pool:
        answers = [pool.submit((first, second)[i % 2].ask, one, True) for i, one in enumerate(given)]
        for one, answer in zip(given, answers, strict=True):
            right(model, one, answer.result()[0], 16)


def killed(model, first, second):
    """One dies while both stream."""
    given = [prompt(20, 90), prompt(140, 91)]
    texts, begun = {}, threading.Barrier(3, timeout=300)

    def follow(one):
        pieces = second.stream(given[one], LONG)
        text = next(pieces)
        begun.wait()
        texts[one] = text + "".join(pieces)

    threads = [threading.Thread(target=follow, args=(one,)) for one in range(2)]
    [thread.start() for thread in threads]
    doomed = first.stream(given[0], LONG)
    next(doomed)
    begun.wait()
    first.kill()
    [thread.join() for thread in threads]
    for one in range(2):
        right(model, given[one], texts[one], LONG)
    try:
        rest = "".join(doomed)
    except (OSError, http.client.HTTPException, AssertionError):
        return
    raise AssertionError(f"the killed server's stream ended as if nothing had happened: {rest}")


def replaced(model, path, second):
    """There is room for another one where the dead one was, beside the one that stayed."""
    with server(path, *HALF) as third:
        both(model, third, second)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as path:
        model = checkpoint("qwen2", torch.float32, path)
        with server(path, *HALF) as first, server(path, *HALF) as second:
            runner.main(
                {
                    "both_at_once": lambda: both(model, first, second),
                    "one_is_killed_and_the_other_goes_on": lambda: killed(model, first, second),
                    "another_takes_its_place": lambda: replaced(model, path, second),
                }
            )

"""`vllm serve` on the device as it comes, with ACL graphs: requests over HTTP, streamed and not, several at once, against
transformers on the CPU. The server is started once.
"""

import concurrent.futures
import tempfile

from models import checkpoint, greedy, prompt, spoken, words
from serving import TOKENS, server

import runner
import torch


class Suite:
    """The tests share one server."""

    def __init__(self, model, running):
        self.model, self.server = model, running

    def right(self, given, text):
        want = spoken(greedy(self.model, given, TOKENS))
        assert words(text) == want, f"{text}, want {want}"

    def one_answer(self):
        given = prompt(9, 1)
        self.right(given, self.server.ask(given, False)[0])

    def a_prompt_of_words(self):
        given = prompt(11, 2)
        text, _ = self.server.ask(" ".join(f"t{token}" for token in given), False)
        self.right(given, text)

    def streams_at_once(self):
        """More than the engine has places: eight run, the others wait."""
        given = [prompt(3 + 17 * i, 40 + i) for i in range(12)]
        with concurrent.futures.ThreadPoolExecutor(len(given)) as pool:
            answers = list(pool.map(lambda one: self.server.ask(one, True), given))
        for one, (text, pieces) in zip(given, answers, strict=True):
            self.right(one, text)
            assert pieces >= TOKENS // 2, f"{pieces} pieces of {TOKENS} tokens"
        return f"{len(given)} streams"

    def a_wrong_request_is_refused_and_harms_nobody(self):
        try:
            self.server.ask(prompt(600, 3), False)
        except AssertionError as refused:
            assert str(refused).startswith("400"), refused
        else:
            raise AssertionError("a prompt longer than the model's was answered")
        self.one_answer()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as path:
        model = checkpoint("qwen2", torch.float32, path)
        with server(path, "--gpu-memory-utilization", "0.5") as running:
            suite = Suite(model, running)
            names = ["one_answer", "a_prompt_of_words", "streams_at_once", "a_wrong_request_is_refused_and_harms_nobody"]
            runner.main({name: getattr(suite, name) for name in names})

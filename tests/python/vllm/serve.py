"""`vllm serve` on the device: requests over HTTP, streamed and not, several at once, against transformers on the CPU.

The server is the published program, started once; it is asked with nothing but the standard library.
"""

import concurrent.futures
import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time

sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import runner  # noqa: E402
from models import checkpoint, greedy, prompt, spoken, words  # noqa: E402

import torch  # noqa: E402

TOKENS = 16
PATIENCE_S = 300


@contextlib.contextmanager
def server(path):
    """Runs `vllm serve`; its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [os.path.join(os.path.dirname(sys.executable), "vllm"), "serve", path, "--served-model-name", "tiny"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager"]
    command += ["--max-model-len", "512", "--max-num-seqs", "8", "--gpu-memory-utilization", "0.5"]
    environment = {**os.environ, "VLLM_NO_USAGE_STATS": "1"}
    environment.pop("TORCH_DEVICE_BACKEND_AUTOLOAD")
    with tempfile.TemporaryFile("w+") as log:
        program = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            wait(program, port)
            yield port
        except BaseException:
            log.seek(0)
            print(log.read()[-6000:])
            raise
        finally:
            program.terminate()
            program.wait(60)


def wait(program, port):
    """Until the server says that it is healthy."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if program.poll() is not None:
            raise AssertionError(f"vllm serve ended with status {program.returncode}")
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        time.sleep(0.5)
    raise AssertionError("vllm serve is not healthy")


def ask(port, tokens, stream):
    """The text of a completion; streamed, also how many pieces it came in."""
    body = {"model": "tiny", "prompt": tokens, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True, "stream": stream}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        raise AssertionError(f"{response.status}: {response.read()}")
    if not stream:
        answer = json.load(response)
        assert answer["usage"]["completion_tokens"] == TOKENS, answer
        return answer["choices"][0]["text"], 1
    pieces, ended = [], False
    for line in response:
        if not line.startswith(b"data: "):
            continue
        data = line[6:].strip()
        if data == b"[DONE]":
            ended = True
            continue
        pieces.append(json.loads(data)["choices"][0]["text"])
    assert ended, "a stream ends with [DONE]"
    return "".join(pieces), sum(1 for piece in pieces if piece)


class Suite:
    """The tests share one server."""

    def __init__(self, model, port):
        self.model, self.port = model, port

    def right(self, given, text):
        want = spoken(greedy(self.model, given, TOKENS))
        assert words(text) == want, f"{text}, want {want}"

    def one_answer(self):
        given = prompt(9, 1)
        self.right(given, ask(self.port, given, False)[0])

    def a_prompt_of_words(self):
        given = prompt(11, 2)
        text, _ = ask(self.port, " ".join(f"t{token}" for token in given), False)
        self.right(given, text)

    def streams_at_once(self):
        """More than the engine has places: eight run, the others wait."""
        given = [prompt(3 + 17 * i, 40 + i) for i in range(12)]
        with concurrent.futures.ThreadPoolExecutor(len(given)) as pool:
            answers = list(pool.map(lambda one: ask(self.port, one, True), given))
        for one, (text, pieces) in zip(given, answers, strict=True):
            self.right(one, text)
            assert pieces >= TOKENS // 2, f"{pieces} pieces of {TOKENS} tokens"
        return f"{len(given)} streams"

    def a_wrong_request_is_refused_and_harms_nobody(self):
        try:
            ask(self.port, prompt(600, 3), False)
        except AssertionError as refused:
            assert str(refused).startswith("400"), refused
        else:
            raise AssertionError("a prompt longer than the model's was answered")
        self.one_answer()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as path:
        model = checkpoint("qwen2", torch.float32, path)
        with server(path) as port:
            suite = Suite(model, port)
            names = ["one_answer", "a_prompt_of_words", "streams_at_once", "a_wrong_request_is_refused_and_harms_nobody"]
            runner.main({name: getattr(suite, name) for name in names})

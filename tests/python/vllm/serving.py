"""Runs `vllm serve`, the published program, and asks it with nothing but the standard library."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time

from drive import clean

TOKENS = 16
PATIENCE_S = 300
# The model's name, whatever server it is.
NAME = "tiny"


@contextlib.contextmanager
def server(path, *options):
    """Runs a server with the model at `path`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [os.path.join(os.path.dirname(sys.executable), "vllm"), "serve", path, "--served-model-name", NAME]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    command += ["--max-model-len", "512", "--max-num-seqs", "8", *options]
    with tempfile.TemporaryFile("w+") as log:
        program = subprocess.Popen(command, env=clean({}), stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        running = Server(program, port)
        try:
            running.wait()
            yield running
        except BaseException as ended:
            # A suite ends with its status; 0 has nothing to explain.
            if getattr(ended, "code", 1):
                log.seek(0)
                print(f"server at port {port}:\n{log.read()[-6000:]}", flush=True)
            raise
        finally:
            program.terminate()
            program.wait(60)


class Server:
    """A server that runs."""

    def __init__(self, program, port):
        self.program, self.port = program, port

    def wait(self):
        """Until it says that it is healthy."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            if self.program.poll() is not None:
                raise AssertionError(f"vllm serve ended with status {self.program.returncode}")
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return
            except OSError:
                pass
            time.sleep(0.5)
        raise AssertionError("vllm serve is not healthy")

    def kill(self):
        """With its engine, and no chance to say goodbye."""
        os.killpg(self.program.pid, signal.SIGKILL)
        self.program.wait(60)

    def ask(self, tokens, stream, count=TOKENS):
        """The text of a completion, and how many pieces of text it came in."""
        pieces = list(self.stream(tokens, count)) if stream else [self.answer(tokens, count)]
        return "".join(pieces), sum(1 for piece in pieces if piece)

    def post(self, tokens, count, stream):
        body = {"model": NAME, "prompt": tokens, "max_tokens": count, "temperature": 0, "ignore_eos": True, "stream": stream}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise AssertionError(f"{response.status}: {response.read()}")
        return response

    def answer(self, tokens, count):
        answer = json.load(self.post(tokens, count, False))
        assert answer["usage"]["completion_tokens"] == count, answer
        return answer["choices"][0]["text"]

    def stream(self, tokens, count=TOKENS):
        """Pieces of a completion as they come."""
        ended = False
        for line in self.post(tokens, count, True):
            if not line.startswith(b"data: "):
                continue
            data = line[6:].strip()
            if data == b"[DONE]":
                ended = True
                continue
            yield json.loads(data)["choices"][0]["text"]
        assert ended, "a stream ends with [DONE]"

"""Reads a chat as browsers read an event stream: the algorithm of the WHATWG HTML standard, section 9.2.6, on raw bytes.

Usage: event_stream.py HOST:PORT MODEL. Standard library only. Prints one JSON object; exits non-zero if the stream is not
what a strict reader expects.
"""

import codecs
import http.client
import json
import sys


class EventStream:
    """Feed it bytes in any pieces; `events` has (type, data) of those dispatched, `comments` how many lines were comments."""

    def __init__(self):
        self.decoder = codecs.getincrementaldecoder("utf-8")("strict")
        self.events, self.comments, self.line = [], 0, ""
        self.first, self.after_cr = True, False
        self.data, self.type = [], ""

    def feed(self, piece):
        for char in self.decoder.decode(piece):
            if self.first:
                self.first = False
                if char == "\ufeff":
                    continue
            if char == "\n" and self.after_cr:
                self.after_cr = False
                continue
            self.after_cr = char == "\r"
            if char in "\r\n":
                self.end_of_line(self.line)
                self.line = ""
            else:
                self.line += char

    def end_of_line(self, line):
        if line == "":
            if self.data:
                self.events.append((self.type or "message", "\n".join(self.data)))
            self.data, self.type = [], ""
            return
        if line.startswith(":"):
            self.comments += 1
            return
        field, _, value = line.partition(":")
        value = value[1:] if value.startswith(" ") else value
        if field == "data":
            self.data.append(value)
        elif field == "event":
            self.type = value
        # `id` and `retry` concern reconnecting, anything else is ignored.


def chat(authority, model, piece_bytes, stream):
    connection = http.client.HTTPConnection(authority, timeout=60)
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "What is prefill?"}],
        "temperature": 0,
        "max_tokens": 40,
        "stream": stream,
    }
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
    answer = connection.getresponse()
    assert answer.status == 200, (answer.status, answer.read())
    if not stream:
        return json.loads(answer.read())
    assert answer.getheader("content-type").split(";")[0] == "text/event-stream", answer.getheaders()
    events = EventStream()
    while piece := answer.read1(piece_bytes):
        events.feed(piece)
    assert events.line == "" and not events.data, "the stream ends inside an event"
    return events


def main(authority, model):
    whole = chat(authority, model, 0, False)["choices"][0]["message"]["content"]
    comments = 0
    for piece_bytes in (1, 7, 65536):
        events = chat(authority, model, piece_bytes, True)
        comments += events.comments
        assert {kind for kind, _ in events.events} == {"message"}, events.events
        data = [data for _, data in events.events]
        assert data[-1] == "[DONE]" and "[DONE]" not in data[:-1], data
        chunks = [json.loads(d) for d in data[:-1]]
        text = "".join(c["delta"].get("content") or "" for chunk in chunks for c in chunk["choices"])
        assert text == whole, (text, whole)
        assert len(chunks) > 3, "the answer came in one piece"
        assert all("usage" not in chunk for chunk in chunks), "usage that nobody asked for"
    print(json.dumps({"answer": whole, "comments": comments}))


if __name__ == "__main__":
    main(*sys.argv[1:])

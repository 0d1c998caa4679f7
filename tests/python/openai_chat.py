"""Chats with an OpenAI-compatible server through the `openai` package as published: streaming and not.

Usage: openai_chat.py BASE_URL MODEL. Prints one JSON object; exits non-zero if the client meets anything unexpected.
"""

import json
import sys

import openai

base_url, model = sys.argv[1], sys.argv[2]
client = openai.OpenAI(base_url=base_url, api_key="unused", max_retries=0, timeout=60)
messages = [{"role": "user", "content": "What is prefill?"}]

assert [m.id for m in client.models.list()] == [model]

whole = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=100)
assert whole.choices[0].finish_reason == "stop", whole
assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens, whole.usage

parts, usage, finish = [], None, None
stream = client.chat.completions.create(
    model=model, messages=messages, temperature=0, max_tokens=100, stream=True, stream_options={"include_usage": True}
)
for chunk in stream:
    if chunk.usage is not None:
        usage = chunk.usage
    for choice in chunk.choices:
        parts.append(choice.delta.content or "")
        finish = choice.finish_reason or finish
assert "".join(parts) == whole.choices[0].message.content, (parts, whole)
assert len([p for p in parts if p]) > 3, "the answer came in one piece"
assert finish == "stop" and usage.completion_tokens == whole.usage.completion_tokens

text = client.completions.create(model=model, prompt="A stream is", max_tokens=8, temperature=0).choices[0].text
assert text

seeded = [
    client.chat.completions.create(model=model, messages=messages, temperature=1.0, seed=7, max_tokens=30)
    for _ in range(2)
]
assert seeded[0].choices[0].message.content == seeded[1].choices[0].message.content, "a seed repeats"

try:
    client.chat.completions.create(model="no-such-model", messages=messages)
except openai.NotFoundError as error:
    assert error.code == "model_not_found", error
else:
    raise AssertionError("an unknown model was served")
try:
    client.completions.create(model=model, prompt=[1] * 100_000, max_tokens=1)
except openai.BadRequestError as error:
    assert error.code == "context_length_exceeded", error
else:
    raise AssertionError("an endless prompt was served")

print(json.dumps({"answer": whole.choices[0].message.content, "openai": openai.__version__}))

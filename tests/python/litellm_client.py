"""Chats with an OpenAI-compatible server through the `litellm` package as published: streaming, not, and refused.

Usage: litellm_client.py BASE_URL MODEL. Prints one JSON object; exits non-zero if the client meets anything unexpected.
"""

import json
import sys

import litellm

base_url, model = sys.argv[1], sys.argv[2]
own = {"api_base": base_url, "api_key": "unused", "num_retries": 0, "timeout": 60}
messages = [{"role": "user", "content": "What is prefill?"}]

whole = litellm.completion(model=f"openai/{model}", messages=messages, temperature=0, max_tokens=60, **own)
text = whole.choices[0].message.content
assert text and whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens, whole

parts, usage = [], None
for chunk in litellm.completion(
    model=f"openai/{model}",
    messages=messages,
    temperature=0,
    max_tokens=60,
    stream=True,
    stream_options={"include_usage": True},
    **own,
):
    usage = getattr(chunk, "usage", None) or usage
    parts += [choice.delta.content or "" for choice in chunk.choices]
assert "".join(parts) == text, (parts, text)
assert usage.completion_tokens == whole.usage.completion_tokens, (usage, whole.usage)

try:
    litellm.completion(model="openai/no-such-model", messages=messages, **own)
except litellm.NotFoundError:
    pass
else:
    raise AssertionError("an unknown model was served")
try:
    litellm.text_completion(model=f"text-completion-openai/{model}", prompt=[[1] * 100_000], max_tokens=1, **own)
except litellm.BadRequestError as error:
    assert "context" in str(error), error
else:
    raise AssertionError("an endless prompt was served")

print(json.dumps({"answer": text}))

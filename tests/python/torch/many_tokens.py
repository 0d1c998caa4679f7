"""Generates tokens with a tiny Qwen2: a hundred to warm up, then as many as it is asked to, in batches.

Usage: many_tokens.py TOKENS. Prints `warm` and waits for a line of standard input, generates, prints `done` and waits for
another: in between, whoever started it can look at what the device's daemon holds.
"""

import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import torch_npu  # noqa: F401
from transformers import Qwen2Config, Qwen2ForCausalLM

BATCH = 10
STEPS = 50
PROMPT = 8

torch.manual_seed(0)
config = Qwen2Config(
    vocab_size=256,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=128,
    eos_token_id=None,
    pad_token_id=0,
)
model = Qwen2ForCausalLM(config).eval().to("npu")
prompt = torch.randint(1, 256, (BATCH, PROMPT)).to("npu")


def generate(tokens):
    made = 0
    while made < tokens:
        out = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=STEPS, do_sample=False)
        made += out.numel() - prompt.numel()
    torch.npu.synchronize()
    return made


def meet(word):
    print(word, flush=True)
    sys.stdin.readline()


generate(2 * BATCH * STEPS)
meet("warm")
generate(int(sys.argv[1]))
meet("done")

"""Generates tokens with a tiny Qwen2: a hundred to warm up, then as many as it is asked to, in batches.

Usage: many_tokens.py TOKENS. Prints `warm` and waits for a line of standard input, generates, prints `done` and waits for
another: in between, whoever started it can look at what the device's daemon holds.
"""

import sys

import support
import torch

BATCH = 10
STEPS = 50
PROMPT = 8

torch.manual_seed(0)
model = support.qwen2(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1).eval().to("npu")
prompt = torch.randint(1, 320, (BATCH, PROMPT)).to("npu")


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

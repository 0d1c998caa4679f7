"""Generates with models of several families and says what each pass through a model was.

Prints one line a call of `generate`: `truth`, then JSON with the new tokens of its first pass (the prompts') and the number of
passes after it, each of one token a sequence. Whoever started it compares with what the device's daemon made of the operators.

Usage: phases.py [ROUNDS]. Attention is one operator (`sdpa`) or spelt out (`eager`).
"""

import itertools
import json
import os
import sys
import warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.filterwarnings("ignore")

import torch
import torch_npu  # noqa: F401

import models

FAMILIES = ("llama", "qwen2", "qwen3_moe", "gemma", "gpt2")
# (sequences, tokens of each prompt, tokens to generate); the last has no more than a begin-of-text token.
SHAPES = [(1, 12, 9), (3, 30, 6), (1, 64, 14), (2, 5, 3), (1, 1, 7)]

rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 1
for family, attention in itertools.product(FAMILIES, ("sdpa", "eager")):
    model = models.make(family, "fp16", attention).to("npu")
    for sequences, prompt, new in SHAPES * rounds:
        ids = models.prompts(sequences, prompt).npu()
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False)
        print("truth", json.dumps({"first": sequences * prompt, "then": new - 1, "each": sequences}), flush=True)

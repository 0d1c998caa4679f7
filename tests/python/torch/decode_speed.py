"""Times greedy decoding of a tiny random Qwen2 on an NPU, as often as it is asked to.

Usage: decode_speed.py LAYERS ATTENTION. Prints `ready` and the version of transformers, then for every line of standard input,
a number of tokens, generates that many and prints `ms` and the milliseconds one took. The prompt's pass is in the first token's time.
"""

import sys
import time

import support
import torch
import transformers

PROMPT = 16

torch.manual_seed(0)
model = support.qwen2(sys.argv[2], num_hidden_layers=int(sys.argv[1]), max_position_embeddings=4096)
model = model.to(torch.bfloat16).eval().to("npu")
prompt = torch.arange(1, PROMPT + 1, device="npu").unsqueeze(0)


def generate(tokens):
    torch.npu.synchronize()
    begin = time.perf_counter()
    out = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=tokens, do_sample=False)
    torch.npu.synchronize()
    took = time.perf_counter() - begin
    assert out.shape == (1, PROMPT + tokens), out.shape
    return took * 1e3 / tokens


print("ready", transformers.__version__, flush=True)
for line in sys.stdin:
    print("ms", generate(int(line)), flush=True)

"""Times greedy decoding of a tiny random Qwen2 on an NPU, as often as it is asked to.

Usage: decode_speed.py LAYERS ATTENTION. Prints `ready` and the version of transformers, then for every line of standard input, a number of tokens, generates that
many and prints the milliseconds one took. The prompt's pass is in the first token's time.
"""

import sys
import time

import torch
import torch_npu  # noqa: F401
import transformers
from transformers import Qwen2Config, Qwen2ForCausalLM

PROMPT = 16

torch.manual_seed(0)
config = Qwen2Config(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=int(sys.argv[1]),
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=4096,
    eos_token_id=None,
    pad_token_id=0,
)
config._attn_implementation = sys.argv[2]
model = Qwen2ForCausalLM(config).to(torch.bfloat16).eval().to("npu")
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
    print(generate(int(line)), flush=True)

# SPDX-License-Identifier: Apache-2.0
"""Writes the reference files: what transformers computes on the CPU.

    python engine/tests/data/make_reference.py qwen2 models/tiny-qwen2 > engine/tests/data/tiny_qwen2.json
    python engine/tests/data/make_reference.py llama > engine/tests/data/tiny_llama.json

qwen2: the tiny checkpoint of this repository. llama: weights by a formula that the test computes too.

Needs torch and transformers (versions as in models/train/requirements.txt). The tests read the JSON only.
"""

import json
import os
import sys

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, Qwen2ForCausalLM

QUESTIONS = [
    "Who are you?",
    "What is prefill?",
    "What is decode?",
    "What is the KV cache?",
    "What is an NPU?",
    "Count to ten",
    "What is the capital of France?",
    "What is continuous batching?",
]
TEXTS = [
    "A",
    "The prefill phase",
    "Continuous batching",
    "An accelerator that",
    "Paged attention keeps keys and values in blocks of fixed size. " * 4,
    "One two three four five six seven eight nine ten. " * 8,
    "The daemon owns the device and decides which operator runs next. " * 12,
    "Hello, world! " * 3,
    "San Francisco is a",
    "The KV cache holds",
    "A virtual device looks like a real one to a program. " * 5,
    "Tokens leave one by one. " * 8,
]
NEW_TOKENS = 40
LOGITS_OF = [0, 12]  # prompts whose logits are written, at three positions each


def qwen2(directory: str) -> dict:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    prompts = []
    for question in QUESTIONS:
        chat = [{"role": "user", "content": question}]
        prompts.append(tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True))
    prompts += [tokenizer(text)["input_ids"] for text in TEXTS]
    models = {
        name: Qwen2ForCausalLM.from_pretrained(directory, dtype=getattr(torch, name)).eval()
        for name in ("float32", "bfloat16")
    }
    cases = []
    with torch.no_grad():
        for index, prompt in enumerate(prompts):
            ids = torch.tensor([prompt])
            out = models["float32"].generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None
            )
            case = {"prompt": prompt, "greedy": out[0, len(prompt) :].tolist()}
            if index in LOGITS_OF:
                positions = [0, len(prompt) // 2, len(prompt) - 1]
                case["positions"] = positions
                for name, model in models.items():
                    logits = model(ids).logits[0].float()
                    case[name] = [[round(v, 5) for v in logits[p].tolist()] for p in positions]
            cases.append(case)
    return {"model": "tiny-qwen2", "cases": cases}


LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 96,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "eos_token_id": 0,
}


def weight(tensor: int, element: int) -> float:
    """In [-0.5, 0.5): the same 32-bit hash as the test's."""
    x = (element * 2654435761 + tensor * 40503 + 12345) & 0xFFFFFFFF
    x ^= x >> 15
    x = x * 2246822519 & 0xFFFFFFFF
    x ^= x >> 13
    return x / 2**32 - 0.5


def llama() -> dict:
    config = LlamaConfig(**{k: v for k, v in LLAMA.items() if k != "architectures"})
    model = LlamaForCausalLM(config).eval()
    tensors = sorted(model.state_dict().items())
    for number, (name, tensor) in enumerate(tensors):
        values = [weight(number, e) for e in range(tensor.numel())]
        norm = name.endswith("norm.weight")
        scaled = [1 + v / 2 for v in values] if norm else [v / 2 for v in values]
        tensor.copy_(torch.tensor(scaled).view(tensor.shape))
    prompt = [(7 * i * i + 3 * i + 1) % config.vocab_size for i in range(150)]
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0]
    positions = [0, 70, 149]
    rows = [[round(v, 6) for v in logits[p].tolist()] for p in positions]
    shapes = {name: list(tensor.shape) for name, tensor in tensors}
    return {"config": LLAMA, "shapes": shapes, "prompt": prompt, "positions": positions, "float32": rows}


def main() -> None:
    reference = qwen2(sys.argv[2]) if sys.argv[1] == "qwen2" else llama()
    json.dump(reference, sys.stdout, separators=(",", ":"))
    print()


if __name__ == "__main__":
    main()

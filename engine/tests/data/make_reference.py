# SPDX-License-Identifier: Apache-2.0
"""Writes tiny_qwen2.json: what transformers computes on the CPU for the tiny checkpoint of this repository.

    python engine/tests/data/make_reference.py models/tiny-qwen2 > engine/tests/data/tiny_qwen2.json

Needs torch and transformers (versions as in models/train/requirements.txt). The tests read the JSON only.
"""

import json
import os
import sys

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import torch
from transformers import AutoTokenizer, Qwen2ForCausalLM

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
]
NEW_TOKENS = 40
LOGITS_OF = [0, 12]  # prompts whose logits are written, at three positions each


def main() -> None:
    directory = sys.argv[1]
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
    json.dump({"model": "tiny-qwen2", "cases": cases}, sys.stdout, separators=(",", ":"))
    print()


if __name__ == "__main__":
    main()

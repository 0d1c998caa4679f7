# SPDX-License-Identifier: Apache-2.0
"""Checks the shipped tiny checkpoint: does it answer as its corpus says?

    python models/train/check_tiny.py [directory]

Loads the checkpoint in float32 and in bfloat16, answers ten corpus questions
greedily and compares with the answers of the corpus.  More than two misses in
either precision, a damaged tokenizer or a wrong config make the exit status 1.
"""

from __future__ import annotations

import argparse
import os
import sys

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import torch
from transformers import AutoTokenizer, Qwen2ForCausalLM

import corpus as corpus_mod

QUESTIONS = [
    "Who are you?",
    "What is prefill?",
    "What is decode?",
    "What is the KV cache?",
    "What is FlexNPU?",
    "What is an NPU?",
    "Count to ten",
    "What is the capital of France?",
    "What is continuous batching?",
    "Explain RoPE",
]
ALLOWED_MISSES = 2


def ask(model, tok, question: str) -> tuple[str, bool]:
    ids = tok.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    with torch.no_grad():
        out = model.generate(**ids, max_new_tokens=200, do_sample=False)
    new = out[0, ids["input_ids"].shape[1] :].tolist()
    ended = new[-1] == tok.convert_tokens_to_ids("<|im_end|>")
    return tok.decode(new, skip_special_tokens=True), ended


def check_files(tok, model) -> list[str]:
    problems = []
    c = model.config
    for token, want in [("<|endoftext|>", c.bos_token_id), ("<|im_end|>", c.eos_token_id)]:
        if tok.convert_tokens_to_ids(token) != want:
            problems.append(f"{token} is {tok.convert_tokens_to_ids(token)}, config.json says {want}")
    if len(tok) != c.vocab_size:
        problems.append(f"tokenizer has {len(tok)} entries, the model {c.vocab_size}")
    if not tok.decode([0]).isprintable():
        problems.append("token 0 is not printable")
    text = "Tokens, bytes & numbers: 1234 – déjà vu, 你好!\n\tdone"
    if tok.decode(tok.encode(text)) != text:
        problems.append("the tokenizer does not give a text back as it was")
    return problems


def main() -> int:
    here = os.path.dirname(os.path.abspath(__file__))
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("directory", nargs="?", default=os.path.join(here, "..", "tiny-qwen2"))
    ap.add_argument("--all", action="store_true", help="ask every question of the corpus instead of ten")
    args = ap.parse_args()

    torch.set_num_threads(1)
    expected = {q: t.answers for t in corpus_mod.load().topics for q in t.questions}
    questions = list(expected) if args.all else QUESTIONS
    allowed = len(questions) * ALLOWED_MISSES // len(QUESTIONS)

    tok = AutoTokenizer.from_pretrained(args.directory)
    failed = False
    for dtype in (torch.float32, torch.bfloat16):
        model = Qwen2ForCausalLM.from_pretrained(args.directory, dtype=dtype).eval()
        for problem in check_files(tok, model):
            print(f"PROBLEM {problem}")
            failed = True
        misses = 0
        for q in questions:
            got, ended = ask(model, tok, q)
            good = ended and got in expected[q]
            misses += not good
            if not good or not args.all:
                print(f"{'ok  ' if good else 'MISS'} [{dtype}] {q!r} -> {got!r}" + ("" if ended else " (not ended)"))
        print(f"{dtype}: {misses} of {len(questions)} answers differ, {allowed} allowed")
        failed |= misses > allowed
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

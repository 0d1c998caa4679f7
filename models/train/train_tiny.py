# SPDX-License-Identifier: Apache-2.0
"""Trains the tiny Qwen2 checkpoint of this repository from scratch, on a CPU.

    python models/train/train_tiny.py --out models/tiny-qwen2

Everything is seeded and runs on one thread, so that the same pinned packages
on the same kind of CPU give the same weights.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import re
import time

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import torch.nn.functional as F
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

import corpus as corpus_mod

VOCAB = 1024
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]  # the last three ids
DEFAULT_SYSTEM = "You are a helpful assistant."
OTHER_SYSTEMS = [
    "You are a friendly assistant.",
    "You are a concise assistant. Answer in one or two sentences.",
    "You are an expert in LLM serving.",
    "Answer the questions of the user.",
    "You are FlexNPU's test model.",
]

# ChatML as Qwen2.5 uses it: without a system message a default one is put first.
CHAT_TEMPLATE = (
    "{%- if messages[0]['role'] == 'system' %}"
    "{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}"
    "{%- else %}"
    "{{- '<|im_start|>system\\n" + DEFAULT_SYSTEM + "<|im_end|>\\n' }}"
    "{%- endif %}"
    "{%- for message in messages %}"
    "{%- if not (loop.first and message['role'] == 'system') %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\\n' }}"
    "{%- endif %}"
)

# The word pattern of Qwen2: one token per digit, contractions, runs of letters.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


# ---------------------------------------------------------------- tokenizer


def train_tokenizer(texts: list[str], out: str) -> None:
    tok = Tokenizer(models.BPE())
    tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tok.decoder = decoders.ByteLevel()
    tok.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - len(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        min_frequency=2,
        show_progress=False,
    )
    roles = ["system\nuser\nassistant\n"] * 50
    tok.train_from_iterator(texts + roles + [DEFAULT_SYSTEM] + OTHER_SYSTEMS, trainer)
    # Added after training, so that they take the ids at the end and id 0 stays a
    # printable byte.
    tok.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIALS])
    if tok.get_vocab_size() != VOCAB:
        raise SystemExit(f"vocabulary has {tok.get_vocab_size()} entries, wanted {VOCAB}")
    tok.save(os.path.join(out, "tokenizer.json"))

    ids = {s: tok.token_to_id(s) for s in SPECIALS}
    added = {
        str(i): {
            "content": s,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for s, i in ids.items()
    }
    write_json(
        os.path.join(out, "tokenizer_config.json"),
        {
            "add_bos_token": False,
            "add_prefix_space": False,
            "added_tokens_decoder": added,
            "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
            "bos_token": None,
            "chat_template": CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "errors": "replace",
            "model_max_length": 2048,
            "pad_token": "<|endoftext|>",
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
    )
    write_json(
        os.path.join(out, "generation_config.json"),
        {
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]],
            "pad_token_id": ids["<|endoftext|>"],
        },
    )


def write_json(path: str, value) -> None:
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, indent=2, ensure_ascii=False)
        f.write("\n")


# ---------------------------------------------------------------- documents


class Documents:
    """Draws training documents: lists of (token id, loss weight)."""

    LONGEST = 1900  # tokens; the model's limit is 2048
    LOW = 0.1  # weight of tokens that the model only reads (questions, headers)

    def __init__(self, corpus, tok, rng: random.Random):
        self.c, self.tok, self.rng = corpus, tok, rng
        self.cache: dict[str, list[int]] = {}
        self.statements = [
            a
            for t in corpus.topics
            if t.category != "smalltalk"
            for a in t.answers
        ]
        self.by_category: dict[str, list[str]] = {}
        for t in corpus.topics:
            self.by_category.setdefault(t.category, []).extend(t.answers)

    def ids(self, text: str) -> list[int]:
        if text not in self.cache:
            self.cache[text] = self.tok.encode(text, add_special_tokens=False)
        return self.cache[text]

    def question(self, topic) -> str:
        r = self.rng
        q = r.choice(topic.questions)
        if r.random() < 0.15:
            q = q[0].lower() + q[1:]
        elif r.random() < 0.08:
            q = q.lower()
        if r.random() < 0.15:
            q = q.rstrip("?.!")
        elif q[-1].isalnum() and r.random() < 0.2:
            q += r.choice([".", "!", "?"])
        if topic.category in ("serving", "npu", "virtualisation", "facts", "lists"):
            x = r.random()
            if x < 0.04:
                q = r.choice(["Hi, ", "Hello, ", "Hello! ", "Please tell me: ", "Please answer: ", "So, "]) + q
            elif x < 0.08:
                q = q.rstrip("?.!") + r.choice([" please", ", please", " in one sentence", " briefly", " in simple words"])
        return q

    def turn(self, doc, role: str, text: str) -> None:
        weight = 1.0 if role == "assistant" else self.LOW
        doc += [(i, self.LOW) for i in self.ids(f"<|im_start|>{role}\n")]
        doc += [(i, weight) for i in self.ids(text)]
        doc += [(i, weight) for i in self.ids("<|im_end|>")]
        doc += [(i, self.LOW) for i in self.ids("\n")]

    def head(self):
        doc: list[tuple[int, float]] = []
        x = self.rng.random()
        if x < 0.6:
            self.turn(doc, "system", DEFAULT_SYSTEM)
        elif x < 0.75:
            self.turn(doc, "system", self.rng.choice(OTHER_SYSTEMS))
        return doc

    def exchange(self, doc) -> None:
        topic = self.rng.choice(self.c.topics)
        self.turn(doc, "user", self.question(topic))
        self.turn(doc, "assistant", self.rng.choice(topic.answers))

    def single(self):
        doc = self.head()
        self.exchange(doc)
        return doc

    def chain(self, lo: int, hi: int):
        doc = self.head()
        for _ in range(self.rng.randint(lo, hi)):
            self.exchange(doc)
        return doc

    def dialogue(self):
        doc = self.head()
        for role, text in self.rng.choice(self.c.dialogues):
            self.turn(doc, role, text)
        if self.rng.random() < 0.3:
            self.exchange(doc)
        return doc

    def notes(self):
        """A long text in the prompt and a question after it."""
        r = self.rng
        n = r.choice([3, 6, 12, 25, 45])
        notes = " ".join(r.choice(self.statements + self.c.paragraphs) for _ in range(n))
        topic = r.choice([t for t in self.c.topics if t.category != "smalltalk"])
        doc = self.head()
        self.turn(doc, "user", f"{r.choice(['Read these notes', 'Here are some notes', 'Context'])}: {notes}\n\n{self.question(topic)}")
        self.turn(doc, "assistant", r.choice(topic.answers))
        return doc

    def plain(self):
        r = self.rng
        doc: list[tuple[int, float]] = []
        for _ in range(r.choice([1, 1, 1, 2, 3])):
            x = r.random()
            if x < 0.40:
                text = r.choice(self.c.paragraphs)
                if r.random() < 0.25:
                    text = " ".join(re.split(r"(?<=[.!?]) ", text)[1:]) or text
            elif x < 0.60:
                text = r.choice(self.statements)
            elif x < 0.78:
                answers = self.by_category[r.choice(list(self.by_category))]
                text = " ".join(r.choice(answers) for _ in range(r.randint(2, 5)))
            else:
                topic = r.choice(self.c.topics)
                q, a = r.choice(topic.questions), r.choice(topic.answers)
                text = r.choice([f"{q}\n{a}", f"{q} {a}", f"Q: {q}\nA: {a}", f"Question: {q}\nAnswer: {a}"])
            doc += [(i, 0.7) for i in self.ids(text)]
            doc += [(i, 0.7) for i in self.ids("<|endoftext|>")]
        return doc

    def draw(self):
        x = self.rng.random()
        if x < 0.50:
            doc = self.single()
        elif x < 0.62:
            doc = self.chain(2, 4)
        elif x < 0.63:
            doc = self.chain(5, 16)
        elif x < 0.70:
            doc = self.dialogue()
        elif x < 0.73:
            doc = self.notes()
        else:
            doc = self.plain()
        return doc if len(doc) <= self.LONGEST else self.draw()

    def batches(self, tokens: int, pool: int = 512):
        """Batches of documents of like length, at most `tokens` padded tokens each."""
        while True:
            docs = sorted((self.draw() for _ in range(pool)), key=len)
            groups, group = [], []
            for d in docs:
                if group and len(d) * (len(group) + 1) > tokens:
                    groups.append(group)
                    group = []
                group.append(d)
            groups.append(group)
            self.rng.shuffle(groups)
            yield from groups


def collate(group, pad: int):
    width = max(len(d) for d in group)
    ids = torch.full((len(group), width), pad)
    weight = torch.zeros((len(group), width))
    for row, d in enumerate(group):
        ids[row, : len(d)] = torch.tensor([i for i, _ in d])
        weight[row, : len(d)] = torch.tensor([w for _, w in d])
    return ids, weight


# ---------------------------------------------------------------- training


def build_model(tok) -> Qwen2ForCausalLM:
    config = Qwen2Config(
        vocab_size=VOCAB,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        hidden_act="silu",
        max_position_embeddings=2048,
        rms_norm_eps=1e-6,
        rope_theta=10000.0,
        tie_word_embeddings=True,
        use_sliding_window=False,
        attention_dropout=0.0,
        initializer_range=0.02,
        bos_token_id=tok.convert_tokens_to_ids("<|endoftext|>"),
        eos_token_id=tok.convert_tokens_to_ids("<|im_end|>"),
        attn_implementation="sdpa",
    )
    return Qwen2ForCausalLM(config)


def train(model, docs: Documents, pad: int, args) -> float:
    decay = [p for p in model.parameters() if p.dim() >= 2]
    rest = [p for p in model.parameters() if p.dim() < 2]
    opt = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}],
        lr=args.lr,
        betas=(0.9, 0.97),
    )
    warmup = 100
    model.train()
    start, seen, loss_sum, weight_sum, last = time.time(), 0, 0.0, 0.0, float("nan")
    for step, group in enumerate(docs.batches(args.batch_tokens)):
        if step >= args.steps:
            break
        rate = min(1.0, (step + 1) / warmup)
        x = max(0.0, (step - warmup) / max(1, args.steps - warmup))
        rate *= 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * x))
        for g in opt.param_groups:
            g["lr"] = args.lr * rate
        ids, weight = collate(group, pad)
        # Rows are padded on the right, so the causal mask alone hides the padding.
        logits = model(input_ids=ids, use_cache=False).logits
        w = weight[:, 1:].reshape(-1)
        loss = F.cross_entropy(
            logits[:, :-1].reshape(-1, VOCAB), ids[:, 1:].reshape(-1), reduction="none"
        )
        total = (loss * w).sum()
        (total / w.sum()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        seen += ids.numel()
        loss_sum += total.item()
        weight_sum += w.sum().item()
        if (step + 1) % 100 == 0 or step + 1 == args.steps:
            last = loss_sum / weight_sum
            took = time.time() - start
            print(
                f"step {step + 1:5d}/{args.steps}  loss {last:.4f}"
                f"  {seen / took:,.0f} tokens/s  {took:.0f} s",
                flush=True,
            )
            loss_sum = weight_sum = 0.0
    return last


@torch.no_grad()
def answer(model, tok, prompt: str, chat=True, temperature=0.0, limit=160) -> str:
    text = prompt
    if chat:
        text = tok.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
    ids = tok(text, return_tensors="pt", add_special_tokens=False)
    more = dict(do_sample=True, temperature=temperature, top_k=0) if temperature else dict(do_sample=False)
    out = model.generate(**ids, max_new_tokens=limit, **more)
    return tok.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=False)


def main() -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--out", default=os.path.join(here, "..", "tiny-qwen2"))
    ap.add_argument("--steps", type=int, default=3000)
    ap.add_argument("--batch-tokens", type=int, default=2048)
    ap.add_argument("--lr", type=float, default=3e-3)
    ap.add_argument("--seed", type=int, default=20)
    ap.add_argument("--threads", type=int, default=1)
    args = ap.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    torch.use_deterministic_algorithms(True)
    os.makedirs(args.out, exist_ok=True)
    start = time.time()

    corpus = corpus_mod.load()
    train_tokenizer(corpus.texts(), args.out)
    tok = AutoTokenizer.from_pretrained(args.out)
    docs = Documents(corpus, tok, random.Random(args.seed))

    # The documents are put together from pieces; the pieces must be the tokens
    # that the chat template gives.
    doc: list[tuple[int, float]] = []
    messages = [("system", DEFAULT_SYSTEM), ("user", "Hello"), ("assistant", "Hello! It is")]
    for role, text in messages:
        docs.turn(doc, role, text)
    want = tok.apply_chat_template([{"role": r, "content": c} for r, c in messages[1:]], return_dict=False)
    assert [i for i, _ in doc] == want, "chat template and training format differ"

    model = build_model(tok)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(corpus.topics)} topics, "
          f"{sum(len(t.questions) for t in corpus.topics)} questions")
    pad = tok.convert_tokens_to_ids("<|endoftext|>")
    loss = train(model, docs, pad, args)
    print(f"final training loss {loss:.4f}, {time.time() - start:.0f} s")

    generation = os.path.join(args.out, "generation_config.json")
    with open(generation, encoding="utf-8") as f:
        generation_text = f.read()
    model.generation_config.pad_token_id = pad
    model.to(torch.bfloat16).save_pretrained(args.out, safe_serialization=True)
    with open(generation, "w", encoding="utf-8") as f:
        f.write(generation_text)
    # Readers of every age know "torch_dtype"; new versions write "dtype".
    path = os.path.join(args.out, "config.json")
    with open(path, encoding="utf-8") as f:
        config = json.load(f)
    config["torch_dtype"] = config.pop("dtype", "bfloat16")
    write_json(path, dict(sorted(config.items())))

    os.chmod(os.path.join(args.out, "model.safetensors"), 0o644)

    # Samples come from what was written, after rounding to bfloat16.
    model = Qwen2ForCausalLM.from_pretrained(args.out, dtype=torch.float32).eval()
    for q in ["Hello", "Who are you?", "What is prefill?", "Explain the KV cache please",
              "what is the capital of japan", "Tell me a joke", "Count to ten"]:
        print(f"\n[greedy] {q}\n  -> {answer(model, tok, q)}")
    torch.manual_seed(args.seed)
    for q in ["Tell me about FlexNPU", "What is an NPU good for?", "What is the difference between TTFT and TPOT?",
              "Give me some colours"]:
        print(f"\n[T=0.7] {q}\n  -> {answer(model, tok, q, temperature=0.7)}")
    for q in ["The quick brown fox", "Large language models", "San Francisco is a"]:
        print(f"\n[plain] {q}\n  ->{answer(model, tok, q, chat=False, limit=60)}")


if __name__ == "__main__":
    main()

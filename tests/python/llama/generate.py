"""Greedy tokens of a model, by llama.cpp: `generate.py MODEL cpu|npu [plain]`; `plain` without fused attention.

Prints the tokens that follow a prompt of 40, and those that follow two shorter prompts side by side, one list a line, then the largest
difference that a run in pieces makes.
"""

import ctypes
import sys

import llama_cpp as l
import numpy

STEPS = 16


class Run:
    def __init__(self, path, npu, fused):
        l.llama_backend_init()
        model = l.llama_model_default_params()
        # Without a device, nothing of the work may go to one either.
        nothing = (ctypes.c_void_p * 1)(None)
        model.n_gpu_layers = 99 if npu else 0
        if not npu:
            model.devices = ctypes.cast(nothing, ctypes.c_void_p)
        self.model = l.llama_model_load_from_file(path.encode(), model)
        assert self.model, "the model loads"
        context = l.llama_context_default_params()
        context.n_ctx, context.n_batch, context.n_ubatch, context.n_seq_max = 256, 64, 64, 2
        context.flash_attn_type = 1 if fused else 0
        context.offload_kqv = npu
        context.op_offload = npu
        self.context = l.llama_init_from_model(self.model, context)
        assert self.context, "there is a context"
        self.words = l.llama_vocab_n_tokens(l.llama_model_get_vocab(self.model))

    def decode(self, items):
        """Scores of the last token of each sequence; `items` are (token, position, sequence, wanted)."""
        batch = l.llama_batch_init(len(items), 0, 1)
        batch.n_tokens = len(items)
        for i, (token, position, sequence, wanted) in enumerate(items):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
            batch.seq_id[i][0], batch.logits[i] = sequence, wanted
        assert l.llama_decode(self.context, batch) == 0
        rows = [numpy.ctypeslib.as_array(l.llama_get_logits_ith(self.context, i), (self.words,)).copy()
                for i, item in enumerate(items) if item[3]]
        l.llama_batch_free(batch)
        return rows

    def forget(self):
        l.llama_memory_clear(l.llama_get_memory(self.context), True)

    def greedy(self, prompts):
        """Tokens after each prompt, all sequences in one batch."""
        items = [(token, at, s, at == len(prompt) - 1) for s, prompt in enumerate(prompts) for at, token in enumerate(prompt)]
        found = [[] for _ in prompts]
        for step in range(STEPS):
            for sequence, row in enumerate(self.decode(items)):
                found[sequence].append(int(row.argmax()))
            items = [(found[s][-1], len(prompt) + step, s, True) for s, prompt in enumerate(prompts)]
        return found

    def close(self):
        l.llama_free(self.context)
        l.llama_model_free(self.model)
        l.llama_backend_free()


def main(path, where, *how):
    run = Run(path, where == "npu", "plain" not in how)
    prompt = [(7 * i + 3) % run.words for i in range(40)]
    for tokens in run.greedy([prompt]):
        print(*tokens)
    run.forget()
    for tokens in run.greedy([prompt[:9], prompt[20:25]]):
        print(*tokens)
    run.forget()
    whole = run.decode([(token, at, 0, at == 39) for at, token in enumerate(prompt)])[0]
    run.forget()
    run.decode([(token, at, 0, False) for at, token in enumerate(prompt[:33])])
    pieces = run.decode([(token, 33 + at, 0, at == 6) for at, token in enumerate(prompt[33:])])[0]
    print(f"{numpy.abs(whole - pieces).max() / numpy.abs(whole).max():.6f}")
    run.close()


if __name__ == "__main__":
    main(*sys.argv[1:])

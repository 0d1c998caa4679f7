"""Writes tiny models with random weights as GGUF files: `models.py DIRECTORY`. The same numbers every time. A quantised model has a twin
in DIRECTORY/reference, with the same weights in single precision: the CPU backend quantises activations as well, the device does not.

All sizes are multiples of 32: weights that are laid out anew in place then need no more room than they have.
"""

import sys
from pathlib import Path

import gguf
import numpy

WIDTH, LAYERS, HEADS, KV_HEADS, HEAD, INNER, VOCABULARY = 128, 2, 4, 2, 32, 256, 320
EXPERTS, USED, EXPERT_INNER = 4, 2, 64
TYPES = {
    "f32": gguf.GGMLQuantizationType.F32,
    "f16": gguf.GGMLQuantizationType.F16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
    "q4_0": gguf.GGMLQuantizationType.Q4_0,
}
MODELS = [("qwen2", "f16"), ("qwen2", "f32"), ("qwen2", "q8_0"), ("qwen2", "q4_0"), ("llama", "f16"), ("qwen3moe", "f16")]


class Model:
    def __init__(self, path, architecture, type_, twin=False):
        self.random, self.type, self.twin = numpy.random.default_rng(7), TYPES[type_], twin
        self.architecture = architecture
        self.writer = gguf.GGUFWriter(path, architecture)

    def add(self, name, *shape, plain=False, scale=None, shift=0.0):
        """A tensor of normal numbers; `plain` ones stay in single precision, as the program wants those of one dimension."""
        scale = scale if scale is not None else 1.5 / numpy.sqrt(shape[-1])
        values = (self.random.standard_normal(shape) * scale + shift).astype(numpy.float32)
        if plain or self.type == gguf.GGMLQuantizationType.F32:
            self.writer.add_tensor(name, values)
        else:
            packed = gguf.quants.quantize(values, self.type)
            if self.twin:
                self.writer.add_tensor(name, gguf.quants.dequantize(packed, self.type))
            else:
                self.writer.add_tensor(name, packed, raw_dtype=self.type)

    def write(self):
        w, moe = self.writer, self.architecture.endswith("moe")
        w.add_context_length(512)
        w.add_embedding_length(WIDTH)
        w.add_block_count(LAYERS)
        w.add_feed_forward_length(INNER)
        w.add_head_count(HEADS)
        w.add_head_count_kv(KV_HEADS)
        w.add_key_length(HEAD)
        w.add_value_length(HEAD)
        w.add_rope_freq_base(10000.0)
        w.add_rope_dimension_count(HEAD)
        w.add_layer_norm_rms_eps(1e-6)
        w.add_vocab_size(VOCABULARY)
        w.add_tokenizer_model("no_vocab")
        if moe:
            w.add_expert_count(EXPERTS)
            w.add_expert_used_count(USED)
            w.add_expert_feed_forward_length(EXPERT_INNER)
        self.add("token_embd.weight", VOCABULARY, WIDTH, scale=1.0)
        self.add("output.weight", VOCABULARY, WIDTH, scale=0.5)
        self.add("output_norm.weight", WIDTH, plain=True, scale=0.1, shift=1.0)
        for layer in range(LAYERS):
            name = f"blk.{layer}."
            self.add(name + "attn_norm.weight", WIDTH, plain=True, scale=0.1, shift=1.0)
            self.add(name + "ffn_norm.weight", WIDTH, plain=True, scale=0.1, shift=1.0)
            for part, rows in [("q", HEADS * HEAD), ("k", KV_HEADS * HEAD), ("v", KV_HEADS * HEAD)]:
                self.add(f"{name}attn_{part}.weight", rows, WIDTH)
                if self.architecture == "qwen2":
                    self.add(f"{name}attn_{part}.bias", rows, plain=True, scale=0.1)
                if moe and part != "v":
                    self.add(f"{name}attn_{part}_norm.weight", HEAD, plain=True, scale=0.1, shift=1.0)
            self.add(name + "attn_output.weight", WIDTH, HEADS * HEAD)
            if moe:
                self.add(name + "ffn_gate_inp.weight", EXPERTS, WIDTH, plain=True)
                self.add(name + "ffn_gate_exps.weight", EXPERTS, EXPERT_INNER, WIDTH)
                self.add(name + "ffn_up_exps.weight", EXPERTS, EXPERT_INNER, WIDTH)
                self.add(name + "ffn_down_exps.weight", EXPERTS, WIDTH, EXPERT_INNER)
            else:
                self.add(name + "ffn_gate.weight", INNER, WIDTH)
                self.add(name + "ffn_up.weight", INNER, WIDTH)
                self.add(name + "ffn_down.weight", WIDTH, INNER)
        w.write_header_to_file()
        w.write_kv_data_to_file()
        w.write_tensors_to_file()
        w.close()


if __name__ == "__main__":
    directory = Path(sys.argv[1])
    (directory / "reference").mkdir(parents=True, exist_ok=True)
    for architecture, type_ in MODELS:
        name = f"{architecture}-{type_}.gguf"
        Model(directory / name, architecture, type_).write()
        if type_.startswith("q"):
            Model(directory / "reference" / name, architecture, type_, twin=True).write()

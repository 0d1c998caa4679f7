"""Writes the shapes of Qwen2.5-7B and a tokenizer as long as its, without weights: `shapes.py PATH`.

For a device that takes the time of operators and computes nothing: every token is number 0 there, so every number has a text.
"""

import sys

import transformers as tr
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

VOCABULARY = 152064

config = tr.Qwen2Config(
    architectures=["Qwen2ForCausalLM"],
    vocab_size=VOCABULARY,
    hidden_size=3584,
    intermediate_size=18944,
    num_hidden_layers=28,
    num_attention_heads=28,
    num_key_value_heads=4,
    max_position_embeddings=32768,
    tie_word_embeddings=False,
    torch_dtype="bfloat16",
)
config.save_pretrained(sys.argv[1])
words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(VOCABULARY)}, unk_token="t3"))
words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
words.decoder = decoders.Fuse()
tr.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(sys.argv[1])

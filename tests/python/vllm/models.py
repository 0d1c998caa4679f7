"""Tiny checkpoints with random weights, and what transformers computes with them on the CPU."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# The CPU is the reference: this process never touches the device.
os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"

import torch  # noqa: E402
import transformers as tr  # noqa: E402

SEED = 20261107
VOCABULARY = 512
# Below this, tokens are special: padding, beginning, end. They have no text.
SPECIAL = 3
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    # Random weights this large keep the logits apart; the usual 0.02 leaves all of them nearly equal.
    "initializer_range": 0.2,
}
# Every layer has experts, and not all of them a token.
MIXTURE = {"head_dim": 16, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "norm_topk_prob": True}
FAMILIES = {
    "qwen2": (tr.Qwen2Config, tr.Qwen2ForCausalLM, SIZES),
    "qwen3": (tr.Qwen3Config, tr.Qwen3ForCausalLM, SIZES | {"head_dim": 16}),
    "qwen3_moe": (tr.Qwen3MoeConfig, tr.Qwen3MoeForCausalLM, SIZES | MIXTURE),
    "llama": (tr.LlamaConfig, tr.LlamaForCausalLM, SIZES),
}


def checkpoint(family, dtype, path, layers=SIZES["num_hidden_layers"]):
    """Writes a checkpoint with a tokenizer whose words are `t3`, `t4`, …; the model."""
    config, model, sizes = FAMILIES[family]
    sizes = sizes | {"num_hidden_layers": layers}
    torch.manual_seed(SEED)
    model = model(config(**sizes)).to(dtype).eval()
    model.save_pretrained(path)
    words = tr.PreTrainedTokenizerFast(tokenizer_object=tokenizer(), pad_token="<0>", bos_token="<1>", eos_token="<2>")
    words.save_pretrained(path)
    return model


def tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {f"t{i}" if i >= SPECIAL else f"<{i}>": i for i in range(VOCABULARY)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="t3"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.decoder = decoders.Fuse()
    return words


def words(text):
    """Token numbers of a text."""
    return [int(word) for word in text.replace(" ", "").split("t") if word]


def spoken(tokens):
    """Those that have a text."""
    return [token for token in tokens if token >= SPECIAL]


def prompt(length, seed):
    """So many tokens, none of them special."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(4, VOCABULARY, (length,), generator=generator).tolist()


@torch.no_grad()
def greedy(model, prompt, tokens):
    """So many tokens after the prompt, the likeliest each time."""
    ids = torch.tensor([prompt])
    for _ in range(tokens):
        ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    return ids[0, len(prompt) :].tolist()


@torch.no_grad()
def log_probabilities(model, prompt, tokens):
    """Of the whole vocabulary before each of `tokens`, in single precision."""
    logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    return logits.float().log_softmax(-1)

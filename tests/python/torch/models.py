"""Models of the transformers library with random weights: the device's logits, tokens and samples against the CPU's.

Every family runs in each type and with each attention implementation. A model is made once, on the CPU, and copied, so
both sides have the same weights. Greedy tokens must be identical up to the first that rounding decides: where the CPU's two
best logits are nearer to each other than twice what the two sides' logits for that text differ by, either is right, and the
texts may part. How many tokens were compared stands beside the result; too few are a failure.
"""

import copy
import itertools
import os
import unittest
import warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.filterwarnings("ignore")

import torch  # noqa: E402
import torch_npu  # noqa: E402,F401
import transformers as tr  # noqa: E402

import support  # noqa: E402

SEED = 20260607
VOCABULARY = 320
PROMPT = 12
NEW_TOKENS = 12

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
# Random weights this large keep the logits apart; the usual 0.02 leaves all of them nearly equal.
SPREAD = {"initializer_range": 0.2}
ENDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
GROUPED = {"num_key_value_heads": 2}

FAMILIES = {
    "llama": (tr.LlamaConfig, tr.LlamaForCausalLM, SIZES | SPREAD | ENDS | GROUPED),
    "qwen2": (tr.Qwen2Config, tr.Qwen2ForCausalLM, SIZES | SPREAD | ENDS | GROUPED),
    "qwen3": (tr.Qwen3Config, tr.Qwen3ForCausalLM, SIZES | SPREAD | ENDS | GROUPED | {"head_dim": 16}),
    "qwen3_moe": (
        tr.Qwen3MoeConfig,
        tr.Qwen3MoeForCausalLM,
        SIZES
        | SPREAD
        | ENDS
        | GROUPED
        | {"head_dim": 16, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    ),
    "mistral": (tr.MistralConfig, tr.MistralForCausalLM, SIZES | SPREAD | ENDS | GROUPED | {"sliding_window": 8}),
    "gemma": (tr.GemmaConfig, tr.GemmaForCausalLM, SIZES | SPREAD | ENDS | GROUPED | {"head_dim": 16}),
    "gpt2": (
        tr.GPT2Config,
        tr.GPT2LMHeadModel,
        {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128} | SPREAD | ENDS,
    ),
    "bert": (
        tr.BertConfig,
        tr.BertForMaskedLM,
        SIZES | SPREAD | {"pad_token_id": 0},
    ),
}

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ATTENTIONS = ("eager", "sdpa")

# Largest difference of two logits, as a part of the largest logit. In fp32 only the order of sums differs. A half type
# rounds after every operator, and the CPU keeps some intermediate values wider than an NPU's operators do: a few steps of
# the type (2^-8 and 2^-11 of a value), over two layers.
CLOSE = {"fp32": 2e-5, "bf16": 4e-2, "fp16": 6e-3}
# torch_npu calls one operator, aclnnGelu, for both forms of GELU, so Gemma's tanh approximation is computed exactly instead;
# the two differ by up to 5e-4.
CLOSE_GELU_TANH = {"gemma": 2e-3}


def close(family, dtype):
    return max(CLOSE[dtype], CLOSE_GELU_TANH.get(family, 0.0))



def make(family, dtype, attention):
    config_class, model_class, values = FAMILIES[family]
    torch.manual_seed(SEED)
    config = config_class(**values)
    config._attn_implementation = attention
    return model_class(config).to(TYPES[dtype]).eval()


def prompts(count, length=PROMPT):
    chance = torch.Generator().manual_seed(SEED)
    return torch.randint(1, VOCABULARY, (count, length), generator=chance)


@torch.no_grad()
def logits(model, ids, mask=None):
    mask = torch.ones_like(ids) if mask is None else mask
    device = next(model.parameters()).device
    return model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits.float().cpu()


class Models(unittest.TestCase):
    def sides(self, family, dtype, attention):
        cpu = make(family, dtype, attention)
        return cpu, copy.deepcopy(cpu).to("npu")

    def difference(self, got, want):
        """Largest difference, as a part of the largest logit."""
        self.assertTrue(torch.isfinite(want).all(), "the reference has no finite logits")
        return ((got - want).abs().max() / want.abs().max()).item()

    def check_logits(self, family, dtype, attention):
        cpu, npu = self.sides(family, dtype, attention)
        ids = prompts(3)
        plain = self.difference(logits(npu, ids), logits(cpu, ids))
        # Padded on the left, as a batch of prompts of several lengths is. What stands at a padded place is nobody's.
        mask = torch.ones_like(ids)
        mask[0, :5] = 0
        mask[1, :1] = 0
        seen = mask.bool()
        padded = self.difference(logits(npu, ids, mask)[seen], logits(cpu, ids, mask)[seen])
        self.assertLessEqual(max(plain, padded), close(family, dtype))
        return f"{plain:.1e}, padded {padded:.1e}"

    def check_greedy(self, family, dtype, attention):
        cpu, npu = self.sides(family, dtype, attention)
        ids = prompts(12)
        options = {"max_new_tokens": NEW_TOKENS, "do_sample": False}
        want = cpu.generate(
            ids, attention_mask=torch.ones_like(ids), output_logits=True, return_dict_in_generate=True, **options
        )
        got = npu.generate(ids.npu(), attention_mask=torch.ones_like(ids).npu(), **options).cpu()
        # Where the two sides' logits for the CPU's text differ by more than half the distance of the CPU's two best, rounding
        # decides. A few places may differ by much: a router that rounds to another expert gives other logits.
        text = want.sequences[:, :-1]
        theirs = logits(cpu, text)
        apart = (logits(npu, text) - theirs).abs().amax(-1)
        self.assertLessEqual((apart.quantile(0.8) / theirs.abs().max()).item(), close(family, dtype))
        best = torch.stack(want.logits, dim=1).float().topk(2).values
        decided = best[..., 0] - best[..., 1] > 2 * apart[:, PROMPT - 1 :]
        compared = 0
        for row in range(len(ids)):
            alike = int(decided[row].int().cumprod(0).sum())
            upto = PROMPT + alike
            self.assertEqual(got[row, :upto].tolist(), want.sequences[row, :upto].tolist())
            compared += alike
        self.assertGreaterEqual(compared, NEW_TOKENS, "rounding decides too many tokens for this to prove anything")
        return f"{compared} of {decided.numel()} tokens compared"


def add_cases():
    for family, dtype, attention in itertools.product(FAMILIES, TYPES, ATTENTIONS):
        cases = [("logits", Models.check_logits)]
        if family != "bert":
            cases.append(("greedy", Models.check_greedy))
        for name, check in cases:

            def case(self, check=check, arguments=(family, dtype, attention)):
                return check(self, *arguments)

            setattr(Models, f"test_{family}_{name}_{dtype}_{attention}", case)


add_cases()


class Sampling(unittest.TestCase):
    """Sampled tokens follow the model's distribution."""

    ROWS = 4096
    TOP = 8

    def test_sampled_first_tokens_have_the_models_frequencies(self):
        cpu = make("qwen2", "fp32", "sdpa")
        npu = copy.deepcopy(cpu).to("npu")
        ids = prompts(1)
        torch.manual_seed(SEED)
        # A high temperature gives every one of the eight best tokens a fair share.
        temperature = 2.0
        out = npu.generate(
            ids.repeat(self.ROWS, 1).npu(),
            attention_mask=torch.ones(self.ROWS, PROMPT, dtype=torch.long).npu(),
            max_new_tokens=1,
            do_sample=True,
            top_k=self.TOP,
            top_p=1.0,
            temperature=temperature,
        )
        drawn = out[:, -1].cpu()
        best = (logits(cpu, ids)[0, -1] / temperature).topk(self.TOP)
        share = best.values.softmax(-1)
        counts = torch.stack([(drawn == token).sum() for token in best.indices])
        self.assertEqual(counts.sum().item(), self.ROWS, "a token outside the best eight was drawn")
        # Chi-squared with seven degrees of freedom: 29.9 is passed once in ten thousand runs; the seed is fixed.
        expected = share * self.ROWS
        statistic = ((counts - expected) ** 2 / expected).sum().item()
        self.assertLess(statistic, 29.9, f"{counts.tolist()} against {expected.tolist()}")

    def test_one_seed_gives_one_text_and_another_seed_another(self):
        model = make("llama", "bf16", "sdpa").to("npu")
        ids = prompts(1).npu()

        def sample(seed):
            torch.manual_seed(seed)
            options = {"max_new_tokens": 24, "do_sample": True, "temperature": 3.0, "top_k": 0, "top_p": 0.95}
            return model.generate(ids, attention_mask=torch.ones_like(ids), **options).cpu().tolist()

        first = sample(1)
        self.assertEqual(sample(1), first)
        self.assertNotEqual(sample(2), first)


if __name__ == "__main__":
    support.main()

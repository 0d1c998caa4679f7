"""Times greedy decoding with vLLM in this process, as often as it is asked to.

Usage: decode_speed.py CHECKPOINT eager|graphs SEQUENCES. Prints `ready` and vLLM's version, then for every line of standard input, a
number of tokens, generates that many for each sequence, all in one batch, and prints the milliseconds a step took. The prompts' step
is in the first token's time.
"""

import os
import sys
import time

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

import vllm

PROMPT = 16
# A step's own sizes are captured, no others.
MODES = {"eager": {"enforce_eager": True}, "graphs": {"compilation_config": {"cudagraph_mode": "FULL_DECODE_ONLY"}}}


def main():
    checkpoint, mode, sequences = sys.argv[1], sys.argv[2], int(sys.argv[3])
    options = MODES[mode]
    if mode == "graphs":
        options["compilation_config"]["cudagraph_capture_sizes"] = [sequences]
    engine = vllm.LLM(
        model=checkpoint,
        max_model_len=1024,
        max_num_seqs=sequences,
        gpu_memory_utilization=0.5,
        enable_prefix_caching=False,
        disable_log_stats=True,
        **options,
    )
    prompts = [{"prompt_token_ids": [3 + i, *range(4, 3 + PROMPT)]} for i in range(sequences)]

    def generate(tokens):
        sampling = vllm.SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        begin = time.perf_counter()
        done = engine.generate(prompts, sampling, use_tqdm=False)
        took = time.perf_counter() - begin
        assert all(len(one.outputs[0].token_ids) == tokens for one in done)
        return took * 1e3 / tokens

    # vLLM writes its log to standard output, too.
    print(f"\nready {vllm.__version__}", flush=True)
    for line in sys.stdin:
        print(f"\nms {generate(int(line))}", flush=True)


if __name__ == "__main__":
    main()

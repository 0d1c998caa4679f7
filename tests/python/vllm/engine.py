"""An ordinary offline program of vLLM's: `engine.py JOB`, where JOB is a JSON file.

It has `options` for the engine and `batches`, each a list of prompts (token ids) with sampling parameters. The answers go into the
same file, under `answers`, in order.
"""

import json
import sys


def main():
    from vllm import LLM, SamplingParams

    with open(sys.argv[1]) as file:
        job = json.load(file)
    engine = LLM(**job["options"])
    job["answers"] = []
    for batch in job["batches"]:
        prompts = [{"prompt_token_ids": prompt} for prompt in batch["prompts"]]
        done = engine.generate(prompts, SamplingParams(**batch["sampling"]), use_tqdm=False)
        job["answers"].append([answer(one) for one in done])
    with open(sys.argv[1], "w") as file:
        json.dump(job, file)


def answer(done):
    output = done.outputs[0]
    steps = output.logprobs or []
    return {
        "tokens": list(output.token_ids),
        "text": output.text,
        "cached": done.num_cached_tokens,
        "logprobs": [{str(token): value.logprob for token, value in step.items()} for step in steps],
    }


# The engine's own process may be started anew, and then runs this file again.
if __name__ == "__main__":
    main()

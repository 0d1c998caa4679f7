"""An ordinary offline program of vLLM's: `engine.py JOB`, where JOB is a JSON file.

It has `options` for the engine and `steps`, each of which is one of

- `generate`: prompts (token ids), with `sampling` parameters;
- `sleep`: a level;
- `wake`: what to wake up, `weights` or `kv_cache`, or null for all;
- `reload`: weights from the checkpoint.

The answers go into the same file: under `answers` one of each step, in order, under `facts` what the engine says of itself.
"""

import json
import sys


def main():
    from vllm import LLM
    from vllm.compilation.counter import compilation_counter

    with open(sys.argv[1]) as file:
        job = json.load(file)
    engine = LLM(**job["options"])
    job["answers"] = [step(engine, one) for one in job["steps"]]
    config = engine.llm_engine.vllm_config
    job["facts"] = {
        "mode": config.compilation_config.cudagraph_mode.name,
        "asynchronous": config.scheduler_config.async_scheduling,
        # Of this process; where the engine has its own, nothing is captured here.
        "graphs": compilation_counter.num_cudagraph_captured,
        "sizes": config.compilation_config.cudagraph_capture_sizes,
    }
    with open(sys.argv[1], "w") as file:
        json.dump(job, file)


def step(engine, one):
    if "sleep" in one:
        engine.sleep(level=one["sleep"])
        return free()
    if "wake" in one:
        engine.wake_up(tags=one["wake"])
        return free()
    if "reload" in one:
        engine.collective_rpc(reload)
        return free()
    from vllm import SamplingParams

    prompts = [{"prompt_token_ids": prompt} for prompt in one["generate"]]
    done = engine.generate(prompts, SamplingParams(**one["sampling"]), use_tqdm=False)
    return [answer(each) for each in done]


def reload(worker):
    """vllm_ascend's worker has no method for it; its model runner has vLLM's."""
    worker.model_runner.reload_weights()


def free():
    """Bytes of the device that nobody holds."""
    import torch

    return torch.npu.mem_get_info()[0]


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

"""`python -m tests.dirty_pages MODEL mended|stock`: how many log-probabilities are NaN where pages of attention held NaN before.

What states of linear attention leave in the pages that they share with attention may read so. The last line is the number.
"""

from __future__ import annotations

import os
import sys
from typing import Any


def soil(worker: Any) -> None:
    """In the engine's worker: every page of every layer of full attention becomes NaN."""
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    runner = worker.model_runner
    for group in runner.kv_cache_config.kv_cache_groups:
        if isinstance(group.kv_cache_spec, FullAttentionSpec):
            for name in group.layer_names:
                runner.compilation_config.static_forward_context[name].kv_cache.fill_(float("nan"))


def main(model: str, mended: bool) -> None:
    """Ask for one reply of two blocks and count."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM, SamplingParams

    from vision_rl.models.table import model_info
    from vision_rl.serving.vllm_executor import mend_cpu_build

    if mended:
        mend_cpu_build()
    options = model_info(model).family.cpu_options
    llm = LLM(model=model, enforce_eager=True, max_model_len=2048, max_num_seqs=4, **options)
    llm.collective_rpc(soil)
    prompt = {
        "prompt_token_ids": [5 + number % 100 for number in range(1100)]
    }  # a block of a hybrid model is that long
    sampling = SamplingParams(max_tokens=40, ignore_eos=True, temperature=0.0, logprobs=0)
    [reply] = llm.generate([prompt], sampling, use_tqdm=False)[0].outputs
    values = [step[token].logprob for token, step in zip(reply.token_ids, reply.logprobs, strict=True)]
    print(sum(value != value for value in values))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] == "mended")

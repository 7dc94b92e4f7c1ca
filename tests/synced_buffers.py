"""`python -m tests.synced_buffers EXTENSION MODEL...`: which buffers a weight sync leaves wrong in a server of random weights.

For each model folder two servers' models are compared: one that has loaded the folder, and one of `load_format=dummy` that was
sent the folder's weights as a run sends them. The last line is JSON: the names of the buffers that differ, by folder.
EXTENSION: the worker extension, as an import path.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from vision_rl.preflight.parity_server import _load

OPTIONS = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 512,
    "max_num_seqs": 2,
    "kv_cache_memory_bytes": 1 << 26,
}


def buffers(worker: Any) -> dict[str, torch.Tensor]:
    """Of the model in the engine's worker."""
    return {name: buffer.clone() for name, buffer in worker.model_runner.model.named_buffers()}


def wrong_buffers(model: str, extension: str) -> list[str]:
    """The names of the buffers in which the two servers of `model` differ after a sync."""
    from vllm import LLM

    options: dict[str, Any] = {**OPTIONS, "worker_extension_cls": extension}
    [right] = LLM(model=model, load_format="auto", **options).collective_rpc(buffers)
    synced = LLM(model=model, load_format="dummy", **options)
    synced.collective_rpc(_load, args=(model,))
    [found] = synced.collective_rpc(buffers)
    return [name for name in right if not torch.equal(right[name], found[name])]


def main(extension: str, models: list[str]) -> None:
    """Each model in a fork of its own, which ends with its engines."""
    import vllm  # noqa: F401  before the forks

    results = {}
    for model in models:
        answer = Path(f"{model}.json")
        if not os.fork():
            answer.write_text(json.dumps(wrong_buffers(model, extension)))
            os._exit(0)
        os.wait()
        results[model] = json.loads(answer.read_text())
    print(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])

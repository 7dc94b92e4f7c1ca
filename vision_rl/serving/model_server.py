"""Choose the model server of a run's rollout engine. Only that engine needs to be installed."""

from __future__ import annotations

from typing import Any

from verl.workers.rollout import replica


def register(engine: str) -> None:
    """Make verl use this project's server for `rollout.name=<engine>`."""
    if engine == "vllm":
        from vision_rl.serving.vllm_server import register as register_vllm

        register_vllm()
    else:
        replica.RolloutReplicaRegistry.register("sglang", _sglang)


def _sglang() -> Any:
    replica._load_sglang()  # SGLang cannot be imported plainly in a process without a GPU
    from vision_rl.serving.sglang_server import VisionSGLangReplica

    return VisionSGLangReplica


def start_early(engine: str) -> None:
    """Start the server's process beside the actor's where that is possible: vLLM only (vllm_server.py)."""
    if engine == "vllm":
        from vision_rl.serving.vllm_server import start_early as start_vllm

        start_vllm()

"""Environment variables of a run: set in the main process before any heavy import, and in Ray."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

LOGICAL_GPUS = 8
"""So many FSDP ranks, each with a "GPU" of Ray's, can a CPU run have."""

SERVER_KEY = "VLLM_API_KEY"
"""By this variable vLLM's server learns the key that every request must bring, and the trainer which one its proxy sends."""

COMMON = {
    "TOKENIZERS_PARALLELISM": "false",  # the runners are forked
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # Ray's 15 would let anything else on the machine go before actor and model server
    "AGENTOPS_TELEMETRY": "false",
    "OPENAI_AGENTS_DISABLE_TRACING": "1",  # it would send prompts, and the run's token as its key, to its maker
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # its import asks GitHub for prices
    "VLLM_LOGGING_LEVEL": "WARNING",
    "HYDRA_FULL_ERROR": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # keeps Ray from hiding devices from actors that ask for none
    "NO_PROXY": "localhost,127.0.0.1",  # a web proxy must not catch the run's own traffic
}

# What verl's own entry point sets (trainer/constants_ppo.py; Agent Lightning's does not).
GPU_ONLY = {
    "NCCL_DEBUG": "WARN",
    "VLLM_DISABLE_COMPILE_CACHE": "1",  # processes that share the cache have corrupted it (vLLM issue 31199)
}
MEGATRON_ONLY = {"CUDA_DEVICE_MAX_CONNECTIONS": "1"}  # its overlap of communication relies on the order of launches

CPU_ONLY = {
    "OMP_NUM_THREADS": "1",  # with Dynamo off: 13 requests/s instead of 3 on two cores
    # Threads of the actor that wait for each other sleep. Those that spin hold the core that the other one needs as soon as
    # anything else on the machine runs: one background process made an update take five to ten times as long.
    "OMP_WAIT_POLICY": "PASSIVE",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # no binding, of any rank
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "SGLANG_USE_CPU_ENGINE": "1",
}

# The CPU build on a machine that has a GPU must not see it. No device has the number -1; an empty text would hide them too,
# but Ray looks the ids of its logical GPUs up in this list (worker.py:1120), one for each that the preset tells it of.
HIDDEN_GPUS = {"CUDA_VISIBLE_DEVICES": ",".join(["-1"] * LOGICAL_GPUS)}


def in_a_cluster(verl: Mapping[str, Any]) -> bool:
    """Whether a run of verl's configuration joins a Ray cluster that somebody has started, by the preset or by RAY_ADDRESS."""
    return bool(os.environ.get("RAY_ADDRESS") or verl["ray_kwargs"]["ray_init"].get("address"))


def run_environment(cpu: bool, *, megatron: bool = False) -> dict[str, str]:
    """The variables of a run's processes; what the user has set already wins, but for the GPUs that a CPU run hides."""
    chosen = {**COMMON, **(CPU_ONLY if cpu else GPU_ONLY), **(MEGATRON_ONLY if megatron else {})}
    return {name: os.environ.get(name, value) for name, value in chosen.items()} | (HIDDEN_GPUS if cpu else {})

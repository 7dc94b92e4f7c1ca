"""The platform class of `vllm_cpu.py`, in a module of its own: vLLM must be able to find the plugin before it is imported."""

from __future__ import annotations

import functools
import os
import signal
from typing import Any

import vllm.utils
from vllm.platforms.cpu import CpuPlatform

from vision_rl.engine.vllm_cpu import fork_engine
from vision_rl.orphans import end_with_parent


class NoIpexCpuPlatform(CpuPlatform):
    """vLLM's CPU platform with chunked prefill, and the prefix caching that needs it, off."""

    @classmethod
    def check_and_update_config(cls, vllm_config: Any) -> None:
        super().check_and_update_config(vllm_config)
        scheduler = vllm_config.scheduler_config
        scheduler.enable_chunked_prefill = scheduler.chunked_prefill_enabled = False
        scheduler.max_num_batched_tokens = max(scheduler.max_num_batched_tokens, scheduler.max_model_len)
        if vllm_config.parallel_config.worker_cls == "vllm.v1.worker.cpu_worker.CPUWorker":
            vllm_config.parallel_config.worker_cls = "vision_rl.engine.vllm_cpu_worker.AnyRankWorker"
        if vllm_config.cache_config is not None:
            vllm_config.cache_config.enable_prefix_caching = False
        if fork_engine():
            # vLLM forces spawn inside Ray actors for CUDA's sake; without CUDA a fork is safe and needs no second import.
            vllm.utils._maybe_force_spawn = lambda: None
            os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"
            # A spawned engine notices that its server was killed; a fork keeps the other ends of its own pipes open.
            os.register_at_fork(after_in_child=functools.partial(end_with_parent, signal.SIGKILL))

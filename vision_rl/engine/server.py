"""verl's vLLM server, with the LoRA adapter that is being trained reachable over HTTP.

verl 0.6.1 loads a training adapter into vLLM under a fixed id and passes it along in its own `generate` calls
(vllm_async_server.py:364), which Agent Lightning never makes: its runners call the HTTP server, which does not know the
adapter and answers from the base model. Rollouts then never change, and nothing fails. Here the HTTP server learns the
adapter's name, and the daemon asks for it. `tests/test_e2e_families.py` shows the mismatch without it.
"""

from __future__ import annotations

import argparse
from typing import Any

import ray
from verl.workers.rollout.replica import RolloutReplicaRegistry
from verl.workers.rollout.vllm_rollout import vllm_async_server
from verl.workers.rollout.vllm_rollout.utils import VLLM_LORA_INT_ID, VLLM_LORA_PATH
from vllm.lora.request import LoRARequest

ADAPTER_NAME = "adapter"
"""The model name under which the HTTP server answers with the adapter."""


@ray.remote(num_cpus=1)
class VisionHttpServer(vllm_async_server.vLLMHttpServerBase):
    """verl's server; answers with the adapter to whoever asks for `ADAPTER_NAME`, once verl has loaded it."""

    async def run_server(self, args: argparse.Namespace) -> None:
        async def keep_models(engine: Any, vllm_config: Any, state: Any, args: argparse.Namespace) -> None:
            await _init_app_state(engine, vllm_config, state, args)
            self.models = state.openai_serving_models

        vllm_async_server.init_app_state = keep_models
        await super().run_server(args)

    async def wake_up(self) -> None:
        await super().wake_up()
        if self.model_config.lora_rank > 0 and VLLM_LORA_INT_ID in await self.engine.list_loras():
            # vLLM looks at the path only of ids that it has not loaded; verl's weight sync has loaded this one.
            adapter = LoRARequest(lora_name=ADAPTER_NAME, lora_int_id=VLLM_LORA_INT_ID, lora_path=VLLM_LORA_PATH)
            self.models.lora_requests[ADAPTER_NAME] = adapter


_init_app_state = vllm_async_server.init_app_state


class VisionReplica(vllm_async_server.vLLMReplica):
    """A replica whose HTTP server is ours."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.server_class = VisionHttpServer


def register() -> None:
    """Make verl use `VisionReplica` where the configuration says `rollout.name=vllm`."""
    RolloutReplicaRegistry.register("vllm", lambda: VisionReplica)

"""verl's vLLM server for HTTP calls of the LLM proxy: adapters by name, no fetching of media, a fast start on CPUs."""

from __future__ import annotations

import argparse
import functools
import os
import signal
from importlib import import_module
from typing import Any

import ray
from verl.plugin.platform import get_platform
from verl.workers.rollout.llm_server import LLMServerManager
from verl.workers.rollout.replica import RolloutReplicaRegistry
from verl.workers.rollout.vllm_rollout import vllm_async_server
from verl.workers.rollout.vllm_rollout.utils import VLLM_LORA_INT_ID, VLLM_LORA_PATH
from vllm.lora.request import LoRARequest

from vision_rl.models.processor import load_processor
from vision_rl.models.tokens import forbidden_token_ids
from vision_rl.platform.gpu import cpu_build
from vision_rl.platform.parent_death import end_with_parent
from vision_rl.platform.rendezvous import vllm_meets_by_file
from vision_rl.serving import vllm_pictures
from vision_rl.serving.vllm_executor import register_models

ADAPTER_NAME = "adapter"
"""The model name under which the HTTP server answers with the adapter."""
NO_DOMAIN = "none.invalid"
"""vLLM takes an empty list of allowed media domains for "all"; a name that cannot exist allows none."""


# What the server never samples (vllm_async_server.py:504), the same list as the actor's. verl's own has the processor's picture
# and video token only: Llama 4 looks for patches, Pixtral for row breaks.
vllm_async_server.get_vision_placeholder_token_ids = forbidden_token_ids


class VisionHttpServer(vllm_async_server.vLLMHttpServer):
    """verl's server; answers with the adapter to whoever asks for `ADAPTER_NAME`, once verl has loaded it.

    Without arguments its process starts and imports, and waits for `begin` (see `start_early`).
    """

    def __init__(self, **kwargs: Any) -> None:
        if kwargs:
            self.begin(**kwargs)

    def begin(self, **kwargs: Any) -> None:
        os.environ["VLLM_MEDIA_CONNECTOR"] = vllm_pictures.NAME
        register_models()
        import_module("vision_rl.serving.vllm_thoughts")
        if cpu_build():
            fork_engine()
            vllm_meets_by_file()
        super().__init__(**kwargs)

    def _init_model_config(self, model_config: Any) -> Any:
        """verl's `hf_processor` knows seven classes; of the others it would not know which tokens must not be sampled."""
        config = super()._init_model_config(model_config)
        config.processor = load_processor(config.path, trust_remote_code=config.trust_remote_code)
        return config

    def _get_worker_extension_cls(self) -> str:
        own = "vision_rl.serving.vllm_extension.CpuExtension"
        return own if cpu_build() else super()._get_worker_extension_cls()

    def _resolve_sleep_level(self) -> int:
        """Level 2 frees more of Gemma 4 than a weight sync brings back: garbage after the first update (NeMo-RL issue 2631)."""
        whole = self.model_config.hf_config.model_type.startswith("gemma4")
        return 1 if whole else super()._resolve_sleep_level()

    def _preprocess_engine_kwargs(self, engine_kwargs: dict[str, Any]) -> None:
        super()._preprocess_engine_kwargs(engine_kwargs)
        engine_kwargs["allowed_media_domains"] = [NO_DOMAIN]
        if cpu_build() and self.config.tensor_model_parallel_size == 1:
            engine_kwargs["distributed_executor_backend"] = "vision_rl.serving.vllm_executor.OneProcessExecutor"

    async def run_server(self, args: argparse.Namespace) -> None:
        async def keep_models(engine: Any, state: Any, args: argparse.Namespace, supported_tasks: Any = None) -> None:
            await _init_app_state(engine, state, args, supported_tasks)
            self.models = state.openai_serving_models

        if self.lora_as_adapter:
            # verl keeps no handle to the HTTP application; its list of models is where an adapter gets its name.
            vllm_async_server.init_app_state = keep_models
        await super().run_server(args)

    async def clear_kv_cache(self) -> None:
        """verl calls this after every weight sync."""
        await super().clear_kv_cache()
        if self.lora_as_adapter and VLLM_LORA_INT_ID in await self.engine.list_loras():
            # vLLM looks at the path only of ids that it has not loaded; verl's weight sync has loaded this one.
            adapter = LoRARequest(lora_name=ADAPTER_NAME, lora_int_id=VLLM_LORA_INT_ID, lora_path=VLLM_LORA_PATH)
            self.models.lora_requests[ADAPTER_NAME] = adapter


_init_app_state = vllm_async_server.init_app_state


def fork_engine() -> None:
    """Let vLLM fork its engine and its worker: spawned ones import everything again, 10 s of a CPU each.

    vLLM forces spawn inside Ray actors for CUDA's sake (vllm/utils/system_utils.py:126), and on CPUs again
    (platforms/cpu.py, `check_and_update_config`); it offers no setting. Each time it wants a process it asks
    `_maybe_force_spawn` first. It is for the CPU build alone, which has no CUDA context to lose.
    """
    import vllm.utils.system_utils

    def never_spawn() -> None:
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"

    vllm.utils.system_utils._maybe_force_spawn = never_spawn
    # A spawned engine notices that its server was killed; a fork keeps the other ends of its own pipes open.
    os.register_at_fork(after_in_child=functools.partial(end_with_parent, signal.SIGKILL))


_early: dict[str, Any] = {}
"""Servers that were started early, by the name that verl will ask for."""


def start_early() -> None:
    """Start the process of the first replica's server now: it imports vLLM while the actor's worker imports verl and loads
    the model, where verl would start one after the other. For one machine without GPUs, where nothing but time is shared.
    """
    name = "vllm_server_0_0"  # vllm_async_server.py:1371
    platform = get_platform()
    variables = {**{var: "1" for var in platform.ray_noset_envvars()}, **platform.rollout_env_vars()}
    options = {"runtime_env": {"env_vars": variables}, "name": name}
    _early[name] = ray.remote(VisionHttpServer).options(**options).remote()


class _Servers:
    """What verl takes for the server's class: of a server that was started early it gets that one."""

    def options(self, **options: Any) -> _Servers:
        self.chosen = options
        return self

    def remote(self, **kwargs: Any) -> Any:
        server = _early.pop(self.chosen["name"], None)
        if server is None:
            return ray.remote(VisionHttpServer).options(**self.chosen).remote(**kwargs)
        ray.get(server.begin.remote(**kwargs))
        return server


class VisionReplica(vllm_async_server.vLLMReplica):
    """A replica whose HTTP server is ours."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.server_class = _Servers()


async def _no_balancer(manager: LLMServerManager) -> None:
    manager.global_load_balancer = None


def register() -> None:
    """Make verl use `VisionReplica` where the configuration says `rollout.name=vllm`, and start no load balancer.

    verl's balancer is an actor that tells its own agent loops which server to ask (workers/rollout/llm_server.py,
    `_init_global_load_balancer`); here the LLM proxy does that. The handles that it is given make Ray import the servers'
    class in it, vLLM and verl: 13 s of a core and a gigabyte, while the first rollouts begin. A router of one's own
    (`rollout.router_config_path`) is given the same handles.
    """
    RolloutReplicaRegistry.register("vllm", lambda: VisionReplica)
    LLMServerManager._init_global_load_balancer = _no_balancer

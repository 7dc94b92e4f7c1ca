"""Patches that let verl's worker extension load weights into vLLM's CPU build."""

from __future__ import annotations

from typing import Any

from verl.workers.rollout.vllm_rollout.bucketed_weight_transfer import BucketedWeightReceiver
from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension

from vision_rl.serving.vllm_reload import reload_on_cpu


class CpuExtension(vLLMColocateWorkerExtension):
    """verl's extension with `reload_on_cpu` in place of a plain `load_weights`, for which a CPU layer has no weights left."""

    def update_weights_from_ipc(
        self, peft_config: dict[str, Any] | None = None, base_sync_done: bool = False, use_shm: bool = False
    ) -> None:
        if peft_config and base_sync_done:  # an adapter alone: nothing of the base is loaded
            super().update_weights_from_ipc(peft_config, base_sync_done, use_shm)
            return
        received: list[tuple[str, Any]] = []
        receiver = BucketedWeightReceiver(zmq_handle=self._get_zmq_handle(), device=self.device, use_shm=use_shm)
        # Cloned: the buffer of a bucket is used again for the next one.
        receiver.receive_weights(lambda weights, _last: received.extend((name, one.clone()) for name, one in weights))
        reload_on_cpu(self.model_runner, received)

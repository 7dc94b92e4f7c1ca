"""What verl's worker extension needs to load weights into vLLM's CPU build."""

from __future__ import annotations

from typing import Any

from verl.workers.rollout.vllm_rollout.bucketed_weight_transfer import BucketedWeightReceiver
from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload


class CpuExtension(vLLMColocateWorkerExtension):
    """vLLM's CPU layers hand their weights to oneDNN and drop them (layers/utils.py, `remove_weight=True`), so that there is
    nothing left for verl's `load_weights` to load into; vLLM's own layerwise reload brings the layers back first."""

    def update_weights_from_ipc(
        self, peft_config: dict[str, Any] | None = None, base_sync_done: bool = False, use_shm: bool = False
    ) -> None:
        if peft_config and base_sync_done:  # an adapter alone: nothing of the base is loaded
            super().update_weights_from_ipc(peft_config, base_sync_done, use_shm)
            return
        model = self.model_runner.model
        received: list[tuple[str, Any]] = []
        receiver = BucketedWeightReceiver(zmq_handle=self._get_zmq_handle(), device=self.device, use_shm=use_shm)
        # Cloned: the buffer of a bucket is used again for the next one.
        receiver.receive_weights(lambda weights, _last: received.extend((name, one.clone()) for name, one in weights))
        initialize_layerwise_reload(model)
        model.load_weights(received)
        finalize_layerwise_reload(model, self.model_runner.model_config)

"""Load new weights into a running vLLM on a CPU."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch


def reload_on_cpu(model_runner: Any, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Load `weights`, under the checkpoint's names, into the model of a worker's `model_runner`.

    vLLM's CPU layers hand their weights to oneDNN and drop them (layers/utils.py, `remove_weight=True`), so that there is
    nothing left to load into; vLLM's own layerwise reload brings the layers back first. It also puts uninitialised memory
    where a layer keeps a buffer that no checkpoint holds beside weights that one does, such as a CLIP tower's
    `position_ids` (reload/layerwise.py of vLLM 0.24), and forgets that a checkpoint does not hold it: those are put back as
    they were, and as what they were, so that the next reload knows them too. And it leaves a head that is tied to
    the embeddings with what oneDNN made of the old ones: no checkpoint holds weights of its own for it.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

    model = model_runner.model
    kept = model.state_dict().keys()
    constants = {name: buffer.clone() for name, buffer in model.named_buffers() if name not in kept}
    initialize_layerwise_reload(model)
    model.load_weights(weights)
    finalize_layerwise_reload(model, model_runner.model_config)
    buffers = dict(model.named_buffers())
    for name, constant in constants.items():
        owner, _, leaf = name.rpartition(".")
        model.get_submodule(owner).register_buffer(leaf, buffers[name].copy_(constant), persistent=False)
    for head in model.modules():
        if isinstance(head, ParallelLMHead):
            head.quant_method.process_weights_after_loading(head)

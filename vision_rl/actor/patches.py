"""Every assignment into verl's modules that a rank of the actor needs: `patch_verl`, called where a rank or an engine begins."""

from __future__ import annotations

from functools import cache

import verl.utils.fsdp_utils as fsdp_utils
import verl.utils.torch_functional as torch_functional
import verl.workers.engine.fsdp.transformer_impl as fsdp_engine
from verl.utils.device import get_device_name
from verl.utils.flops_counter import ESTIMATE_FUNC

from vision_rl.actor.engine import log_probs_by_block, micro_batches
from vision_rl.actor.model_patches import count_glm_flops, merge_pictures, sharded_layers


@cache
def patch_verl() -> None:
    """Once per process, before the first engine is made. Each function says what verl 0.9.1 does without it."""
    if not torch_functional.FLAH_ATTN_CROSS_ENTROPY_LOSS_AVAILABLE:
        fsdp_engine.logprobs_from_logits = log_probs_by_block
    if get_device_name() == "cpu":
        # FSDP2 keeps a model without updates in pinned memory (transformer_impl.py:462), which only an accelerator has.
        # On a CPU there is nothing to offload from. test_backends.py builds a reference model and fails without this line.
        fsdp_engine.CPUOffloadPolicy = lambda **_kwargs: None
    fsdp_engine.prepare_micro_batches = micro_batches
    fsdp_engine.extract_multi_modal_inputs = merge_pictures
    fsdp_utils._select_fsdp2_wrap_targets = sharded_layers
    ESTIMATE_FUNC["glm4v"] = count_glm_flops

"""Adapters stay in float32 over a bfloat16 base, in verl's FSDP2 engine as this project registers it."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from tests.actor import process_group
from vision_rl.tiny import checkpoint_dir


def test_adapters_are_float32_over_a_bfloat16_base_and_step_under_fsdp2() -> None:
    """verl casts them to the base's dtype: at a learning rate of 1e-5 most of a bfloat16 adapter would never move."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    from transformers import AutoModelForImageTextToText

    from vision_rl.actor.engine import VisionEngine

    engine = object.__new__(VisionEngine)  # its constructor starts a process group and loads the model itself
    engine.model_config = SimpleNamespace(
        lora_adapter_path=None,
        lora_rank=4,
        lora_alpha=4,
        target_modules="all-linear",
        target_parameters=None,
        exclude_modules=".*visual.*",
    )
    base = AutoModelForImageTextToText.from_pretrained(checkpoint_dir(), dtype=torch.bfloat16)
    model = engine._build_lora_module(base)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    frozen = {parameter.dtype for parameter in model.parameters() if not parameter.requires_grad}
    assert {parameter.dtype for parameter in trained} == {torch.float32} and frozen == {torch.bfloat16}

    process_group()
    mesh, policy = init_device_mesh("cpu", (1,)), MixedPrecisionPolicy(torch.bfloat16, torch.float32)
    for layer in model.base_model.model.model.language_model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.0)
    ids = torch.randint(5, 100, (2, 8))
    before = [parameter.full_tensor().clone() for parameter in trained]
    model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float().logsumexp(-1).mean().backward()
    optimizer.step()
    after = [parameter.full_tensor() for parameter in trained]
    moved = [(new - old).abs().max().item() for new, old in zip(after, before, strict=True)]
    assert max(moved) > 5e-6, "AdamW's first step is the learning rate"

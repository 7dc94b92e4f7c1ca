"""Adapters stay in float32 over a bfloat16 base, in verl's FSDP2 engine as this project registers it."""

from __future__ import annotations

import torch

from tests.actor import actor

ADAPTERS = (
    "actor_rollout_ref.model.lora_rank=4",
    "actor_rollout_ref.model.lora_alpha=4",
    "actor_rollout_ref.model.exclude_modules=.*visual.*",
    "actor_rollout_ref.rollout.load_format=safetensors",
)
BFLOAT16 = "actor_rollout_ref.actor.fsdp_config.model_dtype=bfloat16"
SMALL_STEPS = ("actor_rollout_ref.actor.optim.lr=1e-5", "actor_rollout_ref.actor.optim.weight_decay=0.0")


def test_adapters_are_float32_over_a_bfloat16_base_and_step_under_fsdp2() -> None:
    """verl casts them to the base's dtype: at a learning rate of 1e-5 most of a bfloat16 adapter would never move."""
    engine = actor("actor", None, *ADAPTERS, BFLOAT16, *SMALL_STEPS).engine
    trained = [parameter for parameter in engine.module.parameters() if parameter.requires_grad]
    frozen = {parameter.dtype for parameter in engine.module.parameters() if not parameter.requires_grad}
    assert {parameter.dtype for parameter in trained} == {torch.float32} and frozen == {torch.bfloat16}

    ids = torch.randint(5, 100, (2, 8))
    positions = torch.arange(8).expand(4, 2, 8)  # of text and of three axes
    before = [parameter.full_tensor().clone() for parameter in trained]
    output = engine.module(input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=positions)
    output.logits.float().logsumexp(-1).mean().backward()
    engine.optimizer.step()
    after = [parameter.full_tensor() for parameter in trained]
    moved = [(new - old).abs().max().item() for new, old in zip(after, before, strict=True)]
    assert max(moved) > 5e-6, "AdamW's first step is the learning rate"

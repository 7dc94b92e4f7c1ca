"""The trainer's side: a reply's log-probabilities by the code that a run uses, from the trace to the model's forward.

`RowBuilder` makes the rows and `VisionEngine` the model's inputs, as in a run; the model is loaded by verl's choice of class
and carries verl's patches and this project's. Only the queue between them and the sharding of FSDP are absent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from vision_rl.models.pixels import Pixels
from vision_rl.training.rows import Drop, RowBuilder
from vision_rl.training.samples import Sample


def load_model(path: str, *, cpu: bool = True, trust_remote_code: bool = False) -> Any:
    """The model as verl 0.9.1 builds it (workers/engine/fsdp/transformer_impl.py, `_build_module`), in float32 on a CPU."""
    from transformers import AutoConfig
    from verl.models.transformers.monkey_patch import apply_monkey_patch
    from verl.utils.model import get_hf_auto_model_class

    from vision_rl.actor.model_patches import answer_with_tensors, restore_rotations

    config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code, attn_implementation="sdpa")
    dtype, device = (torch.float32, "cpu") if cpu else (torch.bfloat16, "cuda")
    model = get_hf_auto_model_class(config).from_pretrained(
        path, dtype=dtype, config=config, trust_remote_code=trust_remote_code
    )
    apply_monkey_patch(model, use_remove_padding=False)
    model.to(device, dtype)
    answer_with_tensors(model)
    restore_rotations(model)
    return model.eval()


def bare_engine(model: Any, pixels: Pixels, banned: Sequence[int] = ()) -> Any:
    """A `VisionEngine` around `model`, without process groups and optimizer; `banned` tokens have no probability."""
    from vision_rl.actor.engine import VisionEngine
    from vision_rl.actor.model_patches import SharedPictures

    engine = VisionEngine.__new__(VisionEngine)
    engine.use_ulysses_sp, engine.pad_to_length = False, None
    engine.module, engine.pixels, engine.pictures = model, pixels, SharedPictures(model)
    engine.banned_tokens = torch.tensor(banned, dtype=torch.long)
    model.get_output_embeddings().register_forward_hook(engine._ban)
    return engine


def log_probs(engine: Any, builder: RowBuilder, samples: Sequence[Sample], temperature: float) -> list[torch.Tensor]:
    """Log-probabilities of each sample's response, all samples in one micro-batch.

    Raises ValueError for a sample that the trainer would drop, and whatever the model raises.
    """
    from verl.utils import tensordict_utils as tu

    rows = [builder.row(sample) for sample in samples]
    for row in rows:
        if isinstance(row, Drop):
            raise ValueError(f"the trainer drops this sample: {row.text}")
    batch = tu.list_of_dict_to_tensordict([dict(row) for row in rows if isinstance(row, dict)])
    for name, value in batch.items():
        if isinstance(value, torch.Tensor) and not value.is_nested:  # rows of one length; the queue nests them too
            batch[name] = torch.nested.as_nested_tensor(list(value), layout=torch.jagged)
    tu.maybe_fix_3d_position_ids(batch)
    tu.assign_non_tensor(batch, use_remove_padding=False, temperature=temperature)
    inputs, _ = engine.prepare_model_inputs(batch)
    device = engine.module.device
    moved = {key: value.to(device) if torch.is_tensor(value) else value for key, value in inputs.items()}
    with torch.inference_mode():
        logits = engine.module(**moved, use_cache=False).logits.float().cpu() / temperature
    values = []
    for scores, sample in zip(logits, samples, strict=True):
        start, ids = len(sample.prompt_ids), torch.tensor(sample.response_ids)
        chosen = torch.log_softmax(scores[start - 1 : start - 1 + len(ids)], dim=-1)
        values.append(chosen.gather(-1, ids.unsqueeze(-1)).squeeze(-1))
    return values

"""The trainer's side of parity: a reply's log-probabilities by a run's own code, from the trace to the forward pass.

`RowBuilder` makes the rows and `VisionEngine` the model's inputs, as in a run; the model is loaded by verl's choice of class
and carries verl's patches and this project's. Only the queue between them and the sharding of FSDP are absent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from vision_rl.models.pixels import Pixels, View
from vision_rl.training.rows import Drop, RowBuilder
from vision_rl.training.samples import Sample


def load_model(path: str, *, cpu: bool = True, dtype: torch.dtype | None = None) -> Any:
    """The model as verl 0.9.1 builds it (workers/engine/fsdp/transformer_impl.py, `_build_module`).

    dtype: of weights and computation; by default float32 on a CPU, bfloat16 on a GPU.
    """
    from transformers import AutoConfig
    from verl.models.transformers.monkey_patch import apply_monkey_patch
    from verl.utils.model import get_hf_auto_model_class

    from vision_rl.actor.model_patches import mend

    config = AutoConfig.from_pretrained(path, trust_remote_code=False, attn_implementation="sdpa")
    dtype, device = dtype or (torch.float32 if cpu else torch.bfloat16), "cpu" if cpu else "cuda"
    kind = get_hf_auto_model_class(config)
    model = kind.from_pretrained(path, dtype=dtype, config=config, trust_remote_code=False)
    apply_monkey_patch(model, use_remove_padding=False)
    model.to(device, dtype)
    mend(model)
    return model.eval()


def bare_engine(model: Any, pixels: Pixels | None, banned: Sequence[int] = ()) -> Any:
    """A `VisionEngine` around `model`, without process groups and optimizer; `banned` tokens have no probability.

    pixels: None for rows of text.
    """
    from vision_rl.actor import shared_prompt
    from vision_rl.actor.engine import VisionEngine
    from vision_rl.actor.model_patches import SharedPictures
    from vision_rl.actor.patches import patch_verl

    patch_verl()
    engine = VisionEngine.__new__(VisionEngine)
    engine.use_ulysses_sp, engine.pad_to_length = False, None
    engine.module, engine.pixels, engine.pictures = model, pixels, SharedPictures(model)
    engine.banned_tokens, engine.unshared = torch.tensor(banned, dtype=torch.long), shared_prompt.why_not(model.config)
    engine.shares_prompts = False
    if not engine.unshared:
        shared_prompt.use_shared_attention(model)
    model.get_output_embeddings().register_forward_pre_hook(engine._select)
    model.get_output_embeddings().register_forward_hook(engine._ban)
    return engine


def log_probs(
    engine: Any,
    builder: RowBuilder,
    samples: Sequence[Sample],
    temperature: float,
    *,
    share: bool = False,
    view: View = "seen",
    shift: int = 0,
) -> list[torch.Tensor]:
    """Log-probabilities of each sample's response, all samples in one micro-batch.

    share: each sample's prompt is that of a group of two, the other of which has its reply in reverse, and is computed once.
    view: how its pictures are shown. shift: added to every position in the second half of each prompt and in the reply, as by
    a trainer that counts a picture's tokens otherwise.
    Raises ValueError for a sample that the trainer would drop, and where nothing is shared, and whatever the model raises.
    """
    from verl.utils import tensordict_utils as tu

    if share:
        pairs = [(replace(sample, data_id=str(number)), sample) for number, sample in enumerate(samples)]
        samples = [one for own, same in pairs for one in (own, replace(own, response_ids=same.response_ids[::-1]))]
    rows = [builder.row(sample) for sample in samples]
    for row in rows:
        if isinstance(row, Drop):
            raise ValueError(f"the trainer drops this sample: {row.text}")
    batch = tu.list_of_dict_to_tensordict([dict(row) for row in rows if isinstance(row, dict)])
    for name, value in batch.items():
        if isinstance(value, torch.Tensor) and not value.is_nested:  # rows of one length; the queue nests them too
            batch[name] = torch.nested.as_nested_tensor(list(value), layout=torch.jagged)
    tu.maybe_fix_3d_position_ids(batch)
    tu.assign_non_tensor(batch, use_remove_padding=False, temperature=temperature, view=view)
    engine.shares_prompts = share
    inputs, known = engine.prepare_model_inputs(batch)
    if share and "packed" not in known:
        raise ValueError(f"no prompt is shared: {engine.unshared or 'too little would be saved'}")
    inputs["position_ids"][..., min(len(sample.prompt_ids) for sample in samples) // 2 :] += shift
    device = engine.module.device
    moved = {key: value.to(device) if torch.is_tensor(value) else value for key, value in inputs.items()}
    with torch.inference_mode():
        output = engine.module(**moved, use_cache=False)
        output.logits = output.logits.float().cpu()
        found = engine.prepare_model_outputs(output, known, batch, None)["log_probs"].unbind()
    starts = [len(sample.prompt_ids) - 1 for sample in samples]
    values = [
        one[start : start + len(sample.response_ids)] for one, start, sample in zip(found, starts, samples, strict=True)
    ]
    return values[::2] if share else values

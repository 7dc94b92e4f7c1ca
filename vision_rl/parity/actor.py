"""The trainer's side: a reply's log-probabilities by the code that a run uses, from the trace to the model's forward.

`BatchBuilder` makes the batch, verl unpads it and prepares the model's inputs (FSDPEngineWithLMHead), the model is
loaded by verl's choice of class and carries verl's patches. Only the sharding of FSDP is absent.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch

from vision_rl.engine.vision_batch import BatchBuilder, Sample


def load_actor(path: str, *, cpu: bool = True, trust_remote_code: bool = False) -> Any:
    """The model as verl 0.9.1's FSDP engine builds it (workers/engine/fsdp/transformer_impl.py, `_build_module`)."""
    from transformers import AutoConfig
    from verl.models.transformers.monkey_patch import apply_monkey_patch
    from verl.utils.model import get_hf_auto_model_class

    config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code, attn_implementation="sdpa")
    dtype, device = (torch.float32, "cpu") if cpu else (torch.bfloat16, "cuda")
    model = get_hf_auto_model_class(config).from_pretrained(
        path, dtype=dtype, config=config, trust_remote_code=trust_remote_code
    )
    apply_monkey_patch(model, use_remove_padding=False)
    return model.to(device, dtype).eval()


def log_probs(model: Any, builder: BatchBuilder, samples: Sequence[Sample], temperature: float) -> list[torch.Tensor]:
    """Log-probabilities of each sample's response, all samples in one micro-batch. Raises `UserError` if none is usable."""
    from verl.utils import tensordict_utils as tu
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead
    from verl.workers.utils.padding import left_right_2_no_padding

    built = builder.build(samples)
    if built.dropped:
        raise ValueError(f"the trainer would drop this sample: {', '.join(built.dropped)}")
    batch = left_right_2_no_padding(built.batch.to_tensordict())
    tu.assign_non_tensor(batch, use_remove_padding=False, temperature=temperature)
    engine = SimpleNamespace(use_ulysses_sp=False, pad_to_length=None)
    inputs, _ = FSDPEngineWithLMHead.prepare_model_inputs(engine, batch)  # type: ignore[arg-type]
    with torch.inference_mode():
        moved = {key: value.to(model.device) if torch.is_tensor(value) else value for key, value in inputs.items()}
        logits = model(**moved, use_cache=False).logits.float().cpu() / temperature
    values = []
    for row, sample in zip(logits, samples, strict=True):
        start, ids = len(sample.prompt_ids), torch.tensor(sample.response_ids)
        scores = row[start - 1 : start - 1 + len(ids)]
        values.append(torch.log_softmax(scores, dim=-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1))
    return values

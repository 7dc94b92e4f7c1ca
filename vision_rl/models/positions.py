"""The actor's position ids: M-RoPE for the families that have it, plain counting for the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

_GRIDS = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")


def rope_index_of(processor: Any) -> Callable[..., tuple[torch.Tensor, torch.Tensor]] | None:
    """The model class's own `get_rope_index`, or None for a family with plain positions.

    `vision_rl.models.processor.load_processor` binds it to the processor, as verl 0.9.1's `hf_processor` does for the few
    classes that it knows; what a class is called decides nothing here.
    """
    return getattr(processor, "get_rope_index", None)


def token_types(processor: Any, input_ids: torch.Tensor) -> torch.Tensor:
    """What each token is by the processor's own rule: 0 text, 1 picture, 2 video. input_ids and result: (length,)."""
    return torch.tensor(processor.create_mm_token_type_ids([input_ids.tolist()])[0])


def position_ids(
    processor: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, inputs: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """Positions of one padded sequence.

    input_ids, attention_mask: (length,). inputs: the sample's vision inputs, of which `image_grid_thw` and `video_grid_thw`
    ((pictures, 3) and (videos, 3) in patches, in order of appearance) and `second_per_grid_ts` (videos,) are read.
    Returns (4, length) for M-RoPE families, rows text/temporal/height/width as verl 0.9.1's engine expects them
    (verl/experimental/agent_loop, `_compute_position_ids`), else (length,).
    """
    text = torch.clamp(torch.cumsum(attention_mask, dim=-1) - 1, min=0)
    rope_index = rope_index_of(processor)
    if rope_index is None:
        return text
    vision, _ = rope_index(
        input_ids=input_ids.unsqueeze(0),
        mm_token_type_ids=token_types(processor, input_ids).unsqueeze(0),
        attention_mask=attention_mask.unsqueeze(0),
        **{"image_grid_thw": None, **{name: inputs[name] for name in _GRIDS if name in inputs}},
    )
    return torch.cat([text.unsqueeze(0) * attention_mask, vision[:, 0].to(text.dtype)], dim=0)

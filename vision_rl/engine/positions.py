"""Position ids as the actor needs them: M-RoPE for the Qwen-VL and GLM-V families, plain counting for the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def rope_index_of(processor: Any) -> Callable[..., torch.Tensor] | None:
    """verl's `get_rope_index` for the processor's family, or None for a family with plain positions.

    Agent Lightning 0.3.0 tests class names for Qwen2VL and Qwen3VL image processors and so misses that Qwen3-VL's own
    processor carries a `Qwen2VLImageProcessor`; the processor's own class decides here.
    """
    name = type(processor).__name__
    if name.startswith("Qwen3VL"):
        from verl.models.transformers.qwen3_vl import get_rope_index
    elif name.startswith(("Qwen2VL", "Qwen2_5_VL")):
        from verl.models.transformers.qwen2_vl import get_rope_index
    elif name.startswith("Glm4v"):
        from verl.models.transformers.glm4v import get_rope_index
    else:
        return None
    return get_rope_index


def position_ids(
    processor: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, image_grid_thw: torch.Tensor | None
) -> torch.Tensor:
    """Positions of one padded sequence.

    input_ids, attention_mask: (length,). image_grid_thw: (pictures, 3) in patches, in order of appearance.
    Returns (4, length) for M-RoPE families, rows text/temporal/height/width as verl's patched forward expects, else (length,).
    """
    text = torch.clamp(torch.cumsum(attention_mask, dim=-1) - 1, min=0)
    rope_index = rope_index_of(processor)
    if rope_index is None:
        return text
    vision = rope_index(processor, input_ids=input_ids, image_grid_thw=image_grid_thw, attention_mask=attention_mask)
    return torch.cat([text.unsqueeze(0) * attention_mask, vision.to(text.dtype)], dim=0)


def expected_image_tokens(processor: Any, image_grid_thw: torch.Tensor) -> int:
    """How many placeholder tokens pictures with these grids take in the sequence: patches over merge_size squared."""
    return int(image_grid_thw.prod(dim=-1).sum()) // processor.image_processor.merge_size**2
